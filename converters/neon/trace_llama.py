"""Patterns of Llama-like decoders: RMSNorm and rotary positions by primitive operators, SiLU (`trace.py` asks here)."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgesdk.converters.neon.symbols import Heads, Part, Sigmoid, Spread

Shape = tuple[int, ...]


def product(left: Any, right: Any) -> Any:
    """What a `Mul` means here; None for anything else."""
    if isinstance(left, Heads) and (table := _angles(right, left)) is not None:
        return Part(left, "straight", table)
    if isinstance(left, Part) and left.stage == "other" and (table := _angles(right, left.heads)) is not None:
        return Part(left.heads, "across", table)
    return None


def _angles(table: Any, heads: Heads) -> Any:
    """A constant [rows, 1, (1,) size] as [rows, size]."""
    if not isinstance(table, np.ndarray) or heads.order != "split" or heads.scale != 1.0:
        return None
    rows, size = heads.tensor.rows, heads.size
    known = table.shape in ((rows, 1, size), (rows, 1, 1, size)) and size % 2 == 0
    return table.reshape(rows, size).astype(np.float32) if known else None


def half(heads: Any, starts: Any, ends: Any, axes: Any, *steps: Any) -> Part | None:
    """The half of each head that a `Slice` takes."""
    if not isinstance(heads, Heads) or heads.order != "split" or heads.scale != 1.0 or steps:
        return None
    if not all(isinstance(part, np.ndarray) and part.shape == (1,) for part in (starts, ends, axes)):
        return None
    place = (int(starts[0]), int(ends[0]), int(axes[0]))
    stages = {(0, heads.size // 2, -1): "first", (heads.size // 2, heads.size, -1): "second"}
    return Part(heads, stages[place]) if place in stages and heads.size % 2 == 0 else None


def negated(part: Any) -> Part | None:
    return Part(part.heads, "negated") if isinstance(part, Part) and part.stage == "second" else None


def other_way_round(left: Any, right: Any, axis: int) -> Part | None:
    """Two halves side by side again: the second one, negated, in front."""
    if not isinstance(left, Part) or not isinstance(right, Part) or axis != -1 or left.heads != right.heads:
        return None
    return Part(left.heads, "other") if (left.stage, right.stage) == ("negated", "first") else None


def turned(left: Any, right: Any) -> bool:
    """Whether a sum is that of one tensor's `straight` and `across` terms."""
    if not isinstance(left, Part) or not isinstance(right, Part) or left.heads != right.heads:
        return False
    return (left.stage, right.stage) == ("straight", "across")


def step_of_norm(spread: Any, before: str, after: str, epsilon: float = 0.0) -> Spread | None:
    """The next stage on the way to RMSNorm."""
    if not isinstance(spread, Spread) or spread.stage != before:
        return None
    return Spread(spread.source, after, epsilon or spread.epsilon)


def is_silu(left: Any, right: Any) -> bool:
    """x · sigmoid(x)."""
    return isinstance(right, Sigmoid) and left == right.source
