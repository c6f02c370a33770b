"""The `edgesdk.measurement` document of one artifact on one board, from what the worker recorded."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesdk.converters.artifact import Artifact
from edgesdk.errors import Corrupt
from edgesdk.files import canonical_json, sha256_bytes, write_atomic
from edgesdk.harness import figures
from edgesdk.harness.board import Board
from edgesdk.harness.energy import unmeasured_energy
from edgesdk.harness.protocol import E_LOAD, E_THROTTLED, Profile
from edgesdk.targets.target import Target

FORMAT, VERSION = "edgesdk.measurement", 1


@dataclass(frozen=True)
class Outcome:
    """What happened to a candidate: reasons why it never ran, or the worker's record, the folder of its raw files and
    the job's id."""

    reasons: list[str]
    record: Mapping[str, Any] | None = None
    raw: Path | None = None
    job: str = ""


def write_measurement(
    folder: Path, outcome: Outcome, artifact: Artifact, sha256: str, board: Board, target: Target,
    facts: Mapping[str, Any], profile: Profile, seed: int, started: str,
) -> dict[str, Any]:
    """Write `measurement.json` and the raw files into `folder`; paths in the document are relative to it.

    Raises:
        Corrupt: the worker's record is not what a worker writes.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    document: dict[str, Any] = {
        "format": FORMAT, "version": VERSION, "name": artifact.name, "artifact": sha256, "board": board.name,
        "target": target.name, "provenance": board.provenance, "profile": profile.name, "seed": seed,
        "started": started, "facts": dict(facts), "work": artifact.work, "golden": None, "evaluation": None,
        "rounds": [], "reasons": list(outcome.reasons),
    }
    document["id"] = sha256_bytes(f"{outcome.job or started} {board.name} {sha256}".encode())
    try:
        if outcome.record is not None and outcome.raw is not None:
            _fill(document, outcome.record, outcome.raw, folder, board, facts, artifact)
        _fill_figures(document, folder, board, profile, target, facts)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise Corrupt(f"{board.name}: the worker's record of {artifact.name} is malformed: {problem!r}") from problem
    document["valid"] = not document["reasons"]
    write_atomic(folder / "measurement.json", canonical_json(document))
    return document


def _fill(
    document: dict[str, Any], record: Mapping[str, Any], raw: Path, folder: Path, board: Board,
    facts: Mapping[str, Any], artifact: Artifact,
) -> None:
    document["golden"] = record["golden"]
    document["reasons"] += [_reason(entry, artifact, facts) for entry in record["reasons"]]
    if record["evaluation"]:
        entry = record["evaluation"]
        shutil.copyfile(raw / entry["file"], folder / "evaluation.bin")
        document["evaluation"] = {
            "n": int(entry["n"]), "outputs": "evaluation.bin", "sha256": str(entry["sha256"]),
            "provenance": board.provenance,
        }
    for entry in record["rounds"]:
        name = f"round-{int(entry['index'])}{Path(entry['file']).suffix}"
        shutil.copyfile(raw / entry["file"], folder / name)
        timed = "p50_ns" in entry
        keys = ("batch", "p50_ns", "cold_load_ns", "first_inference_ns", "peak_rss_bytes", "cpu_ns", "other_cpu")
        round_document = {
            "index": int(entry["index"]), "samples": name, "sha256": str(entry["sha256"]),
            "count": int(entry["count"]), **{key: entry[key] if timed else None for key in keys},
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
    document["instructions"] = {"value": None, "provenance": "unmeasured", "classes": {}}
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
