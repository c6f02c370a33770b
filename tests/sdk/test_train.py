"""The trainer: batches, schedule, best weights, structural zeros, repeatable, resumed to the same bytes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from edgesdk.data import Dataset
from edgesdk.errors import StageError
from edgesdk.evaluate import accuracy
from edgesdk.package import Package
from edgesdk.stages import train_loop
from edgesdk.stages.base import Context
from edgesdk.stages.forward import no_denormals, predict
from edgesdk.stages.targets import recovery_loss
from edgesdk.stages.train import TrainingOptions, fit
from edgesdk.stages.train_batches import epoch_batches, sorted_batches, take_rows
from edgesdk.stages.train_loop import rate, structural_zeros
from edgesdk.stages.train_optimizer import Optimizer
from edgesdk.stages.train_state import Checkpoint, random_states, restore_random_states
from edgesdk.testing.models import BERT, BERT_MEAN, FEATURES, VIT, random_context, random_dataset, random_package
from edgesdk.transformer.module import Transformer, build, run, weights_of
from edgesdk.transformer.spec import TransformerSpec

FAST = TrainingOptions(alpha=1.0, epochs=2, batch=8, learning_rate=1e-3)


class Stopped(Exception):
    """What the tests stop a training with."""


def _context(spec: TransformerSpec = VIT, seed: int = 0, **changes: Any) -> Context:
    return dataclasses.replace(random_context(random_package(spec), seed=seed), **changes)


def _fit(context: Context, options: TrainingOptions = FAST, **arguments: Any) -> tuple[Transformer, float]:
    package: Package = context.teacher
    module = build(package.spec, package.weights)
    return module, fit(module, context, options, recovery_loss(context, options), what="test", **arguments)


def _equal(one: Transformer, other: Transformer) -> bool:
    first, second = weights_of(one), weights_of(other)
    return all((first[name] == second[name]).all() for name in first)


def test_learns_by_heart() -> None:
    data = random_dataset(VIT, 16)
    context = _context(train=data, validation=data)
    module, score = _fit(context, TrainingOptions(alpha=1.0, epochs=40, batch=8, learning_rate=3e-3))
    assert data.labels is not None
    assert score == accuracy(run(module, data.inputs), data.labels) > 0.9
    assert not module.training


@pytest.mark.parametrize("spec", [VIT, BERT, BERT_MEAN, FEATURES], ids=["vit", "bert", "bert_mean", "features"])
def test_loss_falls_for_every_kind_of_model(spec: TransformerSpec) -> None:
    """A disturbed model comes nearer to its teacher."""
    context = _context(spec)
    options = TrainingOptions(alpha=0.0, epochs=10, batch=8, learning_rate=2e-3)
    module = build(spec, context.teacher.weights)
    with torch.no_grad():
        for value in module.parameters():
            value.mul_(1 + 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    loss = recovery_loss(context, options)
    rows = torch.arange(24)
    assert context.train is not None
    batch = {name: torch.from_numpy(value) for name, value in context.train.inputs.items()}
    before = loss(module, batch, rows).item()
    fit(module, context, options, loss, what="test", score=lambda module: 0.0)
    assert loss(module, batch, rows).item() < 0.5 * before


def test_equal_seeds_give_equal_weights_and_others_do_not() -> None:
    context = _context(BERT)
    first, again, other = (_fit(dataclasses.replace(context, seed=seed))[0] for seed in (0, 0, 1))
    assert _equal(first, again)
    assert not _equal(first, other)


def test_global_random_state_neither_matters_nor_changes() -> None:
    context = _context()
    modules = [build(VIT, context.teacher.weights) for _ in range(2)]
    for seed, module in enumerate(modules):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        expected = torch.random.get_rng_state()
        fit(module, context, FAST, recovery_loss(context, FAST), what="test")
        assert torch.equal(torch.random.get_rng_state(), expected)
    assert _equal(*modules)


def _scored(figures: list[float], **changes: Any) -> tuple[Transformer, float, int]:
    """Train with given validation figures; returns the number of validations too."""
    given_figures, calls = iter(figures), []

    def score(module: Transformer) -> float:
        assert not module.training
        calls.append(module)
        return next(given_figures)

    module, best = _fit(_context(), FAST.model_copy(update={"epochs": 3.0, **changes}), score=score)
    return module, best, len(calls)


def test_best_weights_stay() -> None:
    """Figures 1, 3, 2 of three epochs: the weights are those after two. NaN is never best."""
    best, score, _ = _scored([1.0, 3.0, 2.0])
    last, _, _ = _scored([1.0, 2.0, 3.0])
    second, _, _ = _scored([1.0, 2.0, float("nan")])
    assert score == 3.0
    assert not _equal(best, last)
    assert _equal(best, second)


def test_score_that_is_no_number_can_be_kept(tmp_path: Path) -> None:
    figures = iter([float("nan"), 1.0])
    _, score = _fit(_context(checkpoints=tmp_path), score=lambda module: next(figures))
    assert score == 1.0


def test_early_stop_by_patience() -> None:
    assert _scored([2.0, 1.0, 3.0], patience=1)[1:] == (2.0, 2)
    assert _scored([2.0, 1.0, 3.0], patience=2)[1:] == (3.0, 3)


def test_parts_of_an_epoch() -> None:
    """24 rows in batches of 8, 1.34 epochs: 4 steps, validated after 3 and 4."""
    seen: list[tuple[int, int]] = []
    validated: list[int] = []

    def score(module: Transformer) -> float:
        validated.append(len([entry for entry in seen if entry[1] == 4]) + 1)
        return 1.0

    context = _context(progress=lambda what, done, total: seen.append((done, total)))
    _fit(context, FAST.model_copy(update={"epochs": 1.34}), score=score)
    assert [entry for entry in seen if entry[1] == 4] == [(step, 4) for step in (1, 2, 3, 4)]
    assert validated == [3, 4]


def test_progress_names_training_loss_and_score() -> None:
    texts: list[str] = []
    _fit(_context(progress=lambda what, done, total: texts.append(what)))
    assert texts[-1].startswith("test: loss ") and ", score " in texts[-1]


def test_only_chosen_parameters_are_trained() -> None:
    context = _context()
    module = build(VIT, context.teacher.weights)
    before = weights_of(module)
    loss = recovery_loss(context, FAST)
    fit(module, context, FAST, loss, what="test", parameters=[module.get_parameter("classifier.weight")])
    changed = {name for name, value in weights_of(module).items() if (value != before[name]).any()}
    assert changed == {"classifier.weight"}
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


def test_heads_learn_at_their_own_rate() -> None:
    """The first step of AdamW is the learning rate in size."""
    context = _context()
    options = FAST.model_copy(update={"epochs": 0.1, "head_learning_rate": 0.01})
    module, _ = _fit(context, options)
    moved = {name: np.abs(value - context.teacher.weights[name]).max() for name, value in weights_of(module).items()}
    assert moved["classifier.bias"] == pytest.approx(0.01, rel=0.01)
    assert moved["layers.0.ffn.up.bias"] == pytest.approx(0.001, rel=0.01)


def test_extra_is_trained_and_restored_with_the_best_weights() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.ones(1))

    context, extra = _context(), Scale()
    figures, seen = iter([3.0, 2.0]), []

    def loss(module: Transformer, batch: dict[str, Tensor], rows: Tensor) -> Tensor:
        return (module.trace(batch).output * extra.value).square().mean()

    def score(module: Transformer) -> float:
        seen.append(float(extra.value.detach()))
        return next(figures)

    fit(build(VIT, context.teacher.weights), context, FAST, loss, what="test", extra=extra, score=score)
    assert seen[0] != seen[1]
    assert float(extra.value.detach()) == seen[0]


def test_structural_zeros_stay() -> None:
    weights = dict(random_package(VIT).weights)
    pattern = np.random.default_rng(0).random(weights["layers.0.ffn.up.weight"].shape) < 0.5
    weights["layers.0.ffn.up.weight"] = np.where(pattern, 0, weights["layers.0.ffn.up.weight"]).astype(np.float32)
    spec = dataclasses.replace(VIT, sparse={"layers.0.ffn.up": "unstructured"})
    module, context = build(spec, weights), _context()
    assert list(structural_zeros(module)) == ["layers.0.ffn.up.weight"]
    fit(module, context, FAST, recovery_loss(context, FAST), what="test")
    trained = weights_of(module)["layers.0.ffn.up.weight"]
    assert ((trained == 0) == pattern).all()
    assert (trained != weights["layers.0.ffn.up.weight"])[~pattern].any()


def test_after_step_counts_and_sees_zeros_restored() -> None:
    calls: list[tuple[int, int]] = []
    _fit(_context(), after_step=lambda step, steps: calls.append((step, steps)))
    assert calls == [(step, 6) for step in range(1, 7)]


def test_refuses_no_data_and_a_loss_that_is_not_finite() -> None:
    context = _context()
    module = build(VIT, context.teacher.weights)
    with pytest.raises(StageError, match="--train-data"):
        fit(module, dataclasses.replace(context, train=None), FAST, lambda *_: torch.zeros(()), what="test")
    with pytest.raises(StageError, match="step 1 of 6"):
        fit(
            module, context, FAST, lambda module, batch, rows: module.trace(batch).output.sum() * float("nan"),
            what="test",
        )
    with pytest.raises(StageError, match="nothing to train"):
        fit(module, context, FAST, recovery_loss(context, FAST), what="test", parameters=[])


# The optimizer


def test_optimizer_is_adamw_with_clipping() -> None:
    """Against torch's plain AdamW, all parameters dense."""
    torch.manual_seed(0)
    own, reference = nn.Linear(5, 4), nn.Linear(5, 4)
    reference.load_state_dict(own.state_dict())
    optimizer = Optimizer(dict(own.named_parameters()), 1e-2, 5e-2, None)
    plain = torch.optim.AdamW(
        [{"params": [reference.weight], "weight_decay": 0.01}, {"params": [reference.bias], "weight_decay": 0.0}],
        lr=1e-2, foreach=False,
    )
    for _ in range(5):
        inputs = torch.randn(16, 5)
        for module in (own, reference):
            module.zero_grad()
            (10 * module(inputs).square().mean()).backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step(1.0)
        plain.step()
    torch.testing.assert_close(own.weight, reference.weight)
    torch.testing.assert_close(own.bias, reference.bias)


