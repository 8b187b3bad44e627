#!/usr/bin/env bash
# launch/slurm.sh on a real SLURM of two nodes on this machine: a run of two tasks is requeued
# in the middle and goes on. Needs Debian's slurm-wlm and munge, and root:
#   apt-get install -y slurm-wlm munge && bash tests/slurm.sh | tee benchmarks/results/slurm.log
# The python found first is the one that runs.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
host=$(hostname)
export SLURM_CONF=$work/slurm.conf JAX_PLATFORMS=cpu
finish() {
  for pid in "$work"/*.pid; do kill "$(cat "$pid")" 2>/dev/null || true; done
  [[ -z ${munge:-} ]] || kill "$munge" 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT

mkdir -p /run/munge "$work"/{state,n1,n2}
chown munge: /run/munge 2>/dev/null || true
[[ -f /etc/munge/munge.key ]] || mungekey --create
pgrep -x munged >/dev/null || { munged --force 2>/dev/null && munge=$(pgrep -x munged); }
cat >"$SLURM_CONF" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/builtin
SelectType=select/linear
ReturnToService=2
KillWait=60
MinJobAge=600
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/%n
SlurmctldPidFile=$work/ctl.pid
SlurmdPidFile=$work/%n.pid
SlurmctldLogFile=$work/ctl.log
SlurmdLogFile=$work/%n.log
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname=$host Port=17001 CPUs=1
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname=$host Port=17002 CPUs=1
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
CONF
slurmctld
for node in n1 n2; do slurmd -N "$node"; done
# The tasks look for the first node by its name, which only SLURM knows here.
grep -q '\bn1\b' /etc/hosts || { echo "127.0.0.1 n1 n2" >>/etc/hosts; }
until [[ $(sinfo -h -t idle -o %D) == 2 ]]; do sleep 1; done

small=(--config.train.steps=24 --config.optim.warmup=2 --config.train.log_every=2
  --config.checkpoint.every=4 --config.eval.every=0 --config.train.batch_size=8
  --config.train.group_size=4 --config.model.depth=2 --config.model.width=64
  --config.model.heads=2 --config.head.prototypes=64 --config.head.hidden=64)
run=$work/run
cd "$here"
job=$(sbatch --parsable --nodes=2 --time=30 --output="$work/job.log" launch/slurm.sh \
  train --config=configs/demo.py --workdir="$run" "${small[@]}")
steps() { wc -l 2>/dev/null <"$run/metrics.jsonl" || echo 0; }
state() { squeue -h -j "$job" -o %T 2>/dev/null || true; }
until (($(steps) >= 3)); do
  [[ -n $(state) ]] || { cat "$work/job.log"; exit 1; }
  sleep 0.5
done
echo "== requeued after $((2 * $(steps))) steps =="
scontrol requeue "$job"
while [[ -n $(state) && $(state) != COMPLETED ]]; do sleep 1; done
sed "s#$work/##" "$work/job.log"
echo "== $(scontrol show job "$job" | grep -oE 'JobState=\w+|Restarts=[0-9]+|NumTasks=[0-9]+' | xargs) =="
tail -n 1 "$run/metrics.jsonl" | cut -c1-60
grep -q "continuing at step" "$work/job.log"
[[ $(tail -n 1 "$run/metrics.jsonl") == '{"step": 24,'* ]]
echo "== the requeued run went on to its end =="
