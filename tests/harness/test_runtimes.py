"""The Python runtimes' adapters inside the child: feeds, order of tensors, cutting of padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, save_model

from edgesdk.harness.worker.runtimes import RUNTIMES, _by_name


def document(outputs: list[Any], length_input: str | None) -> dict[str, Any]:
    """artifact.json of a model with token ids and a mask of six places."""
    return {
        "files": [{"path": "model.onnx"}], "runtime": {"name": "onnxruntime"}, "length_input": length_input,
        "inputs": [{"name": name, "dtype": "int64", "shape": [1, 6]} for name in ("ids", "mask")], "outputs": outputs,
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """sum = ReduceSum(ids), and the length of the sequence that was run."""
    ids, mask = (helper.make_tensor_value_info(name, TensorProto.INT64, [1, "s"]) for name in ("ids", "mask"))
    outputs = [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in ("sum", "shape")]
    nodes = [
        helper.make_node("ReduceSum", ["ids"], ["sum"], keepdims=0), helper.make_node("Shape", ["mask"], ["shape"]),
    ]
    graph = helper.make_graph(nodes, "g", [ids, mask], outputs)
    save_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
        str(tmp_path / "model.onnx"),
    )
    return tmp_path


POOLED = [{"name": "sum", "dtype": "int64", "shape": [1]}, {"name": "shape", "dtype": "int64", "shape": [2]}]
LENGTHS = {(1, 1, 1, 0, 0, 0): 3, (1, 0, 1, 0, 0, 0): 3, (1, 1, 1, 1, 1, 1): 6, (0, 0, 0, 0, 0, 0): 1}


@pytest.mark.parametrize("mask", sorted(LENGTHS))
@pytest.mark.parametrize("length_input", [None, "mask"])
def test_padding_is_cut_where_the_mask_is_named(model: Path, mask: tuple[int, ...], length_input: str | None) -> None:
    """Only trailing zeros are cut, at least one place stays, and only where the artifact names its mask."""
    runtime = RUNTIMES["onnxruntime"](str(model), document(POOLED, length_input))
    runtime.load()
    ids = np.arange(1, 7, dtype="<i8")
    runtime.set_inputs(ids.tobytes() + np.array(mask, "<i8").tobytes(), 1)
    total, shape = runtime.infer(0)
    length = LENGTHS[mask] if length_input else 6
    assert shape.tolist() == [1, length]
    assert int(total) == ids[:length].sum()


def test_outputs_per_token_are_not_cut(model: Path) -> None:
    """An output with a sequence axis keeps its shape."""
    outputs = [*POOLED, {"name": "hidden", "dtype": "float32", "shape": [1, 6, 4]}]
    runtime = RUNTIMES["onnxruntime"](str(model), document(outputs, "mask"))
    runtime.set_inputs(np.zeros(12, "<i8").tobytes(), 1)
    assert runtime.feeds[0]["ids"].shape == (1, 6)


def test_rows_are_taken_from_each_block(model: Path) -> None:
    """Blocks are [n, ...] one input after the other; a wrong size is refused."""
    runtime = RUNTIMES["onnxruntime"](str(model), document(POOLED, None))
    data = np.arange(24, dtype="<i8")
    runtime.set_inputs(data.tobytes(), 2)
    assert runtime.feeds[1]["ids"].tolist() == [[6, 7, 8, 9, 10, 11]]
    assert runtime.feeds[1]["mask"].tolist() == [[18, 19, 20, 21, 22, 23]]
    with pytest.raises(ValueError, match="bytes|buffer"):
        runtime.set_inputs(data.tobytes()[:-8], 2)
    with pytest.raises(ValueError, match="bytes"):
        runtime.set_inputs(data.tobytes() + bytes(8), 2)


@pytest.mark.parametrize("path", ["../model.onnx", "/etc/passwd"])
def test_model_path_stays_inside(model: Path, path: str) -> None:
    """The model's path comes from artifact.json and is checked again."""
    broken = {**document(POOLED, None), "runtime": {"name": "onnxruntime", "model": path}}
    with pytest.raises(ValueError, match="illegal path"):
        RUNTIMES["onnxruntime"](str(model), broken)


def test_tensors_of_tflite_are_found_by_name() -> None:
    """In the artifact's order, with or without the decorations of the converter; else as they come."""
    details = [{"name": "serving_default_b:0"}, {"name": "a"}]
    assert _by_name(details, [{"name": "a"}, {"name": "b"}]) == [details[1], details[0]]
    assert _by_name(details, [{"name": "x"}, {"name": "b"}]) == details
    with pytest.raises(ValueError, match="2 tensors"):
        _by_name(details, [{"name": "a"}])
