chosen=/var/lib/edgesdk-standin/power-mode
case "$1" in
-q | --query)
    [ -f "$chosen" ] && while IFS= read -r line; do printf '%s\n' "$line"; done < "$chosen" && exit 0
    [ -f "$answers/nvpmodel -q" ] && say "$answers/nvpmodel -q"
    ;;
-p) [ -f "$answers/nvpmodel -p --verbose" ] && say "$answers/nvpmodel -p --verbose" ;;
-m | --mode)
    while IFS= read -r line; do
        case "$line" in
        *"POWER_MODEL ID=$2 NAME="*)
            mode=${line##*NAME=}
            mkdir -p "${chosen%/*}"
            printf 'NV Power Mode: %s\n%s\n' "${mode% >}" "$2" > "$chosen.part" && mv "$chosen.part" "$chosen"
            exit 0
            ;;
        esac
    done < "$answers/nvpmodel -p --verbose"
    echo "NVPM ERROR: invalid mode $2" >&2
    exit 1
    ;;
esac
echo 'NVPM ERROR: no operation' >&2
exit 1
