"""The one trainer: every stage that learns calls `fit`. This module loads no torch; the loop is `train_loop.py`.

AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with linear warm-up and a cosine down to zero, batches of rows of
similar length, bfloat16 where the hardware has it, structural zeros kept, the best weights on the validation data,
repeatable from the seed, and a killed run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from pydantic import Field

from edgesdk.stages.base import Context, Options

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgesdk.transformer.module import Transformer


class TrainingOptions(Options):
    """Options of every stage that trains; they inherit it.

    Attributes:
        temperature, alpha: of the distillation loss (`targets.recovery_loss`); alpha weighs the hard labels.
        epochs: passes over the training data; parts of a pass are allowed (0.25).
        learning_rate: the peak, which the first tenth of the steps rises to.
        head_learning_rate: of classifier, exits and gates; None: five times `learning_rate`.
        patience: stop after so many validations without a better score; None: never.
    """

    temperature: float = Field(default=2.0, gt=0, le=100)
    alpha: float = Field(default=0.3, ge=0, le=1)
    epochs: float = Field(default=1.0, gt=0, le=1000)
    batch: int = Field(default=64, ge=1, le=65536)
    learning_rate: float = Field(default=2e-4, gt=0, lt=1)
    head_learning_rate: float | None = Field(default=None, gt=0, lt=1)
    patience: int | None = Field(default=None, ge=1)


class Loss(Protocol):
    """What `fit` makes small."""

    def __call__(self, module: Transformer, batch: dict[str, Tensor], rows: Tensor) -> Tensor:
        """Scalar loss of a batch: `batch` holds the named inputs [B, …], trimmed to the longest row; `rows` int64 [B]
        their numbers in `context.train`. Both lie on the device of the module."""


def fit(
    module: Transformer,
    context: Context,
    options: TrainingOptions,
    loss: Loss,
    *,
    what: str,
    extra: nn.Module | None = None,
    parameters: Iterable[nn.Parameter] | None = None,
    score: Callable[[Transformer], float] | None = None,
    after_step: Callable[[int, int], None] | None = None,
    forward_context: Callable[[], AbstractContextManager[object]] | None = None,
) -> float:
    """Train `module` in place on `context.train` and leave its best weights in it, in evaluation mode, on the CPU.

    Args:
        what: name of this training in progress and in its checkpoint, such as "distill".
        extra: trained with it and best-of-all like it (projections, learned scales); its buffers are kept in
            checkpoints too, so state that a resumed run needs belongs there.
        parameters: train only these (and `extra`); None: all.
        score: judges the module on the validation data at the end of each epoch, higher is better; default: accuracy
            of the last output, or mean cosine to the teacher for encoders.
        after_step: called as (steps done, all steps) after each step, structural zeros already restored; a resumed run
            first calls it with the steps done before.
        forward_context: entered around each step's forward and backward pass, and around `score`.

    Returns:
        the best score.

    Raises:
        StageError: there is no training data, or the loss is not finite.
    """
    from edgesdk.stages.train_loop import Training

    training = Training(module, context, options, loss, what, extra, parameters, score, after_step, forward_context)
    return training.run()
