"""The raw file of an energy run, read: segments of samples and the events between them. The file comes from a board:
it may hold anything, and is bounded, typed and finite here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.errors import MeasureError
from edgesdk.harness.text import plain
from edgesdk.harness.worker.machine import KINDS

FORMAT, VERSION = "edgesdk.power", 1
MOST_BYTES = 64 << 20
LONGEST_LINE = 1 << 14
MOST_RAILS = 64
MOST_NS = 1 << 60
BOUNDARIES = ("board_input", "module", "pmic_rails", "cpu_package", "wall")


@dataclass
class Segment:
    """Samples with one header: `total` are the rails that are added, `boundary` what they cover; `unit` uW or uJ (a
    counter that wraps at `ranges`); `replayed` where the sensor was fed from a recording."""

    sensor: str
    boundary: str
    rails: tuple[str, ...]
    total: tuple[str, ...]
    unit: str
    period_ns: int
    ranges: tuple[int, ...] | None = None
    offset_ns: int = 0
    gain: tuple[float, float] | None = None
    replayed: bool = False
    rows: list[list[int | None]] = field(default_factory=list)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What must be the same for two segments to be one record."""
        return self.sensor, self.boundary, self.rails, self.total, self.unit, self.ranges

    def columns(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(times [n] in ns on the board's clock, values [n, rails of the total]); rows where one of them could not be
        read are left out: they are gaps."""
        places = [1 + self.rails.index(name) for name in self.total]
        rows = [row for row in self.rows if all(row[place] is not None for place in places)]
        times = np.array([row[0] for row in rows], dtype=np.int64) + self.offset_ns
        values = np.array([[row[place] for place in places] for row in rows], dtype=np.int64)
        return times, values.reshape(len(rows), len(places))


@dataclass
class Stretch:
    """One event with edges: `window`, `bare` or `idle`; times in ns on the board's clock. `turn`: see `machine`."""

    event: str
    values: Mapping[str, Any]

    @property
    def edges(self) -> tuple[int, int]:
        return int(self.values["start_ns"]), int(self.values["end_ns"])


@dataclass
class PowerLog:
    """All segments, and the events of the last attempt; `attempts` counts them."""

    segments: list[Segment]
    stretches: list[Stretch]
    attempts: int

    def count(self, event: str) -> int:
        """How many events of one kind there are, tries included."""
        return sum(stretch.event == event for stretch in self.stretches)

    def of(self, event: str) -> list[Stretch]:
        """Events of one kind, in order; of windows that were run again the last try."""
        found = [stretch for stretch in self.stretches if stretch.event == event]
        if event == "idle":
            return found
        return list({stretch.values["index"]: stretch for stretch in found}.values())


def read_log(data: bytes, where: str) -> PowerLog:
    """Parse the raw file.

    Raises:
        MeasureError: larger than 64 MiB, or a line that no sampler writes; it is named.
    """
    if len(data) > MOST_BYTES:
        raise MeasureError(f"{where}: {len(data)} bytes of samples, at most {MOST_BYTES}")
    segments: list[Segment] = []
    stretches: list[Stretch] = []
    attempts = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            entry = _parse(line)
            if isinstance(entry, list):
                segments[-1].rows.append(_row(entry, len(segments[-1].rails)))
            elif "format" in entry:
                segments.append(_header(entry))
            elif entry["event"] == "attempt":
                attempts, stretches = attempts + 1, []
            elif entry["event"] != "end":
                stretches.append(_stretch(entry))
        except (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError) as problem:
            raise MeasureError(f"{where}, line {number}: not a sampler's: {plain(repr(problem), 200)}") from problem
    return PowerLog(segments, stretches, attempts)


def _parse(line: bytes) -> Any:
    if len(line) > LONGEST_LINE:
        raise ValueError(f"a line of {len(line)} bytes")
    entry = json.loads(line)
    if not isinstance(entry, (list, dict)):
        raise ValueError("neither a sample nor an event")
    return entry


def _row(entry: list[Any], rails: int) -> list[int | None]:
    if len(entry) != 1 + rails or not _is_time(entry[0]):
        raise ValueError(f"a sample of {len(entry) - 1} values for {rails} rails")
    if any(value is not None and (type(value) is not int or abs(value) >= MOST_NS) for value in entry[1:]):
        raise ValueError("a value that is not a whole number")
    return entry


def _is_time(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST_NS


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and 0 < len(name) <= 64 for name in value):
        raise ValueError("rails that are not names")
    if len(value) > MOST_RAILS or len(set(value)) != len(value):
        raise ValueError(f"{len(value)} rails, or one twice")
    return tuple(plain(name) for name in value)


def _header(entry: Mapping[str, Any]) -> Segment:
    if entry["format"] != FORMAT or entry["version"] != VERSION:
        raise ValueError(f"format {entry['format']!r} version {entry['version']!r}")
    rails, total = _names(entry["rails"]), _names(entry["total"])
    if not total or not set(total) <= set(rails):
        raise ValueError("a total of rails that are not read")
    if entry["boundary"] not in BOUNDARIES or entry["unit"] not in ("uW", "uJ"):
        raise ValueError(f"boundary {entry['boundary']!r}, unit {entry['unit']!r}")
    if not isinstance(entry["sensor"], str) or not 0 < len(entry["sensor"]) <= 64:
        raise ValueError("no name of a sensor")
    if not _is_time(entry["period_ns"]) or not 10**5 <= entry["period_ns"] <= 10**11:
        raise ValueError(f"a period of {entry['period_ns']!r} ns")
    ranges = None
    if entry["unit"] == "uJ":
        ranges = tuple(entry["ranges"])
        if len(ranges) != len(rails) or not all(_is_time(limit) and limit > 0 for limit in ranges):
            raise ValueError("ranges that do not fit the rails")
    offset = entry.get("offset_ns", 0)
    if type(offset) is not int or abs(offset) >= MOST_NS:
        raise ValueError("an offset that is not a whole number")
    return Segment(
        plain(entry["sensor"]), entry["boundary"], rails, total, entry["unit"], entry["period_ns"], ranges, offset,
        _gain(entry.get("gain")), entry.get("replayed") is True,
    )


def _gain(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    relative, watts = (float(number) for number in value)
    if not (0 <= relative <= 1 and 0 <= watts <= 1000):
        raise ValueError("a gain outside its bounds")
    return relative, watts


def _stretch(entry: Mapping[str, Any]) -> Stretch:
    event = entry["event"]
    if event not in ("window", "bare", "idle"):
        raise ValueError(f"event {event!r}")
    turn = entry.get("turn")  # files of before this key have none
    if turn not in (None, *KINDS):
        raise ValueError(f"turn {turn!r}")
    values: dict[str, Any] = {"turn": turn}
    if event != "bare":
        values |= {"start_ns": entry["start_ns"], "end_ns": entry["end_ns"]}
        if not (_is_time(entry["start_ns"]) and _is_time(entry["end_ns"]) and entry["start_ns"] < entry["end_ns"]):
            raise ValueError("edges that are not in order")
    if event == "idle":
        if entry["when"] not in ("before", "after"):
            raise ValueError("idle neither before nor after")
        values["when"] = entry["when"]
    else:
        for key in ("index", "inferences", "p50_ns"):
            values[key] = entry[key]
            if not _is_time(entry[key]) or (key != "index" and entry[key] < 1):
                raise ValueError(f"{key} is {entry[key]!r}")
    return Stretch(event, values)


def finite(value: float) -> float | None:
    """The value, or None where it is NaN or infinite."""
    return value if math.isfinite(value) else None
