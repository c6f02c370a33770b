"""Each operator of the tflite converter, alone in a graph, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from litert_runtime import operators, run_once
from numpy.typing import NDArray
from onnx import TensorProto, defs, helper, numpy_helper

from edgesdk.converters.front import lower
from edgesdk.converters.tflite.model import translate, unsupported
from edgesdk.converters.tflite.operators import OPERATORS
from edgesdk.errors import UnsupportedOp

F, I64 = np.float32, np.int64
RANDOM = np.random.default_rng(7)


def floats(*shape: int) -> NDArray[np.float32]:
    return RANDOM.normal(size=shape).astype(F)


def integers(*values: int) -> NDArray[np.int64]:
    return np.array(values, I64)


def graph(nodes: list[Any], inputs: dict[str, Any], constants: dict[str, Any], shape: tuple[int, ...]) -> bytes:
    types = {F: TensorProto.FLOAT, I64: TensorProto.INT64}
    model = helper.make_model(
        helper.make_graph(
            nodes, "g",
            [helper.make_tensor_value_info(name, types[v.dtype.type], v.shape) for name, v in inputs.items()],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 21)], ir_version=10,
    )
    return bytes(model.SerializeToString())


def compare(
    nodes: list[Any], inputs: dict[str, Any], constants: dict[str, Any] | None = None, atol: float = 2e-6
) -> list[str]:
    """Both engines of LiteRT must answer as ONNX Runtime does; returns the operators of the file."""
    constants = constants or {}
    probe = graph(nodes, inputs, constants, ())  # the shape of y is found by running it
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    expected = onnxruntime.InferenceSession(_shapeless(probe), options).run(None, inputs)[0]
    data = translate(lower(graph(nodes, inputs, constants, expected.shape), 1))
    for xnnpack in (True, False):
        found = run_once(data, inputs, xnnpack)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol)
    return [name for name, _ in operators(data)]


def _shapeless(data: bytes) -> bytes:
    model = onnx.load_from_string(data)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return bytes(model.SerializeToString())


def node(op: str, *inputs: str, output: str = "y", **attributes: Any) -> Any:
    return helper.make_node(op, list(inputs), [output], name=f"test.{op}.{output}", **attributes)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("shapes", [((5, 8), (5, 8)), ((1, 2, 3, 3), (1, 1, 1, 3)), ((1, 2, 2, 3, 3), (1, 1, 1, 1, 3))])
def test_arithmetic_broadcasts(op: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    values = {"a": floats(*shapes[0]), "b": np.abs(floats(*shapes[1])) + F(0.5)}
    assert compare([node(op, "a", "b")], values) == [op.upper()]


def test_arithmetic_with_a_constant_in_front() -> None:
    assert compare([node("Sub", "one", "a")], {"a": floats(1, 6)}, {"one": np.array(1, F)}) == ["SUB"]


@pytest.mark.parametrize(("op", "emitted"), [("Tanh", "TANH"), ("Relu", "RELU")])
def test_activations(op: str, emitted: str) -> None:
    assert compare([node(op, "a")], {"a": 3 * floats(4, 9)}) == [emitted]


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str) -> None:
    # erf and tanh differ by up to 5e-4 here, far more than the tolerance
    assert compare([node("Gelu", "a", approximate=approximate)], {"a": 3 * floats(6, 40)}) == ["GELU"]


def test_softmax() -> None:
    assert compare([node("Softmax", "a", axis=-1)], {"a": 5 * floats(1, 2, 4, 7)}) == ["SOFTMAX"]


def test_additive_mask_removes_padding() -> None:
    scores, mask = floats(1, 2, 4, 4), np.array([[[[0, 0, -100, -100]]]], F)
    compare([node("Add", "a", "m", output="s"), node("Softmax", "s")], {"a": scores, "m": mask})


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("shape", [(5, 16), (1, 5, 16)])
def test_layer_norm(shape: tuple[int, ...], offset: float) -> None:
    values = {"a": floats(*shape) + F(offset)}
    constants = {"w": floats(16), "b": floats(16)}
    nodes = [node("LayerNormalization", "a", "w", "b", axis=-1, epsilon=1e-3)]
    names = compare(nodes, values, constants, atol=1e-6 * (2 + offset))  # as the input is rounded
    assert names == ["MEAN", "SQUARED_DIFFERENCE", "MEAN", "ADD", "RSQRT", "SUB", "MUL", "MUL", "ADD"]


def test_layer_norm_of_a_constant_row_is_the_bias() -> None:
    values, bias = {"a": np.full((2, 8), 3, F)}, floats(8)
    compare([node("LayerNormalization", "a", "w", "b", axis=-1, epsilon=1e-5)], values, {"w": floats(8), "b": bias})


@pytest.mark.parametrize("permutation", [(0, 2, 1, 3), (0, 2, 3, 1), (3, 0, 1, 2)])
def test_transpose(permutation: tuple[int, ...]) -> None:
    assert compare([node("Transpose", "a", perm=permutation)], {"a": floats(1, 5, 2, 3)}) == ["TRANSPOSE"]


def test_patches_are_cut_by_a_transpose_of_rank_six() -> None:
    nodes = [
        node("Reshape", "a", "split", output="s"),
        node("Transpose", "s", output="t", perm=[0, 2, 4, 1, 3, 5]),
        node("Reshape", "t", "rows"),
    ]
    constants = {"split": integers(-1, 3, 4, 2, 4, 2), "rows": integers(-1, 12)}
    assert compare(nodes, {"a": floats(1, 3, 8, 8)}, constants) == ["RESHAPE", "TRANSPOSE", "RESHAPE"]


def test_reshapes_that_change_nothing_vanish() -> None:
    nodes = [node("Reshape", "a", "shape", output="s"), node("Tanh", "s")]
    assert compare(nodes, {"a": floats(3, 4)}, {"shape": integers(-1, 4)}) == ["TANH"]


def test_a_reshape_that_is_the_output_stays() -> None:
    assert compare([node("Reshape", "a", "shape")], {"a": floats(3, 4)}, {"shape": integers(3, 4)}) == ["RESHAPE"]


def test_unsqueeze() -> None:
    assert compare([node("Unsqueeze", "a", "axes")], {"a": floats(1, 4)}, {"axes": integers(1, 2)}) == ["RESHAPE"]


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize(("op", "emitted"), [("ReduceMean", "MEAN"), ("ReduceSum", "SUM")])
@pytest.mark.parametrize("axis", [1, -1])
def test_reductions(op: str, emitted: str, keep: int, axis: int) -> None:
    values = {"a": floats(1, 6, 5)}
    assert compare([node(op, "a", "axes", keepdims=keep)], values, {"axes": integers(axis)}) == [emitted]


def test_cast_of_the_mask() -> None:
    assert compare([node("Cast", "m", to=TensorProto.FLOAT)], {"m": integers(1, 1, 0)[None]}) == ["CAST"]


def test_concat() -> None:
    values = {"a": floats(1, 4, 6)}
    assert compare([node("Concat", "c", "a", axis=1)], values, {"c": floats(1, 1, 6)}) == ["CONCATENATION"]


def test_slice_of_an_activation() -> None:
    constants = {"start": integers(1), "end": integers(-1), "axis": integers(1)}
    assert compare([node("Slice", "a", "start", "end", "axis")], {"a": floats(1, 6, 3)}, constants) == ["SLICE"]


@pytest.mark.parametrize("index", [0, 3, -1])
def test_gather_of_one_row_is_a_slice(index: int) -> None:
    constants = {"i": np.array(index, I64)}
    assert compare([node("Gather", "a", "i", axis=1)], {"a": floats(1, 4, 5)}, constants) == ["SLICE", "RESHAPE"]


def test_gather_of_float_rows() -> None:
    assert compare([node("Gather", "t", "i")], {"i": integers(3, 0, 9)[None]}, {"t": floats(10, 4)}) == ["GATHER"]


def test_gather_of_int8_rows_with_their_scales() -> None:
    table = RANDOM.integers(-127, 128, (10, 4)).astype(np.int8)
    nodes = [
        node("Gather", "t", "i", output="q"),
        node("Gather", "s", "i", output="scale"),
        node("Cast", "q", output="f", to=TensorProto.FLOAT),
        node("Mul", "f", "scale"),
    ]
    constants = {"t": table, "s": np.abs(floats(10, 1))}
    names = compare(nodes, {"i": integers(3, 0, 9)[None]}, constants)
    assert names == ["GATHER", "GATHER", "DEQUANTIZE", "MUL"]


def test_constant_int8_rows_are_dequantized_by_row() -> None:
    table = RANDOM.integers(-127, 128, (3, 4)).astype(np.int8)
    nodes = [
        node("Cast", "t", output="f", to=TensorProto.FLOAT),
        node("Mul", "f", "s", output="p"),
        node("Add", "a", "p"),
    ]
    names = compare(nodes, {"a": floats(3, 4)}, {"t": table, "s": np.abs(floats(3, 1))})
    assert names == ["DEQUANTIZE", "ADD"]


def test_scores_read_the_key_by_rows() -> None:
    nodes = [
        node("Transpose", "q", output="qt", perm=[0, 2, 1, 3]),
        node("Transpose", "k", output="kt", perm=[0, 2, 3, 1]),
        node("MatMul", "qt", "kt"),
    ]
    names = compare(nodes, {"q": floats(1, 5, 2, 4), "k": floats(1, 5, 2, 4)})
    assert names == ["TRANSPOSE", "TRANSPOSE", "BATCH_MATMUL"]


def test_a_key_with_a_second_reader_keeps_its_transpose() -> None:
    nodes = [
        node("Transpose", "k", output="kt", perm=[0, 2, 3, 1]),
        node("MatMul", "q", "kt", output="s"),
        node("ReduceSum", "kt", "axes", output="r", keepdims=1),
        node("Add", "s", "r"),
    ]
    compare(nodes, {"q": floats(1, 2, 5, 4), "k": floats(1, 5, 2, 4)}, {"axes": integers(2)})


def test_grouped_heads_share_their_key_and_value() -> None:
    nodes = [
        node("Transpose", "q", output="qt", perm=[0, 2, 3, 1, 4]),
        node("Transpose", "k", output="kt", perm=[0, 2, 3, 4, 1]),
        node("MatMul", "qt", "kt", output="s"),
        node("MatMul", "s", "v"),
    ]
    names = compare(nodes, {"q": floats(1, 5, 2, 3, 4), "k": floats(1, 5, 2, 1, 4), "v": floats(1, 2, 1, 5, 4)})
    assert names.count("BATCH_MATMUL") == 2


REFUSED: dict[str, tuple[list[Any], dict[str, Any], dict[str, Any], tuple[int, ...], str]] = {
    "no table entry": ([node("Erf", "a")], {"a": floats(2, 3)}, {}, (2, 3), "test.Erf"),
    "softmax axis": ([node("Softmax", "a", axis=0)], {"a": floats(2, 3)}, {}, (2, 3), "test.Softmax"),
    "integers": (
        [node("Add", "i", "i", output="s"), node("Cast", "s", to=1)], {"i": integers(1, 2)}, {}, (2,), "INT64",
    ),
    "rank": (
        [node("Transpose", "a", perm=[6, 5, 4, 3, 2, 1, 0])], {"a": floats(1, 1, 1, 1, 1, 2, 3)}, {},
        (3, 2, 1, 1, 1, 1, 1), "rank 7",
    ),
    "broadcast": (
        [node("MatMul", "a", "b")], {"a": floats(1, 2, 3, 4), "b": floats(3, 1, 4, 2)}, {}, (3, 2, 3, 2), "batches",
    ),
    "step": (
        [node("Slice", "a", "s", "e", "x", "t")], {"a": floats(6, 2)},
        {"s": integers(0), "e": integers(6), "x": integers(0), "t": integers(2)}, (3, 2), "step",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_exact_translation_is_refused_by_name(case: str) -> None:
    nodes, inputs, constants, shape, words = REFUSED[case]
    lowered = lower(graph(nodes, inputs, constants, shape), 1)
    with pytest.raises(UnsupportedOp, match=words):
        translate(lowered)


def test_all_unsupported_operators_are_listed_at_once() -> None:
    nodes = [node("Erf", "a", output="e"), node("Sin", "e", output="s"), node("Tanh", "s")]
    problems = unsupported(lower(graph(nodes, {"a": floats(2, 3)}, {}, (2, 3)), 1))
    assert [problem.split()[1] for problem in problems] == ["Erf", "Sin"]


def test_the_table_holds_functions_for_onnx_operators() -> None:
    for op in OPERATORS:
        assert defs.get_schema(op, 21).name == op
