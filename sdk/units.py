"""Numbers as people read them: three significant digits, decimal prefixes, a space before the unit."""

from __future__ import annotations

import math

NONE = "–"
MINUS = "\N{MINUS SIGN}"


def number(value: float, digits: int = 3) -> str:
    """`digits` significant digits, never an exponent: 0.0952, 12.3, 1234."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    rounded = round(value, decimals)
    # 9.996 becomes 10.0: one decimal less than its own size asked for.
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded)))) if rounded else decimals
    return f"{rounded:.{decimals}f}"


def prefixed(value: float, unit: str = "", digits: int = 3) -> str:
    """A count with a decimal prefix: 845, 12.3 k, 3.02 M; `unit` follows the prefix (kB)."""
    prefixes = ("", "k", "M", "G", "T")
    step = 0
    while float(number(abs(value), digits)) >= 1000 and step + 1 < len(prefixes):
        value, step = value / 1000, step + 1
    text = f"{value:.0f}" if step == 0 and float(value).is_integer() else number(value, digits)
    return f"{text} {prefixes[step]}{unit}".rstrip()


def size(bytes: float | None, digits: int = 3) -> str:
    """Bytes in decimal units: 608 kB."""
    return NONE if bytes is None else prefixed(bytes, "B", digits)


def count(value: float | None, digits: int = 3) -> str:
    """Instructions, parameters, multiply-accumulates: 3.02 M."""
    return NONE if value is None else prefixed(value, "", digits)


def tick(value: float) -> str:
    """A round value of an axis, without digits that say nothing: 2 M, 0.5 M, 250 k."""
    for power, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= power:
            return f"{value / power:g}{prefix}"
    return f"{value:g}"


def milliseconds(value: float | None, digits: int = 3) -> str:
    """Always in milliseconds, so that one column compares by eye: 0.0952 ms."""
    return NONE if value is None else f"{number(value, digits)} ms"


def seconds(value: float | None) -> str:
    """Wall time: 0.42 s, 1.9 s, 41.2 s, 2 min 05 s."""
    if value is None:
        return NONE
    whole = round(value)
    return f"{number(value, 2 if value < 10 else 3)} s" if value < 120 else f"{whole // 60} min {whole % 60:02d} s"


def millijoules(value: float | None, digits: int = 3) -> str:
    """Energy of one inference: 4.21 mJ."""
    return NONE if value is None else f"{number(value, digits)} mJ"


def percent(fraction: float | None) -> str:
    """A fraction with one decimal: 0.975 → 97.5 %."""
    return NONE if fraction is None else f"{100 * fraction:.1f} %"


def points(difference: float | None) -> str:
    """A difference of fractions in points, signed: −0.014 → −1.4 points."""
    if difference is None:
        return NONE
    value = round(100 * difference, 2)
    text = f"{abs(value):.2f}".removesuffix("0")
    return f"{'+' if value > 0 else MINUS if value < 0 else '±'}{text} points"
