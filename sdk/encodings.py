"""Quantization parameters of a package (`encodings.json`): the only source of scales for every converter."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.errors import PackageError
from edgesdk.files import check_document
from edgesdk.transformer.spec import TransformerSpec

FORMAT, VERSION = "edgesdk.encodings", 1
BITS = (4, 8)
LARGEST_MULTIPLIER = 15  # so that |multiplier · q| ≤ 120 fits int8


@dataclass(frozen=True)
class ActivationEncoding:
    """Signed asymmetric per-tensor encoding: real = scale · (q − zero_point), q in [−2^(bits−1), 2^(bits−1) − 1]."""

    scale: float
    zero_point: int
    bits: int = 8


@dataclass(frozen=True, eq=False)
class WeightEncoding:
    """Signed symmetric encoding of a matrix [N, K] with one float32 scale for each row (`axis` 0): real = scale · w,
    w int8 with |w| ≤ 127.

    With `bits` 4, w = multiplier · q: q in [−8, 7], and an integer multiplier in [1, 15] for each `group` of inputs,
    uint8 [N, K / group]. So groups have their own steps, and every int8 kernel runs the weights as they are
    (two-level quantization after QoQ, Lin et al. 2024, arXiv:2405.04532)."""

    bits: int
    axis: int
    scale: NDArray[np.float32]
    group: int | None = None
    multiplier: NDArray[np.uint8] | None = None


@dataclass(frozen=True, eq=False)
class Encodings:
    """`scheme` (`w8a8` …) with the encodings of activations and weights by name of tensor (see
    `docs/architecture.md`); `calibrator` chose the ranges on `samples` inputs (None and 0 for dynamic schemes)."""

    scheme: str
    calibrator: str | None
    samples: int
    activations: Mapping[str, ActivationEncoding]
    weights: Mapping[str, WeightEncoding]


def to_json(encodings: Encodings) -> dict[str, Any]:
    """The document `encodings.json`; float32 scales get the shortest decimal that reads back as the same float32."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "scheme": encodings.scheme,
        "calibrator": encodings.calibrator,
        "samples": encodings.samples,
        "activations": {
            name: {"scale": float(encoding.scale), "zero_point": encoding.zero_point, "bits": encoding.bits}
            for name, encoding in encodings.activations.items()
        },
        "weights": {
            name: _weight_to_json(encoding) for name, encoding in encodings.weights.items()
        },
    }


def from_json(document: Any, where: str = "encodings.json") -> Encodings:
    """Read the document. Values are checked by `check_encodings`, which needs the spec.

    Raises:
        PackageError: unknown format, version or field, or a value of a wrong type.
    """
    document = check_document(document, where, FORMAT, VERSION, PackageError)
    fields = {key: value for key, value in document.items() if key not in ("format", "version")}
    try:
        activations = {name: ActivationEncoding(**entry) for name, entry in fields.pop("activations").items()}
        weights = {
            name: _weight_from_json(entry)
            for name, entry in fields.pop("weights").items()
        }
        return Encodings(activations=activations, weights=weights, **fields)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as problem:
        raise PackageError(f"{where}: malformed: {problem!r}") from problem


_READS = {"query": "input", "key": "input", "value": "input", "output": "context", "up": "input", "glu": "input",
          "down": "hidden"}
_FLOAT = ("classifier", "gate", "exit")


def is_float_linear(linear: str) -> bool:
    """Whether a linear layer's activations stay float: those that make logits, where eight bits cost accuracy and save
    nothing."""
    return linear.rpartition(".")[2] in _FLOAT


def input_activation(linear: str) -> str:
    """Name of the activation that a linear layer reads: `layers.0.ffn.down` reads `layers.0.ffn.hidden`, the second of
    a low-rank pair `layers.0.ffn.down.u` reads `layers.0.ffn.down.v`."""
    if linear.endswith(".u"):
        return f"{linear.removesuffix('.u')}.v"
    head, _, last = linear.removesuffix(".v").rpartition(".")
    return f"{head}.{_READS[last]}" if linear.startswith("layers.") and last in _READS else f"{linear}.input"


def output_activation(linear: str) -> str:
    """Name of the activation that a linear layer makes: its own, without the `.u` of a low-rank pair."""
    return linear.removesuffix(".u")


def activation_names(spec: TransformerSpec) -> frozenset[str]:
    """Every activation that may have an encoding: inputs and outputs of the linear layers."""
    linears = [linear for linear, _, _ in spec.linears()]
    return frozenset(name for linear in linears for name in (output_activation(linear), input_activation(linear)))


def static_activations(spec: TransformerSpec) -> frozenset[str]:
    """The activations that a static scheme must have."""
    linears = [linear for linear, _, _ in spec.linears() if not is_float_linear(linear)]
    return frozenset(name for linear in linears for name in (output_activation(linear), input_activation(linear)))


