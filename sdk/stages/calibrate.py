"""Ranges: of activations by what calibration data show, of weights by what rounding them loses.

Activations are asymmetric int8 per tensor. Weights are symmetric per row, with 4 bits on the two-level grid of
`edgesdk.encodings.WeightEncoding`.

Methods: percentile after Wu et al. 2020 (arXiv:2004.09602); entropy after Migacz, "8-bit inference with TensorRT"
(GTC 2017); search for the smallest squared error after Choukroun et al. 2019 (arXiv:1902.06822).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgesdk.encodings import LARGEST_MULTIPLIER, ActivationEncoding, WeightEncoding
from edgesdk.transformer.quantize import row_scales

BINS = 8192
LEVELS = 256
CALIBRATORS = ("minmax", "percentile", "mse", "entropy")
Calibrator = Literal["minmax", "percentile", "mse", "entropy"]

# Candidates of the searches: shares of the largest range or step.
SHRINKS = np.linspace(1.0, 0.2, 81)
STEP_SHRINKS = np.linspace(1.0, 0.5, 11)
SCALE_SHRINKS = np.linspace(1.1, 0.5, 13)
LARGEST_BLOCK = 1 << 20  # weights that a search looks at together, so that its arrays stay small


# --- activations ---


def encode(low: float, high: float) -> ActivationEncoding:
    """Asymmetric int8 for a range that is widened to hold zero; zero is exactly representable."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max((high - low) / 255.0, 1e-8)))
    zero_point = int(np.clip(np.rint(-128.0 - low / scale), -128, 127))
    return ActivationEncoding(scale=scale, zero_point=zero_point, bits=8)


class Ranges:
    """Smallest and largest value of every activation."""

    def __init__(self) -> None:
        self.limits: dict[str, tuple[float, float]] = {}

    def widen(self, name: str, rows: NDArray[np.float32]) -> None:
        low, high = self.limits.get(name, (0.0, 0.0))
        self.limits[name] = (min(low, float(rows.min())), max(high, float(rows.max())))


