"""`quantize.ptq`: ranges against numpy, encodings that represent zero, padding that has no say, 4 bits, smoothing,
rounding and bias correction; the contract of stages."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgesdk.data import Dataset
from edgesdk.encodings import static_activations
from edgesdk.errors import ConfigError, StageError
from edgesdk.package import Encodings, Package
from edgesdk.recipe import load_recipes
from edgesdk.stages import outline_of, run_stage
from edgesdk.stages.calibrate import Histograms, Ranges, encode, fit_bias
from edgesdk.stages.observe import InputStatistics, inputs_of, observe, trimmed
from edgesdk.stages.quantize_ptq import QuantizePtq, QuantizePtqOptions
from edgesdk.stages.sensitivity import lowerable
from edgesdk.stages.smooth import smooth, smoothed_activations
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
from edgesdk.testing.stages import StageTestCase
from edgesdk.transformer.module import build, run
from edgesdk.transformer.quantize import dequantized, quantize_rows, row_scales
from edgesdk.transformer.spec import Exit, Layer, TransformerSpec

finite = st.floats(-1e6, 1e6, width=32)

SHARED = dataclasses.replace(
    BERT, layers=(Layer(4, 2, 4, 32, {"ffn.down": 6, "attention.value": 5}, exit=Exit()),
                  Layer(4, 2, 4, 32, {"ffn.down": 6, "attention.value": 5}, share=0, gate=True)),
)
KINDS = {**SPECS, "shared": SHARED, "pre_relu": dataclasses.replace(SHARED, norm="pre", activation="relu")}
W4 = ["w4a8", "w4a8-dynamic"]


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
        if name not in encodings.activations:
            continue
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
        if name not in encodings.activations:
            continue
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


@pytest.mark.parametrize("calibrator", ["minmax", "percentile", "mse", "entropy"])
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
    assert set(encodings.activations) == static_activations(spec)
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
    direct = _encodings(package, dict(random_context(package).calibration.sample(4, 0).inputs))
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


# --- the contract of stages ---


class TestStatic4(StageTestCase):
    def stage(self) -> QuantizePtq:
        return QuantizePtq(QuantizePtqOptions(scheme="w4a8", calibrator="minmax", rounding="gptq"))

    def after(self) -> None:
        return None


class TestDynamic4(StageTestCase):
    def stage(self) -> QuantizePtq:
        return QuantizePtq(QuantizePtqOptions(scheme="w4a8-dynamic", group=8, smooth=0.5, bias_correction=True))

    def after(self) -> None:
        return None


# --- 4 bits ---


def _made(package: Package, **options: Any) -> Package:
    return run_stage(QuantizePtq(QuantizePtqOptions(**options)), package, random_context(package))


@pytest.mark.parametrize("scheme", W4)
@pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS)
def test_four_bits_where_they_belong_and_eight_elsewhere(spec: TransformerSpec, scheme: str) -> None:
    package = random_package(spec)
    encodings = _encodings(package, scheme=scheme, group=8)
    assert set(encodings.weights) == {name for name, shape in spec.weight_shapes().items() if len(shape) == 2}
    for name, entry in encodings.weights.items():
        eight = any(part in name for part in ("classifier", "positions", ".exit.", ".gate."))
        assert entry.bits == (8 if eight else 4), name
    assert set(encodings.activations) == (set() if scheme.endswith("dynamic") else static_activations(spec))


@pytest.mark.parametrize("scheme", W4)
@pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS)
def test_four_bit_weights_of_the_package_are_numbers_of_the_grid(spec: TransformerSpec, scheme: str) -> None:
    package = random_package(spec)
    made = _made(package, scheme=scheme)
    assert made.encodings is not None
    for name, entry in made.encodings.weights.items():
        if entry.bits == 4:
            np.testing.assert_array_equal(dequantized(made.weights[name], entry), made.weights[name])
            np.testing.assert_array_equal(made.weights[name], dequantized(package.weights[name], entry))
        else:
            np.testing.assert_array_equal(made.weights[name], package.weights[name])


def test_bits_of_the_token_table() -> None:
    package = random_package(BERT)
    table = "embedding.tokens.weight"
    assert _encodings(package, scheme="w4a8", embedding_bits=8).weights[table].bits == 8
    eight = _encodings(package, scheme="w8a8", embedding_bits=4)
    assert [name for name, entry in eight.weights.items() if entry.bits == 4] == [table]
    made = _made(package, scheme="w8a8-dynamic", embedding_bits=4)
    assert made.encodings is not None
    np.testing.assert_array_equal(
        dequantized(made.weights[table], made.encodings.weights[table]), made.weights[table]
    )


def test_table_of_a_model_that_makes_token_logits_keeps_eight_bits() -> None:
    spec = dataclasses.replace(BERT_MEAN, pooling="none", causal=True, lm_head=True)
    stage = QuantizePtq(QuantizePtqOptions(scheme="w4a8"))
    assert "embedding.tokens.weight" not in stage._low(random_like(spec))
    asked = QuantizePtq(QuantizePtqOptions(scheme="w4a8", embedding_bits=4))
    assert "embedding.tokens.weight" in asked._low(random_like(spec))


def random_like(spec: TransformerSpec) -> Any:
    """What `_low` looks at."""

    class Like:
        weights = random_weights(spec)

    Like.spec = spec  # type: ignore[attr-defined]
    return Like()


@pytest.mark.parametrize(("group", "expected"), [(8, 8), (32, 16), ("row", 16), (None, 16), (5, 4), (1, 1)])
def test_groups_of_a_matrix_of_sixteen_inputs(group: Any, expected: int) -> None:
    encodings = _encodings(random_package(VIT), scheme="w4a8-dynamic", group=group)
    assert encodings.weights["layers.0.ffn.up.weight"].group == expected


def test_biases_fit_every_use_of_a_shared_layer() -> None:
    package = random_package(SHARED)
    name = "layers.0.ffn.up"
    tiny = with_weights(package, layers__0__ffn__up__weight=package.weights[f"{name}.weight"] * np.float32(1e-9))
    for scheme in ("w8a8", "w4a8"):
        encodings = _encodings(tiny, scheme=scheme)
        for use in ("layers.0.ffn.input", "layers.1.ffn.input"):
            steps = encodings.weights[f"{name}.weight"].scale.astype(np.float64) * encodings.activations[use].scale
            assert np.abs(tiny.weights[f"{name}.bias"] / steps).max() <= 2**30 * 1.001
        assert _made(tiny, scheme=scheme).scheme == scheme


# --- what calibration sees ---


@pytest.mark.parametrize("spec", [BERT_MEAN, SHARED], ids=["bert_mean", "shared"])
def test_statistics_are_those_of_numpy(spec: TransformerSpec) -> None:
    package = random_package(spec)
    inputs = random_inputs(spec, 40, 3)
    reads = inputs_of(spec)
    statistics = InputStatistics({name for names in reads.values() for name in names}, products=True)
    observe(package, inputs, statistics.add)
    found: dict[str, list[NDArray[Any]]] = {}
    observe(package, inputs, lambda name, rows: found.setdefault(name, []).append(rows.copy()))
    for linear, names in reads.items():
        rows = np.concatenate([part for name in names for part in found[name]]).astype(np.float64)
        np.testing.assert_allclose(statistics.mean(names), rows.mean(0), atol=1e-5)
        np.testing.assert_allclose(statistics.moments(names), np.square(rows).mean(0), rtol=1e-4, err_msg=linear)
        np.testing.assert_allclose(statistics.hessian(names), rows.T @ rows / len(rows), atol=1e-4)
        np.testing.assert_allclose(statistics.peak(names), np.abs(rows).max(0), rtol=1e-6)


def test_uses_of_a_shared_layer_are_counted_together() -> None:
    assert inputs_of(SHARED)["layers.0.ffn.up"] == ("layers.0.ffn.input", "layers.1.ffn.input")
    assert inputs_of(SHARED)["layers.0.ffn.down.u"] == ("layers.0.ffn.down.v", "layers.1.ffn.down.v")
    assert "layers.1.ffn.up" not in inputs_of(SHARED)


def test_trimming_cuts_padding_of_all_rows_only() -> None:
    inputs = {"input_ids": np.arange(12).reshape(2, 6), "attention_mask": np.array([[1, 1, 1, 0, 0, 0], [1] + [0] * 5])}
    assert trimmed(inputs)["input_ids"].tolist() == [[0, 1, 2], [6, 7, 8]]
    pixels = {"pixel_values": np.zeros((2, 1, 8, 8))}
    assert trimmed(pixels)["pixel_values"].shape == (2, 1, 8, 8)


# --- smoothing ---


def _with_outliers(spec: TransformerSpec, factor: float) -> Package:
    """Some channels of every norm are larger than the others."""
    package = random_package(spec)
    large = np.where(np.arange(spec.hidden) % 5 == 0, factor, 1.0).astype(np.float32)
    changed = {
        name.replace(".", "__"): value * large for name, value in package.weights.items() if ".norm.weight" in name
    }
    return with_weights(package, **changed)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS)
def test_smoothing_keeps_the_function(spec: TransformerSpec, alpha: float) -> None:
    package = _with_outliers(spec, 3.0)
    statistics = InputStatistics(smoothed_activations(spec))
    observe(package, random_context(package).calibration.inputs, statistics.add)
    weights = smooth(spec, package.weights, statistics.peaks, alpha)
    inputs = random_inputs(spec, 6, 99)
    expected = run(build(spec, package.weights), inputs)
    outputs = run(build(spec, weights), inputs)
    assert any((weights[name] != package.weights[name]).any() for name in weights)
    assert np.abs(outputs - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


def test_smoothing_flattens_what_it_may_and_leaves_the_residual_stream() -> None:
    for spec, touched in ((dataclasses.replace(SHARED, norm="pre"), True), (SHARED, False)):
        package = _with_outliers(spec, 3.0)
        statistics = InputStatistics(smoothed_activations(spec))
        observe(package, random_context(package).calibration.inputs, statistics.add)
        weights = smooth(spec, package.weights, statistics.peaks, 0.5)
        changed = {name for name in weights if (weights[name] != package.weights[name]).any()}
        assert ("layers.0.ffn.norm.weight" in changed) is touched
        assert "layers.0.attention.output.weight" in changed
        assert not {name for name in changed if name.startswith(("embedding", "classifier", "layers.1"))}
        after = InputStatistics(smoothed_activations(spec))
        smoothed = with_weights(package, **{name.replace(".", "__"): value for name, value in weights.items()})
        observe(smoothed, random_context(package).calibration.inputs, after.add)
        query, key = (after.peak([f"layers.{i}.attention.{part}" for i in (0, 1)]) for part in ("query", "key"))
        np.testing.assert_allclose(query.reshape(2, 2, 4).max(1).reshape(-1), key, rtol=1e-3)


def test_smoothing_finds_the_bits_that_large_channels_cost() -> None:
    """The same function written so that a few channels of the norms are 40 times as large, and the weights that read
    them as much smaller: static activations lose their bits to them, and smoothing gets them back."""
    package = random_package(VIT)
    large = np.where(np.arange(16) % 5 == 0, 40.0, 1.0).astype(np.float32)
    weights = dict(package.weights)
    for index in range(len(VIT.layers)):
        for norm, parts in (("attention", ("query", "key", "value")), ("ffn", ("up",))):
            prefix = f"layers.{index}.{norm}"
            for name in (f"{prefix}.norm.weight", f"{prefix}.norm.bias"):
                weights[name] = weights[name] * large
            for name in (f"{prefix}.{part}.weight" for part in parts):
                weights[name] = weights[name] / large
    spread = with_weights(package, **{name.replace(".", "__"): value for name, value in weights.items()})
    errors = []
    for alpha in (None, 0.5):
        made = _made(spread, scheme="w8a8", calibrator="minmax", smooth=alpha)
        errors.append(float(np.square(made.samples.golden_outputs - package.samples.golden_float).mean()))
    assert errors[1] < 0.3 * errors[0]


# --- rounding and biases in the stage ---


def _layer_error(package: Package, made: Package, name: str) -> tuple[float, float]:
    """Mean squared error, and mean squared mean error, of a layer's output on the calibration rows of the float
    package."""
    rows: list[NDArray[Any]] = []
    names = inputs_of(package.spec)[name]
    observe(
        package, random_context(package).calibration.inputs,
        lambda tapped, value: rows.append(value.copy()) if tapped in names else None,
    )
    inputs = np.concatenate(rows).astype(np.float64)
    error = inputs @ (made.weights[f"{name}.weight"] - package.weights[f"{name}.weight"].astype(np.float64)).T
    error += made.weights[f"{name}.bias"] - package.weights[f"{name}.bias"].astype(np.float64)
    return float(np.square(error).mean()), float(np.square(error.mean(0)).mean())


@pytest.mark.parametrize(("spec", "rounding"), [(BERT, "gptq"), (SHARED, "gptq"), (SHARED, "adaround")])
def test_rounding_lowers_the_error_of_layers(spec: TransformerSpec, rounding: str) -> None:
    package = random_package(spec)
    nearest = _made(package, scheme="w4a8-dynamic")
    better = _made(package, scheme="w4a8-dynamic", rounding=rounding, iterations=60)
    for name in ("layers.0.attention.query", "layers.0.ffn.up", "layers.0.attention.output"):
        assert _layer_error(package, better, name)[0] < 0.9 * _layer_error(package, nearest, name)[0]


@pytest.mark.parametrize("spec", [BERT, SHARED], ids=["bert", "shared"])
def test_bias_correction_removes_the_mean_error_of_layers(spec: TransformerSpec) -> None:
    package = random_package(spec)
    nearest = _made(package, scheme="w4a8-dynamic")
    corrected = _made(package, scheme="w4a8-dynamic", bias_correction=True)
    for name in ("layers.0.attention.query", "layers.0.ffn.up", "classifier"):
        before, after = (_layer_error(package, made, name)[1] for made in (nearest, corrected))
        assert after < 1e-3 * before if name != "classifier" else after <= 1e-9


def test_bias_correction_of_a_low_rank_pair_reaches_the_second_bias() -> None:
    package = random_package(SHARED)
    made = _made(package, scheme="w4a8-dynamic", bias_correction=True)
    statistics = InputStatistics({name for names in inputs_of(SHARED).values() for name in names})
    observe(package, random_context(package).calibration.inputs, statistics.add)
    name = "layers.0.ffn.down"

    def mean(weights: Any) -> NDArray[np.float64]:
        inner = weights[f"{name}.v.weight"] @ statistics.mean(inputs_of(SHARED)[f"{name}.v"])
        return np.asarray(weights[f"{name}.u.weight"] @ inner + weights[f"{name}.u.bias"])

    np.testing.assert_allclose(mean(made.weights), mean(package.weights), atol=1e-5)


@pytest.mark.parametrize("rounding", ["nearest", "gptq", "adaround"])
def test_structural_zeros_survive_everything(rounding: str) -> None:
    random = np.random.default_rng(0)
    name = "layers.0.ffn.up"
    spec = dataclasses.replace(BERT, sparse={name: "unstructured"})
    package = random_package(spec)
    kept = random.random(package.weights[f"{name}.weight"].shape) < 0.4
    package = with_weights(package, layers__0__ffn__up__weight=package.weights[f"{name}.weight"] * kept)
    made = _made(package, scheme="w4a8", rounding=rounding, iterations=20, smooth=0.5, bias_correction=True)
    assert not made.weights[f"{name}.weight"][~kept].any()
    assert made.weights[f"{name}.weight"].any()


# --- bad options ---


@pytest.mark.parametrize(
    ("text", "named"),
    [("group: 0", "group"), ("group: -4", "group"), ("group: true", "group"), ("group: rows", "group"),
     ("scheme: w2a8", "scheme"), ("smooth: 1.5", "smooth"), ("smooth: .nan", "smooth"), ("max_bytes: 0", "max_bytes"),
     ("max_loss: -1", "max_loss"), ("embedding_bits: 2", "embedding_bits"), ("rounding: up", "rounding"),
     ("iterations: 0", "iterations"), ("calibrator: best", "calibrator"), ("bits: 4", "bits")],
)
def test_bad_option_is_an_error_that_names_it(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"format: edgesdk.recipe\nversion: 1\nstages: [{{stage: quantize.ptq, {text}}}]")
    with pytest.raises(ConfigError, match=rf"stages\[0\].*{named}"):
        load_recipes(str(path))


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"scheme": "w8a8", "max_bytes": 0.1}, "between 4 and 8 bits"),
     ({"scheme": "w8a8-dynamic", "max_loss": 1.0}, "between 4 and 8 bits"),
     ({"scheme": "w4a8", "max_loss": 1.0, "max_bytes": 0.1}, "one goal")],
)
def test_goals_that_make_no_sense_are_refused(options: dict[str, Any], reason: str) -> None:
    package = random_package(VIT)
    stage = QuantizePtq(QuantizePtqOptions(**options))
    assert any(reason in text for text in stage.requires(outline_of(package, False)))
    with pytest.raises(StageError, match=reason):
        run_stage(stage, package, random_context(package))


def test_lowerable_matrices_are_stored_ones_without_the_heads() -> None:
    names = lowerable(SHARED)
    assert names[0] == "embedding.tokens.weight"
    assert "pooler.weight" in names
    assert not [name for name in names if name.startswith(("layers.1", "classifier")) or ".exit" in name]
    assert set(names) <= set(SHARED.weight_shapes())
