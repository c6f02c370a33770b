interval=1000
while [ $# -gt 0 ]; do
    case "$1" in
    --interval) interval=$2; shift ;;
    --stop) exit 0 ;;
    --help) echo 'Usage: tegrastats [-option]'; exit 0 ;;
    esac
    shift
done
case "$interval" in
'' | *[!0-9]*) echo 'tegrastats: interval is not a number' >&2; exit 1 ;;
esac
[ -f "$answers/tegrastats" ] || exit 1
pause=$((interval / 1000)).$(printf '%03d' $((interval % 1000)))
while :; do
    { read -r status && IFS= read -r line; } < "$answers/tegrastats" && printf '%s\n' "$line" || exit 1
    sleep "$pause"
done
