"""Scores of units against slow references, and the second-order method against least squares."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgesdk.data import Dataset
from edgesdk.package import Package
from edgesdk.stages import importance
from edgesdk.stages.masks import Pattern
from edgesdk.stages.prune_units import allocate
from edgesdk.stages.second_order import DAMPING, damped, moments, prune_columns, refit, removal_order
from edgesdk.stages.units import HEADS, NEURONS, Kind, columns_of_unit, count, spread
from edgesdk.testing.models import BERT, BERT_MEAN, FEATURES, VIT, random_context, random_package
from edgesdk.transformer.module import build, run
from edgesdk.transformer.spec import Layer, TransformerSpec

GROUPED = dataclasses.replace(VIT, layers=(Layer(4, 2, 4, 12), Layer(2, 2, 8, 8)))
SHARED = dataclasses.replace(VIT, layers=(Layer(2, 2, 8, 12), Layer(2, 2, 8, 12, share=0)))
Matrix = NDArray[np.float64]


def _masked_logits(package: Package, data: Dataset, tap: Any) -> Matrix:
    return run(build(package.spec, package.weights), data.inputs, tap).astype(np.float64)


def _cross_entropy(logits: Matrix, labels: NDArray[np.int64]) -> Matrix:
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(logits)), labels])


@pytest.mark.parametrize("kind", [HEADS, NEURONS], ids=["heads", "neurons"])
@pytest.mark.parametrize("spec", [GROUPED, SHARED, BERT], ids=["grouped", "shared", "bert"])
def test_gradients_are_those_of_masks(kind: Kind, spec: TransformerSpec) -> None:
    """Against differences of the loss of each row when one mask moves."""
    package = random_package(spec)
    context = random_context(package)
    data = context.train
    assert data is not None and data.labels is not None
    found = importance.unit_gradients(kind, package, context, [0], len(data))[0]
    assert found.shape == (len(data), count(kind, spec.layers[0]))
    width, step = columns_of_unit(kind, spec.layers[0]), 1e-2
    uses = [f"layers.{index}.{kind.tap}" for index, layer in enumerate(spec.layers) if index == 0 or layer.share == 0]
    expected = []
    units = np.arange(0, found.shape[1], max(1, found.shape[1] // 5))
    for unit in units:
        losses = []
        for value in (1 - step, 1 + step):

            def tap(name: str, tensor: Any, unit: int = unit, value: float = value) -> Any:
                if name in uses:
                    tensor = tensor.clone()
                    tensor[..., unit * width : (unit + 1) * width] *= value
                return tensor

            losses.append(_cross_entropy(_masked_logits(package, data, tap), data.labels))
        expected.append((losses[1] - losses[0]) / (2 * step))
    # Rows come in order of their length.
    order = np.argsort(data.inputs["attention_mask"].sum(1), kind="stable") if "attention_mask" in data.inputs else ...
    np.testing.assert_allclose(found[:, units], np.stack(expected, 1)[order], rtol=1e-3, atol=2e-4)


def test_scores_are_means_over_rows() -> None:
    gradients = {0: np.array([[1.0, -2.0], [-3.0, 2.0]])}
    np.testing.assert_array_equal(importance.taylor(gradients)[0], [2, 2])
    np.testing.assert_array_equal(importance.fisher(gradients)[0], [5, 4])


@pytest.mark.parametrize("spec", [BERT_MEAN, FEATURES], ids=["embedding", "hidden_states"])
def test_fisher_of_an_encoder_estimates_how_far_the_output_moves(spec: TransformerSpec) -> None:
    """Mean over random directions of the squared projection = squared length of the output's derivative."""
    package = random_package(spec)
    context = random_context(package)
    assert context.train is not None
    rows = np.tile(np.arange(4), 150)  # the same four rows under many directions
    data = Dataset({name: value[rows] for name, value in context.train.inputs.items()}, None)
    context = dataclasses.replace(context, train=None, calibration=data)
    found = importance.fisher(importance.unit_gradients(NEURONS, package, context, [0], len(rows)))[0]
    inputs = {name: value[:4] for name, value in context.calibration.inputs.items()}

    def normalized(unit: int, value: float) -> Matrix:
        def tap(name: str, tensor: Any) -> Any:
            if name == "layers.0.ffn.hidden":
                tensor = tensor.clone()
                tensor[..., unit] *= value
            return tensor

        output = run(build(spec, package.weights), inputs, tap).astype(np.float64)
        if spec.pooling == "none" and "attention_mask" in inputs:
            output *= inputs["attention_mask"][:, :, None]
        output = output.reshape(4, -1)
        return np.asarray(output / np.linalg.norm(output, axis=1, keepdims=True))

    step = 1e-2
    expected = [
        np.square((normalized(unit, 1 + step) - normalized(unit, 1 - step)) / (2 * step)).sum(1).mean()
        for unit in range(spec.layers[0].ffn)
    ]
    np.testing.assert_allclose(found, expected, rtol=0.5, atol=1e-5)
    assert np.corrcoef(found, expected)[0, 1] > 0.95


