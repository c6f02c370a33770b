"""Energy from end to end: an emulated Jetson replays a power of known integral; an energy goal selects by it."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from boards_host import leases_in

from edgesdk.cli.output import say
from edgesdk.harness import emulate
from edgesdk.harness.board import Board
from edgesdk.harness.emulate.feeder import origin_of
from edgesdk.harness.replay import Frame, Recording
from edgesdk.pipeline import build
from edgesdk.record import BuildRecord
from edgesdk.request import Request
from edgesdk.select import select
from edgesdk.targets import load_target

CHIP = "/sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
PERIOD_S, STEP_S, MILLIVOLTS = 4.0, 0.05, 5000
GENEROUS_MJ = 100_000  # a goal that asks for energy and excludes nobody
HUNGRY = 4  # times the power, while the candidate of fewest instructions is measured


def milliamperes(at_s: float, times: int = 1) -> int:
    """A slow wave between 0.8 and 1.6 A, or `times` of it, in the 8 mA steps of the chip."""
    return times * 8 * round((1200 + 400 * math.sin(2 * math.pi * at_s / PERIOD_S)) / 8)


def recording(times: int = 1) -> Recording:
    """The wave as VDD_IN of an INA3221 (JetPack 5 and newer)."""
    steps = round(PERIOD_S / STEP_S)
    wave = tuple(Frame(at_s=round(n * STEP_S, 3), text=str(milliamperes(n * STEP_S, times))) for n in range(steps))
    constant = {"name": "ina3221", "in1_label": "VDD_IN", "in1_input": str(MILLIVOLTS)}
    files = {f"{CHIP}/{name}": (Frame(at_s=0, text=text),) for name, text in constant.items()}
    return Recording(target="jetson/orin-nano", origin="made", period_s=PERIOD_S,
                     files=files | {f"{CHIP}/curr1_input": wave})


def joules(start_s: float, end_s: float, times: int = 1) -> float:
    """The integral of the wave as it is written: constant within each step."""
    steps = np.arange(math.floor(start_s / STEP_S), end_s / STEP_S) * STEP_S
    edges = np.unique(np.concatenate([[start_s, end_s], steps]))
    edges = edges[(edges >= start_s) & (edges <= end_s)]
    middles = (edges[1:] + edges[:-1]) / 2
    watts = [MILLIVOLTS * milliamperes(math.floor(at / STEP_S) * STEP_S % PERIOD_S, times) / 1e6 for at in middles]
    return float(np.sum(np.asarray(watts) * np.diff(edges)))


def run(names: list[str]) -> dict[str, Any]:
    """Build the demo for the fed board with a goal on energy: its windows against the integral, and what it selects.

    On an emulated board the fewest instructions take the least time, and by one recording the least energy too. So the
    int8 NEON build is measured while a board that draws more is replayed, and chosen or not among all of them.
    """
    with (
        tempfile.TemporaryDirectory(prefix="edgesdk-bench-") as name, leases_in(Path(name)),
        emulate.emulated(load_target("jetson")) as board,
    ):
        folder = Path(name)
        usual, energies, errors = _build(board, folder / "usual", ("int8", "int8-dynamic"), ("neon", "tflite"), 1)
        hungry, more_energies, more_errors = _build(board, folder / "hungry", ("int8",), ("neon",), HUNGRY)
    again = {entry.name: entry for entry in hungry.candidates}
    record = dataclasses.replace(
        usual, candidates=tuple(again.get(entry.name, entry) for entry in usual.candidates)
    )
    energies, errors = energies + more_energies, errors + more_errors
    labelled = bool(energies) and all(energy["provenance"] == "emulated" for energy in energies)
    worst = max(errors, default=None)
    reasons = [energy["reason"] for energy in energies if energy["reason"]]
    more = {"windows": len(errors), "mean_error_percent": round(float(np.mean(errors)), 4) if errors else None,
            "boundary": sorted({str(energy["boundary"]) for energy in energies}), "reasons": reasons}
    drives, how = driven(record)
    how["note"] = f"{', '.join(sorted(again))} measured while {HUNGRY} times the power is replayed"
    return {
        names[0]: (worst, worst is not None and worst <= 1 and labelled, "emulated", more),
        names[1]: (drives and labelled, drives and labelled, "emulated", how),
    }


def _build(
    board: Board, folder: Path, recipes: tuple[str, ...], converters: tuple[str, ...], times: int
) -> tuple[BuildRecord, list[dict[str, Any]], list[float]]:
    """The record of a build while `recording(times)` is fed, its energies, and the errors of its windows in percent."""
    emulate.feed(board.name, recording(times))
    request = Request(
        target="jetson", board=board.name, recipes=recipes, converters=converters,
        goals={"energy": f"max {GENEROUS_MJ}mJ"}, out=folder / "build", state=folder / "state", store=folder / "store",
    )
    made = build(request, lambda step, done, total: None, say)
    # The sampler's clock is CLOCK_MONOTONIC_RAW, the recording's start is on CLOCK_MONOTONIC.
    origin = origin_of(board.name)
    assert origin is not None, "the board is not fed"
    shift = time.monotonic() - time.clock_gettime(time.CLOCK_MONOTONIC_RAW) - origin
    paths = sorted((made.out / "measurements").glob("*/measurement.json"))
    energies = [json.loads(path.read_bytes())["energy_mj"] for path in paths]
    errors = []
    for window in (window for energy in energies for window in energy.get("windows", ())):
        expected = joules(window["start_ns"] / 1e9 + shift, window["end_ns"] / 1e9 + shift, times)
        errors.append(100 * abs(window["joules"] / expected - 1))
    return made.record, energies, errors


def driven(record: BuildRecord) -> tuple[bool, dict[str, Any]]:
    """Whether a goal on energy that one candidate alone meets changes what is selected to that one, and is why each
    other one lost."""
    known = {entry.name: entry.figure("energy_mj", "value") for entry in record.candidates if entry.valid}
    energies = {name: float(value) for name, value in known.items() if value is not None}
    ordered = sorted(energies, key=lambda name: energies[name])
    how: dict[str, Any] = {"energies_mj": {name: round(energies[name], 3) for name in ordered}}
    if len(ordered) < 2:
        return False, how | {"reason": "fewer than two candidates have an energy"}
    limit = (energies[ordered[0]] + energies[ordered[1]]) / 2
    free, bound = select(record), select(record, {"energy": f"max {limit:.6f}mJ"})
    how |= {"limit_mj": round(limit, 3), "selected": bound.selected, "selected_without_that_limit": free.selected,
            "why_not": dict(bound.why_not)}
    named = all("energy" in bound.why_not.get(name, "") for name in ordered[1:])
    return bound.selected == ordered[0] != free.selected and named, how
