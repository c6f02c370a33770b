"""Sparsity that rises during training: s(t) = s · (1 − (1 − t)³), Zhu & Gupta 2017 (arXiv:1710.01878)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from edgesdk.package import Package
from edgesdk.stages.base import Context
from edgesdk.stages.masks import Allocation, Mask, Pattern, choose
from edgesdk.stages.targets import recovery_loss, validation_score
from edgesdk.stages.train import TrainingOptions, fit
from edgesdk.stages.units import Weights
from edgesdk.transformer.module import Transformer, build, weights_of
from edgesdk.transformer.spec import TransformerSpec

# The sparsity rises during this share of the steps, in so many rises; the rest of the training recovers.
RISING, RISES = 0.6, 20


class Schedule:
    """Prunes a module step by step; weights that were zero are the least of their matrix and stay zero."""

    def __init__(
        self, module: Transformer, pattern: Pattern, sparsity: float, allocate: Allocation,
        norms: Mapping[str, NDArray[np.float64]],
    ) -> None:
        self.module, self.pattern, self.sparsity, self.allocate, self.norms = module, pattern, sparsity, allocate, norms
        self.done = 0
        self.steps = 1
        self.masks: dict[str, torch.Tensor] = {}

    def after_step(self, step: int, steps: int) -> None:
        """Choose anew at every rise, and set to zero what is chosen at every step. A resumed run chooses what it had
        chosen at the rise before."""
        reached = rises(step, steps)
        if reached and (reached > self.done or not self.masks):
            self.masks = {name: torch.from_numpy(mask) for name, mask in self.choose(share(reached)).items()}
        self.done, self.steps = reached, steps
        with torch.no_grad():
            for name, mask in self.masks.items():
                parameter = self.module.get_parameter(f"{name}.weight")
                parameter.mul_(mask.to(parameter.device))

    def choose(self, part: float) -> dict[str, Mask]:
        """Masks for `part` (0 to 1) of the sparsity."""
        values = {name: self.module.get_parameter(f"{name}.weight").detach().cpu().numpy() for name in self.norms}
        scores = {name: np.abs(value.astype(np.float64)) * self.norms[name] for name, value in values.items()}
        pattern = self.pattern
        if pattern.kept is not None:
            kept = pattern.columns - round((pattern.columns - pattern.kept) * part)
            pattern = Pattern(1, pattern.columns, kept)
        return choose(scores, pattern, self.sparsity * part, self.allocate)

    @property
    def finished(self) -> bool:
        return self.done == RISES


def rises(step: int, steps: int) -> int:
    """How many rises lie behind `step`; all of them do at the end, however short the training is."""
    return RISES if step >= steps else min(RISES, int(RISES * step / (RISING * steps)))


def share(reached: int) -> float:
    """Part of the sparsity that is reached after so many rises."""
    return 1.0 - (1.0 - reached / RISES) ** 3


def train_gradually(
    package: Package, spec: TransformerSpec, context: Context, options: TrainingOptions, pattern: Pattern,
    norms: Mapping[str, NDArray[np.float64]], sparsity: float, allocate: Allocation,
) -> Weights:
    """The weights after training, with their zeros.

    Args:
        spec: that of the package with its new `sparse`.
        norms: linear layer → what the weights of each input are multiplied with in the score.

    Raises:
        StageError: see `edgesdk.stages.train.fit`.
    """
    module = build(spec, package.weights)
    schedule = Schedule(module, pattern, sparsity, allocate, norms)

    def score(trained: Transformer) -> float:
        # A model that is not sparse yet must not be the best: it is what the training leaves.
        return validation_score(context, trained) if schedule.finished else schedule.done - 2.0 * RISES

    fit(
        module, context, options, recovery_loss(context, options), what="prune.weights", score=score,
        after_step=schedule.after_step,
    )
    return weights_of(module)
