"""The energy part of a measurement from end to end: fed sensors, the sampler's process, verification, selection."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness_artifacts import runner, runner_artifact
from harness_power import ina3221, windowed_runner

from edgesdk.errors import MeasureError
from edgesdk.files import canonical_json
from edgesdk.harness.board import Board
from edgesdk.harness.energy import meters, plan
from edgesdk.harness.energy.log import read_log
from edgesdk.harness.measure import load_profile, measure, verify_measurement
from edgesdk.harness.worker import sampler
from edgesdk.harness.worker.timing import now_ns
from edgesdk.record import BaselineRecord, BuildRecord, CandidateRecord
from edgesdk.select import select
from edgesdk.targets.target import Target

QUICK = load_profile("quick")
# Windows of a second, so that a fed power has the time to change in them.
SECONDS = plan.EnergyPlan(3, 1.0, 0, 1.0, 0.5, 0.02, 0.1, 1)


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /sys with an INA3221 at 6 W that the worker reads, and windows of a second."""
    root = tmp_path / "sys"
    ina3221(root, [("VDD_IN", 5000, 1200), ("NC", 0, 0), ("VDD_SOC", 5000, 300)])
    monkeypatch.setenv("EDGESDK_SYSFS", str(root))
    monkeypatch.setitem(plan.PLANS, "quick", SECONDS)
    return root


@contextlib.contextmanager
def fed(root: Path, watts: Callable[[float], float]) -> Iterator[None]:
    """Write `watts(seconds of CLOCK_MONOTONIC_RAW)` into VDD_IN a hundred times a second; 1 mV per mW at 1 A."""
    chip = next(root.glob("bus/i2c/drivers/ina3221/*/hwmon/*"))
    ended = threading.Event()

    def feed() -> None:
        (chip / "curr1_input").write_text("1000\n")
        while not ended.wait(0.01):
            (chip / ".part").write_text(f"{round(1000 * watts(now_ns() / 1e9))}\n")
            os.replace(chip / ".part", chip / "in1_input")

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def run(host: Board, target: Target, folder: Path, *candidates: Path) -> list[dict[str, Any]]:
    """Measure with the quick profile; documents verify."""
    documents = measure(
        host, target, candidates, evaluation=None, profile=QUICK, seed=1, workdir=folder / "work"
    )
    for document in documents:
        stored = verify_measurement(folder / "work" / document["artifact"])
        assert stored == json.loads(canonical_json(document))
    return documents


def test_replayed_readings_with_a_known_integral(host: Board, target: Target, sysfs: Path, tmp_path: Path) -> None:
    """A power that swings between 4 and 8 W: each window's energy is the integral within 1 %, and `emulated`."""

    def watts(seconds: float) -> float:
        return 6 + 2 * math.sin(2 * math.pi * seconds / 20)

    def truth(start: float, end: float) -> float:
        wave = math.cos(2 * math.pi * start / 20) - math.cos(2 * math.pi * end / 20)
        return 6 * (end - start) + 2 * 20 / (2 * math.pi) * wave

    with fed(sysfs, watts):
        (document,) = run(host, target, tmp_path, runner_artifact(tmp_path / "a", windowed_runner()))
    energy = document["energy_mj"]
    assert document["valid"], document["reasons"]
    assert energy["reason"] is None and (energy["provenance"], energy["boundary"]) == ("emulated", "board_input")
    assert document["facts"]["power"]["sensor"] == energy["sensor"] == "ina3221"
    assert len(energy["windows"]) == 3
    for window in energy["windows"]:
        start, end = window["start_ns"] / 1e9, window["end_ns"] / 1e9
        assert end - start >= 1
        assert window["joules"] == pytest.approx(truth(start, end), rel=0.01)
        assert window["gross_mj"] == pytest.approx(1e3 * window["joules"] / window["inferences"])
    assert {"replayed", "quick", "short_windows", "few_windows"} <= set(energy["labels"])
    assert energy["sampler"]["pairs"] == 3


def test_every_part_of_the_figure_is_verified(host: Board, target: Target, sysfs: Path, tmp_path: Path) -> None:
    """Whatever is changed in `energy_mj`, or in the raw file, is found."""
    (document,) = run(host, target, tmp_path, runner_artifact(tmp_path / "a", windowed_runner()))
    folder = tmp_path / "work" / document["artifact"]
    assert document["energy_mj"]["power_mw"] == pytest.approx(6000)
    changed = folder / "changed.json"
    for key, value in document["energy_mj"].items():
        other = json.loads(canonical_json(document))
        other["energy_mj"][key] = [] if value == "x" else "x"
        changed.write_bytes(canonical_json(other))
        if key == "lenient":
            continue  # what is asked, not what is found
        with pytest.raises(MeasureError, match="energy|leaves its folder|sha256|No such file"):
            verify_measurement(changed)
    (folder / "energy.jsonl").write_bytes((folder / "energy.jsonl").read_bytes().replace(b"6000000", b"5000000", 1))
    with pytest.raises(MeasureError, match="sha256 differs"):
        verify_measurement(folder)


