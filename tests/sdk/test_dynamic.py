"""Dynamic inference: who leaves where against a slow reference, MACs by hand, figures against the package's graph."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgesdk.dynamic_report import (
    dynamic_figures,
    dynamic_metrics,
    leave,
    lengths_of,
    macs_mean_share,
    row_macs,
    trace_package,
    without_choices,
)
from edgesdk.package import Package
from edgesdk.stages import run_stage
from edgesdk.stages.quantize_ptq import QuantizePtq, QuantizePtqOptions
from edgesdk.testing.models import BERT, VIT, random_context, random_dataset, random_package
from edgesdk.transformer.dynamic import Trace, choose, leaves, straight_through
from edgesdk.transformer.module import build
from edgesdk.transformer.spec import Criterion, Exit, TransformerSpec, is_dynamic

DEPTH = 4


def with_exits(base: TransformerSpec, exits: Mapping[int, Exit], gates: tuple[int, ...] = ()) -> TransformerSpec:
    """A model of four layers with these exits and gates."""
    layers = tuple(
        dataclasses.replace(base.layers[index % 2], exit=exits.get(index), gate=index in gates)
        for index in range(DEPTH)
    )
    return dataclasses.replace(base, layers=layers)


def slow_leaves(exit_: Exit, history: list[list[float]]) -> bool:
    """One row: the logits of the exits so far."""
    if exit_.threshold is None:
        return False
    largest = max(history[-1])
    powers = [math.exp(value - largest) for value in history[-1]]
    probabilities = [value / sum(powers) for value in powers]
    if exit_.criterion == "confidence":
        return max(probabilities) >= exit_.threshold
    if exit_.criterion == "entropy":
        entropy = -sum(p * math.log(p) for p in probabilities if p > 0)
        return entropy / math.log(len(probabilities)) <= exit_.threshold
    count = int(exit_.threshold)
    answers = [logits.index(max(logits)) for logits in history]
    return len(answers) > count and all(answer == answers[-1] for answer in answers[-1 - count :])


@pytest.mark.parametrize(
    ("criterion", "threshold"),
    [("confidence", 0.7), ("confidence", 1.0), ("entropy", 0.5), ("patience", 0.0), ("patience", 1.0),
     ("patience", 2.0), ("patience", 3.0)],
)
def test_choice_against_a_slow_reference(criterion: Criterion, threshold: float) -> None:
    spec = with_exits(BERT, {index: Exit(criterion, threshold) for index in range(3)})
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(50, 3, generator=generator)
    exits = {index: 3 * torch.randn(50, 3, generator=generator) for index in range(3)}
    answers, left = choose(spec, Trace(output, exits, {}))
    seen = set()
    for row in range(50):
        history: list[list[float]] = []
        expected, where = output[row], DEPTH - 1
        for index in range(3):
            history.append(exits[index][row].tolist())
            if slow_leaves(Exit(criterion, threshold), history):
                expected, where = exits[index][row], index
                break
        assert int(left[row]) == where
        assert torch.equal(answers[row], expected)
        seen.add(where)
    if threshold not in (1.0, 0.0, 3.0) or (criterion, threshold) == ("patience", 1.0):
        assert len(seen) > 1  # the reference was asked something


def test_exits_without_a_threshold_let_nothing_leave_and_are_no_witnesses() -> None:
    spec = with_exits(BERT, {0: Exit("patience"), 1: Exit("patience", 1.0), 2: Exit("patience", 1.0)})
    same = torch.tensor([[5.0, 0.0, 0.0]])
    _, left = choose(spec, Trace(-same, {0: same, 1: same, 2: same}, {}))
    assert left.tolist() == [2]
    assert not leaves(Exit("confidence"), [same]).any()


def test_straight_through_steps_forward_and_slides_backward() -> None:
    logits = torch.tensor([-2.0, -0.1, 0.1, 3.0], requires_grad=True)
    gates = straight_through(logits, True)
    assert gates.tolist() == pytest.approx([0, 0, 1, 1])
    gates.sum().backward()  # type: ignore[no-untyped-call]
    sigmoid = torch.sigmoid(logits.detach())
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, sigmoid * (1 - sigmoid))


def test_macs_by_hand() -> None:
    """H 16, C 3, pooler; layers of 2 × 8 heads and F 32, 1 × 8 heads and F 20, in turn."""
    spec = with_exits(BERT, {0: Exit("confidence", 0.5), 1: Exit("confidence"), 2: Exit("confidence", 0.5)}, (1,))

    def wide(tokens: int) -> int:
        return tokens * (4 * 16 * 16 + 2 * 16 * 32) + 2 * tokens * tokens * 16

    def narrow(tokens: int) -> int:
        return tokens * (3 * 16 * 8 + 8 * 16 + 2 * 16 * 20) + 2 * tokens * tokens * 8

    exit_, gate, head = 16 * 3, 16, 16 * 16 + 16 * 3
    lengths, left = np.array([8, 5, 5, 1]), np.array([0, 2, 3, 3])
    gates = {1: np.array([1.0, -1.0, 1.0, 0.0])}
    expected = [
        wide(8) + exit_,
        wide(5) + exit_ + gate + wide(5) + exit_,
        wide(5) + exit_ + gate + narrow(5) + wide(5) + exit_ + narrow(5) + head,
        wide(1) + exit_ + gate + wide(1) + exit_ + narrow(1) + head,
    ]
    assert row_macs(spec, lengths, left, gates).tolist() == expected
    through = row_macs(spec, lengths)
    assert through.tolist() == [spec.macs(int(length)) for length in lengths]
    plain = row_macs(without_choices(spec), lengths)
    assert (through - plain).tolist() == [gate + 2 * exit_] * 4


def test_patches_and_projection_count_whatever_leaves() -> None:
    spec = with_exits(VIT, {0: Exit("confidence", 0.5)})
    first = row_macs(spec, np.array([5]), np.array([0]))[0]
    assert first == 4 * 16 * 16 + spec.layer_macs(0, 5) + 16 * 5


def test_lengths_leave_padding_out() -> None:
    data = random_dataset(BERT, 10)
    assert lengths_of(BERT, data).tolist() == data.inputs["attention_mask"].sum(1).tolist()
    assert lengths_of(VIT, random_dataset(VIT, 3)).tolist() == [5, 5, 5]


def dynamic_package(base: TransformerSpec, scheme: str) -> Package:
    exits = {0: Exit("confidence", 0.6), 1: Exit("confidence"), 2: Exit("confidence", 0.5)}
    package = random_package(with_exits(base, exits, (1, 3)))
    if scheme == "fp32":
        return package
    stage = QuantizePtq(QuantizePtqOptions.model_validate({"scheme": scheme}))
    return run_stage(stage, package, random_context(package))


@pytest.mark.parametrize("base", [BERT, VIT], ids=["bert", "vit"])
@pytest.mark.parametrize("scheme", ["fp32", "w8a8", "w8a8-dynamic"])
def test_traced_rows_leave_where_the_graph_lets_them_leave(base: TransformerSpec, scheme: str) -> None:
    package = dynamic_package(base, scheme)
    data = random_dataset(package.spec, 24, 5)
    traced = trace_package(package, data)
    output, left = leave(package.spec, traced)
    graph_output, graph_left = run_rows(package, data.inputs)
    # A row on the edge of a threshold may go either way in float.
    same = left == graph_left
    assert same.mean() >= 0.95
    np.testing.assert_allclose(output[same], graph_output[same], atol=2e-2 if package.encodings else 1e-4)
    assert len(set(left.tolist())) > 1
    assert set(traced.exits) == {0, 1, 2}
    assert set(traced.gates) == {1, 3}


def run_rows(package: Package, inputs: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The two outputs of the graph, row by row, each cut to its own length."""
    import onnxruntime

    session = onnxruntime.InferenceSession(package.graph, providers=["CPUExecutionProvider"])
    outputs, left = [], []
    for row in range(len(next(iter(inputs.values())))):
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        if "attention_mask" in one:
            length = int(one["attention_mask"].sum())
            one = {name: np.ascontiguousarray(value[:, :length]) for name, value in one.items()}
        answer, where = session.run(None, one)
        outputs.append(answer[0])
        left.append(where[0])
    return np.array(outputs), np.array(left)


