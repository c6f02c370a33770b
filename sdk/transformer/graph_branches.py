"""Conditions of branches in a graph: may a batch leave at this exit? The rules are those of `dynamic.py`."""

from __future__ import annotations

import math

from onnx import TensorProto

from edgesdk.transformer.graph_builder import Builder
from edgesdk.transformer.spec import Exit


def leaving(builder: Builder, name: str, exit_: Exit, history: list[str], classes: int) -> str:
    """A boolean scalar: every row of the batch may leave. `history` names the logits [B, C] of the exits so far."""
    assert exit_.threshold is not None
    threshold = builder.scalar(f"{name}.threshold", exit_.threshold)
    if exit_.criterion == "patience":
        rows = _agreement(builder, name, history, int(exit_.threshold))
    else:
        probabilities = builder.node("Softmax", [history[-1]], f"{name}.probabilities", axis=-1)
        if exit_.criterion == "confidence":
            score = builder.node("ReduceMax", [probabilities, builder.integers(-1)], f"{name}.score", keepdims=0)
            rows = builder.node("GreaterOrEqual", [score, threshold], f"{name}.rows")
        else:
            score = _entropy(builder, name, probabilities, classes)
            rows = builder.node("LessOrEqual", [score, threshold], f"{name}.rows")
    flags = builder.node("Cast", [rows], f"{name}.flags", to=TensorProto.INT32)
    smallest = builder.node("ReduceMin", [flags], f"{name}.smallest", keepdims=0)
    return builder.node("Cast", [smallest], f"{name}.leaves", to=TensorProto.BOOL)


def _entropy(builder: Builder, name: str, probabilities: str, classes: int) -> str:
    """Entropy [B] divided by log C."""
    safe = builder.node("Max", [probabilities, builder.scalar("probability.least", 1e-12)], f"{name}.safe")
    logarithm = builder.node("Log", [safe], f"{name}.log")
    products = builder.node("Mul", [probabilities, logarithm], f"{name}.products")
    total = builder.node("ReduceSum", [products, builder.integers(-1)], f"{name}.total.entropy", keepdims=0)
    factor = builder.scalar("entropy.factor", -1.0 / math.log(max(2, classes)))
    return builder.node("Mul", [total, factor], f"{name}.score")


def _agreement(builder: Builder, name: str, history: list[str], patience: int) -> str:
    """Whether this exit and the `patience` exits before it say the same, bool [B]."""
    labels = [
        builder.node("ArgMax", [logits], f"{name}.label.{age}", axis=-1, keepdims=0)
        for age, logits in enumerate(reversed(history[-1 - patience :]))
    ]
    rows = builder.node("Equal", [labels[0], labels[0]], f"{name}.agree.0")
    if len(history) <= patience:
        return builder.node("Not", [rows], f"{name}.rows")
    for age, earlier in enumerate(labels[1:], 1):
        same = builder.node("Equal", [labels[0], earlier], f"{name}.same.{age}")
        rows = builder.node("And", [rows, same], f"{name}.agree.{age}")
    return rows
