"""Which weights of a matrix become zero: patterns of sparsity over scores (larger stays).

- `unstructured`: single weights.
- `RxC`: blocks of R outputs by C inputs; at the edges they are smaller. A block's score is the mean of its squares.
- `N:M`: N of M neighbouring inputs stay, for each output; of a smaller group at the edge at most N.

Allocation `uniform` takes the same share from every matrix. `global` compares matrices by LAMP (Lee et al. 2021,
arXiv:2010.07611): a score divided by all that are not less in its matrix, so that no matrix loses its best.

Shapes: a matrix is [N, K], N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Mask = NDArray[np.bool_]
Allocation = Literal["uniform", "global"]


@dataclass(frozen=True)
class Pattern:
    """Blocks of `rows` by `columns` (1 by 1: unstructured); with `kept` N, N of `columns` inputs stay."""

    rows: int
    columns: int
    kept: int | None = None


def parse(pattern: str) -> Pattern:
    """`unstructured`, `N:M` or `RxC`.

    Raises:
        ValueError: anything else, or N:M that removes nothing.
    """
    if pattern == "unstructured":
        return Pattern(1, 1)
    for sign in (":", "x"):
        first, found, second = pattern.partition(sign)
        if found and first.isdecimal() and second.isdecimal() and 0 < int(first) < 1000 and 0 < int(second) < 1000:
            if sign == "x":
                return Pattern(int(first), int(second))
            if int(first) >= int(second):
                raise ValueError(f"pattern {pattern!r} keeps {first} of {second} and removes nothing")
            return Pattern(1, int(second), int(first))
    raise ValueError(f"pattern {pattern[:50]!r}, expected unstructured, N:M (2:4) or RxC (4x4)")


def together(before: str | None, after: str) -> str:
    """The strongest pattern that holds for certain where zeros of `after` come to those of `before`.

    N:M holds whatever else becomes zero. Blocks hold among larger ones that they divide; else nothing does but
    `unstructured`.
    """
    if before is None:
        return after
    old, new = parse(before), parse(after)
    if old.kept is not None and new.kept is not None:
        return before if old.kept / old.columns < new.kept / new.columns else after
    if old.kept is not None or new.kept is not None:
        return before if new.kept is None else after
    for small, large, pattern in ((old, new, before), (new, old, after)):
        if large.rows % small.rows == 0 and large.columns % small.columns == 0:
            return pattern
    return "unstructured"


def choose(scores: Mapping[str, Scores], pattern: Pattern, sparsity: float, allocate: Allocation) -> dict[str, Mask]:
    """Which weights stay, for each matrix; `sparsity` is the share of blocks that go (N:M goes by N and M)."""
    if pattern.kept is not None:
        return {name: largest_of_groups(score, pattern.kept, pattern.columns) for name, score in scores.items()}
    cells = {name: cell_scores(score, pattern) for name, score in scores.items()}
    if allocate == "uniform":
        chosen = {name: _largest(cell, sparsity) for name, cell in cells.items()}
    else:
        ranked = {name: _lamp(cell) for name, cell in cells.items()}
        together = _largest(np.concatenate([cell.reshape(-1) for cell in ranked.values()]), sparsity)
        ends = np.cumsum([cell.size for cell in ranked.values()])[:-1]
        parts = np.split(together, ends)
        chosen = {name: part.reshape(ranked[name].shape) for name, part in zip(ranked, parts, strict=True)}
    return {name: _grown(mask, scores[name].shape, pattern) for name, mask in chosen.items()}


def largest_of_groups(scores: Scores, kept: int, group: int) -> Mask:
    """The `kept` largest of each `group` of neighbours in a row stay; of equal ones the first."""
    rows, columns = scores.shape
    padded = np.full((rows, -(-columns // group) * group), -np.inf)
    padded[:, :columns] = scores
    order = np.argsort(-padded.reshape(rows, -1, group), axis=2, kind="stable")
    rank = np.argsort(order, axis=2, kind="stable")
    mask: Mask = (rank < kept).reshape(rows, -1)[:, :columns]
    return np.ascontiguousarray(mask)


def cell_scores(scores: Scores, pattern: Pattern) -> Scores:
    """Mean of the squares in each block, [⌈N/R⌉, ⌈K/C⌉]; a smaller block's mean is over what it has."""
    steps = (pattern.rows, pattern.columns)
    starts = [np.arange(0, size, step) for size, step in zip(scores.shape, steps, strict=True)]
    sums = np.add.reduceat(np.add.reduceat(np.square(scores), starts[0], 0), starts[1], 1)
    extents = [np.diff(np.append(start, size)) for start, size in zip(starts, scores.shape, strict=True)]
    means: Scores = sums / np.outer(*extents)
    return means


def _grown(mask: Mask, shape: tuple[int, ...], pattern: Pattern) -> Mask:
    wide: Mask = np.repeat(np.repeat(mask, pattern.rows, 0), pattern.columns, 1)
    return np.ascontiguousarray(wide[: shape[0], : shape[1]])


def _largest(scores: Scores, sparsity: float) -> Mask:
    """All but the round(sparsity · n) smallest, of which one stays in any case; of equal ones the first stay."""
    flat = scores.reshape(-1)
    order = np.argsort(-flat, kind="stable")
    mask = np.zeros(flat.size, bool)
    mask[order[: max(1, flat.size - round(sparsity * flat.size))]] = True
    return mask.reshape(scores.shape)


def _lamp(cells: Scores) -> Scores:
    flat = cells.reshape(-1)
    order = np.argsort(flat, kind="stable")
    not_less = np.cumsum(flat[order][::-1])[::-1]
    result = np.zeros(flat.size)
    result[order] = flat[order] / np.maximum(not_less, 1e-300)
    return result.reshape(cells.shape)
