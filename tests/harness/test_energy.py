"""Energy from samples: known integrals, wraps and gaps, the figure of a run, and files that hold anything."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from harness_power import header, idle, log_lines, window
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.errors import MeasureError
from edgesdk.harness.energy.figure import energy_figure
from edgesdk.harness.energy.integrate import energy_between, series, unwrap
from edgesdk.harness.energy.log import Segment, read_log
from edgesdk.harness.energy.plan import PLANS, energy_plan, needed_seconds
from edgesdk.harness.worker.power_window import has_gap, window_seconds

IDLE_W, BUSY_W = 3.0, 8.0


def watts(time_s: float) -> float:
    """A board: idle until 40 s, busy until 340 s with a wave of 1 W, idle again."""
    if not 40 <= time_s <= 340:
        return IDLE_W
    return BUSY_W + math.sin(2 * math.pi * time_s / 7)


def joules(start_s: float, end_s: float) -> float:
    """The integral of `watts` while busy."""
    wave = 7 / (2 * math.pi) * (math.cos(2 * math.pi * start_s / 7) - math.cos(2 * math.pi * end_s / 7))
    return BUSY_W * (end_s - start_s) + wave


def run_entries(period_s: float = 0.05, after_w: float = IDLE_W, **changes: Any) -> list[Any]:
    """A whole run: samples with jitter, five windows of 50 s, bare windows, idle before and after."""
    random = np.random.default_rng(1)
    times = np.arange(0, 380, period_s)
    times = times + random.uniform(0, period_s / 5, len(times))
    samples = [
        [int(t * 1e9), round(1e6 * (after_w if t > 340 else watts(t))), None if index % 10 else 5]
        for index, t in enumerate(times)
    ]
    start_of_run = [{"event": "attempt", "attempt": 0}, header(period_ns=int(period_s * 1e9), **changes)]
    entries: list[Any] = [*start_of_run, *samples]
    for index in range(5):
        start = 45.013 + 57 * index
        entries.append(window(index, start, start + 50.021, inferences=2500))
        entries.append({
            "event": "bare", "index": index, "start_ns": None, "end_ns": None, "inferences": 9, "p50_ns": 19_900_000,
        })
    return [*entries, idle("before", 2, 35), idle("after", 343, 378), {"event": "end"}]


def figure(entries: list[Any], **changes: Any) -> dict[str, Any]:
    """The figure of a nightly run on a real board."""
    options: dict[str, Any] = {"profile": "nightly", "provenance": "measured", "lenient": False, **changes}
    return energy_figure(log_lines(*entries), **options)


def test_known_integral() -> None:
    """Gross and net within 0.1 % of what the wave's integral says, each window too."""
    found = figure(run_entries(), latency_p50_ms=20.0)
    assert found["provenance"] == "measured" and found["reason"] is None and found["boundary"] == "board_input"
    truths = []
    for entry in found["windows"]:
        truth = joules(entry["start_ns"] / 1e9, entry["end_ns"] / 1e9)
        assert entry["joules"] == pytest.approx(truth, rel=1e-3)
        truths.append(1e3 * truth / 2500)
    assert found["value"] == pytest.approx(float(np.median(truths)), rel=1e-3)
    assert found["net"] == pytest.approx(found["value"] - 1e3 * IDLE_W * 50.021 / 2500, rel=1e-9)
    assert found["idle_mw"] == pytest.approx(3000)
    assert found["power_mw"] == pytest.approx(8000, rel=0.03)
    low, high = found["ci95"]
    assert low <= found["value"] <= high
    assert found["labels"] == [] and found["kind"] == "gross"
    # 1.5 % of gain is the largest part; the edges of 50 s at 20 Hz and windows that differ add little.
    assert 0.015 * found["value"] <= found["uncertainty"] < 0.02 * found["value"]
    assert found["sampler"]["value"] == pytest.approx(0.1 / 19.9) and found["sampler"]["pairs"] == 5


