"""`distill`: the loss by hand, and a pruned demo model that recovers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from edgesdk import demo
from edgesdk.data import Dataset
from edgesdk.errors import StageError
from edgesdk.evaluate import evaluate_package
from edgesdk.package import read_package
from edgesdk.stages import Context, Outline, run_stage
from edgesdk.stages.distill import Distill, DistillOptions, distillation_loss
from edgesdk.stages.prune_neurons import PruneNeurons, PruneNeuronsOptions
from edgesdk.testing.models import BERT_MEAN, VIT, random_context, random_package


def _softmax(values: list[float], temperature: float) -> list[float]:
    total = sum(math.exp(value / temperature) for value in values)
    return [math.exp(value / temperature) / total for value in values]


@pytest.mark.parametrize(("alpha", "temperature"), [(0.3, 4.0), (1.0, 2.0), (0.0, 1.0), (0.5, 0.5)])
def test_loss_by_hand(alpha: float, temperature: float) -> None:
    student, teacher, labels = [[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]], [[2.0, 1.0, 0.0], [-1.0, 0.0, 1.0]], [0, 2]
    expected = 0.0
    for logits, wanted, label in zip(student, teacher, labels, strict=True):
        hard = -math.log(_softmax(logits, 1.0)[label])
        soft = sum(
            p * (math.log(p) - math.log(q))
            for p, q in zip(_softmax(wanted, temperature), _softmax(logits, temperature), strict=True)
        )
        expected += (alpha * hard + (1 - alpha) * temperature**2 * soft) / len(labels)
    found = distillation_loss(
        torch.tensor(student), torch.tensor(teacher), torch.tensor(labels),
        DistillOptions(alpha=alpha, temperature=temperature),
    )
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_loss_of_the_teacher_itself_has_no_soft_part() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    loss = distillation_loss(logits, logits, torch.zeros(4, dtype=torch.long), DistillOptions(alpha=0.0))
    assert float(loss) == pytest.approx(0.0, abs=1e-5)


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


def test_refuses_encoders() -> None:
    (reason,) = Distill(DistillOptions()).requires(Outline(BERT_MEAN, "fp32", "encoding", True))
    assert "classifiers" in reason


def test_refusals_are_all_told_at_once() -> None:
    assert len(Distill(DistillOptions()).requires(Outline(BERT_MEAN, "w8a8", "encoding", False))) == 3


def test_teacher_is_the_imported_package() -> None:
    """With α = 0 only the teacher decides: another teacher makes another student."""
    package, other = random_package(VIT), random_package(VIT, seed=7)
    context = random_context(package)
    stage = Distill(DistillOptions(alpha=0.0, epochs=1))
    own = run_stage(stage, package, context)
    taught = run_stage(stage, package, dataclasses.replace(context, teacher=other))
    name = "classifier.bias"
    # Its own teacher has nothing to teach; the steps that remain are weight decay's.
    assert np.abs(own.weights[name] - package.weights[name]).max() < 1e-3
    assert np.abs(taught.weights[name] - own.weights[name]).max() > 1e-5
