"""Rounding inside a module that trains: layers whose weights, and a tap whose activations, lie on integer grids.

Shapes: N outputs, K inputs, G groups of a row, V table rows. This module loads torch: import it inside `apply`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import Function, FunctionCtx
from torch.nn import functional

from edgesdk.encodings import (
    ActivationEncoding,
    Encodings,
    WeightEncoding,
    input_activation,
    is_float_linear,
)
from edgesdk.stages.calibrate import fitted
from edgesdk.transformer.module import Transformer, weights_of
from edgesdk.transformer.quantize import dequantized

TOKENS, POSITIONS = "embedding.tokens.weight", "embedding.positions.weight"
SMALLEST = 1e-8  # scale


class RoundToGrid(Function):
    """value → step · clip(round(value / step)) in [low, high], with LSQ's gradients: of `value` where it is not
    clipped, of `step` by how rounding and clipping react to it, times 1/√(count · high), which keeps the scales'
    gradients of the size of the weights' (Esser et al. 2020, section 2.2)."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, step: Tensor, low: float, high: float) -> Tensor:
        scaled = value / step
        integers = scaled.round().clamp_(low, high)
        ctx.save_for_backward(scaled, integers)
        ctx.limits, ctx.shape = (low, high), step.shape
        return integers * step

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        scaled, integers = ctx.saved_tensors
        low, high = ctx.limits
        inside = (scaled >= low) & (scaled <= high)
        of_value = gradient * inside
        reaction = (gradient * integers).sub_(of_value * scaled).sum_to_size(ctx.shape)
        count = integers.numel() / max(1, reaction.numel())
        return of_value, reaction * (count * max(high, 1.0)) ** -0.5, None, None


