"""RMSNorm in half precision: the squares of what is above 255 would overflow float16.

x / √(mean x² + ε) is z / √(mean z² + ε / m²) for z = x / m and any m > 0; with m = max |x| no square is above 1. So
nothing depends on TensorRT keeping some layers in float32, which it need not do.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

FLOOR = 2.0**-14  # the least normal float16: rows of zeros are divided by it


def scaled_norms(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes of a graph, every RMSNorm (`GraphWriter.rms_norm`) scaled by the largest of its row; constants that it
    needs are added to the graph."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for text in node.input:
            readers.setdefault(text, []).append(node)
    made: list[onnx.NodeProto] = []
    for node in graph.node:
        norm = _norm_of(node, readers)
        made += [node] if norm is None else _scaled(node, *norm, graph)
    return made


def _norm_of(
    square: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]]
) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """(`Add` of ε, `Div` of x by the root) of the RMSNorm that begins with this node; None where it begins none."""
    if square.op_type != "Mul" or square.input[0] != square.input[1]:
        return None
    x, node, shifted = square.input[0], square, None
    for kind in ("ReduceMean", "Add", "Sqrt", "Div"):
        following = readers.get(node.output[0], [])
        if len(following) != 1 or following[0].op_type != kind:
            return None
        node = following[0]
        shifted = node if kind == "Add" else shifted
    return None if shifted is None or node.input[0] != x else (shifted, node)


def _scaled(
    square: onnx.NodeProto, shifted: onnx.NodeProto, normal: onnx.NodeProto, graph: onnx.GraphProto
) -> list[onnx.NodeProto]:
    """Nodes in the place of `square`; the other two are changed to read the scaled row and the scaled ε."""
    constants = {entry.name: entry for entry in graph.initializer}
    at = next(index for index, text in enumerate(shifted.input) if text in constants)
    epsilon = float(numpy_helper.to_array(constants[shifted.input[at]]).item())
    x, y = square.input[0], normal.output[0]
    made: list[onnx.NodeProto] = []

    def step(op: str, inputs: list[str], part: str, **attributes: object) -> str:
        made.append(helper.make_node(op, inputs, [f"{y}.{part}"], name=f"{y}.{part}", **attributes))
        return f"{y}.{part}"

    largest = step("ReduceMax", [step("Abs", [x], "size")], "largest", axes=[-1], keepdims=1)
    scale = step("Max", [largest, scalar(graph, "norm.floor", FLOOR)], "scale")
    row = step("Div", [x, scale], "scaled")
    # √ε / m squared: m² itself may be too large, and ε too small, for float16.
    part = step("Div", [scalar(graph, f"norm.root.{epsilon:g}", epsilon**0.5), scale], "shift.root")
    shifted.input[at] = step("Mul", [part, part], "shift")
    square.input[:] = [row, row]
    normal.input[0] = row
    return [*made, square]


def scalar(graph: onnx.GraphProto, name: str, value: float) -> str:
    """`name`, by which the graph holds this float32 constant: once, however often it is asked for."""
    if all(entry.name != name for entry in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    return name
