"""`merge_qkv`: query, key and value of one tensor become one Gemm [tokens, Q + K + V] and a Split.

Only float layers. In quantized forms the three outputs have their own scales: merged, ONNX Runtime has to leave the
products in float, split and quantize them again, which was measured to be slower (MiniLM's shape, ONNX Runtime 1.31:
w8a8 up to 7 %, w8a8-dynamic 2 to 4 % more CPU time). The NEON build merges all forms by itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from edgesdk.transformer.passes.editing import Editor, attributes_of

PARTS = ("query", "key", "value")


def merge_qkv(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with one Gemm for the projections of each attention whose three are plain float layers."""
    editor = Editor(model)
    for scope in reversed(editor.scopes):
        nodes: list[onnx.NodeProto] = []
        merged: set[str] = set()
        for node in scope.node:
            group = _group(editor, scope, node)
            if group is not None:
                nodes.extend(_merged(editor, group))
                merged |= {part.output[0] for part in group}
            elif node.output[0] not in merged:
                nodes.append(node)
        if merged:
            # The others of a group stand behind its first one and are left out above.
            editor.replace(scope, nodes)
    return editor.finish()


def _group(editor: Editor, scope: onnx.GraphProto, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """The three layers, where `node` is the query's."""
    if not node.output or not node.output[0].endswith(".attention.query.output"):
        return None
    names = [node.output[0].replace(".query.", f".{part}.") for part in PARTS]
    here = {other.output[0]: other for other in scope.node if other.output}
    group = [here[name] for name in names if name in here]
    if len(group) < len(PARTS) or {part.input[0] for part in group} != {node.input[0]}:
        return None
    for part in group:
        values = [editor.constant(name) for name in part.input[1:]]
        plain = part.op_type == "Gemm" and attributes_of(part) == {"transB": 1} and len(values) == 2
        if not plain or any(value is None or value.dtype != np.float32 for value in values):
            return None
        if editor.only_reader(part.output[0]) is None:
            return None
    return group


def _merged(editor: Editor, group: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    weight, bias = (
        editor.add(
            group[0].input[index].replace(".query.", ".qkv."),
            np.concatenate([_value(editor, part.input[index]) for part in group]),
        )
        for index in (1, 2)
    )
    sizes = [len(_value(editor, part.input[2])) for part in group]
    split = editor.add("split." + "_".join(map(str, sizes)), np.array(sizes, np.int64))
    name = group[0].output[0].replace(".query.", ".qkv.")
    outputs = [part.output[0] for part in group]
    return [
        helper.make_node("Gemm", [group[0].input[0], weight, bias], [name], name=name, transB=1),
        helper.make_node("Split", [name, split], outputs, name=f"{name}.split", axis=1),
    ]


def _value(editor: Editor, name: str) -> NDArray[Any]:
    value = editor.constant(name)
    assert value is not None
    return value
