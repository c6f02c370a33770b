"""Parts of a `TransformerSpec` as plain data: embeddings, layers, exits; see `spec.py`, which hands all of it on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Norm = Literal["pre", "post"]
NormKind = Literal["layer", "rms"]
Activation = Literal["gelu", "gelu_tanh", "relu", "swiglu"]
Positions = Literal["learned", "rope"]
Pooling = Literal["cls", "mean", "none"]
PoolerActivation = Literal["tanh", "relu"]
Criterion = Literal["confidence", "entropy", "patience"]

# The linear layers of one Transformer layer; the keys that `Layer.ranks` may have.
PARTS = ("attention.query", "attention.key", "attention.value", "attention.output", "ffn.up", "ffn.down")


@dataclass(frozen=True)
class TokenEmbedding:
    """Token ids [B, S] → [B, S, H] by table [V, H] plus learned positions [max_length, H] (token type 0 folded in).
    Inputs: `input_ids` int64 [B, S], `attention_mask` int64 [B, S] (1 = token, 0 = padding at the end).

    With `width` E the table is [V, E] and the linear layer `embedding.projection` leads from E to H: of the token rows
    before positions are added (`project: tokens`, a factorized table), or of the whole embedding, positions [S, E]
    and norm [E] included (`project: all`, ALBERT).

    `positions: rope` has no table of positions: query and key are turned instead (rotary embedding, Su et al. 2021,
    arXiv:2104.09864). Element i and i + D/2 of a head are a pair, turned by position · rope_base^(−2i/D).
    """

    vocabulary: int
    max_length: int
    norm: bool = True
    width: int | None = None
    project: Literal["tokens", "all"] = "tokens"
    positions: Positions = "learned"
    rope_base: float = 10000.0
    kind: Literal["tokens"] = "tokens"


@dataclass(frozen=True)
class PatchEmbedding:
    """Pixels [B, channels, size, size] → [B, S, H]: square patches by one linear layer, learned positions, and a
    class token in front where `cls` (then a distillation token where `distillation`, as in DeiT).
    Input: `pixel_values` float32 [B, channels, size, size]."""

    channels: int
    size: int
    patch: int
    cls: bool = True
    norm: bool = False
    distillation: bool = False
    kind: Literal["patches"] = "patches"

    @property
    def patches(self) -> int:
        return (self.size // self.patch) ** 2


@dataclass(frozen=True)
class FeatureEmbedding:
    """Float vectors [B, S, H] go straight into the first layer (`torch.nn.TransformerEncoder` by itself).
    Input: `features` float32 [B, S, H]."""

    max_length: int
    norm: bool = False
    kind: Literal["features"] = "features"


Embedding = TokenEmbedding | PatchEmbedding | FeatureEmbedding


@dataclass(frozen=True)
class Exit:
    """A classifier `layers.I.exit` [C, H] on the pooled output of layer I (through the final norm where the model has
    one). An input leaves there when

    - `confidence`: its largest probability is at least `threshold`;
    - `entropy`: its entropy, divided by log C, is at most `threshold`;
    - `patience`: this exit and the `threshold` exits before it agree.

    `threshold` None: nothing leaves yet, and no graph holds the exit."""

    criterion: Criterion = "confidence"
    threshold: float | None = None


@dataclass(frozen=True)
class Layer:
    """One layer: `heads` query heads of `head_size`, `kv_heads` key/value heads, feed-forward width `ffn`. Layers may
    differ from one another.

    Attributes:
        ranks: part of `PARTS` → rank r: W [N, K] is the product of NAME.u [N, r] and NAME.v [r, K].
        share: index of the earlier layer whose weights (norms included) this one uses; gate and exit are its own.
        gate: the linear layer `layers.I.gate` [1, H] of the pooled input decides per input: above 0 the layer runs,
            else its input is its output.
        exit: see `Exit`.
    """

    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    ranks: Mapping[str, int] = field(default_factory=dict)
    share: int | None = None
    gate: bool = False
    exit: Exit | None = None
