"""`exit.early` and `exit.thresholds`: the conformance suites, a toy on which exits pay, and what is refused."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from edgesdk import demo
from edgesdk.data import Dataset
from edgesdk.dynamic_report import dynamic_figures, leave, trace_package
from edgesdk.errors import StageError
from edgesdk.evaluate import accuracy
from edgesdk.package import Package, read_package
from edgesdk.stages import Context, Stage, outline_of, run_stage
from edgesdk.stages.base import Change
from edgesdk.stages.exit_early import ExitEarly, ExitEarlyOptions, exit_loss, parse_layers
from edgesdk.stages.exit_thresholds import ExitThresholds, ExitThresholdsOptions
from edgesdk.stages.quantize_ptq import QuantizePtq, QuantizePtqOptions
from edgesdk.stages.targets import classification_loss
from edgesdk.testing.models import BERT, BERT_MEAN, VIT, random_context, random_package
from edgesdk.testing.stages import StageTestCase
from edgesdk.transformer.module import build
from edgesdk.transformer.spec import Exit
from edgesdk.transformer.spec_check import MOST_EXITS

QUICK = {"epochs": 1.0, "batch": 8, "learning_rate": 1e-3}
EASY = ExitThresholdsOptions(risk=0.6, delta=0.3)  # what twelve rows can prove


class TestExitEarly(StageTestCase):
    def stage(self) -> Stage:
        return ExitEarly(ExitEarlyOptions.model_validate(QUICK))

    def refused(self) -> list[Package]:
        return [*super().refused(), random_package(BERT_MEAN), self.applied()[0][1]]


class TestExitThresholds(StageTestCase):
    def stage(self) -> Stage:
        return ExitThresholds(EASY)

    def packages(self) -> list[Package]:
        return [with_exits(random_package(spec)) for spec in (VIT, BERT)]

    def refused(self) -> list[Package]:
        return [random_package(BERT), random_package(VIT)]

    def test_ensures_tells_spec_and_scheme_before_any_work(self) -> None:
        """All but the thresholds."""
        for package, made in self.applied():
            promised = self.stage().ensures(outline_of(package, True))
            assert promised.scheme == made.scheme
            assert promised.spec.weight_shapes() == made.spec.weight_shapes()
            assert promised.spec.exits() == made.spec.exits() == (0,)
            assert without_thresholds(promised.spec.layers) == without_thresholds(made.spec.layers)

    def test_broken_promise_is_an_error(self) -> None:
        class Idle(ExitThresholds):
            def apply(self, package: Package, context: Context) -> Change:
                return Change()

        package = self.packages()[0]
        with pytest.raises(StageError, match="promised"):
            run_stage(Idle(EASY), package, random_context(package))


def without_thresholds(layers: tuple[object, ...]) -> list[object]:
    return [dataclasses.replace(layer, exit=None) for layer in layers]  # type: ignore[type-var]


def with_exits(package: Package) -> Package:
    return run_stage(ExitEarly(ExitEarlyOptions.model_validate(QUICK)), package, random_context(package))


# --- exit.early -------------------------------------------------------------------------------------------------------


def test_default_layers_are_from_a_third_of_the_depth_on() -> None:
    spec = dataclasses.replace(BERT, layers=BERT.layers * 3)
    outline = outline_of(random_package(spec), True)
    made = ExitEarly(ExitEarlyOptions()).ensures(outline).spec
    assert [index for index, layer in enumerate(made.layers) if layer.exit] == [1, 2, 3, 4]
    named = ExitEarly(ExitEarlyOptions(layers="3, 1", criterion="entropy")).ensures(outline).spec
    assert {index: layer.exit for index, layer in enumerate(named.layers) if layer.exit} == {
        1: Exit("entropy"), 3: Exit("entropy"),
    }


def test_deep_models_get_as_many_exits_as_a_graph_can_hold() -> None:
    deep = dataclasses.replace(BERT, layers=BERT.layers[:1] * 60)
    outline = dataclasses.replace(outline_of(random_package(BERT), True), spec=deep)
    made = ExitEarly(ExitEarlyOptions()).ensures(outline).spec
    exits = [index for index, layer in enumerate(made.layers) if layer.exit]
    assert len(exits) == MOST_EXITS
    assert (exits[0], exits[-1]) == (19, 58)
    assert set(np.diff(exits)) == {1, 2}
    named = ",".join(map(str, range(MOST_EXITS + 1)))
    (reason,) = ExitEarly(ExitEarlyOptions(layers=named)).requires(outline)
    assert "25 exits, a graph can hold 24" in reason


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "1,1", "5", "1;2", "1.0", "٣", "9" * 40])
def test_bad_layers_are_refused_with_a_reason(text: str) -> None:
    with pytest.raises(StageError, match="layers"):
        parse_layers(text, 5)
    package = random_package(dataclasses.replace(BERT, layers=BERT.layers * 3))
    reasons = ExitEarly(ExitEarlyOptions(layers=text)).requires(outline_of(package, True))
    assert len(reasons) == 1
    assert "layers" in reasons[0]


def test_one_layer_has_no_exit_and_no_training_data_is_refused() -> None:
    package = random_package(dataclasses.replace(BERT, layers=BERT.layers[:1]))
    stage = ExitEarly(ExitEarlyOptions())
    assert "1 layers" in " ".join(stage.requires(outline_of(package, True)))
    assert "train" in " ".join(stage.requires(outline_of(random_package(BERT), False)))


@pytest.mark.parametrize("wrong", [{"own": 2}, {"training": "none"}, {"criterion": "luck"}, {"layer": "1"}])
def test_bad_options(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ExitEarlyOptions.model_validate(wrong)


def test_frozen_training_changes_the_exits_alone() -> None:
    package = random_package(dataclasses.replace(BERT, layers=BERT.layers * 2))
    options = ExitEarlyOptions(training="frozen", layers="1", **QUICK)  # type: ignore[arg-type]
    made = run_stage(ExitEarly(options), package, random_context(package))
    for name, value in package.weights.items():
        np.testing.assert_array_equal(made.weights[name], value)
    assert made.graph == package.graph
    assert not np.array_equal(made.weights["layers.1.exit.weight"], package.weights["classifier.weight"])


@pytest.mark.parametrize("own", [0.0, 0.4])
def test_loss_by_hand(own: float) -> None:
    """Exits at 0 and 2 have weights 1 and 3 of 4 in the part of the exits."""
    package = random_package(dataclasses.replace(BERT, layers=BERT.layers * 2))
    stage, context = ExitEarly(ExitEarlyOptions(layers="0,2", own=own, last=0.7)), random_context(package)
    spec = stage.ensures(outline_of(package, True)).spec
    weights = {f"layers.{i}.exit.{part}": package.weights[f"classifier.{part}"]
               for i in (0, 2) for part in ("weight", "bias")}
    module = build(spec, {**package.weights, **weights})
    assert context.train is not None and context.train.labels is not None
    rows = torch.tensor([3, 1, 7])
    batch = {name: torch.from_numpy(value[rows.numpy()]) for name, value in context.train.inputs.items()}
    trace = module.trace(batch)
    labels = torch.from_numpy(context.train.labels)[rows]
    everything = {name: torch.from_numpy(value) for name, value in context.train.inputs.items()}
    teacher = build(package.spec, package.weights).trace(everything).output[rows].detach()

    def part(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return classification_loss(logits, target, labels, stage.options)

    expected = 0.7 * part(trace.output, teacher)
    for index in (0, 2):
        mixed = (1 - own) * part(trace.exits[index], teacher)
        mixed = mixed + own * part(trace.exits[index], trace.output.detach())
        expected = expected + 0.3 * (index + 1) / 4 * mixed
    found = exit_loss(context, stage.options)(module, batch, rows)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# --- exit.thresholds --------------------------------------------------------------------------------------------------


@functools.cache
def digits() -> tuple[Package, Context]:
    """The demo with trained exits behind its first layers, and held-out rows."""
    package, train, test = read_package(demo.package_path()), demo.train_data(), demo.test_data()
    part = train.take(np.arange(0, len(train), 2))
    held, validation = train.take(np.arange(1, len(train), 2)), test
    context = Context(part, validation, part.head(64), package, seed=0, holdout=held)
    stage = ExitEarly(ExitEarlyOptions(layers="0,1", epochs=3, batch=32, learning_rate=1e-3))
    return run_stage(stage, package, context), context


def test_exits_of_the_demo_save_work_and_keep_the_promise() -> None:
    package, context = digits()
    data = context.validation
    assert context.holdout is not None and data.labels is not None
    stage = ExitThresholds(ExitThresholdsOptions(risk=0.02))
    made = run_stage(stage, package, context)
    figures = dynamic_figures(made, data)
    assert figures.share < 0.9
    traced = trace_package(made, data)
    early, _ = leave(made.spec, traced)
    lost = ((traced.output.argmax(-1) == data.labels) & (early.argmax(-1) != data.labels)).mean()
    assert lost <= 0.02 + 3 * (0.02 * 0.98 / len(data)) ** 0.5
    assert accuracy(early, data.labels) > accuracy(traced.output, data.labels) - 0.03
    bolder = run_stage(ExitThresholds(ExitThresholdsOptions(risk=0.1)), package, context)
    assert dynamic_figures(bolder, context.holdout).macs_mean < dynamic_figures(made, context.holdout).macs_mean


@pytest.mark.parametrize("held_out", [True, False])
def test_lineage_keeps_what_the_promise_rests_on(held_out: bool) -> None:
    package, context = digits()
    assert context.holdout is not None
    given = context if held_out else dataclasses.replace(context, holdout=None)
    made = run_stage(ExitThresholds(ExitThresholdsOptions(risk=0.1)), package, given)
    figures = made.lineage[-1].metrics_after
    rows = len(context.holdout) if held_out else len(context.validation) - len(context.validation) // 2
    assert (figures["proof.rows"], figures["proof.held_out"]) == (rows, int(held_out))
    assert "accuracy" in figures and "macs_mean" in figures
    if held_out:
        assert context.holdout.labels is not None
        traced = trace_package(made, context.holdout)
        full = traced.output.argmax(-1) == context.holdout.labels
        early = leave(made.spec, traced)[0].argmax(-1) == context.holdout.labels
        assert figures["proof.worse"] == (full & ~early).sum() > 0
        assert figures["proof.better"] == (~full & early).sum()


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic"])
def test_thresholds_come_after_quantization(scheme: str) -> None:
    package, context = digits()
    quantized = run_stage(QuantizePtq(QuantizePtqOptions.model_validate({"scheme": scheme})), package, context)
    options = ExitThresholdsOptions(risk=0.05, thresholds="common", criterion="entropy")
    made = run_stage(ExitThresholds(options), quantized, context)
    exits = [layer.exit for layer in made.spec.layers if layer.exit is not None]
    assert {exit_.criterion for exit_ in exits} == {"entropy"}
    assert len({exit_.threshold for exit_ in exits}) == 1
    assert made.scheme == scheme
    assert made.encodings is quantized.encodings
    assert 0 < sum(dynamic_figures(made, context.validation.head(50)).left[index] for index in made.spec.exits())


def test_patience_sets_a_number_of_exits() -> None:
    package, context = digits()
    made = run_stage(ExitThresholds(ExitThresholdsOptions(risk=0.3, criterion="patience")), package, context)
    assert {layer.exit.threshold for layer in made.spec.layers if layer.exit} <= {0.0, 1.0}


def test_nothing_is_set_that_is_not_proven() -> None:
    package, context = digits()
    assert context.holdout is not None
    few = dataclasses.replace(context, holdout=context.holdout.head(100))
    with pytest.raises(StageError, match="748 held-out rows.*there are 100; give more --train-data"):
        run_stage(ExitThresholds(ExitThresholdsOptions()), package, few)


def test_too_few_rows_are_refused_before_any_training() -> None:
    """Below some number no rows prove the promise, whatever the model: `plan` can say so."""
    package, context = digits()
    assert context.holdout is not None
    few = dataclasses.replace(context, holdout=context.holdout.head(100)).outline(package)
    unknown = dataclasses.replace(few, proving=None)
    halved = dataclasses.replace(context, holdout=None).outline(package)
    stage = ExitThresholds(ExitThresholdsOptions())
    assert few.proving == 100 and halved.proving == len(context.validation) // 2
    assert any("there are 100" in reason for reason in stage.requires(few))
    assert stage.requires(unknown) == []


def test_useless_exits_are_not_set() -> None:
    """Exits that always answer what the model never does are surely wrong, and nothing is proven."""
    package, context = digits()
    weights = {name: np.zeros_like(value) if ".exit." in name else value for name, value in package.weights.items()}
    for name in weights:
        if name.endswith(".exit.bias"):
            weights[name] = np.eye(10, dtype=np.float32)[0] * 9
    broken = dataclasses.replace(package, weights=weights)
    with pytest.raises(StageError, match="do not prove|no exit lets"):
        run_stage(ExitThresholds(ExitThresholdsOptions(risk=0.02)), broken, context)


def test_without_labels_the_promise_is_agreement() -> None:
    package, context = digits()
    assert context.holdout is not None

    def unlabelled(data: Dataset) -> Dataset:
        return dataclasses.replace(data, labels=None)

    blind = dataclasses.replace(
        context, holdout=unlabelled(context.holdout), validation=unlabelled(context.validation)
    )
    made = run_stage(ExitThresholds(ExitThresholdsOptions(risk=0.03)), package, blind)
    traced = trace_package(made, context.holdout)
    early, _ = leave(made.spec, traced)
    assert (early.argmax(-1) != traced.output.argmax(-1)).mean() <= 0.03


def test_without_held_out_rows_half_of_the_validation_proves_and_it_is_said() -> None:
    package, context = digits()
    said: list[str] = []
    weak = dataclasses.replace(
        context, holdout=None, progress=lambda what, done, total: said.append(what)
    )
    run_stage(ExitThresholds(ExitThresholdsOptions(risk=0.1)), package, weak)
    assert any("weaker promise" in line for line in said)
    said.clear()
    strong = dataclasses.replace(weak, holdout=context.holdout)
    run_stage(ExitThresholds(ExitThresholdsOptions(risk=0.1)), package, strong)
    assert not any("weaker promise" in line for line in said)


@pytest.mark.parametrize("wrong", [{"risk": 0}, {"risk": 1}, {"delta": 0}, {"loss": "both"}, {"thresholds": "any"}])
def test_bad_promises(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ExitThresholdsOptions.model_validate(wrong)
