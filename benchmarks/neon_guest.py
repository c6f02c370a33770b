"""Runs in the emulated board's Python: two warm inferences of a peer's artifact between the markers of the counting
plugin, after one empty interval. `neon_guest.py ARTIFACT_FOLDER`"""

import ctypes
import gc
import json
import os
import sys

import numpy

MARK = 0x45444745
PRCTL = ctypes.CDLL(None).prctl
WORDS = [ctypes.c_ulong(number) for number in (0, 1, 2)]


def mark(tag):
    PRCTL(ctypes.c_int(MARK), WORDS[tag], WORDS[0], WORDS[0], WORDS[0])


def rows(folder, document):
    with open(os.path.join(folder, "golden", "in.bin"), "rb") as stream:
        data = stream.read()
    count, at, result = document["golden"]["n"], 0, {}
    for tensor in document["inputs"]:
        shape = [count] + tensor["shape"][1:]
        size = int(numpy.prod(shape)) * numpy.dtype(tensor["dtype"]).itemsize
        result[tensor["name"]] = numpy.frombuffer(data[at:at + size], tensor["dtype"]).reshape(shape)[:1].copy()
        at += size
    return result


def onnx_call(path, feeds):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds)


def litert_call(path, feeds):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        name = next(key for key in feeds if key in detail["name"])
        interpreter.set_tensor(detail["index"], feeds[name].astype(detail["dtype"]))
    return interpreter.invoke


def main():
    folder = sys.argv[1]
    with open(os.path.join(folder, "artifact.json")) as stream:
        document = json.load(stream)
    feeds = rows(folder, document)
    path = os.path.join(folder, "model.onnx")
    call = onnx_call(path, feeds) if os.path.exists(path) else litert_call(os.path.join(folder, "model.tflite"), feeds)
    for _ in range(2):
        call()
    gc.collect()
    gc.disable()
    for nothing in (lambda: None, call, call):
        mark(1)
        nothing()
        mark(2)


if __name__ == "__main__":
    main()