def test_order_of_rows_is_kept_over_batches_of_like_length() -> None:
    package = random_package(with_exits(BERT, {1: Exit("confidence", 0.6)}))
    data = random_dataset(package.spec, 150, 3)
    traced = trace_package(package, data)
    module = build(package.spec, package.weights)
    with torch.inference_mode():
        whole = module.trace({name: torch.from_numpy(value) for name, value in data.inputs.items()})
    np.testing.assert_allclose(traced.output, whole.output.numpy(), atol=1e-4)
    np.testing.assert_allclose(traced.exits[1], whole.exits[1].numpy(), atol=1e-4)


def test_figures_add_up() -> None:
    spec = with_exits(BERT, {0: Exit("confidence", 0.6), 2: Exit("confidence", 0.5)}, (1,))
    package, data = random_package(spec), random_dataset(spec, 200, 1)
    traced = trace_package(package, data)
    figures = dynamic_figures(package, data)
    _, left = leave(spec, traced)
    macs = row_macs(spec, lengths_of(spec, data), left, traced.gates)
    assert figures.rows == 200
    assert figures.macs_mean == pytest.approx(macs.mean())
    assert figures.macs_p50 <= figures.macs_p90 <= figures.macs_p99 <= macs.max()
    assert {figures.macs_p50, figures.macs_p90, figures.macs_p99} <= set(map(float, macs))  # real rows, not between
    assert sum(figures.left.values()) == pytest.approx(1)
    assert list(figures.left) == [0, 2, 3]
    assert figures.runs[1] == pytest.approx((traced.gates[1][left >= 1] > 0).mean())
    assert figures.share == pytest.approx(figures.macs_mean / figures.macs_full)
    narrow = random_package(BERT)
    expected = figures.macs_mean / np.mean([BERT.macs(int(length)) for length in lengths_of(BERT, data)])
    assert macs_mean_share(figures, narrow, data) == pytest.approx(expected)
    document = figures.to_json()
    assert document["left"]["0"] == round(figures.left[0], 6)
    assert set(dynamic_metrics(package, data)) == {
        "macs_mean", "macs_p50", "macs_p90", "macs_p99", "macs_share", "left.0", "left.2", "left.3", "runs.1",
    }


def test_plain_models_have_no_dynamic_figures() -> None:
    package = random_package(BERT)
    assert not is_dynamic(package.spec)
    assert dynamic_metrics(package, random_dataset(BERT, 4)) == {}
    figures = dynamic_figures(package, random_dataset(BERT, 4))
    assert (figures.share, dict(figures.left)) == (1.0, {1: 1.0})
    assert not is_dynamic(with_exits(BERT, {0: Exit("confidence")}))
