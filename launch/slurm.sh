#!/usr/bin/env bash
# A run on nodes of a SLURM cluster, one process a node that drives all of its GPUs:
#   sbatch --nodes=8 launch/slurm.sh train --config=configs/vitg14.py --workdir=/shared/runs/g
# For one process a GPU add --ntasks-per-node=8 --gpus-per-task=1. docs/launch.md has more.
#SBATCH --job-name=dinov2
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=dinov2-%j.log
# Five minutes before the time limit every process is told to save and end.
#SBATCH --signal=TERM@300
set -euo pipefail
exec srun --kill-on-bad-exit=1 python -m dinov2_jax "$@"
