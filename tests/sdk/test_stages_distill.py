"""`distill`: losses inside by hand, teachers that fit and those that do not, and a pruned demo model that recovers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgesdk import demo
from edgesdk.compress import _key
from edgesdk.data import Dataset
from edgesdk.errors import StageError
from edgesdk.evaluate import cosines, evaluate_package, run_graph
from edgesdk.package import Package, read_package, replace, write_package
from edgesdk.recipe import Recipe
from edgesdk.stages import Context, Outline, Stage, run_stage
from edgesdk.stages.distill import Distill, DistillOptions
from edgesdk.stages.distill_inside import InsideLoss, hidden_loss, layer_map, relation_heads, relation_loss
from edgesdk.stages.prune_neurons import PruneNeurons, PruneNeuronsOptions
from edgesdk.testing.models import BERT, BERT_MEAN, FEATURES, VIT, random_context, random_package
from edgesdk.testing.stages import StageTestCase
from edgesdk.transformer.module import build
from edgesdk.transformer.spec import Exit, Layer, TransformerSpec

WIDE = dataclasses.replace(BERT, hidden=24, layers=(Layer(3, 3, 8, 32), Layer(3, 3, 8, 32), Layer(3, 3, 8, 32)))
FAST = DistillOptions(epochs=2, batch=8, learning_rate=1e-3)


class TestDistillInside(StageTestCase):
    """The contract with every loss, for classifiers and encoders."""

    def stage(self) -> Stage:
        return Distill(FAST.model_copy(update={"hidden": 1.0, "attention": 1.0}))

    def packages(self) -> list[Package]:
        return [random_package(spec) for spec in (BERT, FEATURES)]


class TestDistillExits(StageTestCase):
    """Packages with an exit and a gate."""

    def stage(self) -> Stage:
        return Distill(FAST)

    def packages(self) -> list[Package]:
        layers = dataclasses.replace(VIT.layers[0], exit=Exit()), dataclasses.replace(VIT.layers[1], gate=True)
        return [random_package(dataclasses.replace(VIT, layers=layers))]


def test_pruned_digits_recover() -> None:
    package, data = read_package(demo.package_path()), demo.train_data()
    train, validation = data.head(400), demo.test_data()
    context = Context(train, validation, train.head(64), package, seed=0)
    pruned = run_stage(PruneNeurons(PruneNeuronsOptions(keep=0.05)), package, context)
    recovered = run_stage(Distill(DistillOptions(epochs=1, batch=32, learning_rate=1e-3)), pruned, context)
    before, after = evaluate_package(pruned, validation), evaluate_package(recovered, validation)
    assert before is not None and after is not None
    assert after > before + 0.02
    assert recovered.spec == pruned.spec
    assert recovered.lineage[-1].metrics_before["accuracy"] == pytest.approx(before, abs=1e-6)
    assert recovered.lineage[-1].metrics_after["accuracy"] == pytest.approx(after, abs=1e-6)


@pytest.mark.parametrize("options", [{}, {"hidden": 1.0}, {"attention": 1.0}], ids=["outputs", "hidden", "attention"])
def test_disturbed_encoder_recovers_without_labels(options: dict[str, Any]) -> None:
    package = random_package(BERT_MEAN)
    context = random_context(package)
    random = np.random.default_rng(0)
    noisy = {
        name: (value * (1 + 0.1 * random.normal(size=value.shape))).astype(np.float32)
        for name, value in package.weights.items()
    }
    pruned = run_stage(_Give(noisy), package, context)
    stage = Distill(DistillOptions(epochs=15, batch=8, learning_rate=1e-3, **options))
    recovered = run_stage(stage, pruned, context)
    reference, inputs = run_graph(package.graph, context.validation.inputs), context.validation.inputs
    before, after = (cosines(run_graph(made.graph, inputs), reference).mean() for made in (pruned, recovered))
    assert 1 - after < 0.7 * (1 - before)


class _Give(PruneNeurons):
    """A stage that gives other weights."""

    def __init__(self, weights: dict[str, Any]) -> None:
        super().__init__(PruneNeuronsOptions(keep=1.0))
        self.weights = weights

    def ensures(self, outline: Outline) -> Outline:
        return outline

    def apply(self, package: Package, context: Context) -> Any:
        from edgesdk.stages.base import Change

        return Change(weights=self.weights)


# Losses inside


def test_layers_are_mapped_evenly_and_end_on_the_last() -> None:
    assert layer_map(2, 6) == [(0, 2), (1, 5)]
    assert layer_map(3, 6) == [(0, 1), (1, 3), (2, 5)]
    assert layer_map(6, 6) == [(index, index) for index in range(6)]
    assert layer_map(4, 2) == [(0, 0), (1, 0), (2, 1), (3, 1)]
    assert layer_map(2, 0) == layer_map(0, 2) == []


def test_hidden_loss_ignores_scale_shift_and_padding() -> None:
    student = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert hidden_loss(student, 3 * student + 1, None).item() == pytest.approx(0.0, abs=1e-5)
    other = torch.where(mask[..., None].bool(), student, torch.randn(2, 3, 8))
    assert hidden_loss(student, other, mask).item() == pytest.approx(0.0, abs=1e-6)
    # Opposite directions: the difference of unit variances is 2 everywhere.
    assert hidden_loss(student, -student, mask).item() == pytest.approx(4.0, rel=1e-3)


def test_relation_heads_divide_both_widths() -> None:
    assert relation_heads(384, 384) == 48
    assert relation_heads(320, 384) == 32
    assert relation_heads(16, 24) == 2
    assert relation_heads(7, 5) == 1


def test_relation_loss_by_hand() -> None:
    """One head, against a slow computation with numpy; padding counts neither as query nor as key."""
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(1, 3, 6)), random.normal(size=(1, 3, 10))
    mask = np.array([[1, 1, 0]])
    expected = 0.0
    for row in range(2):
        logs = []
        for value in (student[0], teacher[0]):
            scores = value[row] @ value[:2].T / math.sqrt(value.shape[1])
            logs.append(scores - np.log(np.exp(scores).sum()))
        expected += float((np.exp(logs[1]) * (logs[1] - logs[0])).sum()) / 2
    tensors = torch.tensor(student, dtype=torch.float32), torch.tensor(teacher, dtype=torch.float32)
    assert relation_heads(6, 10) == 1
    assert relation_loss(*tensors, torch.from_numpy(mask)).item() == pytest.approx(expected, rel=1e-4)


def test_relations_of_the_teacher_itself_are_equal() -> None:
    value = torch.randn(2, 5, 16)
    assert relation_loss(value, value, None).item() == pytest.approx(0.0, abs=1e-6)


def test_widths_that_differ_get_a_projection_that_learns() -> None:
    package, teacher = random_package(BERT), random_package(WIDE)
    context = dataclasses.replace(random_context(package), teacher=teacher)
    options = DistillOptions(hidden=1.0, attention=1.0)
    loss = InsideLoss(BERT, context, options)
    assert loss.projection is not None and tuple(loss.projection.weight.shape) == (24, 16)
    assert context.train is not None
    module = build(BERT, package.weights).train()
    rows = torch.arange(6)
    batch = {name: torch.from_numpy(value)[rows] for name, value in context.train.inputs.items()}
    loss(module, batch, rows).backward()  # type: ignore[no-untyped-call]
    assert loss.projection.weight.grad is not None and loss.projection.weight.grad.abs().max() > 0
    assert InsideLoss(BERT, random_context(package), options).projection is None


# Teachers


def test_teacher_is_the_imported_package() -> None:
    """With α = 0 only the teacher decides: another teacher makes another student."""
    package, other = random_package(VIT), random_package(VIT, seed=7)
    context = random_context(package)
    stage = Distill(DistillOptions(alpha=0.0, epochs=1))
    own = run_stage(stage, package, context)
    taught = run_stage(stage, package, dataclasses.replace(context, teacher=other))
    name = "classifier.bias"
    # Its own teacher has nothing to teach; the steps that remain are rounding noise and weight decay.
    assert np.abs(own.weights[name] - package.weights[name]).max() < 2e-3
    assert np.abs(taught.weights[name] - own.weights[name]).max() > 1e-5


def test_teacher_may_be_another_package(tmp_path: Path) -> None:
    """A wider and deeper teacher by its path teaches as it does when it is the imported model."""
    package, teacher = random_package(BERT), random_package(WIDE)
    write_package(teacher, tmp_path / "teacher.edgepkg")
    context = random_context(package)
    options = FAST.model_copy(update={"hidden": 1.0, "attention": 1.0})
    given = run_stage(Distill(options), package, dataclasses.replace(context, teacher=teacher))
    path = str(tmp_path / "teacher.edgepkg")
    options = DistillOptions.model_validate({**options.model_dump(), "teacher": path})
    read = run_stage(Distill(options), package, context)
    assert all((given.weights[name] == read.weights[name]).all() for name in given.weights)
    assert any((given.weights[name] != package.weights[name]).any() for name in given.weights)


def test_what_the_teacher_holds_decides_recipe_and_key(tmp_path: Path) -> None:
    """Another package at the same path is another recipe, and no teacher of one that was read before."""
    path, package = tmp_path / "teacher.edgepkg", random_package(BERT)
    digest = write_package(random_package(WIDE), path)
    first = Distill(DistillOptions(teacher=str(path)))
    assert first.options.teacher_digest == digest
    write_package(random_package(WIDE, seed=1), path)
    second = Distill(DistillOptions(teacher=str(path)))
    assert Recipe("r", (first,)).digest != Recipe("r", (second,)).digest
    context = random_context(package)
    assert _key(first, package, context) != _key(second, package, context)
    with pytest.raises(StageError, match="not the package that the recipe was read with"):
        run_stage(first, package, context)


def _relabelled(spec: TransformerSpec, *labels: str) -> Package:
    return replace(random_package(spec), labels=labels)


@pytest.mark.parametrize(
    ("teacher", "found"),
    [
        (lambda: random_package(BERT_MEAN), "encoding"),
        (lambda: random_package(dataclasses.replace(BERT, classes=4)), "number of classes 4, the student's is 3"),
        (lambda: random_package(dataclasses.replace(VIT, classes=3)), "kind of input patches"),
        (lambda: _relabelled(BERT, "a", "c", "b"), "label 1 is 'c', the student's is 'b'"),
        (lambda: _relabelled(dataclasses.replace(BERT, classes=4), "a", "b", "c", "d"), "4 classes"),
    ],
    ids=["task", "classes", "inputs", "labels", "classes in the manifest"],
)
def test_teacher_of_another_question_is_refused(teacher: Callable[[], Package], found: str, tmp_path: Path) -> None:
    write_package(teacher(), tmp_path / "teacher.edgepkg")
    package = _relabelled(BERT, "a", "b", "c")
    stage = Distill(DistillOptions(teacher=str(tmp_path / "teacher.edgepkg")))
    with pytest.raises(StageError, match=f"stage distill: teacher .*{found}"):
        run_stage(stage, package, random_context(package))


def test_encoders_need_a_teacher_of_their_width(tmp_path: Path) -> None:
    write_package(random_package(dataclasses.replace(WIDE, classes=None, pooler=False)), tmp_path / "wide.edgepkg")
    student = random_package(dataclasses.replace(BERT, classes=None, pooler=False))
    with pytest.raises(StageError, match="width 24, the student's have 16"):
        run_stage(Distill(DistillOptions(teacher=str(tmp_path / "wide.edgepkg"))), student, random_context(student))


def test_teacher_that_is_no_package_is_refused_before_any_work(tmp_path: Path) -> None:
    outline = Outline(VIT, "fp32", "classification", True)
    (reason,) = Distill(DistillOptions(teacher=str(tmp_path / "none.edgepkg"))).requires(outline)
    assert "no such package" in reason
    (tmp_path / "bad.edgepkg").mkdir()
    (tmp_path / "bad.edgepkg" / "manifest.json").write_text("[]")
    (reason,) = Distill(DistillOptions(teacher=str(tmp_path / "bad.edgepkg"))).requires(outline)
    assert "manifest.json" in reason


def test_refuses_without_training_data() -> None:
    package = random_package(VIT)
    with pytest.raises(StageError, match="--train-data"):
        run_stage(Distill(DistillOptions()), package, random_context(package, training=False))


def test_refuses_training_data_without_labels() -> None:
    package = random_package(VIT)
    context = random_context(package)
    assert context.train is not None
    context = dataclasses.replace(context, train=Dataset(context.train.inputs, None))
    with pytest.raises(StageError, match="labelled"):
        run_stage(Distill(DistillOptions()), package, context)


def test_refusals_are_all_told_at_once() -> None:
    (data, scheme) = Distill(DistillOptions()).requires(Outline(BERT_MEAN, "w8a8", "encoding", False))
    assert "labelled" not in data and "--train-data" in data
    assert "w8a8" in scheme


def test_options_of_old_recipes_are_valid() -> None:
    options = DistillOptions.model_validate({"temperature": 4, "alpha": 0.3, "epochs": 5, "batch": 64})
    assert (options.epochs, options.hidden, options.attention, options.teacher) == (5.0, 0.0, 0.0, None)
    with pytest.raises(ValueError, match="hidden"):
        DistillOptions(hidden=-1)
