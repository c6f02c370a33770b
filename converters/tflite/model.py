"""A whole lowered graph → a TFLite file, or the list of what stands in the way."""

from __future__ import annotations

from edgesdk.converters.front import Graph, Linear
from edgesdk.converters.tflite.linear import linear
from edgesdk.converters.tflite.operators import OPERATORS
from edgesdk.converters.tflite.translation import Translation
from edgesdk.errors import UnsupportedOp


def translate(graph: Graph) -> bytes:
    """The TFLite file; inputs and outputs keep their names, types and order.

    Raises:
        UnsupportedOp: operators without an exact translation, all of them named.
    """
    translation = Translation(graph)
    problems = _translate(translation)
    if problems:
        raise UnsupportedOp("; ".join(problems), "build this package with another converter")
    outputs = [translation.read(name) for name in graph.outputs]
    return translation.writer.finish([translation.indices[name] for name in graph.inputs], outputs)


def unsupported(graph: Graph) -> list[str]:
    """What `translate` would refuse, one reason for each operator."""
    return _translate(Translation(graph))


def _translate(translation: Translation) -> list[str]:
    problems = []
    for node in translation.graph.nodes:
        if id(node) in translation.skipped:
            continue
        try:
            if isinstance(node, Linear):
                linear(translation, node)
            elif node.op in OPERATORS:
                OPERATORS[node.op](translation, node)
            else:
                raise UnsupportedOp(f"operator {node.op} {node.name!r} has no translation to TFLite")
        except UnsupportedOp as problem:
            problems.append(problem.message)
            for name in (node.result,) if isinstance(node, Linear) else node.outputs:
                translation.result(name)  # a stand-in, so that the search goes on behind it
    return problems
