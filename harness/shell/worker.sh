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
# that has NAME.exit (its code, ` overdue` behind it where its time was over) is done; a job that is begun again goes on
# behind it. When a step of cN fails, the others of cN are left out. Of sections, names stand at the margin and contents
# are indented, so that no content is taken for a name.
#
#   STATE/lock, STATE/holders/       who holds the board, with flock and without; STATE/epoch: the largest lease seen
#   STATE/jobs/JOB/                  steps, status, log, report; worker/: its process; program: the process of its step
#   STATE/jobs/JOB/work/             what the steps write, and NAME.{before,after,cpu,out,err,exit}
umask 077
export LC_ALL=C
self=$0 command=$1 state=$2 job=$3
case $state in /*) ;; *) state=$PWD/$state ;; esac
home=$state/jobs/$job
work=$home/work
boot=
{ read -r boot < /proc/sys/kernel/random/boot_id; } 2>/dev/null
FILE_BLOCKS=8388608

nap() { sleep 0.1 2>/dev/null || sleep 1; }

uptime() { # sets `seconds`, whole ones since boot
    read -r seconds idle < /proc/uptime
    seconds=${seconds%%.*}
}

since() { # PID: sets `since`, when it started in clock ticks since boot; fails where none runs
    since=
    { read -r stat < "/proc/$1/stat"; } 2>/dev/null || return 1
    set -- ${stat##*) }
    [ "$1" != Z ] && since=${20}
}

# A process is named PID-START-BOOT: no other one ever has that name.
alive() { # PROCESS
    rest=${1#*-}
    [ "${rest#*-}" = "$boot" ] && since "${1%%-*}" && [ "$since" = "${rest%%-*}" ]
}

end() { alive "$1" && kill -KILL "${1%%-*}"; } # PROCESS

living() { # FOLDER of empty files named as processes: sets `found` to one that lives
    for entry in "$1"/*; do
        found=${entry##*/}
        alive "$found" && return
    done
    return 1
}

# FOLDER: enters this process, unless another one there lives. Of two that come at once both may have to go again, but
# never both stay: each writes before it looks. What is dead anybody may remove.
claim() {
    mkdir -p "$1" && true > "$1/$me" || return 1
    for entry in "$1"/*; do
        [ "$entry" = "$1/$me" ] && continue
        if alive "${entry##*/}"; then
            rm -f "$1/$me"
            return 1
        fi
        rm -f "$entry"
    done
}

bounded() ( # SECONDS, then a command that may hang: it is killed after them, and left behind if even that does not help
    uptime
    over=$((seconds + $1))
    shift
    "$@" < /dev/null 9>&- &
    since $! || { wait $!; exit; }
    process=$!-$since-$boot
    while alive "$process"; do
        uptime
        if [ "$seconds" -ge "$over" ]; then
            end "$process"
            exit 1
        fi
        nap
    done
    wait "${process%%-*}"
)

durable() { bounded 60 sync; }

whole() { # FILE DIGEST
    sum=$(sha256sum < "$1") && [ "${sum%% *}" = "$2" ]
}

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
    command -v vcgencmd >/dev/null && section throttled throttled
    section date date +%s
}

throttled() { # a hanging vcgencmd must not hold the pipe that `section` reads
    seen=$state/throttled.$$
    bounded 5 vcgencmd get_throttled > "$seen"
    cat "$seen"
    rm -f "$seen"
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
    snapshot
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
    living "$home/worker" && lives=yes || lives=
    { read -r line < "$home/status"; } 2>/dev/null || line=waiting
    case $line in done*|failed*) lives=yes ;; esac
    [ -n "$lives" ] && echo "$line" || echo lost
}

number() { # at most 18 digits
    case $1 in '' | *[!0-9]*) return 1 ;; esac
    [ ${#1} -le 18 ]
}

take_board() { # one job at a time, and none of an older lease than one that was here
    waited=0 pause=$((1 + $$ % 2)) holders= # the pauses differ for two that came at once
    if command -v flock >/dev/null; then
        exec 9>> "$state/lock" # the program inherits it, and holds the board also when its worker was killed
        free() { flock -n 9; }
    else
        holders=$state/holders
        free() { claim "$holders"; }
    fi
    until free; do
        [ "$waited" -ge "$wait_s" ] && give_up busy "another job holds the board"
        sleep $pause
        waited=$((waited + pause))
    done
    largest=0
    if [ -e "$state/epoch" ]; then
        largest=
        { read -r largest < "$state/epoch"; } 2>/dev/null
        number "$largest" || give_up stale "E_FENCED: $state/epoch on the board is damaged: remove it if no job runs"
    fi
    if [ "$epoch" = - ]; then
        [ "$largest" = 0 ] || give_up stale "E_FENCED: no lease, and one of epoch $largest was on the board"
        return
    fi
    number "$epoch" || give_up stale "E_FENCED: lease epoch $epoch is not a number"
    [ "$epoch" -lt "$largest" ] && give_up stale "E_FENCED: lease epoch $epoch is stale: $largest was on the board"
    [ "$epoch" -eq "$largest" ] && return
    printf %s "$epoch" > "$state/epoch.part" && durable && mv -f "$state/epoch.part" "$state/epoch" && durable ||
        give_up board "the lease's epoch cannot be written"
}

lay_out() { # DIGEST: a program of its own, since the kernel runs no file that is still open for writing
    case $laid in *" $1 "*) return ;; esac
    if ! whole "$state/blobs/$1" "$1"; then
        rm -f "$state/blobs/$1" # it is sent again
        give_up corrupt "blob $1 was missing or damaged"
    fi
    cp "$state/blobs/$1" "program-$1.part" && chmod 755 "program-$1.part" && mv -f "program-$1.part" "program-$1" &&
        laid="$laid$1 "
}