def test_output_sensitivity_is_the_mean_squared_gradient() -> None:
    """Against differences of the loss of each row when one output of the feed-forward layer moves."""
    package = random_package(SHARED)
    context = random_context(package)
    data, step = context.train, 1e-2
    assert data is not None and data.labels is not None
    found = importance.output_sensitivity("ffn.down", package, context, [0], len(data))[0]
    module, squares = build(package.spec, package.weights), []
    for use in (0, 1):
        for position in range(SHARED.max_length):
            for output in range(SHARED.hidden):
                losses = []
                for value in (-step, step):

                    def tap(
                        name: str, tensor: Any, value: float = value, use: int = use, position: int = position,
                        output: int = output,
                    ) -> Any:
                        if name == f"layers.{use}.ffn.down":
                            tensor = tensor.clone()
                            tensor[:, position, output] += value
                        return tensor

                    logits = run(module, data.inputs, tap).astype(np.float64)
                    losses.append(_cross_entropy(logits, data.labels))
                squares.append(np.square((losses[1] - losses[0]) / (2 * step)).mean())
    assert found == pytest.approx(np.mean(squares), rel=1e-2)


@pytest.mark.parametrize("kind", [HEADS, NEURONS], ids=["heads", "neurons"])
def test_activation_is_mean_times_norm(kind: Kind) -> None:
    package = random_package(GROUPED)
    context = random_context(package)
    taps: dict[str, Any] = {}

    def tap(name: str, tensor: Any) -> Any:
        taps[name] = tensor.numpy()
        return tensor

    run(build(package.spec, package.weights), context.calibration.inputs, tap, batch=1000)
    mean = np.abs(taps[f"layers.0.{kind.tap}"]).mean((0, 1))
    norm = np.linalg.norm(package.weights[f"layers.0.{kind.behind}.weight"], axis=0)
    expected = (mean * norm).reshape(count(kind, GROUPED.layers[0]), -1).sum(1)
    np.testing.assert_allclose(importance.activation(kind, package, context, [0])[0], expected, rtol=1e-5)


def test_magnitude_of_heads_is_of_values_and_output() -> None:
    package = random_package(GROUPED)
    value = package.weights["layers.0.attention.value.weight"].reshape(2, -1)
    output = package.weights["layers.0.attention.output.weight"].T.reshape(2, -1)
    expected = np.linalg.norm(value, axis=1) * np.linalg.norm(output, axis=1)
    np.testing.assert_allclose(importance.magnitude(HEADS, package, [0])[0], expected, rtol=1e-6)


