"""Candidates of a build: one artifact for each recipe and converter, and how good its outputs on the board were."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.bounds import mean_lower95, wilson_lower95
from edgesdk.converters import converter, suitable
from edgesdk.converters.artifact import Artifact, artifact_sha256
from edgesdk.data import Dataset
from edgesdk.errors import ConvertError
from edgesdk.evaluate import accuracy, cosines
from edgesdk.files import atomic_folder
from edgesdk.package import Package
from edgesdk.record import AccuracyRecord, CandidateRecord
from edgesdk.targets import Target

# On an emulated board an evaluation costs what some billions of instructions cost: a sample is enough to see that the
# artifact is right there, and `n` says how large it was.
EMULATED_MACS = 6e8
EMULATED_ROWS = 16


@dataclass(frozen=True)
class Candidate:
    """One artifact; `refused` says why there is none."""

    name: str
    recipe: str
    converter: str
    scheme: str
    folder: Path
    artifact: Artifact | None
    refused: tuple[str, ...] = ()


def make_candidates(
    packages: Mapping[str, Package],
    target: Target,
    converters: Sequence[str],
    folder: Path,
    progress: Callable[[str, int, int], None],
) -> list[Candidate]:
    """Convert every package with every suitable converter; one that cannot be converted is a candidate with its
    reasons."""
    candidates: list[Candidate] = []
    total = sum(len(suitable(converters, package.scheme)) for package in packages.values())
    for recipe, package in packages.items():
        for kind in suitable(converters, package.scheme):
            name = f"{recipe}-{kind}"
            progress(f"converting {name}", len(candidates), total)
            path = folder / name
            module = converter(kind)
            reasons = tuple(module.check(package, target))
            artifact = None
            if not reasons:
                try:
                    with atomic_folder(path) as temporary:
                        artifact = module.convert(package, target, temporary)
                except ConvertError as problem:
                    reasons = (str(problem),)
            scheme = module.scheme or package.scheme
            candidates.append(Candidate(name, recipe, kind, scheme, path, artifact, reasons))
    return candidates


def evaluation_sample(evaluation: Dataset, package: Package, emulated: bool, seed: int) -> Dataset:
    """The rows that are evaluated on the board: all, or on an emulated board a seeded sample of them."""
    if not emulated:
        return evaluation
    rows = max(EMULATED_ROWS, int(EMULATED_MACS / package.spec.macs(package.sequence)))
    if rows >= len(evaluation):
        return evaluation
    chosen = np.sort(np.random.default_rng(seed).permutation(len(evaluation))[:rows])
    return evaluation.take(chosen)


def judge(
    outputs: NDArray[Any], data: Dataset, metric: str, reference: NDArray[Any], provenance: str
) -> AccuracyRecord | None:
    """What the board's outputs [N, …] are worth: accuracy against labels, or cosine against the fp32 reference."""
    if metric == "accuracy":
        if data.labels is None:
            return None
        value = accuracy(outputs, data.labels)
        return AccuracyRecord(
            value, wilson_lower95(value, len(data)), len(data), provenance, accuracy(reference, data.labels)
        )
    values = cosines(outputs, reference)
    return AccuracyRecord(float(values.mean()), mean_lower95(values), len(data), provenance, 1.0)


def record_candidate(
    candidate: Candidate,
    measurement: Mapping[str, Any] | None,
    workdir: Path,
    data: Dataset,
    metric: str,
    reference: NDArray[Any],
) -> CandidateRecord:
    """The candidate with its measurement and its accuracy on the board, as the store keeps it."""
    artifact = candidate.artifact
    digest = artifact_sha256(candidate.folder) if artifact is not None else ""
    if artifact is None or measurement is None:
        return CandidateRecord(
            candidate.name, candidate.scheme, candidate.converter, candidate.recipe, refused=candidate.refused
        )
    evaluation, judged = measurement.get("evaluation"), None
    if evaluation:
        raw = np.fromfile(workdir / digest / evaluation["outputs"], "<f4")
        judged = judge(raw.reshape(len(data), *artifact.outputs[0].shape[1:]), data, metric, reference,
                       str(evaluation["provenance"]))
    return CandidateRecord(
        name=candidate.name,
        scheme=candidate.scheme,
        converter=candidate.converter,
        recipe=candidate.recipe,
        path=str(candidate.folder),
        bytes=artifact.bytes,
        bytes_with_runtime=artifact.bytes_with_runtime,
        sha256=digest,
        notes=(*artifact.notes, *([str(measurement["built"])] if measurement.get("built") else [])),
        measurement=measurement,
        accuracy=judged,
        workdir=workdir / digest,
    )
