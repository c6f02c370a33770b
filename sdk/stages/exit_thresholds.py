"""`exit.thresholds`: when inputs leave, set on the model as it is going to run, with a promise.

The promise: with probability 1 − `delta` over the draw of the held-out rows, on new inputs of the same kind

- `loss: gross`: P(the full model is right and the early answer is wrong) ≤ `risk`;
- `loss: net`: that minus P(the full model is wrong and the early answer right) ≤ `risk`, so that accuracy falls by
  `risk` at most;
- without labels: P(the early answer differs from the full model's) ≤ `risk`.

Among the thresholds that are proven to keep it, those with the smallest mean MACs are taken. `exit_policy.py` says
why the promise holds. The paths of thresholds come from the validation data, the proof from the held-out rows, which no
training has seen. Where there are none, half of the validation data proves, and the promise is as much weaker as
training has looked at it; progress and report say so (`proof.rows`, `.worse`, `.better`, `.held_out` of the lineage).
Nothing is trained here, so the stage may and should come after quantization: it runs the package's own graph.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgesdk.bounds import rows_needed
from edgesdk.data import Dataset
from edgesdk.dynamic_report import Traced, lengths_of, row_macs, trace_package
from edgesdk.errors import StageError
from edgesdk.package import Package
from edgesdk.stages.base import Change, Context, Options, Outline, Stage
from edgesdk.stages.exit_policy import ExitTable, agreement, common_path, patience_path, proven, separate_path
from edgesdk.transformer.spec import Criterion, Exit, TransformerSpec


class ExitThresholdsOptions(Options):
    """
    Attributes:
        risk, delta, loss: the promise; see the module.
        thresholds: `common` for all exits, or `separate` ones; patience is always common.
        criterion: replaces the one that the exits were made with; exits need no training for another.
    """

    risk: float = Field(default=0.004, gt=0, lt=1)
    delta: float = Field(default=0.05, gt=0, lt=1)
    loss: Literal["gross", "net"] = "gross"
    thresholds: Literal["common", "separate"] = "separate"
    criterion: Criterion | None = None

MORE_ROWS = "give more --train-data (a tenth of it is held out), or raise risk or delta"
HINT = f"{MORE_ROWS}, or train the exits for longer"


class ExitThresholds(Stage):
    """Thresholds of exits, proven on held-out rows."""

    name: ClassVar[str] = "exit.thresholds"
    options_type: ClassVar[type[Options]] = ExitThresholdsOptions
    options: ExitThresholdsOptions

    @property
    def exact(self) -> bool:
        """The thresholds are found by the work."""
        return False

    def requires(self, outline: Outline) -> list[str]:
        reasons = []
        if all(layer.exit is None for layer in outline.spec.layers):
            reasons.append("the model has no exits; put exit.early before it")
        if outline.proving is not None and outline.proving < rows_needed(self.options.risk, self.options.delta):
            reasons.append(f"{self._too_few(outline.proving)}; {MORE_ROWS}")
        return reasons

    def _too_few(self, rows: int) -> str:
        needed = rows_needed(self.options.risk, self.options.delta)
        return f"{self._promise()} takes {needed} held-out rows even if none of them is lost; there are {rows}"

    def _promise(self) -> str:
        return f"a risk of at most {self.options.risk:g} with confidence {1 - self.options.delta:g}"

    def ensures(self, outline: Outline) -> Outline:
        """An estimate: exits that leave as one with nothing to lose would."""
        spec = outline.spec
        limits = {index: 1.0 for index, layer in enumerate(spec.layers) if layer.exit is not None}
        return dataclasses.replace(outline, spec=with_thresholds(spec, limits, self._criterion(spec)))

    def _criterion(self, spec: TransformerSpec) -> Criterion:
        first = next(layer.exit for layer in spec.layers if layer.exit is not None)
        return self.options.criterion or first.criterion

    def apply(self, package: Package, context: Context) -> Change:
        options, criterion = self.options, self._criterion(package.spec)
        tuning, held = _tables(package, context, criterion, self.name)
        held_out = context.held_out is not None
        if criterion == "patience":
            path = patience_path(held.doubt.shape[1])
        elif options.thresholds == "common":
            path = common_path(tuning)
        else:
            path = separate_path(tuning)
        count = proven(path, held, options.risk, options.delta, options.loss, tuning)
        costs = [held.mean_macs(limits) for limits in path[:count]]
        if not costs or min(costs) >= float(held.macs[:, -1].mean()):
            raise StageError(f"stage {self.name}: {self._unproven(path, tuning, held, count)}", HINT)
        limits = path[int(np.argmin(costs))]
        exits = [index for index, layer in enumerate(package.spec.layers) if layer.exit is not None]
        worse, better = held.changes(limits)
        return Change(
            spec=with_thresholds(package.spec, _thresholds(exits, limits, criterion), criterion),
            figures={
                "proof.rows": len(held), "proof.worse": worse, "proof.better": better, "proof.held_out": int(held_out),
            },
        )

    def _unproven(self, path: NDArray[np.float64], tuning: ExitTable, held: ExitTable, count: int) -> str:
        """Why no thresholds can be promised, in numbers."""
        if len(held) < rows_needed(self.options.risk, self.options.delta):
            return self._too_few(len(held))
        leaving = [limits for limits in path if (tuning.leave(limits) < tuning.doubt.shape[1]).any()]
        if not leaving:
            return "no exit lets any row leave"
        worse, better = held.changes(leaving[0])
        return (
            f"{len(held)} rows do not prove {self._promise()} for any thresholds: the safest that let rows leave lose "
            f"{worse} right answers and win {better} ({count} of {len(path)} steps were proven)"
        )


def _tables(package: Package, context: Context, criterion: Criterion, what: str) -> tuple[ExitTable, ExitTable]:
    """(rows that choose the path, rows that prove)."""
    holdout, validation = context.held_out, context.validation
    if holdout is not None:
        return exit_table(package, validation, criterion), exit_table(package, holdout, criterion)
    context.progress(f"{what}: no held-out rows: half of the validation data proves, a weaker promise", 0, 1)
    if len(validation) < 2:
        raise StageError(f"stage {what}: {len(validation)} rows of validation data", HINT)
    table = exit_table(package, validation, criterion)
    order = np.random.default_rng(context.seed).permutation(len(table))
    half = len(table) // 2
    return table.take(np.sort(order[:half])), table.take(np.sort(order[half:]))


def exit_table(package: Package, data: Dataset, criterion: Criterion) -> ExitTable:
    """What the exits of a package say of data, with what leaving there costs at each row's real length."""
    traced, spec = trace_package(package, data), package.spec
    answers = np.stack([*(traced.exits[index].argmax(-1) for index in traced.exits), traced.output.argmax(-1)], 1)
    labels = answers[:, -1] if data.labels is None else data.labels
    right = answers == labels[:, None]
    return ExitTable(_doubt(traced, answers, criterion), answers, right, _costs(spec, traced, data))


