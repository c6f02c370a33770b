"""The demo's figures: seconds of each step, sizes, latency with its interval, instructions, agreement of converters.

    python benchmarks/demo.py            (after `make dev`; about ten minutes)
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from typing import Any

import numpy as np
from _results import figure, write_result

from edgesdk.cli.output import progress_bar, say
from edgesdk.pipeline import Build, build
from edgesdk.request import Request

DEMO_LIMIT_S = 600.0


def main() -> None:
    """Build the demo for both boards in an empty folder and write `results/demo.json`."""
    figures: list[dict[str, Any]] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, progress_bar() as progress:
        os.chdir(folder)
        builds = [build(Request(target=target), progress, say) for target in ("host", "rpi5")]
        wall = time.monotonic() - started
        name = "demo: both builds, packages installed and root file system built, wall"
        figures.append(figure(name, wall, "s", f"≤ {DEMO_LIMIT_S:g}", wall <= DEMO_LIMIT_S))
        for result in builds:
            figures += steps(result) + candidates(result)
        figures += agreement(builds[0])
    baseline = builds[0].document["baseline"]
    figures.append(figure(f"demo ViT, fp32 accuracy (n = {baseline['n']})", 100 * baseline["accuracy"], "%", "≥ 97.5",
                          baseline["accuracy"] >= 0.975))
    write_result("demo", figures)


def steps(result: Build) -> list[dict[str, Any]]:
    """Wall and CPU seconds of each step of one build."""
    target = result.record.target
    rounds = [r for c in result.record.candidates for r in (c.measurement or {}).get("rounds", ())]
    spent = sum(r.get("cpu_ns") or 0 for r in rounds) / 1e9
    return [figure(f"{target}: timed rounds, CPU", spent, "s")] * bool(spent) + [
        figure(f"{target}: {step}, {kind}", float(value), "s")
        for step, (wall, cpu) in result.seconds.items()
        for kind, value in (("wall", wall), ("CPU of this process and its children", cpu))
    ]


def candidates(result: Build) -> list[dict[str, Any]]:
    """Sizes, accuracy lost, and latency or instructions of each candidate."""
    entries: list[dict[str, Any]] = []
    target, baseline = result.record.target, result.document["baseline"]
    for candidate, record in zip(result.document["candidates"], result.record.candidates, strict=True):
        name, quantized = f"{target}: {candidate['name']}", candidate["scheme"] != "fp32"
        share = candidate["artifact"]["bytes"] / baseline["bytes"]
        asked = quantized and candidate["converter"] != "neon" and target == "host"
        goal = "≤ 35 % of the fp32 ONNX" if asked else None
        met = share <= 0.35 if asked else None
        entries.append(figure(f"{name}, bytes", candidate["artifact"]["bytes"], "B", goal, met))
        accuracy = record.accuracy
        if accuracy is not None and accuracy.baseline is not None:
            lost = 100 * (accuracy.baseline - accuracy.value)
            judged = candidate["scheme"] == "w8a8"
            entries.append(figure(
                f"{name}, accuracy lost (n = {accuracy.n})", lost, "points", "≤ 1" if judged else None,
                lost <= 1 + 1e-9 if judged else None, accuracy.provenance,
            ))
        latency, instructions = candidate["latency_ms"], candidate["instructions"]
        if latency["p50"] is not None:
            for key in ("p50", "p90"):
                interval = latency["ci95"] if key == "p50" else None
                entries.append(figure(f"{name}, {key}", latency[key], "ms", interval=interval))
        if instructions["value"] is not None:
            entries.append(figure(
                f"{name}, instructions", instructions["value"], "", provenance=instructions["provenance"]
            ))
    selected = result.selection.selected
    entries.append(figure(f"{target}: selected", selected, "", "not null", selected is not None,
                          result.record.provenance))
    return entries


def agreement(result: Build) -> list[dict[str, Any]]:
    """Share of the evaluation rows on which the static int8 artifacts of two converters give the same label."""
    labels = {}
    for candidate in result.record.candidates:
        if candidate.recipe == "int8" and candidate.measurement is not None and candidate.workdir is not None:
            raw = np.fromfile(candidate.workdir / candidate.measurement["evaluation"]["outputs"], "<f4")
            labels[candidate.converter] = raw.reshape(-1, 10).argmax(1)
    entries = []
    for one, other in itertools.combinations(sorted(labels), 2):
        share = float((labels[one] == labels[other]).mean())
        name = f"host: int8 {one} and {other} give the same label"
        entries.append(figure(name, 100 * share, "%", "≥ 98", share >= 0.98))
    return entries


if __name__ == "__main__":
    main()
