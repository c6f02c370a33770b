"""A stage: one compression step, Package → Package.

A stage says what it `requires`, does its work in `apply`, and promises in `ensures` what comes out, all over an
`Outline` (spec and scheme) that costs nothing, so that `edgesdk plan` can refuse a recipe before any work. Only
`run_stage` is called from outside: it checks the requirement, applies, writes graph and golden outputs anew, checks
the promise and adds the lineage entry.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgesdk.data import Dataset
from edgesdk.errors import StageError
from edgesdk.package import Encodings, LineageEntry, Package, content_digest
from edgesdk.transformer.spec import TransformerSpec

Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """The progress callback that shows nothing."""


class Options(BaseModel):
    """Options of a stage as a recipe gives them; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Outline:
    """What is known of a package before any work: `training` says whether there is labelled training data."""

    spec: TransformerSpec
    scheme: str
    task: str
    training: bool


@dataclass(frozen=True)
class Context:
    """What a stage may use besides its package.

    `train` is None where no training data was given; `calibration` then comes from the evaluation data, which the
    report says. `teacher` is the imported fp32 package. `seed` makes the stage repeatable.
    """

    train: Dataset | None
    validation: Dataset
    calibration: Dataset
    teacher: Package
    seed: int
    progress: Progress = silent

    @property
    def training(self) -> bool:
        """Whether there is labelled training data."""
        return self.train is not None and self.train.labels is not None


@dataclass(frozen=True)
class Change:
    """What `apply` gives back; None keeps what the package has."""

    spec: TransformerSpec | None = None
    weights: Mapping[str, NDArray[np.float32]] | None = None
    encodings: Encodings | None = None


class Stage(ABC):
    """Base of all stages. `name` is the word in recipes."""

    name: ClassVar[str]
    options_type: ClassVar[type[Options]]

    def __init__(self, options: Options) -> None:
        self.options = options

    @abstractmethod
    def requires(self, outline: Outline) -> list[str]:
        """Reasons why this stage cannot run here; empty when it can."""

    @abstractmethod
    def ensures(self, outline: Outline) -> Outline:
        """What comes out: exact spec and scheme. Only called where `requires` is content."""

    @abstractmethod
    def apply(self, package: Package, context: Context) -> Change:
        """Do the work."""


def outline_of(package: Package, training: bool) -> Outline:
    """The outline of an existing package."""
    return Outline(package.spec, package.scheme, package.task, training)


def run_stage(stage: Stage, package: Package, context: Context) -> Package:
    """Run one stage with all its checks; see the module's text.

    Raises:
        StageError: the requirement is not met, or the stage broke its promise.
        VerifyError: the package that came out contradicts itself.
    """
    from edgesdk.evaluate import golden_outputs
    from edgesdk.transformer.graph import write_graph
    from edgesdk.verify import verify

    before = outline_of(package, context.training)
    reasons = stage.requires(before)
    if reasons:
        raise StageError(f"stage {stage.name}: " + "; ".join(reasons))
    change = stage.apply(package, context)
    spec = change.spec or package.spec
    weights = package.weights if change.weights is None else change.weights
    encodings = package.encodings if change.encodings is None else change.encodings
    graph = write_graph(spec, weights, encodings)
    inputs = package.samples.golden_inputs
    golden_float, own = golden_outputs(spec, weights, graph, encodings is not None, inputs)
    samples = dataclasses.replace(package.samples, golden_float=golden_float, golden_outputs=own)
    changed = dataclasses.replace(
        package, spec=spec, weights=weights, encodings=encodings, graph=graph, samples=samples
    )
    promised = stage.ensures(before)
    if (changed.spec, changed.scheme) != (promised.spec, promised.scheme):
        raise StageError(f"stage {stage.name}: it promised {promised.scheme} {promised.spec}, made {changed.spec}")
    entry = LineageEntry(
        stage=stage.name,
        parameters=stage.options.model_dump(mode="json"),
        seed=context.seed,
        parent=content_digest(package),
        metrics_before=_metrics(package, context.validation),
        metrics_after=_metrics(changed, context.validation),
        bytes_before=len(package.graph),
        bytes_after=len(changed.graph),
        parameters_before=package.spec.parameters(),
        parameters_after=changed.spec.parameters(),
        macs_before=package.spec.macs(package.sequence),
        macs_after=changed.spec.macs(changed.sequence),
    )
    changed = dataclasses.replace(changed, lineage=(*package.lineage, entry))
    verify(changed)
    return changed


def _metrics(package: Package, data: Dataset) -> dict[str, float]:
    from edgesdk.evaluate import evaluate_package

    value = evaluate_package(package, data)
    return {} if value is None else {package.metric: round(value, 6)}


def scope_matches(scope: str, names: list[str], where: str) -> list[str]:
    """Names that a glob pattern chooses.

    Raises:
        StageError: the pattern matches nothing, which is an error and never silence.
    """
    from fnmatch import fnmatchcase

    chosen = [name for name in names if fnmatchcase(name, scope)]
    if not chosen:
        raise StageError(f"{where}: scope {scope!r} matches nothing", "the model has " + ", ".join(names[:6]))
    return chosen


def options_from(stage_type: type[Stage], values: Mapping[str, Any]) -> Options:
    """Validated options (pydantic.ValidationError goes to the recipe reader, which names the key)."""
    return stage_type.options_type.model_validate(dict(values))
