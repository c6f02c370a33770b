"""What a tensor of the graph can be, besides an array or a `Tensor` of the plan: the symbolic values of `trace.py`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesdk.converters.neon.plan import Table, Tensor


@dataclass(frozen=True)
class Input:
    """A graph input, or a part of the way from it: `ids`, `pixels`, `blocks`, `patches`, and of the mask `mask`,
    `mask.float`, `mask.padding`, `mask.additive`, `mask.later` (with what is later too), `mask.causal`, `mask.weight`,
    `mask.count`."""

    stage: str


@dataclass(frozen=True)
class Found:
    """Rows of a constant picked by the token ids."""

    table: Table


@dataclass(frozen=True)
class WithClass:
    """Patches behind the rows [n, H] of class and distillation token."""

    cls: NDArray[np.float32]
    rows: Tensor


@dataclass(frozen=True)
class Heads:
    """A tensor split into heads: [..., heads, rows, size] (`rows`) or [..., heads, size, rows] (`columns`)."""

    tensor: Tensor
    heads: int
    group: int
    size: int
    order: str = "split"
    scale: float = 1.0


@dataclass(frozen=True)
class Part:
    """Of heads that are turned: the `first` or `second` half of each, the second one `negated`, both the other way
    round (`other`), or times a table [rows, size] the terms `straight` and `across` of the sum."""

    heads: Heads
    stage: str
    table: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Spread:
    """On the way to RMSNorm of `source`: its `square`, their `mean`, that `shifted` by epsilon, the `root`, and
    `normal` rows."""

    source: Tensor
    stage: str
    epsilon: float = 0.0


@dataclass(frozen=True)
class Sigmoid:
    source: Tensor


@dataclass(frozen=True)
class Scores:
    query: Heads
    key: Heads
    masked: bool = False
    normal: bool = False
    causal: bool = False


@dataclass(frozen=True)
class Context:
    """Output of attention by head; `merged` once its heads lie behind the rows again."""

    tensor: Tensor
    merged: bool = False


@dataclass(frozen=True)
class Weighted:
    """Rows times mask, or (`total`) their sum."""

    rows: Tensor
    total: bool = False
