"""AdamW for the trainer: fused, with clipping, and lazy for the token table, most of whose rows no batch holds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

HEADS = ("classifier", "exit", "gate")
WEIGHT_DECAY, CLIP = 0.01, 1.0
BETAS, EPSILON = (0.9, 0.999), 1e-8
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Optimizer:
    """AdamW over named parameters, at one learning rate for the heads and one for everything else. Vectors (norms,
    biases, scales) do not decay.

    `table` names a parameter with sparse gradients: only its rows in the batch are moved, and their moments with them
    (lazy Adam, as `torch.optim.SparseAdam`); it does not decay. A dense step over a vocabulary costs more than a layer.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], rate: float, head_rate: float, table: str | None) -> None:
        self.trained, self.table = trained, None if table is None else trained[table]
        self.rate = rate
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, value in trained.items():
            if name == table:
                continue
            is_head = any(part in HEADS for part in name.split(".")) and not name.startswith("extra.")
            kind = (head_rate if is_head else rate, WEIGHT_DECAY if value.dim() > 1 else 0.0)
            groups.setdefault(kind, []).append(value)
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}
        self.adamw: torch.optim.AdamW | None = None
        if groups:
            self.adamw = torch.optim.AdamW(
                [
                    {"params": values, "lr": peak, "peak": peak, "weight_decay": decay}
                    for (peak, decay), values in groups.items()
                ],
                betas=BETAS, eps=EPSILON, fused=True,
            )
        for value in trained.values():
            # Made now, so that a checkpoint of any step has the same tensors.
            zero = torch.zeros_like(value, memory_format=torch.preserve_format)
            moments = (zero, zero.clone(), torch.zeros((), device=value.device))
            self.state[value] = dict(zip(MOMENTS, moments, strict=True))
            if self.adamw is not None and value is not self.table:
                self.adamw.state[value] = self.state[value]

    def clear(self) -> None:
        """Forget the gradients."""
        for value in self.trained.values():
            value.grad = None

    def step(self, factor: float) -> None:
        """Clip the gradients to norm `CLIP` and take a step at `factor` of the peak learning rates."""
        self._clip()
        if self.adamw is not None:
            for group in self.adamw.param_groups:
                group["lr"] = group["peak"] * factor
            self.adamw.step()
        if self.table is not None and self.table.grad is not None:
            self._step_rows(self.table, self.rate * factor)

    def tensors(self) -> dict[str, Tensor]:
        """The moments, for a checkpoint."""
        return {
            f"{moment}.{name}": self.state[value][moment] for name, value in self.trained.items() for moment in MOMENTS
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the moments of a checkpoint back."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])

    def _clip(self) -> None:
        gradients = []
        for value in self.trained.values():
            if value.grad is not None and value.grad.is_sparse:
                value.grad = value.grad.coalesce()
                gradients.append(value.grad.values())
            elif value.grad is not None:
                gradients.append(value.grad)
        if not gradients:
            return
        norm = torch.nn.utils.get_total_norm(gradients)
        if norm > CLIP:
            torch._foreach_mul_(gradients, CLIP / norm)

    def _step_rows(self, table: nn.Parameter, rate: float) -> None:
        gradient, state = table.grad, self.state[table]
        assert gradient is not None
        if not gradient.is_sparse:  # a loss that looks at the whole table
            gradient = gradient.to_sparse(1)
        rows, values = gradient.coalesce().indices()[0], gradient.coalesce().values()
        state["step"] += 1
        count = float(state["step"])
        with torch.no_grad():
            mean = state["exp_avg"][rows].lerp_(values, 1 - BETAS[0])
            square = state["exp_avg_sq"][rows].mul_(BETAS[1]).addcmul_(values, values, value=1 - BETAS[1])
            state["exp_avg"][rows], state["exp_avg_sq"][rows] = mean, square
            deviation = (square / (1 - BETAS[1] ** count)).sqrt_().add_(EPSILON)
            table[rows] -= rate / (1 - BETAS[0] ** count) * mean / deviation