def test_table_rows_move_as_by_sparse_adam_and_others_do_not_move() -> None:
    torch.manual_seed(0)
    own, reference = nn.Embedding(9, 4, sparse=True), nn.Embedding(9, 4, sparse=True)
    reference.load_state_dict(own.state_dict())
    before = own.weight.detach().clone()
    optimizer = Optimizer(dict(own.named_parameters()), 1e-2, 1e-2, "weight")
    plain = torch.optim.SparseAdam(reference.parameters(), lr=1e-2)
    for ids in ([1, 1, 2], [2, 5], [1, 7]):
        for module in (own, reference):
            module.zero_grad()
            module(torch.tensor(ids)).square().sum().mul(0.01).backward()
        optimizer.step(1.0)
        plain.step()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(own.weight, reference.weight)
    still = [row for row in range(9) if row not in (1, 2, 5, 7)]
    assert torch.equal(own.weight[still], before[still])
    assert not torch.equal(own.weight, before)


def test_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    rates = [rate(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] < 0.001
    assert all(later <= earlier for earlier, later in zip(rates[10:], rates[11:], strict=False))
    assert [rate(step, 1) for step in (0, 1)] == pytest.approx([1.0, 1.0])


# Batches


def _text(lengths: list[int], width: int) -> dict[str, NDArray[Any]]:
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
    return {"input_ids": np.arange(len(lengths) * width).reshape(-1, width) * mask, "attention_mask": mask}


@given(st.lists(st.integers(1, 12), min_size=1, max_size=300), st.integers(1, 5), st.integers(0, 3))
def test_an_epoch_has_each_row_once(lengths: list[int], batch: int, seed: int) -> None:
    inputs = _text(lengths, 12)
    batches = epoch_batches(inputs, batch, seed, epoch=2)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch)
    assert max(len(rows) for rows in batches) <= batch
    assert [rows.tolist() for rows in epoch_batches(inputs, batch, seed, 2)] == [rows.tolist() for rows in batches]
    assert sorted(np.concatenate(sorted_batches(inputs, batch)).tolist()) == list(range(len(lengths)))


