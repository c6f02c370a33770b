"""The training loop: schedule, best weights, repeatable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgesdk.data import Dataset
from edgesdk.evaluate import accuracy
from edgesdk.stages.train import Schedule, _rate, train
from edgesdk.testing.models import VIT, random_dataset, random_weights
from edgesdk.transformer.module import Transformer, build, run, weights_of


def _labels(data: Dataset) -> NDArray[np.int64]:
    assert data.labels is not None
    return data.labels


def _train(data: Dataset, schedule: Schedule, seed: int = 0, figures: list[float] | None = None) -> Transformer:
    module = build(VIT, random_weights(VIT))
    labels = _labels(data)
    given = iter(figures or [])

    def loss(outputs: torch.Tensor, rows: NDArray[np.int64]) -> torch.Tensor:
        return functional.cross_entropy(outputs, torch.from_numpy(labels[rows]))

    def validate(outputs: NDArray[Any]) -> float:
        return next(given) if figures else accuracy(outputs, labels)

    train(module, data, loss, schedule, seed, validate, data)
    return module


def test_learns_by_heart() -> None:
    data = random_dataset(VIT, 16)
    module = _train(data, Schedule(epochs=30, batch=8, learning_rate=3e-3))
    assert accuracy(run(module, data.inputs), _labels(data)) > 0.9


def test_equal_seeds_give_equal_weights_and_others_do_not() -> None:
    data = random_dataset(VIT, 16)
    schedule = Schedule(epochs=1, batch=4, learning_rate=1e-3)
    first, again, other = (weights_of(_train(data, schedule, seed)) for seed in (0, 0, 1))
    assert all((first[name] == again[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


def test_seed_of_the_caller_is_left_alone_by_the_order_of_rows() -> None:
    """Rows come from a generator of the stage's own: numpy's global state does not matter."""
    data = random_dataset(VIT, 16)
    schedule = Schedule(epochs=1, batch=4, learning_rate=1e-3)
    np.random.seed(1)  # noqa: NPY002
    first = weights_of(_train(data, schedule))
    np.random.seed(2)  # noqa: NPY002
    again = weights_of(_train(data, schedule))
    assert all((first[name] == again[name]).all() for name in first)


def test_best_weights_stay() -> None:
    """Figures 1, 3, 2 of three epochs: the weights are those after two."""
    data = random_dataset(VIT, 16)
    long = Schedule(epochs=3, batch=8, learning_rate=1e-3)
    best = weights_of(_train(data, long, figures=[1.0, 3.0, 2.0]))
    last = weights_of(_train(data, long, figures=[1.0, 2.0, 3.0]))
    second = weights_of(_train(data, long, figures=[1.0, 2.0, float("nan")]))
    assert any((best[name] != last[name]).any() for name in best)
    assert all((best[name] == second[name]).all() for name in best)


def test_module_is_ready_to_run_after_training() -> None:
    module = _train(random_dataset(VIT, 8), Schedule(epochs=1, batch=8, learning_rate=1e-3))
    assert not module.training


def test_progress_counts_every_step() -> None:
    data, seen = random_dataset(VIT, 10), []
    train(
        build(VIT, random_weights(VIT)), data, lambda outputs, rows: outputs.square().mean(),
        Schedule(epochs=2, batch=4, learning_rate=1e-3), 0, lambda outputs: 0.0, data,
        lambda what, done, total: seen.append((done, total)),
    )
    assert seen == [(step, 6) for step in range(1, 7)]


def test_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    rates = [_rate(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] < 0.001
    assert all(later <= earlier for earlier, later in zip(rates[10:], rates[11:], strict=False))
    assert [_rate(step, 1, 0.1) for step in (0, 1)] == pytest.approx([1.0, 1.0])
