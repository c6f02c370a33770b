"""The plots of a report as inline SVG: accuracy against cost with the Pareto frontier, and the medians of rounds.

Colours and fonts come from the style sheet through classes; shapes and numbers carry the same information.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from edgesdk import units
from edgesdk.reports.svg import Box, Scale, element, line, place_labels, scale, text
from edgesdk.reports.view import Row

LONGEST = 34
SHAPES = {"onnx": "circle", "tflite": "square", "neon": "triangle", "neon-fp16": "triangle"}


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other point beats in both: lower x (cost) and higher y (accuracy), by rising x."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best


def pareto(rows: Sequence[Row], emulated: bool, floor: float | None, width: int, height: int, names: bool) -> Markup:
    """Accuracy against p50 (or instructions) of every valid candidate; empty where fewer than one has both.

    Args:
        floor: the accuracy that the goal asks for, a fraction; drawn as a line.
        width, height: of the drawing, in pixels.
        names: label points with number and name, else with the number alone (narrow screens).
    """
    drawn = [row for row in rows if row.x is not None and row.y is not None]
    if not drawn:
        return Markup("")
    frame = Box(58, 14, width - 14, height - 48)
    across, up = _scales(drawn, floor, frame)
    parts = [*_axes(across, up, frame, emulated), *_floor(floor, up, frame)]
    steps = frontier([(row.x or 0, row.y or 0) for row in drawn])
    path = f"M{across(steps[0][0]):.1f},{frame.bottom:.1f}"
    for x, y in steps:
        path += f" H{across(x):.1f} V{up(y):.1f}"
    parts.append(element("path", d=path + f" H{frame.right:.1f}", class_="frontier"))
    places = [(across(row.x or 0), up(row.y or 0)) for row in drawn]
    parts += [_bars(row, place, across, up) for row, place in zip(drawn, places, strict=True)]
    parts += [_mark(row, place) for row, place in zip(drawn, places, strict=True)]
    labels = [_label(row, names) for row in drawn]
    # Labels keep off the level parts of the frontier and off the goal's line.
    levels = [Box(across(x), up(y) - 1, frame.right, up(y) + 1) for x, y in steps]
    levels += [Box(frame.left, up(floor) - 1, frame.right, up(floor) + 1)] if floor is not None else []
    chosen = [Box(x - 14, y - 14, x + 14, y + 14) for row, (x, y) in zip(drawn, places, strict=True)
              if row.state == "selected"]
    boxes = place_labels(places, [6.6 * len(label) + 4 for label in labels], 14, frame, levels + chosen)
    for row, label, place, box in zip(drawn, labels, places, boxes, strict=True):
        parts.append(_leader(place, box))
        class_ = "label chosen" if row.state == "selected" else "label"
        parts.append(text((box.left + box.right) / 2, box.bottom - 3, label, class_, "middle"))
    title = "Accuracy against " + ("executed instructions" if emulated else "latency") + " of each candidate"
    return _svg(width, height, title, parts)


def strip(rows: Sequence[Row], width: int, names: bool) -> Markup:
    """One line per candidate: its round medians as dots, the 95 % interval of the median as a bar."""
    drawn = [row for row in rows if row.rounds_ms]
    if not drawn:
        return Markup("")
    left, pitch = (250 if names else 40), 24
    height = 16 + pitch * len(drawn) + 40
    values = [value for row in drawn for value in (*row.rounds_ms, *(row.x_range or ()))]
    across = scale(values, left, width - 20, 0.05, positive=True)
    bottom = height - 40.0
    parts = _ticks(across, bottom, 8, width)
    parts.append(text((left + width) / 2, height - 6, "median of a round, ms per inference", "axis", "middle"))
    for index, row in enumerate(drawn):
        y = 16 + pitch * (index + 0.5)
        parts.append(text(left - 12, y + 4, _label(row, names), "label", "end"))
        parts.append(line(left, y, width - 20, y, "grid"))
        if row.x_range:
            low, high = across(row.x_range[0]), across(row.x_range[1])
            parts.append(element("rect", x=low, y=y - 5, width=max(1.0, high - low), height=10, class_="interval"))
        parts += [element("circle", cx=across(value), cy=y, r=3.5, class_="round") for value in row.rounds_ms]
    return _svg(width, height, "Medians of the rounds of each candidate with the 95 % interval", parts)


def _label(row: Row, names: bool) -> str:
    """Number and name of a candidate, cut where it is too long, or the number alone."""
    label = f"{row.number} {row.name}" if names else str(row.number)
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"


def _scales(drawn: Sequence[Row], floor: float | None, frame: Box) -> tuple[Scale, Scale]:
    across = scale(
        [value for row in drawn for value in (row.x or 0, *(row.x_range or ()))], frame.left, frame.right, positive=True
    )
    heights = [100 * value for row in drawn for value in (row.y or 0, *(row.y_range or ()))]
    up = scale([*heights, *([100 * floor] if floor is not None else [])], frame.bottom, frame.top, 0.06)
    up = Scale(up.low / 100, min(up.high, 101.0) / 100, up.start, up.end)
    return across, up


def _axes(across: Scale, up: Scale, frame: Box, emulated: bool) -> list[Markup]:
    parts = [element(
        "rect", x=frame.left, y=frame.top, width=frame.right - frame.left, height=frame.bottom - frame.top,
        class_="frame",
    )]
    wanted = max(3, int((frame.right - frame.left) / 110))
    for value in across.ticks(wanted):
        x = across(value)
        label = units.tick(value) if emulated else f"{value:g}"
        parts += [line(x, frame.top, x, frame.bottom, "grid"), text(x, frame.bottom + 16, label, "tick", "middle")]
    for value in Scale(100 * up.low, 100 * up.high, up.start, up.end).ticks(6):
        y = up(value / 100)
        parts.append(line(frame.left, y, frame.right, y, "grid"))
        parts.append(text(frame.left - 8, y + 4, f"{value:g} %", "tick", "end"))
    title = "executed instructions per inference (emulated)" if emulated else "p50 latency, ms per inference (measured)"
    title += ", logarithmic" if across.logarithmic else ""
    parts.append(text((frame.left + frame.right) / 2, frame.bottom + 38, title, "axis", "middle"))
    return parts


def _ticks(across: Scale, bottom: float, top: float, width: int) -> list[Markup]:
    parts = []
    for value in across.ticks(max(3, width // 160)):
        x = across(value)
        parts += [line(x, top, x, bottom, "grid"), text(x, bottom + 15, f"{value:g}", "tick", "middle")]
    return parts


def _floor(floor: float | None, up: Scale, frame: Box) -> list[Markup]:
    if floor is None:
        return []
    y = up(floor)
    label = f"accuracy goal: {units.percent(floor)}"
    return [line(frame.left, y, frame.right, y, "goal"), text(frame.right - 6, y + 14, label, "goal-label", "end")]


def _bars(row: Row, place: tuple[float, float], across: Scale, up: Scale) -> Markup:
    x, y = place
    parts = []
    if row.x_range:
        parts.append(line(across(row.x_range[0]), y, across(row.x_range[1]), y, "bar"))
    if row.y_range:
        low, high = up(row.y_range[0]), up(row.y_range[1])
        parts.append(line(x, low, x, high, "bar"))
        parts += [line(x - 4, end, x + 4, end, "bar") for end in (low, high)]
    return element("g", *parts)


def _mark(row: Row, place: tuple[float, float]) -> Markup:
    x, y = place
    shape = SHAPES.get(row.converter, "circle")
    filled = "mark" if row.state in ("selected", "meets") else "mark hollow"
    class_ = f"{filled} {shape}"
    title = element("title", f"{row.number} {row.name}: {row.verdict}. {row.reason}")
    if shape == "square":
        drawing = element("rect", title, x=x - 5, y=y - 5, width=10.0, height=10.0, class_=class_)
    elif shape == "triangle":
        points = f"{x:.1f},{y - 7:.1f} {x + 6.5:.1f},{y + 5:.1f} {x - 6.5:.1f},{y + 5:.1f}"
        drawing = element("polygon", title, points=points, class_=class_)
    else:
        drawing = element("circle", title, cx=x, cy=y, r=5.5, class_=class_)
    ring = element("circle", cx=x, cy=y, r=12.0, class_="ring") if row.state == "selected" else ""
    return element("g", drawing, ring)


def _leader(place: tuple[float, float], box: Box) -> Markup:
    """A thin line from a label that stands far off to its point."""
    x, y = place
    near_x = min(max(x, box.left), box.right)
    near_y = min(max(y, box.top), box.bottom)
    if abs(near_x - x) + abs(near_y - y) < 18:
        return Markup("")
    return line(x, y, near_x, near_y, "leader")


def _svg(width: int, height: int, title: str, parts: Sequence[Markup]) -> Markup:
    return element(
        "svg", element("title", title), *parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=title
    )
