"""The onnx converter: the conformance suite in ONNX Runtime, and its own refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from edgesdk.converters import CONVERTERS, converter
from edgesdk.converters import onnx as onnx_converter
from edgesdk.converters.artifact import Artifact, read_artifact
from edgesdk.converters.base import golden, input_tensors, length_input, output_tensors
from edgesdk.errors import ConvertError
from edgesdk.package import content_digest
from edgesdk.targets import load_target
from edgesdk.testing.converters import ConverterTestCase, sample_package
from edgesdk.testing.models import SEQUENCE, SPECS


class TestOnnx(ConverterTestCase):
    converter: ClassVar[Any] = onnx_converter

    def run(self, folder: Path, artifact: Artifact, inputs: list[NDArray[Any]]) -> NDArray[np.float32]:
        session = onnxruntime.InferenceSession(folder / artifact.runtime["model"])
        feeds = {tensor.name: value for tensor, value in zip(artifact.inputs, inputs, strict=True)}
        output: NDArray[np.float32] = session.run([artifact.outputs[0].name], feeds)[0]
        return output


class TestOnnxOnABoard(TestOnnx):
    target = "rpi5"


def test_graph_is_shipped_as_it_is(tmp_path: Path) -> None:
    package = sample_package("vit", "w8a8")
    artifact = onnx_converter.convert(package, load_target("host"), tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == package.graph
    assert artifact.bytes == len(package.graph)
    assert artifact.runtime == {"name": "onnxruntime", "min": ">=1.23", "model": "model.onnx"}
    document = json.loads((tmp_path / "artifact.json").read_bytes())
    assert document["package"] == content_digest(package)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"schemes": ("fp32",)}, "does not list the scheme w8a8"), ({"onnx_opset_max": 20}, "reads opset 20"),
     ({"runtimes": {"ai-edge-litert": ">=2"}}, "has no runtime onnxruntime")],
)
def test_check_gives_the_reason(changes: dict[str, Any], reason: str) -> None:
    target = load_target("host").model_copy(update=changes)
    (found,) = onnx_converter.check(sample_package("vit", "w8a8"), target)
    assert reason in found
    assert "host" in found


def test_check_gives_all_reasons_at_once() -> None:
    target = load_target("host").model_copy(update={"schemes": (), "onnx_opset_max": 1, "runtimes": {}})
    assert len(onnx_converter.check(sample_package("vit", "fp32"), target)) == 3


def test_only_token_models_with_pooling_may_be_cut(tmp_path: Path) -> None:
    for kind in SPECS:
        package = sample_package(kind, "fp32")
        artifact_folder = tmp_path / kind
        artifact_folder.mkdir()
        artifact = onnx_converter.convert(package, load_target("host"), artifact_folder)
        expected = "attention_mask" if kind.startswith("bert") else None
        assert length_input(package) == artifact.length_input == expected
        assert artifact.work == ("per_input" if expected else "constant")


def test_tensors_have_batch_one_and_the_sequence_of_the_package() -> None:
    bert, vit, features = (sample_package(kind, "fp32") for kind in ("bert", "vit_mean", "features"))
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in input_tensors(bert)] == [
        ("input_ids", "int64", (1, SEQUENCE)), ("attention_mask", "int64", (1, SEQUENCE))]
    assert [tensor.shape for tensor in (*input_tensors(vit), *output_tensors(vit))] == [(1, 3, 8, 8), (1, 4)]
    assert [tensor.shape for tensor in (*input_tensors(features), *output_tensors(features))] == [
        (1, SEQUENCE, 16), (1, SEQUENCE, 16)]
    assert output_tensors(features)[0].name == "hidden_states"


def test_golden_rows_of_dynamic_schemes_are_float() -> None:
    package = sample_package("bert", "w8a8-dynamic")
    expected, inputs, outputs, floats = golden(package)
    assert expected.floats is None and not floats
    assert (expected.kind, expected.limit, expected.labels_equal) == ("sqnr_db", 20.0, 0.98)
    np.testing.assert_array_equal(outputs[0], package.samples.golden_float)
    np.testing.assert_array_equal(inputs[1], package.samples.golden_inputs["attention_mask"])


def test_golden_rows_of_static_schemes_come_with_those_in_float(tmp_path: Path) -> None:
    package = sample_package("bert", "w8a8")
    expected, _, outputs, floats = golden(package)
    np.testing.assert_array_equal(outputs[0], package.samples.golden_outputs)
    np.testing.assert_array_equal(floats[0], package.samples.golden_float)
    artifact = converter("onnx").convert(package, load_target("raspberry-pi/5"), tmp_path)
    assert artifact.golden.floats == "golden/float.bin" and read_artifact(tmp_path).golden == artifact.golden
    assert (tmp_path / "golden/float.bin").read_bytes() == floats[0].astype("<f4").tobytes()
    (tmp_path / "golden/float.bin").write_bytes(outputs[0].astype("<f4").tobytes())
    with pytest.raises(ConvertError, match=r"float\.bin: sha256 differs"):
        read_artifact(tmp_path)


def test_table_of_converters_is_sorted_and_loads() -> None:
    assert list(CONVERTERS) == sorted(CONVERTERS)
    for name in CONVERTERS:
        module = converter(name)
        assert module.name == name
        assert callable(module.check)
        assert callable(module.convert)
    with pytest.raises(KeyError):
        converter("tensor-rt")
