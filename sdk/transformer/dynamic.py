"""Dynamic inference in torch: which inputs leave at which exit, and which layers a gate lets run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgesdk.transformer.spec import Exit, TransformerSpec


@dataclass(frozen=True)
class Trace:
    """What one pass gives: `output` of the whole model, `exits` layer → logits [B, C], `gates` layer → logits [B]
    (above 0 the layer runs)."""

    output: Tensor
    exits: dict[int, Tensor]
    gates: dict[int, Tensor]


def straight_through(logits: Tensor, training: bool) -> Tensor:
    """Gate logits [B] → 0 or 1 [B]. In training the gradient is that of the sigmoid (Bengio et al. 2013,
    arXiv:1308.3432)."""
    hard = (logits > 0).to(logits.dtype)
    if not training:
        return hard
    soft = logits.sigmoid()
    return hard + soft - soft.detach()


def scores(exit_: Exit, logits: Tensor) -> Tensor:
    """What an exit compares with its threshold, [B]: the largest probability, or the entropy divided by log C."""
    probabilities = logits.float().softmax(-1)
    if exit_.criterion == "confidence":
        return probabilities.amax(-1)
    entropy = -(probabilities * probabilities.clamp_min(1e-12).log()).sum(-1)
    return entropy / math.log(max(2, logits.shape[-1]))


def leaves(exit_: Exit, history: Sequence[Tensor]) -> Tensor:
    """Whether each input leaves, bool [B]. `history` holds the logits [B, C] of the exits up to and with this one."""
    last, threshold = history[-1], exit_.threshold
    if threshold is None:
        return torch.zeros(len(last), dtype=torch.bool, device=last.device)
    if exit_.criterion == "confidence":
        return scores(exit_, last) >= threshold
    if exit_.criterion == "entropy":
        return scores(exit_, last) <= threshold
    patience = int(threshold)
    agree = torch.full((len(last),), len(history) > patience, dtype=torch.bool, device=last.device)
    for earlier in history[-1 - patience : -1]:
        agree &= earlier.argmax(-1) == last.argmax(-1)
    return agree


def choose(spec: TransformerSpec, trace: Trace) -> tuple[Tensor, Tensor]:
    """The output [B, …] that each input leaves with, and the index of the layer after which it left, int64 [B]."""
    output = trace.output
    left = torch.full((len(output),), len(spec.layers) - 1, dtype=torch.int64, device=output.device)
    if not spec.exits():
        return output, left
    inside = torch.ones(len(output), dtype=torch.bool, device=output.device)
    history: list[Tensor] = []
    for index in spec.exits():
        exit_ = spec.layers[index].exit
        assert exit_ is not None
        history.append(trace.exits[index])
        leaving = inside & leaves(exit_, history)
        output = torch.where(leaving[:, None], history[-1].to(output.dtype), output)
        left = torch.where(leaving, index, left)
        inside &= ~leaving
    return output, left
