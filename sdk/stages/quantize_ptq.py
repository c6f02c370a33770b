"""`quantize.ptq`: post-training quantization, static (`w8a8`, `w4a8`) or dynamic (`w8a8-dynamic`, `w4a8-dynamic`).

Weights: symmetric int8 per output row, or 4 bits on a two-level grid (a step of its own for each group of inputs);
tables of embeddings likewise, positions in 8 bits. Static activations: asymmetric int8 per tensor, range by the
calibrator. Outputs of classifiers, exits and gates stay float and their weights have 8 bits: fewer cost accuracy there
and save nothing.

Order of the work: channels are smoothed (`smooth`), inputs observed, ranges chosen, bits chosen where precision is
mixed (`max_bytes`, `max_loss`), weights rounded (`rounding`), biases corrected (`bias_correction`). Matrices of 4 bits,
and those that rounding or correction touched, go into the package as the numbers of their grid: the float weights of
the package are then what its artifacts compute with.

Method: Jacob et al. 2018 (arXiv:1712.05877); bias correction: Nagel et al. 2019 (arXiv:1906.04721); `calibrate`,
`rounding`, `smooth` and `sensitivity` name theirs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgesdk.encodings import static_activations
from edgesdk.errors import StageError
from edgesdk.package import ActivationEncoding, Encodings, Package, WeightEncoding
from edgesdk.stages.base import Change, Context, Options, Outline, Stage
from edgesdk.stages.calibrate import Calibrator, Histograms, Ranges, encode, fitted, weight_encoding
from edgesdk.stages.observe import InputStatistics, inputs_of, observe
from edgesdk.stages.rounding import adaround, gptq
from edgesdk.stages.sensitivity import TOKENS, by_loss, by_size, loss_of, lowerable, sensitivity
from edgesdk.stages.smooth import smooth, smoothed_activations
from edgesdk.transformer.quantize import dequantized

Inputs = Mapping[str, NDArray[Any]]
Weights = dict[str, NDArray[np.float32]]
Encoder = Callable[[str, int], WeightEncoding]


class QuantizePtqOptions(Options):
    """Options of `quantize.ptq`.

    Attributes:
        calibrator: chooses the ranges of static activations.
        percentile: share (in percent) of values inside the range; only `calibrator: percentile` reads it.
        samples: rows of calibration data that are looked at.
        group: inputs that share a 4-bit step; where it does not divide a matrix's inputs, its largest divisor that
            does. `row` or null: one step a row.
        embedding_bits: of the token table; null means 8 for w8…, 4 for w4… (8 where the table makes the logits too).
        smooth: alpha of SmoothQuant (see `edgesdk.stages.smooth` for where it is exact); null leaves channels alone.
        rounding: see `edgesdk.stages.rounding`.
        iterations: of AdaRound.
        bias_correction: add the mean error that rounding makes in a layer's output to its bias.
        max_bytes: mixed precision under a size goal: the ONNX file has at most this share of the fp32 file's bytes
            (at most 1), or this many bytes (above 1). Matrices that lose least for the bytes they save get 4 bits.
        max_loss: mixed precision under an accuracy goal: as many matrices as possible get 4 bits while the package
            loses at most so many points on the validation rows.
    """

    scheme: Literal["w8a8", "w8a8-dynamic", "w4a8", "w4a8-dynamic"] = "w8a8"
    calibrator: Calibrator = "percentile"
    percentile: float = Field(default=99.99, gt=50, le=100)
    samples: int = Field(default=256, ge=1, le=100_000)
    group: Annotated[int, Field(strict=True, ge=1, le=1 << 16)] | Literal["row"] | None = 32
    embedding_bits: Literal[4, 8] | None = None
    smooth: float | None = Field(default=None, ge=0, le=1)
    rounding: Literal["nearest", "adaround", "gptq"] = "nearest"
    iterations: int = Field(default=300, ge=1, le=20_000)
    bias_correction: bool = False
    max_bytes: float | None = Field(default=None, gt=0)
    max_loss: float | None = Field(default=None, ge=0, le=100)

    @property
    def group_size(self) -> int | None:
        """`group` with None for the whole row."""
        return None if self.group == "row" else self.group

    @property
    def mixed(self) -> bool:
        """Whether sensitivities decide which matrices have 4 bits."""
        return self.max_bytes is not None or self.max_loss is not None


class QuantizePtq(Stage):
    """Post-training int8 and int4."""

    name: ClassVar[str] = "quantize.ptq"
    options_type: ClassVar[type[Options]] = QuantizePtqOptions
    options: QuantizePtqOptions

    def requires(self, outline: Outline) -> list[str]:
        options, reasons = self.options, []
        if outline.scheme != "fp32":
            reasons.append(f"the package is {outline.scheme} already")
        if options.mixed and not options.scheme.startswith("w4"):
            reasons.append(f"max_bytes and max_loss choose between 4 and 8 bits, not in {options.scheme}; use w4a8")
        if options.max_bytes is not None and options.max_loss is not None:
            reasons.append("max_bytes and max_loss are both given; choose one goal")
        spec = outline.spec
        if options.smooth is not None and (spec.norm_kind, spec.rope_base) != ("layer", None):
            reasons.append("smooth is exact for LayerNorm and a table of positions only; leave it out")
        return reasons

    def ensures(self, outline: Outline) -> Outline:
        return dataclasses.replace(outline, scheme=self.options.scheme)

    def apply(self, package: Package, context: Context) -> Change:
        options, static = self.options, not self.options.scheme.endswith("-dynamic")
        calibration = context.calibration.sample(options.samples, context.seed)
        given = package
        if options.smooth is not None:
            package = _smoothed(package, calibration.inputs, options.smooth)
        statistics, ranges = self._observed(package, calibration.inputs, static)
        activations = self._activations(package, calibration.inputs, ranges) if static else {}
        encoder = _encoder(package, statistics, activations, options.group_size)
        matrices = [name for name, shape in package.spec.weight_shapes().items() if len(shape) == 2]

        def encodings(low: Collection[str]) -> Encodings:
            weights = {name: encoder(name, 4 if name in low else 8) for name in matrices}
            calibrator, samples = (options.calibrator, len(calibration)) if static else (None, 0)
            return Encodings(options.scheme, calibrator, samples, activations, weights)

        low = self._low(package)
        if options.mixed:
            low = self._mixed(package, context, low, encodings)
        chosen = encodings(low)
        weights = self._rounded(package, chosen, statistics, context)
        while options.max_loss is not None and self._loses(package, weights, chosen, context, bool(low)):
            low = low[: len(low) * 3 // 4]  # the most sensitive are the last
            chosen = encodings(low)
            weights = self._rounded(package, chosen, statistics, context)
        self._check_size(package, weights, chosen)
        changed = any(value is not given.weights[name] for name, value in weights.items())
        return Change(weights=weights if changed else None, encodings=chosen)

    def _low(self, package: Package) -> list[str]:
        """The matrices of 4 bits, before any mixing."""
        spec, bits = package.spec, self.options.embedding_bits
        low = lowerable(spec) if self.options.scheme.startswith("w4") else []
        if bits == 8 or (bits is None and spec.lm_head):
            return [name for name in low if name != TOKENS]
        return [TOKENS] if bits == 4 and not low and TOKENS in package.weights else low

    def _observed(self, package: Package, inputs: Inputs, static: bool) -> tuple[InputStatistics | None, Ranges]:
        """One pass over the calibration data for all that it can tell; none where nothing asks."""
        options, ranges, spec = self.options, Ranges(), package.spec
        rounds = options.rounding != "nearest"
        statistics = None
        if rounds or options.bias_correction or options.scheme.startswith("w4"):
            statistics = InputStatistics({name for names in inputs_of(spec).values() for name in names}, rounds)
        if statistics is None and not static:
            return None, ranges
        wanted = static_activations(spec) if static else frozenset()

        def collect(name: str, rows: NDArray[np.float32]) -> None:
            if name in wanted:
                ranges.widen(name, rows)
            if statistics is not None:
                statistics.add(name, rows)

        observe(package, inputs, collect)
        return statistics, ranges

    def _activations(self, package: Package, inputs: Inputs, ranges: Ranges) -> dict[str, ActivationEncoding]:
        if self.options.calibrator == "minmax":
            return {name: encode(*limits) for name, limits in sorted(ranges.limits.items())}
        histograms = Histograms(ranges)
        observe(package, inputs, histograms.count)
        calibrator, percent = self.options.calibrator, self.options.percentile
        return {name: encode(*histograms.range(name, calibrator, percent)) for name in sorted(ranges.limits)}

    def _mixed(
        self, package: Package, context: Context, names: list[str], encodings: Callable[[Collection[str]], Encodings]
    ) -> list[str]:
        """The names of `names` that get 4 bits under the goal.

        Raises:
            StageError: no choice meets it.
        """
        low = encodings(names)
        rows = sensitivity(package, context, encodings=low, names=names, samples=self.options.samples)
        if self.options.max_bytes is None:
            assert self.options.max_loss is not None
            return by_loss(rows, package, context.validation, encodings, self.options.max_loss)
        return by_size(rows, package, encodings, self._limit(package))

    def _limit(self, package: Package) -> int:
        """`max_bytes` as bytes of the ONNX file."""
        wanted = self.options.max_bytes or 0.0
        return int(wanted * package.baseline.bytes) if wanted <= 1 else int(wanted)

    def _loses(
        self, package: Package, weights: Weights, encodings: Encodings, context: Context, more: bool
    ) -> bool:
        """Whether what rounding and bias correction made loses more than `max_loss`; their choice was measured without.

        Raises:
            StageError: it does, and no `more` matrices can get 8 bits.
        """
        assert self.options.max_loss is not None
        lost = loss_of(package, weights, encodings, context.validation)
        if lost > self.options.max_loss and not more:
            raise StageError(
                f"{self.name}: {lost:.2f} points are lost after rounding ({self.options.rounding}) with every matrix "
                f"at 8 bits, max_loss allows {self.options.max_loss:g}", "raise max_loss, or choose another rounding",
            )
        return lost > self.options.max_loss

    def _check_size(self, package: Package, weights: Weights, encodings: Encodings) -> None:
        """Rounding may leave other zeros than the nearest numbers, which sparse storage counts."""
        from edgesdk.transformer.graph import write_graph

        if self.options.max_bytes is None or not package.spec.sparse:
            return
        size, limit = len(write_graph(package.spec, weights, encodings)), self._limit(package)
        if size > limit:
            raise StageError(f"{self.name}: {size} bytes after rounding, max_bytes allows {limit}", "allow a bit more")

    def _rounded(
        self, package: Package, encodings: Encodings, statistics: InputStatistics | None, context: Context
    ) -> Weights:
        """All weights, with rounded matrices as numbers of their grids and biases corrected."""
        options, spec, weights = self.options, package.spec, dict(package.weights)
        reads = inputs_of(spec)
        for done, (name, encoding) in enumerate(encodings.weights.items()):
            linear = name.removesuffix(".weight")
            original = package.weights[name]
            if options.rounding != "nearest" and linear in reads:
                assert statistics is not None
                context.progress(f"{self.name}: {options.rounding}", done, len(encodings.weights))
                hessian = statistics.hessian(reads[linear])
                kept = original != 0 if linear in spec.sparse else None
                weights[name] = (
                    gptq(original, encoding, hessian, kept) if options.rounding == "gptq"
                    else adaround(original, encoding, hessian, kept, options.iterations)
                )
            elif encoding.bits == 4 or (options.bias_correction and linear in reads):
                weights[name] = dequantized(original, encoding)
        if options.bias_correction:
            assert statistics is not None
            for linear, names in reads.items():
                _correct_bias(linear, package.weights, weights, statistics.mean(names))
        return weights


def _smoothed(package: Package, inputs: Inputs, alpha: float) -> Package:
    """The package with weights of the same function and flatter activations."""
    statistics = InputStatistics(smoothed_activations(package.spec))
    observe(package, inputs, statistics.add)
    return dataclasses.replace(package, weights=smooth(package.spec, package.weights, statistics.peaks, alpha))


def _encoder(
    package: Package,
    statistics: InputStatistics | None,
    activations: Mapping[str, ActivationEncoding],
    group: int | None,
) -> Encoder:
    """(name, bits) → the encoding of a matrix, its row scales fit for the bias of every use. Made once for each."""
    reads, made = inputs_of(package.spec), dict[tuple[str, int], WeightEncoding]()

    def encoder(name: str, bits: int) -> WeightEncoding:
        if (name, bits) not in made:
            linear = name.removesuffix(".weight")
            moments = None if statistics is None or linear not in reads else statistics.moments(reads[linear])
            encoding = weight_encoding(package.weights[name], bits, group, moments)
            bias = package.weights.get(f"{linear}.bias")
            for activation in reads.get(linear, ()):
                if bias is not None and activation in activations:
                    encoding = fitted(encoding, bias, activations[activation].scale)
            made[name, bits] = encoding
        return made[name, bits]

    return encoder


def _correct_bias(
    linear: str, original: Mapping[str, NDArray[np.float32]], weights: Weights, mean: NDArray[np.float64]
) -> None:
    """Add (W − Ŵ)·E[x] to the bias, so that the mean output of the layer is what it was. The first of a low-rank pair
    has no bias: the second one's takes its error."""
    name = f"{linear}.weight"
    error = (original[name].astype(np.float64) - weights[name]) @ mean
    bias = f"{linear}.bias"
    if bias not in weights:
        second = linear.removesuffix(".v")
        bias = f"{second}.u.bias"
        error = weights[f"{second}.u.weight"].astype(np.float64) @ error
    weights[bias] = (weights[bias] + error).astype(np.float32)
