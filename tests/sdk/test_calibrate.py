"""Ranges of activations on known distributions; the two-level grid and its search against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgesdk.encodings import WeightEncoding
from edgesdk.stages.calibrate import (
    BINS,
    Calibrator,
    Histograms,
    Ranges,
    encode,
    fitted,
    group_of,
    weight_bytes,
    weight_encoding,
)
from edgesdk.transformer.quantize import dequantized, integers, row_scales

Float = NDArray[np.float32]


def _histograms(values: Float) -> Histograms:
    ranges = Ranges()
    ranges.widen("x", values[:, None])
    histograms = Histograms(ranges)
    for part in np.array_split(values, 3):
        histograms.count("x", part[:, None])
    return histograms


def _rounding_error(values: Float, low: float, high: float) -> float:
    encoding = encode(low, high)
    whole = np.clip(np.rint(values / encoding.scale) + encoding.zero_point, -128, 127)
    return float(np.square(encoding.scale * (whole - encoding.zero_point) - values.astype(np.float64)).mean())


def _weights(seed: int = 0, shape: tuple[int, int] = (12, 64)) -> Float:
    random = np.random.default_rng(seed)
    return (random.standard_t(4, shape) * np.exp(random.normal(size=(shape[0], 1)))).astype(np.float32)


def _row_error(weight: Float, encoding: WeightEncoding, moments: NDArray[np.float64] | None = None) -> Float:
    squared = np.square(dequantized(weight, encoding).astype(np.float64) - weight)
    return np.asarray((squared if moments is None else squared * moments).sum(1))


# --- activations ---


def test_uniform_data_keep_their_whole_range_under_every_calibrator() -> None:
    values = np.random.default_rng(0).uniform(-1, 3, 200_000).astype(np.float32)
    histograms = _histograms(values)
    for calibrator in ("minmax", "mse", "entropy"):
        low, high = histograms.range("x", calibrator)
        assert low == pytest.approx(-1, abs=0.06), calibrator
        assert high == pytest.approx(3, abs=0.12), calibrator


def test_entropy_clips_one_far_outlier_among_normal_data() -> None:
    values = np.random.default_rng(1).normal(size=100_000).astype(np.float32)
    values[0] = 60.0
    low, high = _histograms(values).range("x", "entropy")
    assert 3 < high < 30
    assert low <= -3


def test_mse_range_is_about_the_best_of_an_exhaustive_search() -> None:
    values = np.random.default_rng(2).laplace(size=50_000).astype(np.float32)
    histograms = _histograms(values)
    found = _rounding_error(values, *histograms.range("x", "mse"))
    low, high = histograms.limits["x"]
    shares = np.linspace(0.2, 1, 30)
    best = min(_rounding_error(values, low * a, high * b) for a in shares for b in shares)
    assert found <= best * 1.05
    assert found < _rounding_error(values, low, high)


def test_mse_range_of_one_sided_data_is_one_sided() -> None:
    values = np.abs(np.random.default_rng(3).normal(size=20_000)).astype(np.float32)
    low, high = _histograms(values).range("x", "mse")
    assert encode(low, high).zero_point == -128
    assert 2 < high <= values.max()


def test_entropy_of_the_normal_distribution_cuts_little_mass() -> None:
    """TensorRT's calibration keeps the body of a distribution: it clips less than a thousandth of normal data."""
    values = np.random.default_rng(4).normal(size=400_000).astype(np.float32)
    low, high = _histograms(values).range("x", "entropy")
    assert ((values < low) | (values > high)).mean() < 1e-3
    assert low == pytest.approx(-high, rel=0.2)


@pytest.mark.parametrize("calibrator", ["minmax", "percentile", "mse", "entropy"])
@pytest.mark.parametrize("value", [0.0, 2.5, -1e-3])
def test_constant_data_have_a_usable_range(calibrator: Calibrator, value: float) -> None:
    low, high = _histograms(np.full(10, value, np.float32)).range("x", calibrator)
    encoding = encode(low, high)
    whole = np.clip(np.rint(value / encoding.scale) + encoding.zero_point, -128, 127)
    assert encoding.scale * (whole - encoding.zero_point) == pytest.approx(value, abs=abs(value) / 100)