def _doubt(traced: Traced, answers: NDArray[np.int64], criterion: Criterion) -> NDArray[np.float64]:
    import torch

    from edgesdk.transformer.dynamic import scores

    if criterion == "patience":
        return -agreement(answers).astype(np.float64)
    found = [scores(Exit(criterion), torch.from_numpy(logits)).numpy() for logits in traced.exits.values()]
    values = np.stack(found, 1).astype(np.float64)
    return 1.0 - values if criterion == "confidence" else values


def _costs(spec: TransformerSpec, traced: Traced, data: Dataset) -> NDArray[np.float64]:
    """MACs of leaving at each exit and, last, of going through, every exit on the way included."""
    ends = [*traced.exits, len(spec.layers) - 1]
    counted = with_thresholds(spec, dict.fromkeys(traced.exits, 1.0), "confidence")
    lengths = lengths_of(spec, data)
    columns = [row_macs(counted, lengths, np.full(len(data), end), traced.gates) for end in ends]
    return np.stack(columns, 1).astype(np.float64)


def _thresholds(exits: list[int], limits: NDArray[np.float64], criterion: Criterion) -> dict[int, float]:
    """Layer → threshold of the spec, from limits of doubt; exits that let nothing leave are left out."""
    found = {}
    for index, limit in zip(exits, limits, strict=True):
        if np.isfinite(limit):
            found[index] = {"confidence": 1.0 - limit, "entropy": limit, "patience": -limit}[criterion]
    return {index: round(float(value), 6) + 0.0 for index, value in found.items()}


def with_thresholds(
    spec: TransformerSpec, thresholds: dict[int, float], criterion: Criterion
) -> TransformerSpec:
    """The spec with these thresholds; exits without one stay, and no graph holds them."""
    layers = tuple(
        layer if layer.exit is None else dataclasses.replace(layer, exit=Exit(criterion, thresholds.get(index)))
        for index, layer in enumerate(spec.layers)
    )
    return dataclasses.replace(spec, layers=layers)
