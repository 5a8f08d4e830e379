# shellcheck shell=bash
# A Ray cluster as long as a Slurm job, on the nodes of its allocation; train.sbatch and score.sbatch source this.
#
# `run JOB ARGUMENTS` works in the batch step, on the first node: srun starts `ray.sh node` on every node, the first
# of which is the head; then `leukoray JOB` runs here. Whatever ends it, Ray and its folders are gone before this script
# is. USR1 (Slurm sends it --signal seconds before the time limit) ends the job in order and puts it back into the queue,
# where the same command goes on; TERM (scancel, scontrol requeue, preemption) ends it, and what then is Slurm's decision.
set -u

readonly PATIENCE_S=600 # until Ray runs on all nodes
say() { echo "leukoray on Slurm: $*" >&2; }

told=  # what a signal asked for: requeue or end
child= # the process that it is handed on to
on_signal() {
    told=${told:-$1} heard=1
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}

# foreground COMMAND...: run it so that signals reach it at once; its exit code
foreground() {
    local code
    (trap '' USR2; exec "$@") & # what srun hands on to all processes of a node is for this script
    child=$!
    [ -z "$told" ] || kill -TERM "$child" 2>/dev/null
    while heard='' && wait "$child" && code=0 || code=$?; [ -n "$heard" ]; do :; done # a signal ends `wait` too
    child=
    return "$code"
}

# The name of a node as an address that other nodes reach: not Debian's 127.0.1.1
address_of() { getent ahostsv4 "$1" | awk '$1 !~ /^127\./ { print $1; exit }'; }

# A node's folder for the time of the job. Ray's sockets lie 68 characters below it, and their names have 107 at most;
# `ray` in it is open to all users, as Ray makes it, the folder itself is not.
own_folder() {
    local around=${TMPDIR:-/tmp}
    [ ${#around} -le 25 ] || around=/tmp
    echo "$around/lr-$SLURM_JOB_ID"
}

# ---- on every node ---------------------------------------------------------------------------------------------------

# Bytes of the object store: 30 % of the memory of the job, as Ray takes of a whole machine, within /dev/shm
store_bytes() {
    local asked=${SLURM_MEM_PER_NODE:-$((${SLURM_MEM_PER_CPU:-0} * ${SLURM_CPUS_ON_NODE:-1}))}
    local shared
    shared=$(df --output=avail -B1 /dev/shm | tail -n 1)
    [ "$asked" -eq 0 ] || awk -v mb="$asked" -v shm="$shared" 'BEGIN {
        bytes = mb * 1048576 * 0.3; most = shm * 0.95; printf "%d", (bytes < most) ? bytes : most }'
}

node() {
    local folder own options place bytes code began at_once=0
    folder=$(own_folder)
    remove "$folder" # of this job before a requeue, where Slurm had to kill it
    mkdir -m 700 "$folder" "$folder/tmp" || return 5
    export TMPDIR=$folder/tmp
    export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=5 # Ray would wait 30 s for the job; KillWait is no longer
    own=$(address_of "$(hostname)")
    options=(--block --disable-usage-stats --temp-dir="$folder/ray" --num-cpus="${SLURM_CPUS_ON_NODE:-1}"
        --num-gpus="${SLURM_GPUS_ON_NODE:-0}" ${own:+--node-ip-address="$own"})
    bytes=$(store_bytes)
    [ -z "$bytes" ] || options+=(--object-store-memory="$bytes")
    if [ "$SLURM_NODEID" = 0 ]; then
        place=(--head --port="${LEUKORAY_HEAD##*:}" --include-dashboard=false
            --ray-client-server-port="$LEUKORAY_CLIENT_PORT")
    else
        place=(--address="$LEUKORAY_HEAD")
        until (exec 3<>"/dev/tcp/${LEUKORAY_HEAD%:*}/${LEUKORAY_HEAD##*:}") 2>/dev/null || [ -n "$told" ]; do
            sleep 0.5
        done
    fi
    while began=$SECONDS; do
        foreground ray start "${place[@]}" "${options[@]}" >"$folder/ray.log" 2>&1
        code=$?
        [ -z "$told" ] || break
        grep -q 'Ray runtime started' "$folder/ray.log" && break
        # On a busy node a start takes longer than Ray waits for its own parts, 15 s each; what fails at once will again
        [ $((SECONDS - began)) -ge 10 ] || [ $((at_once += 1)) -lt 3 ] || break
        [ "$SECONDS" -lt $((PATIENCE_S - 120)) ] || break
        say "Ray on $(hostname) did not start ($code), once more"
    done
    if [ -z "$told" ]; then
        say "Ray on $(hostname) ended by itself ($code):"
        tail -n 20 "$folder/ray.log" >&2
        [ "$SLURM_NODEID" != 0 ] || scancel --signal=USR2 "$SLURM_JOB_ID.$SLURM_STEP_ID" # none goes on without a head
    fi
    remove "$folder"
    return "$code"
}

# remove FOLDER: one of own_folder's; its last processes may still be writing
remove() {
    case $1 in */lr-[0-9]*) ;; *) return 1 ;; esac
    for _ in $(seq 50); do
        rm -rf "$1" 2>/dev/null
        [ -e "$1" ] || return 0
        sleep 0.2
    done
    say "$1 on $(hostname) could not be removed"
}

