#!/usr/bin/env bash
# Several processes of one run on this machine, for instance to try out a pod's code path:
#   PROCESSES=2 launch/local.sh train --config=configs/demo.py --workdir=runs/two
# Each process computes on its own devices; the first one prints and writes files.
set -euo pipefail
processes=${PROCESSES:-2}
export DINOV2_JAX_COORDINATOR=${COORDINATOR:-localhost:9911}
export DINOV2_JAX_PROCESSES=$processes
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
for ((i = 1; i < processes; i++)); do
  DINOV2_JAX_PROCESS=$i python -m dinov2_jax "$@" >/dev/null &
done
DINOV2_JAX_PROCESS=0 python -m dinov2_jax "$@"
wait