def test_histograms_hold_every_value_and_pass_names_they_do_not_know() -> None:
    histograms = _histograms(np.linspace(-2, 5, 1000, dtype=np.float32))
    histograms.count("other", np.zeros((2, 2), np.float32))
    assert histograms.counts["x"].sum() == 1000
    assert histograms.counts["x"].shape == (BINS,)
    assert set(histograms.counts) == {"x"}


# --- weights ---


@pytest.mark.parametrize(
    ("inputs", "group", "expected"),
    [(64, 32, 32), (384, 32, 32), (48, 32, 24), (20, 32, 20), (74, 32, 74), (37, 32, 37), (7, 32, 7), (64, None, 64),
     (64, 64, 64), (100, 1, 1), (1, 32, 1)],
)
def test_group_is_the_largest_divisor_or_the_row(inputs: int, group: int | None, expected: int) -> None:
    assert group_of(inputs, group) == expected


@pytest.mark.parametrize("group", [8, 16, 64])
def test_numbers_of_the_grid_stay_what_they_are(group: int) -> None:
    random = np.random.default_rng(5)
    groups = 64 // group
    scale = random.uniform(1e-3, 1e-1, 6).astype(np.float32)
    multiplier = random.integers(1, 16, (6, groups)).astype(np.uint8)
    encoding = WeightEncoding(4, 0, scale, group, multiplier)
    small = random.integers(-8, 8, (6, 64)).astype(np.float32)
    weight = small * np.repeat(multiplier, group, 1) * scale[:, None]
    np.testing.assert_array_equal(dequantized(weight.astype(np.float32), encoding), weight.astype(np.float32))


def test_search_finds_a_grid_that_weights_lie_on() -> None:
    """Weights made on a two-level grid are represented without error by the steps that clip nothing."""
    random = np.random.default_rng(6)
    multiplier = random.integers(1, 16, (8, 4))
    multiplier[:, 0] = 15
    small = random.integers(-8, 8, (8, 4, 16))
    small[:, :, 0] = 7
    weight = (small * multiplier[:, :, None] * 0.01).reshape(8, 64).astype(np.float32)
    for method in ("max", "mse"):
        encoding = weight_encoding(weight, 4, 16, method=method)
        np.testing.assert_allclose(dequantized(weight, encoding), weight, atol=1e-6)


@pytest.mark.parametrize("group", [8, 32, None])
def test_mse_is_never_worse_than_max_and_mostly_better(group: int | None) -> None:
    weight = _weights()
    moments = np.random.default_rng(7).uniform(0.01, 4, 64)
    for known in (None, moments):
        largest = _row_error(weight, weight_encoding(weight, 4, group, known, "max"), known)
        searched = _row_error(weight, weight_encoding(weight, 4, group, known, "mse"), known)
        assert (searched <= largest * (1 + 1e-4)).all()
        assert searched.sum() < 0.95 * largest.sum()


def test_search_is_close_to_brute_force() -> None:
    """All multipliers for a fine row of scales: the search must be near it."""
    weight = _weights(8, (6, 64))
    found = _row_error(weight, weight_encoding(weight, 4, 16))
    top = np.abs(weight).max(1)
    best = np.full(6, np.inf)
    for share in np.linspace(0.3, 1.3, 201):
        scale = (share * top / 7 / 15).astype(np.float32)
        errors = np.stack([
            np.square(
                dequantized(weight, WeightEncoding(4, 0, scale, 16, np.full((6, 4), m, np.uint8))) - weight
            ).reshape(6, 4, 16).sum(2)
            for m in range(1, 16)
        ])
        best = np.minimum(best, errors.min(0).sum(1))
    assert (found >= best * 0.97).all()
    assert found.sum() <= best.sum() * 1.08


