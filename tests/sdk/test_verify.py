"""`verify`: every kind of contradiction is found, by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgesdk.encodings import Encodings
from edgesdk.errors import EdgeSDKError, PackageError, VerifyError
from edgesdk.package import Package
from edgesdk.testing.converters import SCHEMES, sample_package
from edgesdk.testing.models import SPECS, VIT, random_package
from edgesdk.transformer.graph import write_graph
from edgesdk.verify import verify, verify_zeros


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", SPECS)
def test_sound_package_verifies(kind: str, scheme: str) -> None:
    verify(sample_package(kind, scheme))


def _changed(package: Package, **changes: Any) -> Package:
    return dataclasses.replace(package, **changes)


def _tampered(package: Package, name: str) -> Package:
    """One number of the graph is another one."""
    model = onnx.load_from_string(package.graph)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    value = numpy_helper.to_array(tensor).copy()
    value.reshape(-1)[0] += 1
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    return _changed(package, graph=model.SerializeToString())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_tampered_graph_is_found(scheme: str) -> None:
    package = sample_package("vit", scheme)
    with pytest.raises(VerifyError, match="model.onnx is not the graph of its spec"):
        verify(_tampered(package, "layers.1.ffn.down.weight"))


def test_graph_of_other_encodings_is_found() -> None:
    package, other = sample_package("vit", "w8a8"), sample_package("vit", "w8a8-dynamic")
    with pytest.raises(VerifyError, match="model.onnx"):
        verify(_changed(package, graph=other.graph))


def test_other_weights_are_found() -> None:
    package = sample_package("bert", "fp32")
    weights = dict(package.weights)
    weights["pooler.bias"] = weights["pooler.bias"] + np.float32(0.5)
    with pytest.raises(VerifyError, match="model.onnx"):
        verify(_changed(package, weights=weights))
    # With a graph that fits them, the golden outputs are those of other weights.
    graph = write_graph(package.spec, weights)
    with pytest.raises(VerifyError, match="golden_float differs from torch"):
        verify(_changed(package, weights=weights, graph=graph))


@pytest.mark.parametrize(
    ("scheme", "field", "message"),
    [("fp32", "golden_float", "golden_float"), ("fp32", "golden_outputs", "golden_outputs"),
     ("w8a8", "golden_float", "golden_float"), ("w8a8", "golden_outputs", r"golden_outputs.*SQNR"),
     ("w8a8-dynamic", "golden_outputs", r"golden_outputs.*SQNR")],
)
def test_other_golden_outputs_are_found(scheme: str, field: str, message: str) -> None:
    package = sample_package("vit", scheme)
    values = getattr(package.samples, field).copy()
    values[1, 2] += 0.05
    samples = dataclasses.replace(package.samples, **{field: values})
    with pytest.raises(VerifyError, match=message):
        verify(_changed(package, samples=samples))


@pytest.mark.parametrize("missing", ["layers.0.attention.input", "layers.1.ffn.hidden", "layers.0.ffn.up", "pooler",
                                     "layers.0.attention.context", "layers.1.attention.output", "pooler.input"])
def test_missing_activation_is_found_by_name(missing: str) -> None:
    """Without it a layer would quietly stay float."""
    package = sample_package("bert", "w8a8")
    assert package.encodings is not None
    activations = {name: entry for name, entry in package.encodings.activations.items() if name != missing}
    encodings = dataclasses.replace(package.encodings, activations=activations)
    graph = write_graph(package.spec, package.weights, encodings)
    with pytest.raises(VerifyError, match=f"no activation '{missing}'".replace(".", r"\.")):
        verify(_changed(package, encodings=encodings, graph=graph))


def _sparse(pattern: str, more: int = 0) -> Package:
    """A package that says `pattern` of the matrix [32, 16] `layers.0.ffn.up`: of four rows the last two are zero, and
    `more` weights of the first row."""
    package = random_package(VIT)
    weights = dict(package.weights)
    matrix = weights["layers.0.ffn.up.weight"].copy()
    matrix.reshape(-1, 4, 16)[:, 2:] = 0
    matrix[0, :more] = 0
    weights["layers.0.ffn.up.weight"] = matrix
    spec = dataclasses.replace(package.spec, sparse={"layers.0.ffn.up": pattern})
    return _changed(package, spec=spec, weights=weights, graph=write_graph(spec, weights))


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("2:4", "4 of 4 neighbouring inputs"), ("3:5", "5 of 5"), ("4x4", "256 zeros lie in blocks"), ("4x1", "256 zeros"),
     ("3x16", "zeros lie in blocks"), ("2x16", None), ("1x1", None), ("2x5", None), ("unstructured", None)],
)
def test_zeros_elsewhere_than_said_are_found(pattern: str, found: str | None) -> None:
    package = _sparse(pattern)
    if found is None:
        verify_zeros(package)
        return
    with pytest.raises(VerifyError, match=rf"'layers\.0\.ffn\.up' is not sparse .*\({pattern}\).*{found}"):
        verify(package)


def test_a_weight_may_be_zero_by_itself() -> None:
    verify_zeros(_sparse("2x16", 5))
    with pytest.raises(VerifyError, match="6 zeros"):
        verify_zeros(_sparse("2x16", 6))


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic"])
@pytest.mark.parametrize("missing", ["embedding.tokens.weight", "layers.1.ffn.up.weight", "classifier.weight"])
def test_missing_weight_encoding_is_found_by_name(scheme: str, missing: str) -> None:
    package = sample_package("bert", scheme)
    assert package.encodings is not None
    weights = {name: entry for name, entry in package.encodings.weights.items() if name != missing}
    encodings = dataclasses.replace(package.encodings, weights=weights)
    graph = write_graph(package.spec, package.weights, encodings)
    with pytest.raises(VerifyError, match=f"no weight '{missing}'".replace(".", r"\.")):
        verify(_changed(package, encodings=encodings, graph=graph))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_in_weights_is_refused_by_name(value: float) -> None:
    package = sample_package("vit", "fp32")
    weights = dict(package.weights)
    weights["layers.0.ffn.up.bias"] = weights["layers.0.ffn.up.bias"].copy()
    weights["layers.0.ffn.up.bias"][3] = value
    with pytest.raises(PackageError, match=r"layers\.0\.ffn\.up\.bias"):
        _changed(package, weights=weights)
    broken = _bypassed(package, weights=weights)
    with pytest.raises(VerifyError, match=r"layers\.0\.ffn\.up\.bias.*NaN"):
        verify(broken)


def test_weights_of_another_shape_are_found() -> None:
    package = sample_package("vit", "fp32")
    weights = {name: value for name, value in package.weights.items() if name != "embedding.cls"}
    with pytest.raises(VerifyError, match="weights are not those"):
        verify(_bypassed(package, weights=weights))


def test_nan_in_outputs_is_found() -> None:
    """Finite weights can overflow: the largest float times itself."""
    package = sample_package("vit", "fp32")
    weights = dict(package.weights)
    for name in ("layers.0.ffn.up.weight", "layers.0.ffn.down.weight"):
        weights[name] = np.full_like(weights[name], 3e38)
    graph = write_graph(package.spec, weights)
    with pytest.raises(VerifyError, match="differs from torch|NaN"), np.errstate(all="ignore"):
        verify(_changed(package, weights=weights, graph=graph))


def _bypassed(package: Package, **changes: Any) -> Package:
    """A package that no constructor would make: what `verify` must not rely on."""
    broken = dataclasses.replace(package)
    for name, value in changes.items():
        object.__setattr__(broken, name, value)
    return broken


def test_every_failure_is_one_of_ours() -> None:
    package = sample_package("vit", "w8a8")
    broken = _bypassed(package, graph=b"junk", encodings=Encodings("w8a8", None, 0, {}, {}))
    with pytest.raises(EdgeSDKError):
        verify(broken)
