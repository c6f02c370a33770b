"""Energy from end to end: an emulated Jetson replays a power of known integral; an energy goal selects by it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgesdk.cli.output import say
from edgesdk.harness import emulate
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


def milliamperes(at_s: float) -> int:
    """A slow wave between 0.8 and 1.6 A, in the 8 mA steps of the chip."""
    return 8 * round((1200 + 400 * math.sin(2 * math.pi * at_s / PERIOD_S)) / 8)


def recording() -> Recording:
    """The wave as VDD_IN of an INA3221 (JetPack 5 and newer)."""
    steps = round(PERIOD_S / STEP_S)
    wave = tuple(Frame(at_s=round(n * STEP_S, 3), text=str(milliamperes(n * STEP_S))) for n in range(steps))
    constant = {"name": "ina3221", "in1_label": "VDD_IN", "in1_input": str(MILLIVOLTS)}
    files = {f"{CHIP}/{name}": (Frame(at_s=0, text=text),) for name, text in constant.items()}
    return Recording(target="jetson/orin-nano", origin="made", period_s=PERIOD_S,
                     files=files | {f"{CHIP}/curr1_input": wave})


def joules(start_s: float, end_s: float) -> float:
    """The integral of the wave as it is written: constant within each step."""
    steps = np.arange(math.floor(start_s / STEP_S), end_s / STEP_S) * STEP_S
    edges = np.unique(np.concatenate([[start_s, end_s], steps]))
    edges = edges[(edges >= start_s) & (edges <= end_s)]
    middles = (edges[1:] + edges[:-1]) / 2
    watts = [MILLIVOLTS * milliamperes(math.floor(at / STEP_S) * STEP_S % PERIOD_S) / 1e6 for at in middles]
    return float(np.sum(np.asarray(watts) * np.diff(edges)))


def run(names: list[str]) -> dict[str, Any]:
    """Build the demo for the fed board with a goal on energy: its windows against the integral, and what it selects."""
    with tempfile.TemporaryDirectory(prefix="edgesdk-bench-") as name, emulate.emulated(load_target("jetson")) as board:
        folder = Path(name)
        os.environ["EDGESDK_LEASES"] = str(folder / "leases.sqlite")
        emulate.feed(board.name, recording())
        request = Request(
            target="jetson", board=board.name, recipes=("fp32", "int8", "int8-dynamic"), converters=("neon", "tflite"),
            goals={"energy": f"max {GENEROUS_MJ}mJ"}, out=folder / "build", state=folder / "state",
            store=folder / "store",
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
        expected = joules(window["start_ns"] / 1e9 + shift, window["end_ns"] / 1e9 + shift)
        errors.append(100 * abs(window["joules"] / expected - 1))
    labelled = bool(energies) and all(energy["provenance"] == "emulated" for energy in energies)
    worst = max(errors, default=None)
    reasons = [energy["reason"] for energy in energies if energy["reason"]]
    more = {"windows": len(errors), "mean_error_percent": round(float(np.mean(errors)), 4) if errors else None,
            "boundary": sorted({str(energy["boundary"]) for energy in energies}), "reasons": reasons}
    drives, how = driven(made.record)
    return {
        names[0]: (worst, worst is not None and worst <= 1 and labelled, "emulated", more),
        names[1]: (drives and labelled, drives and labelled, "emulated", how),
    }


def driven(record: BuildRecord) -> tuple[bool, dict[str, Any]]:
    """Whether a goal on energy changes what is selected, to the one candidate that meets it, and is why the other lost.

    Asked of candidates whose choice without the goal is not the one of least energy (where it is, the goal could
    change nothing): of the set in which those two are the furthest apart, and the largest such set.
    """
    known = {entry.name: entry.figure("energy_mj", "value") for entry in record.candidates if entry.valid}
    energies = {name: float(value) for name, value in known.items() if value is not None}
    how: dict[str, Any] = {"energies_mj": {name: round(value, 3) for name, value in energies.items()}}
    found: list[tuple[float, int, BuildRecord, str]] = []
    for size in range(2, len(energies) + 1):
        for names in itertools.combinations(sorted(energies), size):
            entries = tuple(entry for entry in record.candidates if entry.name in names)
            some = dataclasses.replace(record, candidates=entries)
            free = select(some).selected
            if free is not None:
                found.append((energies[free] / min(energies[name] for name in names), size, some, free))
    apart, _, some, free = max(found, key=lambda entry: entry[:2], default=(1.0, 0, record, ""))
    if apart <= 1:
        return False, how | {"reason": "the choice without the goal has the least energy in every set of candidates"}
    names = tuple(sorted((entry.name for entry in some.candidates), key=lambda name: energies[name]))
    limit = (energies[names[0]] + energies[names[1]]) / 2
    bound = select(some, {"energy": f"max {limit:.6f}mJ"})
    how |= {"candidates": list(names), "limit_mj": round(limit, 3), "selected": bound.selected,
            "selected_without_that_limit": free, "why_not": dict(bound.why_not)}
    named = all("energy" in bound.why_not.get(name, "") for name in names[1:])
    return bound.selected == names[0] != free and named, how
