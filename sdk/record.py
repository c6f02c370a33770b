"""Records of a build: what the pipeline hands to the store, and what selection and reports read from it.

Plain frozen data. `plain` turns a record into JSON; `build_from_plain` and `candidate_from_plain` read it back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class AccuracyRecord:
    """`value` and `lower95` (one-sided lower 95 % bound) are fractions of `n` rows. `baseline` is the accuracy of the
    fp32 reference over the same rows, where they are not the rows of `BuildRecord.baseline` (an emulated board
    evaluates a sample)."""

    value: float
    lower95: float
    n: int
    provenance: str
    baseline: float | None = None


@dataclass(frozen=True)
class BaselineRecord:
    """The fp32 reference: accuracy as a fraction of `n` rows (None where there is no evaluation data), `bytes` of its
    ONNX file with embeddings."""

    accuracy: float | None
    n: int
    bytes: int
    provenance: str


@dataclass(frozen=True)
class Figures:
    """What a stage changes: bytes of the package's model, parameters, multiply-accumulates in the worst case, accuracy
    (fraction). `work` holds what `edgesdk.dynamic_report.dynamic_metrics` says where the work depends on the input,
    and figures of the stage's own."""

    bytes: int | None = None
    parameters: int | None = None
    macs: int | None = None
    accuracy: float | None = None
    work: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class StageRecord:
    """One stage of a recipe: `options` as the recipe gives them, figures on both sides, wall time in seconds."""

    stage: str
    before: Figures
    after: Figures
    seconds: float | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class CandidateRecord:
    """One artifact of a build: its metadata, its measurement (format `edgesdk.measurement`) and its accuracy.

    `refused` holds the reasons of a preflight or a conversion that failed; then there is neither measurement nor
    accuracy, and sizes are None. `workdir` is the folder that the measurement's paths are relative to; it is needed
    for `Store.add_build` only and is not stored.
    """

    name: str
    scheme: str
    converter: str
    recipe: str
    path: str | None = None
    bytes: int | None = None
    bytes_with_runtime: int | None = None
    sha256: str | None = None
    notes: tuple[str, ...] = ()
    measurement: Mapping[str, Any] | None = None
    accuracy: AccuracyRecord | None = None
    refused: tuple[str, ...] = ()
    workdir: Path | None = None

    @property
    def valid(self) -> bool:
        """Whether it ran, gave the right outputs and was measured well."""
        return not self.refused and self.measurement is not None and bool(self.measurement.get("valid"))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not valid."""
        measured = tuple(str(reason) for reason in (self.measurement or {}).get("reasons", ()))
        missing = ("not measured",) if self.measurement is None and not self.refused else ()
        return self.refused + measured + missing

    def figure(self, *keys: str | int) -> Any:
        """A value of the measurement by its keys (`figure("latency_ms", "ci95", 0)`), None where there is none."""
        value: Any = self.measurement
        for key in keys:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                return None
        return value


@dataclass(frozen=True)
class BuildRecord:
    """One build: what went in, what came out, what was measured. `started` is UTC, ISO-8601; `provenance` is that of
    the board (`measured` or `emulated`); `lineage` maps recipe → its stages; `metric` is what accuracies are
    (`accuracy`, or `cosine` to the fp32 reference); `command` is the argv that makes the build again; `facts` are those
    of the board; `notes` are said in the report as they are. ValueError where two candidates share a name."""

    model: str
    target: str
    board: str
    provenance: str
    started: str
    package: str
    package_sha256: str
    seed: int
    goals: Mapping[str, str]
    baseline: BaselineRecord
    lineage: Mapping[str, tuple[StageRecord, ...]]
    candidates: tuple[CandidateRecord, ...]
    profile: str = "smoke"
    metric: str = "accuracy"
    command: tuple[str, ...] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [candidate.name for candidate in self.candidates]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"candidates of one build share a name: {', '.join(doubled)}")

    @property
    def emulated(self) -> bool:
        return self.provenance == "emulated"


def plain(record: BuildRecord | CandidateRecord) -> dict[str, Any]:
    """The record as JSON; the candidates of a build are stored one by one, so its list is left empty."""
    if isinstance(record, BuildRecord):
        record = dataclasses.replace(record, candidates=())
    document = dataclasses.asdict(record)
    document.pop("workdir", None)
    return document


def candidate_from_plain(document: dict[str, Any]) -> CandidateRecord:
    """Read what `plain` made of a candidate."""
    accuracy = document.pop("accuracy")
    notes, refused = tuple(document.pop("notes")), tuple(document.pop("refused"))
    accuracy = AccuracyRecord(**accuracy) if accuracy else None
    return CandidateRecord(**document, accuracy=accuracy, notes=notes, refused=refused)


def build_from_plain(document: dict[str, Any]) -> BuildRecord:
    """Read what `plain` made of a build (without its candidates)."""
    lineage = {recipe: tuple(_stage(stage) for stage in stages) for recipe, stages in document.pop("lineage").items()}
    lists = {key: tuple(document.pop(key)) for key in ("candidates", "command", "notes")}
    return BuildRecord(**document | lists | {"lineage": lineage, "baseline": BaselineRecord(**document["baseline"])})


def _stage(document: dict[str, Any]) -> StageRecord:
    return StageRecord(**document | {side: Figures(**document[side]) for side in ("before", "after")})
