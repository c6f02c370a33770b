"""Wall and CPU seconds of the steps of a build."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field


@dataclass
class Stopwatch:
    """`lap(name)` books the time since the last lap. CPU seconds are those of this process and of its ended children;
    a worker that runs detached on a board is not among them."""

    laps: dict[str, tuple[float, float]] = field(default_factory=dict)
    last: tuple[float, float] = field(default_factory=lambda: _now())

    def lap(self, name: str) -> None:
        """End the step `name`: its (wall, CPU) seconds are added to what it has."""
        now = _now()
        wall, cpu = self.laps.get(name, (0.0, 0.0))
        self.laps[name] = (wall + now[0] - self.last[0], cpu + now[1] - self.last[1])
        self.last = now


def _now() -> tuple[float, float]:
    times = os.times()
    return time.monotonic(), times.user + times.system + times.children_user + times.children_system