def test_energy_decides_between_candidates(host: Board, target: Target, sysfs: Path, tmp_path: Path) -> None:
    """Two artifacts of the same board, one of them slower at the same power: a goal on energy lets only one through."""
    loop = b"        for _ in range(4):\n"
    slow = windowed_runner().replace(loop, loop + b"            time.sleep(0.001)\n")
    light = runner_artifact(tmp_path / "a", windowed_runner(), name="light")
    first, second = run(host, target, tmp_path, light, runner_artifact(tmp_path / "b", slow, name="heavy"))
    figures = [document["energy_mj"]["value"] for document in (first, second)]
    assert None not in figures and figures[1] > 1.5 * figures[0]
    candidates = tuple(
        CandidateRecord(
            document["name"], "fp32", "neon", "float", "out", 10, 10, document["artifact"], measurement=document
        )
        for document in (first, second)
    )
    record = BuildRecord(
        "model", "host", "host", "measured", "2026-11-22T12:00:00Z", "model.edgepkg", "sha256:0", 0, {},
        BaselineRecord(None, None, 10, "unmeasured"), {}, candidates,
    )
    limit = math.sqrt(figures[0] * figures[1])
    selection = select(record, {"energy": f"max {limit:.6f}mJ"})
    assert selection.selected == "light" and "energy" in selection.why_not["heavy"]


def test_idle_that_drifts_repeats_the_run(
    host: Board, target: Target, sysfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power that grows all the time: three attempts, all kept; on this machine a label says so."""
    monkeypatch.setitem(plan.PLANS, "quick", dataclasses.replace(SECONDS, tries=3, windows=1, window_seconds=0.3))
    with fed(sysfs, lambda seconds: 5 + (seconds % 1000) / 4):
        (document,) = run(host, target, tmp_path, runner_artifact(tmp_path / "a", windowed_runner()))
    assert document["energy_mj"]["attempts"] == 3 and "idle_shift" in document["energy_mj"]["labels"]
    data = (tmp_path / "work" / document["artifact"] / "energy.jsonl").read_bytes()
    assert data.count(b'"event": "attempt"') == 3 and data.count(b'"event": "window"') == 3


def test_a_runner_without_edges_has_no_energy(host: Board, target: Target, sysfs: Path, tmp_path: Path) -> None:
    """An artifact built before: its latency stands, its energy says what to do."""
    (document,) = run(host, target, tmp_path, runner_artifact(tmp_path / "a", runner()))
    assert document["valid"], document["reasons"]
    assert document["latency_ms"]["p50"] and document["energy_mj"]["value"] is None
    assert "build the artifact again" in document["energy_mj"]["reason"]


class Constant:
    """A plug-in meter of 4 W on this machine."""

    name, boundary, period_s, gain, paced = "constant", "wall", 0.1, (0.02, 0.0), False

    def open(self) -> None:
        """Nothing to do."""

    def read(self) -> float | None:
        return 4.0

    def close(self) -> None:
        """Nothing to do."""


def test_a_meter_of_this_machine(
    host: Board, target: Target, sysfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meter that farm.toml names goes before the board's own sensor, and its samples are in the raw file."""
    monkeypatch.setitem(meters.KINDS, "constant", lambda settings: Constant())
    board = dataclasses.replace(host, meter=(("kind", "constant"),))
    (document,) = run(board, target, tmp_path, runner_artifact(tmp_path / "a", windowed_runner()))
    energy = document["energy_mj"]
    assert (energy["sensor"], energy["boundary"], energy["provenance"]) == ("constant", "wall", "measured")
    assert energy["power_mw"] == pytest.approx(4000) and energy["net"] == pytest.approx(0, abs=1e-9)
    assert energy["sampler"]["value"] is None


def test_a_meter_that_does_not_answer_costs_the_energy_only(
    host: Board, target: Target, tmp_path: Path
) -> None:
    """No plug behind the URL: the reason is in the document, the latency is there."""
    board = dataclasses.replace(host, meter=(("kind", "shelly"), ("url", "http://127.0.0.1:9")))
    (document,) = run(board, target, tmp_path, runner_artifact(tmp_path / "a", windowed_runner()))
    assert document["valid"] and document["latency_ms"]["p50"]
    assert document["energy_mj"]["reason"] == "meter http://127.0.0.1:9: gives no watts as a shelly plug"


def test_the_sampler_ends_with_who_started_it(sysfs: Path, tmp_path: Path) -> None:
    """A parent that is killed closes the pipe: the sampler writes what it has and is gone."""
    path = tmp_path / "log"
    parent = os.fork()
    if parent == 0:
        running = sampler.Sampler(str(path))
        running.start()
        (tmp_path / "pid").write_text(str(running.pid))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    child = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 20
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.02)
    (segment,) = read_log(path.read_bytes(), "log").segments
    assert segment.rows[0][1:] == [6_000_000, 1_500_000] and segment.replayed
    while time.monotonic() < end and Path(f"/proc/{child}").exists():
        if ") Z " in Path(f"/proc/{child}/stat").read_text():
            break
        time.sleep(0.02)
    assert not Path(f"/proc/{child}").exists() or ") Z " in Path(f"/proc/{child}/stat").read_text()


def test_a_sampler_without_sensor_says_why(sysfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason comes back through the pipe."""
    monkeypatch.setenv("EDGESDK_SYSFS", str(tmp_path / "nothing"))
    assert sampler.Sampler(str(tmp_path / "log")).start().startswith("no power sensor: ")
    assert not (tmp_path / "log").exists()
