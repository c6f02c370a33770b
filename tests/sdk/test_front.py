"""The converters' front: what it lowers computes the same, and what it does not know it refuses by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgesdk.converters import front_fold
from edgesdk.converters.front import Encoding, Graph, Linear, Operator, lower
from edgesdk.converters.front_fold import FOLDERS, fold
from edgesdk.errors import UnsupportedOp
from edgesdk.evaluate import run_graph, sqnr_db
from edgesdk.testing.converters import SCHEMES, sample_package
from edgesdk.testing.models import SPECS, VIT, random_weights
from edgesdk.transformer.graph import write_graph

Array = NDArray[Any]


# --- a slow interpreter of lowered graphs -----------------------------------------------------------------------------


def execute(graph: Graph, inputs: dict[str, Array]) -> list[Array]:
    """Outputs for one row; every tensor is checked against the static shapes."""
    values = {**graph.constants, **inputs}
    for node in graph.nodes:
        if isinstance(node, Linear):
            values[node.result] = _linear(node, values[node.source])
            made: tuple[str, ...] = (node.result,)
        else:
            (name,) = made = node.outputs
            values[name] = np.asarray(_OPERATORS[node.op](*_arguments(node, values)))
        for name in made:
            assert values[name].shape == graph.shapes[name], name
    return [values[name] for name in graph.outputs]


def _arguments(node: Operator, values: dict[str, Array]) -> list[Any]:
    return [node.attributes, *(values[name] for name in node.inputs if name)]


def _quantize(value: Array, encoding: Encoding) -> Array:
    return np.asarray(np.clip(np.rint(value / np.float32(encoding.scale)) + encoding.zero_point, -128, 127))


def _linear(node: Linear, source: Array) -> Array:
    if node.form == "fp32":
        return np.asarray(source @ node.weight.T + node.bias)
    assert node.weight_scale is not None and node.weight.dtype == np.int8
    if node.form == "w8":
        return np.asarray(source @ (node.weight * node.weight_scale[:, None]).T + node.bias)
    weight = node.weight.astype(np.int64)
    if node.form == "w8a8":
        assert node.input is not None and node.output is not None and node.bias.dtype == np.int32
        integers = (_quantize(source, node.input) - node.input.zero_point).astype(np.int64)
        sums = integers @ weight.T + node.bias
        result = sums * (node.input.scale * node.weight_scale.astype(np.float64))
        return np.asarray((_quantize(result, node.output) - node.output.zero_point) * node.output.scale, np.float32)
    low, high = min(0.0, float(source.min())), max(0.0, float(source.max()))
    scale = np.float32((high - low) / 255)
    zero_point = np.clip(np.rint(-low / scale), 0, 255)
    integers = (np.clip(np.rint(source / scale) + zero_point, 0, 255) - zero_point).astype(np.int64)
    return np.asarray((integers @ weight.T) * (scale * node.weight_scale) + node.bias, np.float32)


def _softmax(attributes: dict[str, Any], value: Array) -> Array:
    shares = np.exp(value - value.max(attributes["axis"], keepdims=True))
    return np.asarray(shares / shares.sum(attributes["axis"], keepdims=True))


def _layer_norm(attributes: dict[str, Any], value: Array, weight: Array, bias: Array) -> Array:
    centred = value - value.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + attributes["epsilon"]) * weight + bias)


def _gelu(attributes: dict[str, Any], value: Array) -> Array:
    if attributes["approximate"] == b"tanh":
        return np.asarray(0.5 * value * (1 + np.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3))))
    return np.asarray(0.5 * value * (1 + np.vectorize(math.erf)(value / math.sqrt(2))))


def _reduce(operation: Callable[..., Array]) -> Callable[..., Array]:
    def reduce(attributes: dict[str, Any], value: Array, axes: Array) -> Array:
        return operation(value, axis=tuple(axes.tolist()), keepdims=bool(attributes.get("keepdims", 1)))

    return reduce


_OPERATORS: dict[str, Callable[..., Array]] = {
    "Add": lambda _, a, b: a + b,
    "Sub": lambda _, a, b: a - b,
    "Mul": lambda _, a, b: a * b,
    "Div": lambda _, a, b: a / b,
    "MatMul": lambda _, a, b: a @ b,
    "Relu": lambda _, a: np.maximum(a, 0),
    "Tanh": lambda _, a: np.tanh(a),
    "Gelu": _gelu,
    "Softmax": _softmax,
    "LayerNormalization": _layer_norm,
    "Cast": lambda attributes, a: a.astype(helper.tensor_dtype_to_np_dtype(attributes["to"])),
    "Concat": lambda attributes, *parts: np.concatenate(parts, attributes["axis"]),
    "Gather": lambda attributes, table, rows: np.take(table, rows, attributes.get("axis", 0)),
    "Reshape": lambda _, a, shape: a.reshape(shape),
    "Transpose": lambda attributes, a: a.transpose(attributes["perm"]),
    "Unsqueeze": lambda _, a, axes: np.expand_dims(a, tuple(axes.tolist())),
    "ReduceMean": _reduce(np.mean),
    "ReduceSum": _reduce(np.sum),
}


# --- what lowers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_lowered_graph_computes_the_same(kind: str, scheme: str) -> None:
    package = sample_package(kind, scheme)
    graph = lower(package.graph, package.sequence)
    inputs = package.samples.golden_inputs
    expected = run_graph(package.graph, inputs, optimize=False, batch=1)
    rows = [
        execute(graph, {name: value[row : row + 1] for name, value in inputs.items()})[0]
        for row in range(len(expected))
    ]
    if scheme == "fp32":
        np.testing.assert_allclose(np.concatenate(rows), expected, atol=2e-5)
    else:
        assert sqnr_db(expected, np.concatenate(rows)) > 35  # ties of rounding, nothing more


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_linear_layer_is_found_in_its_form(kind: str, scheme: str) -> None:
    package = sample_package(kind, scheme)
    graph = lower(package.graph, package.sequence)
    found = {node.name: node for node in graph.nodes if isinstance(node, Linear)}
    assert list(found) == [name for name, _, _ in package.spec.linears()]
    for name, inputs, outputs in package.spec.linears():
        node = found[name]
        assert node.form == ("w8" if scheme == "w8a8" and name == "classifier" else scheme)
        assert node.weight.shape == (outputs, inputs)
        assert node.bias.shape == (outputs,)
        assert graph.shapes[node.source][-1] == inputs
        assert graph.shapes[node.result][-1] == outputs
    kinds = {node.op for node in graph.nodes if isinstance(node, Operator)}
    assert kinds <= _OPERATORS.keys()


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_shapes_are_static_and_complete(kind: str, scheme: str) -> None:
    package = sample_package(kind, scheme)
    graph = lower(package.graph, package.sequence)
    read = {name for node in graph.nodes if isinstance(node, Operator) for name in node.inputs if name}
    names = read | {name for node in graph.nodes for name in (
        (node.source, node.result) if isinstance(node, Linear) else node.outputs)}
    for name in {*names, *graph.inputs, *graph.outputs}:
        assert all(type(size) is int and size > 0 for size in graph.shapes[name]), name
    assert set(graph.constants) <= read
    assert set(graph.dtypes) == {*graph.inputs, *graph.outputs}


@pytest.mark.parametrize("sequence", [1, 3, 12])
def test_sequence_is_the_callers(sequence: int) -> None:
    package = sample_package("bert", "w8a8")
    graph = lower(package.graph, sequence)
    assert graph.shapes["input_ids"] == (1, sequence)
    inputs = {"input_ids": np.ones((1, sequence), np.int64), "attention_mask": np.ones((1, sequence), np.int64)}
    assert sqnr_db(run_graph(package.graph, inputs, optimize=False), execute(graph, inputs)[0]) > 35


def test_encodings_are_those_of_the_package() -> None:
    package = sample_package("bert", "w8a8")
    assert package.encodings is not None
    for node in lower(package.graph, package.sequence).nodes:
        if isinstance(node, Linear) and node.form == "w8a8":
            output = package.encodings.activations[node.name]
            assert node.output == Encoding(float(np.float32(output.scale)), output.zero_point)
            assert node.weight_scale is not None
            np.testing.assert_array_equal(node.weight_scale, package.encodings.weights[f"{node.name}.weight"].scale)


def _single(op: str, arrays: list[Array], **attributes: Any) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    names = [f"c{index}" for index in range(len(arrays))]
    return [helper.make_node(op, names, ["y"], name="folded", **attributes)], dict(zip(names, arrays, strict=True))


_I = np.arange(-6, 6, dtype=np.int32).reshape(3, 4)
FOLDED: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "Add": ([_I, np.array(3, np.int32)], {}),
    "Sub": ([_I, _I[:, :1]], {}),
    "Mul": ([_I, np.array([2, -1, 0, 1], np.int32)], {}),
    "Div": ([_I, np.array(4, np.int32)], {}),
    "Mod": ([_I, np.array([4, -4, 3, -3], np.int32)], {}),
    "Max": ([_I, np.array(0, np.int32)], {}),
    "CumSum": ([_I, np.array(1, np.int64)], {}),
    "Gather": ([_I, np.array([[2, 0], [-1, 1]])], {"axis": 0}),
    "Transpose": ([_I], {"perm": [1, 0]}),
    "Reshape": ([_I, np.array([0, 2, -1])], {}),
    "Slice": ([_I, np.array([-1]), np.array([-100]), np.array([1]), np.array([-2])], {}),
    "Expand": ([_I[:, None, :], np.array([2, 1, 5, 4])], {}),
    "Trilu": ([_I, np.array(1)], {"upper": 1}),
    "Concat": ([_I, _I], {"axis": -1}),
    "Unsqueeze": ([_I, np.array([0, -1])], {}),
    "Identity": ([_I], {}),
    "Cast": ([_I], {"to": onnx.TensorProto.INT8}),
}


def test_every_folder_is_tested() -> None:
    assert set(FOLDED) == set(FOLDERS)


@pytest.mark.parametrize("op", FOLDED)
def test_constants_are_folded_to_what_onnx_says(op: str) -> None:
    arrays, attributes = FOLDED[op]
    nodes, constants = _single(op, arrays, **attributes)
    kind = onnx.TensorProto.INT8 if op == "Cast" else onnx.TensorProto.INT32
    graph = helper.make_graph(
        nodes, "g", [], [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (expected,) = session.run(None, {})
    assert fold(nodes, constants, {}, {"y"}) == []
    np.testing.assert_array_equal(constants["y"], expected)
    assert constants["y"].dtype == expected.dtype
    assert set(constants) == {"y"}, "what nobody reads any more is dropped"


def test_integers_do_not_become_floats_while_folding() -> None:
    nodes, constants = _single("Cast", [np.ones(3, np.int8)], to=onnx.TensorProto.FLOAT)
    assert fold(nodes, constants, {}, set()) == nodes
    nodes, constants = _single("CumSum", [_I, np.array(0)], exclusive=1)
    assert fold(nodes, constants, {}, set()) == nodes


def test_folded_constants_have_a_budget_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """96 bytes of two results and then the third is refused; what is dropped on the way counts no more."""
    monkeypatch.setattr(front_fold, "LARGEST", 100)

    def node(source: str, result: str) -> onnx.NodeProto:
        return helper.make_node("Add", [source, source], [result], f"node.{result}")

    chain = [node("x", "a"), node("a", "b"), node("b", "c"), node("c", "d")]
    constants: dict[str, Array] = {"x": np.ones(12, np.int32)}
    assert fold(chain, constants, {}, {"d"}) == []
    np.testing.assert_array_equal(constants["d"], np.full(12, 16))
    with pytest.raises(UnsupportedOp, match=r"Add 'node.c'.*48 bytes, 4 are left"):
        fold([node("x", "a"), node("x", "b"), node("x", "c")], {"x": np.ones(12, np.int32)}, {}, {"a", "b", "c"})


_LONG = np.ones(1 << 20, np.int32)
HOSTILE: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "division by zero": ("Div", [_I, np.array(0, np.int32)], {}),
    "modulo zero": ("Mod", [_I, np.array(0, np.int32)], {}),
    "a tensor as large as the machine": ("Expand", [_I[:1, :1], np.array([1 << 20, 1 << 20])], {}),
    "a sum as large as the machine": ("Add", [_LONG[:, None], _LONG], {}),
    "a quotient as large as the machine": ("Div", [_LONG[:, None], _LONG], {}),
    "a remainder as large as the machine": ("Mod", [_LONG[:, None], _LONG], {}),
    "a largest as large as the machine": ("Max", [_LONG, _LONG[:, None], _LONG], {}),
    "rows as large as the machine": ("Gather", [_LONG[None], np.zeros(1 << 20, np.int64)], {}),
    "parts as large as the machine": ("Concat", [np.broadcast_to(_LONG, (1 << 19, 1 << 20))] * 2, {"axis": 0}),
    "an axis that is not there": ("Slice", [_I, np.array([0]), np.array([1]), np.array([7])], {}),
    "an index that is not there": ("Gather", [_I, np.array([9])], {}),
    "a size that does not fit": ("Reshape", [_I, np.array([5, -1])], {}),
    "a step of zero": ("Slice", [_I, np.array([0]), np.array([2]), np.array([0]), np.array([0])], {}),
    "an order that is none": ("Transpose", [_I], {"perm": [0, 0]}),
    "shapes that do not broadcast": ("Add", [_I, np.ones(3, np.int32)], {}),
    "no axis": ("Concat", [_I, _I], {}),
    "an unknown type": ("Cast", [_I], {"to": 99}),
    "too few inputs": ("Slice", [_I], {}),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_constants_that_do_not_fit_are_refused_by_name(case: str) -> None:
    op, arrays, attributes = HOSTILE[case]
    nodes, constants = _single(op, arrays, **attributes)
    with pytest.raises(UnsupportedOp, match="folded"):
        fold(nodes, constants, {}, set())


# --- what is refused --------------------------------------------------------------------------------------------------


def _model(scheme: str) -> onnx.ModelProto:
    return onnx.load_from_string(sample_package("vit", scheme).graph)


def _node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def _initializer(model: onnx.ModelProto, name: str, value: Array) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(value, name))
            return
    model.graph.initializer.append(numpy_helper.from_array(value, name))


def _gemm_alpha(model: onnx.ModelProto) -> str:
    _node(model, "layers.0.ffn.up.output.float").attribute.append(helper.make_attribute("alpha", 2.0))
    return "layers.0.ffn.up"


def _weight_zero_points(model: onnx.ModelProto) -> str:
    _initializer(model, "zeros.int8.32", np.ones(32, np.int8))
    return "layers.0.ffn.up.weight"


def _columns(model: onnx.ModelProto) -> str:
    node = _node(model, "layers.0.attention.query.weight.dq")  # 16 × 16: both axes fit
    next(attribute for attribute in node.attribute if attribute.name == "axis").i = 1
    return "layers.0.attention.query.weight"


def _unsigned_weights(model: onnx.ModelProto) -> str:
    tensor = next(t for t in model.graph.initializer if t.name == "layers.0.ffn.up.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.uint8), tensor.name))
    _initializer(model, "zeros.uint8", np.zeros(32, np.uint8))
    _node(model, "layers.0.ffn.up.weight.dq").input[2] = "zeros.uint8"
    return "layers.0.ffn.up.weight"


def _signed_activations(model: onnx.ModelProto) -> str:
    _initializer(model, "layers.0.ffn.input.zero_point", np.array(0, np.int8))
    return "layers.0.ffn.input.q"


def _other_scale_behind(model: onnx.ModelProto) -> str:
    _initializer(model, "other", np.array(0.5, np.float32))
    _node(model, "layers.0.ffn.up.dq").input[1] = "other"
    return "layers.0.ffn.up.q"


def _bias_scale(model: onnx.ModelProto) -> str:
    _initializer(model, "layers.0.ffn.up.bias.scale", np.ones(32, np.float32))
    return "layers.0.ffn.up"


def _float_output(model: onnx.ModelProto) -> str:
    _node(model, "layers.0.ffn.active").input[0] = "layers.0.ffn.up.output.float"
    return "layers.0.ffn.up.output.float"


def _quantized_operator(model: onnx.ModelProto) -> str:
    """Q/DQ on a softmax, as a foreign quantizer writes it."""
    index = next(i for i, node in enumerate(model.graph.node) if node.name == "layers.0.attention.probabilities")
    _node(model, "layers.0.attention.context.heads").input[0] = "foreign.dq"
    parameters = ["layers.0.ffn.input.scale", "layers.0.ffn.input.zero_point"]
    probabilities = model.graph.node[index].output[0]
    model.graph.node.insert(
        index + 1, helper.make_node("QuantizeLinear", [probabilities, *parameters], ["foreign.q"], "foreign.q")
    )
    model.graph.node.insert(
        index + 2, helper.make_node("DequantizeLinear", ["foreign.q", *parameters], ["foreign.dq"], "foreign.dq")
    )
    return "foreign"


def _reads_inside(model: onnx.ModelProto) -> str:
    """An operator that reads the quantized input of a linear layer, which is no tensor of the lowered graph."""
    _node(model, "layers.0.ffn.residual").input[0] = "layers.0.ffn.down.float_copy"
    model.graph.node.insert(
        next(i for i, node in enumerate(model.graph.node) if node.name == "layers.0.ffn.residual"),
        helper.make_node("Identity", ["layers.0.ffn.normed"], ["layers.0.ffn.down.float_copy"], "copy"),
    )
    _node(model, "copy").input[0] = "layers.0.attention.input.dq"
    return "copy"


def _never_quantized(model: onnx.ModelProto) -> str:
    _initializer(model, "constant.q", np.zeros((5, 16), np.uint8))
    _node(model, "layers.0.ffn.input.dq").input[0] = "constant.q"
    return "layers.0.ffn.up"


def _unknown_bias(model: onnx.ModelProto) -> str:
    _node(model, "layers.0.ffn.up.bias.dq").input[0] = "layers.0.ffn.other"
    index = next(i for i, node in enumerate(model.graph.node) if node.name == "layers.0.ffn.up.bias.dq")
    model.graph.node.insert(
        index, helper.make_node("Neg", ["layers.0.ffn.up.bias"], ["layers.0.ffn.other"], "other")
    )
    return "layers.0.ffn.up.bias"


def _missing_bias(model: onnx.ModelProto) -> str:
    """Nobody reads the dequantized bias any more."""
    del _node(model, "layers.0.ffn.up.output.float").input[2:]
    return "layers.0.ffn.up.bias.dq"


def _no_such_type(model: onnx.ModelProto) -> str:
    _initializer(model, "layers.0.ffn.up.weight", np.zeros((31, 17), np.int8))
    return "shapes"


STATIC = [
    _gemm_alpha, _weight_zero_points, _columns, _unsigned_weights, _signed_activations, _other_scale_behind,
    _bias_scale, _float_output, _quantized_operator, _reads_inside, _never_quantized, _unknown_bias, _missing_bias,
    _no_such_type,
]


@pytest.mark.parametrize("tamper", STATIC, ids=lambda tamper: str(tamper.__name__))
def test_foreign_static_construct_is_refused_by_name(tamper: Callable[[onnx.ModelProto], str]) -> None:
    model = _model("w8a8")
    name = tamper(model)
    with pytest.raises(UnsupportedOp, match=name.replace(".", r"\.")):
        lower(model.SerializeToString(), 5)


def _dynamic_zero_point(model: onnx.ModelProto) -> None:
    _node(model, "layers.0.ffn.up.integer").input[2] = "layers.0.attention.input.zero_point"


def _dynamic_weight_zero_point(model: onnx.ModelProto) -> None:
    _initializer(model, "zeros.int8.32", np.full(32, 3, np.int8))


def _dynamic_scale(model: onnx.ModelProto) -> None:
    _node(model, "layers.0.ffn.up.product.scale").input[0] = "layers.0.attention.input.scale"


def _dynamic_second_reader(model: onnx.ModelProto) -> None:
    _node(model, "layers.0.ffn.up.cast").input[0] = "layers.0.attention.query.integer"


def _dynamic_operator(model: onnx.ModelProto) -> None:
    _node(model, "layers.0.ffn.up.product").op_type = "Sub"


def _dynamic_no_zero_points(model: onnx.ModelProto) -> None:
    del _node(model, "layers.0.ffn.up.integer").input[2:]


@pytest.mark.parametrize(
    "tamper",
    [_dynamic_zero_point, _dynamic_weight_zero_point, _dynamic_scale, _dynamic_second_reader, _dynamic_operator,
     _dynamic_no_zero_points],
    ids=lambda tamper: str(tamper.__name__),
)
def test_foreign_dynamic_construct_is_refused_by_name(tamper: Callable[[onnx.ModelProto], None]) -> None:
    model = _model("w8a8-dynamic")
    tamper(model)
    with pytest.raises(UnsupportedOp, match=r"layers\.0\.ffn\.up"):
        lower(model.SerializeToString(), 5)


def _twice(model: onnx.ModelProto) -> None:
    _node(model, "layers.0.ffn.up.output").input[1] = "layers.0.ffn.up.product"


def _less(model: onnx.ModelProto) -> None:
    _node(model, "layers.0.ffn.up.output").op_type = "Sub"


@pytest.mark.parametrize("change", [_twice, _less], ids=lambda change: str(change.__name__))
def test_what_follows_products_without_a_bias_is_an_operator(change: Callable[[onnx.ModelProto], None]) -> None:
    """A dynamic layer may have no bias; an operator that only looks like one is not taken for it."""
    package, model = sample_package("vit", "w8a8-dynamic"), _model("w8a8-dynamic")
    change(model)
    changed = bytes(model.SerializeToString())
    inputs = {name: value[:1] for name, value in package.samples.golden_inputs.items()}
    found = execute(lower(changed, 5), inputs)[0]
    assert sqnr_db(run_graph(changed, inputs, optimize=False), found) > 35
    assert sqnr_db(package.samples.golden_outputs[:1], found) < 30


def test_unknown_dimension_is_refused() -> None:
    model = _model("fp32")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "colours"
    with pytest.raises(UnsupportedOp):
        lower(model.SerializeToString(), 5)


def test_scaled_float_gemm_is_refused() -> None:
    for attribute in (("alpha", 0.5), ("beta", 0.5), ("transA", 1)):
        model = _model("fp32")
        _node(model, "layers.0.ffn.up.output").attribute.append(helper.make_attribute(*attribute))
        with pytest.raises(UnsupportedOp):
            lower(model.SerializeToString(), 5)


def test_lowering_leaves_the_bytes_alone() -> None:
    graph = write_graph(VIT, random_weights(VIT))
    copy = bytes(bytearray(graph))
    lower(graph, 5)
    assert graph == copy


def test_plain_operator_is_handed_on() -> None:
    """Operators that no converter knows are the converters' to refuse, by their name."""
    model = _model("fp32")
    _node(model, "layers.0.ffn.active").op_type = "Elu"
    del _node(model, "layers.0.ffn.active").attribute[:]
    kinds = [node.op for node in lower(model.SerializeToString(), 5).nodes if isinstance(node, Operator)]
    assert "Elu" in kinds
