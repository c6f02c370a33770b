"""The micro-probe, a fixed loop on integers, and the choice of cores.

When the probe's time changes, the board changed, not the model.
"""

import os
from typing import Any

from edgesdk.harness.worker import timing
from edgesdk.harness.worker.codes import median
from edgesdk.harness.worker.system import SYS, read_int

PARTS = 10
FIRST_LOOPS = 20000


def work_cores(threads: int) -> "list[int]":
    """Cores for a program of so many threads: the fastest ones, not core 0 where there are four or more (interrupts go
    there); [] where pinning would do harm, below four cores, or is not possible."""
    try:
        cores = sorted(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return []
    if len(cores) < 4:
        return []
    cores = [core for core in cores if core != 0]

    def rank(core: int) -> "tuple[int, int]":
        fastest = read_int(f"{SYS}/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq")
        return -(fastest or 0), -core

    return sorted(sorted(cores, key=rank)[: max(1, threads)])


def pin(cores: "list[int]") -> None:
    """Keep this process (or one that is about to start) on these cores; nothing for []."""
    if cores:
        try:
            os.sched_setaffinity(0, cores)
        except OSError:
            pass


class Probe:
    """A loop of a number of turns that is found once, so that it takes `seconds`; 0 seconds means no probe."""

    def __init__(self, seconds: float, cores: "list[int]") -> None:
        self.cores = cores
        self.turns = 0
        if seconds > 0:
            self.turns = FIRST_LOOPS
            taken = min(self._parts(3))
            self.turns = max(100, int(FIRST_LOOPS * seconds * 1e9 / PARTS / max(1, taken)))

    def nanoseconds(self) -> "int | None":
        """How long one turn of the ten parts takes (their median, times ten); None without a probe.

        The median: an interrupt in one part is not a change of the board.
        """
        return int(PARTS * median(self._parts(PARTS))) if self.turns else None

    def _parts(self, count: int) -> "list[Any]":
        before = self._here()
        try:
            return [self._loop() for _ in range(count)]
        finally:
            pin(before)

    def _here(self) -> "list[int]":
        """Go to the cores of the round; returns those of before."""
        if not self.cores:
            return []
        before = sorted(os.sched_getaffinity(0))
        pin(self.cores)
        return before

    def _loop(self) -> int:
        start = timing.now_ns()
        value = 1
        for _ in range(self.turns):
            value = (value * 1103515245 + 12345) & 0x7FFFFFFF
        return timing.now_ns() - start
