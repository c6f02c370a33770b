"""GPTQ and AdaRound against the nearest numbers: less error of a layer's output, on the grid, zeros kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesdk.encodings import WeightEncoding
from edgesdk.stages.calibrate import weight_encoding
from edgesdk.stages.rounding import adaround, gptq, output_error
from edgesdk.transformer.quantize import dequantized, integers

METHODS = [gptq, adaround]
Method = Callable[..., NDArray[np.float32]]


def _inputs(width: int = 48, rows: int = 600, seed: int = 0) -> NDArray[np.float64]:
    """Correlated inputs of unequal size, as activations are."""
    random = np.random.default_rng(seed)
    mix = random.normal(size=(width, width)) / width**0.5
    size = np.exp(random.normal(size=width) * 0.5)
    pairs = random.normal(size=(rows, 2, width))  # so that more rows begin with the same ones
    result: NDArray[np.float64] = (pairs[:, 0] @ mix + 0.2 * pairs[:, 1]) * size
    return result


def _layer(bits: int, seed: int = 0) -> tuple[NDArray[np.float32], WeightEncoding, NDArray[np.float64]]:
    inputs = _inputs(seed=seed)
    hessian = inputs.T @ inputs / len(inputs)
    weight = np.random.default_rng(seed + 1).normal(size=(20, 48)).astype(np.float32) * 0.1
    return weight, weight_encoding(weight, bits, 16, np.diag(hessian)), hessian


def test_output_error_is_that_of_the_outputs() -> None:
    inputs = _inputs()
    weight, encoding, hessian = _layer(4)
    rounded = dequantized(weight, encoding)
    direct = np.square(inputs @ (weight - rounded).T.astype(np.float64)).mean(0)
    np.testing.assert_allclose(output_error(weight, rounded, hessian), direct, rtol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", METHODS)
def test_error_of_the_output_is_lower_than_that_of_the_nearest(method: Method, bits: int) -> None:
    for seed in range(2):
        weight, encoding, hessian = _layer(bits, seed)
        nearest = output_error(weight, dequantized(weight, encoding), hessian)
        found = output_error(weight, method(weight, encoding, hessian), hessian)
        assert (found <= nearest).all()
        assert found.sum() < 0.75 * nearest.sum()


@pytest.mark.parametrize("method", METHODS)
def test_gain_holds_on_inputs_that_were_not_seen(method: Method) -> None:
    weight, encoding, hessian = _layer(4)
    unseen = _inputs(rows=1200)[600:]
    other = unseen.T @ unseen / 600
    nearest = output_error(weight, dequantized(weight, encoding), other).sum()
    assert output_error(weight, method(weight, encoding, hessian), other).sum() < 0.85 * nearest


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", METHODS)
def test_result_is_on_the_grid(method: Method, bits: int) -> None:
    weight, encoding, hessian = _layer(bits)
    rounded = method(weight, encoding, hessian)
    assert rounded.dtype == np.float32
    np.testing.assert_array_equal(dequantized(rounded, encoding), rounded)


@pytest.mark.parametrize("method", METHODS)
def test_uncorrelated_inputs_of_equal_size_leave_the_nearest(method: Method) -> None:
    """With H = 1 the nearest numbers are the best there are."""
    weight, encoding, _ = _layer(4)
    rounded = method(weight, encoding, np.eye(48))
    np.testing.assert_array_equal(rounded, dequantized(weight, encoding))


def test_gptq_finds_the_best_of_two_weights_by_enumeration() -> None:
    """Two inputs that are almost equal: the sum must be right, not each weight."""
    hessian = np.array([[1.0, 0.98], [0.98, 1.0]])
    weight = np.array([[0.4, 0.4], [1.45, -0.55], [0.3, 0.3]], np.float32)
    encoding = WeightEncoding(8, 0, np.ones(3, np.float32))
    found = output_error(weight, gptq(weight, encoding, hessian), hessian)
    for row in range(3):
        best = min(
            output_error(weight[row : row + 1], np.array([pair], np.float32), hessian)[0]
            for pair in itertools.product(range(-3, 4), repeat=2)
        )
        assert found[row] == pytest.approx(best)


@pytest.mark.parametrize("method", METHODS)
def test_structural_zeros_stay(method: Method) -> None:
    weight, encoding, hessian = _layer(4)
    kept = np.random.default_rng(3).random(weight.shape) < 0.5
    pruned = (weight * kept).astype(np.float32)
    rounded = method(pruned, encoding, hessian, kept)
    assert not rounded[~kept].any()
    assert output_error(pruned, rounded, hessian).sum() < output_error(
        pruned, dequantized(pruned, encoding), hessian
    ).sum()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dead", ["some", "all"])
def test_inputs_that_never_occur_are_no_problem(method: Method, dead: str) -> None:
    weight, encoding, hessian = _layer(4)
    silent = slice(0, 5) if dead == "some" else slice(None)
    hessian[silent], hessian[:, silent] = 0, 0
    rounded = method(weight, encoding, hessian)
    assert np.isfinite(rounded).all()
    np.testing.assert_array_equal(dequantized(rounded, encoding), rounded)
    steps = np.abs(rounded - weight)[:, silent].max()
    assert steps <= np.abs(weight).max()


def test_fewer_rows_than_inputs_make_a_singular_hessian_that_gptq_bears() -> None:
    weight, encoding, _ = _layer(4)
    inputs = _inputs(rows=7)
    hessian = inputs.T @ inputs / 7
    nearest = output_error(weight, dequantized(weight, encoding), hessian).sum()
    assert output_error(weight, gptq(weight, encoding, hessian), hessian).sum() < 0.5 * nearest


@pytest.mark.parametrize("method", METHODS)
def test_equal_input_gives_equal_bytes(method: Method) -> None:
    weight, encoding, hessian = _layer(4)
    assert method(weight, encoding, hessian).tobytes() == method(weight, encoding, hessian).tobytes()


def test_blocks_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgesdk.stages import rounding

    weight, encoding, hessian = _layer(4)
    whole = gptq(weight, encoding, hessian)
    monkeypatch.setattr(rounding, "BLOCK", 7)
    np.testing.assert_array_equal(integers(gptq(weight, encoding, hessian), encoding), integers(whole, encoding))


def test_more_iterations_of_adaround_are_no_worse() -> None:
    weight, encoding, hessian = _layer(4)
    errors = [
        output_error(weight, adaround(weight, encoding, hessian, iterations=count), hessian).sum()
        for count in (1, 30, 300)
    ]
    assert errors[2] < errors[1] <= errors[0]
