#!/bin/bash
# A sweep on Slurm: a Ray of the allocation's nodes, the driver on the first, and on again when the time is up.
#   sbatch docs/clusters/slurm.sh my-sweep.yaml --out /SHARED/isoloop-out
# All arguments go to `isoloop run`. Five minutes before the time limit the runs save and end, and the job puts itself
# back into the queue; it goes on where it was. A sweep that ends by itself ends the job, with its exit code: 0, or 1 if
# runs have failed for good, or 2 if nothing was done. Adapt the lines that begin with #SBATCH.
#SBATCH --job-name=isoloop
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=isoloop-%j.log
set -u
set -m # without job control bash starts the driver deaf to SIGINT, which is how it is asked to save

port=${RAY_PORT:-6379}
head=${RAY_HEAD_IP:-$(hostname --ip-address | awk '{print $1}')}
scratch=/tmp/ray-$SLURM_JOB_ID
each=(--cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0)
has=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --object-store-memory=200000000)
# Only who knows this word may use this Ray; srun passes it on to the other nodes.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_ADDRESS=$head:$port # of `ray status` and `isoloop run`

ray_parts=()
driver=
asked=
signals=0

ask() { # let the runs save and end
    asked=$1
    signals=$((signals + 1))
    echo "isoloop: asked to stop, then to $asked"
    if [ -n "$driver" ]; then kill -INT "$driver"; fi
}
trap 'ask requeue' USR1 # the time is nearly up
trap 'ask end' TERM INT # cancelled, or preempted: where that means requeued, Slurm does it

clean_up() {
    for part in "${ray_parts[@]}"; do kill -TERM "$part" 2>/dev/null; done
    wait
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --overlap rm -rf "$scratch"
}
trap clean_up EXIT

srun --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" --overlap "${each[@]}" \
    ray start --head --block --node-ip-address="$head" --port="$port" --temp-dir="$scratch" \
    --include-dashboard=false "${has[@]}" &
ray_parts+=($!)

for _ in $(seq 120); do
    ray status >/dev/null 2>&1 && break
    sleep 1
done
if ! ray status >/dev/null; then
    echo "isoloop: Ray's head must answer at $RAY_ADDRESS within two minutes, but doesn't; see above for why" >&2
    exit 1
fi

if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    others=$((SLURM_JOB_NUM_NODES - 1))
    srun --nodes=$others --ntasks=$others --exclude="$SLURMD_NODENAME" --overlap "${each[@]}" \
        ray start --block --address="$RAY_ADDRESS" "${has[@]}" &
    ray_parts+=($!)
fi

status=130
if [ -z "$asked" ]; then
    isoloop run "$@" &
    driver=$!
    heard=-1
    while [ "$heard" -ne "$signals" ]; do # a signal ends `wait` early
        heard=$signals
        wait "$driver"
        status=$?
    done
    driver=
fi

if [ "$asked" = requeue ] && [ "$status" -gt 2 ]; then
    echo "isoloop: saved; back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
