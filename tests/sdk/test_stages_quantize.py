"""`quantize.ptq`: ranges against numpy, encodings that represent zero, padding that has no say."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgesdk.data import Dataset
from edgesdk.encodings import activation_names
from edgesdk.package import Encodings, Package
from edgesdk.stages.quantize_ptq import Histograms, QuantizePtq, QuantizePtqOptions, Ranges, encode, fit_bias
from edgesdk.testing.models import (
    BERT,
    BERT_MEAN,
    SPECS,
    VIT,
    random_context,
    random_dataset,
    random_inputs,
    random_package,
    random_weights,
    with_weights,
)
from edgesdk.transformer.module import build, run
from edgesdk.transformer.quantize import quantize_rows, row_scales
from edgesdk.transformer.spec import TransformerSpec

finite = st.floats(-1e6, 1e6, width=32)


def _encodings(package: Package, inputs: dict[str, NDArray[Any]] | None = None, **options: Any) -> Encodings:
    context = random_context(package)
    if inputs is not None:
        context = dataclasses.replace(context, calibration=Dataset(inputs, None))
    encodings = QuantizePtq(QuantizePtqOptions(**options)).apply(package, context).encodings
    assert encodings is not None
    return encodings


def _observed(package: Package, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Values of every tap, those of padded rows left out, one inference at a time."""
    module, found = build(package.spec, package.weights), dict[str, list[NDArray[Any]]]()
    for row in range(len(next(iter(inputs.values())))):
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        length = int(one["attention_mask"].sum()) if "attention_mask" in one else None

        def tap(name: str, value: torch.Tensor, length: int | None = length) -> torch.Tensor:
            rows = value[0] if value.dim() == 3 else value
            found.setdefault(name, []).append(rows[:length].numpy().reshape(-1).copy())
            return value

        run(module, one, tap)
    return {name: np.concatenate(values) for name, values in found.items()}


@pytest.mark.parametrize("spec", [VIT, BERT, BERT_MEAN], ids=["vit", "bert", "bert_mean"])
def test_minmax_ranges_are_those_of_numpy(spec: TransformerSpec) -> None:
    package = random_package(spec)
    inputs = dict(random_context(package).calibration.inputs)
    encodings = _encodings(package, calibrator="minmax")
    for name, values in _observed(package, inputs).items():
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        entry = encodings.activations[name]
        assert entry.scale == pytest.approx((high - low) / 255, rel=1e-4), name
        assert abs(entry.zero_point - (-128 - low / entry.scale)) <= 0.51, name


@pytest.mark.parametrize("percent", [90.3, 99.1, 99.87])  # no share of a whole number of values
def test_percentile_ranges_are_those_of_numpy(percent: float) -> None:
    package = random_package(BERT)
    inputs = random_inputs(BERT, 40, 7)
    encodings = _encodings(package, inputs, percentile=percent)
    for name, values in _observed(package, inputs).items():
        tail = (100 - percent) / 2
        low, high = np.percentile(values, [tail, 100 - tail], method="inverted_cdf")
        span, bin_width = max(high, 0) - min(low, 0), float(np.ptp(values)) / 8192
        assert encodings.activations[name].scale == pytest.approx(span / 255, abs=2.5 * bin_width / 255), name


def test_histogram_percentile_of_known_data() -> None:
    ranges = Ranges()
    values = np.concatenate([np.linspace(0, 1, 9_800), np.full(100, 50.0), np.full(100, -50.0)]).astype(np.float32)
    for part in np.split(values, 10):
        ranges.widen("x", part[:, None])
    histograms = Histograms(ranges)
    for part in np.split(values, 10):
        histograms.count("x", part[:, None])
    assert ranges.limits["x"] == (-50.0, 50.0)
    # 1 % lies at either outlier: with 2.2 % left out, none of them is inside.
    low, high = histograms.percentile("x", 97.8)
    assert 0 - 0.02 <= low <= 0.02
    assert 1 - 0.02 <= high <= 1.02
    low, high = histograms.percentile("x", 100)
    assert low == -50.0
    assert high == pytest.approx(50.0)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_constant_activation_has_a_usable_range(value: float) -> None:
    ranges = Ranges()
    ranges.widen("x", np.full((4, 2), value, np.float32))
    histograms = Histograms(ranges)
    histograms.count("x", np.full((4, 2), value, np.float32))
    low, high = histograms.percentile("x", 99.99)
    entry = encode(low, high)
    assert entry.scale > 0
    quantized = np.clip(np.rint(value / entry.scale) + entry.zero_point, -128, 127)
    assert entry.scale * (quantized - entry.zero_point) == pytest.approx(value, abs=abs(value) / 100)


