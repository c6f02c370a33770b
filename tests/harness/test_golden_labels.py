"""The golden check: of dynamic schemes as many dB and as many equal labels as the tolerance asks, of static ones an
error against float like that of the model they were made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesdk.harness.worker import blocks

STATIC = {"kind": "sqnr_db", "limit": 30.0, "labels_equal": None, "noise_db": 6.0}
DYNAMIC = {"kind": "sqnr_db", "limit": 20, "labels_equal": 0.98}
LOGITS = {"name": "logits", "dtype": "float32", "shape": [1, 3]}
EMBEDDING = {"name": "embedding", "dtype": "float32", "shape": [1, 3]}


def _rows(n: int, wrong: int, size: float = 0.02) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows [n, 3] whose two best classes are close, and answers of which the first `wrong` take the other one."""
    expected = np.tile(np.array([1.0, 0.99, -1.0], np.float32), (n, 1))
    found = expected.copy()
    found[:wrong, 1] += size
    return expected, found


def _judge(n: int, wrong: int, tensor: dict[str, Any] = LOGITS, **tolerance: Any) -> dict[str, Any]:
    expected, found = _rows(n, wrong)
    return blocks.judge({**DYNAMIC, **tolerance}, expected.tobytes(), found.tobytes(), [tensor], n)


@pytest.mark.parametrize(
    ("n", "wrong", "passed"),
    [(32, 0, True), (32, 1, False), (49, 1, False), (50, 1, True), (100, 2, True), (100, 3, False), (31, 5, True)],
)
def test_labels_decide_from_32_rows_on(n: int, wrong: int, passed: bool) -> None:
    """At most floor(2 % of n) labels may differ, though the outputs are within 20 dB."""
    verdict = _judge(n, wrong)
    assert verdict["value"] > 30
    assert verdict["labels_equal"] == pytest.approx(1 - wrong / n)
    assert verdict["passed"] is passed
    assert ("labels differ" in verdict["reason"]) is not passed
    assert (verdict["kind"], verdict["limit"], verdict["n"]) == ("sqnr_db", 20.0, n)


def test_equal_labels_do_not_excuse_noise() -> None:
    expected, _ = _rows(32, 0)
    found = (expected * 1.5).astype(np.float32)
    verdict = blocks.judge(DYNAMIC, expected.tobytes(), found.tobytes(), [LOGITS], 32)
    assert (verdict["passed"], verdict["labels_equal"]) == (False, 1.0)
    assert "sqnr_db" in verdict["reason"]


def test_only_logits_have_labels() -> None:
    verdict = _judge(32, 5, EMBEDDING)
    assert (verdict["passed"], verdict["labels_equal"]) == (True, None)


def test_labels_are_not_judged_where_the_tolerance_does_not_ask() -> None:
    verdict = _judge(32, 5, labels_equal=None)
    assert (verdict["passed"], verdict["labels_equal"]) == (True, None)


def test_logits_behind_another_output_are_found() -> None:
    expected, found = _rows(40, 4)
    first = np.zeros((40, 3), np.float32).tobytes()
    verdict = blocks.judge(DYNAMIC, first + expected.tobytes(), first + found.tobytes(), [EMBEDDING, LOGITS], 40)
    assert verdict["labels_equal"] == pytest.approx(0.9)
    assert not verdict["passed"]


def test_rows_of_several_labels_are_equal_when_all_of_them_are() -> None:
    tensor = {"name": "logits", "dtype": "float32", "shape": [1, 2, 3]}
    expected, found = _rows(64, 1)
    verdict = blocks.judge(DYNAMIC, expected.tobytes(), found.tobytes(), [tensor], 32)
    assert verdict["labels_equal"] == pytest.approx(31 / 32)
    assert not verdict["passed"]


def test_broken_outputs_have_no_labels() -> None:
    expected, found = _rows(32, 0)
    found[3, 1] = np.nan
    verdict = blocks.judge(DYNAMIC, expected.tobytes(), found.tobytes(), [LOGITS], 32)
    assert (verdict["passed"], verdict["value"], verdict["labels_equal"]) == (False, None, None)


