"""`route.skip`: the conformance suite, and a toy in which one layer is of use for half of the inputs only."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from edgesdk.data import Dataset
from edgesdk.dynamic_report import dynamic_figures, trace_package
from edgesdk.evaluate import accuracy
from edgesdk.package import Package
from edgesdk.stages import Context, Stage, outline_of, route_skip, run_stage
from edgesdk.stages.route_skip import (
    RouteSkip,
    RouteSkipOptions,
    gate_shares,
    keep_budget,
    logistic_noise,
    usage_of,
    with_gates,
)
from edgesdk.stages.train import TrainingOptions, fit
from edgesdk.testing.models import BERT, BERT_MEAN, VIT, random_context, random_package
from edgesdk.testing.stages import StageTestCase
from edgesdk.transformer.module import build, weights_of
from edgesdk.transformer.spec import Exit, FeatureEmbedding, Layer, TransformerSpec


class TestRouteSkip(StageTestCase):
    def stage(self) -> Stage:
        return RouteSkip(RouteSkipOptions(epochs=2, batch=8, learning_rate=1e-3, budget=0.5))

    def packages(self) -> list[Package]:
        return [random_package(VIT), random_package(BERT), random_package(BERT_MEAN)]

    def refused(self) -> list[Package]:
        return [*super().refused(), self.applied()[0][1]]


def test_default_layers_are_all_but_the_first() -> None:
    spec = dataclasses.replace(BERT, layers=BERT.layers * 2)
    outline = outline_of(random_package(spec), True)
    made = RouteSkip(RouteSkipOptions()).ensures(outline).spec
    assert [layer.gate for layer in made.layers] == [False, True, True, True]
    made = RouteSkip(RouteSkipOptions(layers="0,3")).ensures(outline).spec
    assert [layer.gate for layer in made.layers] == [True, False, False, True]


def test_reasons() -> None:
    stage = RouteSkip(RouteSkipOptions())
    assert "train" in " ".join(stage.requires(outline_of(random_package(BERT), False)))
    one = random_package(dataclasses.replace(BERT, layers=BERT.layers[:1]))
    assert "one layer" in " ".join(stage.requires(outline_of(one, True)))
    first = dataclasses.replace(BERT.layers[0], exit=Exit("confidence", 0.9))
    leaving = random_package(dataclasses.replace(BERT, layers=(first, BERT.layers[1])))
    assert "exit.thresholds" in " ".join(stage.requires(outline_of(leaving, True)))
    wrong = RouteSkip(RouteSkipOptions(layers="7"))
    assert "layers" in " ".join(wrong.requires(outline_of(random_package(BERT), True)))


@pytest.mark.parametrize("wrong", [{"budget": 0}, {"budget": 1}, {"strength": 0}, {"budgets": 0.5}])
def test_bad_options(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RouteSkipOptions.model_validate(wrong)


def test_untrained_gates_leave_the_model_as_it_is() -> None:
    package = random_package(BERT)
    spec = RouteSkip(RouteSkipOptions(layers="0,1")).ensures(outline_of(package, True)).spec
    inputs = {name: torch.from_numpy(value) for name, value in random_context(package).validation.inputs.items()}
    gated, plain = build(spec, with_gates(spec, package.weights)), build(package.spec, package.weights)
    torch.testing.assert_close(gated(inputs), plain(inputs))


def test_noise_is_logistic() -> None:
    """P(logit + noise > 0) is the sigmoid of the logit; the variance is π² / 3."""
    torch.manual_seed(0)
    noise = logistic_noise(torch.zeros(200_000))
    assert float((noise + 1.5 > 0).float().mean()) == pytest.approx(1 / (1 + np.exp(-1.5)), abs=0.005)
    assert float(noise.var()) == pytest.approx(np.pi**2 / 3, rel=0.02)


def test_shares_follow_the_size_of_the_layers() -> None:
    layers = tuple(dataclasses.replace(layer, gate=True) for layer in BERT.layers)
    shares = gate_shares(dataclasses.replace(BERT, layers=layers))
    assert sum(shares.values()) == pytest.approx(1)
    assert shares[0] / shares[1] == pytest.approx(BERT.layer_macs(0, 12) / BERT.layer_macs(1, 12))


def test_budget_is_judged_on_rows_of_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    package = random_package(VIT)
    context, seen = random_context(package), []
    assert context.train is not None
    train = dataclasses.replace(context.train, labels=np.sort(np.arange(24) % 5))
    monkeypatch.setattr(route_skip, "ROWS", 10)
    monkeypatch.setattr(route_skip, "fit", lambda *arguments, **others: 0.0)
    monkeypatch.setattr(route_skip, "keep_budget", lambda module, data, budget: seen.append(data.labels))
    RouteSkip(RouteSkipOptions()).apply(package, dataclasses.replace(context, train=train))
    assert [sorted(set(labels.tolist())) for labels in seen] == [[0, 1, 2, 3, 4]]
    assert len(seen[0]) == 10


def test_budget_is_kept_by_the_smallest_shift() -> None:
    package = random_package(dataclasses.replace(BERT, layers=BERT.layers * 2))
    spec = RouteSkip(RouteSkipOptions()).ensures(outline_of(package, True)).spec
    weights = with_gates(spec, package.weights)
    for index in (1, 2, 3):
        weights[f"layers.{index}.gate.weight"] = np.random.default_rng(index).normal(size=(1, 16)).astype(np.float32)
    module, data = build(spec, weights), random_context(package).validation
    shares = gate_shares(spec)
    assert usage_of(module, data, shares) > 0.5
    keep_budget(module, data, 0.5)
    assert 0.2 < usage_of(module, data, shares) <= 0.5
    found = {name: value for name, value in weights_of(module).items() if name.endswith("gate.bias")}
    shifts = {float(weights[name][0] - value[0]) for name, value in found.items()}
    assert max(shifts) - min(shifts) < 1e-5
    keep_budget(module, data, 0.9)
    assert all(np.array_equal(weights_of(module)[name], value) for name, value in found.items())


# --- a layer that half of the inputs need -----------------------------------------------------------------------------

TOY = TransformerSpec(
    FeatureEmbedding(max_length=2), 8, (Layer(1, 1, 8, 16), Layer(1, 1, 8, 32)), "pre", 1e-5, "relu", "mean",
    final_norm=False, classes=2,
)


def toy_data(rows: int, seed: int) -> tuple[Dataset, NDArray[np.bool_]]:
    """Easy inputs carry their label in feature 1. Hard ones (feature 0 is +2, else −2) have there what means nothing,
    and the label is whether features 2 and 3 are of one sign, which no linear layer sees."""
    random = np.random.default_rng(seed)
    value = random.normal(size=(rows, 8)).astype(np.float32)
    hard = np.arange(rows) % 2 == 0
    value[:, 0] = np.where(hard, 2.0, -2.0)
    labels = np.where(hard, value[:, 2] * value[:, 3] > 0, value[:, 1] > 0).astype(np.int64)
    value[:, 2:4] = np.sign(value[:, 2:4])
    value[~hard, 1] = np.sign(value[~hard, 1])
    return Dataset({"features": np.repeat(value[:, None], 2, 1)}, labels, "toy"), hard


@functools.cache
def toy() -> tuple[Package, Context]:
    """A model whose first layer does nothing and may learn nothing, and whose second one computes the product."""
    package, (train, _) = random_package(TOY), toy_data(1500, 1)
    weights = dict(package.weights)
    for name in ("layers.0.attention.output", "layers.0.ffn.down", "layers.1.attention.output"):
        for part in ("weight", "bias"):
            weights[f"{name}.{part}"] = np.zeros_like(weights[f"{name}.{part}"])
    module = build(TOY, weights)
    validation, _ = toy_data(400, 2)
    context = Context(train, validation, train.head(32), package, seed=0)
    assert train.labels is not None
    labels = torch.from_numpy(train.labels)
    trained = [value for name, value in module.named_parameters() if "layers.1.ffn" in name or "classifier" in name]
    options = TrainingOptions(epochs=20, batch=50, learning_rate=1e-2, head_learning_rate=1e-2)
    score = fit(
        module, context, options,
        lambda model, batch, rows: torch.nn.functional.cross_entropy(model.trace(batch).output, labels[rows]),
        what="toy", parameters=trained,
    )
    assert score > 0.97
    made = random_package(TOY)
    from edgesdk.evaluate import golden_outputs
    from edgesdk.transformer.graph import write_graph

    known = weights_of(module)
    graph = write_graph(TOY, known)
    outputs, _ = golden_outputs(TOY, known, graph, False, made.samples.golden_inputs)
    samples = dataclasses.replace(made.samples, golden_float=outputs, golden_outputs=outputs)
    made = dataclasses.replace(made, weights=known, graph=graph, samples=samples)
    return made, dataclasses.replace(context, teacher=made)


def test_a_layer_runs_where_it_is_of_use() -> None:
    """The second layer decides hard inputs only: its gate learns to skip it for the easy half."""
    package, context = toy()
    options = RouteSkipOptions(
        layers="1", budget=0.5, epochs=15, batch=50, learning_rate=3e-3, head_learning_rate=2e-2, strength=5
    )
    made = run_stage(RouteSkip(options), package, context)
    data, hard = toy_data(600, 3)
    traced = trace_package(made, data)
    runs = traced.gates[1] > 0
    assert runs[hard].mean() > 0.9
    assert runs[~hard].mean() < 0.1
    assert data.labels is not None
    assert accuracy(traced.output, data.labels) > 0.93
    figures = dynamic_figures(made, data)
    assert figures.runs[1] == pytest.approx(runs.mean())
    assert figures.share < 0.85
