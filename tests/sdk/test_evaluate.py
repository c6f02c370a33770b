"""Judging outputs: figures against hand, brute force and scipy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edgesdk import evaluate
from edgesdk.bounds import mean_lower95, wilson_lower95
from edgesdk.data import Dataset
from edgesdk.errors import VerifyError
from edgesdk.evaluate import (
    accuracy,
    cosines,
    evaluate_package,
    golden_outputs,
    run_graph,
    run_rows,
    sqnr_db,
)
from edgesdk.testing.converters import sample_package
from edgesdk.testing.models import VIT, random_dataset, random_package
from edgesdk.transformer.spec import Exit


def test_accuracy_by_hand() -> None:
    outputs = np.array([[1, 2, 3], [3, 2, 1], [0, 5, 0], [1, 1, 0]], np.float32)
    assert accuracy(outputs, np.array([2, 1, 1, 0])) == 0.75


def test_cosines_by_hand() -> None:
    left = np.array([[1, 0], [1, 1], [0, 0], [-2, 0]], np.float32)
    right = np.array([[2, 0], [1, 0], [1, 0], [1, 0]], np.float32)
    np.testing.assert_allclose(cosines(left, right), [1, math.sqrt(0.5), 0, -1], atol=1e-7)


def test_cosines_are_over_all_values_of_a_row() -> None:
    left, right = np.ones((2, 3, 4), np.float32), np.ones((2, 3, 4), np.float32)
    right[1, 0] = 0
    np.testing.assert_allclose(cosines(left, right), [1, math.sqrt(8 / 12)])


def test_sqnr_by_hand() -> None:
    reference = np.array([3.0, 4.0])
    assert sqnr_db(reference, np.array([3.0, 4.5])) == pytest.approx(20.0)
    assert sqnr_db(reference, reference) == math.inf
    assert sqnr_db(np.zeros(2), np.ones(2)) < -1000


@given(st.integers(1, 500), st.data())
def test_wilson_bound_is_scipys(count: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, count))
    expected = stats.binomtest(right, count, alternative="greater").proportion_ci(0.95, "wilson").low
    assert wilson_lower95(right / count, count) == pytest.approx(expected, abs=1e-9)


def test_wilson_bound_of_nothing_is_zero() -> None:
    assert wilson_lower95(1.0, 0) == 0.0


def test_mean_bound_by_hand() -> None:
    values = np.array([0.9, 1.0, 0.8, 0.9])
    expected = 0.9 - stats.norm.ppf(0.95) * values.std(ddof=1) / 2
    assert mean_lower95(values) == pytest.approx(expected)
    assert mean_lower95(np.array([0.7])) == 0.7


def test_batches_do_not_matter_where_scales_are_fixed() -> None:
    package = sample_package("vit", "w8a8")
    inputs = random_dataset(package.spec, 7).inputs
    whole = run_graph(package.graph, inputs, optimize=False)
    for batch in (1, 3, 7, 100):
        assert sqnr_db(whole, run_graph(package.graph, inputs, optimize=False, batch=batch)) > 40


@pytest.mark.parametrize("graph", [b"", b"junk"])
def test_file_that_onnxruntime_refuses(graph: bytes) -> None:
    with pytest.raises(VerifyError, match="ONNX Runtime"):
        run_graph(graph, {"x": np.zeros((1, 1), np.float32)})


def test_inputs_that_onnxruntime_refuses() -> None:
    package = sample_package("vit", "fp32")
    with pytest.raises(VerifyError, match="ONNX Runtime"):
        run_graph(package.graph, {"pixel_values": np.zeros((1, 3, 8, 8), np.float32)})


@pytest.mark.parametrize(("threshold", "batch"), [(None, 64), (0.9, 1)])
def test_rows_run_alone_where_the_graph_holds_an_exit(
    threshold: float | None, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exit without a threshold is in no graph, so nothing there follows the batch."""
    layers = (dataclasses.replace(VIT.layers[0], exit=Exit(threshold=threshold)), VIT.layers[1])
    package = random_package(dataclasses.replace(VIT, layers=layers))
    batches = []

    def spy(graph: bytes, inputs: Mapping[str, Any], batch: int) -> Any:
        batches.append(batch)
        return run_graph(graph, inputs, batch=batch)

    monkeypatch.setattr(evaluate, "run_graph", spy)
    assert len(run_rows(package, package.samples.golden_inputs)) == 3
    assert batches == [batch]


def test_golden_outputs_are_float_and_own() -> None:
    for scheme in ("fp32", "w8a8"):
        package = sample_package("vit", scheme)
        samples = package.samples
        golden_float, own = golden_outputs(
            package.spec, package.weights, package.graph, scheme != "fp32", samples.golden_inputs
        )
        np.testing.assert_allclose(golden_float, samples.golden_float, atol=1e-6)
        np.testing.assert_allclose(own, samples.golden_outputs, atol=1e-6)
        assert (np.abs(own - golden_float).max() > 1e-4) == (scheme != "fp32")


def test_metric_of_a_classifier_is_accuracy() -> None:
    package = sample_package("vit", "fp32")
    data = random_dataset(package.spec, 20)
    labels = run_graph(package.graph, data.inputs).argmax(1)
    labels[:5] = (labels[:5] + 1) % 5
    assert evaluate_package(package, Dataset(data.inputs, labels)) == 0.75
    assert evaluate_package(package, Dataset(data.inputs, None)) is None


def test_metric_of_an_encoder_is_cosine_to_its_float_self() -> None:
    package = sample_package("bert_mean", "fp32")
    data = random_dataset(package.spec, 8)
    assert evaluate_package(package, data) == pytest.approx(1.0, abs=1e-6)
    quantized = sample_package("bert_mean", "w8a8")
    value = evaluate_package(quantized, data)
    assert value is not None
    assert 0.9 < value < 0.99999
    assert dataclasses.replace(data).labels is None