watch() { # PROCESS SECONDS: ends it when they are over, and goes with it
    uptime
    over=$((seconds + $2))
    while alive "$1"; do
        uptime
        [ "$seconds" -lt "$over" ] || end "$1"
        sleep 1
    done
}

run() { # NAME SECONDS SETTING PROGRAM WORDS...
    set +f
    name=$1 limit=$2 setting=$3 program=$4
    shift 4
    for word; do
        shift
        case $word in @*) word=$state/blobs/${word#@} ;; esac
        set -- "$@" "$word"
    done
    [ "$setting" = - ] && setting=LC_ALL=C
    rm -f "$name.exit" "$name.bin" "$name.jsonl"
    snapshot > "$name.before"
    clocks > "$name.cpu"
    uptime
    begun=$seconds
    launching=yes
    env OMP_NUM_THREADS=1 "$setting" "./program-$program" "$@" < /dev/null > "$name.out" 2> "$name.err" &
    child=$!
    if since "$child"; then
        process=$child-$since-$boot
        echo "$process" > "$home/program"
        [ -z "$holders" ] || true > "$holders/$process"
        watch "$process" "$limit" < /dev/null > /dev/null 2>&1 9>&- &
        watcher=$!
    fi
    launching=
    [ -z "$cancelled" ] || cancel
    wait "$child"
    code=$?
    clocks >> "$name.cpu"
    # KILL: a process just forked may lose a TERM to the trap that it has not yet put off.
    [ -z "$watcher" ] || { kill -KILL "$watcher"; wait "$watcher"; } 2>/dev/null
    uptime
    [ "$code" = 137 ] && [ $((seconds - begun)) -ge "$limit" ] && code="137 overdue"
    [ -z "$holders" ] || rm -f "$holders/$process"
    process='' watcher=
    snapshot > "$name.after"
    # Durable before it counts as done, and again before the next step.
    echo "$code" > "$name.exit.part" && durable && mv -f "$name.exit.part" "$name.exit" && durable
}

cancel() { # on TERM; a program that is just being started is ended when it has a name
    if [ -n "$launching" ]; then
        cancelled=yes
        return
    fi
    trap '' TERM
    [ -z "$process" ] || end "$process"
    [ -z "$watcher" ] || kill -KILL "$watcher"
    give_up cancelled "stopped on request"
}

ended() { # NAME: sets `code` and `note` of a step that is done; half a file is none
    { read -r code note < "$1.exit"; } 2>/dev/null && number "$code"
}

report() {
    while read -r name words; do
        ended "$name" || continue
        echo "step $name $code${note:+ $note}"
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
    cd "$work" && since $$ || exit 1
    me=$$-$since-$boot
    tries=0
    until claim "$home/worker"; do
        [ "$tries" -ge 3 ] && exit 0
        sleep $((1 + $$ % 2))
        tries=$((tries + 1))
    done
    case $(look) in done*|failed*) exit 0 ;; esac
    say waiting
    process='' watcher='' launching='' cancelled='' laid=' ' failed=' '
    trap cancel TERM
    ulimit -c 0
    ulimit -f $FILE_BLOCKS
    head -c 65536 /dev/zero > ../reserve
    # What a killed worker of this job left running: its step is done again.
    { read -r left < ../program; } 2>/dev/null && end "$left" && nap
    take_board
    echo "$boot $(date +%s)" >> starts || give_up disk-full "nothing can be written"
    while read -r name limit setting program words; do
        candidate=${name%%-*}
        case $failed in *" $candidate "*) continue ;; esac
        if ! ended "$name"; then
            say running "$name"
            lay_out "$program" || give_up disk-full "no room for the program"
            set -f
            run "$name" "$limit" "$setting" "$program" $words
            ended "$name" || give_up disk-full "nothing can be written"
        fi
        [ "$code" = 0 ] || failed="$failed$candidate "
    done < ../steps
    report > ../report.part && durable && mv -f ../report.part ../report || give_up disk-full "no room for the report"
    durable
    sum=$(sha256sum < ../report)
    say "done ${sum%% *} $(wc -c < ../report)"
    [ -z "$holders" ] || rm -f "$holders/$me"
    exit 0
}

case $command in
facts) facts ;;
look) look ;;
start)
    steps=$4 epoch=$5 wait_s=$6
    mkdir -p "$work" && cp "$state/blobs/$steps" "$home/steps.part" || exit 1
    whole "$home/steps.part" "$steps" || { echo "failed corrupt blob $steps is damaged"; exit; }
    mv -f "$home/steps.part" "$home/steps" || exit 1
    case $(look) in
    lost)
        detach=$(command -v setsid || command -v nohup) || detach=
        $detach sh "$self" work "$state" "$job" "$steps" "$epoch" "$wait_s" < /dev/null >> "$home/log" 2>&1 &
        ;;
    esac
    # Its process enters itself in `worker` first of all.
    uptime
    over=$((seconds + 15))
    while [ "$(look)" = lost ] && uptime && [ "$seconds" -lt "$over" ]; do nap; done
    look
    ;;
work)
    epoch=$5 wait_s=$6
    work
    ;;
stop)
    # TERM leaves a final status. A worker that does not hear it within 4 s is killed; its program goes in any case.
    uptime
    over=$((seconds + 4))
    living "$home/worker" && kill -TERM "${found%%-*}"
    while living "$home/worker" && [ "$seconds" -lt $((over + 2)) ]; do
        [ "$seconds" -lt "$over" ] || end "$found"
        nap
        uptime
    done
    { read -r found < "$home/program"; } 2>/dev/null && end "$found"
    look
    ;;
*)
    echo "expected facts, start, look or stop" >&2
    exit 64
    ;;
esac