def test_batches_hold_rows_of_similar_length_in_random_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 33, 640).tolist()
    batches = epoch_batches(_text(lengths, 32), 16, 0, 0)
    longest = [max(lengths[row] for row in rows) for rows in batches]
    assert sum(longest) < 0.6 * 32 * len(batches)
    assert longest != sorted(longest)
    other = epoch_batches(_text(lengths, 32), 16, 0, 1)
    assert [rows.tolist() for rows in other] != [rows.tolist() for rows in batches]


def test_rows_are_cut_to_the_longest() -> None:
    inputs = _text([3, 5, 1], 8)
    taken = take_rows(inputs, np.array([0, 2]))
    assert taken["input_ids"].shape == (2, 3)
    assert (taken["input_ids"] == inputs["input_ids"][[0, 2], :3]).all()
    assert take_rows(_text([0], 8), np.array([0]))["input_ids"].shape == (1, 1)
    pixels = {"pixel_values": np.zeros((4, 1, 8, 8), np.float32)}
    assert take_rows(pixels, np.array([1]))["pixel_values"].shape == (1, 1, 8, 8)


def test_trimming_and_sorting_change_no_output() -> None:
    for spec in (BERT, BERT_MEAN):
        package, data = random_package(spec), random_dataset(spec, 30)
        module = build(spec, package.weights)
        found = predict(module, data.inputs, module, batch=4).numpy()
        np.testing.assert_allclose(found, run(module, data.inputs), atol=1e-5)