def test_low_rank_magnitude_is_that_of_the_product() -> None:
    ranks = {"ffn.up": 4, "ffn.down": 5}
    spec = dataclasses.replace(VIT, layers=(Layer(2, 2, 8, 12, ranks=ranks),))
    package = random_package(spec)
    up = package.weights["layers.0.ffn.up.u.weight"] @ package.weights["layers.0.ffn.up.v.weight"]
    down = package.weights["layers.0.ffn.down.u.weight"] @ package.weights["layers.0.ffn.down.v.weight"]
    expected = np.linalg.norm(up, axis=1) * np.linalg.norm(down, axis=0)
    np.testing.assert_allclose(importance.magnitude(NEURONS, package, [0])[0], expected, rtol=1e-5)


def test_labels_of_the_evaluation_are_not_looked_at() -> None:
    package = random_package(VIT)
    context = random_context(package, training=False)
    changed = dataclasses.replace(
        context, calibration=dataclasses.replace(context.calibration, labels=np.zeros(24, np.int64))
    )
    first = importance.unit_gradients(HEADS, package, context, [0, 1], 24)
    second = importance.unit_gradients(HEADS, package, changed, [0, 1], 24)
    for index in (0, 1):
        np.testing.assert_array_equal(first[index], second[index])
        assert np.abs(first[index]).max() > 0


# --- second order -----------------------------------------------------------------------------------------------------