def _static(n: int, own: float, other: float, floats: bool = True) -> dict[str, Any]:
    """Outputs of n rows whose errors against float are independent: of the model's own rounding (`own`, the size of the
    errors) and of another one's (`other`)."""
    rng = np.random.default_rng(n)
    exact = rng.standard_normal((n, 3)).astype(np.float32)
    noise = [rng.standard_normal((n, 3)).astype(np.float32) * np.float32(size) for size in (own, other)]
    expected, found = (exact + part for part in noise)
    block = exact.tobytes() if floats else None
    return blocks.judge(STATIC, expected.tobytes(), found.tobytes(), [LOGITS], n, block)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("n", [8, 32])
def test_a_lost_row_or_a_dead_class_is_found(n: int, axis: int) -> None:
    """Quantization noise of 15 dB and a class, or a row, that always answers 0: a small part of the whole error."""
    rng, shape = np.random.default_rng(3), (n, 150)
    exact = rng.standard_normal(shape).astype(np.float32)
    expected, found = (exact + rng.standard_normal(shape).astype(np.float32) * np.float32(0.178) for _ in range(2))
    tensor = {"name": "logits", "dtype": "float32", "shape": [1, 150]}
    assert blocks.judge(STATIC, expected.tobytes(), found.tobytes(), [tensor], n, exact.tobytes())["passed"]
    if axis:
        found[:, 17] = 0
    else:
        found[1] = 0
    verdict = blocks.judge(STATIC, expected.tobytes(), found.tobytes(), [tensor], n, exact.tobytes())
    assert not verdict["passed"] and "worst row or column" in verdict["reason"]


@pytest.mark.parametrize(("own", "other", "passed"), [
    (0.1, 0.1, True), (0.1, 0.05, True), (0.1, 0.14, False), (0.1, 1.0, False), (0.001, 0.1, False),
])
def test_static_outputs_may_differ_as_their_model_differs_from_float(own: float, other: float, passed: bool) -> None:
    verdict = _static(400, own, other)
    assert verdict["value"] < 30 and verdict["passed"] is passed
    assert verdict["noise_db"] == pytest.approx(20 * np.log10(other / own), abs=0.6)
    assert ("dB above the model's own, limit 0.3" in verdict["reason"]) is not passed


def test_few_rows_are_given_more_room() -> None:
    """6 / sqrt(n) dB: 3 for 4 rows, 0.3 for 400."""
    rows = np.array([[1.0, 0.0, 0.0]] * 400, np.float32)
    for n, passed in ((4, True), (400, False)):
        expected, found = rows[:n] + np.float32(0.1), rows[:n] - np.float32(0.13)
        verdict = blocks.judge(STATIC, expected.tobytes(), found.tobytes(), [LOGITS], n, rows[:n].tobytes())
        assert verdict["noise_db"] == pytest.approx(20 * np.log10(1.3), abs=1e-3)
        assert verdict["passed"] is passed


def test_outputs_within_the_limit_need_no_float_outputs() -> None:
    assert _static(64, 0.001, 0.001, floats=False)["passed"]
    verdict = _static(64, 0.1, 0.1, floats=False)
    assert not verdict["passed"] and verdict["noise_db"] is None


def test_float_outputs_of_another_size_are_refused() -> None:
    rows = np.ones((4, 3), np.float32)
    verdict = blocks.judge(STATIC, rows.tobytes(), (rows * 2).tobytes(), [LOGITS], 4, rows[:3].tobytes())
    assert not verdict["passed"] and "another size" in verdict["reason"]
    verdict = blocks.judge(STATIC, rows.tobytes(), (rows * 2).tobytes(), [LOGITS], 4, (rows * np.nan).tobytes())
    assert not verdict["passed"] and "NaN" in verdict["reason"]


def test_an_exact_model_allows_no_error() -> None:
    rows = np.ones((4, 3), np.float32)
    verdict = blocks.judge(STATIC, rows.tobytes(), (rows * 2).tobytes(), [LOGITS], 4, rows.tobytes())
    assert not verdict["passed"] and verdict["noise_db"] == blocks.BEST_SQNR
