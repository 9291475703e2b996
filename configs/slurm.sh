#!/bin/bash
# sbatch --nodes 2 --gpus-per-node 8 configs/slurm.sh configs/pretrain/gpt-124m.yaml runtime.zero_stage=2
# The arguments are those of `python -m pretrain`. Submitted again, or requeued, the run goes on where it was saved.
#SBATCH --job-name=mini-llm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
set -euo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export PATH="$SLURM_SUBMIT_DIR/.venv/bin:$PATH"
cd "$SLURM_SUBMIT_DIR"

# One torchrun on each node; SIGTERM, two minutes before the time is up, reaches every rank, which saves and ends.
exec srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_NNODES" \
  --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
  --rdzv-id "$SLURM_JOB_ID" \
  --rdzv-backend c10d \
  --rdzv-endpoint "$head:29500" \
  -m pretrain "$@"
