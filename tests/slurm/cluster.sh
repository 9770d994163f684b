#!/usr/bin/env bash
# A small real SLURM cluster on this one machine, for the tests and for trying things out.
#
#   cluster.sh up                     install what is missing, start what is not running, and
#                                     put right what a test or a crash left broken
#   cluster.sh down                   cancel the jobs and stop the daemons; what is stored stays
#   cluster.sh wipe                   down, then remove everything but the packages
#   cluster.sh status                 show what runs; exit status 1 unless all of it is well
#   cluster.sh user-signal on|off     whether a preempted job first gets its --signal
#   cluster.sh controller stop|start  slurmctld: without it no SLURM command works, jobs run on
#   cluster.sh accounting stop|start  slurmdbd: without it sacct fails
#   cluster.sh node-fail NODE         set NODE down: SLURM requeues the jobs it ran
#   cluster.sh node-resume NODE       bring NODE back
#
# Needs root on Debian 12. Needs no systemd, no cgroups and no GPU. A machine that has a SLURM of
# its own is left alone: the command then ends with exit status 3.
#
# Settings (environment; give every command the same ones):
#   OFQ_CLUSTER_NODES=2               virtual nodes n1, n2, ..., one slurmd each
#   OFQ_CLUSTER_CPUS=8                CPUs each node claims; may be more than the machine has
#   OFQ_CLUSTER_MEM=8000              MB each node claims
#   OFQ_CLUSTER_GPUS=4                fake GPUs each node claims; may be 0
#   OFQ_CLUSTER_ROOT=/var/lib/ofq-slurm   what the daemons store: state, database, logs
#
# Partitions:
#   main   the default; preempted jobs get 20 s of grace and are requeued
#   plain  preempted jobs get no grace: all signals at once, SIGKILL 5 s later; requeued as well
#   high   preempts the jobs of the other two
set -euo pipefail

NODES=${OFQ_CLUSTER_NODES:-2}
CPUS=${OFQ_CLUSTER_CPUS:-8}
MEM=${OFQ_CLUSTER_MEM:-8000}
GPUS=${OFQ_CLUSTER_GPUS:-4}
ROOT=${OFQ_CLUSTER_ROOT:-/var/lib/ofq-slurm}
LOCK=/run/ofq-cluster.lock
NAME=ofq
CONTROLLER_PORT=16817 ACCOUNTING_PORT=16819 NODE_PORT=17000
PACKAGES=(munge slurm-wlm slurm-client slurmdbd mariadb-server)
OWN="# written by tests/slurm/cluster.sh"
HOSTS_MARK="# ofq-slurm"
CONF=/etc/slurm/slurm.conf
SIGNAL_SETTING="SlurmctldParameters=preempt_send_user_signal"
SOCKET=$ROOT/mysql/mariadbd.sock
CHANGED="" # set once a file in /etc/slurm has got new contents

say() { printf '[cluster %3ds] %s\n' "$SECONDS" "$*"; }
die() {
    say "ERROR: $*" >&2
    exit 1
}
usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
}

# ---- processes ------------------------------------------------------------------------------

# Whether the process in PIDFILE lives and is PROGRAM. Not `kill -0`: in a container the stopped
# daemons may stay as zombies for a while, and for kill they live.
alive() { # PIDFILE PROGRAM
    local pid
    pid=$(cat "$1" 2>/dev/null) || return 1
    [[ -n $pid ]] && grep -qs "^$pid ($2) [^ZX]" "/proc/$pid/stat"
}

not() { ! "$@"; }

# Try a command five times a second until it succeeds or the time is up.
within() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || return 1
        sleep 0.2
    done
}

stop_daemon() { # PIDFILE PROGRAM
    local pid
    if alive "$1" "$2"; then
        pid=$(<"$1")
        kill "$pid" 2>/dev/null || true
        if within 20 not alive "$1" "$2"; then
            say "$2 ($pid) stopped"
        else
            kill -9 "$pid" 2>/dev/null || true
            say "$2 ($pid) did not stop and was killed"
        fi
    fi
    rm -f "$1"
}