def check_encodings(encodings: Encodings, spec: TransformerSpec, where: str = "encodings.json") -> None:
    """Check every value against the spec.

    Raises:
        PackageError: an unknown name, a scale that is not a positive float32, a zero point outside its bits, a number
            of scales that is not the number of rows, or odd bits or axis.
    """
    scheme = encodings.scheme
    if not isinstance(scheme, str) or not re.fullmatch("[a-z0-9][a-z0-9-]{0,39}", scheme) or scheme == "fp32":
        raise PackageError(f"{where}: scheme {scheme!r} is no quantized scheme")
    if encodings.calibrator is not None and not isinstance(encodings.calibrator, str):
        raise PackageError(f"{where}: calibrator {encodings.calibrator!r}")
    if type(encodings.samples) is not int or encodings.samples < 0:
        raise PackageError(f"{where}: samples {encodings.samples!r}, expected a number of inputs")
    _check_names(encodings.activations, activation_names(spec), f"{where}: activation")
    shapes = spec.weight_shapes()
    _check_names(encodings.weights, frozenset(shapes), f"{where}: weight")
    for name, activation in encodings.activations.items():
        _check_bits(activation.bits, f"{where}: {name}")
        half = 1 << (activation.bits - 1)
        scale = activation.scale
        if not isinstance(scale, float) or not math.isfinite(scale) or not _positive(np.array([scale])):
            raise PackageError(f"{where}: {name}: scale {scale!r}, expected a positive number that fits float32")
        if type(activation.zero_point) is not int or not -half <= activation.zero_point < half:
            raise PackageError(f"{where}: {name}: zero point {activation.zero_point!r} outside [{-half}, {half - 1}]")
    for name, weight in encodings.weights.items():
        _check_bits(weight.bits, f"{where}: {name}")
        if type(weight.axis) is not int or weight.axis != 0 or len(shapes[name]) != 2:
            raise PackageError(f"{where}: {name}: axis {weight.axis!r}; only rows of matrices are quantized (axis 0)")
        if weight.scale.shape != (shapes[name][0],) or weight.scale.dtype != np.float32:
            raise PackageError(
                f"{where}: {name}: {weight.scale.dtype} scales of shape {weight.scale.shape} for {shapes[name][0]} rows"
            )
        if not _positive(weight.scale):
            raise PackageError(f"{where}: {name}: a scale is zero, negative, NaN, infinite or too small for float32")
        _check_groups(weight, shapes[name], f"{where}: {name}")


def _check_groups(weight: WeightEncoding, shape: tuple[int, ...], where: str) -> None:
    group, multiplier = weight.group, weight.multiplier
    if weight.bits == 8:
        if group is not None or multiplier is not None:
            raise PackageError(f"{where}: groups belong to 4 bits")
        return
    if type(group) is not int or group < 1 or shape[1] % group:
        raise PackageError(f"{where}: group {str(group)[:50]}, expected a divisor of {shape[1]} inputs")
    expected = (shape[0], shape[1] // group)
    if not isinstance(multiplier, np.ndarray) or multiplier.dtype != np.uint8 or multiplier.shape != expected:
        raise PackageError(f"{where}: multipliers are not uint8 of shape {expected}")
    if multiplier.size and not 1 <= multiplier.min() <= multiplier.max() <= LARGEST_MULTIPLIER:
        raise PackageError(f"{where}: a multiplier is outside [1, {LARGEST_MULTIPLIER}]")


def _check_names(names: Any, allowed: frozenset[str], where: str) -> None:
    for name in names:
        if name not in allowed:
            raise PackageError(f"{where} {str(name)[:200]!r} is not part of this model")


def _check_bits(bits: Any, where: str) -> None:
    if type(bits) is not int or bits not in BITS:
        raise PackageError(f"{where}: bits {bits!r}, expected one of {BITS}")


def _positive(scales: NDArray[Any]) -> bool:
    """Whether all are normal, positive float32 numbers."""
    with np.errstate(over="ignore"):
        values = scales.astype(np.float32)
    return bool((np.isfinite(values) & (values >= np.finfo(np.float32).tiny)).all())


def _weight_to_json(encoding: WeightEncoding) -> dict[str, Any]:
    scale = [_shortest(value) for value in encoding.scale]
    document: dict[str, Any] = {"bits": encoding.bits, "axis": encoding.axis, "scale": scale}
    if encoding.multiplier is not None:
        document |= {"group": encoding.group, "multiplier": encoding.multiplier.tolist()}
    return document


def _weight_from_json(entry: Mapping[str, Any]) -> WeightEncoding:
    fields = {**entry, "scale": _scales(entry["scale"])}
    if fields.get("multiplier") is not None:
        rows = fields["multiplier"]
        if type(rows) is not list or any(type(value) is not int for row in rows for value in row):
            raise ValueError("multiplier is not a list of rows of integers")
        multiplier = np.array(rows)
        if multiplier.ndim != 2 or not ((multiplier >= 0) & (multiplier < 256)).all():
            raise ValueError("multiplier is not a matrix of bytes")
        fields["multiplier"] = multiplier.astype(np.uint8)
        fields["multiplier"].flags.writeable = False
    return WeightEncoding(**fields)


def _scales(values: Any) -> NDArray[np.float32]:
    """A list of JSON floats as a read-only float32 array."""
    if type(values) is not list or any(type(value) is not float for value in values):
        raise ValueError("scale is not a list of floats")
    with np.errstate(over="ignore"):
        scales = np.array(values, np.float32)
    scales.flags.writeable = False
    return scales


def _shortest(scale: np.float32) -> float:
    short = float(str(np.float32(scale)))
    return short if np.float32(short) == scale else float(scale)
