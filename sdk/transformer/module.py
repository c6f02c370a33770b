"""The canonical Transformer in torch: one module for every family, built from a `TransformerSpec`.

Every tensor that quantization may touch passes through `tap(name, tensor)`: calibration observes there, fake
quantization replaces there. The names are those of `docs/architecture.md`, "Encodings".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgesdk.errors import PackageError
from edgesdk.transformer.spec import FeatureEmbedding, Layer, PatchEmbedding, TokenEmbedding, TransformerSpec

# Added to the scores of padded positions. Large enough to vanish in softmax, small enough to quantize (HF's -3.4e38
# ruins every int8 scale it meets).
MASK = -100.0

Tap = Callable[[str, Tensor], Tensor]


def no_tap(name: str, value: Tensor) -> Tensor:
    """The tap of a plain forward pass: hands the tensor on."""
    return value


class Embedding(nn.Module):
    """Inputs of any kind → [B, S, H]."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.spec = spec.embedding
        if isinstance(self.spec, TokenEmbedding):
            self.tokens = nn.Embedding(self.spec.vocabulary, spec.hidden)
        if isinstance(self.spec, PatchEmbedding):
            self.patches = nn.Linear(self.spec.channels * self.spec.patch**2, spec.hidden)
            if self.spec.cls:
                self.cls = nn.Parameter(torch.zeros(spec.hidden))
        if not isinstance(self.spec, FeatureEmbedding):
            self.positions = nn.Embedding(spec.max_length, spec.hidden)
        if self.spec.norm:
            self.norm = nn.LayerNorm(spec.hidden, spec.norm_epsilon)

    def forward(self, value: Tensor, tap: Tap) -> Tensor:
        if isinstance(self.spec, FeatureEmbedding):
            hidden = value
        elif isinstance(self.spec, TokenEmbedding):
            hidden = self.tokens(value) + self.positions.weight[: value.shape[1]]
        else:
            hidden = tap("embedding.patches", self.patches(tap("embedding.patches.input", self.unfold(value))))
            if self.spec.cls:
                hidden = torch.cat([self.cls.expand(len(hidden), 1, -1), hidden], 1)
            hidden = hidden + self.positions.weight
        return self.norm(hidden) if self.spec.norm else hidden

    def unfold(self, pixels: Tensor) -> Tensor:
        """[B, c, size, size] → [B, P, c·p·p], patches row by row."""
        assert isinstance(self.spec, PatchEmbedding)
        side, patch = self.spec.size // self.spec.patch, self.spec.patch
        blocks = pixels.reshape(-1, self.spec.channels, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
        return blocks.reshape(-1, side * side, self.spec.channels * patch * patch)


class Attention(nn.Module):
    """Multi-head attention [B, S, H] → [B, S, H]; fewer key/value heads than heads means grouped queries."""

    def __init__(self, layer: Layer, hidden: int, epsilon: float) -> None:
        super().__init__()
        self.layer = layer
        width, kv_width = layer.heads * layer.head_size, layer.kv_heads * layer.head_size
        self.query = nn.Linear(hidden, width)
        self.key = nn.Linear(hidden, kv_width)
        self.value = nn.Linear(hidden, kv_width)
        self.output = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden, epsilon)

    def forward(self, hidden: Tensor, mask: Tensor | None, prefix: str, tap: Tap) -> Tensor:
        layer, (batch, sequence, _) = self.layer, hidden.shape
        hidden = tap(f"{prefix}.input", hidden)

        def heads(name: str, projection: nn.Linear, count: int) -> Tensor:
            value = tap(f"{prefix}.{name}", projection(hidden))
            return value.reshape(batch, sequence, count, layer.head_size).transpose(1, 2)

        query = heads("query", self.query, layer.heads)
        key = heads("key", self.key, layer.kv_heads)
        value = heads("value", self.value, layer.kv_heads)
        groups = layer.heads // layer.kv_heads
        if groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = (query * layer.head_size**-0.5) @ key.transpose(2, 3)
        if mask is not None:
            scores = scores + mask
        context = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, sequence, -1)
        return tap(f"{prefix}.output", self.output(tap(f"{prefix}.context", context)))


