"""What training aims at: losses by hand, the teacher's answers, exits."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from edgesdk.data import Dataset
from edgesdk.errors import StageError
from edgesdk.evaluate import accuracy
from edgesdk.package import content_digest
from edgesdk.stages import targets
from edgesdk.stages.base import Context
from edgesdk.stages.targets import (
    classification_loss,
    embedding_loss,
    recovery_loss,
    soft_logits,
    validation_score,
)
from edgesdk.stages.train import TrainingOptions
from edgesdk.testing.models import BERT, BERT_MEAN, FEATURES, VIT, random_context, random_package, random_weights
from edgesdk.transformer.module import build, run
from edgesdk.transformer.spec import Exit, TransformerSpec

EXITS = dataclasses.replace(
    VIT, layers=(dataclasses.replace(VIT.layers[0], exit=Exit("confidence", 0.3)), VIT.layers[1])
)


def _softmax(values: list[float], temperature: float) -> list[float]:
    total = sum(math.exp(value / temperature) for value in values)
    return [math.exp(value / temperature) / total for value in values]


@pytest.mark.parametrize(("alpha", "temperature"), [(0.3, 4.0), (1.0, 2.0), (0.0, 1.0), (0.5, 0.5)])
def test_classification_loss_by_hand(alpha: float, temperature: float) -> None:
    student, teacher, labels = [[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]], [[2.0, 1.0, 0.0], [-1.0, 0.0, 1.0]], [0, 2]
    hard = soft = 0.0
    for logits, wanted, label in zip(student, teacher, labels, strict=True):
        hard -= math.log(_softmax(logits, 1.0)[label]) / 2
        soft += temperature**2 / 2 * sum(
            p * (math.log(p) - math.log(q))
            for p, q in zip(_softmax(wanted, temperature), _softmax(logits, temperature), strict=True)
        )
    options = TrainingOptions(alpha=alpha, temperature=temperature)
    tensors = torch.tensor(student), torch.tensor(teacher), torch.tensor(labels)
    assert classification_loss(*tensors, options).item() == pytest.approx(alpha * hard + (1 - alpha) * soft, rel=1e-5)
    assert classification_loss(tensors[0], None, tensors[2], options).item() == pytest.approx(hard, rel=1e-5)
    assert classification_loss(tensors[0], tensors[1], None, options).item() == pytest.approx(soft, rel=1e-5)


def test_loss_of_the_teacher_itself_has_no_soft_part() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    loss = classification_loss(logits, logits, torch.zeros(4, dtype=torch.long), TrainingOptions(alpha=0.0))
    assert loss.item() == pytest.approx(0.0, abs=1e-5)


def test_embedding_loss_by_hand_and_without_padding() -> None:
    output, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    # squared error (1 + 4) / 2 over mean square 2, plus 1 − cosine 0
    assert embedding_loss(output, teacher, None).item() == pytest.approx(2.5 / 2 + 1)
    assert embedding_loss(teacher, teacher, None).item() == pytest.approx(0.0, abs=1e-6)
    tokens, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 0, 0]])
    other = torch.where(mask[..., None].bool(), tokens, 7.0)
    wide = torch.nn.functional.pad(tokens, (0, 0, 0, 2))
    assert embedding_loss(other, wide, mask).item() == pytest.approx(0.0, abs=1e-6)
    assert embedding_loss(other, wide, None).item() > 0.1
    with pytest.raises(StageError, match="against the teacher's"):
        embedding_loss(torch.zeros(1, 3), torch.zeros(1, 4), None)


@pytest.mark.parametrize("spec", [VIT, BERT, BERT_MEAN, FEATURES, EXITS], ids=range(5))
def test_soft_logits_are_the_teachers_last_outputs(spec: TransformerSpec) -> None:
    package = random_package(spec)
    context = random_context(package)
    found = soft_logits(package, context.validation, context).numpy()
    module = build(package.spec, package.weights)
    with torch.no_grad():
        batch = {name: torch.from_numpy(value) for name, value in context.validation.inputs.items()}
        expected = module.trace(batch).output.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_soft_logits_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    package = random_package(VIT, seed=5)
    context = random_context(package)
    first = soft_logits(package, context.validation, context)
    monkeypatch.setattr(targets, "predict", None)
    again = random_package(VIT, seed=5)
    assert content_digest(again) == content_digest(package)
    assert soft_logits(again, context.validation.head(100), context) is first


def test_answers_that_are_kept_are_few() -> None:
    package = random_package(VIT)
    context = random_context(package)
    for rows in range(1, targets.KEPT + 3):
        assert len(soft_logits(package, context.validation.head(rows), context)) == rows
    assert len(targets._ANSWERS) == targets.KEPT


def _batch(context: Context) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    assert context.train is not None
    rows = torch.tensor([3, 0, 7])
    return {name: torch.from_numpy(value)[rows] for name, value in context.train.inputs.items()}, rows


def test_every_exit_answers_with_a_weight_that_rises_with_its_depth() -> None:
    context = random_context(random_package(VIT))
    module = build(EXITS, random_weights(EXITS))
    batch, rows = _batch(context)
    options = TrainingOptions(alpha=0.4)
    found = recovery_loss(context, options)(module, batch, rows).item()
    assert context.train is not None and context.train.labels is not None
    teacher = soft_logits(context.teacher, context.train, context)[rows]
    labels = torch.from_numpy(context.train.labels)[rows]
    trace = module.trace(batch)
    early, last = (classification_loss(x, teacher, labels, options).item() for x in (trace.exits[0], trace.output))
    assert found == pytest.approx((1 * early + 3 * last) / 4, rel=1e-5)
    assert early != pytest.approx(last, rel=1e-3)


def test_gates_get_gradients() -> None:
    gated = dataclasses.replace(VIT, layers=(VIT.layers[0], dataclasses.replace(VIT.layers[1], gate=True)))
    context = random_context(random_package(VIT))
    module = build(gated, random_weights(gated)).train()
    recovery_loss(context, TrainingOptions())(module, *_batch(context)).backward()  # type: ignore[no-untyped-call]
    gradient = module.get_parameter("layers.1.gate.weight").grad
    assert gradient is not None and gradient.abs().max() > 0


def test_without_labels_the_teacher_decides() -> None:
    context = random_context(random_package(VIT))
    assert context.train is not None
    unlabelled = dataclasses.replace(context, train=Dataset(context.train.inputs, None))
    module = build(VIT, random_weights(VIT, seed=3))
    arguments = module, *_batch(context)
    found = recovery_loss(unlabelled, TrainingOptions(alpha=0.9))(*arguments).item()
    assert found == pytest.approx(recovery_loss(context, TrainingOptions(alpha=0.0))(*arguments).item(), rel=1e-6)


def test_hard_labels_alone_do_not_ask_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    context = random_context(random_package(VIT))
    monkeypatch.setattr(targets, "soft_logits", None)
    assert recovery_loss(context, TrainingOptions(alpha=1.0))(build(VIT, random_weights(VIT)), *_batch(context)) > 0


def test_the_tap_sees_the_models_tensors() -> None:
    context = random_context(random_package(VIT))
    seen: set[str] = set()

    def tap(name: str, value: torch.Tensor) -> torch.Tensor:
        seen.add(name)
        return value

    recovery_loss(context, TrainingOptions(), tap)(build(VIT, random_weights(VIT)), *_batch(context))
    assert {"layers.0.result", "layers.1.ffn.down", "classifier.input"} <= seen


def test_refuses_to_recover_without_data() -> None:
    context = random_context(random_package(VIT), training=False)
    with pytest.raises(StageError, match="--train-data"):
        recovery_loss(context, TrainingOptions())


def test_scores_on_validation_data() -> None:
    context = random_context(random_package(VIT))
    module, labels = build(VIT, random_weights(VIT, seed=3)), context.validation.labels
    assert labels is not None
    outputs = run(module, context.validation.inputs)
    assert validation_score(context, module) == accuracy(outputs, labels)
    unlabelled = dataclasses.replace(context, validation=Dataset(context.validation.inputs, None))
    wanted = run(build(VIT, context.teacher.weights), context.validation.inputs).argmax(-1)
    assert validation_score(unlabelled, module) == accuracy(outputs, wanted)
    encoders = random_context(random_package(BERT_MEAN))
    assert validation_score(encoders, build(BERT_MEAN, encoders.teacher.weights)) == pytest.approx(1.0)
    assert validation_score(encoders, build(BERT_MEAN, random_weights(BERT_MEAN, seed=3))) < 0.9
