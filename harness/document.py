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
from edgesdk.harness.energy.part import energy_part, keep_energy
from edgesdk.harness.protocol import (
    ALWAYS_REFUSE,
    E_ACCURACY,
    E_CRASH,
    NEVER_REFUSE,
    Profile,
    refuses,
)
from edgesdk.harness.text import plain
from edgesdk.harness.worker.codes import E_LOAD, E_THROTTLED
from edgesdk.harness.worker.traits import traits_of
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
        "started": started, "facts": dict(facts), "work": artifact.work, "built": None, "golden": None,
        "evaluation": None, "rounds": [], "rejected": [], "reasons": list(outcome.reasons), "exits": None,
        "protocol": profile.worker_numbers(), "arena_bytes": artifact.runtime.get("arena_bytes"),
    }
    document["id"] = sha256_bytes(f"{outcome.job or started} {board.name} {sha256}".encode())
    with atomic_folder(folder) as new:
        try:
            if outcome.record is not None and outcome.raw is not None:
                _fill(document, outcome.record, outcome.raw, new, board, facts, artifact)
            _fill_figures(document, new, board, profile, target, facts, artifact)
        except (MeasureError, KeyError, TypeError, ValueError, ArithmeticError) as problem:
            text = problem.message if isinstance(problem, MeasureError) else repr(problem)
            text = text.replace(f"{new}/", "")  # a name that is gone when somebody reads it
            document["reasons"].append(f"{E_CRASH}: no figures follow from the raw files: {plain(text, 300)}")
            document["rounds"] = []
            _fill_figures(document, new, board, profile, target, facts, artifact)
        document["valid"] = not document["reasons"]
        write_atomic(new / "measurement.json", canonical_json(document))
    return document


def _fill(
    document: dict[str, Any], record: Mapping[str, Any], raw: Path, folder: Path, board: Board,
    facts: Mapping[str, Any], artifact: Artifact,
) -> None:
    document["built"], document["golden"] = record["built"], record["golden"]
    document["energy_mj"] = keep_energy(record, raw, folder)
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
                "exit_offset": _exit_offset(artifact, entry["n"]),
            }
            document["exits"] = figures.exits(folder, document)
    for kind in ("rounds", "rejected"):
        for entry in record[kind]:
            round_document = _round(entry, raw, folder, artifact, kind == "rejected")
            document[kind].append(round_document)
            # A runner whose own summary contradicts its samples is not believed.
            found = round_document["p50_ns"]
            if found is not None and abs(found - entry["p50_ns"]) > 2 + 0.01 * found:
                reported = f"reports a median of {entry['p50_ns']} ns, its samples have {found} ns"
                document["reasons"].append(f"{E_CRASH}: round {entry['index']}: {reported}")


ROUND_KEYS = (
    "batch", "cold_load_ns", "first_inference_ns", "warm_load_ns", "peak_rss_bytes", "memory", "cpu_ns", "other_cpu",
    "steady", "warmup", "environment", "attempt", "start",
)


def _round(
    entry: Mapping[str, Any], raw: Path, folder: Path, artifact: Artifact, rejected: bool
) -> dict[str, Any]:
    """The document of a round, its raw file copied; figures and codes are those of its samples."""
    timed = "p50_ns" in entry
    attempt = f"-rejected-{entry['attempt']}" if rejected else ""
    name = f"round-{entry['index']}{attempt}{Path(entry['file']).suffix}"
    shutil.copyfile(raw / entry["file"], folder / name)
    document = {
        "index": entry["index"], "samples": name, "sha256": entry["sha256"], "count": entry["count"],
        **{key: entry.get(key) if timed else None for key in ROUND_KEYS}, "p50_ns": None, "codes": [],
    }
    if timed:
        document.update(figures.round_figures(folder, document, artifact.work, artifact.golden.n))
    return document


def _exit_offset(artifact: Artifact, n: int) -> int | None:
    """Where in a block of n outputs the output `exit` begins; None for models that inputs do not leave early."""
    offset = 0
    for tensor in artifact.outputs:
        if tensor.name == "exit" and tensor.dtype == "int64" and math.prod(tensor.shape) == 1:
            return offset
        offset += n * math.prod(tensor.shape[1:]) * np.dtype(DTYPES[tensor.dtype]).itemsize
    return None


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
    document: dict[str, Any], folder: Path, board: Board, profile: Profile, target: Target, facts: Mapping[str, Any],
    artifact: Artifact,
) -> None:
    document["latency_ms"] = {
        "p50": None, "p90": None, "ci95": [None, None], "rounds": 0, "provenance": "unmeasured", "labels": [],
    }
    document["instructions"] = {"value": None, "provenance": "unmeasured", "classes": {}, "n": 0, "labels": []}
    document["peak_rss_bytes"] = {"value": None, "provenance": "unmeasured", "reason": "no round was run"}
    document["memory_bytes"] = document["loading_ms"] = None
    if board.emulated:
        reason = "under qemu-user the emulator's own memory is counted in"
        document["peak_rss_bytes"] = {"value": None, "provenance": "unmeasured", "reason": reason}
        if document["rounds"]:
            document["instructions"] = figures.instructions(folder, document, "emulated")
        elif not traits_of(str(artifact.runtime.get("name"))).countable:
            document["instructions"]["reason"] = "it runs on a GPU; here a stand-in answered in its place"
    elif document["rounds"]:
        document["latency_ms"] = figures.latency(folder, document)
        document["peak_rss_bytes"] = figures.peak_rss(document, board.provenance)
        document["memory_bytes"] = figures.memory(document, board.provenance)
        document["loading_ms"] = figures.loading(document)
        document["reasons"] += _refusals(document, refuses(profile, board))
    document["energy_mj"] = energy_part(document, folder, board, target, facts, profile)


def _refusals(document: Mapping[str, Any], strict: bool) -> list[str]:
    """On a real board, or beyond smoke, a faulty round or a faulty board makes the measurement invalid; elsewhere only
    what cannot be true does."""
    reasons = []
    for entry in document["rounds"]:
        codes = [code for code in entry["codes"] if code not in NEVER_REFUSE and (strict or code in ALWAYS_REFUSE)]
        if codes:
            again = sum(other["index"] == entry["index"] for other in document["rejected"])
            repeated = f", after {again} rejected" if again else ""
            reasons.append(f"{', '.join(codes)}: round {entry['index']}{repeated}")
    facts = document["facts"]
    texts = {
        E_LOAD: f"load average {facts.get('loadavg1')} before the first round",
        E_THROTTLED: f"throttle count went from {facts.get('throttle_count')} to {facts.get('after')}",
        **{fault["code"]: fault["text"] for fault in facts.get("ready") or ()},
    }
    codes = [code for code in figures.board_codes(facts) if strict and code not in NEVER_REFUSE]
    return reasons + [f"{code}: {texts[code]}" for code in codes]
