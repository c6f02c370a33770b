"""Making attention heads alike before they are merged; all of it leaves what attention computes as it is.

A head's keys and queries may be rotated together (q·R · k·R = q·k), and so may its values, with the columns of the
output layer that read them. So heads that do the same in different coordinates can be brought into the same ones
before they are averaged (after Jin et al. 2024, arXiv:2412.20677: Procrustes, here on the data's covariance).

Matrices of a head are [D, K + 1], the bias as the last column; C [K + 1, K + 1] is E[x·xᵀ] of inputs x with a one
behind them, so that A · C · Bᵀ is E[(A·x)·(B·x)ᵀ].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
ROUNDS = 5


def extended(moment: Matrix, mean: Matrix) -> Matrix:
    """C from E[x·xᵀ] [K, K] and E[x] [K]."""
    return np.block([[moment, mean[:, None]], [mean[None], np.ones((1, 1))]])


def similarity(heads: Sequence[Matrix], covariance: Matrix) -> Matrix:
    """How alike the outputs of heads are when one may be rotated, [n, n]: 1 where one is a rotation of the other."""
    count = len(heads)
    alike = np.eye(count)
    norms = [max(float(np.sqrt(np.trace(head @ covariance @ head.T))), 1e-30) for head in heads]
    for i in range(count):
        for j in range(i):
            nuclear = np.linalg.svd(heads[i] @ covariance @ heads[j].T, compute_uv=False).sum()
            alike[i, j] = alike[j, i] = nuclear / (norms[i] * norms[j])
    return alike


def rotation(head: Matrix, goal: Matrix, covariance: Matrix) -> Matrix:
    """The orthogonal R [D, D] for which R · head is nearest to goal on the data (orthogonal Procrustes)."""
    left, _, right = np.linalg.svd(goal @ covariance @ head.T)
    return np.asarray(left @ right)


def aligned(heads: Sequence[Matrix], covariance: Matrix) -> list[Matrix]:
    """Rotations that bring heads together, turn by turn to their mean; the first head begins as the mean."""
    turns = [np.eye(len(heads[0]))] * len(heads)
    goal = heads[0]
    for _ in range(ROUNDS):
        turns = [rotation(head, goal, covariance) for head in heads]
        goal = np.mean([turn @ head for turn, head in zip(turns, heads, strict=True)], axis=0)
    return turns


def grouped(alike: Matrix, groups: int) -> list[list[int]]:
    """Groups of equal size with much likeness inside: each is grown from the most similar pair that is left, then heads
    change places as long as that helps. Members ascend, and groups by their first member."""
    count = len(alike)
    size, left = count // groups, set(range(count))
    found: list[list[int]] = []
    while left:
        seeds = [(alike[i, j], -i, -j) for i in left for j in left if i < j] if size > 1 else []
        group = [-max(seeds)[1], -max(seeds)[2]] if seeds else [min(left)]
        left -= set(group)
        while len(group) < size:
            best = max(sorted(left), key=lambda i: float(alike[i, group].sum()))
            group.append(best)
            left.remove(best)
        found.append(group)
    while _exchange(alike, found):
        pass
    return sorted(sorted(group) for group in found)


def _exchange(alike: Matrix, groups: list[list[int]]) -> bool:
    """Exchange the first two heads whose exchange raises the likeness inside their groups."""
    for one, group in enumerate(groups):
        for other in groups[:one]:
            for a, first in enumerate(group):
                for b, second in enumerate(other):
                    rest_a, rest_b = group[:a] + group[a + 1 :], other[:b] + other[b + 1 :]
                    before = alike[first, rest_a].sum() + alike[second, rest_b].sum()
                    after = alike[second, rest_a].sum() + alike[first, rest_b].sum()
                    if after > before + 1e-9:
                        group[a], other[b] = second, first
                        return True
    return False
