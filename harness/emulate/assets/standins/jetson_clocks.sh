locked=/var/lib/edgesdk-standin/clocks-locked
cpus=/sys/devices/system/cpu
show() {
    read -r status < "$answers/jetson_clocks --show"
    first=yes
    while IFS= read -r line; do
        if [ -f "$locked" ]; then
            case "$line" in
            *MinFreq=*MaxFreq=*)
                rest=${line#*MinFreq=}
                most=${rest#*MaxFreq=}
                line="${line%%MinFreq=*}MinFreq=${most%% *} ${rest#* }"
                ;;
            esac
            case "$line" in
            *FreqOverride=0*) line="${line%%FreqOverride=0*}FreqOverride=1${line#*FreqOverride=0}" ;;
            esac
        fi
        [ -z "$first" ] && printf '%s\n' "$line"
        first=
    done < "$answers/jetson_clocks --show"
    exit "$status"
}
case "$1" in
--show) [ -f "$answers/jetson_clocks --show" ] && show ;;
--store)
    : > "${2:?}" || exit 1
    for core in "$cpus"/cpu[0-9]*; do
        read -r least < "$core/cpufreq/scaling_min_freq" && printf '%s %s\n' "${core##*/}" "$least" >> "$2"
    done
    [ -f "$locked" ] && echo locked >> "$2"
    exit 0
    ;;
--restore)
    rm -f "$locked"
    while read -r core least; do
        case "$core" in
        locked) mkdir -p "${locked%/*}" && : > "$locked" ;;
        cpu[0-9]*) echo "$least" > "$cpus/$core/cpufreq/scaling_min_freq" ;;
        esac
    done < "${2:?}"
    exit 0
    ;;
'')
    mkdir -p "${locked%/*}" && : > "$locked"
    for core in "$cpus"/cpu[0-9]*; do
        read -r most < "$core/cpufreq/scaling_max_freq" && echo "$most" > "$core/cpufreq/scaling_min_freq"
    done
    exit 0
    ;;
esac
echo "jetson_clocks: no such operation: $1" >&2
exit 1
