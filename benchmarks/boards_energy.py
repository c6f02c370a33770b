"""Energy from end to end: an emulated Jetson replays a power of known integral; an energy goal selects by it."""

from __future__ import annotations

import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgesdk.converters import converter
from edgesdk.demo import package_path
from edgesdk.harness import emulate
from edgesdk.harness.emulate.feeder import origin_of
from edgesdk.harness.measure import load_profile, measure
from edgesdk.harness.replay import Frame, Recording
from edgesdk.package import read_package
from edgesdk.targets import load_target

CHIP = "/sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
PERIOD_S, STEP_S, MILLIVOLTS = 4.0, 0.05, 5000


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
    """Measure the demo on the fed board; then build with an energy goal there."""
    target = load_target("jetson")
    with tempfile.TemporaryDirectory(prefix="edgesdk-bench-") as name, emulate.emulated(target) as board:
        folder = Path(name)
        os.environ["EDGESDK_LEASES"] = str(folder / "leases.sqlite")
        emulate.feed(board.name, recording())
        artifact = folder / "a"
        artifact.mkdir()
        converter("neon").convert(read_package(package_path()), target, artifact)
        (document,) = measure(board, target, [artifact], evaluation=None, profile=load_profile("smoke"), seed=0,
                              workdir=folder / "work")
        energy = document["energy_mj"]
        # The sampler's clock is CLOCK_MONOTONIC_RAW, the recording's start is on CLOCK_MONOTONIC.
        origin = origin_of(board.name)
        assert origin is not None, "the board is not fed"
        shift = time.monotonic() - time.clock_gettime(time.CLOCK_MONOTONIC_RAW) - origin
        errors = []
        for window in energy.get("windows", ()):
            expected = joules(window["start_ns"] / 1e9 + shift, window["end_ns"] / 1e9 + shift)
            errors.append(100 * abs(window["joules"] / expected - 1))
        worst = max(errors) if errors else None
        labelled = energy["provenance"] == "emulated"
        selected = _select(folder) if errors else None
    more = {"errors_percent": [round(error, 3) for error in errors], "provenance": energy["provenance"],
            "boundary": energy["boundary"], "reason": energy["reason"], "labels": energy.get("labels")}
    return {
        names[0]: (worst, worst is not None and worst <= 1 and labelled, "emulated", more),
        names[1]: (selected is not None if errors else None, selected is not None, "emulated", {"selected": selected}),
    }


def _select(folder: Path) -> str | None:
    """Build the demo on the fed board with a goal on energy; gives what was selected, if its energy is emulated."""
    from edgesdk.pipeline import build
    from edgesdk.request import Request

    os.chdir(folder)
    goals = {"energy": "max 100000mJ"}
    try:
        made = build(Request(target="jetson", goals=goals), lambda *step: None, print)  # type: ignore[arg-type]
    except Exception as problem:
        print(f"energy goal: {type(problem).__name__}: {problem}")
        return None
    chosen = made.selection.selected
    records = {candidate["name"]: candidate for candidate in made.document["candidates"]}
    name = chosen if isinstance(chosen, str) else getattr(chosen, "name", None)
    if name is None or records[name]["energy_mj"]["provenance"] != "emulated":
        return None
    return name
