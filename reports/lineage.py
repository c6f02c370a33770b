"""The waterfall of a recipe: what each stage cost and bought."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgesdk import units
from edgesdk.record import BuildRecord, StageRecord


def lineage(record: BuildRecord) -> list[dict[str, Any]]:
    """Per recipe its steps: each with figures, the change against the step before, and shares (percent of the
    largest) for the bars."""
    recipes = []
    for recipe, stages in record.lineage.items():
        if not stages:
            continue
        artifacts = [
            f"{candidate.converter} {units.size(candidate.bytes)}"
            for candidate in record.candidates
            if candidate.recipe == recipe and candidate.bytes is not None
        ]
        first = stages[0].before
        start = StageRecord("start", first, first)
        largest = {key: max(_known(stages, key), default=0) for key in ("bytes", "macs")}
        recipes.append({
            "name": recipe,
            "steps": [_step(stage, largest) for stage in (start, *stages)],
            "artifacts": artifacts,
            "seconds": units.seconds(sum(stage.seconds or 0 for stage in stages)),
        })
    return recipes


def work(figures: Mapping[str, float]) -> str:
    """Mean and percentiles of the MACs of an input, where inputs leave, how often gated layers run, and on which rows
    the thresholds of exits were proven."""
    if "macs_mean" not in figures:
        return proof(figures)
    parts = [f"mean {units.count(round(figures['macs_mean']))}"]
    if "macs_share" in figures:
        parts[0] += f" ({units.percent(figures['macs_share'])} of every layer)"
    parts += [
        f"{name.removeprefix('macs_')} {units.count(round(value))}"
        for name, value in figures.items() if name.startswith("macs_p")
    ]
    for prefix, text in (("left.", "leave after layer"), ("runs.", "run layer")):
        parts += [
            f"{units.percent(value)} {text} {name.removeprefix(prefix)}"
            for name, value in figures.items() if name.startswith(prefix)
        ]
    return ", ".join(filter(None, [*parts, proof(figures)]))


def proof(figures: Mapping[str, float]) -> str:
    """What the promise of `exit.thresholds` rests on; empty where there is none."""
    if "proof.rows" not in figures:
        return ""
    rows, worse, better = (round(figures[f"proof.{name}"]) for name in ("rows", "worse", "better"))
    source = "held-out rows" if figures["proof.held_out"] else "validation rows that training has looked at"
    return f"proven on {rows} {source}: leaving early loses {worse} right answers and wins {better}"


def _step(stage: StageRecord, largest: Mapping[str, int]) -> dict[str, Any]:
    before, after = stage.before, stage.after
    lost = None
    if before.accuracy is not None and after.accuracy is not None and stage.stage != "start":
        lost = after.accuracy - before.accuracy
    return {
        "stage": stage.stage,
        "options": ", ".join(f"{key} {value}" for key, value in stage.options.items() if value is not None),
        "bytes": units.size(after.bytes),
        "macs": units.count(after.macs),
        "work": work(after.work),
        "parameters": units.count(after.parameters),
        "accuracy": units.percent(after.accuracy),
        "change": "" if lost is None else units.points(lost),
        "seconds": "" if stage.stage == "start" else units.seconds(stage.seconds),
        "bytes_share": 100 * (after.bytes or 0) / (largest["bytes"] or 1),
        "macs_share": 100 * (after.macs or 0) / (largest["macs"] or 1),
    }


def _known(stages: tuple[StageRecord, ...], key: str) -> list[int]:
    figures = [figures for stage in stages for figures in (stage.before, stage.after)]
    return [value for value in (getattr(entry, key) for entry in figures) if value is not None]
