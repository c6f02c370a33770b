"""The mathematics of low-rank factors: W [N, K] ≈ u [N, r] · v [r, K], best under a norm that knows the data.

The error that is smallest is ‖D · (W − u·v) · S‖² (Frobenius): D weighs the outputs (Fisher-weighted SVD, Hsu et al.
2022, arXiv:2207.00112), S·Sᵀ is the covariance of the inputs, so that with it the error is that of the outputs on the
data (SVD-LLM, Wang et al. 2024, arXiv:2403.07378). Without both it is the plain SVD (Eckart and Young 1936).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[Any]  # float64
# Added to the covariance, relative to its mean diagonal: directions that the calibration data never showed may come.
DAMPING = 1e-3


@dataclass(frozen=True, eq=False)
class Decomposition:
    """D·W·S = left [N, m] · diag(values [m]) · right [m, K], largest first, m = min(N, K)."""

    left: Matrix
    values: Matrix
    right: Matrix
    rows: Matrix | None
    root: Matrix | None

    @property
    def energies(self) -> Matrix:
        """What each rank takes off the squared error, [m]."""
        return np.square(self.values)

    def factors(self, rank: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """u [N, r] and v [r, K]; each takes the square root of the singular values, so that both quantize well."""
        scale = np.sqrt(self.values[:rank])
        u, v = self.left[:, :rank] * scale, scale[:, None] * self.right[:rank]
        if self.rows is not None:
            u = u / self.rows[:, None]
        if self.root is not None:
            v = np.linalg.solve(self.root.T, v.T).T
        return np.ascontiguousarray(u, np.float32), np.ascontiguousarray(v, np.float32)


def decompose(weight: Matrix, rows: Matrix | None = None, covariance: Matrix | None = None) -> Decomposition:
    """The decomposition of W [N, K] with D = diag(rows) and S the Cholesky root of the covariance [K, K]."""
    root = None
    scaled = weight if rows is None else weight * rows[:, None]
    if covariance is not None:
        damping = DAMPING * float(np.trace(covariance)) / len(covariance)
        root = np.linalg.cholesky(covariance + max(damping, 1e-12) * np.eye(len(covariance)))
        scaled = scaled @ root
    left, values, right = np.linalg.svd(scaled, full_matrices=False)
    # Signs are free; the largest entry of each row of `right` is made positive, so that equal inputs give equal bytes.
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(1)])
    signs[signs == 0] = 1.0
    return Decomposition(left * signs, values, right * signs[:, None], rows, root)


def saves(rank: int, outputs: int, inputs: int) -> bool:
    """Whether two factors are smaller than the matrix: r · (N + K) < N · K."""
    return rank * (outputs + inputs) < outputs * inputs


def rank_of_share(share: float, outputs: int, inputs: int, multiple: int) -> int:
    """The rank whose factors have about this share of the matrix' parameters, a multiple, at least one of them."""
    return max(multiple, round(share * outputs * inputs / (outputs + inputs) / multiple) * multiple)


def rank_of_energy(energies: Matrix, share: float, multiple: int) -> int:
    """The smallest multiple of ranks that holds this share of the energy."""
    total = energies.sum()
    # Half a rounding error less than asked, so that share 1 ends where the energy does.
    enough = int(np.searchsorted(np.cumsum(energies), share * total * (1 - 1e-12))) + 1
    return min(len(energies), math.ceil(enough / multiple) * multiple)


def ranks_of_budget(
    energies: Mapping[str, Matrix], shapes: Mapping[str, tuple[int, int]], share: float, multiple: int, relative: bool
) -> dict[str, int | None]:
    """Ranks under a budget: greedily the block of `multiple` ranks with most energy per parameter, until factors and
    matrices that stay dense (None) have `share` of the parameters.

    Args:
        energies: what each rank of a matrix is worth: what it takes off the squared error, or its singular value.
        shapes: (N, K) of each matrix.
        relative: energies count as shares of their matrix' own, else as they are.
    """
    budget = share * sum(outputs * inputs for outputs, inputs in shapes.values())
    ranks: dict[str, int | None] = {}
    heap: list[tuple[float, str]] = []
    steps: dict[str, list[tuple[float, int, int | None]]] = {}
    for name in energies:
        steps[name] = _steps(energies[name], shapes[name], multiple, relative)
        _, cost, ranks[name] = steps[name].pop(0)
        budget -= cost
        _push(heap, steps, name)
    while heap:
        _, name = heapq.heappop(heap)
        _, cost, rank = steps[name].pop(0)
        if cost <= budget:
            ranks[name] = rank
            budget -= cost
            _push(heap, steps, name)
    return ranks


def _push(
    heap: list[tuple[float, str]], steps: Mapping[str, list[tuple[float, int, int | None]]], name: str
) -> None:
    if steps[name]:
        heapq.heappush(heap, (-steps[name][0][0], name))


def _steps(
    energies: Matrix, shape: tuple[int, int], multiple: int, relative: bool
) -> list[tuple[float, int, int | None]]:
    """(energy per parameter, parameters more, rank then) of each step of a matrix, from nothing to dense (None)."""
    outputs, inputs = shape
    total = max(float(energies.sum()), 1e-300) if relative else 1.0
    done, spent = 0, 0
    steps: list[tuple[float, int, int | None]] = []
    while saves(done + multiple, outputs, inputs):
        cost = multiple * (outputs + inputs)
        gain = float(energies[done : done + multiple].sum()) / total
        done, spent = done + multiple, spent + cost
        steps.append((gain / cost, cost, done))
    rest = outputs * inputs - spent
    steps.append((float(energies[done:].sum()) / total / rest, rest, None))
    return steps
