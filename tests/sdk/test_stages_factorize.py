"""`factorize`: smaller where it pays, the same function at full information, better where it knows the data."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from edgesdk.errors import StageError
from edgesdk.evaluate import run_graph
from edgesdk.package import Package
from edgesdk.stages import Stage, run_stage
from edgesdk.stages.factor_data import frequencies, gradient_energies, moments
from edgesdk.stages.factorize import Factorize, FactorizeOptions
from edgesdk.stages.observe import observe
from edgesdk.testing.models import (
    BERT,
    BERT_MEAN,
    FEATURES,
    VIT,
    random_context,
    random_inputs,
    random_package,
    with_weights,
)
from edgesdk.testing.stages import StageTestCase
from edgesdk.transformer.spec import Layer, TokenEmbedding, TransformerSpec

METHODS = ["plain", "activation", "fisher"]
UP = "layers.0.ffn.up"
SHARED = dataclasses.replace(BERT, layers=(Layer(2, 2, 8, 32), Layer(2, 1, 8, 20), Layer(2, 2, 8, 32, share=0)))


def _stage(**options: Any) -> Factorize:
    return Factorize(FactorizeOptions(**options))


def _factorize(package: Package, **options: Any) -> Package:
    return run_stage(_stage(**options), package, random_context(package))


def _reasons(spec: TransformerSpec, **options: Any) -> list[str]:
    package = random_package(spec)
    return _stage(**options).requires(random_context(package).outline(package))


class TestConformance(StageTestCase):
    def stage(self) -> Stage:
        return _stage(rank=4)


class TestConformanceShared(StageTestCase):
    def stage(self) -> Stage:
        return _stage(keep=0.5, multiple=2, method="fisher", parts="layers.*.ffn.*")

    def packages(self) -> list[Package]:
        return [random_package(SHARED), random_package(BERT_MEAN)]


class TestConformanceEmbedding(StageTestCase):
    def stage(self) -> Stage:
        return _stage(parts="embedding", rank=6)

    def packages(self) -> list[Package]:
        return [random_package(BERT), random_package(BERT_MEAN)]


class TestConformancePlain(StageTestCase):
    def stage(self) -> Stage:
        return _stage(rank=2, method="plain", parts="*.attention.*")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{"energy": 0.5}, {"budget": 0.6}], ids=["energy", "budget"])
@pytest.mark.parametrize("spec", [VIT, SHARED], ids=["vit", "shared"])
def test_found_sizes_are_a_model_of_the_same_signature(spec: Any, options: Any, method: str) -> None:
    package = random_package(spec)
    stage = _stage(method=method, multiple=2, **options)
    assert not stage.exact
    made = run_stage(stage, package, random_context(package))
    assert made.spec.parameters() < package.spec.parameters()
    if "budget" in options:
        def size(model: Package) -> int:
            return sum(v.size for name, v in model.weights.items() if "layers" in name and v.ndim == 2)

        assert 0.5 * size(package) < size(made) <= 0.6 * size(package)


def test_an_energy_that_saves_nothing_is_an_error() -> None:
    with pytest.raises(StageError, match="energy 1 saves nothing"):
        _factorize(random_package(BERT), energy=1.0)


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_low_rank_lose_nothing(method: str) -> None:
    random = np.random.default_rng(3)
    weight = (random.normal(size=(32, 3)) @ random.normal(size=(3, 16)) / 4).astype(np.float32)
    package = with_weights(random_package(BERT), **{f"{UP}.weight": weight})
    made = _factorize(package, parts=UP, rank=3, method=method)
    assert made.spec.layers[0].ranks == {"ffn.up": 3} and made.spec.layers[1].ranks == {}
    assert made.weights[f"{UP}.u.weight"].shape == (32, 3) and made.weights[f"{UP}.v.weight"].shape == (3, 16)
    inputs = random_inputs(BERT, 6, 9)
    np.testing.assert_allclose(run_graph(made.graph, inputs), run_graph(package.graph, inputs), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_an_embedding_of_low_rank_loses_nothing(method: str) -> None:
    random = np.random.default_rng(3)
    table = (random.normal(size=(50, 4)) @ random.normal(size=(4, 16)) / 4).astype(np.float32)
    package = with_weights(random_package(BERT), embedding__tokens__weight=table)
    made = _factorize(package, parts="embedding", rank=4, method=method)
    assert isinstance(made.spec.embedding, TokenEmbedding)
    assert (made.spec.embedding.width, made.spec.embedding.project) == (4, "tokens")
    assert not made.weights["embedding.projection.bias"].any()
    inputs = random_inputs(BERT, 6, 9)
    np.testing.assert_allclose(run_graph(made.graph, inputs), run_graph(package.graph, inputs), atol=1e-4)


def test_activations_beat_the_plain_svd_on_anisotropic_inputs() -> None:
    package = random_package(FEATURES)
    scale = np.logspace(-2, 1, 16, dtype=np.float32)
    context = random_context(package)
    inputs = {"features": context.calibration.inputs["features"] * scale + 1}
    data = dataclasses.replace(context.calibration, inputs=inputs)
    context = dataclasses.replace(context, calibration=data, validation=data, train=None)
    names = [f"layers.0.attention.{part}" for part in ("query", "key", "value")]
    expected = _outputs(package, inputs, names)
    errors = {}
    for method in ("plain", "activation"):
        made = run_stage(_stage(parts="layers.0.attention.[qkv]*", rank=4, method=method), package, context)
        found = _outputs(made, inputs, names)
        errors[method] = sum(np.linalg.norm(found[name] - expected[name]) for name in names)
    assert errors["activation"] < 0.5 * errors["plain"]


def _outputs(package: Package, inputs: Any, names: list[str]) -> dict[str, np.ndarray]:
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    observe(package, inputs, lambda name, rows: found[name].append(rows.copy()) if name in found else None)
    return {name: np.concatenate(rows) for name, rows in found.items()}


def test_the_bias_takes_the_mean_error() -> None:
    package = random_package(FEATURES)
    made = _factorize(package, parts=UP, rank=1)
    inputs = random_context(package).calibration.inputs
    before, after = (_outputs(model, inputs, [UP])[UP].mean(0) for model in (package, made))
    np.testing.assert_allclose(after, before, atol=1e-4)


def test_moments_are_those_of_what_a_layer_reads_over_all_its_uses() -> None:
    package = random_package(SHARED)
    context = random_context(package)
    means, covariances = moments(package, context, [UP])
    rows: list[np.ndarray] = []
    wanted = ("layers.0.ffn.input", "layers.2.ffn.input")
    observe(package, context.calibration.inputs, lambda name, value: rows.append(value) if name in wanted else None)
    read = np.concatenate(rows).astype(np.float64)
    np.testing.assert_allclose(means[UP], read.mean(0), atol=1e-5)
    np.testing.assert_allclose(covariances[UP], np.cov(read.T, bias=True), atol=1e-4)


def test_gradient_energies_are_squared_gradients_of_single_inputs() -> None:
    import torch

    from edgesdk.transformer.module import build

    package = random_package(BERT)
    context = random_context(package)
    names = [UP, "layers.1.attention.key", "embedding"]
    found = gradient_energies(package, context, names, 24)
    module = build(package.spec, package.weights)
    assert context.train is not None and context.train.labels is not None
    expected = {name: 0.0 for name in names[:2]}
    for row in range(24):
        batch = {name: torch.from_numpy(value[row : row + 1]) for name, value in context.train.inputs.items()}
        module.zero_grad()
        label = torch.from_numpy(context.train.labels[row : row + 1])
        torch.nn.functional.cross_entropy(module(batch), label, reduction="sum").backward()
        for name in names[:2]:
            gradient = module.get_submodule(name).weight.grad
            expected[name] = expected[name] + gradient.double().square().sum(1).numpy()
    for name in names[:2]:
        np.testing.assert_allclose(found[name], expected[name] + 1e-3 * np.mean(expected[name]), rtol=1e-3)
    seen = np.unique(context.train.inputs["input_ids"][context.train.inputs["attention_mask"] == 1])
    floor = found["embedding"].min()
    assert set(np.flatnonzero(found["embedding"] > floor * 1.0001)) <= set(seen)
    assert floor > 0


def test_frequencies_leave_padding_out() -> None:
    package = random_package(BERT)
    context = random_context(package)
    assert context.train is not None
    found = frequencies(context, 50)
    assert found.sum() == 50 + context.train.inputs["attention_mask"].sum()
    assert found.min() >= 1


def test_only_what_pays_is_factorized() -> None:
    made = _factorize(random_package(BERT), rank=9, parts="layers.0.*")
    # Break-even: 16·16 / 32 = 8 for attention, 32·16 / 48 = 10.67 for the feed-forward part.
    assert made.spec.layers[0].ranks == {"ffn.up": 9, "ffn.down": 9}
    assert "saves nothing: ranks must be below" in _reasons(BERT, rank=11, parts="layers.0.*")[0]
    assert _reasons(BERT, rank=10, parts="layers.0.*") == []


def test_what_is_refused_and_why() -> None:
    assert "matches nothing" in _reasons(BERT, rank=2, parts="layers.7.*")[0]
    assert "patches" in _reasons(VIT, rank=2, parts="embedding")[0]
    assert "budget is 0.01" in _reasons(BERT, budget=0.01, multiple=4)[0]
    sparse = dataclasses.replace(BERT, sparse={UP: "unstructured"})
    outline = dataclasses.replace(random_context(random_package(BERT)).outline(random_package(BERT)), spec=sparse)
    assert "is sparse" in _stage(rank=2).requires(outline)[0]
    wide = dataclasses.replace(BERT, embedding=dataclasses.replace(BERT.embedding, width=4))
    assert "factorized already" in _reasons(wide, rank=2, parts="embedding")[0]
    everything = dict.fromkeys(("attention.query", "attention.key", "attention.value", "attention.output", "ffn.up",
                                "ffn.down"), 2)
    low = dataclasses.replace(BERT, layers=(dataclasses.replace(BERT.layers[0], ranks=everything),))
    assert "low-rank already" in _reasons(low, rank=2)[0]


@pytest.mark.parametrize(
    "options", [{}, {"rank": 0}, {"rank": 2, "keep": 0.5}, {"keep": 0.0}, {"keep": 1.0}, {"energy": 1.1}, {"budget": 0}]
)
def test_options_that_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FactorizeOptions(**options)


def test_a_second_pass_takes_what_is_dense() -> None:
    made = _factorize(random_package(BERT), rank=4, parts="layers.*.attention.*")
    again = _factorize(made, rank=4)
    assert set(again.spec.layers[0].ranks) == {
        "attention.query", "attention.key", "attention.value", "attention.output", "ffn.up", "ffn.down"}
    name = "layers.0.attention.query.u.weight"
    np.testing.assert_array_equal(again.weights[name], made.weights[name])