def test_moments_move_the_error_to_inputs_that_are_small() -> None:
    weight = _weights(9)
    moments = np.where(np.arange(64) % 2 == 0, 100.0, 1e-4)
    blind, seeing = weight_encoding(weight, 4, 16), weight_encoding(weight, 4, 16, moments)
    assert _row_error(weight, seeing, moments).sum() < 0.9 * _row_error(weight, blind, moments).sum()


def test_smaller_groups_lose_less() -> None:
    weight = _weights(10, (16, 128))
    errors = [_row_error(weight, weight_encoding(weight, 4, group)).sum() for group in (8, 32, 128)]
    assert errors[0] < errors[1] < errors[2]
    eight = _row_error(weight, weight_encoding(weight, 8)).sum()
    assert eight < errors[0] / 20


def test_eight_bits_are_the_largest_of_a_row() -> None:
    weight = _weights()
    encoding = weight_encoding(weight, 8, 32, np.ones(64))
    np.testing.assert_array_equal(encoding.scale, row_scales(weight))
    assert (encoding.bits, encoding.group, encoding.multiplier) == (8, None, None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=8, max_size=8), min_size=1, max_size=3))
def test_any_weights_give_a_legal_encoding(rows: list[list[float]]) -> None:
    weight = np.array(rows, np.float32)
    for method in ("max", "mse"):
        encoding = weight_encoding(weight, 4, 4, method=method)
        assert encoding.multiplier is not None
        assert encoding.scale.dtype == np.float32
        assert (encoding.scale >= np.finfo(np.float32).tiny).all()
        assert encoding.multiplier.dtype == np.uint8
        assert 1 <= encoding.multiplier.min() <= encoding.multiplier.max() <= 15
        assert np.abs(integers(weight, encoding).astype(int)).max() <= 127
        again = dequantized(dequantized(weight, encoding), encoding)
        np.testing.assert_array_equal(again, dequantized(weight, encoding))


def test_zero_rows_and_zero_moments_are_no_problem() -> None:
    weight = _weights()
    weight[3] = 0
    encoding = weight_encoding(weight, 4, 16, np.zeros(64))
    assert encoding.scale[3] == 1.0
    assert not dequantized(weight, encoding)[3].any()
    plain = weight_encoding(weight, 4, 16)
    np.testing.assert_array_equal(plain.scale, encoding.scale)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgesdk.stages import calibrate

    weight = _weights()
    whole = weight_encoding(weight, 4, 16)
    monkeypatch.setattr(calibrate, "LARGEST_BLOCK", 64)
    parts = weight_encoding(weight, 4, 16)
    np.testing.assert_array_equal(whole.scale, parts.scale)
    assert whole.multiplier is not None
    np.testing.assert_array_equal(whole.multiplier, np.asarray(parts.multiplier))


def test_fitted_keeps_steps_where_a_bias_needs_a_larger_scale() -> None:
    weight = _weights()
    encoding = weight_encoding(weight, 4, 16)
    bias = np.zeros(12, np.float32)
    bias[2] = encoding.scale[2] * 1e-3 * 2.0**30 * 2.0  # twice what fits an input scale of 1e-3
    made = fitted(encoding, bias, 1e-3)
    assert made.scale[2] == pytest.approx(2 * encoding.scale[2], rel=1e-5)
    assert made.multiplier is not None and encoding.multiplier is not None
    steps, before = made.scale[2] * made.multiplier[2], encoding.scale[2] * encoding.multiplier[2]
    assert (np.abs(steps - before) <= encoding.scale[2] * 1.01).all()
    others = np.arange(12) != 2
    np.testing.assert_array_equal(made.scale[others], encoding.scale[others])
    np.testing.assert_array_equal(made.multiplier[others], encoding.multiplier[others])


def test_bytes_by_hand() -> None:
    assert weight_bytes((10, 64), 8) == 640 + 40
    assert weight_bytes((10, 64), 4, 32) == 320 + 10 + 40  # two 4-bit multipliers a row
    assert weight_bytes((10, 64), 4, None) == 320 + 5 + 40