# Start a program that goes to the background by itself. It must not keep the caller's output
# open: whoever reads that through a pipe would wait for as long as the daemon lives. Nor the lock
# (file 9, see the end), for the same reason.
start_daemon() { # PROGRAM ARGUMENTS...
    "$@" >"$ROOT/log/$1.start" 2>&1 </dev/null 9>&- || {
        cat "$ROOT/log/$1.start" >&2
        die "$1 does not start; see $ROOT/log"
    }
}

# ---- packages -------------------------------------------------------------------------------

install_packages() {
    local package missing=() policy=/usr/sbin/policy-rc.d own_policy=""
    for package in "${PACKAGES[@]}"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
            missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    say "installing ${missing[*]}"
    # The packages' own scripts must not start daemons: exit status 101 forbids it.
    if [[ ! -e $policy ]]; then
        own_policy=yes
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    local status=0
    {
        apt-get update -q &&
            DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
    } >"$ROOT/log/apt.log" 2>&1 </dev/null || status=$?
    [[ -z $own_policy ]] || rm -f "$policy"
    if ((status)); then
        tail -20 "$ROOT/log/apt.log" >&2
        die "apt-get failed; see $ROOT/log/apt.log"
    fi
}

# ---- configuration --------------------------------------------------------------------------

require_own_files() {
    local file
    for file in "$CONF" /etc/slurm/gres.conf /etc/slurm/slurmdbd.conf; do
        if [[ -e $file ]] && ! grep -qxF "$OWN" "$file"; then
            say "$file was not written by this script: this machine has a SLURM of its own" >&2
            exit 3
        fi
    done
}

require_up() {
    [[ -e $CONF ]] || die "there is no cluster; start one with '$0 up'"
}

# Replace FILE by what comes in, where that is different.
put() { # FILE MODE
    local new
    new=$(mktemp)
    cat >"$new"
    if ! cmp -s "$new" "$1"; then
        install -m "$2" "$new" "$1"
        CHANGED=yes
    fi
    rm -f "$new"
}

# /etc/hosts is rewritten in place: in a container it is often a mount, which nothing can replace.
rewrite_hosts() { # LINES_TO_ADD...
    local kept
    kept=$(grep -vF "$HOSTS_MARK" /etc/hosts || true)
    printf '%s\n' "$kept" "$@" >/etc/hosts
}

write_hosts() {
    local names=() line node
    for ((node = 1; node <= NODES; node++)); do names+=("n$node"); done
    # torch.distributed connects to the first node's name, so the names have to resolve.
    line="127.0.0.1 ${names[*]} $HOSTS_MARK"
    grep -qxF "$line" /etc/hosts || rewrite_hosts "$line"
    getent hosts "$(hostname -s)" >/dev/null || echo "127.0.0.1 $(hostname -s) $HOSTS_MARK" >>/etc/hosts
    # SLURM looks names up with AI_ADDRCONFIG, which finds nothing on a machine whose one address
    # is 127.0.0.1. Any other will do; this one is set aside for documentation.
    if command -v ip >/dev/null && [[ -z $(ip -o addr show scope global up) ]]; then
        ip addr add 198.51.100.1/32 dev lo 2>/dev/null || true
    fi
}

gres_conf() {
    echo "$OWN"
    echo "AutoDetect=off"
    ((GPUS)) || return 0
    # With a file per GPU a job gets its own CUDA_VISIBLE_DEVICES; without, SLURM only counts.
    # Links to /dev/null pass as devices, and the number at the end is taken for the GPU's.
    echo "NodeName=n[1-$NODES] Name=gpu Count=$GPUS File=$ROOT/gpus/gpu[0-$((GPUS - 1))]"
}

slurmdbd_conf() {
    cat <<EOF
$OWN
AuthType=auth/munge
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$ACCOUNTING_PORT
SlurmUser=root
LogFile=$ROOT/log/slurmdbd.log
PidFile=$ROOT/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
EOF
}