def test_edges_are_interpolated() -> None:
    """A ramp sampled once a second, from 0.5 s to 2.25 s: the exact integral, to rounding."""
    segment = Segment("x", "wall", ("a",), ("a",), "uW", 10**9, rows=[[n * 10**9, n * 10**6] for n in range(5)])
    energy = energy_between(series(segment), 500_000_000, 2_250_000_000)
    assert energy.fault == "" and energy.samples == 2
    assert energy.joules == pytest.approx((2.25**2 - 0.5**2) / 2, rel=1e-12)


@given(
    st.lists(st.integers(1, 1000), min_size=3, max_size=40), st.integers(0, 999), st.floats(0, 1), st.floats(0, 1)
)
def test_trapezoid_is_that_of_a_fine_grid(steps: list[int], first: int, one: float, other: float) -> None:
    """Any polygon of powers between any edges: the integral of the same polygon on a fine grid."""
    times = [0, *np.cumsum([50_000_000 + step for step in steps]).tolist()]
    values = [(first * (index + 7) ** 2) % 10_000_000 for index in range(len(times))]
    rows: list[list[int | None]] = [[time, value] for time, value in zip(times, values, strict=True)]
    found = series(Segment("x", "wall", ("a",), ("a",), "uW", 50_000_000, rows=rows))
    start, end = sorted(int(part * times[-1]) for part in (one, other))
    energy = energy_between(found, start, end)
    assert energy.fault == ""
    grid = np.unique(np.concatenate([np.linspace(start, end, 2001), [t for t in times if start <= t <= end]]))
    truth = np.trapezoid(np.interp(grid, times, values), grid) / 1e15
    assert energy.joules == pytest.approx(float(truth), rel=1e-6, abs=1e-9)


@given(st.lists(st.integers(0, 90), min_size=1, max_size=60), st.integers(0, 1000))
def test_wraps_are_added(steps: list[int], start: int) -> None:
    """A counter of range 1000 that counts any steps below 10 % of it: their sum, however often it wrapped."""
    values = np.array([[(start + sum(steps[:count])) % 1001] for count in range(len(steps) + 1)], dtype=np.int64)
    counted, fault = unwrap(values, [1000])
    assert fault == "" and counted[:, 0].tolist() == [sum(steps[:count]) for count in range(len(steps) + 1)]


def test_a_counter_that_was_reset_is_refused() -> None:
    """Smaller, and it was not near its end."""
    assert "reset" in unwrap(np.array([[500], [600], [5]], dtype=np.int64), [1000])[1]
    assert "reset" in unwrap(np.array([[500], [1600]], dtype=np.int64), [1000])[1]


def test_a_counter_gives_the_same_energy_as_its_power() -> None:
    """RAPL of two packages, one of which wraps: microjoules instead of microwatts, the same figure."""
    limit = 500_000_000
    entries = run_entries()
    counted: list[Any] = []
    total = 0.0
    last = 0
    for entry in entries:
        if isinstance(entry, list):
            total += entry[1] * (entry[0] - last) / 1e9
            last = entry[0]
            counted.append([entry[0], int(total) % (limit + 1), 7])
        else:
            counted.append(entry)
    counted[1] = header(
        sensor="rapl", boundary="cpu_package", rails=["package-0", "package-1"], total=["package-0", "package-1"],
        unit="uJ", ranges=[limit, limit],
    )
    by_power, by_counter = figure(entries), figure(counted)
    assert by_counter["boundary"] == "cpu_package" and by_counter["reason"] is None
    assert by_counter["value"] == pytest.approx(by_power["value"], rel=2e-3)
    assert by_counter["idle_mw"] == pytest.approx(by_power["idle_mw"], rel=1e-6)


