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


@dataclass(frozen=True)
class ActivationEncoding:
    """Signed asymmetric per-tensor encoding: real = scale · (q − zero_point), q in [−2^(bits−1), 2^(bits−1) − 1]."""

    scale: float
    zero_point: int
    bits: int = 8


@dataclass(frozen=True, eq=False)
class WeightEncoding:
    """Signed symmetric encoding with one float32 scale for each index of `axis`: real = scale[row] · q."""

    bits: int
    axis: int
    scale: NDArray[np.float32]


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
            name: {"bits": encoding.bits, "axis": encoding.axis, "scale": [_shortest(s) for s in encoding.scale]}
            for name, encoding in encodings.weights.items()
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
            name: WeightEncoding(**{**entry, "scale": _scales(entry["scale"])})
            for name, entry in fields.pop("weights").items()
        }
        return Encodings(activations=activations, weights=weights, **fields)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as problem:
        raise PackageError(f"{where}: malformed: {problem!r}") from problem


# The classifier's activations stay float: eight bits on logits cost accuracy and save nothing.
FLOAT_ACTIVATIONS = frozenset({"classifier", "classifier.input"})
_READS = {"query": "input", "key": "input", "value": "input", "output": "context", "up": "input", "down": "hidden"}


def input_activation(linear: str) -> str:
    """Name of the activation that a linear layer reads: `layers.0.ffn.down` reads `layers.0.ffn.hidden`."""
    head, _, last = linear.rpartition(".")
    return f"{head}.{_READS[last]}" if linear.startswith("layers.") else f"{linear}.input"


def activation_names(spec: TransformerSpec) -> frozenset[str]:
    """Every activation that may have an encoding: inputs and outputs of the linear layers."""
    return frozenset(name for linear, _, _ in spec.linears() for name in (linear, input_activation(linear)))


def static_activations(spec: TransformerSpec) -> frozenset[str]:
    """The activations that a static scheme must have."""
    return activation_names(spec) - FLOAT_ACTIVATIONS


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
