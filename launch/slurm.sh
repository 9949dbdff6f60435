#!/usr/bin/env bash
# One run on nodes of 8 GPUs under SLURM, submitted from a folder that all nodes see:
#
#     sbatch --nodes=4 launch/slurm.sh CONFIG [--key value ...]
#
# One process drives one GPU, because that is what JAX assumes under SLURM: it takes coordinator and indices from
# SLURM's variables, and gives each process the device of its SLURM_LOCALID alone. Tasks must therefore see all GPUs of
# their node (no --gpus-per-task). Options of the command line win over those here.
#
#SBATCH --job-name=reft
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
# Five minutes before the time limit every process gets SIGTERM. Without `B:` it goes to them and not to this script.
#SBATCH --signal=TERM@300
#SBATCH --requeue

if [ $# -eq 0 ]; then
    echo "usage: sbatch launch/slurm.sh CONFIG [--key value ...]" >&2
    exit 2
fi
config=$1
shift
# shellcheck source=/dev/null
if [ -n "$SETUP" ]; then . "$SETUP"; fi # what loads modules or an environment on this cluster
set -u

logs=${LOGS:-logs}/$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
mkdir -p "$logs"
echo "slurm.sh: job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, on $SLURM_JOB_NODELIST; output in $logs/0.log"

trap : TERM # when SLURM ends the whole job this script too is told, and has to outlive the processes
# A process that stops a moment before the others must not have them killed: they get --wait seconds instead.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 --wait=120 --output="$logs/%t.log" \
    "${PYTHON:-python}" -m reft_jax.train --config "$config" "$@"
code=$?

# 75: saved and stopped. 143: SIGTERM came before there was anything to save. A job that was cancelled or has run out of
# time is no longer RUNNING; to requeue it would bring it back.
if [ "$code" -eq 75 ] || [ "$code" -eq 143 ]; then
    state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
    echo "slurm.sh: interrupted; the job is ${state:-gone}"
    if [ "$state" = RUNNING ]; then scontrol requeue "$SLURM_JOB_ID"; fi
elif [ "$code" -eq 3 ]; then
    echo "slurm.sh: reinforcement collapsed and was ended; the run's models and summary are there, see $logs/0.log" >&2
elif [ "$code" -ne 0 ]; then
    echo "slurm.sh: failed with exit code $code; see $logs" >&2
fi
exit "$code"
