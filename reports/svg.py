"""Inline SVG: elements with everything escaped, linear and logarithmic scales, labels that keep out of each other's
way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape


def element(name: str, *children: str | Markup, **attributes: str | float | None) -> Markup:
    """One element. Text children are escaped; `class_` becomes `class`, other underscores become hyphens; numbers are
    written with two decimals; attributes that are None are left out."""
    written = Markup("")
    for key, value in attributes.items():
        if value is not None:
            text = f"{value:.2f}" if isinstance(value, float) else str(value)
            written += Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), text)
    return Markup("<{}{}>{}</{}>").format(name, written, Markup("").join(escape(child) for child in children), name)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def text(x: float, y: float, value: str, class_: str, anchor: str = "start") -> Markup:
    return element("text", value, x=float(x), y=float(y), class_=class_, text_anchor=anchor)


@dataclass(frozen=True)
class Scale:
    """Maps `low`…`high` of the data to `start`…`end` of the drawing; both ends of the data differ."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        share = (self._map(value) - self._map(self.low)) / (self._map(self.high) - self._map(self.low))
        return self.start + share * (self.end - self.start)

    def _map(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value

    def ticks(self, wanted: int) -> list[float]:
        """About `wanted` round values inside the range: 1, 2 or 5 times a power of ten (a logarithmic scale: all
        of those, or over many decades the powers of ten)."""
        if self.logarithmic:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            digits = (1, 2, 5) if last - first <= 3 else (1,)
            values = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
        else:
            rough = (self.high - self.low) / wanted
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)
            values = [index * step for index in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        near, far = sorted((self.start, self.end))
        return [value for value in values if near - 0.01 <= self(value) <= far + 0.01]


def scale(values: Iterable[float], start: float, end: float, margin: float = 0.08, positive: bool = False) -> Scale:
    """A scale around `values` with a margin on both sides; logarithmic where positive values span more than 8×."""
    data = list(values)
    low, high = min(data), max(data)
    if positive and low > 0 and high / low > 8:
        grow = (high / low) ** margin
        return Scale(low / grow, high * grow, start, end, True)
    spread = (high - low) or abs(high) * 0.1 or 1.0
    return Scale(low - margin * spread, high + margin * spread, start, end)


@dataclass(frozen=True)
class Box:
    """A rectangle of the drawing."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


def place_labels(
    points: Sequence[tuple[float, float]], widths: Sequence[float], height: float, frame: Box, taken: Sequence[Box] = ()
) -> list[Box]:
    """A box for the label of each point: near it, inside the frame, over as little else as possible.

    Greedy: each label takes the place with the least overlap, the nearer of equal ones; labels of crowded points,
    which have fewest free places, go first.
    """
    marks = [Box(x - 8, y - 8, x + 8, y + 8) for x, y in points]
    crowded = sorted(range(len(points)), key=lambda index: -_neighbours(points, index))
    placed: dict[int, Box] = {}
    for index in crowded:
        x, y = points[index]
        others = [*marks, *placed.values(), *taken]

        def cost(place: tuple[float, Box], others: list[Box] = others) -> float:
            distance, box = place
            inside = box.overlap(frame)
            outside = (box.right - box.left) * (box.bottom - box.top) - inside
            return sum(box.overlap(other) for other in others) * 0.5 + outside * 20 + distance

        placed[index] = min(_places(x, y, widths[index], height), key=cost)[1]
    return [placed[index] for index in range(len(points))]


def _neighbours(points: Sequence[tuple[float, float]], index: int) -> int:
    x, y = points[index]
    return sum(abs(x - other_x) < 90 and abs(y - other_y) < 30 for other_x, other_y in points)


def _places(x: float, y: float, width: float, height: float) -> Iterable[tuple[float, Box]]:
    """Places around a point: beside it, then on rings further out, as (distance from the nearest place, box)."""
    for ring in range(7):
        reach = 14 + ring * 12
        for angle in range(0, 360, 15):
            dx, dy = math.cos(math.radians(angle)) * reach, math.sin(math.radians(angle)) * reach
            left = x + dx - (width if dx < -3 else width / 2 if abs(dx) <= 3 else 0)
            box = Box(left, y + dy - height / 2, left + width, y + dy + height / 2)
            yield ring * 12 + (0 if angle in (0, 180) else 1), box
