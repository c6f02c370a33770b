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
WORST_DB = 10.0  # a row's or a column's error above the mean one: chance gives 8 to 9 (docs/decisions.md)
TINY = 1e-300
FEWEST_LABELS = 32  # of fewer rows the share of equal labels is reported, not judged


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


def noise_above(
    floats: bytes, expected: bytes, actual: bytes, tensors: "list[dict[str, Any]]", n: int
) -> "tuple[float, float]":
    """How far the error of `actual` against `floats` is above that of `expected`.

    Returns:
        dB of the whole; and of the worst single row or column (along the last axis) above the mean row or column of
        `expected`: a dead class or a lost row may be a small part of the whole.
    """
    whole = [0.0, 0.0]
    worst = 0.0
    start = 0
    for tensor in tensors:
        size, width, height = n * row_bytes(tensor), int(tensor["shape"][-1]), row_elements(tensor)
        parts = [data[start : start + size] for data in (floats, expected, actual)]
        reference, own, found = (_values(part, [tensor], n) for part in parts)
        start += size
        rows, columns, total = [0.0] * n, [0.0] * width, 0.0
        for at, value in enumerate(reference):
            error = (found[at] - value) ** 2
            rows[at // height] += error
            columns[at % width] += error
            total += (own[at] - value) ** 2
        whole[0] += math.fsum(rows)
        whole[1] += total
        worst = max(worst, max(rows) * n / max(total, TINY), max(columns) * width / max(total, TINY))
    return _db(whole[0] / max(whole[1], TINY)), _db(worst)


def _db(ratio: float) -> float:
    return max(-BEST_SQNR, min(BEST_SQNR, 10 * math.log10(max(ratio, TINY))))


def judge(
    tolerance: "dict[str, Any]", expected: bytes, actual: bytes, tensors: "list[dict[str, Any]]", n: int,
    floats: "bytes | None" = None,
) -> "dict[str, Any]":
    """Judge outputs by everything that an artifact's tolerance asks.

    Args:
        tolerance: {"kind", "limit"} as in `compare`; with "labels_equal", at least that share of the n rows must keep
            its label, where there is an output `logits` and n >= 32; with "noise_db", outputs beyond the limit pass
            where `noise_above` is at most noise_db / sqrt(n), by which the errors of n rows differ by chance, and at
            most WORST_DB in every row and column.
        floats: outputs of the weights in float, for "noise_db".

    Returns:
        {"passed", "kind", "value", "limit", "labels_equal", "noise_db", "n", "reason"}; `labels_equal` is the share
        found, None where it is not asked for or there are no labels to compare; `noise_db` what was found where the
        limit alone did not pass.
    """
    kind, limit, wanted = tolerance["kind"], float(tolerance["limit"]), tolerance.get("labels_equal")
    verdict = compare(kind, limit, expected, actual, tensors, n)
    verdict.update({"kind": kind, "limit": limit, "labels_equal": None, "noise_db": None, "n": n})
    allowed = tolerance.get("noise_db")
    if not verdict["passed"] and verdict["value"] is not None and allowed is not None and floats is not None:
        if len(floats) != len(expected) or not all(map(math.isfinite, _values(floats, tensors, n))):
            verdict["reason"] = "the golden outputs in float hold NaN or infinity, or have another size"
            return verdict
        (above, worst), most = noise_above(floats, expected, actual, tensors, n), float(allowed) / math.sqrt(n)
        verdict["noise_db"], verdict["passed"] = above, above <= most and worst <= WORST_DB
        text = (
            f"its error against float is {above:.3g} dB above the model's own, limit {most:.3g}, and {worst:.3g} dB in "
            f"the worst row or column, limit {WORST_DB:.3g}"
        )
        verdict["reason"] = "" if verdict["passed"] else verdict["reason"] + "; " + text
    if wanted is None or verdict["value"] is None:
        return verdict
    reference, found = _labels(expected, tensors, n), _labels(actual, tensors, n)
    if not reference:
        return verdict
    different = sum(map(operator.ne, reference, found))
    verdict["labels_equal"] = 1 - different / n
    if n >= FEWEST_LABELS and different > math.floor((1 - float(wanted)) * n + 1e-9):
        verdict["passed"] = False
        text = f"{different} of {n} labels differ, at least {float(wanted):.6g} must be equal"
        verdict["reason"] = "; ".join(part for part in (verdict["reason"], text) if part)
    return verdict


def _labels(data: bytes, tensors: "list[dict[str, Any]]", n: int) -> "list[list[int]]":
    """For each of the n rows the places of the largest of `logits` along its last axis; [] where there is no such
    output."""
    start = 0
    for tensor in tensors:
        size = n * row_bytes(tensor)
        if tensor["name"] == "logits":
            values = _values(data[start : start + size], [tensor], n)
            classes, width = int(tensor["shape"][-1]), row_elements(tensor)
            groups = [values[at : at + classes] for at in range(0, len(values), classes)]
            labels = [group.index(max(group)) for group in groups]
            step = width // classes
            return [labels[row * step : (row + 1) * step] for row in range(n)]
        start += size
    return []
