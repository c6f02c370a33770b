"""Put a build's parts together into the one record that store, selection and reports read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgesdk.candidates import Candidate, record_candidate
from edgesdk.compress import Compressed
from edgesdk.data import Dataset
from edgesdk.evaluate import run_rows
from edgesdk.harness.board import Board
from edgesdk.importing import Job
from edgesdk.package import LineageEntry, content_digest
from edgesdk.record import BaselineRecord, BuildRecord, Figures, StageRecord
from edgesdk.targets import Target


def assemble(
    job: Job,
    compressed: Mapping[str, Compressed],
    candidates: Sequence[Candidate],
    documents: Mapping[str, Mapping[str, Any]],
    data: Dataset,
    board: Board,
    target: Target,
    facts: Mapping[str, Any],
    out: Path,
) -> BuildRecord:
    """The record of a build, all but what the caller alone knows (when, seed, profile, command, goals).

    Args:
        documents: candidate name → measurement; its raw files lie under `out/measurements`.
        data: the rows that were evaluated on the board.
    """
    package, workdir = job.package, out / "measurements"
    reference = run_rows(package, data.inputs)
    notes = list(job.notes)
    notes += [f"{name}: {reason}" for name, reason in target.missing.items()]
    if len(data) < len(job.evaluation):
        notes.append(f"accuracy on this board is that of {len(data)} of {len(job.evaluation)} evaluation rows")
    return BuildRecord(
        model=package.name,
        metric=package.metric,
        target=target.name,
        board=board.name,
        provenance=board.provenance,
        started="",
        package=str(out / "packages" / "fp32.edgepkg"),
        package_sha256=content_digest(package),
        seed=0,
        goals={},
        baseline=BaselineRecord(package.baseline.accuracy, package.baseline.n, package.baseline.bytes, "measured"),
        lineage={name: _stages(result, package.metric) for name, result in compressed.items()},
        candidates=tuple(
            record_candidate(candidate, documents.get(candidate.name), workdir, data, package.metric, reference)
            for candidate in candidates
        ),
        facts=facts,
        notes=tuple(notes),
    )


def _stages(result: Compressed, metric: str) -> tuple[StageRecord, ...]:
    """The waterfall of one recipe: the last lineage entries are those of its stages."""
    count = len(result.recipe.stages)
    entries: Sequence[LineageEntry] = result.package.lineage[-count:] if count else ()

    def figures(size: int, parameters: int, macs: int, metrics: Mapping[str, float]) -> Figures:
        work = {name: value for name, value in metrics.items() if name != metric}
        return Figures(size, parameters, macs, metrics.get(metric), work)

    return tuple(
        StageRecord(
            stage=entry.stage,
            before=figures(entry.bytes_before, entry.parameters_before, entry.macs_before, entry.metrics_before),
            after=figures(entry.bytes_after, entry.parameters_after, entry.macs_after, entry.metrics_after),
            seconds=seconds,
            options=entry.parameters,
        )
        for entry, seconds in zip(entries, result.seconds, strict=True)
    )