def drop(entries: list[Any], start_s: float, end_s: float, every: int = 1) -> list[Any]:
    """Without (each `every`-th of) the samples between two moments."""
    kept = []
    for index, entry in enumerate(entries):
        inside = isinstance(entry, list) and start_s < entry[0] / 1e9 < end_s
        if not inside or index % every:
            kept.append(entry)
    return kept


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda entries: drop(entries, 60, 60.3), "window 0: no sample for"),
        (lambda entries: drop(entries, 160, 200, 10), "window 2: 80 of"),
        (lambda entries: drop(entries, 300, 400), "window 4: the samples do not cover the window"),
        (lambda entries: [entry for entry in entries if not isinstance(entry, list)], "samples"),
        (lambda entries: [entry for entry in entries if "index" not in entry], "no windows"),
    ],
)
def test_gaps_cost_the_energy(change: Any, words: str) -> None:
    """More than three periods, or more than 2 % lost: no figure, with the code and the window."""
    found = figure(change(run_entries()))
    assert found["value"] is None and found["provenance"] == "unmeasured"
    assert found["reason"].startswith("E_SAMPLE_GAP") and words in found["reason"]


@given(st.lists(st.integers(0, 60), max_size=12), st.floats(0, 1), st.floats(0, 1))
def test_board_and_host_agree_on_gaps(lost: list[int], one: float, other: float) -> None:
    """The worker runs a window again where the host would refuse it, and only there."""
    times = [50_000_000 * n for n in range(61) if n not in lost]
    start, end = sorted(int(part * 3e9) for part in (one, other))
    rows: list[list[int | None]] = [[time, 1] for time in times]
    found = series(Segment("x", "wall", ("a",), ("a",), "uW", 50_000_000, rows=rows))
    assert has_gap((times, 50_000_000), start, end) == bool(energy_between(found, start, end).fault)


def test_a_window_that_was_run_again() -> None:
    """The last try counts, both are in the file."""
    entries = run_entries()
    place = entries.index(next(entry for entry in entries if "inferences" in entry))
    first = window(0, 41, 42, inferences=1)
    found = figure([*entries[:place], first, *entries[place:]])
    assert found["windows_run"] == 6 and len(found["windows"]) == 5
    assert found["value"] == figure(entries)["value"]


def test_few_lost_samples_are_bridged() -> None:
    """1 % is within the rules."""
    found = figure(drop(run_entries(), 0, 400, 100))
    assert found["reason"] is None and found["value"] == pytest.approx(figure(run_entries())["value"], rel=1e-3)


def test_idle_that_shifts() -> None:
    """E_IDLE_SHIFT refuses; a lenient run is labelled; both sides of both limits."""
    for after, shifted in ((3.09, False), (3.11, True), (2.89, True), (2.91, False)):
        found = figure(run_entries(after_w=after))
        assert (found["value"] is None) == shifted, after
    assert found["reason"] is None
    refused = figure(run_entries(after_w=3.2))
    assert refused["reason"].startswith("E_IDLE_SHIFT: idle power was 3 W before and 3.2 W after")
    lenient = figure(run_entries(after_w=3.2), lenient=True)
    assert lenient["labels"] == ["idle_shift"] and lenient["idle_mw"] == pytest.approx(3100)
    missing = figure([e for e in run_entries() if not isinstance(e, dict) or e.get("when") != "after"])
    assert missing["reason"] == "E_IDLE_SHIFT: the idle power before or after the windows is missing"


def test_only_the_last_attempt_counts() -> None:
    """An attempt whose idle shifted is kept in the file and not in the figure."""
    first = [entry for entry in run_entries(after_w=4.0) if isinstance(entry, dict) and "event" in entry]
    found = figure([*first, *run_entries()])
    assert found["reason"] is None and found["attempts"] == 2 and len(found["windows"]) == 5


def test_labels_of_what_is_short() -> None:
    """Three windows of 3 s and 3 s of idle, with a sampler that costs 5 %, on a fed sensor."""
    entries: list[Any] = [header(replayed=True), *([n * 50_000_000, 5_000_000, 0] for n in range(2000))]
    for index in range(3):
        entries.append(window(index, 10 + 5 * index, 13 + 5 * index, p50_ns=21_000_000))
        entries.append({"event": "bare", "index": index, "inferences": 1, "p50_ns": 20_000_000})
    found = figure([*entries, idle("before", 1, 4), idle("after", 40, 43)], latency_p50_ms=20.0)
    assert found["labels"] == [
        "few_samples", "few_windows", "latency_differs", "net_not_positive", "replayed", "sampler_intrusive",
        "short_idle", "short_windows",
    ]
    assert found["provenance"] == "emulated" and found["value"] == pytest.approx(150)


