"""Graphs with exits and gates without their branches: the longest way through them, as one list of nodes."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import helper

from edgesdk.errors import UnsupportedOp

DEEPEST = 100


def inlined(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes of the graph, each `If` replaced by the branch with more nodes in it (the one that runs a gated layer,
    or that does not leave). Package graphs have unique names, so nothing is renamed: `Identity` nodes carry the results
    of a branch out of it.

    Raises:
        UnsupportedOp: branches that are not those of package graphs.
    """
    nodes: list[onnx.NodeProto] = []
    _inline(graph.node, nodes, 0)
    return nodes


def _inline(source: Iterable[onnx.NodeProto], nodes: list[onnx.NodeProto], depth: int) -> None:
    if depth > DEEPEST:
        raise UnsupportedOp(f"branches within branches, more than {DEEPEST} deep")
    for node in source:
        if node.op_type != "If":
            nodes.append(node)
            continue
        branches = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        if not branches or any(len(branch.output) != len(node.output) for branch in branches):
            raise UnsupportedOp(f"If {node.name!r}: its branches do not have its outputs")
        longest = max(branches, key=_size)
        _inline(longest.node, nodes, depth + 1)
        for value, name in zip(longest.output, node.output, strict=True):
            nodes.append(helper.make_node("Identity", [value.name], [name], name=f"{name}.inlined"))


def _size(graph: onnx.GraphProto) -> int:
    """Nodes of a branch, those of its own branches included."""
    return sum(
        1 + sum(_size(attribute.g) for attribute in node.attribute if attribute.HasField("g")) for node in graph.node
    )