def test_denormals_are_back_after_nested_blocks() -> None:
    tiny = torch.full((8,), 1e-39)
    with no_denormals():
        with no_denormals():
            assert float((tiny * 1.0).sum()) == 0.0
        assert float((tiny * 1.0).sum()) == 0.0
    assert float((tiny * 1.0).sum()) > 0.0


# Resuming


def _stopped(context: Context, at: int, monkeypatch: pytest.MonkeyPatch, options: TrainingOptions = FAST) -> None:
    """Train with a checkpoint at each step and break off in the step after `at`."""
    monkeypatch.setattr(train_loop, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)

    def stop(what: str, done: int, total: int) -> None:
        if total > 1 and done > at:
            raise Stopped

    with pytest.raises(Stopped):
        _fit(dataclasses.replace(context, progress=stop), options)


@pytest.mark.parametrize("at", [1, 3, 4])
def test_resumed_training_ends_with_the_same_bytes(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = _context(BERT)
    expected, score = _fit(context)
    context = dataclasses.replace(context, checkpoints=tmp_path)
    _stopped(context, at, monkeypatch)
    assert len(list(tmp_path.iterdir())) == 1
    steps: list[int] = []
    calls: list[int] = []
    resumed = dataclasses.replace(context, progress=lambda what, done, total: steps.append(done))
    module, found = _fit(resumed, after_step=lambda step, steps: calls.append(step))
    assert [step for step in steps if step] == list(range(at + 1, 7))
    assert calls == list(range(at, 7))
    assert _equal(module, expected) and found == score
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["seed", "options", "data", "calibration", "weights", "code"])
def test_state_of_another_training_is_not_used(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = _context(checkpoints=tmp_path)
    _stopped(context, 3, monkeypatch)
    options = FAST
    if change == "seed":
        context = dataclasses.replace(context, seed=1)
    elif change == "options":
        options = FAST.model_copy(update={"learning_rate": 2e-3})
    elif change == "data":
        context = dataclasses.replace(context, train=random_dataset(VIT, 24, 99))
    elif change == "calibration":
        context = dataclasses.replace(context, calibration=random_dataset(VIT, 24, 99))
    elif change == "code":  # that of the loss
        monkeypatch.setattr(train_loop, "code_digest", lambda module: str(module == "edgesdk.stages.targets"))
    else:
        context = dataclasses.replace(context, teacher=random_package(VIT, seed=1))
    steps: list[int] = []
    context = dataclasses.replace(context, progress=lambda what, done, total: steps.append(done))
    module, _ = _fit(context, options)
    assert [step for step in steps if step] == [1, 2, 3, 4, 5, 6]
    assert _equal(module, _fit(dataclasses.replace(context, checkpoints=None), options)[0])


@pytest.mark.parametrize(
    "damage", ["truncated", "json", "missing", "link", "key", "fields", "step", "shape", "random", "generator"]
)
def test_damaged_state_is_as_good_as_none(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints"
    context = _context(checkpoints=folder)
    expected, _ = _fit(dataclasses.replace(context, checkpoints=None))
    _stopped(context, 3, monkeypatch)
    (state,) = folder.iterdir()
    tensors, facts = state / "state.safetensors", state / "state.json"
    if damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif damage == "json":
        facts.write_text("{")
    elif damage == "missing":
        tensors.unlink()
    elif damage == "link":
        state.rename(tmp_path / "elsewhere")
        state.symlink_to(tmp_path / "elsewhere")
    elif damage == "key":
        facts.write_text(json.dumps({**json.loads(facts.read_text()), "key": "0" * 32}))
    elif damage == "fields":
        facts.write_text(json.dumps({**json.loads(facts.read_text()), "step": "many"}))
    elif damage == "step":
        facts.write_text(json.dumps({**json.loads(facts.read_text()), "step": -4}))
    elif damage in ("random", "generator"):
        held = load_file(tensors)
        held["random.cpu"] = held["random.cpu"][:-9] if damage == "random" else torch.full_like(held["random.cpu"], 255)
        save_file(held, tensors)
    else:
        checkpoint = Checkpoint(folder, state.name)
        checkpoint.write({"now.classifier.bias": torch.zeros(5)}, json.loads(facts.read_text()))
    module, _ = _fit(context)
    assert _equal(module, expected)


def test_random_numbers_of_a_gpu_are_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    device, put = torch.device("cuda"), []
    there = torch.arange(16, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: there)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: put.append(state))
    states = random_states(device)
    assert states.keys() == {"random.cpu", "random.cuda"}
    restore_random_states(states, device)
    assert put == [there]
    assert random_states(torch.device("cpu")).keys() == {"random.cpu"}


KILLED = """
    import dataclasses, os, signal, sys
    from pathlib import Path
    from edgesdk.stages import train_loop
    from edgesdk.stages.targets import recovery_loss
    from edgesdk.stages.train import TrainingOptions, fit
    from edgesdk.testing.models import BERT, random_context, random_package
    from edgesdk.transformer.module import build

    train_loop.SECONDS_BETWEEN_CHECKPOINTS = -1.0
    package = random_package(BERT)

    def stop(what, done, total):
        if total > 1 and done == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    context = dataclasses.replace(random_context(package), checkpoints=Path(sys.argv[1]), progress=stop)
    options = TrainingOptions(alpha=1.0, epochs=2, batch=8, learning_rate=1e-3)
    fit(build(package.spec, package.weights), context, options, recovery_loss(context, options), what="test")
"""


def test_killed_process_goes_on(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)], capture_output=True, check=False,
        env=environment, timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    context = _context(BERT)
    expected, _ = _fit(context)
    steps: list[int] = []
    context = dataclasses.replace(
        context, checkpoints=tmp_path, progress=lambda what, done, total: steps.append(done),
    )
    module, _ = _fit(context)
    assert [step for step in steps if step] == [5, 6]
    assert _equal(module, expected)
    assert list(tmp_path.iterdir()) == []


def test_data_without_labels_trains_encoders_only() -> None:
    context = _context(BERT_MEAN)
    assert context.training
    assert context.train is not None
    classifier = _context(train=Dataset(_context().validation.inputs, None))
    assert not classifier.training


def test_functional_cross_entropy_is_the_loss_with_hard_labels_alone() -> None:
    context = _context(BERT)
    assert context.train is not None and context.train.labels is not None
    module = build(BERT, context.teacher.weights)
    batch = {name: torch.from_numpy(value) for name, value in context.train.inputs.items()}
    expected = functional.cross_entropy(module(batch), torch.from_numpy(context.train.labels))
    found = recovery_loss(context, TrainingOptions(alpha=1.0))(module, batch, torch.arange(24))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
