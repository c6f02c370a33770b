"""Losses on what happens inside teacher and student: hidden states and attention relations.

Shapes: B batch, S sequence, H hidden, A relation heads. This module loads torch: import it inside `apply`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgesdk.stages.base import Context
from edgesdk.stages.targets import recovery_loss
from edgesdk.transformer.module import MASK, Transformer, build
from edgesdk.transformer.spec import TransformerSpec

if TYPE_CHECKING:
    from edgesdk.stages.distill import DistillOptions

RELATION_HEADS = 48  # at most, as in MiniLMv2 for small students
RELATION_WIDTH = 8  # at least


class InsideLoss:
    """A `Loss`: `recovery_loss` plus the weighted losses inside. `projection` (student's H → teacher's H) is trained
    with the student where their widths differ, else None."""

    def __init__(self, spec: TransformerSpec, context: Context, options: DistillOptions) -> None:
        self.options = options
        self.teacher = build(context.teacher.spec, context.teacher.weights).requires_grad_(False)
        self.student_taps: dict[str, Tensor] = {}
        self.recovery = recovery_loss(context, options, self._tap_student)
        self.pairs = layer_map(len(spec.layers), len(context.teacher.spec.layers))
        last, teacher_last = len(spec.layers) - 1, len(context.teacher.spec.layers) - 1
        self.relations = [
            (f"layers.{last}.attention.{part}", f"layers.{teacher_last}.attention.{part}")
            for part in ("query", "key", "value")
        ]
        self.projection: nn.Linear | None = None
        if options.hidden and spec.hidden != context.teacher.spec.hidden:
            with torch.random.fork_rng([]):
                torch.manual_seed(context.seed)
                self.projection = nn.Linear(spec.hidden, context.teacher.spec.hidden)
        self.wanted = {f"layers.{own}.result" for own, _ in self.pairs} if options.hidden else set()
        self.wanted |= {own for own, _ in self.relations} if options.attention else set()

    def __call__(self, module: Transformer, batch: dict[str, Tensor], rows: Tensor) -> Tensor:
        self.student_taps.clear()
        loss = self.recovery(module, batch, rows)
        taps: dict[str, Tensor] = {}
        self.teacher.to(rows.device)
        with torch.no_grad():
            self.teacher.trace(batch, lambda name, value: taps.setdefault(name, value))
        mask = batch.get("attention_mask")
        if self.options.hidden:
            found = [self._hidden(own, taught, taps, mask) for own, taught in self.pairs]
            loss = loss + self.options.hidden * torch.stack(found).mean()
        if self.options.attention:
            found = [relation_loss(self.student_taps[own], taps[taught], mask) for own, taught in self.relations]
            loss = loss + self.options.attention * torch.stack(found).mean()
        return loss

    def _hidden(self, own: int, taught: int, taps: dict[str, Tensor], mask: Tensor | None) -> Tensor:
        student = self.student_taps[f"layers.{own}.result"]
        if self.projection is not None:
            student = self.projection(student)
        return hidden_loss(student, taps[f"layers.{taught}.result"], mask)

    def _tap_student(self, name: str, value: Tensor) -> Tensor:
        if name in self.wanted:
            self.student_taps[name] = value
        return value


def layer_map(student: int, teacher: int) -> list[tuple[int, int]]:
    """(student's layer, teacher's layer), evenly, the last on the last: 2 of 6 → (0, 2), (1, 5)."""
    return [(index, max(0, round((index + 1) * teacher / student) - 1)) for index in range(student)] if teacher else []


def hidden_loss(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared error of hidden states [B, S, H], each token normalised to mean 0 and variance 1; no padding."""
    width = (teacher.shape[-1],)
    error = functional.layer_norm(student.float(), width) - functional.layer_norm(teacher.float(), width)
    return _mean_of_tokens(error.square().mean(-1), mask)


def relation_loss(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """KL(teacher ‖ student) of softmax(X·Xᵀ/√d) of queries, keys or values X [B, S, width], in `relation_heads` heads,
    mean over heads and tokens that are not padding. The widths may differ."""
    heads = relation_heads(student.shape[-1], teacher.shape[-1])
    own, taught = (_log_relations(value.float(), heads, mask) for value in (student, teacher))
    divergence = (taught.exp() * (taught - own)).sum(-1).mean(1)
    return _mean_of_tokens(divergence, mask)


def relation_heads(student: int, teacher: int) -> int:
    """The largest number of heads that both widths can be split into: at most 48, at least 8 wide where possible."""
    most = max(1, min(RELATION_HEADS, min(student, teacher) // RELATION_WIDTH))
    common = math.gcd(student, teacher)
    return max(count for count in range(1, most + 1) if common % count == 0)


def _log_relations(value: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """[B, S, width] → log-probabilities [B, A, S, S]."""
    batch, sequence, width = value.shape
    split = value.reshape(batch, sequence, heads, width // heads).transpose(1, 2)
    scores = split @ split.transpose(2, 3) * (width // heads) ** -0.5
    if mask is not None:
        scores = scores + (1.0 - mask[:, None, None, :].float()) * MASK
    result: Tensor = scores.log_softmax(-1)
    return result


def _mean_of_tokens(value: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of [B, S] over tokens that are not padding."""
    if mask is None:
        return value.mean()
    total: Tensor = (value * mask).sum()
    return total / mask.sum().clamp_min(1)
