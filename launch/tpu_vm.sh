#!/usr/bin/env bash
# Creates a TPU VM pod, runs jaxseg on it and fetches the results. The same command runs on every
# worker.
#
#   export NAME=seg ZONE=us-west4-a BUCKET=my-bucket    # the bucket holds the data and the runs
#   launch/tpu_vm.sh create v5litepod-16
#   launch/tpu_vm.sh install
#   launch/tpu_vm.sh run --config configs/cityscapes.py --workdir bucket/runs/first \
#       --config.data.root=bucket/packed/cityscapes
#   launch/tpu_vm.sh fetch runs/first
#   launch/tpu_vm.sh delete
#
# Every worker mounts the bucket as the folder `bucket`. Checkpoints are folders that are renamed
# when they are complete. This is fastest in a bucket with hierarchical namespace. `install`
# installs the last commit. A run ends when its connection ends, so start it in tmux. A preempted
# run resumes when it is started again with the same arguments. DRY_RUN=1 prints the commands
# instead of running them.
#
# Call this script from the repository. It needs git, and gcloud with a login and a project. RUNTIME
# is the runtime of v5e unless it is set.
set -euo pipefail

usage() {
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"
  exit 2
}

[[ ${NAME:-} && ${ZONE:-} && ($# -ge 2 || ${1:-} =~ ^(install|delete)$) ]] || usage
# Runtimes of the machines: https://cloud.google.com/tpu/docs/runtimes
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
TPU=(gcloud compute tpus tpu-vm)

do_it() {
  if [[ ${DRY_RUN:-} ]]; then printf '%q ' "$@" && echo; else "$@"; fi
}

on_all_workers() {
  do_it "${TPU[@]}" ssh "$NAME" --zone "$ZONE" --worker all --command "$1"
}

create() {
  do_it "${TPU[@]}" create "$NAME" --zone "$ZONE" --accelerator-type "$1" --version "$RUNTIME" \
    "${@:2}"
}

install() {
  local archive
  archive=$(mktemp -d)/jaxseg.tar.gz
  do_it git archive --output "$archive" HEAD
  do_it "${TPU[@]}" scp "$archive" "$NAME:" --zone "$ZONE" --worker all
  on_all_workers "mkdir -p jaxseg bucket && tar -xzf jaxseg.tar.gz -C jaxseg &&
    pip install --quiet --user uv && python3 -m uv venv --quiet --clear --python 3.12 env &&
    python3 -m uv pip install --quiet --python env './jaxseg[tpu]' &&
    (mountpoint -q bucket || gcsfuse --implicit-dirs --rename-dir-limit 100000 $(printf %q "${BUCKET:?}") bucket)"
}

run() {
  on_all_workers "env/bin/python -m jaxseg.main$(printf ' %q' "$@")"
}

fetch() {
  do_it mkdir -p "$1"
  do_it gcloud storage rsync --recursive "gs://${BUCKET:?}/$1" "$1"
}

delete() {
  do_it "${TPU[@]}" delete "$NAME" --zone "$ZONE"
}

case $1 in
  create | install | run | fetch | delete) "$@" ;;
  *) usage ;;
esac
