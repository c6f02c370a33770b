"""Goals: what an artifact must keep to be chosen.

    accuracy: max-degradation 1        points of the baseline's accuracy; `1%` is relative to it
    latency_p50: max 20ms              ns, us, ms, s
    latency_p90: max 30ms
    size: max 10%                      of the fp32 ONNX file (`baseline.bytes`), or bytes: B, kB, MB, GB, KiB, MiB, GiB
    peak_rss: max 64MB
    energy: max 5mJ                    of one inference: uJ, mJ, J
    instructions: max 3M               of one inference: a number, or k, M, G

A recipe gives them as a mapping, the command line as `latency_p90=max 30ms`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from edgesdk.errors import ConfigError

_TIME = {"ns": Decimal("1e-6"), "us": Decimal("1e-3"), "µs": Decimal("1e-3"), "ms": Decimal(1), "s": Decimal(1000)}
_BYTES = {"B": Decimal(1), "kB": Decimal(10**3), "MB": Decimal(10**6), "GB": Decimal(10**9)}
_BYTES |= {"KiB": Decimal(2**10), "MiB": Decimal(2**20), "GiB": Decimal(2**30)}
_ENERGY = {"uJ": Decimal("1e-3"), "µJ": Decimal("1e-3"), "mJ": Decimal(1), "J": Decimal(1000)}
_COUNT = {"": Decimal(1), "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9)}

# metric → (the word before the number, unit → factor to the unit of `Goal.limit`, an example)
METRICS: dict[str, tuple[str, Mapping[str, Decimal], str]] = {
    "accuracy": ("max-degradation", {"": Decimal(1), "%": Decimal(1)}, "max-degradation 1"),
    "latency_p50": ("max", _TIME, "max 20ms"),
    "latency_p90": ("max", _TIME, "max 30ms"),
    "size": ("max", _BYTES | {"%": Decimal(1)}, "max 10%"),
    "peak_rss": ("max", _BYTES, "max 64MB"),
    "energy": ("max", _ENERGY, "max 5mJ"),
    "instructions": ("max", _COUNT, "max 3M"),
}
_FORM = re.compile(r"(?P<word>\S+)\s+(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[^\s\d.]*)")


@dataclass(frozen=True)
class Goal:
    """One goal. `limit` is in points (accuracy), ms, bytes, mJ or instructions; with `relative` in percent of the
    baseline. `text` is what the user wrote after the metric's name."""

    metric: str
    limit: float
    relative: bool
    text: str

    def __str__(self) -> str:
        return f"{self.metric}: {self.text}"


DEFAULT = Goal("accuracy", 1.0, False, "max-degradation 1")


def parse_goals(goals: Mapping[str, Any] | Iterable[str] | None) -> tuple[Goal, ...]:
    """Goals from a recipe's mapping or from the command line's strings (`metric=value`), in the order given.

    Raises:
        ConfigError: an unknown goal or unit, a malformed or doubled goal; the hint names the nearest that exists.
    """
    if goals is None:
        return ()
    if isinstance(goals, Mapping):
        pairs = [(str(metric), value) for metric, value in goals.items()]
    else:
        pairs = [_split(text) for text in goals]
    parsed = tuple(parse_goal(metric, value) for metric, value in pairs)
    names = [goal.metric for goal in parsed]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"goal {name!r} is given twice", "keep one of them")
    return parsed


def parse_goal(metric: str, value: Any) -> Goal:
    """One goal, e.g. `parse_goal("latency_p90", "max 30ms")`; see `parse_goals`."""
    if metric not in METRICS:
        near = difflib.get_close_matches(metric, METRICS, 1, 0.5)
        raise ConfigError(f"unknown goal {metric!r}", near[0] if near else "one of " + ", ".join(METRICS))
    word, units, example = METRICS[metric]
    match = _FORM.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(f"goal {metric!r}: {value!r} is not of the form `{word} NUMBER UNIT`", f"{metric}: {example}")
    if match["word"] != word:
        raise ConfigError(f"goal {metric!r}: expected {word!r}, found {match['word']!r}", f"{metric}: {example}")
    if match["unit"] not in units:
        raise ConfigError(f"goal {metric!r}: {_wrong_unit(match['unit'])}", _near_unit(match["unit"], units))
    limit = float(Decimal(match["number"]) * units[match["unit"]])
    if limit == float("inf"):
        raise ConfigError(f"goal {metric!r}: {match['number']} is too large", f"{metric}: {example}")
    return Goal(metric, limit, match["unit"] == "%", value.strip())


def _split(text: str) -> tuple[str, str]:
    metric, found, value = text.partition("=") if "=" in text else text.partition(":")
    if not found:
        raise ConfigError(f"goal {text!r} is not of the form metric=value", "accuracy='max-degradation 1'")
    return metric.strip(), value.strip()


def _wrong_unit(unit: str) -> str:
    return f"unknown unit {unit!r}" if unit else "the number has no unit"


def _near_unit(unit: str, units: Mapping[str, Decimal]) -> str:
    for known in units:
        if known and known.lower() == unit.lower():
            return known
    return "one of " + ", ".join(known or "no unit" for known in units)
