"""Versions of TFLite operators, against the table of LiteRT (`op_version.cc`, `runtime_version.cc`)."""

from __future__ import annotations

import pytest

from edgesdk.converters.tflite.versions import Operand, minimum_runtime, operator_version


def operand(type: str, rank: int, per_channel: bool = False) -> Operand:
    return Operand(type, tuple(range(2, 2 + rank)), per_channel)


CASES = [
    ("FULLY_CONNECTED", [operand("FLOAT32", 2), operand("FLOAT32", 2), operand("FLOAT32", 1)], 1),
    ("FULLY_CONNECTED", [operand("INT8", 2), operand("INT8", 2, True), operand("INT32", 1, True)], 4),
    ("FULLY_CONNECTED", [operand("FLOAT32", 2), operand("INT8", 2, True), operand("FLOAT32", 1)], 12),
    ("FULLY_CONNECTED", [operand("FLOAT32", 2), operand("INT8", 2), operand("FLOAT32", 1)], 9),
    ("DEQUANTIZE", [operand("INT8", 2)], 2),
    ("DEQUANTIZE", [operand("INT8", 2, True)], 5),
    ("QUANTIZE", [operand("FLOAT32", 2)], 1),
    ("GATHER", [operand("FLOAT32", 2), operand("INT64", 2)], 1),
    ("GATHER", [operand("INT8", 2), operand("INT64", 2)], 2),
    ("TRANSPOSE", [operand("FLOAT32", 4), operand("INT32", 1)], 1),
    ("TRANSPOSE", [operand("FLOAT32", 5), operand("INT32", 1)], 4),
    ("TRANSPOSE", [operand("FLOAT32", 6), operand("INT32", 1)], 6),
    ("SLICE", [operand("FLOAT32", 3), operand("INT32", 1), operand("INT32", 1)], 1),
    ("SLICE", [operand("FLOAT32", 5), operand("INT32", 1), operand("INT32", 1)], 5),
    ("SUB", [operand("FLOAT32", 5), operand("FLOAT32", 5)], 1),
    ("SUB", [operand("FLOAT32", 5), operand("FLOAT32", 1)], 3),
    ("DIV", [operand("FLOAT32", 5), operand("FLOAT32", 1)], 2),
    ("ADD", [operand("FLOAT32", 5), operand("FLOAT32", 1)], 1),
    ("SOFTMAX", [operand("FLOAT32", 4)], 1),
]


@pytest.mark.parametrize(("op", "inputs", "version"), CASES)
def test_versions(op: str, inputs: list[Operand], version: int) -> None:
    assert operator_version(op, inputs) == version


def test_the_newest_operator_decides_about_the_runtime() -> None:
    assert minimum_runtime([("RESHAPE", 1)]) == "2.0.0"
    assert minimum_runtime([("RESHAPE", 1), ("GELU", 1), ("BATCH_MATMUL", 1)]) == "2.9.0"
    assert minimum_runtime([("TRANSPOSE", 6), ("GELU", 1)]) == "2.12.0"
    assert minimum_runtime([("FULLY_CONNECTED", 12), ("FULLY_CONNECTED", 4), ("GELU", 1)]) == "2.17.0"
