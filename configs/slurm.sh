#!/usr/bin/env bash
# Trains on several machines under SLURM: accelerate's launcher once per machine, a process per GPU.
#
#   sbatch --nodes 2 --gpus-per-node 8 --time 12:00:00 configs/slurm.sh \
#       recipes/dit.py --config folder-256-dit --root PHOTOS --compile
#
# The arguments are a recipe and its flags. PHOTOS, the run folder and the cache ($GENMODELS_CACHE)
# have to be on a disk that all machines share, and `accelerate` in the PATH of the job. The batch size
# of the recipe is that of all GPUs together. Five minutes before the time is over, the run saves a
# checkpoint and ends; to continue it, submit the same command with --resume.
#SBATCH --job-name=genmodels
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=TERM@300
#SBATCH --output=%x-%j.log
set -euo pipefail

gpus=${SLURM_GPUS_ON_NODE:?no GPUs: submit with --gpus-per-node}
address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | awk 'NR == 1')
export LAUNCH="--num_machines $SLURM_NNODES --num_processes $((SLURM_NNODES * gpus)) --main_process_ip $address \
  --main_process_port $((20000 + SLURM_JOB_ID % 20000)) --mixed_precision no --dynamo_backend no"
[ "$((SLURM_NNODES * gpus))" = 1 ] || LAUNCH="--multi_gpu $LAUNCH"

# SLURM sets SLURM_NODEID, the number of the machine, in each task.
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch $LAUNCH --machine_rank "$SLURM_NODEID" "$@"' launch "$@"