class Histograms:
    """Histograms over ranges that are known already (second pass over the data)."""

    def __init__(self, ranges: Ranges) -> None:
        self.limits = ranges.limits
        self.counts = {name: np.zeros(BINS, np.int64) for name in self.limits}

    def count(self, name: str, rows: NDArray[np.float32]) -> None:
        if name in self.counts:
            self.counts[name] += np.histogram(rows, BINS, self.limits[name])[0]

    def range(self, name: str, calibrator: Calibrator, percent: float = 99.99) -> tuple[float, float]:
        """The range that a calibrator chooses for one activation."""
        low, high = self.limits[name]
        if calibrator == "minmax" or high <= low:
            return low, high
        if calibrator == "percentile":
            return self.percentile(name, percent)
        return self.mse(name) if calibrator == "mse" else self.entropy(name)

    def percentile(self, name: str, percent: float) -> tuple[float, float]:
        """The range that leaves (100 − percent)/2 percent of the values out at each end."""
        low, high = self.limits[name]
        if high <= low:
            return low, high
        cumulative = np.cumsum(self.counts[name]) / self.counts[name].sum()
        tail = (100.0 - percent) / 200.0
        width = (high - low) / BINS
        first = int(np.searchsorted(cumulative, tail, side="right"))
        last = int(np.searchsorted(cumulative, 1.0 - tail, side="left"))
        return low + first * width, low + (last + 1) * width

    def mse(self, name: str) -> tuple[float, float]:
        """The range of the smallest squared error of rounding and clipping: both ends shrink together, then the upper
        and the lower one by itself."""
        low, high = self.limits[name]
        together = [(low * share, high * share) for share in SHRINKS]
        low_end, high_end = min(together, key=lambda limits: self._error(name, *limits))
        upper = [(low_end, high_end)] + [(low_end, high * share) for share in SHRINKS]
        low_end, high_end = min(upper, key=lambda limits: self._error(name, *limits))
        lower = [(low_end, high_end)] + [(low * share, high_end) for share in SHRINKS]
        return min(lower, key=lambda limits: self._error(name, *limits))

    def _error(self, name: str, low: float, high: float) -> float:
        """Sum of squared errors of int8 over [low, high], each bin at its middle."""
        middles, counts = self._bins(name)
        encoding = encode(low, high)
        integers = np.clip(np.rint(middles / encoding.scale) + encoding.zero_point, -128, 127)
        return float((counts * (encoding.scale * (integers - encoding.zero_point) - middles) ** 2).sum())

    def _bins(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Middles and counts of the bins that hold something."""
        low, high = self.limits[name]
        filled = np.flatnonzero(self.counts[name])
        return low + (filled + 0.5) * (high - low) / BINS, self.counts[name][filled].astype(np.float64)

    def entropy(self, name: str) -> tuple[float, float]:
        """The range [max(low, −t), min(high, t)] whose 256 levels keep most of the distribution: the smallest
        Kullback-Leibler divergence from the clipped distribution (tails added to its last bins) to its levels."""
        low, high = self.limits[name]
        width = (high - low) / BINS
        counts = self.counts[name].astype(np.float64)
        best, chosen = np.inf, (low, high)
        for threshold in np.linspace(1.0, LEVELS / BINS, 128) * max(-low, high):
            first = max(0, int(np.floor((-threshold - low) / width)))
            last = min(BINS, int(np.ceil((threshold - low) / width)))
            if last - first < LEVELS:
                break
            divergence = _divergence(counts, first, last)
            if divergence < best:
                best, chosen = divergence, (low + first * width, low + last * width)
        return chosen


def _divergence(counts: NDArray[np.float64], first: int, last: int) -> float:
    """KL(P ‖ Q) where P are the bins [first, last) with the tails in their outermost bins, and Q the same bins without
    the tails, each of 256 levels spread evenly over its bins that hold something."""
    inside = counts[first:last]
    reference = inside.copy()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last:].sum()
    level = np.arange(len(inside)) * LEVELS // len(inside)
    filled = (reference > 0).astype(np.float64)
    mass = np.bincount(level, inside, LEVELS)
    spread = mass / np.maximum(np.bincount(level, filled, LEVELS), 1.0)
    levels = spread[level] * filled
    if levels.sum() == 0:
        return float("inf")
    p, q = reference / reference.sum(), levels / levels.sum()
    held = p > 0
    return float((p[held] * np.log(p[held] / np.maximum(q[held], 1e-12))).sum())


# --- weights ---


def group_of(inputs: int, group: int | None) -> int:
    """How many inputs share a multiplier: the largest divisor of `inputs` that is at most `group`. The whole row for
    None, and where that divisor is below a quarter of `group`: the multipliers would outweigh what they save."""
    if group is None:
        return inputs
    divisor = next(size for size in range(min(group, inputs), 0, -1) if inputs % size == 0)
    return inputs if 4 * divisor < min(group, inputs) else divisor


def weight_encoding(
    weight: NDArray[np.float32],
    bits: int,
    group: int | None = 32,
    moments: NDArray[np.floating] | None = None,
    method: Literal["mse", "max"] = "mse",
) -> WeightEncoding:
    """The encoding of a matrix [N, K].

    8 bits: the largest |w| of a row becomes 127. 4 bits: `max` gives every group the step that clips nothing; `mse`
    searches row scales and multipliers for the smallest squared error, inputs weighted by their second `moments` [K]
    where they are known. `mse` is never worse than `max`, row by row. `group`: see `group_of`.
    """
    if bits == 8:
        return WeightEncoding(bits=8, axis=0, scale=row_scales(weight))
    size = group_of(weight.shape[1], group)
    importance = np.ones(weight.shape[1], np.float32)
    if moments is not None and float(np.sum(moments)) > 0:
        importance = (moments / np.mean(moments)).astype(np.float32)
    rows = max(1, LARGEST_BLOCK // weight.shape[1])
    parts = [_two_levels(weight[i : i + rows], size, importance, method) for i in range(0, len(weight), rows)]
    scale, multiplier = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return WeightEncoding(bits=4, axis=0, scale=scale, group=size, multiplier=multiplier)


def _two_levels(
    weight: NDArray[np.float32], group: int, importance: NDArray[np.float32], method: str
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Row scales [N] and multipliers [N, K / group]."""
    grouped = weight.reshape(len(weight), -1, group)
    widest = np.maximum(grouped.max(2) / 7.0, grouped.min(2) / -8.0)  # [N, G]: the step that clips nothing
    widest = np.maximum(widest, 0.0)
    top = widest.max(1)
    scale = np.where(top > 1e-30, top / LARGEST_MULTIPLIER, 1.0).astype(np.float32)
    multiplier = np.clip(np.ceil(widest / scale[:, None] - 1e-4), 1, LARGEST_MULTIPLIER)
    if method == "max":
        return scale, multiplier.astype(np.uint8)
    weights = importance.reshape(-1, group)
    wanted = _best_steps(grouped, widest, weights)
    error = _squared_error(grouped, scale[:, None] * multiplier.astype(np.float32), weights).sum(1)
    for candidate, multipliers in _candidates(scale, wanted):
        best = np.full(wanted.shape, np.inf, np.float32)
        chosen = np.ones(wanted.shape)
        for choice in multipliers:
            found = _squared_error(grouped, candidate[:, None] * choice.astype(np.float32), weights)
            chosen = np.where(found < best, choice, chosen)
            best = np.minimum(found, best)
        total = best.sum(1)
        better = total < error
        scale, error = np.where(better, candidate, scale), np.where(better, total, error)
        multiplier = np.where(better[:, None], chosen, multiplier)
    return scale.astype(np.float32), multiplier.astype(np.uint8)


def _candidates(
    scale: NDArray[np.float32], wanted: NDArray[np.float32]
) -> Iterator[tuple[NDArray[np.float32], list[NDArray[np.float64]]]]:
    """Row scales to try, each with the multipliers on either side of the wanted steps [N, G]."""
    for shrink in SCALE_SHRINKS:
        candidate = np.where(scale == 1.0, 1.0, scale * np.float32(shrink)).astype(np.float32)
        middle = np.rint(wanted / candidate[:, None])
        yield candidate, [np.clip(middle + offset, 1, LARGEST_MULTIPLIER) for offset in (0, -1, 1)]


def _best_steps(
    grouped: NDArray[np.float32], widest: NDArray[np.float32], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The step [N, G] of the smallest error among shares of the widest, multipliers left out of account."""
    best, steps = np.full(widest.shape, np.inf, np.float32), widest.astype(np.float32)
    for shrink in STEP_SHRINKS:
        tried = np.maximum(widest * np.float32(shrink), 1e-30).astype(np.float32)
        error = _squared_error(grouped, tried, weights)
        steps, best = np.where(error < best, tried, steps), np.minimum(error, best)
    return steps


def _squared_error(
    grouped: NDArray[np.float32], steps: NDArray[np.float32], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Σ weight · (w − step · q)² of each group: [N, G, group], [N, G], [G, group] → [N, G]."""
    wide = steps[:, :, None]
    integers = grouped / wide
    np.rint(integers, out=integers)
    np.clip(integers, -8, 7, out=integers)
    integers *= wide
    integers -= grouped
    np.square(integers, out=integers)
    result: NDArray[np.float32] = np.einsum("ngk,gk->ng", integers, weights)
    return result


# --- biases ---


def fit_bias(
    scale: NDArray[np.float32], bias: NDArray[np.float32], input_scale: float
) -> NDArray[np.float32]:
    """Row scales [N] under which bias / (input_scale · scale) fits int32 with room for the sum of products.

    A row of very small weights with a bias of ordinary size would saturate it; the row's few levels are the price.
    """
    needed = np.abs(bias.astype(np.float64)) / (input_scale * 2.0**30)
    return np.maximum(scale, needed.astype(np.float32))


def fitted(encoding: WeightEncoding, bias: NDArray[np.float32], input_scale: float) -> WeightEncoding:
    """The encoding with row scales that `fit_bias` asks for; multipliers keep the steps as they were where they can."""
    scale = fit_bias(encoding.scale, bias, input_scale)
    if encoding.multiplier is None or bool((scale == encoding.scale).all()):
        return dataclasses.replace(encoding, scale=scale)
    steps = encoding.multiplier * (encoding.scale / scale)[:, None]
    multiplier = np.clip(np.rint(steps), 1, LARGEST_MULTIPLIER).astype(np.uint8)
    return dataclasses.replace(encoding, scale=scale, multiplier=multiplier)


# --- bytes ---


def weight_bytes(shape: tuple[int, ...], bits: int, group: int | None = 32) -> int:
    """Bytes of a matrix [N, K] in a graph: its numbers, one float scale a row, and for 4 bits its 4-bit multipliers."""
    rows, inputs = shape
    if bits == 8:
        return rows * inputs + 4 * rows
    multipliers = rows * (inputs // group_of(inputs, group))
    return (rows * inputs + 1) // 2 + (multipliers + 1) // 2 + 4 * rows
