"""Parts of the canonical Transformer in torch: embeddings, attention and feed-forward layers; see `module.py`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgesdk.transformer.rope import rope_tables
from edgesdk.transformer.spec import FeatureEmbedding, Layer, PatchEmbedding, TokenEmbedding, TransformerSpec

Tap = Callable[[str, Tensor], Tensor]


def no_tap(name: str, value: Tensor) -> Tensor:
    """The tap of a plain forward pass: hands the tensor on."""
    return value


class LowRank(nn.Module):
    """y = (x · vᵀ) · uᵀ + b with v [r, K] and u [N, r]: a linear layer of rank r."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.v = nn.Linear(inputs, rank, bias=False)
        self.u = nn.Linear(rank, outputs)


def apply_linear(linear: nn.Module, value: Tensor, name: str, tap: Tap) -> Tensor:
    """The output of a plain or low-rank linear layer, tapped under `name` (the middle of a pair under `name.v`)."""
    if isinstance(linear, LowRank):
        value, linear = tap(f"{name}.v", linear.v(value)), linear.u
    return tap(name, linear(value))


class Embedding(nn.Module):
    """Inputs of any kind → [B, S, H]."""

    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.spec = spec.embedding
        if isinstance(self.spec, TokenEmbedding):
            self.tokens = nn.Embedding(self.spec.vocabulary, self.spec.width or spec.hidden)
            if self.spec.width is not None:
                self.projection = nn.Linear(self.spec.width, spec.hidden)
        if isinstance(self.spec, PatchEmbedding):
            self.patches = nn.Linear(self.spec.channels * self.spec.patch**2, spec.hidden)
            if self.spec.cls:
                self.cls = nn.Parameter(torch.zeros(spec.hidden))
            if self.spec.distillation:
                self.distillation = nn.Parameter(torch.zeros(spec.hidden))
        if not isinstance(self.spec, FeatureEmbedding) and spec.rope_base is None:
            self.positions = nn.Embedding(spec.max_length, spec.embedding_width)
        if self.spec.norm:
            self.norm = make_norm(spec, spec.embedding_width)

    def forward(self, value: Tensor, tap: Tap) -> Tensor:
        if isinstance(self.spec, TokenEmbedding):
            return self.embed_tokens(value, self.spec, tap)
        if isinstance(self.spec, FeatureEmbedding):
            hidden = value
        else:
            hidden = tap("embedding.patches", self.patches(tap("embedding.patches.input", self.unfold(value))))
            first = [self.cls] if self.spec.cls else []
            first += [self.distillation] if self.spec.distillation else []
            if first:
                hidden = torch.cat([*(token.expand(len(hidden), 1, -1) for token in first), hidden], 1)
            hidden = hidden + self.positions.weight
        return self.norm(hidden) if self.spec.norm else hidden

    def embed_tokens(self, ids: Tensor, spec: TokenEmbedding, tap: Tap) -> Tensor:
        hidden = self.tokens(ids)
        if spec.width is not None and spec.project == "tokens":
            hidden = self.project(hidden, tap)
        if spec.positions == "learned":
            hidden = hidden + self.positions.weight[: ids.shape[1]]
        if spec.norm:
            hidden = self.norm(hidden)
        return self.project(hidden, tap) if spec.width is not None and spec.project == "all" else hidden

    def project(self, hidden: Tensor, tap: Tap) -> Tensor:
        return tap("embedding.projection", self.projection(tap("embedding.projection.input", hidden)))

    def unfold(self, pixels: Tensor) -> Tensor:
        """[B, c, size, size] → [B, P, c·p·p], patches row by row."""
        assert isinstance(self.spec, PatchEmbedding)
        side, patch = self.spec.size // self.spec.patch, self.spec.patch
        blocks = pixels.reshape(-1, self.spec.channels, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
        return blocks.reshape(-1, side * side, self.spec.channels * patch * patch)


class RMSNorm(nn.Module):
    """x / √(mean x² + ε) · weight over the last axis, computed in float32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, value: Tensor) -> Tensor:
        wide = value.float()
        return (wide / (wide.square().mean(-1, keepdim=True) + self.epsilon).sqrt() * self.weight).to(value.dtype)


def make_norm(spec: TransformerSpec, width: int) -> nn.Module:
    """The norm of the spec's kind over `width` elements."""
    if spec.norm_kind == "rms":
        return RMSNorm(width, spec.norm_epsilon)
    return nn.LayerNorm(width, spec.norm_epsilon)


def rotate(value: Tensor, base: float) -> Tensor:
    """Rotary positions: [B, h, S, D] with the pairs (i, i + D/2) of position s turned by s · base^(−2i/D)."""
    tables = torch.from_numpy(rope_tables(value.shape[2], value.shape[3], base)).to(value.device)
    first, second = value.chunk(2, -1)
    turned = torch.cat([-second, first], -1)
    return (value * tables[0] + turned * tables[1]).to(value.dtype)


def make_linear(layer: Layer, part: str, inputs: int, outputs: int) -> nn.Module:
    """The plain or low-rank linear layer of one part of a layer."""
    rank = layer.ranks.get(part)
    return nn.Linear(inputs, outputs) if rank is None else LowRank(inputs, outputs, rank)


class Attention(nn.Module):
    """Multi-head attention [B, S, H] → [B, S, H]; fewer key/value heads than heads means grouped queries."""

    def __init__(self, layer: Layer, spec: TransformerSpec) -> None:
        super().__init__()
        self.layer, self.rope_base, hidden = layer, spec.rope_base, spec.hidden
        width, kv_width = layer.heads * layer.head_size, layer.kv_heads * layer.head_size
        self.query = make_linear(layer, "attention.query", hidden, width)
        self.key = make_linear(layer, "attention.key", hidden, kv_width)
        self.value = make_linear(layer, "attention.value", hidden, kv_width)
        self.output = make_linear(layer, "attention.output", width, hidden)
        self.norm = make_norm(spec, hidden)

    def forward(self, hidden: Tensor, mask: Tensor | None, prefix: str, tap: Tap) -> Tensor:
        layer, (batch, sequence, _) = self.layer, hidden.shape
        hidden = tap(f"{prefix}.input", hidden)

        def heads(name: str, projection: nn.Module, count: int) -> Tensor:
            value = apply_linear(projection, hidden, f"{prefix}.{name}", tap)
            return value.reshape(batch, sequence, count, layer.head_size).transpose(1, 2)

        query = heads("query", self.query, layer.heads)
        key = heads("key", self.key, layer.kv_heads)
        value = heads("value", self.value, layer.kv_heads)
        if self.rope_base is not None:
            query, key = rotate(query, self.rope_base), rotate(key, self.rope_base)
        groups = layer.heads // layer.kv_heads
        if groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = (query * layer.head_size**-0.5) @ key.transpose(2, 3)
        if mask is not None:
            scores = scores + mask
        context = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, sequence, -1)
        return apply_linear(self.output, tap(f"{prefix}.context", context), f"{prefix}.output", tap)


class FeedForward(nn.Module):
    """Two linear layers with an activation between them, [B, S, H] → [B, S, H]."""

    def __init__(self, layer: Layer, spec: TransformerSpec) -> None:
        super().__init__()
        self.up = make_linear(layer, "ffn.up", spec.hidden, layer.ffn)
        self.down = make_linear(layer, "ffn.down", layer.ffn, spec.hidden)
        if spec.activation == "swiglu":
            self.glu = nn.Linear(spec.hidden, layer.ffn)
        self.norm = make_norm(spec, spec.hidden)
        self.activation = spec.activation

    def forward(self, hidden: Tensor, prefix: str, tap: Tap) -> Tensor:
        hidden = tap(f"{prefix}.input", hidden)
        up = apply_linear(self.up, hidden, f"{prefix}.up", tap)
        if self.activation == "swiglu":
            active = functional.silu(tap(f"{prefix}.glu", self.glu(hidden))) * up
        elif self.activation == "relu":
            active = functional.relu(up)
        else:
            active = functional.gelu(up, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        return apply_linear(self.down, tap(f"{prefix}.hidden", active), f"{prefix}.down", tap)
