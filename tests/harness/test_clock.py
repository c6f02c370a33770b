"""The skew of a board's clock, from answers with known delays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgesdk.harness.board import Board
from edgesdk.harness.clock import ROUND_TRIPS, clock_skew
from edgesdk.harness.session import Session
from edgesdk.harness.transport import Completed


class Clocked:
    """A board whose clock is `ahead` seconds ahead; its answers take so many seconds there and back."""

    def __init__(self, delays: list[tuple[float, float]], ahead: float, form: Callable[[float], str]) -> None:
        self.delays = iter(delays)
        self.ahead = ahead
        self.form = form
        self.time = 1_000_000.0
        self.asked = 0

    def now(self) -> float:
        return self.time

    def run(self, argv: Any, deadline_s: float, input: Any = None, env: Any = None) -> Completed:
        there, back = next(self.delays)
        self.asked += 1
        self.time += there
        text = self.form(self.time + self.ahead)
        self.time += back
        return Completed(0, text.encode(), b"")

    def close(self) -> None:
        """Nothing is open."""


def skew(board: Clocked) -> dict[str, Any]:
    """What is found of it."""
    connect: Any = lambda _: board  # noqa: E731
    with Session(Board("b", "rpi5"), connect=connect) as session:
        return clock_skew(session, board.now)


def test_the_fastest_round_trip_counts() -> None:
    """Five are asked; the slow ones, whose way back is long, do not spoil the figure."""
    board = Clocked([(0.1, 2.0), (0.2, 1.0), (0.01, 0.01), (0.5, 3.0), (1.0, 1.0)], 7.25, lambda now: f"{now:.9f}\n")
    found = skew(board)
    assert board.asked == ROUND_TRIPS
    assert found["skew_s"] == pytest.approx(7.25, abs=1e-6) and found["rtt_s"] == pytest.approx(0.02)
    assert found["resolution_s"] == 1e-9


def test_a_date_of_whole_seconds_says_how_coarse_it_is() -> None:
    """BusyBox prints `%N` as it is."""
    found = skew(Clocked([(0.0, 0.0)] * 5, 100.0, lambda now: f"{int(now)}.%N"))
    assert found == {"skew_s": 100.5, "rtt_s": 0.0, "resolution_s": 1.0}


@pytest.mark.parametrize("text", ["", "junk", "-5", ".5"])
def test_a_board_that_does_not_say(text: str) -> None:
    """No figure, no error."""
    found = skew(Clocked([(0.0, 0.0)] * 5, 0.0, lambda now: text))
    assert found == {"skew_s": None, "rtt_s": None, "resolution_s": None}