def test_windows_and_idle_beside_another_board_are_labelled() -> None:
    """Of a window that was run again the last try counts; files of before say nothing of turns."""
    def labels(*events: dict[str, Any]) -> set[str]:
        return set(figure([*run_entries()[:-1], *events, {"event": "end"}])["labels"])

    again = window(4, 273.013, 323.034, inferences=2500)
    assert not {"unserialized", "shared_machine"} & (labels() | labels(again | {"turn": "held"}))
    assert "unserialized" in labels(idle("after", 343, 378) | {"turn": "no_lock"})
    assert "shared_machine" in labels(again | {"turn": "overdue"})
    assert "shared_machine" not in labels(again | {"turn": "overdue"}, again | {"turn": "held"})
    found = figure([*run_entries(), again | {"turn": "alone"}])
    assert found["value"] is None and "turn 'alone'" in found["reason"]


def test_the_pmic_is_uncalibrated() -> None:
    """Its rails are not the board: label and a fifth of uncertainty."""
    found = figure(run_entries(sensor="pmic", boundary="pmic_rails"))
    assert found["boundary"] == "pmic_rails" and "uncalibrated" in found["labels"]
    assert found["uncertainty"] >= 0.2 * found["value"]


SLOW_RUN = json.dumps(run_entries(period_s=1.0))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4), max_leaves=8,
)


@given(st.binary(max_size=300))
def test_junk_is_a_reason(data: bytes) -> None:
    """Bytes of any kind."""
    found = energy_figure(data, "smoke", "measured", True)
    assert found["value"] is None and found["reason"]


@given(st.data())
def test_mutated_logs_are_a_reason_or_a_figure(data: st.DataObject) -> None:
    """A run in which any value of any entry became anything: a finite figure, or a reason; never an exception."""
    entries = json.loads(SLOW_RUN)
    for _ in range(data.draw(st.integers(1, 3))):
        entry = entries[data.draw(st.integers(0, len(entries) - 1))]
        if entry:
            key = data.draw(st.sampled_from(list(entry) if isinstance(entry, dict) else range(len(entry))))
            entry[key] = data.draw(JSON | st.integers(-(2**70), 2**70))
    found = energy_figure(log_lines(*entries), "smoke", "measured", True)
    assert found["reason"] if found["value"] is None else math.isfinite(found["value"])
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    "change",
    [
        {"boundary": "estimate"}, {"total": ["X"]}, {"total": []}, {"unit": "W"}, {"period_ns": 0}, {"version": 2},
        {"rails": ["a"] * 2}, {"rails": [f"r{n}" for n in range(65)]}, {"sensor": ""}, {"unit": "uJ", "ranges": [1]},
        {"gain": [0.1]}, {"gain": [-1, 0]}, {"offset_ns": 1.5},
    ],
)
def test_headers_are_checked(change: dict[str, Any]) -> None:
    """Each is refused where it is read, with its line."""
    with pytest.raises(MeasureError, match="line 2: not a sampler's"):
        read_log(log_lines({"event": "attempt", "attempt": 0}, header(**change)), "x")


def test_windows_are_as_long_as_the_sensor_needs() -> None:
    """Nightly: 10 s at 100 Hz, 30 s at 20 Hz, 60 s at 10 Hz, 300 s with a plug; smoke is short and says so."""
    nightly = PLANS["nightly"].worker_numbers()
    assert [window_seconds(nightly, period) for period in (0.01, 0.05, 0.1)] == [10, 30, 60]
    assert window_seconds(energy_plan("nightly", 1.0).worker_numbers(), 1.0) == 300
    assert [needed_seconds(period) for period in (0.001, 0.05, 0.1, 1.0)] == [10, 30, 60, 300]
    assert window_seconds(energy_plan("smoke").worker_numbers(), 0.1) == 3
    assert window_seconds(energy_plan("smoke", 1.0).worker_numbers(), 1.0) == 12
