#!/usr/bin/env bash
# Runs jaxseg under Slurm on GPUs of several nodes, with one process per GPU. The same command runs
# in every process.
#
#   sbatch --nodes 2 launch/slurm.sh --config configs/cityscapes.py --workdir runs/first
#
# Put --partition and --account before the script if the cluster needs them.
#
# The current directory must have the environment in .venv (pip install 'jaxseg[cuda]'). The current
# directory and the --workdir must be on storage that all nodes share. The job gets SIGTERM shortly
# before its time limit and when it is preempted. The run is then saved and the job is queued again.
# DRY_RUN=1 prints the command instead of running it.
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
# srun does not inherit this from the job (Slurm 22.05 and later).
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-8}
COMMAND=(srun --kill-on-bad-exit=1 .venv/bin/python -m jaxseg.main "$@")
if [[ ${DRY_RUN:-} ]]; then
  printf '%q ' "${COMMAND[@]}" && echo
  exit
fi
"${COMMAND[@]}" &
trap 'kill -TERM "$!"; stopped=1' TERM
status=0
wait "$!" || wait "$!" || status=$? # a signal interrupts the first wait
[[ ! ${stopped:-} ]] || scontrol requeue "$SLURM_JOB_ID"
exit "$status"