# ---- on the first node -----------------------------------------------------------------------------------------------

# wait_for_nodes SRUN: until all have joined, SRUN has ended, or patience has
wait_for_nodes() { foreground "$python" -c "$JOINED" "$LEUKORAY_HEAD" "$SLURM_JOB_NUM_NODES" "$1" "$PATIENCE_S"; }
JOINED='
import contextlib, os, socket, sys, time
head, wanted, srun = sys.argv[1], int(sys.argv[2]), sys.argv[3]
deadline, (host, port) = time.monotonic() + float(sys.argv[4]), head.rsplit(":", 1)
def patient():
    time.sleep(0.2)
    return time.monotonic() < deadline and os.path.exists(f"/proc/{srun}")
def listens():
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0
while not listens() and patient():
    pass
joined = 0
if patient():
    import ray
    while not ray.is_initialized() and patient():
        with contextlib.suppress(Exception): # of several kinds, while the head listens but counts no node yet
            ray.init(head, log_to_driver=False, logging_level="CRITICAL")
    while patient() and (joined := sum(node["Alive"] for node in ray.nodes())) < wanted:
        pass
if joined < wanted:
    sys.exit(f"leukoray on Slurm: Ray runs on {joined} of {wanted} nodes; why not on the others stands above")
'

# free_port: one that nobody listens on, for several jobs may share a node
free_port() { "$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

run() {
    local job=$1 nodes code
    shift
    for tool in leukoray ray; do
        command -v $tool >/dev/null ||
            { say "no '$tool' on PATH; activate the environment before sbatch: . VENV/bin/activate"; exit 5; }
    done
    python=$(dirname "$(command -v ray)")/python3
    trap 'on_signal requeue' USR1
    trap 'on_signal end' TERM
    LEUKORAY_HEAD=$(address_of "$(hostname)")
    LEUKORAY_HEAD=${LEUKORAY_HEAD:-$(hostname -I | cut -d' ' -f1)}:$(free_port)
    LEUKORAY_CLIENT_PORT=$(free_port)                                             # Ray's default is one port for all
    RAY_AUTH_TOKEN=$("$python" -c 'import secrets; print(secrets.token_hex(32))') # other jobs reach these ports
    export LEUKORAY_HEAD LEUKORAY_CLIENT_PORT RAY_AUTH_TOKEN RAY_AUTH_MODE=token
    unset RAY_ADDRESS LEUKORAY_ADDRESS
    say "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), Ray on $SLURM_JOB_NODELIST"
    # One task a node, of all that the job has there; the others go on where one is lost.
    srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpu-bind=none --mpi=none --input=none --no-kill \
        --kill-on-bad-exit=0 bash "$here/ray.sh" node &
    nodes=$!
    if wait_for_nodes $nodes; then
        TMPDIR=$(own_folder)/tmp foreground leukoray "$job" "$@" --address "$LEUKORAY_HEAD"
        code=$?
    else
        code=${told:+143}
        code=${code:-5}
    fi
    stop $nodes
    [ "$told" = requeue ] && [ "$code" -ge 128 ] && requeue
    exit "$code"
}

# stop SRUN: Ray on all nodes. USR2 it hands on to them; TERM it would answer by killing them.
stop() {
    kill -USR2 "$1" 2>/dev/null
    while heard='' && wait "$1"; [ -n "$heard" ]; do :; done
}

requeue() {
    say "the time limit is near; back into the queue, where the same command goes on"
    scontrol requeue "$SLURM_JOB_ID" || say "not put back into the queue: submit the same command again"
}

if [ "${1:-}" = node ] && [ -z "${here:-}" ]; then
    trap 'on_signal end' TERM USR2
    node || [ -n "$told" ]
    exit
fi