class RoundRange(Function):
    """value → nearest of the 256 numbers scale · (q − zero_point); gradients pass where nothing is clipped."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor) -> Tensor:
        rows = value.float().reshape(len(value), -1)
        low, high = rows.amin(1).clamp_max(0.0), rows.amax(1).clamp_min(0.0)
        scale = ((high - low) / 255.0).clamp_min(SMALLEST)[:, None]
        zero_point = (-low[:, None] / scale).round()
        integers = (rows / scale).round_().add_(zero_point).clamp_(0, 255).sub_(zero_point)
        return (integers * scale).reshape(value.shape).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class FakeLinear(nn.Module):
    """A linear layer whose weight [N, K] is rounded to the grid of its encoding; the row scales are learned. Its
    parameters have the names of the layer that it stands for."""

    def __init__(self, linear: nn.Linear, encoding: WeightEncoding) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.limits = (-8.0, 7.0) if encoding.bits == 4 else (-127.0, 127.0)
        rows = len(encoding.scale)
        multiplier = np.ones((rows, 1), np.uint8) if encoding.multiplier is None else encoding.multiplier
        self.register_buffer("multiplier", torch.from_numpy(multiplier.astype(np.float32)))
        self.register_buffer("first", torch.from_numpy(encoding.scale.astype(np.float32)))
        # scale = first · e^change: never negative, and a step of the optimizer is relative to the scale.
        self.change = nn.Parameter(torch.zeros(rows))

    def scale(self) -> Tensor:
        """[N]"""
        first = self.get_buffer("first")
        return first * self.change.exp()

    def rounded(self) -> Tensor:
        """The weight on its grid, [N, K]."""
        multiplier = self.get_buffer("multiplier")
        grouped = self.weight.reshape(*multiplier.shape, -1)
        step = (self.scale()[:, None] * multiplier)[:, :, None]
        result: Tensor = RoundToGrid.apply(grouped, step, *self.limits)  # type: ignore[no-untyped-call]
        return result.reshape(self.weight.shape)

    def forward(self, value: Tensor) -> Tensor:
        return functional.linear(value, self.rounded(), self.bias)


class FakeEmbedding(nn.Embedding):
    """A table [V, E] whose rows are rounded as they are read; the scales of its encoding stay."""

    def __init__(self, table: nn.Embedding, encoding: WeightEncoding) -> None:
        super().__init__(table.num_embeddings, table.embedding_dim, _weight=table.weight.detach())
        self.weight = table.weight
        self.limits = (-8.0, 7.0) if encoding.bits == 4 else (-127.0, 127.0)
        multiplier = np.ones((len(encoding.scale), 1)) if encoding.multiplier is None else encoding.multiplier
        steps = encoding.scale[:, None] * multiplier.astype(np.float32)
        self.register_buffer("steps", torch.from_numpy(steps.astype(np.float32)))

    def forward(self, ids: Tensor) -> Tensor:
        rows = super().forward(ids)
        steps = self.get_buffer("steps")[ids][..., None]
        grouped = rows.reshape(*steps.shape[:-1], -1)
        result: Tensor = RoundToGrid.apply(grouped, steps, *self.limits)  # type: ignore[no-untyped-call]
        return result.reshape(rows.shape)


class FakeActivations(nn.Module):
    """Static activations: learned scales (as those of `FakeLinear`), fixed zero points."""

    def __init__(self, encodings: Encodings) -> None:
        super().__init__()
        self.names = sorted(encodings.activations)
        self.zero_points = [encodings.activations[name].zero_point for name in self.names]
        scales = [encodings.activations[name].scale for name in self.names]
        self.register_buffer("first", torch.tensor(scales, dtype=torch.float32))
        self.change = nn.ParameterList([nn.Parameter(torch.zeros(())) for _ in self.names])
        self.index = {name: index for index, name in enumerate(self.names)}

    def scale(self, index: int) -> Tensor:
        result: Tensor = self.get_buffer("first")[index] * self.change[index].exp()
        return result

    def forward(self, name: str, value: Tensor) -> Tensor:
        index = self.index.get(name)
        if index is None:
            return value
        zero_point = self.zero_points[index]
        low, high = float(-128 - zero_point), float(127 - zero_point)
        result: Tensor = RoundToGrid.apply(value.float(), self.scale(index), low, high)  # type: ignore[no-untyped-call]
        return result.to(value.dtype)

    def encodings(self) -> dict[str, ActivationEncoding]:
        """The encodings as they are now."""
        return {
            name: ActivationEncoding(max(float(self.scale(index).detach()), SMALLEST), self.zero_points[index], 8)
            for index, name in enumerate(self.names)
        }


class FakeQuantization:
    """Puts the encodings into a module, layer by layer; `tap` and `activations` go with it into the training.

    The position table is put on its grid and stays there: it is read whole, and eight bits hardly change it.
    """

    def __init__(self, module: Transformer, start: Encodings) -> None:
        self.module, self.start = module, start
        self.dynamic = start.scheme.endswith("-dynamic")
        self.activations = FakeActivations(start)
        self.inputs = frozenset(input_activation(name) for name, _, _ in module.spec.linears())
        for name, encoding in start.weights.items():
            path = name.removesuffix(".weight")
            layer = module.get_submodule(path)
            if name == POSITIONS:
                positions = module.get_parameter(name)
                grid = dequantized(positions.detach().numpy(), encoding)
                with torch.no_grad():
                    positions.copy_(torch.from_numpy(grid))
                positions.requires_grad_(False)
            elif isinstance(layer, nn.Embedding):
                _replace(module, path, FakeEmbedding(layer, encoding))
            elif isinstance(layer, nn.Linear):
                _replace(module, path, FakeLinear(layer, encoding))

    def tap(self, name: str, value: Tensor) -> Tensor:
        """The tap of every pass."""
        if not self.dynamic:
            result: Tensor = self.activations(name, value)
            return result
        if name not in self.inputs:
            return value
        rounded: Tensor = RoundRange.apply(value)  # type: ignore[no-untyped-call]
        return rounded

    def result(self) -> tuple[dict[str, NDArray[np.float32]], Encodings]:
        """The weights, matrices on their grids, and the encodings as they were learned."""
        weights, activations = weights_of(self.module), self.activations.encodings()
        encodings: dict[str, WeightEncoding] = {}
        for name, encoding in self.start.weights.items():
            layer = self.module.get_submodule(name.removesuffix(".weight"))
            if isinstance(layer, FakeLinear):
                scale = layer.scale().detach().numpy().astype(np.float32)
                encoding = dataclasses.replace(encoding, scale=np.maximum(scale, np.float32(1e-30)))
            encodings[name] = encoding
        for linear, _, _ in self.module.spec.linears():
            stored, source = self.module.spec.stored(linear), activations.get(input_activation(linear))
            name, bias = f"{stored}.weight", weights.get(f"{stored}.bias")
            if source is not None and bias is not None and not is_float_linear(linear):
                encodings[name] = fitted(encodings[name], bias, source.scale)
        for name, encoding in encodings.items():
            weights[name] = dequantized(weights[name], encoding)
        return weights, dataclasses.replace(self.start, activations=activations, weights=encodings)


def _replace(module: nn.Module, path: str, part: nn.Module) -> None:
    head, _, last = path.rpartition(".")
    setattr(module.get_submodule(head), last, part)
