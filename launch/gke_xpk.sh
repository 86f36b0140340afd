#!/usr/bin/env bash
# Runs jaxseg on one or several TPU slices on GKE with xpk (pip install xpk). The same command runs
# on every host.
#
#   export CLUSTER=seg ZONE=us-west4-a BUCKET=my-bucket TPU=v5litepod-256 SLICES=2
#   launch/gke_xpk.sh create --spot    # or --on-demand, --reservation NAME
#   launch/gke_xpk.sh run first --config configs/cityscapes.py --config.batch_size=512 \
#       --workdir /bucket/runs/first --config.data.root=/bucket/packed/cityscapes
#   launch/gke_xpk.sh status first
#   launch/gke_xpk.sh delete
#
# The bucket holds the data and the runs and is mounted as /bucket. Checkpoints are folders that are
# renamed when they are complete. This is fastest in a bucket with hierarchical namespace. xpk
# builds the image from the current folder and restarts the workload when a host is lost
# (`--max-restarts`). The run then resumes. A run that was stopped by SIGTERM exits with status 0,
# which ends the workload. To resume it, use the same command with another workload name. The
# results are in the bucket. DRY_RUN=1 prints the commands instead of running them.
set -euo pipefail

usage() {
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"
  exit 2
}

[[ ${CLUSTER:-} && ${ZONE:-} && ($# -ge 2 || ${1:-} == delete) ]] || usage
TPU=${TPU:-v5litepod-16} SLICES=${SLICES:-1}
WHERE=(--cluster "$CLUSTER" --zone "$ZONE")

do_it() {
  if [[ ${DRY_RUN:-} ]]; then printf '%q ' "$@" && echo; else "$@"; fi
}

create() {
  do_it xpk cluster create "${WHERE[@]}" --tpu-type "$TPU" --num-slices "$SLICES" \
    --enable-gcsfuse-csi-driver "$@"
  do_it xpk storage attach bucket "${WHERE[@]}" --type gcsfuse --bucket "${BUCKET:?}" \
    --size 1 --mount-options implicit-dirs,rename-dir-limit=100000 \
    --mount-point /bucket --readonly false --auto-mount true
}

run() {
  do_it xpk workload create "${WHERE[@]}" --workload "$1" --tpu-type "$TPU" \
    --num-slices "$SLICES" --max-restarts 50 --base-docker-image python:3.12 --script-dir . \
    --command "pip install --quiet '.[tpu]' && python -m jaxseg.main$(printf ' %q' "${@:2}")"
}

status() {
  do_it xpk workload list "${WHERE[@]}" --filter-by-job "$1"
}

delete() {
  do_it xpk cluster delete "${WHERE[@]}"
}

case $1 in
  create | run | status | delete) "$@" ;;
  *) usage ;;
esac
