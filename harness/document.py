"""The `edgesdk.measurement` document of one artifact on one board, from what the worker recorded."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgesdk.converters.artifact import DTYPES, Artifact
from edgesdk.errors import MeasureError
from edgesdk.files import atomic_folder, canonical_json, sha256_bytes, write_atomic
from edgesdk.harness import figures
from edgesdk.harness.board import Board
from edgesdk.harness.energy import unmeasured_energy
from edgesdk.harness.protocol import E_ACCURACY, E_CRASH, E_LOAD, E_THROTTLED, Profile
from edgesdk.harness.text import plain
from edgesdk.targets.target import Target

FORMAT, VERSION = "edgesdk.measurement", 1


@dataclass(frozen=True)
class Outcome:
    """What happened to a candidate: reasons why it never ran, or the worker's record (checked by `answers`), the folder
    of its raw files and the job's id."""

    reasons: list[str]
    record: Mapping[str, Any] | None = None
    raw: Path | None = None
    job: str = ""


def write_measurement(
    folder: Path, outcome: Outcome, artifact: Artifact, sha256: str, board: Board, target: Target,
    facts: Mapping[str, Any], profile: Profile, seed: int, started: str,
) -> dict[str, Any]:
    """Write `measurement.json` and the raw files into `folder`, which is replaced when all is written; paths in the
    document are relative to it. Raw files that give no figures make this candidate invalid, with the reason.
    """
    document: dict[str, Any] = {
        "format": FORMAT, "version": VERSION, "name": artifact.name, "artifact": sha256, "board": board.name,
        "target": target.name, "provenance": board.provenance, "profile": profile.name, "seed": seed,
        "started": started, "facts": dict(facts), "work": artifact.work, "golden": None, "evaluation": None,
        "rounds": [], "reasons": list(outcome.reasons),
    }
    document["id"] = sha256_bytes(f"{outcome.job or started} {board.name} {sha256}".encode())
    with atomic_folder(folder) as new:
        try:
            if outcome.record is not None and outcome.raw is not None:
                _fill(document, outcome.record, outcome.raw, new, board, facts, artifact)
            _fill_figures(document, new, board, profile, target, facts)
        except (MeasureError, KeyError, TypeError, ValueError, ArithmeticError) as problem:
            text = problem.message if isinstance(problem, MeasureError) else repr(problem)
            text = text.replace(f"{new}/", "")  # a name that is gone when somebody reads it
            document["reasons"].append(f"{E_CRASH}: no figures follow from the raw files: {plain(text, 300)}")
            document["rounds"] = []
            _fill_figures(document, new, board, profile, target, facts)
        document["valid"] = not document["reasons"]
        write_atomic(new / "measurement.json", canonical_json(document))
    return document


def _fill(
    document: dict[str, Any], record: Mapping[str, Any], raw: Path, folder: Path, board: Board,
    facts: Mapping[str, Any], artifact: Artifact,
) -> None:
    document["golden"] = record["golden"]
    document["reasons"] += [_reason(entry, artifact, facts) for entry in record["reasons"]]
    if record["evaluation"]:
        entry = record["evaluation"]
        fault = _output_fault(artifact, (raw / entry["file"]).read_bytes(), entry["n"])
        if fault:
            document["reasons"].append(fault)
        else:
            shutil.copyfile(raw / entry["file"], folder / "evaluation.bin")
            document["evaluation"] = {
                "n": entry["n"], "outputs": "evaluation.bin", "sha256": entry["sha256"], "provenance": board.provenance,
            }
    for entry in record["rounds"]:
        name = f"round-{entry['index']}{Path(entry['file']).suffix}"
        shutil.copyfile(raw / entry["file"], folder / name)
        timed = "p50_ns" in entry
        keys = ("batch", "p50_ns", "cold_load_ns", "first_inference_ns", "peak_rss_bytes", "cpu_ns", "other_cpu")
        round_document = {
            "index": entry["index"], "samples": name, "sha256": entry["sha256"], "count": entry["count"],
            **{key: entry[key] if timed else None for key in keys},
            "warmup": entry.get("warmup"), "steady": entry["steady"] if timed else None, "codes": [],
        }
        document["rounds"].append(round_document)
        if timed:
            found = figures.round_figures(folder, round_document, artifact.work, artifact.golden.n)
            # A runner whose own summary contradicts its samples is not believed.
            if abs(found["p50_ns"] - entry["p50_ns"]) > 2 + 0.01 * found["p50_ns"]:
                reported = f"reports a median of {entry['p50_ns']} ns, its samples have {found['p50_ns']} ns"
                document["reasons"].append(f"E_CRASH: round {entry['index']}: {reported}")
            round_document.update(found)


