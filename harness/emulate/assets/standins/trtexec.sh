# There is no GPU here: an "engine" is the ONNX file, outputs are computed by ONNX Runtime on the emulated CPU, and the
# times are those of the recorded log, so that everything but the numbers is as on a board.
echo "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # $0 $*"
model= engine= save= inputs= output= times= iterations=10 duration=3
fail() {
    echo "[E] $1"
    echo '&&&& FAILED TensorRT.trtexec # trtexec'
    exit 1
}
for option; do
    case "$option" in
    --onnx=*) model=${option#*=} ;;
    --loadEngine=*) engine=${option#*=} ;;
    --saveEngine=*) save=${option#*=} ;;
    --loadInputs=*) inputs=${option#*=} ;;
    --exportOutput=*) output=${option#*=} ;;
    --exportTimes=*) times=${option#*=} ;;
    --iterations=*) iterations=${option#*=} ;;
    --duration=*) duration=${option#*=} ;;
    --help) exit 0 ;;
    --fp16 | --int8 | --noTF32 | --useSpinWait | --warmUp=*) ;;
    *) fail "Unknown option: $option" ;;
    esac
done
[ -r "${model:-$engine}" ] || fail "Model file not found: ${model:-${engine:-none given}}"
if [ -n "$save" ]; then
    cp "$model" "$save" || fail "Saving engine to file failed"
fi
if [ -n "$output" ]; then
    python3 - "${engine:-$model}" "$inputs" "$output" <<'PYTHON' || fail "inference failed"
import json
import sys

import numpy
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
paths = dict(pair.split(":", 1) for pair in sys.argv[2].split(","))
dtypes = {"tensor(float)": "<f4", "tensor(int32)": "<i4"}
feeds = {value.name: numpy.fromfile(paths[value.name], dtypes[value.type]).reshape(value.shape)
         for value in session.get_inputs()}
entries = [
    {"name": value.name, "dimensions": "x".join(map(str, found.shape)), "values": found.ravel().tolist()}
    for value, found in zip(session.get_outputs(), session.run(None, feeds))
]
with open(sys.argv[3], "w") as stream:
    json.dump(entries, stream)
PYTHON
fi
log=$answers/trtexec
[ -f "$log" ] || fail "no recorded log here"
if [ -n "$times" ]; then
    median=$(sed -n 's/.*\[I\] Latency: .*median = \([0-9.]*\) ms.*/\1/p' "$log")
    sleep "$duration"
    awk -v one="${median:-1}" -v least="$iterations" -v seconds="$duration" 'BEGIN {
        count = int(1000 * seconds / one); if (count < least) count = least
        printf "["
        for (at = 0; at < count; at++) printf "%s{\"computeMs\":%s,\"latencyMs\":%s}", at ? "," : "", one, one
        print "]"
    }' > "$times"
fi
[ -n "$engine" ] && echo "[09/02/2024-17:47:01] [I] Engine deserialized in 0.0125 sec."
say "$log"
