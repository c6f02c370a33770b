"""What a build prints and leaves behind: the `edgesdk.build` document, `selection.json` and the Markdown card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgesdk import units
from edgesdk.figures import LABELS, judged
from edgesdk.files import canonical_json, write_atomic
from edgesdk.markdown import escape
from edgesdk.record import BuildRecord, CandidateRecord
from edgesdk.select import Selection

FORMAT, VERSION = "edgesdk.build", 1
SELECTION_FORMAT, SELECTION_VERSION = "edgesdk.selection", 1

_UNMEASURED: dict[str, dict[str, Any]] = {
    "latency_ms": {"p50": None, "p90": None, "ci95": [None, None], "rounds": 0, "labels": []},
    "instructions": {"value": None},
    "peak_rss_bytes": {"value": None},
    "energy_mj": {"value": None, "boundary": None, "reason": "not measured"},
}

_ROWS: tuple[tuple[str, tuple[str, str], Callable[[float | None], str]], ...] = (
    ("latency_p50", ("latency_ms", "p50"), units.milliseconds),
    ("latency_p90", ("latency_ms", "p90"), units.milliseconds),
    ("instructions", ("instructions", "value"), units.count),
    ("peak_rss", ("peak_rss_bytes", "value"), units.size),
    ("energy", ("energy_mj", "value"), units.millijoules),
)


def build_document(record: BuildRecord, selection: Selection, report: Path | str | None = None) -> dict[str, Any]:
    """The document that `edgesdk build --json` prints (format `edgesdk.build`, version 1)."""
    baseline = record.baseline
    return {
        "format": FORMAT, "version": VERSION, "target": record.target, "board": record.board,
        "package": record.package, "report": None if report is None else str(report),
        "baseline": {
            "accuracy": baseline.accuracy, "n": baseline.n, "bytes": baseline.bytes, "provenance": baseline.provenance,
        },
        "candidates": [_candidate(candidate) for candidate in record.candidates],
        "selected": selection.selected,
        "why_not": dict(selection.why_not),
    }


def selection_document(record: BuildRecord, selection: Selection) -> dict[str, Any]:
    """The document of `selection.json` (format `edgesdk.selection`, version 1)."""
    chosen = next((candidate for candidate in record.candidates if candidate.name == selection.selected), None)
    return {
        "format": SELECTION_FORMAT, "version": SELECTION_VERSION, "model": record.model, "target": record.target,
        "board": record.board, "provenance": record.provenance, "package": record.package_sha256,
        "goals": list(selection.goals), "selected": selection.selected, "reason": selection.reason,
        "artifact": None if chosen is None else _candidate(chosen), "ranked_by": selection.ranked_by,
        "ranking": list(selection.ranking), "why_not": dict(selection.why_not), "notes": list(selection.notes),
    }


def write_selection(record: BuildRecord, selection: Selection, folder: Path) -> tuple[Path, Path]:
    """Write `selection.json` and the card `selection.md` into `folder`; returns both paths."""
    document, card = folder / "selection.json", folder / "selection.md"
    write_atomic(document, canonical_json(selection_document(record, selection)))
    write_atomic(card, selection_card(record, selection).encode())
    return document, card


def selection_card(record: BuildRecord, selection: Selection) -> str:
    """A Markdown card of the chosen artifact: what it is, its figures with their provenance, why it was chosen."""
    title = selection.selected or "nothing selected"
    lines = [f"# {escape(title)}", "", f"For {record.target} (board {record.board}, {record.provenance})."]
    lines += ["", f"**{'Chosen' if selection.selected else 'Not chosen'}:** {escape(selection.reason)}.", ""]
    for candidate in record.candidates:
        if candidate.name == selection.selected:
            lines += ["| figure | value | provenance |", "| --- | --- | --- |"]
            lines += [f"| {' | '.join(escape(cell) for cell in row)} |" for row in _figures(candidate, record)]
    lines += ["", "Goals: " + ("; ".join(selection.goals) or "none") + "."]
    lines += ["", *(f"- {escape(note)}" for note in selection.notes)] if selection.notes else []
    if selection.why_not:
        lines += ["", "## Why not the others", ""]
        lines += [f"- **{escape(name)}**: {escape(reason)}" for name, reason in selection.why_not.items()]
    return "\n".join(lines) + "\n"


def _figures(candidate: CandidateRecord, record: BuildRecord) -> list[tuple[str, str, str]]:
    rows = [("scheme · converter · recipe", f"{candidate.scheme} · {candidate.converter} · {candidate.recipe}", "")]
    accuracy = candidate.accuracy
    if accuracy is not None:
        bound = f"lower 95 % bound {units.percent(accuracy.lower95)}, n = {accuracy.n:,}"
        rows.append(("accuracy", f"{units.percent(accuracy.value)} ({bound})", accuracy.provenance))
    carries = (candidate.bytes_with_runtime or 0) > (candidate.bytes or 0)
    runtime = f"{units.size(candidate.bytes_with_runtime)} with runtime" if carries else "runtime not counted"
    rows.append(("size", f"{units.size(candidate.bytes)} ({runtime})", ""))
    for metric, keys, show in _ROWS:
        value = None if judged(candidate, metric, record) is None else candidate.figure(*keys)
        provenance = candidate.figure(keys[0], "provenance")
        rows.append((LABELS[metric], show(value), str(provenance or "unmeasured")))
    rows.append(("artifact", str(candidate.path), f"sha256 {candidate.sha256}"))
    return rows


def _candidate(candidate: CandidateRecord) -> dict[str, Any]:
    accuracy = candidate.accuracy
    document: dict[str, Any] = {
        "name": candidate.name, "scheme": candidate.scheme, "converter": candidate.converter,
        "recipe": candidate.recipe,
        "artifact": {
            "path": candidate.path, "bytes": candidate.bytes, "bytes_with_runtime": candidate.bytes_with_runtime,
            "sha256": candidate.sha256,
        },
        "accuracy": {
            "value": accuracy and accuracy.value, "lower95": accuracy and accuracy.lower95,
            "n": accuracy.n if accuracy else 0, "provenance": accuracy.provenance if accuracy else "unmeasured",
        },
    }
    for key, empty in _UNMEASURED.items():
        measured = candidate.figure(key) or {}
        values = {name: measured.get(name, value) for name, value in empty.items()}
        document[key] = values | {"provenance": measured.get("provenance", "unmeasured")}
    return document | {"valid": candidate.valid, "reasons": list(candidate.reasons)}
