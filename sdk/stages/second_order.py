"""Pruning by second order: what to remove so that a linear layer's output changes least, and how the rest makes up.

A layer's output error over its inputs X is tr(ΔW H ΔWᵀ) with H = XᵀX, and the best remaining weights are a least
squares fit: the Optimal Brain Surgeon (Hassibi & Stork 1993) with groups of columns as in ZipLM (Kurtic et al. 2023,
arXiv:2302.04089). Inputs have a constant 1 as their last column, whose weight is the bias and is never removed.
Everything is float64; H is damped, which pulls the fit towards the weights that were there.

Shapes: K inputs, N outputs, K1 = K + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.package import Package
from edgesdk.stages.masks import Pattern, choose

Matrix = NDArray[np.float64]
# Share of the mean of diag(H) that is added to the diagonal (SparseGPT takes 0.01 as well).
DAMPING = 0.01


def moments(
    package: Package, inputs: Mapping[str, NDArray[Any]], wanted: Callable[[str], bool]
) -> dict[str, Matrix]:
    """Damped H [K1, K1] for each stored name of an activation; shared layers add up. Padding is left out."""
    from edgesdk.stages.observe import observe

    sums: dict[str, Matrix] = {}

    def collect(name: str, rows: NDArray[np.float32]) -> None:
        key = package.spec.stored(name)
        if wanted(key):
            wide = np.concatenate([rows, np.ones((len(rows), 1), np.float32)], 1).astype(np.float64)
            sums[key] = sums.get(key, 0.0) + wide.T @ wide

    observe(package, inputs, collect)
    return {name: damped(value) for name, value in sums.items()}


def damped(hessian: Matrix) -> Matrix:
    """H + DAMPING · mean(diag H) · I; the constant input is damped only as far as it must be to be inverted."""
    diagonal = np.diag(hessian)
    amount = np.full(len(hessian), DAMPING * diagonal[:-1].mean() + 1e-12)
    amount[-1] = 1e-9 * diagonal[-1] + 1e-12
    result: Matrix = hessian + np.diag(amount)
    return result


def refit(weight: Matrix, hessian: Matrix, kept: NDArray[np.int64]) -> Matrix:
    """The weights [N, len(kept)] on the inputs `kept` that are closest to W [N, K1] under H, which is
    W H[:, kept] H[kept, kept]⁻¹."""
    return np.asarray(np.linalg.solve(hessian[np.ix_(kept, kept)], hessian[kept] @ weight.T).T, np.float64)


def removal_order(
    weight: Matrix, hessian: Matrix, width: int, at_once: float = 1 / 64
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Groups of `width` columns in the order in which they go, and the error that each adds at its turn.

    Args:
        weight: W [N, K1], the last column is the bias.
        at_once: share of the remaining groups that goes between two updates of the rest; one by one where groups are
            few.
    """
    inverse = np.asarray(np.linalg.inv(hessian), np.float64)
    weight = weight.copy()
    groups = np.arange((weight.shape[1] - 1) // width)
    order: list[int] = []
    errors: list[float] = []
    while len(groups):
        scores = _group_errors(weight, inverse, len(groups), width)
        # Ties: the higher index goes first, so that equal groups keep the lower one.
        ranked = np.lexsort((-groups, scores))
        chosen = ranked[: max(1, int(len(groups) * at_once))]
        columns = (chosen[:, None] * width + np.arange(width)).reshape(-1)
        order.extend(groups[chosen].tolist())
        errors.extend(scores[chosen].tolist())
        # Eliminating columns C: W −= W_C (H⁻¹_CC)⁻¹ H⁻¹_C, and the same for H⁻¹ itself; then they are gone.
        factor = np.linalg.solve(inverse[np.ix_(columns, columns)], inverse[columns])
        rest = np.setdiff1d(np.arange(len(inverse)), columns)
        weight = (weight - weight[:, columns] @ factor)[:, rest]
        reduced: Matrix = (inverse - inverse[:, columns] @ factor)[np.ix_(rest, rest)]
        inverse = (reduced + reduced.T) / 2
        groups = np.delete(groups, chosen)
    return np.array(order, np.int64), np.array(errors)


def _group_errors(weight: Matrix, inverse: Matrix, groups: int, width: int) -> NDArray[np.float64]:
    """tr(W_g (H⁻¹_gg)⁻¹ W_gᵀ) of every group."""
    if width == 1:
        energy: NDArray[np.float64] = np.square(weight[:, :-1]).sum(0)
        return energy / np.diag(inverse)[:-1]
    errors = np.zeros(groups)
    for group in range(groups):
        part = slice(group * width, (group + 1) * width)
        errors[group] = (weight[:, part] * np.linalg.solve(inverse[part, part], weight[:, part].T).T).sum()
    return errors


def prune_columns(
    weight: Matrix, hessian: Matrix, inputs: int, pattern: Pattern, sparsity: float, stretch: int = 128
) -> Matrix:
    """W with zeros in its first `inputs` columns by a pattern, every column's error made up for by those behind it:
    SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774). What goes is chosen for a stretch of columns at a time (N:M:
    for each group of M), with the weights as they are then.

    Args:
        weight: [N, K] or [N, K1]; columns from `inputs` on are never removed.
        hessian: damped H of the same columns.
    """
    # Upper Cholesky factor of H⁻¹: row j holds the update of OBS for column j once all before it are fixed.
    factor = np.linalg.cholesky(np.linalg.inv(hessian)).T
    weight = weight.copy()
    step = max(pattern.columns, stretch // pattern.columns * pattern.columns)
    for start in range(0, inputs, step):
        end = min(inputs, start + step)
        errors = np.zeros((len(weight), end - start))
        mask = np.ones((len(weight), end - start), bool)
        for column in range(start, end):
            if pattern.kept is not None and (column - start) % pattern.columns == 0:
                stop = min(end, column + pattern.columns)
                mask[:, column - start : stop - start] = _chosen(weight, factor, column, stop, pattern, sparsity)
            elif pattern.kept is None and column == start:
                mask = _chosen(weight, factor, start, end, pattern, sparsity)
            removed = np.where(mask[:, column - start], 0.0, weight[:, column])
            errors[:, column - start] = removed / factor[column, column]
            weight[:, column:end] -= np.outer(errors[:, column - start], factor[column, column:end])
            weight[:, column] = np.where(mask[:, column - start], weight[:, column], 0.0)
        weight[:, end:] -= errors @ factor[start:end, end:]
    return weight


def _chosen(
    weight: Matrix, factor: Matrix, start: int, end: int, pattern: Pattern, sparsity: float
) -> NDArray[np.bool_]:
    """Which weights of columns `start` to `end` stay: those whose removal alone costs most, w² / [H⁻¹]."""
    costs = np.abs(weight[:, start:end]) / np.diag(factor)[start:end]
    return choose({"": costs}, pattern, sparsity, "uniform")[""]
