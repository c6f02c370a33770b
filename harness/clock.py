"""The wall clock of a board against this machine's. It orders runs; durations never use it (a Pi has no battery)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from edgesdk.harness.session import Session
from edgesdk.harness.transport import Transport

ROUND_TRIPS = 5
CLOCK_DEADLINE = 20.0
ARGV = ("date", "-u", "+%s.%N")
SECONDS = re.compile(r"^([0-9]{1,12})(?:\.([0-9]{1,9}))?")


def clock_skew(session: Session, now: Callable[[], float] = time.time) -> dict[str, Any]:
    """Seconds by which the board's clock is ahead, by the fastest of five round trips.

    Returns:
        `skew_s`, `rtt_s` and `resolution_s` (1 where the board's `date` knows no fractions); None for a board that
        does not say.

    Raises:
        what `Session` raises.
    """
    best: tuple[float, float, float] | None = None
    for _ in range(ROUND_TRIPS):
        rtt, middle, text = session.step(lambda transport: _ask(transport, now))
        found = SECONDS.match(text)
        if found is None:
            break
        resolution = 1e-9 if found[2] else 1.0
        # Whole seconds are cut off: on the average half a second is missing.
        board = float(f"{found[1]}.{found[2] or 5}")
        if best is None or rtt < best[0]:
            best = rtt, board - middle, resolution
    if best is None:
        return {"skew_s": None, "rtt_s": None, "resolution_s": None}
    return {"skew_s": round(best[1], 6), "rtt_s": round(best[0], 6), "resolution_s": best[2]}


def _ask(transport: Transport, now: Callable[[], float]) -> tuple[float, float, str]:
    before = now()
    completed = transport.run(list(ARGV), CLOCK_DEADLINE)
    after = now()
    return after - before, (before + after) / 2, completed.stdout.decode("ascii", "replace").strip()
