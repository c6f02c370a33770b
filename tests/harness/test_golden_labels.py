"""The golden check of dynamic schemes: as many dB and as many equal labels as the tolerance asks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesdk.harness.worker import blocks

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
