"""Selection: each rule of `edgesdk.select` by name, on candidates made for it."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.bounds import wilson_lower95
from edgesdk.documents import build_document, selection_card, write_selection
from edgesdk.errors import ConfigError, Unmeasured
from edgesdk.files import read_document
from edgesdk.record import AccuracyRecord, BaselineRecord, BuildRecord, CandidateRecord
from edgesdk.select import check_measurable, rows_needed, select
from edgesdk.testing.sample_record import HOSTILE, sample_record


def candidate(
    name: str, p50: float | None = 1.0, p90: float | None = None, half: float = 0.01, size: int = 1000,
    accuracy: float | None = 0.9, rows: int = 100_000, rss: int | None = 1_000_000, energy: float | None = None,
    instructions: int | None = None, rounds: list[int] | None = None, reasons: list[str] | None = None,
) -> CandidateRecord:
    """A measured candidate: p50 in ms with an interval of ± `half`, a share of it."""
    timed = p50 is not None
    measurement = {
        "latency_ms": {
            "p50": p50, "p90": p90 or (p50 and p50 * 1.1), "rounds": 3 if timed else 0, "labels": [],
            "ci95": [p50 * (1 - half), p50 * (1 + half)] if p50 is not None else [None, None],
            "provenance": "measured" if timed else "unmeasured",
        },
        "instructions": {
            "value": instructions, "provenance": "emulated" if instructions else "unmeasured",
            "rounds": rounds or [instructions],
        },
        "peak_rss_bytes": {
            "value": rss, "provenance": "measured" if rss else "unmeasured",
            "reason": None if rss else "under qemu-user",
        },
        "energy_mj": {
            "value": energy, "boundary": "board_input" if energy else None,
            "provenance": "measured" if energy else "unmeasured", "reason": None if energy else "no power sensor: none",
        },
        "valid": not reasons, "reasons": reasons or [],
    }
    record = None
    if accuracy is not None:
        record = AccuracyRecord(accuracy, wilson_lower95(accuracy, rows), rows, "measured")
    return CandidateRecord(
        name, "w8a8", "neon", "int8", f"out/{name}", size, size + 10, "0" * 64, measurement=measurement, accuracy=record
    )


def build(*candidates: CandidateRecord, goals: Mapping[str, str] | None = None, emulated: bool = False) -> BuildRecord:
    return BuildRecord(
        "model", "host", "host", "emulated" if emulated else "measured", "2026-11-22T12:00:00Z", "model.edgepkg",
        "sha256:0", 0, goals or {}, BaselineRecord(0.9, 1000, 10_000, "measured"), {}, candidates,
    )


def test_lowest_p90_wins_by_default() -> None:
    selection = select(build(candidate("slow", 2.0), candidate("fast", 1.0), candidate("middle", 1.5)))
    assert (selection.selected, selection.ranked_by) == ("fast", "latency_p90")
    assert selection.ranking == ("fast", "middle", "slow")
    assert selection.goals == ("accuracy: max-degradation 1",)
    assert selection.why_not == {"slow": "p90 2.20 ms > 1.10 ms of fast", "middle": "p90 1.65 ms > 1.10 ms of fast"}
    assert "lowest p90" in selection.reason and "3 candidates" in selection.reason


def test_accuracy_goal_holds_where_none_is_asked() -> None:
    record = build(candidate("fast", 1.0, accuracy=0.886), candidate("slow", 2.0))
    selection = select(record, {"latency_p90": "max 9ms"})
    assert selection.selected == "slow"
    assert selection.why_not["fast"] == "accuracy 88.6 % loses 1.4 points > 1"


def test_accuracy_goal_at_exactly_its_limit_is_met() -> None:
    assert select(build(candidate("edge", accuracy=0.89))).selected == "edge"


def test_accuracy_goal_relative_to_the_baseline() -> None:
    record = build(candidate("fast", 1.0, accuracy=0.8905), candidate("slow", 2.0, accuracy=0.8915))
    selection = select(record, ["accuracy=max-degradation 1%"])
    assert selection.selected == "slow"
    assert selection.why_not["fast"] == "accuracy 89.0 % loses 1.056 % of the baseline's > 1"


def test_accuracy_is_held_against_the_reference_on_the_same_rows() -> None:
    sampled = candidate("sampled", accuracy=0.85)
    accuracy = AccuracyRecord(0.85, 0.8, 100, "emulated", baseline=0.855)
    record = build(CandidateRecord(**{**vars(sampled), "accuracy": accuracy}))
    assert select(record).selected == "sampled"


def test_accuracy_that_the_lower_bound_does_not_prove_gets_a_note_with_the_rows() -> None:
    selection = select(build(candidate("small", accuracy=0.9, rows=360)))
    assert selection.selected == "small"
    (note,) = selection.notes
    assert note.startswith("small: unproven: needs 2,649 rows (lower 95 % bound 87.1 % < 89.0 %, n = 360)")
    assert select(build(candidate("large", accuracy=0.9, rows=2649))).notes == ()


@given(st.floats(0.02, 0.999), st.floats(0.001, 0.3))
def test_rows_needed_is_the_least_number_that_proves(value: float, margin: float) -> None:
    floor = value - margin
    if floor <= 0:
        return
    rows = rows_needed(value, floor)
    assert rows is not None
    assert wilson_lower95(value, rows) >= floor - 1e-9
    assert rows == 1 or wilson_lower95(value, rows - 1) < floor + 1e-9


def test_no_number_of_rows_proves_a_goal_at_its_limit() -> None:
    assert rows_needed(0.9, 0.9) is None
    assert "no number of rows" in select(build(candidate("edge", accuracy=0.89))).notes[0]


def test_latency_goals_use_upper_bounds() -> None:
    wide = candidate("wide", 1.0, p90=1.02, half=0.2)
    record = build(wide, candidate("slow", 1.15, p90=1.16, half=0.001))
    selection = select(record, {"latency_p50": "max 1.18ms"})
    assert selection.selected == "slow"
    assert selection.why_not["wide"] == "p50 1.20 ms > 1.18 ms"
    assert select(record, {"latency_p90": "max 1.18ms"}).why_not["wide"] == "p90 1.20 ms > 1.18 ms"
    assert select(build(wide), {"latency_p90": "max 1.2ms"}).selected == "wide"


def test_size_in_percent_of_the_baseline_and_in_bytes() -> None:
    record = build(candidate("large", 1.0, size=1001), candidate("small", 2.0, size=1000))
    percent = select(record, {"size": "max 10%"})
    assert percent.selected == "small"
    assert percent.why_not["large"] == "size 1.00 kB is 10.01 % of the fp32 ONNX > 10 %"
    bytes = select(record, {"size": "max 1kB"})
    assert (bytes.selected, bytes.why_not["large"]) == ("small", "size 1.001 kB > 1.000 kB")


def test_peak_rss_energy_and_instruction_goals() -> None:
    record = build(candidate("hungry", 1.0, rss=9_000_000, energy=3.0), candidate("lean", 2.0, energy=1.0))
    assert select(record, {"peak_rss": "max 8MB"}).why_not["hungry"] == "peak RSS 9.00 MB > 8.00 MB"
    assert select(record, {"energy": "max 2mJ"}).why_not["hungry"] == "energy 3.00 mJ > 2.00 mJ"
    counted = build(
        candidate("many", None, instructions=4_000_000), candidate("few", None, instructions=2_000_000), emulated=True
    )
    assert select(counted, {"instructions": "max 3M"}).why_not["many"] == "instructions 4.00 M > 3.00 M"


def test_every_broken_goal_is_named() -> None:
    record = build(candidate("bad", 5.0, accuracy=0.5, size=5000), candidate("good"))
    reason = select(record, {"size": "max 2kB", "latency_p90": "max 2ms"}).why_not["bad"]
    assert reason == "accuracy 50.0 % loses 40 points > 1; size 5.00 kB > 2.00 kB; p90 5.50 ms > 2.00 ms"


def test_tie_within_the_interval_takes_the_smaller_file() -> None:
    tied = candidate("fast", 1.0, size=2000), candidate("small", 1.015, size=1000)
    selection = select(build(*tied, candidate("slow", 2.0, size=1)))
    assert selection.selected == "small"
    assert selection.ranking == ("small", "fast", "slow")
    assert selection.why_not["fast"] == "tie with small within the interval of p50; small is smaller: 1.00 kB < 2.00 kB"
    assert selection.why_not["slow"] == "p90 2.20 ms > 1.12 ms of small"
    assert "2 candidates tie; the smaller file decides" in selection.notes[0]


def test_tie_takes_less_energy_where_all_of_them_were_measured() -> None:
    thrifty = candidate("thrifty", 1.015, size=2000, energy=1.0)
    selection = select(build(candidate("fast", 1.0, energy=2.0), thrifty))
    assert selection.selected == "thrifty"
    assert "takes less energy: 1.00 mJ < 2.00 mJ" in selection.why_not["fast"]
    assert select(build(candidate("fast", 1.0), thrifty)).selected == "fast"


def test_tie_of_equal_files_takes_the_lower_p90() -> None:
    selection = select(build(candidate("a", 1.01), candidate("b", 1.0)))
    assert selection.selected == "b"
    assert "has the lower p90: 1.10 ms < 1.11 ms" in selection.why_not["a"]
    equal = select(build(candidate("b", 1.0), candidate("a", 1.0)))
    assert equal.selected == "a" and "first by name" in equal.why_not["b"]


def with_rounds(one: CandidateRecord, *medians: int) -> CandidateRecord:
    """The candidate with interleaved rounds of these medians in ns."""
    rounds = [{"index": index, "p50_ns": value} for index, value in enumerate(medians)]
    return dataclasses.replace(one, measurement={**(one.measurement or {}), "rounds": rounds})


def test_interleaved_rounds_tell_candidates_apart_whose_intervals_overlap() -> None:
    """Each round was disturbed, both candidates alike: their ratio is sure, so the faster one wins, not the smaller."""
    fast = with_rounds(candidate("fast", p50=1.0, half=0.5, size=2000), 800, 1000, 1250)
    small = with_rounds(candidate("small", p50=1.2, half=0.5, size=1000), 960, 1202, 1499)
    assert select(build(fast, small)).selected == "fast"
    scattered = with_rounds(small, 1500, 900, 1202)
    assert select(build(fast, scattered)).selected == "small"


def test_a_file_that_is_hardly_smaller_does_not_win_a_tie() -> None:
    """Below 5 % the lower p90 decides."""
    fast = candidate("fast", p50=1.0, half=0.5, size=1040)
    small = candidate("small", p50=1.2, half=0.5, size=1000)
    assert select(build(fast, small)).selected == "fast"
    assert select(build(candidate("fast", p50=1.0, half=0.5, size=1060), small)).selected == "small"


def test_one_step_of_overlap_is_not_passed_on() -> None:
    chain = build(candidate("a", 1.0, size=3), candidate("b", 1.015, size=2), candidate("c", 1.03, size=1))
    selection = select(chain)
    assert selection.selected == "b"
    assert selection.why_not["c"] == "p90 1.13 ms > 1.12 ms of b"


def test_loser_that_is_faster_than_the_tied_winner_is_held_against_the_fastest() -> None:
    record = build(
        candidate("fast", 1.0, p90=1.1, size=9), candidate("small", 1.0, p90=1.5, size=1),
        candidate("other", 1.2, p90=1.3, size=5),
    )
    selection = select(record)
    assert selection.selected == "small"
    assert selection.why_not["other"] == "p90 1.30 ms > 1.10 ms of fast"


def test_float_candidates_take_part() -> None:
    stay = CandidateRecord(**{**vars(candidate("fp32", 1.0)), "scheme": "fp32"})
    assert select(build(stay, candidate("int8", 2.0))).selected == "fp32"


def test_invalid_and_refused_candidates_lose_with_their_reasons() -> None:
    record = build(
        candidate("crash", 0.1, reasons=["crashed: SIGILL"]), candidate("good"),
        CandidateRecord("refused", "w8a8", "tflite", "int8", refused=("op Erf: no kernel", "op Foo: no kernel")),
        CandidateRecord("lost", "w8a8", "tflite", "int8"),
    )
    selection = select(record)
    assert selection.selected == "good"
    assert selection.why_not == {
        "crash": "crashed: SIGILL", "refused": "op Erf: no kernel; op Foo: no kernel", "lost": "not measured",
    }


def test_nothing_is_selected_where_no_candidate_is_valid() -> None:
    record = build(candidate("crash", reasons=["crashed"]), goals={"energy": "max 1mJ"})
    selection = select(record)
    assert (selection.selected, selection.ranking, selection.reason) == (None, (), "no candidate is valid")
    assert selection.why_not == {"crash": "crashed"}


def test_nothing_is_selected_where_no_candidate_meets_the_goals() -> None:
    selection = select(build(candidate("slow")), {"latency_p90": "max 0.5ms"})
    assert (selection.selected, selection.reason) == (None, "no candidate meets the goals")
    assert selection.why_not == {"slow": "p90 1.10 ms > 0.500 ms"}


def test_emulated_candidates_rank_by_instructions_whatever_their_times_say() -> None:
    record = build(
        candidate("few", 9.0, instructions=1_000_000), candidate("many", 1.0, instructions=1_400_000), emulated=True
    )
    selection = select(record)
    assert (selection.selected, selection.ranked_by) == ("few", "instructions")
    assert selection.why_not["many"] == "instructions 1.40 M > 1.00 M of few"


def test_emulated_tie_is_an_overlap_of_the_rounds() -> None:
    record = build(
        candidate("large", None, instructions=1000, rounds=[998, 1002], size=2),
        candidate("small", None, instructions=1003, rounds=[1001, 1005], size=1), emulated=True,
    )
    assert select(record).selected == "small"


@pytest.mark.parametrize("goal", ["latency_p50=max 30ms", "latency_p90=max 30ms"])
def test_time_is_refused_on_emulated_boards(goal: str) -> None:
    record = build(candidate("few", 1.0, energy=1.0, instructions=100), emulated=True)
    for ask in (lambda: select(record, [goal]), lambda: check_measurable([goal], "emulated")):
        with pytest.raises(Unmeasured, match="emulated board measures no time|measured for no") as caught:
            ask()
        assert caught.value.exit_code == 6 and "instructions" in caught.value.hint
    check_measurable([goal], "measured")


def test_replayed_energy_of_an_emulated_board_chooses() -> None:
    """Where recorded readings are replayed there are joules, called emulated; without any the goal is refused."""
    check_measurable(["energy=max 2mJ"], "emulated")
    record = build(
        candidate("hungry", 1.0, energy=3.0, instructions=100), candidate("lean", 2.0, energy=1.0, instructions=200),
        emulated=True,
    )
    selection = select(record, {"energy": "max 2mJ"})
    assert (selection.selected, selection.why_not["hungry"]) == ("lean", "energy 3.00 mJ > 2.00 mJ")
    with pytest.raises(Unmeasured, match="no power sensor: none"):
        select(build(candidate("blind", 1.0, instructions=100), emulated=True), {"energy": "max 2mJ"})


@pytest.mark.parametrize(
    ("goal", "why"), [("energy=max 5mJ", "no power sensor: none"), ("peak_rss=max 1MB", "under qemu-user"),
                      ("instructions=max 3M", "counted on emulated boards only")],
)
def test_goal_on_something_unmeasured_is_refused_with_the_reason(goal: str, why: str) -> None:
    with pytest.raises(Unmeasured, match=why):
        select(build(candidate("a", rss=None), candidate("b", rss=None)), [goal])


def test_one_unmeasured_candidate_loses_alone() -> None:
    record = build(candidate("blind", 1.0, rss=None), candidate("seen", 2.0))
    selection = select(record, ["peak_rss=max 8MB"])
    assert (selection.selected, selection.why_not) == ("seen", {"blind": "peak_rss: under qemu-user"})


def test_board_that_measured_nothing_to_rank_by_is_refused() -> None:
    with pytest.raises(Unmeasured, match="nothing to rank the candidates by"):
        select(build(candidate("a", None), emulated=True))


def test_accuracy_goal_without_evaluation_data() -> None:
    record = build(candidate("a", accuracy=None))
    assert select(record).notes == ("accuracy was not measured, so it is not judged",)
    with pytest.raises(Unmeasured, match="accuracy"):
        select(record, ["accuracy=max-degradation 1"])


def test_goals_of_the_record_are_the_default() -> None:
    record = build(candidate("a"), goals={"size": "max 1%"})
    assert select(record).selected is None
    assert select(record, {"size": "max 50%"}).selected == "a"
    with pytest.raises(ConfigError):
        select(record, {"sise": "max 50%"})


@given(st.lists(st.tuples(st.floats(0.5, 5), st.floats(0, 0.3), st.integers(1, 9), st.floats(0.8, 1)), max_size=8))
def test_every_candidate_is_selected_or_has_a_reason(figures: list[tuple[float, float, int, float]]) -> None:
    names = [f"c{index}" for index in range(len(figures))]
    record = build(*(
        candidate(name, p50, half=half, size=size, accuracy=accuracy)
        for name, (p50, half, size, accuracy) in zip(names, figures, strict=True)
    ))
    selection = select(record)
    assert {*selection.why_not, *([selection.selected] if selection.selected else [])} == set(names)
    assert selection.selected not in selection.why_not
    assert all(selection.why_not.values())
    assert selection.selected == (selection.ranking[0] if selection.ranking else None)


DOCUMENT = {
    "format": str, "version": int, "target": str, "board": str, "package": str, "report": str, "selected": str,
    "baseline": {"accuracy": float, "n": int, "bytes": int, "provenance": str}, "why_not": dict, "candidates": list,
}
CANDIDATE = {
    "name": str, "scheme": str, "converter": str, "recipe": str, "valid": bool, "reasons": list,
    "artifact": {"path": str, "bytes": int, "bytes_with_runtime": int, "sha256": str},
    "accuracy": {"value": float, "lower95": float, "n": int, "provenance": str},
    "latency_ms": {"p50": float, "p90": float, "ci95": list, "rounds": int, "provenance": str, "labels": list},
    "instructions": {"value": int, "provenance": str}, "peak_rss_bytes": {"value": int, "provenance": str},
    "energy_mj": {"value": float, "boundary": str, "provenance": str, "reason": str},
}


def matches(value: Any, shape: Any) -> bool:
    if isinstance(shape, dict):
        return set(value) == set(shape) and all(matches(value[key], shape[key]) for key in shape)
    return value is None or type(value) is shape


@pytest.mark.parametrize("emulated", [False, True])
def test_build_document_has_the_promised_form(tmp_path: Path, emulated: bool) -> None:
    record = sample_record(tmp_path, emulated=emulated)
    selection = select(record)
    document = json.loads(json.dumps(build_document(record, selection, tmp_path / "report.html"), allow_nan=False))
    assert matches(document, DOCUMENT)
    assert [matches(entry, CANDIDATE) for entry in document["candidates"]] == [True] * len(record.candidates)
    assert document["selected"] == selection.selected
    entries = {entry["name"]: entry for entry in document["candidates"]}
    chosen, refused = entries[document["selected"]], entries["digits-int8-dynamic-tflite"]
    assert (refused["valid"], refused["latency_ms"]["ci95"]) == (False, [None, None])
    assert refused["energy_mj"]["provenance"] == refused["accuracy"]["provenance"] == "unmeasured"
    assert (chosen["latency_ms"]["p50"] is None) == emulated == (chosen["instructions"]["value"] is not None)


def test_selection_is_written_as_json_and_as_a_card(tmp_path: Path) -> None:
    record = sample_record(tmp_path / "raw", hostile=True)
    selection = select(record)
    path, card = write_selection(record, selection, tmp_path)
    document = read_document(path, "edgesdk.selection", 1, ConfigError)
    assert document["selected"] == selection.selected == "digits-small-neon"
    assert document["artifact"]["artifact"]["sha256"] == document["artifact"]["artifact"]["sha256"].lower()
    assert set(document["why_not"]) | {document["selected"]} == {entry.name for entry in record.candidates}
    text = card.read_text()
    assert text == selection_card(record, selection)
    assert "# digits-small-neon" in text and "| accuracy | 96.7 %" in text and "measured |" in text
    assert "<script>" not in text.replace("\\<", "")
    assert HOSTILE not in text


def test_wilson_bound_at_its_ends() -> None:
    assert wilson_lower95(1.0, 0) == 0.0
    assert wilson_lower95(0.0, 50) == pytest.approx(0.0, abs=1e-12)
    assert math.isclose(wilson_lower95(1.0, 50), 1 / (1 + 1.6448536269514722**2 / 50))


@pytest.mark.parametrize(("goal", "provenance", "why"), [
    ("instructions=max 3M", "measured", "emulated boards only"),
    ("peak_rss=max 64MB", "emulated", "qemu-user"),
])
def test_what_a_board_cannot_answer_is_refused_before_any_work(goal: str, provenance: str, why: str) -> None:
    with pytest.raises(Unmeasured, match=why):
        check_measurable([goal], provenance)
    check_measurable(["size=max 30%", "accuracy=max-degradation 1"], provenance)