def _problem(inputs: int, outputs: int, seed: int = 0) -> tuple[Matrix, Matrix]:
    """Correlated inputs with a constant 1 at the end, and a matrix with its bias."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(200, inputs)) @ random.normal(size=(inputs, inputs)) + random.normal(size=inputs)
    wide = np.concatenate([values, np.ones((200, 1))], 1)
    return wide, random.normal(size=(outputs, inputs + 1))


def test_refit_is_the_least_squares_solution_on_the_kept_inputs() -> None:
    wide, weight = _problem(12, 5)
    kept = np.array([0, 3, 4, 8, 11, 12])
    expected = np.linalg.lstsq(wide[:, kept], wide @ weight.T, rcond=None)[0].T
    np.testing.assert_allclose(refit(weight, wide.T @ wide, kept), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("width", [1, 3])
def test_errors_of_removal_add_up_to_the_least_squares_residual(width: int) -> None:
    """One by one: what each removal adds is what the best fit without it loses more."""
    wide, weight = _problem(12, 5)
    order, errors = removal_order(weight, wide.T @ wide, width)
    groups = 12 // width
    assert sorted(order) == list(range(groups))
    for gone in range(1, groups + 1):
        kept = np.setdiff1d(np.arange(13), spread(order[:gone], width))
        fitted = np.linalg.lstsq(wide[:, kept], wide @ weight.T, rcond=None)[0]
        residual = np.square(wide @ weight.T - wide[:, kept] @ fitted).sum()
        np.testing.assert_allclose(errors[:gone].sum(), residual, rtol=1e-6)


@pytest.mark.parametrize("width", [1, 2])
def test_each_removal_is_the_cheapest_one(width: int) -> None:
    wide, weight = _problem(8, 3, 4)
    order, _ = removal_order(weight, wide.T @ wide, width)
    gone: list[int] = []
    for chosen in order:
        residuals = {}
        for group in range(8 // width):
            if group in gone:
                continue
            kept = np.setdiff1d(np.arange(9), spread(np.array([*gone, group]), width))
            fitted = np.linalg.lstsq(wide[:, kept], wide @ weight.T, rcond=None)[0]
            residuals[group] = np.square(wide @ weight.T - wide[:, kept] @ fitted).sum()
        assert chosen == min(residuals, key=lambda group: residuals[group])
        gone.append(int(chosen))


def test_many_at_once_is_close_to_one_by_one() -> None:
    wide, weight = _problem(64, 16)
    hessian = damped(wide.T @ wide)
    slow, _ = removal_order(weight, hessian, 1, at_once=0)
    fast, _ = removal_order(weight, hessian, 1, at_once=1 / 8)
    assert sorted(fast) == sorted(slow)

    def residual(order: NDArray[np.int64]) -> float:
        kept = np.append(np.sort(order[32:]), 64)
        change = weight.copy()
        change[:, kept] -= refit(weight, hessian, kept)
        return float(np.einsum("nk,kl,nl->", change, hessian, change))

    assert residual(slow) <= residual(fast) <= 1.15 * residual(slow)


def test_inputs_that_never_fire_cost_nothing_and_break_nothing() -> None:
    wide, weight = _problem(6, 4)
    wide[:, [1, 4]] = 0
    order, errors = removal_order(weight, damped(wide.T @ wide), 1)
    assert set(order[:2]) == {1, 4}
    assert np.isfinite(errors).all()
    assert errors[0] < 0.1 * errors[-1]


def test_moments_are_those_of_the_activations_without_padding() -> None:
    package = random_package(BERT)
    context = random_context(package)
    data = context.calibration.inputs
    rows: list[Any] = []

    def tap(name: str, tensor: Any) -> Any:
        if name == "layers.1.ffn.hidden":
            rows.append(tensor.numpy()[data["attention_mask"].astype(bool)])
        return tensor

    run(build(package.spec, package.weights), data, tap, batch=1000)
    wide = np.concatenate([rows[0], np.ones((len(rows[0]), 1))], 1).astype(np.float64)
    found = moments(package, data, {"layers.1.ffn.hidden"}.__contains__)
    assert list(found) == ["layers.1.ffn.hidden"]
    expected = wide.T @ wide
    amount = DAMPING * np.diag(expected)[:-1].mean()
    expected[:-1, :-1] += amount * np.eye(len(expected) - 1)
    np.testing.assert_allclose(found["layers.1.ffn.hidden"], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("pattern", [Pattern(1, 1), Pattern(1, 4, 2), Pattern(2, 4)])
def test_column_wise_removal_beats_removal_without_update(pattern: Pattern) -> None:
    wide, weight = _problem(24, 8)
    hessian = damped(wide.T @ wide)
    pruned = prune_columns(weight, hessian, 24, pattern, 0.5, stretch=8)
    assert np.count_nonzero(pruned[:, :24]) == 8 * 12
    plain = weight.copy()
    plain[:, :24] = np.where(pruned[:, :24] != 0, weight[:, :24], 0)

    def residual(changed: Matrix) -> float:
        return float(np.square(wide @ (changed - weight).T).sum())

    assert residual(pruned) < 0.8 * residual(plain)


def test_last_column_makes_up_for_all_before_it() -> None:
    """With everything but one input gone, column by column gives the least-squares fit of what is left."""
    wide, weight = _problem(5, 3)
    hessian = wide.T @ wide
    pruned = prune_columns(weight, hessian, 5, Pattern(1, 5, 1), 0)
    for row in range(3):
        (kept,) = np.flatnonzero(pruned[row, :5])
        columns = np.arange(kept, 6)
        # Columns before the kept one are made up for by all behind; those behind it by what comes then.
        first = np.linalg.lstsq(wide[:, columns], wide @ weight[row], rcond=None)[0]
        behind = np.linalg.lstsq(wide[:, [5]], wide[:, columns[1:]] @ first[1:], rcond=None)[0]
        np.testing.assert_allclose(pruned[row, kept], first[0], rtol=1e-6)
        np.testing.assert_allclose(pruned[row, 5], behind[0], rtol=1e-6)


# --- allocation -------------------------------------------------------------------------------------------------------


def test_allocation_takes_what_costs_least() -> None:
    costs = {0: np.array([1.0, 2, 3, 4]), 1: np.array([10.0, 20, 30, 40])}
    assert allocate(costs, 5, 1) == {0: 1, 1: 4}
    assert allocate(costs, 3, 1) == {0: 1, 1: 2}
    assert allocate(costs, 8, 1) == {0: 4, 1: 4}


def test_allocation_keeps_one_and_goes_by_steps() -> None:
    costs = {0: np.zeros(10), 1: np.ones(10)}
    assert allocate(costs, 2, 1) == {0: 1, 1: 1}
    assert allocate(costs, 14, 4) == {0: 4, 1: 10}
    assert allocate(costs, 1, 4) == {0: 4, 1: 4}
