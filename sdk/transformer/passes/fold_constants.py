"""`fold_constants`: what depends on constants alone is computed when the graph is written, and the attention scale
1/√D becomes part of the query's weight and bias.

A node is folded where its result takes no more bytes than what it read: nodes that unpack weights, spread values or
turn integers into floats stay, since they are what keeps the file small. The scale is folded where the query's last
matrix is a float initializer; quantized forms keep it, since their integers and encodings are the package's.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgesdk.transformer.passes.editing import Editor, attributes_of

KEPT = ("DequantizeLinear", "DynamicQuantizeLinear", "If", "QuantizeLinear")


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with constants computed and scales folded."""
    editor = Editor(model)
    editor.remove([node for scope in editor.scopes for node in scope.node if _computed(editor, node, model)])
    scales = [node for scope in editor.scopes for node in scope.node if node.op_type == "Mul"]
    folded = [node for node in scales if _scale_folded(editor, node)]
    for node in folded:
        editor.reroute(node.output[0], node.input[0])
    editor.remove(folded)
    return editor.finish()


def _computed(editor: Editor, node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    """Whether the node has become an initializer."""
    inputs = [editor.initializers.get(name) for name in node.input]
    if not inputs or None in inputs or node.op_type in KEPT or len(node.output) != 1:
        return False
    if editor.results[node.output[0]]:
        return False
    known = [tensor for tensor in inputs if tensor is not None]
    if any(tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4) for tensor in known):
        return False
    if node.op_type == "Cast" and _size(attributes_of(node)["to"]) > _size(known[0].data_type):
        return False
    output = helper.make_tensor_value_info(node.output[0], onnx.TensorProto.UNDEFINED, None)
    tensors = {tensor.name: tensor for tensor in known}
    graph = helper.make_graph([node], "constant", [], [output], list(tensors.values()))
    single = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    value = np.asarray(ReferenceEvaluator(single).run(None, {})[0])
    if value.nbytes > max(numpy_helper.to_array(tensor).nbytes for tensor in known):
        return False
    editor.add(node.output[0], value)
    return True


def _size(kind: int) -> int:
    """Bytes of one number."""
    return int(helper.tensor_dtype_to_np_dtype(kind).itemsize)


def _scale_folded(editor: Editor, node: onnx.NodeProto) -> bool:
    """Gemm → Reshape → Transpose → Mul by a number: whether the number now lies in the Gemm's weight and bias."""
    scale = editor.constant(node.input[1])
    if scale is None or scale.shape != () or scale.dtype != np.float32 or editor.results[node.output[0]]:
        return False
    value = node.input[0]
    for op in ("Transpose", "Reshape"):
        before = editor.maker.get(value)
        if before is None or before.op_type != op or editor.only_reader(value) is None:
            return False
        value = before.input[0]
    gemm = editor.maker.get(value)
    if gemm is None or gemm.op_type != "Gemm" or editor.only_reader(value) is None:
        return False
    if {"alpha", "beta", "transA"} & attributes_of(gemm).keys():
        return False
    parts = [editor.constant(name) for name in gemm.input[1:]]
    if not parts or any(part is None or part.dtype != np.float32 for part in parts):
        return False
    for index, part in enumerate(parts, 1):
        assert part is not None
        # Layers that share weights share the scaled ones too.
        gemm.input[index] = editor.add(f"{gemm.input[index]}.scaled", part * scale)
    editor.refresh()
    return True