slurm_conf() {
    local host gpu_types="" gpu_node="" gpu_accounting=""
    host=$(hostname -s)
    if ((GPUS)); then
        gpu_types="GresTypes=gpu" gpu_node="Gres=gpu:$GPUS" gpu_accounting="AccountingStorageTRES=gres/gpu"
    fi
    cat <<EOF
$OWN
ClusterName=$NAME
FirstJobId=$(<"$ROOT/first_job_id")
MaxJobId=67000000
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
SlurmctldPort=$CONTROLLER_PORT
SlurmctldPidFile=$ROOT/run/slurmctld.pid
SlurmdPidFile=$ROOT/run/slurmd-%n.pid
SlurmctldLogFile=$ROOT/log/slurmctld.log
SlurmdLogFile=$ROOT/log/slurmd-%n.log
StateSaveLocation=$ROOT/state
SlurmdSpoolDir=$ROOT/spool/%n

# Nothing here needs systemd or cgroups.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none

# Quick to schedule; jobs share nodes; a node that a test set down stays down.
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=200
ReturnToService=1
MinJobAge=3600
KillWait=5
InactiveLimit=0

JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# From SLURM 23 on: PreemptParameters=send_user_signal
$SIGNAL_SETTING

# A job that goes over its --mem is killed, at the next of the looks taken every 2 s.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$ACCOUNTING_PORT
$gpu_accounting
JobCompType=jobcomp/none

$gpu_types
# Lets a node claim more than the machine has.
SlurmdParameters=config_overrides
NodeName=n[1-$NODES] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((NODE_PORT + 1))-$((NODE_PORT + NODES))] CPUs=$CPUS RealMemory=$MEM $gpu_node State=UNKNOWN
PartitionName=DEFAULT Nodes=ALL MaxTime=24:00:00 DefaultTime=10 State=UP
PartitionName=main Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=plain PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=high PriorityTier=10 PreemptMode=OFF GraceTime=0
EOF
}

write_configuration() {
    local number
    for ((number = 0; number < GPUS; number++)); do ln -sfn /dev/null "$ROOT/gpus/gpu$number"; done
    # Job ids must not come again after a wipe: submitit names its files by job id and would take
    # an old job's result for the new job's.
    [[ -s $ROOT/first_job_id ]] || echo $(($(date +%s) % 600000 * 100 + 1000)) >"$ROOT/first_job_id"
    write_hosts
    # Not through pipes: `put` would run in a shell of its own, and CHANGED would be lost.
    put /etc/slurm/gres.conf 644 < <(gres_conf)
    put /etc/slurm/slurmdbd.conf 600 < <(slurmdbd_conf)
    put "$CONF" 644 < <(slurm_conf)
}

# ---- daemons --------------------------------------------------------------------------------

start_munge() {
    alive /run/munge/munged.pid munged && return 0
    install -d -o munge -g munge -m 755 /run/munge
    install -d -o munge -g munge -m 700 /var/log/munge /var/lib/munge /etc/munge
    [[ -s /etc/munge/munge.key ]] || runuser -u munge -- mungekey --create
    # --force: it may log although root owns the directories above its own.
    start_daemon runuser -u munge -- munged --force
    touch "$ROOT/run/munged.own"
    within 10 sh -c 'munge -n | unmunge' || die "munge does not answer; see /var/log/munge/munged.log"
    say "munged started"
}

# A database of its own, away from one that the machine may have.
start_database() {
    alive "$ROOT/run/mariadbd.pid" mariadbd && return 0
    install -d -o mysql -g mysql -m 750 "$ROOT/mysql"
    if [[ ! -d $ROOT/mysql/mysql ]]; then
        start_daemon mariadb-install-db --no-defaults --user=mysql --datadir="$ROOT/mysql" \
            --skip-test-db --auth-root-authentication-method=socket
    fi
    # Nothing stored here is worth waiting for the disk at each change.
    setsid mariadbd --no-defaults --user=mysql --datadir="$ROOT/mysql" --skip-networking \
        --socket="$SOCKET" --pid-file="$ROOT/mysql/mariadbd.pid" --innodb-buffer-pool-size=128M \
        --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 \
        >"$ROOT/log/mariadbd.log" 2>&1 </dev/null 9>&- &
    echo $! >"$ROOT/run/mariadbd.pid"
    within 60 mariadb-admin --no-defaults --socket="$SOCKET" ping ||
        die "mariadb does not answer; see $ROOT/log/mariadbd.log"
    mariadb --no-defaults --socket="$SOCKET" -e 'CREATE DATABASE IF NOT EXISTS slurm_acct_db'
    say "mariadbd started"
}

