"""Readers of power sensors: each gives microwatts (`unit` uW), or microjoules since some start (uJ), which wrap.

`sensors.py` finds out which of them a board has.
"""

import math
import os
import re
import select
import subprocess
import time
from abc import ABC, abstractmethod
from typing import Any

from edgesdk.harness.worker import rails as parsers
from edgesdk.harness.worker.system import read_text

COMMAND_SECONDS = 2.0
_WHOLE = re.compile(r"^-?[0-9]{1,18}$")


class Sensor(ABC):
    """`read()` gives one whole number for each of `rails` (None where that read failed); `total` are the rails that
    add up to `boundary`; `ranges` of counters: where each wraps; a `paced` sensor's reads wait for its next value."""

    paced = False

    def __init__(
        self, name: str, boundary: str, rails: "list[str]", total: "list[str]", period_s: float, unit: str = "uW",
        ranges: "list[int] | None" = None,
    ) -> None:
        self.name = name
        self.boundary = boundary
        self.rails = rails
        self.total = total
        self.period_s = period_s
        self.unit = unit
        self.ranges = ranges

    @abstractmethod
    def read(self) -> "list[int | None]":
        """One value for each rail."""

    def close(self) -> None:  # noqa: B027 (most sensors run nothing)
        """End what the sensor runs."""

    def describe(self) -> "dict[str, Any]":
        """Plain data, for facts and for the header of the samples."""
        found = {
            "sensor": self.name, "boundary": self.boundary, "rails": self.rails, "total": self.total,
            "unit": self.unit, "period_ns": int(self.period_s * 1e9),
        }  # type: dict[str, Any]
        if self.ranges is not None:
            found["ranges"] = self.ranges
        return found


class FileSensor(Sensor):
    """Rails that are files: each a list of paths whose numbers are multiplied, and a factor to get the unit."""

    def __init__(
        self, name: str, boundary: str, files: "dict[str, tuple[list[str], int]]", total: "list[str]",
        period_s: float, unit: str = "uW", ranges: "list[int] | None" = None,
    ) -> None:
        Sensor.__init__(self, name, boundary, sorted(files), total, period_s, unit, ranges)
        self.files = files

    def read(self) -> "list[int | None]":
        return [product(*self.files[rail]) for rail in self.rails]


class PmicSensor(Sensor):
    """The Raspberry Pi 5's power chip, asked through vcgencmd: its rails, not the board (USB, fan, HATs, losses).

    A reading takes 23 ms on a board; where it `took` longer (an emulated one), the period is longer too.
    """

    def __init__(self, command: str, rails: "list[str]", took_s: float) -> None:
        Sensor.__init__(self, "pmic", "pmic_rails", rails, rails, min(1.0, max(0.1, math.ceil(30 * took_s) / 10.0)))
        self.command = command

    def read(self) -> "list[int | None]":
        text, _ = output_of([self.command, "pmic_read_adc"])
        powers = parsers.pmic_powers(text)
        # Another set of rails is another sum: the sampler starts a new segment, which spoils the window it is in.
        if powers:
            self.rails = sorted(powers)
            self.total = self.rails
            return [int(round(powers[rail] * 1e6)) for rail in self.rails]
        return [None] * len(self.rails)


class TegrastatsSensor(Sensor):
    """Lines of tegrastats, where the rails themselves cannot be read."""

    paced = True

    def __init__(self, command: str, period_s: float = 0.1) -> None:
        self.lines = Lines([command, "--interval", str(int(period_s * 1000))])
        rails = []  # type: list[str]
        deadline = time.monotonic() + COMMAND_SECONDS
        while not rails and time.monotonic() < deadline:
            rails = sorted(self._powers())
        total = parsers.total_of(rails) or ([], "")
        Sensor.__init__(self, "tegrastats", total[1], rails, total[0], period_s)

    def read(self) -> "list[int | None]":
        found = self._powers()
        return [found[rail] * 1000 if rail in found else None for rail in self.rails]

    def _powers(self) -> "dict[str, int]":
        """Milliwatts of the next line; {} where none comes within a second."""
        found = parsers.parse_tegrastats(self.lines.next(1.0) or "")
        rails = found["rails"] if found else {}  # type: dict[str, int]
        return rails

    def close(self) -> None:
        self.lines.close()


class Lines:
    """The lines of a program that goes on for ever, until `close`; OSError where it cannot be started."""

    def __init__(self, argv: "list[str]") -> None:
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.pending = b""

    def next(self, seconds: float) -> "str | None":
        """The next whole line; None where there is none in time."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self.pending and len(self.pending) < parsers.LONGEST:
            if not select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            data = os.read(self.process.stdout.fileno(), 4096)
            if not data:
                time.sleep(0.05)  # it ended: who asks again and again must not be kept busy
                return None
            self.pending += data
        line, _, self.pending = self.pending.partition(b"\n")
        return line.decode("utf-8", "replace")

    def close(self) -> None:
        """End the program."""
        assert self.process.stdout is not None
        self.process.stdout.close()
        try:
            self.process.kill()
        except OSError:
            pass
        self.process.wait()


def whole(path: str) -> "int | None":
    """The whole number in a file; None where it cannot be read (EIO: the channel is off) or is something else."""
    text = read_text(path, 64)
    return int(text) if text is not None and _WHOLE.match(text) else None


def product(paths: "list[str]", factor: int) -> "int | None":
    """The numbers of all files multiplied, times a factor; None where one is missing or the power is absurd."""
    value = factor
    for path in paths:
        number = whole(path)
        if number is None:
            return None
        value *= number
    return value if abs(value) < 1 << 62 else None


def output_of(argv: "list[str]") -> "tuple[str, str]":
    """(stdout, what went wrong) of a command that ends soon."""
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
    except OSError as problem:
        return "", problem.strerror or str(problem)
    try:
        data, _ = process.communicate(timeout=COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "", f"no answer within {COMMAND_SECONDS:g} s"
    text = data[: parsers.LONGEST].decode("utf-8", "replace")
    return (text, "") if process.returncode == 0 else ("", " ".join(text.split())[:200] or "it failed")
