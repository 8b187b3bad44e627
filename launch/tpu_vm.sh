#!/usr/bin/env bash
# A run on all hosts of a Cloud TPU slice, which is created, and again after a preemption:
#   NAME=g ZONE=us-east5-b TYPE=v5litepod-256 launch/tpu_vm.sh \
#     train --config=configs/vitg14.py --workdir=/shared/runs/g --config.data.train=...
# SETUP is run on every host first, to mount /shared; further options of the request, such as
# --spot, go into REQUEST. The slice stays when the run has ended; the command that deletes it
# is printed.
set -euo pipefail
: "${NAME:?a name for the slice}" "${ZONE:?a zone}" "${TYPE:?such as v5litepod-256}"
version=${VERSION:-v2-alpha-tpuv5-lite}
queued() { gcloud compute tpus queued-resources "$1" "$NAME" --zone="$ZONE" --quiet "${@:2}"; }
state() { queued describe --format='value(state.state)' 2>/dev/null || echo NONE; }
remote() { gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"; }

# Wait until the slice is there; ask for it where it is not, or is no more.
await_slice() {
  while [[ $(state) != ACTIVE ]]; do
    case $(state) in
    NONE)
      read -ra more <<<"${REQUEST:-}"
      queued create --node-id="$NAME" --accelerator-type="$TYPE" \
        --runtime-version="$version" "${more[@]}"
      ;;
    SUSPENDED | FAILED) queued delete --force ;;
    *) sleep 30 ;;
    esac
  done
}

install() {
  archive=$(mktemp --suffix=.tar.gz)
  git archive --output="$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$NAME:dinov2_jax.tar.gz" --zone="$ZONE" --worker=all
  rm "$archive"
  remote "${SETUP:-true}"
  remote "mkdir -p dinov2_jax && tar -xzf dinov2_jax.tar.gz -C dinov2_jax && cd dinov2_jax &&
    python3 -m venv .venv && .venv/bin/pip install -q '.[tpu]'"
}

# The command on every host; once more as long as the slice was lost and not the run.
everywhere() {
  while await_slice && install; do
    if remote "cd dinov2_jax && .venv/bin/$(printf '%q ' "$@")"; then
      echo "done; gcloud compute tpus queued-resources delete $NAME --zone=$ZONE --force"
      exit
    fi
    [[ $(state) != ACTIVE ]] || exit 1
    echo "the slice was lost; the run goes on from its newest checkpoint" >&2
  done
}

everywhere python -m dinov2_jax "$@"
