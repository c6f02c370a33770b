"""Candidates: one for each recipe and converter, refused with reasons or judged on what the board answered."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgesdk import candidates as candidates_module
from edgesdk.bounds import mean_lower95, wilson_lower95
from edgesdk.candidates import (
    EMULATED_MACS,
    EMULATED_ROWS,
    Candidate,
    evaluation_sample,
    judge,
    make_candidates,
    record_candidate,
)
from edgesdk.converters import onnx as onnx_converter
from edgesdk.converters.artifact import read_artifact
from edgesdk.data import Dataset
from edgesdk.errors import ConvertError
from edgesdk.stages.base import silent
from edgesdk.targets import load_target
from edgesdk.testing.converters import sample_package
from edgesdk.testing.models import random_dataset


def _make(folder: Path, **packages: Any) -> list[Candidate]:
    return make_candidates(packages, load_target("host"), ["onnx"], folder, silent)


def test_each_recipe_and_converter_is_a_candidate(tmp_path: Path) -> None:
    found = _make(tmp_path, fp32=sample_package("vit", "fp32"), int8=sample_package("vit", "w8a8"))
    assert [(item.name, item.recipe, item.converter, item.scheme) for item in found] == [
        ("fp32-onnx", "fp32", "onnx", "fp32"), ("int8-onnx", "int8", "onnx", "w8a8")]
    for item in found:
        assert item.refused == ()
        assert item.artifact == read_artifact(item.folder)
        assert item.folder == tmp_path / item.name


def test_refused_candidate_keeps_its_reasons_and_leaves_no_folder(tmp_path: Path) -> None:
    target = load_target("host").model_copy(update={"schemes": ("fp32",)})
    packages = {"fp32": sample_package("vit", "fp32"), "int8": sample_package("vit", "w8a8")}
    plain, refused = make_candidates(packages, target, ["onnx"], tmp_path, silent)
    assert plain.artifact is not None
    assert refused.artifact is None
    assert "w8a8" in refused.refused[0]
    assert [path.name for path in tmp_path.iterdir()] == ["fp32-onnx"]


def test_converter_that_fails_refuses_one_candidate_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = onnx_converter.convert

    def failing(package: Any, target: Any, folder: Path) -> Any:
        if package.scheme == "w8a8":
            (folder / "half").write_bytes(b"half")
            raise ConvertError("no such kernel", "another target")
        return convert(package, target, folder)

    monkeypatch.setattr(
        candidates_module, "converter",
        lambda name: SimpleNamespace(scheme=None, check=onnx_converter.check, convert=failing),
    )
    broken, plain = _make(tmp_path, int8=sample_package("vit", "w8a8"), fp32=sample_package("vit", "fp32"))
    assert broken.artifact is None
    assert "no such kernel" in broken.refused[0]
    assert plain.artifact is not None
    assert [path.name for path in tmp_path.iterdir()] == ["fp32-onnx"]


def test_progress_counts_candidates(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    packages = {"fp32": sample_package("vit", "fp32"), "int8": sample_package("vit", "w8a8")}
    make_candidates(
        packages, load_target("host"), ["onnx"], tmp_path, lambda what, done, total: seen.append((what, done, total))
    )
    assert [(done, total) for _, done, total in seen] == [(0, 2), (1, 2)]
    assert "int8-onnx" in seen[1][0]


def test_all_rows_are_evaluated_on_a_real_board() -> None:
    package = sample_package("vit", "fp32")
    data = random_dataset(package.spec, 50)
    assert evaluation_sample(data, package, emulated=False, seed=0) is data
    assert evaluation_sample(data, package, emulated=True, seed=0) is data  # a tiny model


def test_emulated_board_evaluates_a_seeded_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    package = sample_package("vit", "fp32")
    data = random_dataset(package.spec, 200)
    monkeypatch.setattr(candidates_module, "EMULATED_MACS", package.spec.macs(package.sequence) * 20.5)
    first, again, other = (evaluation_sample(data, package, emulated=True, seed=seed) for seed in (1, 1, 2))
    assert len(first) == 20
    assert first.digest == again.digest != other.digest
    monkeypatch.setattr(candidates_module, "EMULATED_MACS", 1.0)
    assert len(evaluation_sample(data, package, emulated=True, seed=1)) == EMULATED_ROWS
    assert EMULATED_MACS > 1e8


def test_sample_is_rows_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    package = sample_package("vit", "fp32")
    data = random_dataset(package.spec, 60)
    assert data.labels is not None
    monkeypatch.setattr(candidates_module, "EMULATED_MACS", 1.0)
    sample = evaluation_sample(data, package, emulated=True, seed=3)
    assert sample.labels is not None
    pairs, chosen = (
        {(pixels.tobytes(), int(label)) for pixels, label in zip(part.inputs["pixel_values"], labels, strict=True)}
        for part, labels in ((data, data.labels), (sample, sample.labels))
    )
    assert len(chosen) == EMULATED_ROWS
    assert chosen <= pairs


def test_judged_accuracy_by_hand() -> None:
    labels = np.array([0, 1, 1, 0])
    data = Dataset({"x": np.zeros((4, 1), np.float32)}, labels)
    outputs, reference = np.eye(2, dtype=np.float32)[[0, 1, 0, 0]], np.eye(2, dtype=np.float32)[labels]
    record = judge(outputs, data, "accuracy", reference, "measured")
    assert record is not None
    assert (record.value, record.n, record.provenance) == (0.75, 4, "measured")
    assert record.lower95 == wilson_lower95(0.75, 4)
    assert dataclasses.astuple(record)[-1] == 1.0
    assert judge(outputs, Dataset(data.inputs, None), "accuracy", reference, "measured") is None


def test_judged_cosine_by_hand() -> None:
    data = Dataset({"x": np.zeros((2, 1), np.float32)}, None)
    reference = np.array([[1, 0], [0, 1]], np.float32)
    outputs = np.array([[2, 0], [1, 1]], np.float32)
    record = judge(outputs, data, "cosine", reference, "emulated")
    assert record is not None
    values = np.array([1, np.sqrt(0.5)])
    assert record.value == pytest.approx(values.mean())
    assert record.lower95 == pytest.approx(mean_lower95(values))


def test_record_reads_the_boards_raw_outputs(tmp_path: Path) -> None:
    package = sample_package("vit", "fp32")
    (candidate,) = _make(tmp_path / "artifacts", fp32=package)
    data = random_dataset(package.spec, 6)
    assert data.labels is not None
    outputs = np.eye(5, dtype=np.float32)[data.labels]
    outputs[0] = np.roll(outputs[0], 1)
    digest = record_candidate(candidate, {}, tmp_path, data, "accuracy", outputs).sha256
    assert digest is not None
    (tmp_path / digest).mkdir()
    outputs.astype("<f4").tofile(tmp_path / digest / "outputs.bin")
    measurement = {"evaluation": {"outputs": "outputs.bin", "provenance": "measured"}, "built": "by the board's gcc 12"}
    record = record_candidate(candidate, measurement, tmp_path, data, "accuracy", outputs)
    assert record.accuracy is not None
    assert record.accuracy.value == pytest.approx(5 / 6)
    assert record.bytes == len(package.graph)
    assert record.workdir == tmp_path / digest
    assert candidate.artifact is not None and record.notes == (*candidate.artifact.notes, "by the board's gcc 12")


def test_candidate_without_artifact_or_measurement_is_recorded_with_its_reasons(tmp_path: Path) -> None:
    package = sample_package("vit", "fp32")
    data = random_dataset(package.spec, 2)
    refused = Candidate("a-b", "a", "b", "w8a8", tmp_path, None, ("because",))
    record = record_candidate(refused, None, tmp_path, data, "accuracy", np.zeros((2, 5)))
    assert (record.name, record.scheme, record.refused, record.accuracy) == ("a-b", "w8a8", ("because",), None)
