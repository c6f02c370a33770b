"""Meters that this machine reads for a board: smart plugs by HTTP, serial meters, and plug-ins.

`farm.toml` names one: `meter = {kind = "shelly", url = "http://192.0.2.30"}`, `{kind = "tasmota", url = …}`,
`{kind = "serial", device = "/dev/ttyUSB0", baud = "115200"}`, or a kind of the entry-point group `edgesdk.meters`, a
function that takes the settings and gives a `Meter`. `boundary` (`wall` or `board_input`) may be set for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Protocol

from edgesdk.errors import ConfigError
from edgesdk.harness.energy.plugs import SHELLY, TASMOTA, Plug
from edgesdk.harness.energy.serial_meter import SerialMeter
from edgesdk.harness.text import plain

GROUP = "edgesdk.meters"
METER_BOUNDARIES = ("wall", "board_input")


class Meter(Protocol):
    """What reads the power of a board from outside.

    `name` is stored with the samples; `boundary` is what it covers (`wall` or `board_input`); `period_s` how often it
    has a new value (0.02 … 10), known when it is open; `gain` its standard error: (share, watts). A `paced` meter's
    `read` waits for its next value; others are asked every `period_s`.
    """

    name: str
    boundary: str
    period_s: float
    gain: tuple[float, float]
    paced: bool

    def open(self) -> None:
        """Get ready to read (BoardError where it does not answer)."""

    def read(self) -> float | None:
        """Watts now; None where this reading failed. Blocks for a period or so; does not raise."""

    def close(self) -> None:
        """Let go of it; another thread may be reading, which must then end."""


def _plug(settings: Mapping[str, str]) -> Meter:
    kinds = {"shelly": SHELLY, "tasmota": TASMOTA}
    _only(settings, "kind", "url", "boundary")
    return Plug(kinds[settings["kind"]], _wanted(settings, "url"), _boundary(settings, "wall"))


def _serial(settings: Mapping[str, str]) -> Meter:
    _only(settings, "kind", "device", "baud", "query", "boundary")
    return SerialMeter(
        _wanted(settings, "device"), settings.get("baud", "115200"), settings.get("query"),
        _boundary(settings, "board_input"),
    )


KINDS: dict[str, Callable[[Mapping[str, str]], Meter]] = {"shelly": _plug, "tasmota": _plug, "serial": _serial}


def make_meter(settings: Mapping[str, str]) -> Meter:
    """The meter that a board's settings name; nothing is opened yet.

    Raises:
        ConfigError: an unknown kind, a missing or wrong setting, or a plug-in that is not a meter.
    """
    kind = settings.get("kind", "")
    if kind in KINDS:
        return KINDS[kind](settings)
    plugins = {entry.name: entry for entry in entry_points(group=GROUP)}
    if kind not in plugins:
        known = ", ".join(sorted({*KINDS, *plugins}))
        raise ConfigError(f"meter: unknown kind {plain(kind, 80)!r}", f"one of {known}")
    try:
        meter: Meter = plugins[kind].load()(settings)
        fine = 0.02 <= float(meter.period_s) <= 10 and meter.boundary in METER_BOUNDARIES
        share, watts = (float(number) for number in meter.gain)
        fine = fine and bool(meter.name) and 0 <= share <= 1 and 0 <= watts <= 1000
    except Exception as problem:  # a plug-in may do anything
        raise ConfigError(f"meter {kind!r}: its plug-in failed: {plain(repr(problem), 200)}") from problem
    if not fine:
        raise ConfigError(f"meter {kind!r}: its plug-in is not one: period, boundary or gain outside their bounds")
    return meter


def _only(settings: Mapping[str, str], *known: str) -> None:
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        raise ConfigError(f"meter {settings['kind']!r}: unknown setting {plain(unknown[0], 80)!r}", ", ".join(known))


def _wanted(settings: Mapping[str, str], key: str) -> str:
    if not settings.get(key):
        raise ConfigError(f"meter {settings['kind']!r}: setting {key!r} is missing")
    return settings[key]


def _boundary(settings: Mapping[str, str], default: str) -> str:
    boundary = settings.get("boundary", default)
    if boundary not in METER_BOUNDARIES:
        hint = " or ".join(METER_BOUNDARIES)
        raise ConfigError(f"meter {settings['kind']!r}: unknown boundary {plain(boundary, 80)!r}", hint)
    return boundary
