#!/bin/bash
# A campaign on four Slurm nodes with four GPUs each: sbatch docs/slurm.sh
# The repository, its .venv and the data are on a file system that all nodes share.
#SBATCH --job-name=bitflip
#SBATCH --nodes=4
#SBATCH --exclusive
#SBATCH --tasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-task=4
#SBATCH --time=04:00:00

set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
source .venv/bin/activate
export RAY_USAGE_STATS_ENABLED=0

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}'):6379

# Starts Ray on all nodes, runs the command on the first one, and stops Ray. Sent again after a time limit, it goes on.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
    ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "$SLURM_GPUS_PER_TASK" \
    -- python -u main.py --ray auto --seed 1234 --dataset imagenet --model-name resnet50 \
    --input-path /shared/imagenet --output-path /shared/results
