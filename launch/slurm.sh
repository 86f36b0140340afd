#!/usr/bin/env bash
# GPUs on several nodes under Slurm, one process a GPU: the same command runs in every process.
#
#   sbatch --nodes 2 launch/slurm.sh --config configs/cityscapes.py --workdir runs/first
#
# with --partition and --account as the cluster wants them, before the script.
#
# The working directory, with the environment in .venv (pip install 'jaxseg[cuda]'), and the work
# directory must be on storage that all nodes share. Before its time is up and when it is preempted,
# the job gets SIGTERM: the run is saved, and the job queued again. DRY_RUN=1 prints the command
# instead.
#SBATCH --job-name=jaxseg
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

if [[ $# == 0 ]]; then
  sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//p}' "$0"
  exit 2
fi
# srun does not take this over from the job by itself (Slurm 22.05 and later).
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-8}
COMMAND=(srun --kill-on-bad-exit=1 .venv/bin/python -m jaxseg.main "$@")
if [[ ${DRY_RUN:-} ]]; then
  printf '%q ' "${COMMAND[@]}" && echo
  exit
fi
"${COMMAND[@]}" &
trap 'kill -TERM "$!"; stopped=1' TERM
status=0
wait "$!" || wait "$!" || status=$? # a signal ends the first one
[[ ! ${stopped:-} ]] || scontrol requeue "$SLURM_JOB_ID"
exit "$status"
