"""One process that times NEON builds and peers against each other on x86: `neon_x86_worker.py JOB.json`.

JOB.json names artifacts of one package family: `contenders` [{"name", "kind" (`neon`, `onnx`, `tflite`), "folder",
"golden" (folder of an artifact with golden rows), "limit" (dB)}], `blocks`, `block_seconds`, `refuse_amx`, and `peak`
(null, or {"name", "library", "count"}: so many vpdpbusd, see neon_x86_peak.c). Each contender must first give golden
outputs; then short blocks alternate (A, B, C, A, B, C, …), one thread, the CPU clock of that thread. The answer on
standard output: milliseconds of each block by name, and SQNR by name.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.evaluate import sqnr_db

Arrays = Mapping[str, NDArray[Any]]
ARCH_PRCTL, REQUEST_PERMISSION, FEATURE_AMX = 158, 0x1023, 18
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
WARM_CALLS = 3


class _Instruction(ctypes.Structure):
    """One of the classic packet filter (`struct sock_filter`)."""

    _fields_ = [("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("first", ctypes.POINTER(_Instruction))]


def refuse_amx() -> None:
    """From now on the kernel refuses this process the tile registers of AMX, as a CPU without them would: runtimes then
    take their VNNI kernels."""
    load, equal, answer = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    number_at, argument_at, allow, refuse = 0, 16, 0x7FFF0000, 0x00050000 | errno.EPERM
    words = [
        (load, 0, 0, number_at), (equal, 0, 3, ARCH_PRCTL), (load, 0, 0, argument_at),
        (equal, 0, 1, REQUEST_PERMISSION), (answer, 0, 0, refuse), (answer, 0, 0, allow),
    ]
    filters = (_Instruction * len(words))(*(_Instruction(*word) for word in words))
    program = _Program(len(words), filters)
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) or libc.prctl(
        PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.byref(program), zero, zero
    ):
        raise OSError(ctypes.get_errno(), "the seccomp filter against AMX cannot be set")
    if libc.syscall(ARCH_PRCTL, REQUEST_PERMISSION, FEATURE_AMX) == 0:
        raise OSError("AMX was granted in spite of the filter")


def golden(folder: Path) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
    """The golden rows of an artifact: inputs by name [n, …], and the first output [n, …]."""
    document = json.loads((folder / "artifact.json").read_text())
    data, count, at, inputs = (folder / "golden/in.bin").read_bytes(), document["golden"]["n"], 0, {}
    for tensor in document["inputs"]:
        shape = [count, *tensor["shape"][1:]]
        size = int(np.prod(shape)) * np.dtype(tensor["dtype"]).itemsize
        inputs[tensor["name"]] = np.frombuffer(data[at : at + size], tensor["dtype"]).reshape(shape)
        at += size
    output = np.frombuffer((folder / "golden/out.bin").read_bytes(), np.float32)
    return inputs, output.reshape(count, -1)


def neon_call(folder: Path) -> Callable[[Arrays], NDArray[np.float32]]:
    """The library that `write_library` made, called with full rows of tokens."""
    sys.path.insert(0, str(folder))
    from edgesdk.converters.neon.binding import Model

    model = Model(folder)
    return lambda row: np.frombuffer(model.run([row["input_ids"]])[0], np.float32)


def onnx_call(folder: Path) -> Callable[[Arrays], NDArray[np.float32]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return lambda row: np.asarray(session.run(None, dict(row))[0]).reshape(-1)


def tflite_call(folder: Path) -> Callable[[Arrays], NDArray[np.float32]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(folder / "model.tflite"), num_threads=1)
    interpreter.allocate_tensors()
    details, output = interpreter.get_input_details(), interpreter.get_output_details()[0]["index"]

    def call(row: Arrays) -> NDArray[np.float32]:
        for detail in details:
            name = next(key for key in row if key in detail["name"])
            interpreter.set_tensor(detail["index"], row[name].astype(detail["dtype"], copy=False))
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(output)).reshape(-1)

    return call


CALLS = {"neon": neon_call, "onnx": onnx_call, "tflite": tflite_call}


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Check every contender, then time them in turn."""
    if job["refuse_amx"]:
        refuse_amx()
    calls: dict[str, Callable[[], Any]] = {}
    quality = {}
    for entry in job["contenders"]:
        call = CALLS[entry["kind"]](Path(entry["folder"]))
        inputs, wanted = golden(Path(entry["golden"]))
        rows = [{name: value[i : i + 1].copy() for name, value in inputs.items()} for i in range(len(wanted))]
        quality[entry["name"]] = sqnr_db(wanted, np.stack([call(row) for row in rows]))
        if not quality[entry["name"]] >= entry["limit"]:
            raise SystemExit(f"{entry['name']}: {quality[entry['name']]:.1f} dB, expected {entry['limit']} or more")
        calls[entry["name"]] = lambda call=call, row=rows[0]: call(row)  # type: ignore[misc]
    if job["peak"]:
        peak = ctypes.CDLL(job["peak"]["library"]).edge_peak
        calls[job["peak"]["name"]] = lambda: peak(ctypes.c_long(job["peak"]["count"]))
    counts = {name: _count(call, job["block_seconds"]) for name, call in calls.items()}
    blocks: dict[str, list[float]] = {name: [] for name in calls}
    gc.disable()
    process, thread = time.process_time_ns(), time.thread_time_ns()
    for _ in range(job["blocks"]):
        for name, call in calls.items():
            call()
            start = time.thread_time_ns()
            for _ in range(counts[name]):
                call()
            blocks[name].append((time.thread_time_ns() - start) / counts[name] * 1e-6)
    hidden = (time.process_time_ns() - process) - (time.thread_time_ns() - thread)
    spent = time.thread_time_ns() - thread
    return {"blocks": blocks, "sqnr_db": quality, "calls": counts, "other_threads": hidden / spent}


def _count(call: Callable[[], Any], seconds: float) -> int:
    """Calls in a block of about `seconds`."""
    for _ in range(WARM_CALLS):
        call()
    start = time.thread_time()
    call()
    return max(1, round(seconds / max(time.thread_time() - start, 1e-6)))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    print(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))))
