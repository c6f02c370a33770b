# The worker of a board without Python, in POSIX sh (dash, bash, busybox ash).
#
#   sh worker.sh facts STATE                            what the board is, in sections
#   sh worker.sh start STATE JOB STEPS EPOCH WAIT       does the steps of blob STEPS as job JOB, detached; then `look`
#   sh worker.sh look STATE JOB                         `waiting`, `running STEP`, `done SHA256`, `failed KIND WORDS`,
#                                                       `lost` (its process is gone) or `unknown`
#   sh worker.sh stop STATE JOB                         ends the job and what it runs; then `look`
#
# A step is a line `NAME SECONDS SETTING PROGRAM WORDS...`: the blob PROGRAM runs with these words (@DIGEST stands for
# the path of a blob) and the environment variable SETTING (`-`: none) in the job's folder, at most SECONDS long. A step
# that has NAME.exit is done; a job that is begun again goes on behind it. When a step of cN fails, the others of cN are
# left out. Of sections, names stand at the margin and contents are indented, so that no content is taken for a name.
umask 077
export LC_ALL=C
self=$0 command=$1 state=$2 job=$3
case $state in /*) ;; *) state=$PWD/$state ;; esac
home=$state/jobs/$job
work=$home/work
FILE_BLOCKS=8388608

section() { # NAME, then a command that prints its contents
    echo "section $1"
    shift
    "$@" 2>/dev/null | head -c 262144 | tr -d '\000' | sed 's/^/ /'
    echo
}

snapshot() {
    for path in /proc/uptime /proc/loadavg /proc/vmstat /proc/meminfo /proc/pressure/cpu /proc/pressure/io \
        /proc/pressure/memory /proc/sys/kernel/random/boot_id /sys/class/thermal/thermal_zone*/temp \
        /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor \
        /sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count; do
        [ -r "$path" ] && section "$path" cat "$path"
    done
    section /proc/stat head -n 1 /proc/stat
    section throttled vcgencmd get_throttled
    section date date +%s
}

clocks() { # uptime; ticks of all cores; CPU time of this shell; CPU time of all that it waited for
    cat /proc/uptime
    head -n 1 /proc/stat
    times
}

facts() {
    for name in m r; do section "uname -$name" uname "-$name"; done
    for path in /proc/cpuinfo /proc/cmdline /etc/machine-id /etc/nv_tegra_release /etc/edgesdk-rootfs.json \
        /sys/fs/cgroup/cgroup.controllers \
        /proc/device-tree/model /proc/device-tree/serial-number /sys/firmware/devicetree/base/model \
        /sys/firmware/devicetree/base/serial-number; do
        [ -r "$path" ] && section "$path" cat "$path"
    done
    section cpus getconf _NPROCESSORS_ONLN
    section libc getconf GNU_LIBC_VERSION
    section disk df -Pk "$state"
    for tool in flock setsid sha256sum; do section "$tool" command -v "$tool"; done
    snapshot
}

boot() { cat /proc/sys/kernel/random/boot_id; }

started() { # PID: when it started, in clock ticks since boot; with the pid and the boot that is its identity
    { read -r line < "/proc/$1/stat"; } 2>/dev/null || return 1
    set -- ${line##*) }
    echo "${20}"
}

alive() { # FILE with `PID START BOOT`
    { read -r pid start booted < "$1"; } 2>/dev/null || return 1
    [ "$booted" = "$(boot)" ] && [ "$(started "$pid")" = "$start" ]
}

claim() { # FILE: write this process into it, unless it names one that lives
    for again in 1 2 3; do
        (set -C; echo "$$ $(started $$) $(boot)" > "$1") 2>/dev/null && return 0
        alive "$1" && return 1
        rm -f "$1"
    done
    return 1
}

say() { echo "$*" > "$home/status.part" && mv -f "$home/status.part" "$home/status"; }

give_up() { # KIND WORDS; on a full disk the reserve makes room for them
    rm -f "$home/reserve"
    say failed "$@"
    exit 1
}

look() {
    [ -d "$home" ] || { echo unknown; return; }
    # Alive is asked first: a job that ends in between has a final status.
    alive "$home/pid" && lives=yes || lives=
    { read -r line < "$home/status"; } 2>/dev/null || line=waiting
    case $line in done*|failed*) lives=yes ;; esac
    [ -n "$lives" ] && echo "$line" || echo lost
}

take_board() { # one job at a time, and none of an older lease than one that was here
    waited=0
    if command -v flock >/dev/null; then
        exec 9>> "$state/lock"
        free() { flock -n 9; }
    else
        free() { claim "$state/lock.pid"; }
    fi
    until free; do
        [ "$waited" -ge "$wait_s" ] && give_up busy "another job holds the board"
        sleep 1
        waited=$((waited + 1))
    done
    largest=0
    { read -r largest < "$state/epoch"; } 2>/dev/null || [ -n "$largest" ] || largest=0
    case $epoch in
    -) [ "$largest" = 0 ] || give_up stale "E_FENCED: no lease, and one of epoch $largest was on the board" ;;
    *)
        [ "$epoch" -lt "$largest" ] && give_up stale "E_FENCED: lease epoch $epoch is stale: $largest was on the board"
        printf %s "$epoch" > "$state/epoch.part" && mv -f "$state/epoch.part" "$state/epoch" || give_up board "no epoch"
        ;;
    esac
}

