"""`distill`: train the package against a teacher: α · cross-entropy + (1 − α) · T² · KL(teacher ‖ student).

Soft labels at temperature T after Hinton et al. 2015 (arXiv:1503.02531); the factor T² keeps the two gradients of one
size. The teacher is the imported fp32 model. It is also how the model recovers from the stages before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgesdk.package import Package
from edgesdk.stages.base import Change, Context, Options, Outline, Stage

if TYPE_CHECKING:
    from torch import Tensor


class DistillOptions(Options):
    """`alpha` weighs the hard labels, 1 − alpha the soft ones at `temperature`."""

    temperature: float = Field(default=4.0, gt=0, le=100)
    alpha: float = Field(default=0.3, ge=0, le=1)
    epochs: int = Field(default=5, ge=1, le=1000)
    batch: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0, lt=1)


class Distill(Stage):
    """Recovery by knowledge distillation."""

    name: ClassVar[str] = "distill"
    options_type: ClassVar[type[Options]] = DistillOptions
    options: DistillOptions

    def requires(self, outline: Outline) -> list[str]:
        reasons = []
        if not outline.training:
            reasons.append("it needs labelled training data: give --train-data")
        if outline.scheme != "fp32":
            reasons.append(f"it trains fp32 packages, this one is {outline.scheme}; put it before the quantize stage")
        if outline.task != "classification":
            reasons.append(f"it trains classifiers, this model's task is {outline.task}")
        return reasons

    def ensures(self, outline: Outline) -> Outline:
        return outline

    def apply(self, package: Package, context: Context) -> Change:
        import torch

        from edgesdk.evaluate import accuracy
        from edgesdk.stages.train import Schedule, train
        from edgesdk.transformer.module import build, run, weights_of

        options, data = self.options, context.train
        assert data is not None and data.labels is not None and context.validation.labels is not None
        labels, validation_labels = data.labels, context.validation.labels
        teacher = build(context.teacher.spec, context.teacher.weights)
        teacher_logits = torch.from_numpy(run(teacher, data.inputs))

        def loss(logits: torch.Tensor, rows: NDArray[np.int64]) -> torch.Tensor:
            return distillation_loss(logits, teacher_logits[rows], torch.from_numpy(labels[rows]), options)

        module = build(package.spec, package.weights)
        schedule = Schedule(options.epochs, options.batch, options.learning_rate)
        train(
            module, data, loss, schedule, context.seed,
            lambda outputs: accuracy(outputs, validation_labels), context.validation, context.progress,
        )
        return Change(weights=weights_of(module))


def distillation_loss(logits: Tensor, teacher: Tensor, labels: Tensor, options: DistillOptions) -> Tensor:
    """α · cross-entropy + (1 − α) · T² · KL(teacher ‖ student), mean over the rows of logits [B, C] and labels [B]."""
    from torch.nn import functional

    hard = functional.cross_entropy(logits, labels)
    student = (logits / options.temperature).log_softmax(-1)
    soft = (teacher / options.temperature).log_softmax(-1)
    divergence = functional.kl_div(student, soft, reduction="batchmean", log_target=True)
    return options.alpha * hard + (1 - options.alpha) * options.temperature**2 * divergence
