#!/usr/bin/env bash
# One slice or several on GKE, by xpk (pip install xpk): the same command runs on every host.
#
#   export CLUSTER=seg ZONE=us-west4-a BUCKET=my-bucket TPU=v5litepod-256 SLICES=2
#   launch/gke_xpk.sh create --spot    # or --on-demand, --reservation NAME
#   launch/gke_xpk.sh run first --config configs/cityscapes.py --config.batch_size=512 \
#       --workdir /bucket/runs/first --config.data.root=/bucket/packed/cityscapes
#   launch/gke_xpk.sh status first
#   launch/gke_xpk.sh delete
#
# The bucket, with the data and the runs, is mounted as /bucket; checkpoints are folders that are
# renamed when they are complete, which is quickest in a bucket with hierarchical namespace. xpk
# builds the image from this folder and starts it again when a host is lost (`--max-restarts`): the
# run then goes on. One that was stopped in good order (SIGTERM) ends with status 0, which is the
# end of the workload: run it again by the same command and another name. The results are in the
# bucket. DRY_RUN=1 prints the commands instead.
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
