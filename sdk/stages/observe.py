"""Run calibration inputs through the torch model, and what compression wants to know of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.encodings import input_activation
from edgesdk.package import Package
from edgesdk.transformer.spec import TransformerSpec

BATCH = 32


def observe(
    package: Package, inputs: Mapping[str, NDArray[Any]], collect: Callable[[str, NDArray[np.float32]], None]
) -> None:
    """Call `collect(name, rows)` with rows [tokens, width] of each tapped tensor, batch by batch, in a fixed order.

    Rows of padded positions are left out: no runtime's result depends on them.
    """
    import torch

    from edgesdk.transformer.module import build

    module = build(package.spec, package.weights)
    count = len(next(iter(inputs.values())))
    with torch.inference_mode():
        for start in range(0, count, BATCH):
            rows = {name: np.array(value[start : start + BATCH]) for name, value in inputs.items()}
            batch = {name: torch.from_numpy(value) for name, value in trimmed(rows).items()}
            mask = batch.get("attention_mask")

            def tap(name: str, value: torch.Tensor, mask: torch.Tensor | None = mask) -> torch.Tensor:
                rows = value
                if mask is not None and value.dim() == 3:
                    rows = value[mask.bool()]
                collect(name, rows.reshape(-1, value.shape[-1]).numpy())
                return value

            module.trace(batch, tap)


def trimmed(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """A batch without the columns that are padding in all its rows."""
    mask = inputs.get("attention_mask")
    if mask is None:
        return dict(inputs)
    longest = max(1, int(mask.sum(1).max()))
    return {name: np.ascontiguousarray(value[:, :longest]) for name, value in inputs.items()}


class InputStatistics:
    """What linear layers read, by name of the activation: number of rows, sums [K], sums of squares [K], largest
    absolute values [K], and, where `products` is set, sums of products X·Xᵀ [K, K]."""

    def __init__(self, wanted: Collection[str], products: bool = False) -> None:
        self.wanted, self.products = frozenset(wanted), products
        self.rows: dict[str, int] = {}
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.squares: dict[str, NDArray[np.float64]] = {}
        self.peaks: dict[str, NDArray[np.float32]] = {}
        self.hessians: dict[str, NDArray[np.float32]] = {}

    def add(self, name: str, rows: NDArray[np.float32]) -> None:
        """Count rows [tokens, K]; other names than the wanted ones pass."""
        if name not in self.wanted:
            return
        width = rows.shape[1]
        if name not in self.rows:
            self.rows[name] = 0
            self.sums[name], self.squares[name] = np.zeros(width), np.zeros(width)
            self.peaks[name] = np.zeros(width, np.float32)
            if self.products:
                self.hessians[name] = np.zeros((width, width), np.float32)
        self.rows[name] += len(rows)
        self.sums[name] += rows.sum(0, dtype=np.float64)
        self.squares[name] += np.square(rows).sum(0, dtype=np.float64)
        np.maximum(self.peaks[name], np.abs(rows).max(0, initial=0.0), out=self.peaks[name])
        if self.products:
            self.hessians[name] += rows.T @ rows

    def mean(self, names: Collection[str]) -> NDArray[np.float64]:
        """Mean [K] over all rows of these activations: the uses of one stored layer."""
        return np.asarray(sum(self.sums[name] for name in names) / self._count(names))

    def moments(self, names: Collection[str]) -> NDArray[np.float64]:
        """Second moments E[x²], [K]."""
        return np.asarray(sum(self.squares[name] for name in names) / self._count(names))

    def hessian(self, names: Collection[str]) -> NDArray[np.float64]:
        """E[x·xᵀ], [K, K]; half the Hessian of the squared error of a layer's output, for every row of its weight."""
        total = np.asarray(sum(self.hessians[name].astype(np.float64) for name in names))
        return np.asarray(total / self._count(names))

    def peak(self, names: Collection[str]) -> NDArray[np.float32]:
        """Largest |x| of each channel, [K]."""
        return np.asarray(np.max([self.peaks[name] for name in names], axis=0), np.float32)

    def _count(self, names: Collection[str]) -> int:
        return max(1, sum(self.rows[name] for name in names))


def inputs_of(spec: TransformerSpec) -> dict[str, tuple[str, ...]]:
    """Stored linear layer → the activations that its uses read, in the order of execution."""
    found: dict[str, tuple[str, ...]] = {}
    for name, _, _ in spec.linears():
        stored = spec.stored(name)
        found[stored] = (*found.get(stored, ()), input_activation(name))
    return found
