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
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edgesdk.data import Dataset
from edgesdk.errors import StageError
from edgesdk.package import Encodings, LineageEntry, Package, content_digest, signature
from edgesdk.transformer.spec import TransformerSpec

Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """The progress callback that shows nothing."""


class Options(BaseModel):
    """Options of a stage as a recipe gives them; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Outline:
    """What is known of a package before any work.

    Attributes:
        training: whether there is labelled training data.
        text: whether the data hold their texts and the package a tokenizer, so that rows can be encoded anew.
        sparse_block: (outputs, inputs) of the target's sparse kernels; None where the target is not known.
        proving: rows that can prove a promise: those held out, else half of the validation data; None: not known.
    """

    spec: TransformerSpec
    scheme: str
    task: str
    training: bool
    text: bool = False
    sparse_block: tuple[int, int] | None = None
    proving: int | None = None


@dataclass(frozen=True)
class Context:
    """What a stage may use besides its package. Data are encoded for the package that the stage gets.

    Attributes:
        train: None where no training data was given; `calibration` then comes from the evaluation data, which the
            report says.
        validation: rows that training may look at to stop or to choose its best weights.
        teacher: the imported fp32 package; it may have another tokenizer (see `edgesdk.encode.encoded_for`).
        seed: makes the stage repeatable.
        holdout: rows that no training has looked at, for bounds that must hold (thresholds of exits); None where there
            are none, and then `validation` serves and the bound is weaker than it says.
        sparse_block: (outputs, inputs) of the target's sparse kernels.
        checkpoints: folder for the state of unfinished training, so that a killed run goes on; None keeps none.
    """

    train: Dataset | None
    validation: Dataset
    calibration: Dataset
    teacher: Package
    seed: int
    progress: Progress = silent
    holdout: Dataset | None = None
    sparse_block: tuple[int, int] | None = None
    checkpoints: Path | None = None

    @property
    def training(self) -> bool:
        """Whether there is training data: labelled for classifiers, any for encoders (their teacher is the target)."""
        return self.train is not None and (self.train.labels is not None or self.teacher.spec.classes is None)

    def outline(self, package: Package) -> Outline:
        """The outline of an existing package in this context."""
        text = bool(package.preprocess) and self.calibration.texts is not None
        outline = outline_of(package, self.training, text, self.sparse_block)
        held = self.held_out
        return dataclasses.replace(outline, proving=len(self.validation) // 2 if held is None else len(held))

    @property
    def held_out(self) -> Dataset | None:
        """`holdout` where it is another set than `validation`."""
        holdout = self.holdout
        return None if holdout is None or holdout.digest == self.validation.digest else holdout

    def encoded_for(self, package: Package) -> Context:
        """The same context with every row encoded by the tokenizer of `package`."""
        from edgesdk.encode import encoded_for

        def rows(data: Dataset | None) -> Dataset | None:
            return None if data is None else encoded_for(package, data)

        return dataclasses.replace(
            self, train=rows(self.train), holdout=rows(self.holdout),
            validation=encoded_for(package, self.validation), calibration=encoded_for(package, self.calibration),
        )


@dataclass(frozen=True)
class Change:
    """What `apply` gives back; None keeps what the package has. A stage that changes the tokenizer gives `preprocess`
    and the sample inputs in its new tokens. `figures` of the work go into the lineage beside the metrics."""

    spec: TransformerSpec | None = None
    weights: Mapping[str, NDArray[np.float32]] | None = None
    encodings: Encodings | None = None
    preprocess: Mapping[str, bytes] | None = None
    calibration: Mapping[str, NDArray[Any]] | None = None
    golden_inputs: Mapping[str, NDArray[Any]] | None = None
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Stage(ABC):
    """Base of all stages. `name` is the word in recipes."""

    name: ClassVar[str]
    options_type: ClassVar[type[Options]]

    def __init__(self, options: Options) -> None:
        self.options = options

    @property
    def trains(self) -> bool:
        """Whether it needs training data: its options are those of the trainer, unless it says otherwise."""
        return "epochs" in self.options_type.model_fields

    @property
    def exact(self) -> bool:
        """Whether `ensures` knows every size. Where sizes are found by the work (ranks or widths under a budget), it
        promises a model of the same inputs and outputs, and its sizes are an estimate."""
        return True

    @abstractmethod
    def requires(self, outline: Outline) -> list[str]:
        """Reasons why this stage cannot run here; empty when it can."""

    @abstractmethod
    def ensures(self, outline: Outline) -> Outline:
        """What comes out: exact spec and scheme. Only called where `requires` is content."""

    @abstractmethod
    def apply(self, package: Package, context: Context) -> Change:
        """Do the work."""


def outline_of(
    package: Package, training: bool, text: bool = False, sparse_block: tuple[int, int] | None = None
) -> Outline:
    """The outline of an existing package."""
    return Outline(package.spec, package.scheme, package.task, training, text, sparse_block)


def run_stage(stage: Stage, package: Package, context: Context) -> Package:
    """Run one stage with all its checks; see the module's text.

    Raises:
        StageError: the requirement is not met, or the stage broke its promise.
        VerifyError: the package that came out contradicts itself.
    """
    from edgesdk.evaluate import golden_outputs
    from edgesdk.transformer.graph import write_graph
    from edgesdk.verify import verify

    given = context
    context = given.encoded_for(package)
    before = context.outline(package)
    reasons = stage.requires(before)
    if reasons:
        raise StageError(f"stage {stage.name}: " + "; ".join(reasons))
    change = stage.apply(package, context)
    spec = change.spec or package.spec
    weights = package.weights if change.weights is None else change.weights
    encodings = package.encodings if change.encodings is None else change.encodings
    graph = write_graph(spec, weights, encodings)
    inputs = package.samples.golden_inputs if change.golden_inputs is None else change.golden_inputs
    golden_float, own = golden_outputs(spec, weights, graph, encodings is not None, inputs)
    samples = dataclasses.replace(
        package.samples, golden_float=golden_float, golden_outputs=own, golden_inputs=inputs,
        calibration=package.samples.calibration if change.calibration is None else change.calibration,
    )
    changed = dataclasses.replace(
        package, spec=spec, weights=weights, encodings=encodings, graph=graph, samples=samples,
        preprocess=package.preprocess if change.preprocess is None else change.preprocess,
    )
    promised = stage.ensures(before)
    if not _kept(stage, promised, changed):
        raise StageError(f"stage {stage.name}: it promised {promised.scheme} {promised.spec}, made {changed.spec}")
    entry = LineageEntry(
        stage=stage.name,
        parameters=stage.options.model_dump(mode="json"),
        seed=context.seed,
        parent=content_digest(package),
        metrics_before=_metrics(package, given),
        metrics_after={**_metrics(changed, given), **change.figures},
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


def _kept(stage: Stage, promised: Outline, made: Package) -> bool:
    if promised.scheme != made.scheme:
        return False
    if stage.exact:
        return promised.spec == made.spec
    return signature(promised.spec) == signature(made.spec)


_METRICS: dict[tuple[str, ...], dict[str, float]] = {}


def _metrics(package: Package, context: Context) -> dict[str, float]:
    """The package's metrics on the validation rows; what one stage leaves is what the next one finds, so it is kept."""
    from edgesdk.dynamic_report import dynamic_metrics
    from edgesdk.encode import encoded_for
    from edgesdk.evaluate import evaluate_package

    data = encoded_for(package, context.validation)
    parts = (dataclasses.replace(package, lineage=()), context.teacher)
    key = (*(content_digest(part) for part in parts), data.digest)
    if key not in _METRICS:
        value = evaluate_package(package, data, context.teacher)
        _METRICS[key] = {} if value is None else {package.metric: round(value, 6)}
        _METRICS[key] |= dynamic_metrics(package, data)
    return _METRICS[key]


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