@given(finite, finite)
def test_zero_is_exact_and_limits_are_inside(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    entry = encode(low, high)
    assert -128 <= entry.zero_point <= 127
    assert entry.scale > 0
    assert np.float32(entry.scale) == entry.scale
    for value in (low, high, 0.0):
        integer = np.clip(np.rint(value / entry.scale) + entry.zero_point, -128, 127)
        assert abs(entry.scale * (integer - entry.zero_point) - value) <= entry.scale * 1.01
    assert entry.scale * (np.clip(np.rint(0 / entry.scale) + entry.zero_point, -128, 127) - entry.zero_point) == 0


@given(st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=4))
def test_rows_keep_their_largest_value(rows: list[list[float]]) -> None:
    weight = np.array(rows, np.float32)
    scales = row_scales(weight)
    integers = quantize_rows(weight, scales)
    assert np.isfinite(scales).all()
    assert (scales > 0).all()
    assert integers.min() >= -127
    assert np.abs(integers * scales[:, None].astype(np.float64) - weight).max() <= scales.max() * 0.501
    for row, scale in zip(weight, scales, strict=True):
        if np.abs(row).max() > 1e-30:
            assert np.abs(np.rint(row / scale)).max() == 127


def test_rows_beyond_their_scale_saturate_at_127_on_both_sides() -> None:
    """-128 would not fit the 16 bits of two products in the NEON `base` kernel."""
    integers = quantize_rows(np.array([[-9, 9, 0.5, -0.5]], np.float32), np.array([0.01], np.float32))
    assert integers.tolist() == [[-127, 127, 50, -50]]


@pytest.mark.parametrize("calibrator", ["minmax", "percentile"])
def test_padding_has_no_say(calibrator: str) -> None:
    """Tokens behind the mask change no encoding; the same tokens before it do."""
    package = random_package(BERT_MEAN)
    inputs = random_inputs(BERT_MEAN, 12, 5)
    plain = _encodings(package, inputs, calibrator=calibrator)
    behind = np.where(inputs["attention_mask"] == 1, inputs["input_ids"], (inputs["input_ids"] + 13) % 50)
    other = _encodings(package, inputs | {"input_ids": behind}, calibrator=calibrator)
    assert (behind != inputs["input_ids"]).any()
    for name, entry in plain.activations.items():
        assert other.activations[name].scale == pytest.approx(entry.scale, rel=1e-3), name
    before = _encodings(package, inputs | {"input_ids": (inputs["input_ids"] + 13) % 50}, calibrator=calibrator)
    assert any(
        before.activations[name].scale != pytest.approx(entry.scale, rel=1e-3)
        for name, entry in plain.activations.items()
    )


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_matrix_and_activation_has_a_finite_encoding(spec: TransformerSpec) -> None:
    package = random_package(spec)
    encodings = _encodings(package)
    assert set(encodings.activations) == activation_names(spec) - {"classifier", "classifier.input"}
    assert set(encodings.weights) == {name for name, shape in spec.weight_shapes().items() if len(shape) == 2}
    scales = [entry.scale for entry in encodings.activations.values()]
    assert np.isfinite(scales).all()
    assert min(scales) > 0
    for name, weight in encodings.weights.items():
        assert weight.scale.dtype == np.float32
        np.testing.assert_allclose(weight.scale, np.abs(package.weights[name]).max(1) / 127, rtol=1e-6)


def test_dynamic_scheme_looks_at_no_data() -> None:
    encodings = _encodings(random_package(VIT), scheme="w8a8-dynamic")
    assert (encodings.calibrator, encodings.samples, dict(encodings.activations)) == (None, 0, {})


def test_samples_bound_the_data_that_is_seen() -> None:
    package = random_package(VIT)
    few = _encodings(package, samples=4)
    assert few.samples == 4
    direct = _encodings(package, dict(random_context(package).calibration.head(4).inputs))
    assert few.activations == direct.activations
    assert few.activations != _encodings(package).activations


def test_dead_rows_and_zero_weights_quantize() -> None:
    package = random_package(VIT)
    weight = package.weights["layers.0.ffn.up.weight"].copy()
    weight[5] = 0
    dead = with_weights(package, layers__0__ffn__up__weight=weight)
    encodings = _encodings(dead)
    assert encodings.weights["layers.0.ffn.up.weight"].scale[5] == 1.0


@given(st.floats(1e-30, 1e3), st.floats(-1e6, 1e6), st.floats(1e-8, 1e3))
def test_fitted_bias_is_inside_int32(scale: float, bias: float, input_scale: float) -> None:
    fitted = fit_bias(np.array([scale], np.float32), np.array([bias], np.float32), input_scale)
    assert fitted[0] >= np.float32(scale)
    assert abs(np.float64(np.float32(bias)) / (np.float64(fitted[0]) * input_scale)) <= 2**30 * 1.001
    if abs(bias) / (scale * input_scale) < 2**29:
        assert fitted[0] == np.float32(scale)


def test_random_weights_of_the_suite_have_biases() -> None:
    """The tests of this folder would say little about biases that are zero."""
    assert np.abs(random_weights(VIT)["layers.0.ffn.up.bias"]).min() > 0
    assert random_dataset(VIT, 4).labels is not None
