"""The one training loop: AdamW, warm-up then cosine, best weights on the validation data, repeatable from its seed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgesdk.data import Dataset
from edgesdk.stages.base import Progress, silent
from edgesdk.transformer.module import Transformer, run

Loss = Callable[[Tensor, NDArray[np.int64]], Tensor]


@dataclass(frozen=True)
class Schedule:
    """`learning_rate` is the peak; the first `warmup` share of the steps rises to it linearly."""

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float = 0.01
    warmup: float = 0.1


def train(
    module: Transformer,
    data: Dataset,
    loss: Loss,
    schedule: Schedule,
    seed: int,
    validate: Callable[[NDArray[Any]], float],
    validation: Dataset,
    progress: Progress = silent,
) -> float:
    """Train in place and leave the weights that were best on the validation data.

    Args:
        loss: (outputs [B, …], row numbers [B] of `data`) → scalar.
        validate: (outputs on the validation data) → a figure, higher is better.

    Returns:
        the best validation figure.
    """
    order = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(module.parameters(), schedule.learning_rate, weight_decay=schedule.weight_decay)
    steps = max(1, math.ceil(len(data) / schedule.batch)) * schedule.epochs
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, schedule.warmup))
    best, best_weights, step = -math.inf, copy.deepcopy(module.state_dict()), 0
    for _ in range(schedule.epochs):
        module.train()
        rows = order.permutation(len(data))
        for start in range(0, len(rows), schedule.batch):
            chosen = rows[start : start + schedule.batch]
            value = loss(module(_tensors(data.inputs, chosen)), chosen)
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            step += 1
            progress("training", step, steps)
        module.eval()
        figure = validate(run(module, validation.inputs))
        # ">=": later weights of an equal figure have seen the lower learning rates.
        if figure >= best:
            best, best_weights = figure, copy.deepcopy(module.state_dict())
    module.load_state_dict(best_weights)
    return best


def _rate(step: int, steps: int, warmup: float) -> float:
    rising = max(1, int(steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _tensors(inputs: Mapping[str, NDArray[Any]], rows: NDArray[np.int64]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(value[rows])) for name, value in inputs.items()}
