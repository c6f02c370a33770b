"""`quantize.ptq`: post-training quantization to int8, static (`w8a8`) or dynamic (`w8a8-dynamic`).

Weights: symmetric int8 per output row; tables of embeddings: per row. Static activations: asymmetric int8 per tensor,
range by `minmax` or by `percentile` of the calibration data (both tails). The classifier's output stays float: its
weights are int8, its activations are not, because eight bits on logits cost accuracy and save nothing.
Method: Jacob et al. 2018 (arXiv:1712.05877); Wu et al. 2020 (arXiv:2004.09602) for percentile calibration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgesdk.encodings import FLOAT_ACTIVATIONS, input_activation
from edgesdk.package import ActivationEncoding, Encodings, Package, WeightEncoding
from edgesdk.stages.base import Change, Context, Options, Outline, Stage
from edgesdk.stages.observe import observe
from edgesdk.transformer.quantize import row_scales

BINS = 8192


class QuantizePtqOptions(Options):
    """`percentile` is the share (in percent) of values inside the range; only `calibrator: percentile` reads it."""

    scheme: Literal["w8a8", "w8a8-dynamic"] = "w8a8"
    calibrator: Literal["minmax", "percentile"] = "percentile"
    percentile: float = Field(default=99.99, gt=50, le=100)
    samples: int = Field(default=256, ge=1, le=100_000)


class QuantizePtq(Stage):
    """Post-training int8."""

    name: ClassVar[str] = "quantize.ptq"
    options_type: ClassVar[type[Options]] = QuantizePtqOptions
    options: QuantizePtqOptions

    def requires(self, outline: Outline) -> list[str]:
        return [f"the package is {outline.scheme} already"] if outline.scheme != "fp32" else []

    def ensures(self, outline: Outline) -> Outline:
        return dataclasses.replace(outline, scheme=self.options.scheme)

    def apply(self, package: Package, context: Context) -> Change:
        weights = {
            name: WeightEncoding(bits=8, axis=0, scale=row_scales(package.weights[name]))
            for name, shape in package.spec.weight_shapes().items()
            if len(shape) == 2
        }
        if self.options.scheme == "w8a8-dynamic":
            return Change(encodings=Encodings(self.options.scheme, None, 0, {}, weights))
        calibration = context.calibration.head(self.options.samples)
        activations = self._activations(package, calibration.inputs)
        for name, _, _ in package.spec.linears():
            source = activations.get(input_activation(name))
            if source is not None:
                scale = fit_bias(weights[f"{name}.weight"].scale, package.weights[f"{name}.bias"], source.scale)
                weights[f"{name}.weight"] = WeightEncoding(bits=8, axis=0, scale=scale)
        return Change(
            encodings=Encodings(self.options.scheme, self.options.calibrator, len(calibration), activations, weights)
        )

    def _activations(
        self, package: Package, inputs: Mapping[str, NDArray[Any]]
    ) -> dict[str, ActivationEncoding]:
        ranges = Ranges()
        observe(package, inputs, ranges.widen)
        if self.options.calibrator == "percentile":
            histograms = Histograms(ranges)
            observe(package, inputs, histograms.count)
            found = {name: histograms.percentile(name, self.options.percentile) for name in ranges.limits}
        else:
            found = dict(ranges.limits)
        return {name: encode(*limits) for name, limits in sorted(found.items()) if name not in FLOAT_ACTIVATIONS}


def encode(low: float, high: float) -> ActivationEncoding:
    """Asymmetric int8 for a range that is widened to hold zero; zero is exactly representable."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max((high - low) / 255.0, 1e-8)))
    zero_point = int(np.clip(np.rint(-128.0 - low / scale), -128, 127))
    return ActivationEncoding(scale=scale, zero_point=zero_point, bits=8)


def fit_bias(
    scale: NDArray[np.float32], bias: NDArray[np.float32], input_scale: float
) -> NDArray[np.float32]:
    """Row scales [N] under which bias / (input_scale · scale) fits int32 with room for the sum of products.

    A row of very small weights with a bias of ordinary size would saturate it; the row's few levels are the price.
    """
    needed = np.abs(bias.astype(np.float64)) / (input_scale * 2.0**30)
    return np.maximum(scale, needed.astype(np.float32))


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
        self.counts[name] += np.histogram(rows, BINS, self.limits[name])[0]

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
