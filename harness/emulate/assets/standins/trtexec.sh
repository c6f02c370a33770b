model=
for option; do
    case "$option" in
    --loadEngine=* | --onnx=*) model=${option#*=} ;;
    esac
done
if [ -z "$model" ] || [ ! -r "$model" ]; then
    echo "[E] Model file not found: ${model:-none given}"
    echo '&&&& FAILED TensorRT.trtexec # trtexec'
    exit 1
fi
[ -f "$answers/trtexec" ] && say "$answers/trtexec"
echo '&&&& FAILED TensorRT.trtexec # trtexec'
exit 1