def _output_fault(artifact: Artifact, data: bytes, n: int) -> str:
    """Why a block of evaluation outputs cannot be used; "" when it can. The board's word is not enough."""
    sizes = [n * math.prod(tensor.shape[1:]) * np.dtype(DTYPES[tensor.dtype]).itemsize for tensor in artifact.outputs]
    if len(data) != sum(sizes):
        return f"{E_CRASH}: evaluation outputs have {len(data)} bytes, {n} inputs give {sum(sizes)}"
    start = 0
    for tensor, size in zip(artifact.outputs, sizes, strict=True):
        values = np.frombuffer(data[start : start + size], DTYPES[tensor.dtype])
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            return f"{E_ACCURACY}: evaluation outputs hold NaN or infinity"
        start += size
    return ""


def _reason(entry: Mapping[str, Any], artifact: Artifact, facts: Mapping[str, Any]) -> str:
    text = f"{entry['code']}: {entry['text']}"
    if "SIGILL" in text:
        isa = ", ".join(artifact.runtime.get("isa") or ()) or "an unknown instruction set"
        known = " ".join(facts.get("cpu_features") or ()) or "unknown"
        text += f" (illegal instruction: built for {isa}; CPU features of the board: {known[:600]})"
    return text


def _fill_figures(
    document: dict[str, Any], folder: Path, board: Board, profile: Profile, target: Target, facts: Mapping[str, Any]
) -> None:
    document["latency_ms"] = {
        "p50": None, "p90": None, "ci95": [None, None], "rounds": 0, "provenance": "unmeasured", "labels": [],
    }
    document["instructions"] = {"value": None, "provenance": "unmeasured", "classes": {}, "n": 0, "labels": []}
    document["peak_rss_bytes"] = {"value": None, "provenance": "unmeasured", "reason": "no round was run"}
    document["energy_mj"] = unmeasured_energy(board, target, facts)
    if board.emulated:
        reason = "under qemu-user the emulator's own memory is counted in"
        document["peak_rss_bytes"] = {"value": None, "provenance": "unmeasured", "reason": reason}
        if document["rounds"]:
            document["instructions"] = figures.instructions(folder, document, "emulated")
    elif document["rounds"]:
        document["latency_ms"] = figures.latency(folder, document)
        document["peak_rss_bytes"] = figures.peak_rss(document, board.provenance)
        if not (profile.lenient and board.host is None):
            document["reasons"] += _refusals(document)


def _refusals(document: Mapping[str, Any]) -> list[str]:
    """On a real board, or beyond smoke, a faulty round makes the measurement invalid."""
    reasons = []
    for entry in document["rounds"]:
        if entry["codes"]:
            reasons.append(f"{', '.join(entry['codes'])}: round {entry['index']}")
    facts = document["facts"]
    texts = {
        E_LOAD: f"load average {facts.get('loadavg1')} before the first round",
        E_THROTTLED: f"throttle count went from {facts.get('throttle_count')} to {facts.get('after')}",
    }
    return reasons + [f"{code}: {texts[code]}" for code in figures.board_codes(facts)]
