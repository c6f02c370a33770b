"""From models and data to the fp32 baseline package."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesdk import demo
from edgesdk.data import Dataset
from edgesdk.errors import ConfigError, EdgeSDKError, ModelError
from edgesdk.evaluate import evaluate_package
from edgesdk.importing import CALIBRATION_ROWS, GOLDEN_ROWS, import_job
from edgesdk.package import Package, content_digest, read_package, write_package
from edgesdk.stages.base import silent
from edgesdk.testing.converters import sample_package
from edgesdk.testing.models import BERT, BERT_MEAN, FEATURES, SPECS, VIT, random_dataset, random_package
from edgesdk.transformer.module import build
from edgesdk.transformer.spec import TransformerSpec
from edgesdk.verify import verify


def _module(package: Package) -> Any:
    return build(package.spec, package.weights)


@pytest.mark.parametrize("kind", SPECS)
def test_module_becomes_a_package_that_verifies(kind: str) -> None:
    package = random_package(SPECS[kind])
    data = random_dataset(package.spec, 40)
    job = import_job(_module(package), data, None)
    verify(job.package)
    assert job.package.spec == package.spec
    assert job.package.graph == package.graph
    assert job.package.scheme == "fp32"
    assert len(job.package.samples.golden_reference) == GOLDEN_ROWS
    assert job.package.baseline.bytes == len(package.graph)
    assert job.package.baseline.n == 40
    assert job.package.baseline.accuracy == evaluate_package(job.package, data)
    assert {"edgesdk", "torch", "onnx", "numpy"} == set(job.package.environment)


def test_without_training_data_calibration_is_evaluation_data_and_said_so() -> None:
    data = random_dataset(VIT, CALIBRATION_ROWS + 20)
    job = import_job(_module(random_package(VIT)), data, None)
    assert job.train is None
    assert len(job.calibration) == CALIBRATION_ROWS
    assert job.calibration.digest == job.validation.digest == data.sample(CALIBRATION_ROWS, 0).digest
    (note,) = job.notes
    assert "no training data" in note
    assert "not independent" in note


def test_training_data_is_split_and_evaluation_data_stays_apart() -> None:
    data, train = random_dataset(VIT, 30), random_dataset(VIT, 100, seed=50)
    job = import_job(_module(random_package(VIT)), data, train)
    assert job.notes == ()
    assert job.train is not None
    assert (len(job.train), len(job.validation), len(job.evaluation)) == (90, 10, 30)
    rows = [{row.tobytes() for row in part.inputs["pixel_values"]} for part in (job.train, job.validation, data)]
    assert not rows[0] & rows[1]
    assert not (rows[0] | rows[1]) & rows[2]
    assert job.calibration.digest == job.train.digest


def test_equal_seeds_split_equally() -> None:
    package, data, train = random_package(VIT), random_dataset(VIT, 30), random_dataset(VIT, 100, seed=50)
    jobs = [import_job(_module(package), data, train, seed=seed) for seed in (1, 1, 2)]
    digests = [job.validation.digest for job in jobs]
    assert digests[0] == digests[1] != digests[2]
    assert content_digest(jobs[0].package) == content_digest(jobs[1].package)


def test_context_carries_the_job() -> None:
    job = import_job(_module(random_package(VIT)), random_dataset(VIT, 20), random_dataset(VIT, 30, seed=50))
    context = job.context(7, silent)
    assert (context.seed, context.teacher, context.train) == (7, job.package, job.train)
    assert context.training
    assert not dataclasses.replace(context, train=None).training


def test_package_is_a_model_too(tmp_path: Path) -> None:
    package = random_package(BERT)
    write_package(package, tmp_path / "mine.edgepkg")
    job = import_job(str(tmp_path / "mine.edgepkg"), random_dataset(BERT, 20), None)
    assert job.package.spec == package.spec
    assert job.package.name == package.name
    assert job.package.lineage == package.lineage
    for name, value in package.weights.items():
        np.testing.assert_array_equal(job.package.weights[name], value)


def test_quantized_package_is_refused(tmp_path: Path) -> None:
    write_package(sample_package("vit", "w8a8"), tmp_path / "q.edgepkg")
    with pytest.raises(ModelError, match="quantized"):
        import_job(str(tmp_path / "q.edgepkg"), random_dataset(VIT, 20), None)


def test_demo_is_the_default() -> None:
    job = import_job(None, None, None)
    assert job.package.name == read_package(demo.package_path()).name
    assert job.evaluation.digest == demo.test_data().digest
    assert job.train is not None
    assert job.package.baseline.accuracy is not None
    assert job.package.baseline.accuracy > 0.95


def test_name_is_the_callers() -> None:
    job = import_job(_module(random_package(VIT)), random_dataset(VIT, 20), None, name="my-name")
    assert job.package.name == "my-name"


def test_encoder_without_labels() -> None:
    job = import_job(_module(random_package(BERT_MEAN)), random_dataset(BERT_MEAN, 20), None)
    assert (job.package.task, job.package.metric) == ("encoding", "cosine")
    assert job.package.baseline.accuracy == pytest.approx(1.0, abs=1e-5)


def test_missing_data_is_told() -> None:
    with pytest.raises(ConfigError, match="no evaluation data"):
        import_job(_module(random_package(VIT)), None, None)


def _data(**changes: Any) -> Dataset:
    return dataclasses.replace(random_dataset(VIT, 12), **changes)


@pytest.mark.parametrize(
    "data",
    [
        _data(labels=None), _data(labels=np.full(12, 5)), _data(labels=np.zeros(3, np.int64)),
        _data(inputs={}), _data(inputs={"pixel_values": np.zeros((12, 3, 8, 8), np.float32)}),
        _data(inputs={"input_ids": np.zeros((12, 4), np.int64)}),
        _data(inputs={"pixel_values": np.full((12, 1, 8, 8), np.nan, np.float32)}),
        random_dataset(VIT, 0),
    ],
    ids=["no labels", "label out of range", "too few labels", "no inputs", "channels", "other inputs", "nan", "empty"],
)
def test_data_objects_are_checked(data: Dataset) -> None:
    with pytest.raises(ConfigError):
        import_job(_module(random_package(VIT)), data, None)
    with pytest.raises(ConfigError):
        import_job(_module(random_package(VIT)), random_dataset(VIT, 12), data)


@pytest.mark.parametrize("model", ["nowhere", "nowhere.edgepkg", "no_module:function", 7, object(), ""])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(EdgeSDKError):
        import_job(model, random_dataset(VIT, 12), None)


def _cut(data: Dataset, sequence: int) -> Dataset:
    return dataclasses.replace(data, inputs={name: value[:, :sequence] for name, value in data.inputs.items()})


@pytest.mark.parametrize(
    "spec", [BERT, dataclasses.replace(FEATURES, pooling="mean", classes=3)], ids=["tokens", "features"]
)
def test_data_of_two_lengths_is_refused(spec: TransformerSpec) -> None:
    """Samples of one package have one sequence: mixed ones must not become a broken package."""
    model, data = _module(random_package(spec)), random_dataset(spec, 20)
    with pytest.raises(ConfigError, match="rows of 8 tokens, expected 5"):
        import_job(model, _cut(data, 5), data)
    with pytest.raises(ConfigError, match="rows of 8 tokens, expected 6"):
        import_job(model, data, None, sequence=6)
    assert import_job(model, _cut(data, 5), _cut(data, 5)).package.sequence == 5


def test_array_files_are_fitted_to_the_sequence(tmp_path: Path) -> None:
    data, train = random_dataset(BERT, 20), _cut(random_dataset(BERT, 30, seed=50), 5)
    for name, part in (("data", data), ("train", train)):
        assert part.labels is not None
        arrays: dict[str, Any] = {"labels": part.labels, **part.inputs}
        np.savez(tmp_path / f"{name}.npz", **arrays)
    model = _module(random_package(BERT))
    job = import_job(model, str(tmp_path / "data.npz"), str(tmp_path / "train.npz"), sequence=10)
    assert job.package.sequence == 10
    lengths = {part.inputs["input_ids"].shape[1] for part in (job.evaluation, job.validation, job.calibration)}
    assert lengths == {10}