start_accounting() {
    alive "$ROOT/run/slurmdbd.pid" slurmdbd && return 0
    # slurmdbd has no setting for the socket; the client library reads this.
    start_daemon env MYSQL_UNIX_PORT="$SOCKET" slurmdbd
    within 60 sacctmgr -n list cluster || die "slurmdbd does not answer; see $ROOT/log/slurmdbd.log"
    if [[ -z $(sacctmgr -n -P list cluster $NAME format=cluster) ]]; then
        sacctmgr -i add cluster $NAME >/dev/null
    fi
    say "slurmdbd started"
}

start_controller() {
    alive "$ROOT/run/slurmctld.pid" slurmctld && return 0
    start_daemon slurmctld
    within 60 scontrol ping || die "slurmctld does not answer; see $ROOT/log/slurmctld.log"
    say "slurmctld started"
}

start_nodes() {
    local node
    for ((node = 1; node <= NODES; node++)); do
        alive "$ROOT/run/slurmd-n$node.pid" slurmd || start_daemon slurmd -N "n$node"
    done
}

stop_nodes() {
    local file
    for file in "$ROOT"/run/slurmd-*.pid; do
        [[ ! -e $file ]] || stop_daemon "$file" slurmd
    done
}

start_nudge() {
    alive "$ROOT/run/nudge.pid" bash && return 0
    setsid bash "$0" nudge >"$ROOT/log/nudge.log" 2>&1 </dev/null 9>&- &
    echo $! >"$ROOT/run/nudge.pid"
}

# SLURM makes each requeued job wait 120 s (reason BeginTime) and has no setting for it. This
# loop lets them go after 8 s. Not sooner: where the job's old steps have not ended yet, SLURM
# holds it for good (launch_failed_requeued_held).
nudge() {
    set +e
    local id reason
    declare -A since
    while sleep 1; do
        while read -r id reason; do
            [[ $reason == BeginTime ]] || continue
            : "${since[$id]:=$SECONDS}"
            ((SECONDS - since[$id] >= 8)) || continue
            unset "since[$id]"
            # A job with a --begin of its own waits for the same reason but never ran.
            if scontrol -o show job "$id" | grep -q ' Restarts=[1-9]'; then
                scontrol update jobid="$id" starttime=now && echo "$(date +%T) $id may start"
            fi
        done < <(squeue -h -r -t PD -o '%i %r' 2>/dev/null)
    done
}

# ---- nodes ----------------------------------------------------------------------------------

# Nodes of these states (a * is appended while a node does not answer) are of no use to jobs.
broken_nodes() {
    sinfo -h -N -p main -o '%N %T' | awk '$2 !~ /^(idle|mixed|allocated|completing)$/ {print $1}' |
        paste -sd,
}

all_well() { [[ -n $(sinfo -h -N -p main -o '%N') && -z $(broken_nodes) ]]; }

resume() { # NODES
    scontrol update nodename="$1" state=resume
    within 60 all_well || {
        sinfo -N -l >&2
        die "node $1 does not come back; see $ROOT/log"
    }
}

# ---- commands -------------------------------------------------------------------------------

up() {
    install -d -m 755 "$ROOT" "$ROOT"/{run,log,state,gpus,spool} /etc/slurm
    install_packages
    write_configuration
    if [[ -n $CHANGED ]]; then
        say "configuration written"
        # All of them read it when they start. Jobs that run outlive this.
        stop_nodes
        stop_daemon "$ROOT/run/slurmctld.pid" slurmctld
        stop_daemon "$ROOT/run/slurmdbd.pid" slurmdbd
    fi
    start_munge
    start_database
    start_accounting
    start_controller
    start_nodes
    start_nudge
    # Nodes that have just been started register within a second; others have to be resumed.
    within 5 all_well || resume "$(broken_nodes)"
    within 30 sacct -n -X || die "sacct does not answer"
    say "ready: $NODES nodes of $CPUS CPUs, $MEM MB and $GPUS fake GPUs"
}

own_steps() {
    local process
    for process in /proc/[0-9]*; do
        [[ $(readlink "$process/exe" 2>/dev/null) != */slurmstepd ]] || echo "${process#/proc/}"
    done
}

no_steps() { [[ -z $(own_steps) ]]; }
no_jobs() { [[ -z $(squeue -h -a -o %A) ]]; }

