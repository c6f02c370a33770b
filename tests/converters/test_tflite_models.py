"""Whole random models through the tflite converter: numbers, sizes, the file itself, and `check`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from litert_runtime import operators, run, undelegated
from sample_graphs import SCHEMES, SPECS, Sample, sample, sqnr_db
from sample_graphs import run as run_onnx

from edgesdk.converters import converter, tflite
from edgesdk.converters.artifact import read_artifact
from edgesdk.converters.front import lower
from edgesdk.converters.tflite.flatbuffer import FlatbufferWriter, Quantization
from edgesdk.converters.tflite.model import translate
from edgesdk.errors import ConvertError
from edgesdk.package import Package, replace
from edgesdk.targets import load_target

HOST = load_target("host")


def file(case: Sample) -> bytes:
    return translate(lower(case.graph, case.sequence))


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_models_answer_as_their_graph_does(kind: str, scheme: str) -> None:
    case = sample(kind, scheme)
    found = run(file(case), case.inputs)
    if scheme == "fp32":
        np.testing.assert_allclose(found, case.expected, rtol=0, atol=1e-4)
    elif scheme == "w8a8":
        assert sqnr_db(case.expected, found) >= 30
    else:
        assert sqnr_db(case.reference, found) >= 20


@pytest.mark.parametrize("kind", ["vit_mean_grouped", "bert_pooler"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_builtin_kernels_answer_the_same(kind: str, scheme: str) -> None:
    """What runs where there is no XNNPACK."""
    case = sample(kind, scheme)
    found = run(file(case), case.inputs, xnnpack=False)
    if scheme == "fp32":
        np.testing.assert_allclose(found, case.expected, rtol=0, atol=1e-4)
    else:
        assert sqnr_db(case.expected if scheme == "w8a8" else case.reference, found) >= 27


@pytest.mark.parametrize("scheme", SCHEMES)
def test_padding_does_not_change_the_answer(scheme: str) -> None:
    case = sample("bert_mean_grouped", scheme)
    noisy = dict(case.inputs)
    noisy["input_ids"] = np.where(case.inputs["attention_mask"] == 1, case.inputs["input_ids"], 7)
    assert (noisy["input_ids"] != case.inputs["input_ids"]).any()
    data = file(case)
    np.testing.assert_allclose(run(data, noisy), run(data, case.inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_everything_behind_the_lookups_is_one_xnnpack_partition(kind: str, scheme: str) -> None:
    lookups = {"fp32": ["CAST", "GATHER"]}.get(scheme, ["CAST", "GATHER", "GATHER"])
    assert undelegated(file(sample(kind, scheme))) == (1, lookups if kind.startswith("bert") else [])


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic"])
def test_every_large_layer_is_int8(scheme: str) -> None:
    case = sample("vit", scheme)
    versions = [version for name, version in operators(file(case)) if name == "FULLY_CONNECTED"]
    layers = [name for name, _, _ in case.spec.linears()]
    assert len(versions) == len(layers)
    assert sum(version == 1 for version in versions) == (1 if scheme == "w8a8" else 0)  # the classifier


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic"])
def test_small_models_shrink_to_a_third(scheme: str) -> None:
    assert len(file(sample("vit", scheme))) <= 0.35 * len(sample("vit", "fp32").graph)


def test_equal_graphs_give_equal_bytes_in_every_process(tmp_path: Path) -> None:
    case = sample("bert_pooler", "w8a8")
    (tmp_path / "model.onnx").write_bytes(case.graph)
    script = (
        "import sys, pathlib; from edgesdk.converters.front import lower;"
        "from edgesdk.converters.tflite.model import translate;"
        "folder = pathlib.Path(sys.argv[1]);"
        "data = translate(lower((folder / 'model.onnx').read_bytes(), int(sys.argv[2])));"
        "(folder / 'model.tflite').write_bytes(data)"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(case.sequence)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "4711"})
    assert (tmp_path / "model.tflite").read_bytes() == file(case)


def test_the_file_is_well_formed() -> None:
    """Identifier, aligned buffers, names of inputs and outputs only, signature and minimum runtime."""
    data = file(sample("bert_pooler", "w8a8"))
    assert data[4:8] == b"TFL3"
    model = schema.Model.GetRootAs(data, 0)
    start = np.frombuffer(data, np.uint8).ctypes.data
    for index in range(1, model.BuffersLength()):
        assert (model.Buffers(index).DataAsNumpy().ctypes.data - start) % 16 == 0
    graph = schema.ModelT.InitFromObj(model).subgraphs[0]
    names = {tensor.name for tensor in graph.tensors}
    assert names == {b"", b"input_ids", b"attention_mask", b"logits"}
    assert [graph.tensors[index].name for index in graph.inputs] == [b"input_ids", b"attention_mask"]
    assert model.SignatureDefs(0).SignatureKey() == b"serving_default"
    minimum = model.Buffers(model.Metadata(0).Buffer()).DataAsNumpy().tobytes()
    assert (model.Metadata(0).Name(), minimum) == (b"min_runtime_version", b"2.9.0".ljust(16, b"\0"))


def test_equal_constants_are_one_tensor() -> None:
    writer, ones = FlatbufferWriter(), np.ones((2, 2), np.int8)
    scale, other = Quantization(np.ones(1, np.float32)), Quantization(np.ones(1, np.float32), zero_point=3)
    first = writer.constant(ones, scale)
    assert writer.constant(ones.copy(), Quantization(np.ones(1, np.float32))) == first
    different = [writer.constant(ones, other), writer.constant(ones.reshape(4), scale), writer.constant(ones)]
    assert len({first, *different, writer.constant(ones.astype(np.int32))}) == 5


def test_scales_in_the_file_are_those_of_the_package() -> None:
    case = sample("vit", "w8a8")
    assert case.encodings is not None
    model = schema.ModelT.InitFromPackedBuf(file(case), 0)
    found = {
        (float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0]))
        for tensor in model.subgraphs[0].tensors
        if tensor.type == schema.TensorType.INT8 and tensor.buffer == 0
    }
    wanted = {
        (float(np.float32(entry.scale)), entry.zero_point)
        for name, entry in case.encodings.activations.items()
        if name != "classifier.input"
    }
    assert found == wanted


@pytest.mark.parametrize("kind", ["vit", "bert_pooler", "features"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_artifact_answers_its_golden_rows(kind: str, scheme: str, tmp_path: Path) -> None:
    package = sample(kind, scheme).package()
    assert tflite.check(package, HOST) == []
    converter("tflite").convert(package, HOST, tmp_path)
    artifact = read_artifact(tmp_path)
    assert artifact.runtime == {"name": "litert", "min": "ai-edge-litert 1.0", "model": "model.tflite"}
    assert [entry.path for entry in artifact.files] == ["model.tflite"]
    assert "2.14" in artifact.notes[0]
    assert artifact.notes[0].startswith("not ") == scheme.endswith("dynamic")
    inputs, block = {}, (tmp_path / artifact.golden.inputs).read_bytes()
    for tensor in artifact.inputs:
        count = artifact.golden.n * int(np.prod(tensor.shape))
        values = np.frombuffer(block, tensor.dtype, count)
        inputs[tensor.name] = values.reshape(artifact.golden.n, *tensor.shape[1:])
        block = block[values.nbytes :]
    expected = np.frombuffer((tmp_path / artifact.golden.outputs).read_bytes(), np.float32)
    found = run((tmp_path / "model.tflite").read_bytes(), inputs).reshape(-1)
    if artifact.golden.kind == "max_abs":
        assert np.abs(found - expected).max() <= artifact.golden.limit
    else:
        assert sqnr_db(expected, found) >= artifact.golden.limit


def with_graph(package: Package, old: str, new: str) -> Package:
    """The package with one operator of its graph exchanged."""
    model = onnx.load_from_string(package.graph)
    for node in model.graph.node:
        if node.op_type == old:
            node.op_type = new
            del node.attribute[:]
    return replace(package, graph=model.SerializeToString())


def test_check_names_each_unsupported_operator_and_its_layer(tmp_path: Path) -> None:
    package = with_graph(sample("vit", "fp32").package(), "Gelu", "Erf")
    reasons = tflite.check(package, HOST)
    assert len(reasons) == 3
    assert "Erf" in reasons[1] and "layers.1.ffn.active" in reasons[1]
    with pytest.raises(ConvertError, match=r"Erf 'layers\.0\.ffn\.active'"):
        tflite.convert(package, HOST, tmp_path)


def test_check_says_which_packages_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tflite, "find_spec", lambda module: None if module == "ai_edge_litert" else object())
    (reason,) = tflite.check(sample("vit", "fp32").package(), HOST)
    assert "ai_edge_litert not installed" in reason and "edgesdk[tflite" in reason


def test_check_says_what_the_target_lacks() -> None:
    target = HOST.model_copy(update={"runtimes": {"onnxruntime": ">=1.23"}, "schemes": ("w8a8",)})
    reasons = tflite.check(sample("vit", "fp32").package(), target)
    assert ["ai-edge-litert" in reasons[0], "fp32" in reasons[1]] == [True, True]


def test_importing_the_converter_loads_nothing_heavy() -> None:
    script = (
        "import sys, edgesdk.converters.tflite;"
        "heavy = {'onnx', 'torch', 'ai_edge_litert', 'flatbuffers'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_sample_graphs_differ_between_schemes() -> None:
    """The comparisons above mean something only if quantization changes the numbers."""
    fp32, static = sample("vit", "fp32"), sample("vit", "w8a8")
    assert np.abs(run_onnx(static.graph, static.inputs) - fp32.expected).max() > 1e-3
