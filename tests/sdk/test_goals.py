"""Goals: what is accepted, what is refused, and with which way out."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.errors import ConfigError
from edgesdk.goals import METRICS, Goal, parse_goal, parse_goals


@pytest.mark.parametrize(
    ("metric", "text", "limit", "relative"),
    [
        ("accuracy", "max-degradation 1", 1.0, False),
        ("accuracy", "max-degradation 0.5", 0.5, False),
        ("accuracy", "max-degradation 1%", 1.0, True),
        ("latency_p90", "max 30ms", 30.0, False),
        ("latency_p50", "max 250 us", 0.25, False),
        ("latency_p50", "max 1.5s", 1500.0, False),
        ("size", "max 10%", 10.0, True),
        ("size", "max 200kB", 200_000.0, False),
        ("size", "max 1 MiB", 1_048_576.0, False),
        ("peak_rss", "max 64MB", 64_000_000.0, False),
        ("energy", "max 5mJ", 5.0, False),
        ("energy", "max 0.1J", 100.0, False),
        ("instructions", "max 3M", 3_000_000.0, False),
        ("instructions", "max 250", 250.0, False),
    ],
)
def test_forms(metric: str, text: str, limit: float, relative: bool) -> None:
    assert parse_goal(metric, text) == Goal(metric, limit, relative, text)


@pytest.mark.parametrize(
    ("metric", "value", "message", "hint"),
    [
        ("latency", "max 30ms", "unknown goal 'latency'", "latency_p90"),
        ("acuracy", "max-degradation 1", "unknown goal 'acuracy'", "accuracy"),
        ("colour", "red", "unknown goal 'colour'", "one of accuracy"),
        ("latency_p90", "max 30", "no unit", "one of ns, us"),
        ("latency_p90", "max 30MS", "unknown unit 'MS'", "ms"),
        ("size", "max 200KB", "unknown unit 'KB'", "kB"),
        ("peak_rss", "max 10%", "unknown unit '%'", "one of B, kB"),
        ("accuracy", "max 1", "expected 'max-degradation'", "accuracy: max-degradation 1"),
        ("accuracy", 1, "not of the form", "accuracy: max-degradation 1"),
        ("accuracy", "max-degradation -1", "not of the form", "accuracy: max-degradation 1"),
        ("energy", "max nan mJ", "not of the form", "energy: max 5mJ"),
        ("instructions", "max " + "9" * 400, "too large", "instructions: max 3M"),
    ],
)
def test_refusals_name_the_way_out(metric: str, value: Any, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_goal(metric, value)
    assert hint in caught.value.hint


def test_mapping_and_command_line_agree() -> None:
    mapping = {"accuracy": "max-degradation 1", "size": "max 10%"}
    texts = ["accuracy=max-degradation 1", "size: max 10%"]
    assert parse_goals(mapping) == parse_goals(texts)
    assert {goal.metric: goal.text for goal in parse_goals(texts)} == mapping
    assert parse_goals(None) == ()


def test_doubled_and_formless_goals_are_refused() -> None:
    with pytest.raises(ConfigError, match="'size' is given twice"):
        parse_goals(["size=max 10%", "size=max 20%"])
    with pytest.raises(ConfigError, match="metric=value"):
        parse_goals(["small please"])


UNITS = [(metric, word, unit) for metric, (word, units, _) in METRICS.items() for unit in units]


@given(st.sampled_from(UNITS), st.decimals(0, 10**9, places=3), st.sampled_from(["", " ", "  "]))
def test_every_unit_scales_its_number(form: tuple[str, str, str], number: Any, space: str) -> None:
    metric, word, unit = form
    goal = parse_goal(metric, f"{word} {number}{space}{unit}")
    assert goal.limit == pytest.approx(float(number) * float(METRICS[metric][1][unit]), rel=1e-12)
    assert goal.relative == (unit == "%")
    assert parse_goals([str(goal)]) == (goal,)


@given(st.text(), st.text())
def test_any_text_parses_or_is_a_config_error(metric: str, value: str) -> None:
    for name in (metric, "size", "accuracy"):
        try:
            goal = parse_goal(name, value)
        except ConfigError as problem:
            assert problem.hint
        else:
            assert goal.limit >= 0
