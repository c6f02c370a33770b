"""The shared front of the converters: a package's ONNX with a fixed sequence → linear layers and plain operators.

`lower` fixes batch 1 and the sequence, folds the shape arithmetic, and recognises the four forms of a linear layer of
the graph contract (`docs/architecture.md`), with Q/DQ absorbed into them. What is left are plain ONNX operators on
float tensors with static shapes. A converter translates `Linear` and each `Operator`, or refuses by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgesdk.converters.front_linear import Encoding, Form, Linear, Operator, Recogniser, attributes_of
from edgesdk.errors import UnsupportedOp

__all__ = ["Encoding", "Form", "Graph", "Linear", "Operator", "lower"]


@dataclass(frozen=True)
class Graph:
    """Nodes in execution order; `constants` hold what operators read; `shapes` is static and complete."""

    nodes: tuple[Linear | Operator, ...]
    constants: dict[str, NDArray[Any]]
    shapes: dict[str, tuple[int, ...]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dtypes: dict[str, str]


def lower(model_bytes: bytes, sequence: int) -> Graph:
    """Lower a package's graph for batch 1 and `sequence` tokens.

    Raises:
        UnsupportedOp: a quantized construct that is none of the four forms, or a shape that stays unknown; the
            message names the node.
    """
    model = onnx.load_from_string(model_bytes)
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    _fix_inputs(graph, sequence)
    shapes = {value.name: _dims(value) for value in graph.input}
    nodes = _fold(graph.node, constants, shapes)
    _infer_shapes(model, nodes, constants, shapes)
    lowered = Recogniser(nodes, constants).run()
    _check_complete(lowered, {*constants, *(value.name for value in graph.input)}, graph.output)
    used = {name for node in lowered if isinstance(node, Operator) for name in node.inputs}
    return Graph(
        nodes=tuple(lowered),
        constants={name: value for name, value in constants.items() if name in used},
        shapes=shapes,
        inputs=tuple(value.name for value in graph.input),
        outputs=tuple(value.name for value in graph.output),
        dtypes={
            value.name: str(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
            for value in (*graph.input, *graph.output)
        },
    )


def _fix_inputs(graph: onnx.GraphProto, sequence: int) -> None:
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in ("batch", "sequence"):
                size = 1 if dim.dim_param == "batch" else sequence
                dim.Clear()
                dim.dim_value = size
    del graph.value_info[:]


def _dims(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _fold(
    nodes: Sequence[onnx.NodeProto], constants: dict[str, NDArray[Any]], shapes: dict[str, tuple[int, ...]]
) -> list[onnx.NodeProto]:
    """Evaluate what depends on shapes and constants alone: `Shape` of an input, and `Concat`, `Slice`, `Expand` of
    constants. int8 tables are sliced but stay int8."""
    left = []
    for node in nodes:
        attributes = attributes_of(node)
        values = [constants.get(name) for name in node.input]
        result: NDArray[Any] | None = None
        if node.op_type == "Shape" and node.input[0] in shapes:
            dims = shapes[node.input[0]][attributes.get("start", 0) : attributes.get("end")]
            result = np.array(dims, np.int64)
        elif all(value is not None for value in values) and values:
            known = [value for value in values if value is not None]
            if node.op_type == "Concat" and all(value.dtype == np.int64 for value in known):
                result = np.concatenate(known, axis=attributes["axis"])
            elif node.op_type == "Expand":
                result = known[0] * np.ones(known[1], known[0].dtype)
            elif node.op_type == "Slice" and len(known) == 4 and len(known[1]) == 1:
                window = [slice(None)] * known[0].ndim
                window[int(known[3][0])] = slice(int(known[1][0]), int(known[2][0]))
                result = np.ascontiguousarray(known[0][tuple(window)])
        if result is None:
            left.append(node)
        else:
            constants[node.output[0]] = result
    return left


def _infer_shapes(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    constants: dict[str, NDArray[Any]],
    shapes: dict[str, tuple[int, ...]],
) -> None:
    graph = model.graph
    folded = onnx.GraphProto()
    folded.name = "folded"
    folded.node.extend(nodes)
    folded.input.extend(graph.input)
    folded.output.extend(graph.output)
    folded.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    whole = helper.make_model(folded, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        inferred = onnx.shape_inference.infer_shapes(whole, strict_mode=True, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError) as problem:
        raise UnsupportedOp(f"the shapes of the graph cannot be inferred: {problem}") from problem
    shapes.update({name: tuple(value.shape) for name, value in constants.items()})
    shapes.update({value.name: _dims(value) for value in (*inferred.value_info, *inferred.output)})
    for node in nodes:
        for name in node.output:
            if name not in shapes or 0 in shapes[name]:
                raise UnsupportedOp(f"{node.op_type} {node.name!r}: the shape of {name!r} is not static")


def _check_complete(
    nodes: Sequence[Linear | Operator], known: set[str], outputs: Sequence[onnx.ValueInfoProto]
) -> None:
    """Every tensor that is read was made before: nothing reads what a linear layer absorbed."""
    for node in nodes:
        reads = (node.source,) if isinstance(node, Linear) else node.inputs
        for name in reads:
            if name and name not in known:
                raise UnsupportedOp(f"{node.name!r} reads {name!r}, which is inside a linear layer")
        known |= {node.result} if isinstance(node, Linear) else set(node.outputs)
    for value in outputs:
        if value.name not in known:
            raise UnsupportedOp(f"the output {value.name!r} is inside a linear layer")