lay_out() { # DIGEST: a program of its own, since the kernel runs no file that is still open for writing
    [ -x "program-$1" ] && return
    sum=$(sha256sum < "$state/blobs/$1") && [ "${sum%% *}" = "$1" ] || give_up corrupt "blob $1 is missing or damaged"
    cp "$state/blobs/$1" "program-$1.part" && chmod 755 "program-$1.part" && mv -f "program-$1.part" "program-$1"
}

run() { # NAME SECONDS SETTING PROGRAM WORDS...
    name=$1 limit=$2 setting=$3 program=$4
    shift 4
    for word; do
        shift
        case $word in @*) word=$state/blobs/${word#@} ;; esac
        set -- "$@" "$word"
    done
    [ "$setting" = - ] && setting=LC_ALL=C
    rm -f "$name.overdue" "$name.bin" "$name.jsonl"
    snapshot > "$name.before"
    clocks > "$name.cpu"
    env OMP_NUM_THREADS=1 "$setting" "./program-$program" "$@" < /dev/null > "$name.out" 2> "$name.err" &
    child=$!
    (
        sleeper=
        trap 'kill $sleeper; exit' TERM
        sleep "$limit" & sleeper=$!
        wait $sleeper
        : > "$name.overdue"
        kill -KILL "$child"
    ) > /dev/null 2>&1 9>&- &
    guard=$!
    wait "$child"
    code=$?
    child=
    kill "$guard" 2>/dev/null
    wait "$guard" 2>/dev/null
    clocks >> "$name.cpu"
    snapshot > "$name.after"
    sync
    echo "$code" > "$name.exit.part" && mv -f "$name.exit.part" "$name.exit"
}

report() {
    while read -r name rest; do
        [ -f "$name.exit" ] || continue
        read -r code < "$name.exit"
        echo "step $name $code$([ -f "$name.overdue" ] && echo ' overdue')"
        section out tail -n 20 "$name.out"
        section err tail -c 600 "$name.err"
        section cpu cat "$name.cpu"
        section before cat "$name.before"
        section after cat "$name.after"
    done < ../steps
    echo rest
    for file in c*.bin c*.jsonl; do
        [ -f "$file" ] || continue
        sum=$(sha256sum < "$file")
        echo "file $file ${sum%% *} $(wc -c < "$file")"
    done
    echo "section starts"; sed 's/^/ /' starts
}

work() {
    cd "$work" || exit 1
    claim "$home/pid" || exit 0
    case $(look) in done*|failed*) exit 0 ;; esac
    say waiting
    child=
    trap 'trap "" TERM; [ -n "$child" ] && kill -KILL "$child"; give_up cancelled "stopped on request"' TERM
    ulimit -c 0
    ulimit -f $FILE_BLOCKS
    head -c 65536 /dev/zero > ../reserve
    take_board
    echo "$(boot) $(date +%s)" >> starts || give_up disk-full "nothing can be written"
    while read -r name limit setting program words; do
        candidate=${name%%-*}
        if [ ! -f "$name.exit" ] && [ ! -f "$candidate.failed" ]; then
            say running "$name"
            lay_out "$program" || give_up disk-full "no room for the program"
            set -f
            run "$name" "$limit" "$setting" "$program" $words
            set +f
            [ -f "$name.exit" ] || give_up disk-full "nothing can be written"
        fi
        [ "$(cat "$name.exit" 2>/dev/null)" = 0 ] || : > "$candidate.failed"
    done < ../steps
    report > ../report.part && sync && mv -f ../report.part ../report || give_up disk-full "no room for the report"
    sum=$(sha256sum < ../report)
    say "done ${sum%% *} $(wc -c < ../report)"
    rm -f "$state/lock.pid"
    exit 0
}

case $command in
facts) facts ;;
look) look ;;
start)
    steps=$4 epoch=$5 wait_s=$6
    mkdir -p "$work" && cp "$state/blobs/$steps" "$home/steps.part" && mv -f "$home/steps.part" "$home/steps" || exit 1
    case $(look) in
    lost)
        detach=$(command -v setsid || command -v nohup) || detach=
        $detach sh "$self" work "$state" "$job" "$steps" "$epoch" "$wait_s" < /dev/null >> "$home/log" 2>&1 &
        ;;
    esac
    # Its process writes itself into `pid` first of all.
    tries=0
    while [ "$(look)" = lost ] && [ "$tries" -lt 150 ]; do
        sleep 0.1 2>/dev/null || sleep 1
        tries=$((tries + 1))
    done
    look
    ;;
work)
    epoch=$5 wait_s=$6
    work
    ;;
stop)
    { read -r pid rest < "$home/pid"; } 2>/dev/null && alive "$home/pid" && kill -TERM "$pid"
    tries=0
    while alive "$home/pid" && [ "$tries" -lt 60 ]; do
        sleep 0.1 2>/dev/null || sleep 1
        tries=$((tries + 1))
    done
    look
    ;;
*)
    echo "expected facts, start, look or stop" >&2
    exit 64
    ;;
esac
