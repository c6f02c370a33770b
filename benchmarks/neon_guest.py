"""Runs in the emulated board's Python: for each artifact of a peer a call of a model that does nothing, then a warm
inference, each between the markers of the counting plugin. `neon_guest.py FOLDER EMPTY_MODEL [FOLDER EMPTY_MODEL …]`"""

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


def count(folder, empty_model):
    with open(os.path.join(folder, "artifact.json")) as stream:
        document = json.load(stream)
    feeds = rows(folder, document)
    load = onnx_call if empty_model.endswith(".onnx") else litert_call
    empty = load(empty_model, feeds)
    call = load(os.path.join(folder, "model" + os.path.splitext(empty_model)[1]), feeds)
    for warm in (empty, empty, call, call):
        warm()
    gc.collect()
    for counted in (empty, call):
        mark(1)
        counted()
        mark(2)


def main():
    gc.disable()
    for at in range(1, len(sys.argv), 2):
        count(sys.argv[at], sys.argv[at + 1])


if __name__ == "__main__":
    main()
