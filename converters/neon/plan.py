"""The plan: what the generated program does, as a list of steps between float tensors and packed int8 tensors.

`trace.py` makes the first list from the graph, `fuse.py` merges and quantizes it, `emit.py` writes it as C. Tensors
are two-dimensional, [rows, columns], and named; every tensor is written by one step (and in place by a `Lookup`, or by
a `QuantizeAsMade` of `specialize.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgesdk.converters.front import Encoding, Linear

Layout = Literal["row_major", "packed_a", "packed_half", "row_scales"]


@dataclass(frozen=True)
class Tensor:
    """`row_major` float32, `packed_a` int8, `packed_half` float16, or `row_scales`: a float and an int32 for each row.
    `rows` is the largest number; where `tokens`, the real length of the input decides."""

    name: str
    rows: int
    columns: int
    tokens: bool = False
    layout: Layout = "row_major"


@dataclass(frozen=True)
class Table:
    """Rows of floats, or int8 rows [V, H] with a scale [V] each."""

    values: NDArray[Any]
    scale: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Step:
    """Base of all steps; `result` is what it writes."""

    result: Tensor

    def reads(self) -> tuple[Tensor, ...]:
        """The tensors that the step reads."""
        values = (getattr(self, name) for name in self.__dataclass_fields__ if name != "result")
        return tuple(value for value in values if isinstance(value, Tensor))


@dataclass(frozen=True)
class Embed(Step):
    """tokens[ids] + positions; without positions the rows alone."""

    tokens: Table
    positions: Table | None


@dataclass(frozen=True)
class Patches(Step):
    """Pixels → one row for each patch, ordered channel, row, column."""

    channels: int
    size: int
    patch: int


@dataclass(frozen=True)
class Features(Step):
    """Float vectors of the input, as they are."""


@dataclass(frozen=True)
class Positions(Step):
    """(the rows [n, H] of cls in front of) source, plus positions."""

    source: Tensor
    cls: NDArray[np.float32] | None
    positions: Table


@dataclass(frozen=True)
class Dense(Step):
    """Linear layers of one form and one source side by side, plus a residual. `fuse.py` replaces it by one of the
    classes below unless it is fp32 or w8."""

    source: Tensor
    linears: tuple[Linear, ...]
    residual: Tensor | None = None


@dataclass(frozen=True)
class DenseStatic(Dense):
    """w8a8: packed int8 in; out either floats (quantized and dequantized), or packed int8."""


@dataclass(frozen=True)
class DenseDynamic(Dense):
    """w8a8-dynamic: packed int8 and its `scales` by row in, floats out."""

    scales: Tensor | None = None


@dataclass(frozen=True)
class DenseHalf(Dense):
    """fp16: packed float16 in, floats out."""


@dataclass(frozen=True)
class Halve(Step):
    """Floats → packed float16."""

    source: Tensor


@dataclass(frozen=True)
class Quantize(Step):
    """Floats → packed int8 by one encoding."""

    source: Tensor
    encoding: Encoding


@dataclass(frozen=True)
class QuantizeRows(Step):
    """Floats → packed int8 (`result`) and `scales`, both decided by each row."""

    source: Tensor
    scales: Tensor


@dataclass(frozen=True)
class Lookup(Step):
    """Replace each int8 of `result` by `entries[q + 128]` (int8 [256])."""

    entries: NDArray[np.int8]

    def reads(self) -> tuple[Tensor, ...]:
        return (self.result,)


@dataclass(frozen=True)
class Normalize(Step):
    """LayerNorm over the columns."""

    source: Tensor
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    epsilon: float


@dataclass(frozen=True)
class RootNormalize(Step):
    """RMSNorm over the columns: x / √(mean x² + ε) · weight."""

    source: Tensor
    weight: NDArray[np.float32]
    epsilon: float


@dataclass(frozen=True)
class Rotate(Step):
    """Rotary positions: elements i and i + size/2 of each head are turned by the angles of their row; `cosine` and
    `sine` are [rows, size]."""

    source: Tensor
    heads: int
    size: int
    cosine: NDArray[np.float32]
    sine: NDArray[np.float32]


@dataclass(frozen=True)
class Sum(Step):
    left: Tensor
    right: Tensor


@dataclass(frozen=True)
class Product(Step):
    """left · right, element by element."""

    left: Tensor
    right: Tensor


@dataclass(frozen=True)
class Activate(Step):
    """`gelu`, `gelu_tanh`, `relu`, `silu` or `tanh`."""

    source: Tensor
    kind: str


@dataclass(frozen=True)
class Attend(Step):
    """softmax(query · keyᵀ · scale) · value for each head; `starts` are the first columns of query, key and value in
    their tensors; query head h reads key/value head h // group. Keys beyond the input's length are masked, and where
    `causal` those behind the query."""

    query: Tensor
    key: Tensor
    value: Tensor
    heads: int
    group: int
    size: int
    scale: float
    starts: tuple[int, int, int] = (0, 0, 0)
    causal: bool = False


@dataclass(frozen=True)
class Pool(Step):
    """`cls`: row 0; `mean`: the mean over the rows of the input's length."""

    source: Tensor
    kind: Literal["cls", "mean"]


@dataclass(frozen=True)
class Plan:
    """`steps` in order; the last one writes `output`. `sequence` is the largest number of tokens; `masked` says that
    the inputs are token ids (below `vocabulary`) and a mask, whose length cuts the work, unless a step needs the rows
    of padding too (`whole`). `others` are outputs of one number behind the first: `exit`."""

    steps: tuple[Step, ...]
    output: Tensor
    sequence: int
    masked: bool
    vocabulary: int = 0
    others: tuple[Tensor, ...] = ()
    whole: bool = False
