#!/usr/bin/env bash
# One machine with one or several GPUs: one process drives them all.
#   CUDA_VISIBLE_DEVICES=0,1,2,3 launch/gpus.sh train --config=configs/vits14_in1k.py --workdir=runs/s
# A process that ends with an error is started again from its newest checkpoint, RESTARTS times.
set -euo pipefail
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.95}
for ((left = ${RESTARTS:-0}; left > 0; left--)); do
  python -m dinov2_jax "$@" && exit
  echo "ended with exit code $?; starting again, $((left - 1)) more times" >&2
done
exec python -m dinov2_jax "$@"
