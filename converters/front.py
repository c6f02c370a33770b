"""The shared front of the converters: a package's ONNX with a fixed sequence → linear layers and plain operators.

`lower` fixes batch 1 and the sequence, folds the shape arithmetic, unpacks weights of 4 bits or without their zeros,
and recognises the four forms of a linear layer of the graph contract (`docs/architecture.md`), with Q/DQ absorbed into
them. What is left are plain ONNX operators on float tensors with static shapes. A converter translates `Linear` and
each `Operator`, or refuses by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgesdk.converters.front_branches import inlined, marked
from edgesdk.converters.front_fold import constants_of, fold
from edgesdk.converters.front_linear import Encoding, Form, Linear, Operator, Recogniser
from edgesdk.errors import UnsupportedOp

__all__ = ["BRANCHES", "Encoding", "Form", "Graph", "Linear", "Operator", "lower"]

BRANCHES = "early exits and gates run as branches of the ONNX artifact; tflite does not build them"
OLDEST_OPSET = 18
LARGEST_VALUE = 64
"""Elements up to which shape inference gets the numbers of a constant: shapes and axes are no larger."""


@dataclass(frozen=True)
class Graph:
    """Nodes in execution order; `constants` hold what operators read; `shapes` is static and complete."""

    nodes: tuple[Linear | Operator, ...]
    constants: dict[str, NDArray[Any]]
    shapes: dict[str, tuple[int, ...]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dtypes: dict[str, str]


def lower(model_bytes: bytes, sequence: int, branches: bool | Literal["marked"] = False) -> Graph:
    """Lower a package's graph for batch 1 and `sequence` tokens. With `branches`, a graph with exits or gates is
    lowered as its longest way through: every layer, gate and exit runs, and only the main output is an output. With
    "marked" both branches stand one after the other, between the marks of `front_branches.py`.

    Raises:
        UnsupportedOp: a quantized construct that is none of the four forms, a shape that stays unknown, or (without
            `branches`) an exit or a gate; the message names the node. An input whose size has no bound.
    """
    model = onnx.load_from_string(model_bytes)
    _check_opset(model)
    graph = model.graph
    if any(node.op_type == "If" for node in graph.node):
        if not branches:
            raise UnsupportedOp(BRANCHES, "build this package with the onnx or the neon converter")
        nodes = marked(graph) if branches == "marked" else inlined(graph)
        if branches != "marked":
            del graph.output[1:]
    else:
        nodes = list(graph.node)
    constants = constants_of(graph)
    _fix_inputs(graph, sequence)
    shapes = {value.name: _dims(value) for value in graph.input}
    outputs = {value.name for value in graph.output}
    nodes = fold(nodes, constants, shapes, outputs)
    _infer_shapes(model, nodes, constants, shapes)
    lowered = Recogniser(nodes, constants, shapes).run()
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


def _check_opset(model: onnx.ModelProto) -> None:
    """Axes are inputs from opset 18 on; what a later opset than the installed onnx knows means is unknown."""
    latest = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and not OLDEST_OPSET <= entry.version <= latest:
            raise UnsupportedOp(f"opset {entry.version}: expected {OLDEST_OPSET} to {latest}", "export with opset 21")


def _fix_inputs(graph: onnx.GraphProto, sequence: int) -> None:
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in ("batch", "sequence"):
                size = 1 if dim.dim_param == "batch" else sequence
                dim.Clear()
                dim.dim_value = size
    for value in graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_value < 1:
                named = f"{dim.dim_param!r} " if dim.dim_param else ""
                message = f"input {value.name!r}: nothing says how large its axis {axis} {named}can be"
                raise UnsupportedOp(message, "give it a size, or call it batch or sequence")
    del graph.value_info[:]


def _dims(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


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
    # Of large constants only type and shape matter: weights are not copied, and may have any size.
    for name, value in constants.items():
        if value.size <= LARGEST_VALUE:
            folded.initializer.append(numpy_helper.from_array(value, name))
        else:
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            folded.input.append(helper.make_tensor_value_info(name, kind, value.shape))
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
