"""Raw little-endian blocks, and the comparison with golden outputs, without numpy.

A block file holds, for each tensor in order, n rows [n, *shape[1:]].
"""

import array
import math
import operator
import sys
from typing import Any

CODES = {"float32": "f", "int64": "q", "int32": "i"}
BEST_SQNR = 200.0


def row_elements(tensor: "dict[str, Any]") -> int:
    """Elements of one row of a tensor {"dtype", "shape"}."""
    elements = 1
    for extent in tensor["shape"][1:]:
        elements *= int(extent)
    return elements


def row_bytes(tensor: "dict[str, Any]") -> int:
    """Bytes of one row."""
    return row_elements(tensor) * array.array(CODES[tensor["dtype"]]).itemsize


def block_bytes(tensors: "list[dict[str, Any]]", n: int) -> int:
    """Bytes of a block file with n rows of each tensor."""
    return n * sum(row_bytes(tensor) for tensor in tensors)


def take_rows(data: bytes, tensors: "list[dict[str, Any]]", n: int, rows: "list[int]") -> bytes:
    """A block file with some rows of another one (ValueError when its size does not fit n)."""
    if len(data) != block_bytes(tensors, n):
        raise ValueError(f"block has {len(data)} bytes, expected {block_bytes(tensors, n)}")
    parts = []
    start = 0
    for tensor in tensors:
        size = row_bytes(tensor)
        parts += [data[start + row * size : start + (row + 1) * size] for row in rows]
        start += n * size
    return b"".join(parts)


def _values(data: bytes, tensors: "list[dict[str, Any]]", n: int) -> "list[float]":
    values = []  # type: list[float]
    start = 0
    for tensor in tensors:
        size = n * row_bytes(tensor)
        numbers = array.array(CODES[tensor["dtype"]])
        numbers.frombytes(data[start : start + size])
        if sys.byteorder == "big":
            numbers.byteswap()
        values.extend(numbers)
        start += size
    return values


def compare(
    kind: str, limit: float, expected: bytes, actual: bytes, tensors: "list[dict[str, Any]]", n: int
) -> "dict[str, Any]":
    """Judge outputs against golden ones.

    Args:
        kind: `max_abs` (largest absolute error <= limit) or `sqnr_db` (10 log10 of signal to noise power >= limit;
            an exact match counts as 200 dB).

    Returns:
        {"passed", "value", "reason"}; `value` is None when the outputs cannot be compared.
    """
    size = block_bytes(tensors, n)
    if len(expected) != size or len(actual) != size:
        reason = f"outputs have {len(actual)} bytes, golden outputs {len(expected)}, expected {size}"
        return {"passed": False, "value": None, "reason": reason}
    reference = _values(expected, tensors, n)
    found = _values(actual, tensors, n)
    if not all(map(math.isfinite, found)):
        return {"passed": False, "value": None, "reason": "outputs contain NaN or infinity"}
    errors = list(map(operator.sub, found, reference))
    if kind == "max_abs":
        value = max(map(abs, errors)) if errors else 0.0
        passed = value <= limit
    elif kind == "sqnr_db":
        noise = math.fsum(map(operator.mul, errors, errors))
        signal = math.fsum(map(operator.mul, reference, reference))
        if not noise:
            value = BEST_SQNR
        else:
            value = 10 * math.log10(signal / noise) if signal else -BEST_SQNR
        passed = value >= limit
    else:
        return {"passed": False, "value": None, "reason": f"unknown tolerance {kind!r}"}
    reason = "" if passed else f"{kind} is {value:.6g}, limit {limit:.6g}"
    return {"passed": bool(passed), "value": value, "reason": reason}
