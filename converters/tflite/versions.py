"""Versions of TFLite operators: which one a use needs, and since which TensorFlow a runtime knows it.

A version that is too low makes an old runtime run an operator wrongly and silently (per-channel hybrid FULLY_CONNECTED
in tflite-runtime 2.14); the right one makes it refuse the file. Source: `op_version.cc` and `runtime_version.cc` of
LiteRT, cut down to what this writer emits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Operand:
    """What the choice of a version depends on: type name of the schema (`FLOAT32` …), shape, scales per channel."""

    type: str
    shape: tuple[int, ...]
    per_channel: bool = False


# Operator → first TensorFlow version by operator version. Operators that are not listed are older than any of these.
SINCE: dict[tuple[str, int], tuple[int, int, int]] = {
    ("BATCH_MATMUL", 1): (2, 3, 0),
    ("DEQUANTIZE", 5): (2, 7, 0),
    ("DIV", 2): (2, 3, 0),
    ("FULLY_CONNECTED", 9): (2, 3, 0),
    ("FULLY_CONNECTED", 12): (2, 17, 0),
    ("GELU", 1): (2, 9, 0),
    ("QUANTIZE", 1): (1, 14, 0),
    ("SLICE", 5): (2, 5, 0),
    ("SUB", 3): (2, 3, 0),
    ("TRANSPOSE", 4): (2, 3, 0),
    ("TRANSPOSE", 6): (2, 12, 0),
}
OLDEST = (2, 0, 0)


def operator_version(op: str, inputs: Sequence[Operand]) -> int:
    """The version of `op` that a runtime needs for these inputs."""
    first = inputs[0]
    rank = max(len(operand.shape) for operand in inputs)
    if op == "FULLY_CONNECTED":
        weight = inputs[1]
        if weight.type != "INT8":
            return 1
        if first.type == "INT8":
            return 4
        return 12 if weight.per_channel else 9
    if op == "DEQUANTIZE":
        return 5 if first.per_channel else 2
    if op == "GATHER":
        return 2 if first.type == "INT8" else 1
    if op == "TRANSPOSE":
        return 6 if rank > 5 else 4 if rank > 4 else 1
    if op in ("SUB", "DIV") and rank > 4 and len({operand.shape for operand in inputs}) > 1:
        return 3 if op == "SUB" else 2
    if op == "SLICE":
        return 5 if rank > 4 else 1
    return 1


def minimum_runtime(used: Sequence[tuple[str, int]]) -> str:
    """The oldest TensorFlow (as in the metadata `min_runtime_version`) that knows all (operator, version)."""
    return ".".join(map(str, max([OLDEST, *(SINCE.get(pair, OLDEST) for pair in used)])))
