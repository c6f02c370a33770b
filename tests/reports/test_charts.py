"""The plots: the frontier, scales, labels, escaping."""

import re
import xml.etree.ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.reports import charts, view
from edgesdk.reports.svg import Box, element, place_labels, scale
from edgesdk.select import select
from edgesdk.testing.sample_record import sample_record

POINTS = st.lists(st.tuples(st.floats(0.01, 100), st.floats(0, 1)), min_size=1, max_size=20)


@given(POINTS)
def test_frontier_holds_exactly_the_points_that_none_beats(points: list[tuple[float, float]]) -> None:
    best = charts.frontier(points)
    for x, y in points:
        beaten = any((a <= x and b >= y) and (a, b) != (x, y) for a, b in points)
        assert ((x, y) in best) == (not beaten)
    assert best == sorted(best)


@given(st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=9), st.integers(2, 9), st.booleans())
def test_scale_keeps_values_inside_and_ticks_round(values: list[float], wanted: int, positive: bool) -> None:
    across = scale(values, 50, 500, positive=positive)
    assert all(50 - 1e-6 <= across(value) <= 500 + 1e-6 for value in values)
    ticks = across.ticks(wanted)
    assert ticks == sorted(ticks)
    assert all(50 - 0.02 <= across(value) <= 500 + 0.02 for value in ticks)


def test_labels_of_crowded_points_do_not_overlap() -> None:
    points = [(200.0 + 7 * index, 150.0 + 3 * (index % 3)) for index in range(8)]
    frame = Box(0, 0, 600, 400)
    boxes = place_labels(points, [90.0] * len(points), 14, frame)
    for index, box in enumerate(boxes):
        assert all(box.overlap(other) == 0 for other in boxes[:index])
        assert box.overlap(frame) == pytest.approx(90 * 14)


def test_svg_escapes_text_and_attributes() -> None:
    drawing = element("text", '<script>"&', class_='a" onload="x', x=1.0)
    assert str(drawing) == '<text class="a&#34; onload=&#34;x" x="1.00">&lt;script&gt;&#34;&amp;</text>'


@pytest.mark.parametrize("emulated", [False, True])
@pytest.mark.parametrize("names", [False, True])
def test_pareto_shows_every_valid_candidate(tmp_path: Path, emulated: bool, names: bool) -> None:
    record = sample_record(tmp_path, emulated=emulated, hostile=True)
    selection = select(record)
    rows = view.rows(record, selection)
    drawing = charts.pareto(rows, emulated, view.accuracy_floor(record, selection), 1000, 400, names)
    root = xml.etree.ElementTree.fromstring(drawing)
    labels = [node.text or "" for node in root.iter("text") if node.get("class", "").startswith("label")]
    valid = [row for row in rows if row.state != "invalid"]
    assert sorted(labels) == sorted(f"{row.number} {row.name}" if names else str(row.number) for row in valid)
    assert len(root.findall(".//*[@class='ring']")) == 1
    assert len(re.findall("mark hollow", drawing)) == sum(row.state == "misses" for row in valid)


def test_strip_has_a_dot_for_each_round_and_none_where_emulated(tmp_path: Path) -> None:
    record = sample_record(tmp_path / "a")
    rows = view.rows(record, select(record))
    drawing = charts.strip(rows, 1000, True)
    assert drawing.count('class="round"') == 3 * sum(row.state != "invalid" for row in rows)
    emulated = sample_record(tmp_path / "b", emulated=True)
    assert charts.strip(view.rows(emulated, select(emulated)), 1000, True) == ""
    assert charts.pareto([], False, None, 1000, 400, True) == ""