down() {
    local jobs=() process
    stop_daemon "$ROOT/run/nudge.pid" bash
    if alive "$ROOT/run/slurmctld.pid" slurmctld; then
        mapfile -t jobs < <(squeue -h -a -o %A | sort -u)
        if ((${#jobs[@]})); then
            say "cancelling jobs ${jobs[*]}"
            scancel "${jobs[@]}" || true
            within 20 no_jobs || true
        fi
    fi
    stop_nodes
    # Steps that outlived their job's end: ask, then insist.
    for process in $(own_steps); do kill "$process" 2>/dev/null || true; done
    within 5 no_steps || for process in $(own_steps); do kill -9 "$process" 2>/dev/null || true; done
    stop_daemon "$ROOT/run/slurmctld.pid" slurmctld
    stop_daemon "$ROOT/run/slurmdbd.pid" slurmdbd
    stop_daemon "$ROOT/run/mariadbd.pid" mariadbd
    if [[ -e $ROOT/run/munged.own ]]; then
        stop_daemon /run/munge/munged.pid munged
        rm -f "$ROOT/run/munged.own"
    fi
}

wipe() {
    down
    rm -rf "$ROOT" "$CONF" /etc/slurm/gres.conf /etc/slurm/slurmdbd.conf
    if grep -qF "$HOSTS_MARK" /etc/hosts; then rewrite_hosts; fi
    say "everything but the packages removed"
}

status() {
    local node word well=0 controller=runs
    [[ -e $CONF ]] || {
        echo "there is no cluster"
        return 1
    }
    report() { # NAME PIDFILE PROGRAM
        word=runs
        alive "$2" "$3" || { word="does not run" && well=1; }
        printf '%-12s %s\n' "$1" "$word"
    }
    report munge /run/munge/munged.pid munged
    report database "$ROOT/run/mariadbd.pid" mariadbd
    report accounting "$ROOT/run/slurmdbd.pid" slurmdbd
    report nudge "$ROOT/run/nudge.pid" bash
    for ((node = 1; node <= NODES; node++)); do
        report "node n$node" "$ROOT/run/slurmd-n$node.pid" slurmd
    done
    report controller "$ROOT/run/slurmctld.pid" slurmctld
    controller=$word
    [[ $controller == runs ]] || return 1
    if sends_user_signal; then word=on; else word=off well=1; fi
    printf '%-12s %s\n' "user signal" "$word"
    sinfo
    all_well || well=1
    return "$well"
}

# What slurmctld goes by, which the file need not say.
sends_user_signal() {
    scontrol show config | grep -q '^SlurmctldParameters.*preempt_send_user_signal'
}

user_signal() { # on|off
    local line="$SIGNAL_SETTING" shown=off
    if [[ $1 == off ]]; then line="#$line"; fi
    sed -i "s/^#\{0,1\}$SIGNAL_SETTING\$/$line/" "$CONF"
    scontrol reconfigure
    if sends_user_signal; then shown=on; fi
    [[ $shown == "$1" ]] || die "slurmctld did not take the change over"
}

controller() { # stop|start
    case $1 in
    stop) stop_daemon "$ROOT/run/slurmctld.pid" slurmctld ;;
    start)
        start_controller
        within 60 all_well || die "the nodes do not come back; see $ROOT/log"
        ;;
    esac
}

accounting() { # stop|start
    case $1 in
    stop) stop_daemon "$ROOT/run/slurmdbd.pid" slurmdbd ;;
    start)
        start_accounting
        within 30 sacct -n -X || die "sacct does not answer"
        ;;
    esac
}

[[ $(id -u) == 0 ]] || die "run this as root"
# One command at a time: an `up` in the middle of a `wipe` leaves daemons that no pid file names.
if [[ $* != nudge && $* != status ]]; then
    exec 9>"$LOCK"
    flock 9
fi
case "$*" in
up | down | wipe | status)
    require_own_files
    "$1"
    ;;
"user-signal on" | "user-signal off")
    require_own_files && require_up
    user_signal "$2"
    ;;
"controller stop" | "controller start" | "accounting stop" | "accounting start")
    require_own_files && require_up
    "$@"
    ;;
"node-fail n"[1-9]*)
    require_own_files && require_up
    scontrol update nodename="$2" state=down reason="a test"
    ;;
"node-resume n"[1-9]*)
    require_own_files && require_up
    resume "$2"
    ;;
nudge) nudge ;; # not for users: the loop that `up` starts
*) usage ;;
esac
