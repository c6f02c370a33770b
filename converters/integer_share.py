"""How much of a model runs in integer kernels: a scheme counts as int8 only from 95 % of its multiplications on."""

from __future__ import annotations

import math

from edgesdk.converters.front import Graph, Linear

LEAST_SHARE = 0.95
INTEGER_FORMS = ("w8a8", "w8a8-dynamic")


def integer_share(graph: Graph, attention: int = 0) -> float:
    """Multiply-accumulates of linear layers in int8 forms over those of all linear layers and matrix products, for one
    input of the graph's sequence; 0 where there are none. `w8` layers multiply in float, and so do matrix products but
    for `attention` MACs."""
    integer, total = attention, 0
    for node in graph.nodes:
        if isinstance(node, Linear):
            rows = math.prod(graph.shapes[node.source]) // node.weight.shape[1]
            count = rows * node.weight.size
            integer += count if node.form in INTEGER_FORMS else 0
        elif node.op == "MatMul":
            count = math.prod(graph.shapes[node.outputs[0]]) * graph.shapes[node.inputs[0]][-1]
        else:
            continue
        total += count
    return integer / total if total else 0.0


def share_notes(graph: Graph, scheme: str, attention: int = 0) -> tuple[str, ...]:
    """The note of an artifact whose scheme promises int8 and whose MACs mostly stay float; else nothing."""
    share = integer_share(graph, attention)
    if scheme == "fp32" or share >= LEAST_SHARE:
        return ()
    percent = math.floor(1000 * share) / 10  # never rounded up to the limit
    return (f"only {percent:g} % of the MACs run in integer kernels: not int8 by EdgeSDK's rule",)
