"""`drop_identities` and `merge_reshapes`: nodes that move nothing, and two layout changes in a row that are one."""

from __future__ import annotations

import onnx
from onnx import helper

from edgesdk.transformer.passes.editing import Editor, attributes_of


def drop_identities(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without `Identity` and without `Transpose` that keeps the order. What makes an output of the graph or
    of a branch stays: a branch has to make its outputs itself."""
    editor = Editor(model)
    unwanted = []
    for scope in editor.scopes:
        for node in scope.node:
            if len(node.output) == 1 and not editor.results[node.output[0]] and _moves_nothing(node):
                editor.reroute(node.output[0], node.input[0])
                unwanted.append(node)
    editor.remove(unwanted)
    return editor.finish()


def _moves_nothing(node: onnx.NodeProto) -> bool:
    if node.op_type == "Identity":
        return True
    order = attributes_of(node).get("perm")
    return node.op_type == "Transpose" and order is not None and list(order) == list(range(len(order)))


def merge_reshapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model where a Reshape of a Reshape, or a Transpose of a Transpose, is one; also where the first one has other
    readers: it stays for them."""
    editor = Editor(model)
    for scope in editor.scopes:
        for node in scope.node:
            before = editor.maker.get(node.input[0]) if node.input else None
            while before is not None and before.op_type == node.op_type and _merged(editor, before, node):
                editor.refresh()
                before = editor.maker.get(node.input[0])
    editor.remove(
        node for scope in editor.scopes for node in scope.node
        if node.op_type in ("Reshape", "Transpose") and not _is_read(editor, node)
    )
    return editor.finish()


def _is_read(editor: Editor, node: onnx.NodeProto) -> bool:
    return any(name in editor.readers or editor.results[name] for name in node.output)


def _merged(editor: Editor, first: onnx.NodeProto, second: onnx.NodeProto) -> bool:
    """Whether `second` now does the work of both."""
    if second.op_type == "Reshape":
        shape = editor.constant(second.input[1])
        # A 0 copies the size that stands there in the input, which is another one now. Computed shapes hold sizes.
        if shape is not None and (shape == 0).any():
            return False
    elif second.op_type == "Transpose":
        orders = [attributes_of(node).get("perm") for node in (first, second)]
        if orders[0] is None or orders[1] is None:
            return False
        del second.attribute[:]
        second.attribute.append(helper.make_attribute("perm", [orders[0][axis] for axis in orders[1]]))
    else:
        return False
    second.input[0] = first.input[0]
    return True