class FeedForward(nn.Module):
    """Two linear layers with an activation between them, [B, S, H] → [B, S, H]."""

    def __init__(self, layer: Layer, spec: TransformerSpec) -> None:
        super().__init__()
        self.up = nn.Linear(spec.hidden, layer.ffn)
        self.down = nn.Linear(layer.ffn, spec.hidden)
        self.norm = nn.LayerNorm(spec.hidden, spec.norm_epsilon)
        self.activation = spec.activation

    def forward(self, hidden: Tensor, prefix: str, tap: Tap) -> Tensor:
        up = tap(f"{prefix}.up", self.up(tap(f"{prefix}.input", hidden)))
        if self.activation == "relu":
            active = functional.relu(up)
        else:
            active = functional.gelu(up, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        return tap(f"{prefix}.down", self.down(tap(f"{prefix}.hidden", active)))


class Block(nn.Module):
    """One encoder layer, pre- or post-norm."""

    def __init__(self, layer: Layer, spec: TransformerSpec) -> None:
        super().__init__()
        self.attention = Attention(layer, spec.hidden, spec.norm_epsilon)
        self.ffn = FeedForward(layer, spec)
        self.pre = spec.norm == "pre"

    def forward(self, hidden: Tensor, mask: Tensor | None, prefix: str, tap: Tap) -> Tensor:
        if self.pre:
            hidden = hidden + self.attention(self.attention.norm(hidden), mask, f"{prefix}.attention", tap)
            wide: Tensor = hidden + self.ffn(self.ffn.norm(hidden), f"{prefix}.ffn", tap)
            return wide
        hidden = self.attention.norm(hidden + self.attention(hidden, mask, f"{prefix}.attention", tap))
        result: Tensor = self.ffn.norm(hidden + self.ffn(hidden, f"{prefix}.ffn", tap))
        return result


class Transformer(nn.Module):
    """The whole encoder. `forward(inputs)` takes the named inputs of the spec and gives its one output."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = Embedding(spec)
        self.layers = nn.ModuleList(Block(layer, spec) for layer in spec.layers)
        if spec.final_norm:
            self.norm = nn.LayerNorm(spec.hidden, spec.norm_epsilon)
        if spec.pooler:
            self.pooler = nn.Linear(spec.hidden, spec.hidden)
        if spec.classes is not None:
            self.classifier = nn.Linear(spec.hidden, spec.classes)

    def forward(self, inputs: Mapping[str, Tensor], tap: Tap = no_tap) -> Tensor:
        attention_mask = inputs.get("attention_mask")
        mask = None if attention_mask is None else (1.0 - attention_mask[:, None, None, :].float()) * MASK
        first = next(value for name, value in inputs.items() if name != "attention_mask")
        hidden = self.embedding(first, tap)
        for index, block in enumerate(self.layers):
            hidden = block(hidden, mask, f"layers.{index}", tap)
        if self.spec.final_norm:
            hidden = self.norm(hidden)
        if self.spec.pooling == "none":
            return hidden  # type: ignore[no-any-return]
        pooled = self.pool(hidden, attention_mask)
        if self.spec.pooler:
            pooled = tap("pooler", self.pooler(tap("pooler.input", pooled))).tanh()
        return self.classifier(pooled) if self.spec.classes is not None else pooled

    def pool(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """[B, S, H] → [B, H]: the first row, or the mean of the rows that are not padding."""
        if self.spec.pooling == "cls":
            return hidden[:, 0]
        if attention_mask is None:
            return hidden.mean(1)
        weight = attention_mask[:, :, None].to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1)


def build(spec: TransformerSpec, weights: Mapping[str, NDArray[np.float32]]) -> Transformer:
    """The module with these weights, in evaluation mode.

    Raises:
        PackageError: names or shapes of the weights are not those of the spec.
    """
    expected = spec.weight_shapes()
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != found:
        wrong = sorted(set(expected.items()) ^ set(found.items()))
        raise PackageError(f"weights do not fit the spec: {wrong[:4]}")
    module = Transformer(spec)
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    return module.eval()


def weights_of(module: Transformer) -> dict[str, NDArray[np.float32]]:
    """The weights as float32 arrays, in the order of the spec."""
    state = module.state_dict()
    return {name: state[name].detach().cpu().float().numpy().copy() for name in module.spec.weight_shapes()}


def run(module: Transformer, inputs: Mapping[str, NDArray[Any]], tap: Tap = no_tap, batch: int = 64) -> NDArray[Any]:
    """Outputs [N, …] of inputs [N, …], in batches, without gradients."""
    count = len(next(iter(inputs.values())))
    outputs = []
    with torch.inference_mode():
        for start in range(0, count, batch):
            rows = {name: np.array(value[start : start + batch]) for name, value in inputs.items()}
            part = {name: torch.from_numpy(value) for name, value in rows.items()}
            outputs.append(module(part, tap).float().numpy())
    return np.concatenate(outputs)
