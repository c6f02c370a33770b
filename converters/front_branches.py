"""Graphs with exits and gates as one list of nodes: the longest way through them, or both ways between marks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx import helper

from edgesdk.errors import UnsupportedOp

DEEPEST = 100
BRANCH, OTHERWISE, JOIN = "edgesdk.branch:", "edgesdk.otherwise:", "edgesdk.join:"
"""What the names of marks begin with."""


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


def marked(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes of the graph, each `If` replaced by both of its branches between marks: BRANCH, the nodes of `then`,
    OTHERWISE, those of `else`, and a JOIN for every output. Marks are `Where` nodes of the condition, which choose what
    the `If` chose, so that shapes can be inferred; a converter that knows them skips the branch not taken.

    Raises:
        UnsupportedOp: branches that do not have the outputs of their `If`, or names that marks have.
    """
    return list(_mark(graph.node, 0))


def _mark(source: Iterable[onnx.NodeProto], depth: int) -> Iterator[onnx.NodeProto]:
    if depth > DEEPEST:
        raise UnsupportedOp(f"branches within branches, more than {DEEPEST} deep")
    for node in source:
        if node.name.startswith("edgesdk."):
            raise UnsupportedOp(f"{node.op_type} {node.name!r}: the name of a mark")
        if node.op_type != "If":
            yield node
            continue
        branches = {attribute.name: attribute.g for attribute in node.attribute if attribute.HasField("g")}
        if set(branches) != {"then_branch", "else_branch"} or len(node.input) != 1 or not node.output:
            raise UnsupportedOp(f"If {node.name!r}: expected a condition, two branches and an output")
        yes, no = branches["then_branch"], branches["else_branch"]
        if any(len(branch.output) != len(node.output) for branch in (yes, no)):
            raise UnsupportedOp(f"If {node.name!r}: its branches do not have its outputs")
        condition, name = node.input[0], node.output[0]
        yield helper.make_node("Where", [condition] * 3, [f"{name}.branch"], f"{BRANCH}{name}")
        yield from _mark(yes.node, depth + 1)
        yield helper.make_node("Where", [condition] * 3, [f"{name}.otherwise"], f"{OTHERWISE}{name}")
        yield from _mark(no.node, depth + 1)
        for left, right, result in zip(yes.output, no.output, node.output, strict=True):
            yield helper.make_node("Where", [condition, left.name, right.name], [result], f"{JOIN}{name}")


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
