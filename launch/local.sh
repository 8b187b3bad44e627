#!/usr/bin/env bash
# Several processes of one run on this machine, for instance to try out a pod's code path:
#   PROCESSES=2 launch/local.sh train --config=configs/demo.py --workdir=runs/two
# Each process computes on its own devices; the first one prints and writes files, and what
# another one says stands behind its number. When one fails, all end and name it.
set -euo pipefail
export DINOV2_JAX_PROCESSES=${PROCESSES:-2}
free='import socket; s = socket.create_server(("localhost", 0)); print(s.getsockname()[1])'
DINOV2_JAX_COORDINATOR=${COORDINATOR:-localhost:$(python -c "$free")}
export DINOV2_JAX_COORDINATOR
for ((i = 1; i < DINOV2_JAX_PROCESSES; i++)); do
  DINOV2_JAX_PROCESS=$i python -m dinov2_jax "$@" > >(sed "s/^/[$i] /") 2> >(sed "s/^/[$i] /" >&2) &
done
DINOV2_JAX_PROCESS=0 exec python -m dinov2_jax "$@"
