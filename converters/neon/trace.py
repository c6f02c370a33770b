"""Lowered graph → plan: every tensor of the graph gets a symbolic value that says what it is, operator by operator.

The graph contract (`docs/architecture.md`) is the only thing understood; anything else is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from edgesdk.converters.front import Graph, Linear, Operator
from edgesdk.converters.neon import trace_llama as llama
from edgesdk.converters.neon.plan import (
    Activate,
    Attend,
    Dense,
    Embed,
    Features,
    Normalize,
    Patches,
    Plan,
    Pool,
    Positions,
    Product,
    RootNormalize,
    Rotate,
    Step,
    Sum,
    Table,
    Tensor,
)
from edgesdk.converters.neon.symbols import (
    Context,
    Found,
    Heads,
    Input,
    Part,
    Scores,
    Sigmoid,
    Spread,
    Weighted,
    WithClass,
)
from edgesdk.errors import UnsupportedOp

SPLIT_PERMUTATIONS = {
    (0, 2, 1, 3): "rows", (0, 2, 3, 1): "columns", (0, 2, 3, 1, 4): "rows", (0, 2, 3, 4, 1): "columns",
}
MERGE_PERMUTATIONS = {(0, 2, 1, 3), (0, 3, 1, 2, 4)}


def trace(graph: Graph) -> Plan:
    """Understand a lowered graph.

    Raises:
        UnsupportedOp: an operator, or a use of it, that is not in the graph contract.
    """
    return Tracer(graph).run()


class Tracer:
    """Goes through the nodes; `generic.py` has a subclass that falls back to plain float operators."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.steps: list[Step] = []
        self.values: dict[str, Any] = {name: array for name, array in graph.constants.items()}
        self.names = set(graph.inputs)
        self.masked = "attention_mask" in self.names
        self.sequence, self.vocabulary = 0, 0
        starts = {"input_ids": "ids", "attention_mask": "mask", "pixel_values": "pixels", "features": "features"}
        for name in graph.inputs:
            if name not in starts:
                raise UnsupportedOp(f"input {name!r}: expected one of {sorted(starts)}")
            self.values[name] = Input(starts[name])
        if "features" in self.names:
            _, rows, columns = graph.shapes["features"]
            self.sequence = rows
            self.values["features"] = self.add(Features(self.tensor("features", rows, columns)))

    def run(self) -> Plan:
        for node in self.graph.nodes:
            if isinstance(node, Linear):
                self.linear(node)
            else:
                self.operator(node)
        return self.plan()

    def operator(self, node: Operator) -> None:
        """Give the outputs of a node their symbolic values."""
        handler: Callable[[Operator, list[Any]], Any] | None = getattr(self, f"op_{node.op.lower()}", None)
        if handler is None:
            raise UnsupportedOp(f"{node.op} {node.name!r}: not an operator of the NEON build")
        inputs = [self.values.get(name) for name in node.inputs]
        try:
            value = handler(node, inputs)
        except (AttributeError, IndexError, TypeError, ValueError):
            value = None  # too few inputs, attributes of another type: graphs may come from anywhere
        if value is None or len(node.outputs) != 1:
            raise UnsupportedOp(f"{node.op} {node.name!r}: this use of it is not in the graph contract")
        self.values[node.outputs[0]] = value

    def plan(self) -> Plan:
        output = self.values.get(self.graph.outputs[0])
        if len(self.graph.outputs) != 1 or not isinstance(output, Tensor):
            raise UnsupportedOp(f"output {self.graph.outputs[0]!r} is not a float tensor of rows")
        return Plan(tuple(self.steps), output, self.sequence, self.masked, self.vocabulary)

    # --- helpers ------------------------------------------------------------------------------------------------------

    def tensor(self, name: str, rows: int, columns: int) -> Tensor:
        return Tensor(name, rows, columns, tokens=self.masked and rows == self.sequence and rows > 1)

    def add(self, step: Step) -> Tensor:
        self.steps.append(step)
        return step.result

    def shape(self, node: Operator) -> tuple[int, ...]:
        return self.graph.shapes[node.outputs[0]]

    def same(self, node: Operator, source: Tensor) -> Tensor:
        return replace(source, name=node.outputs[0])

    def linear(self, linear: Linear) -> None:
        source = self.values.get(linear.source)
        if not isinstance(source, Tensor) or source.columns != linear.weight.shape[1]:
            raise UnsupportedOp(f"linear layer {linear.name!r}: its input is not a float tensor of rows")
        if linear.weight.shape[1] > 1 << 16:
            raise UnsupportedOp(f"linear layer {linear.name!r}: {linear.weight.shape[1]} inputs overflow int32 sums")
        result = replace(source, name=linear.result, columns=linear.weight.shape[0])
        self.values[linear.result] = self.add(Dense(result, source, (linear,)))

    # --- operators: each returns the symbolic value of its output, or None for a use that is unknown -----------------

    def op_gather(self, node: Operator, inputs: list[Any]) -> Any:
        data, indices = inputs
        axis = node.attributes.get("axis", 0)
        if isinstance(data, np.ndarray) and _is(indices, "ids") and axis == 0 and data.ndim == 2:
            return Found(Table(data))
        if isinstance(data, Tensor) and _scalar(indices) == 0 and axis == 1:
            return self.add(Pool(self.tensor(node.outputs[0], 1, data.columns), data, "cls"))
        return None

    def op_cast(self, node: Operator, inputs: list[Any]) -> Any:
        value = inputs[0]
        if _is(value, "mask"):
            return Input("mask.float")
        if isinstance(value, np.ndarray) and value.dtype == np.int8:
            return Table(value)
        if isinstance(value, Found) and value.table.values.dtype == np.int8:
            return value
        return None

    def op_sub(self, node: Operator, inputs: list[Any]) -> Any:
        return Input("mask.padding") if _is(inputs[1], "mask.float") and _scalar(inputs[0]) == 1.0 else None

    def op_unsqueeze(self, node: Operator, inputs: list[Any]) -> Any:
        if _is(inputs[0], "mask.float") and list(inputs[1]) == [2]:
            return Input("mask.weight")
        masks = ("mask.additive", "mask.causal")
        if isinstance(inputs[0], np.ndarray):
            return np.expand_dims(inputs[0], tuple(inputs[1].tolist()))
        return inputs[0] if any(_is(inputs[0], mask) for mask in masks) else None

    def op_mul(self, node: Operator, inputs: list[Any]) -> Any:
        left, right = inputs
        factor = _scalar(right)
        if isinstance(left, Sigmoid):
            left, right = right, left
        if isinstance(left, Tensor) and isinstance(right, Tensor) and left == right:
            return Spread(left, "square")
        if isinstance(left, Tensor) and isinstance(right, Tensor):
            same = (left.rows, left.columns) == (right.rows, right.columns)
            return self.add(Product(self.same(node, left), left, right)) if same else None
        if isinstance(left, Tensor) and llama.is_silu(left, right):
            return self.activate(node, left, "silu")
        if isinstance(left, Spread) and left.stage == "normal" and isinstance(right, np.ndarray):
            source = left.source
            known = right.shape == (source.columns,)
            return self.add(RootNormalize(self.same(node, source), source, right, left.epsilon)) if known else None
        if (part := llama.product(left, right)) is not None:
            return part
        if _is(left, "mask.padding") and factor is not None and factor <= -30.0:
            return Input("mask.additive")
        if isinstance(left, Heads) and factor is not None and factor > 0:
            return replace(left, scale=left.scale * factor)
        if isinstance(left, Found) and isinstance(right, Found) and right.table.values.shape[1] == 1:
            return Found(Table(left.table.values, right.table.values[:, 0].astype(np.float32)))
        if isinstance(left, Table) and isinstance(right, np.ndarray) and right.shape == (len(left.values), 1):
            return Table(left.values, right[:, 0].astype(np.float32))
        if isinstance(left, Tensor) and _is(right, "mask.weight"):
            return Weighted(left)
        return None

    def op_add(self, node: Operator, inputs: list[Any]) -> Any:
        left, right = inputs
        if isinstance(left, Scores):
            return self.masked_scores(left, right)
        if isinstance(left, Spread):
            epsilon = _scalar(right)
            return llama.step_of_norm(left, "mean", "shifted", epsilon) if epsilon is not None and epsilon > 0 else None
        if llama.turned(left, right):
            return self.rotate(node, left, right)
        if _is(left, "mask.additive") and _is_causal(right):
            return Input("mask.later")
        if isinstance(left, Tensor) and isinstance(right, Tensor):
            same = (left.rows, left.columns) == (right.rows, right.columns)
            return self.add(Sum(self.same(node, left), left, right)) if same else None
        positions = Table(right) if isinstance(right, np.ndarray) else right
        if not isinstance(positions, Table) or positions.values.ndim != 2:
            return None
        rows, columns = positions.values.shape
        if self.shape(node)[-2:] != (rows, columns):
            return None
        self.sequence = rows
        result = self.tensor(node.outputs[0], rows, columns)
        if isinstance(left, Found):
            self.vocabulary = len(left.table.values)
            return self.add(Embed(result, left.table, positions))
        if isinstance(left, WithClass) and (left.rows.rows + len(left.cls), left.rows.columns) == (rows, columns):
            return self.add(Positions(result, left.rows, left.cls, positions))
        if isinstance(left, Tensor) and (left.rows, left.columns) == (rows, columns):
            return self.add(Positions(result, left, None, positions))
        return None

    def rotate(self, node: Operator, straight: Part, across: Part) -> Heads:
        heads = straight.heads
        assert straight.table is not None and across.table is not None
        tensor = self.same(node, heads.tensor)
        self.add(Rotate(tensor, heads.tensor, heads.heads, heads.size, straight.table, across.table))
        return replace(heads, tensor=tensor)

    def op_slice(self, node: Operator, inputs: list[Any]) -> Any:
        return llama.half(*inputs)

    def op_neg(self, node: Operator, inputs: list[Any]) -> Any:
        return llama.negated(inputs[0])

    def op_sqrt(self, node: Operator, inputs: list[Any]) -> Any:
        return llama.step_of_norm(inputs[0], "shifted", "root")

    def op_sigmoid(self, node: Operator, inputs: list[Any]) -> Any:
        return Sigmoid(inputs[0]) if isinstance(inputs[0], Tensor) else None

    def op_max(self, node: Operator, inputs: list[Any]) -> Any:
        left, right = inputs
        limit = _scalar(right)
        return Input("mask.causal") if _is(left, "mask.later") and limit is not None and limit <= -30.0 else None

    def masked_scores(self, scores: Scores, mask: Any) -> Any:
        if _is(mask, "mask.additive"):
            return replace(scores, masked=True)
        if _is(mask, "mask.causal"):
            return replace(scores, masked=True, causal=True)
        return replace(scores, causal=True) if _is_causal(mask) else None

    def op_reshape(self, node: Operator, inputs: list[Any]) -> Any:
        value, shape = inputs[0], self.shape(node)
        if isinstance(value, Found) and len(shape) == 2 and shape[1] == value.table.values.shape[1]:
            self.sequence, self.vocabulary = shape[0], len(value.table.values)
            return self.add(Embed(self.tensor(node.outputs[0], *shape), value.table, None))
        if isinstance(value, Tensor):
            if shape in ((value.rows, value.columns), (1, value.rows, value.columns)):
                return value
            if len(shape) in (4, 5) and shape[:2] == (1, value.rows):
                group = shape[3] if len(shape) == 5 else 1
                return Heads(value, shape[2] * group, group, shape[-1])
        if isinstance(value, Context) and value.merged and shape == (value.tensor.rows, value.tensor.columns):
            return value.tensor
        if _is(value, "pixels") and len(shape) == 6 and shape[3] == shape[5] and shape[2] == shape[4]:
            return Input("blocks")
        if _is(value, "patches") and len(shape) == 2:
            _, channels, size, _ = self.graph.shapes["pixel_values"]
            patch = size // round(shape[0] ** 0.5)
            if shape == ((size // patch) ** 2, channels * patch * patch):
                return self.add(Patches(self.tensor(node.outputs[0], *shape), channels, size, patch))
        return None

    def op_transpose(self, node: Operator, inputs: list[Any]) -> Any:
        value, order = inputs[0], tuple(node.attributes.get("perm", ()))
        if _is(value, "blocks") and order == (0, 2, 4, 1, 3, 5):
            return Input("patches")
        if isinstance(value, Heads) and value.order == "split" and order in SPLIT_PERMUTATIONS:
            return replace(value, order=SPLIT_PERMUTATIONS[order])
        if isinstance(value, Context) and order in MERGE_PERMUTATIONS:
            return replace(value, merged=True)
        return None

    def op_concat(self, node: Operator, inputs: list[Any]) -> Any:
        *first, rows = inputs
        if len(first) == 1 and (part := llama.other_way_round(first[0], rows, node.attributes.get("axis", 0))):
            return part
        if node.attributes.get("axis") != 1 or not first or not isinstance(rows, Tensor):
            return None
        if not all(isinstance(part, np.ndarray) and part.shape == (1, 1, rows.columns) for part in first):
            return None
        return WithClass(np.concatenate(first, 1)[0].astype(np.float32), rows)

    def op_matmul(self, node: Operator, inputs: list[Any]) -> Any:
        left, right = inputs
        ranks = {len(self.graph.shapes[name]) for name in (*node.inputs, *node.outputs)}
        if len(ranks) > 1:
            return None
        if isinstance(left, Heads) and isinstance(right, Heads) and (left.order, right.order) == ("rows", "columns"):
            return Scores(left, right)
        if isinstance(left, Scores) and left.normal and isinstance(right, Heads) and right.order == "rows":
            query, key = left.query, left.key
            sizes, scales = {query.size, key.size, right.size, self.shape(node)[-1]}, (key.scale, right.scale)
            if left.masked != self.masked or len(sizes) > 1 or scales != (1.0, 1.0):
                return None
            if key.heads != right.heads or query.heads % key.heads:
                return None
            result = replace(query.tensor, name=node.outputs[0], columns=query.heads * query.size)
            group = query.heads // key.heads
            tensors = (query.tensor, key.tensor, right.tensor)
            attend = Attend(
                result, *tensors, query.heads, group, query.size, query.scale, causal=left.causal
            )
            return Context(self.add(attend))
        return None

    def op_softmax(self, node: Operator, inputs: list[Any]) -> Any:
        last = node.attributes.get("axis", -1) in (-1, len(self.shape(node)) - 1)
        return replace(inputs[0], normal=True) if isinstance(inputs[0], Scores) and last else None

    def op_layernormalization(self, node: Operator, inputs: list[Any]) -> Any:
        source, weight, bias = inputs
        if not isinstance(source, Tensor) or node.attributes.get("axis", -1) != -1:
            return None
        if not all(isinstance(part, np.ndarray) and part.shape == (source.columns,) for part in (weight, bias)):
            return None
        epsilon = float(node.attributes.get("epsilon", 1e-5))
        return self.add(Normalize(self.same(node, source), source, weight, bias, epsilon))

    def op_gelu(self, node: Operator, inputs: list[Any]) -> Any:
        kind = {b"none": "gelu", b"tanh": "gelu_tanh"}.get(node.attributes.get("approximate", b"none"))
        return self.activate(node, inputs[0], kind)

    def op_relu(self, node: Operator, inputs: list[Any]) -> Any:
        return self.activate(node, inputs[0], "relu")

    def op_tanh(self, node: Operator, inputs: list[Any]) -> Any:
        return self.activate(node, inputs[0], "tanh")

    def activate(self, node: Operator, source: Any, kind: str | None) -> Any:
        if not isinstance(source, Tensor) or kind is None:
            return None
        return self.add(Activate(self.same(node, source), source, kind))

    def op_reducesum(self, node: Operator, inputs: list[Any]) -> Any:
        if node.attributes.get("keepdims", 1) or list(inputs[1]) != [1]:
            return None
        if _is(inputs[0], "mask.weight"):
            return Input("mask.count")
        return replace(inputs[0], total=True) if isinstance(inputs[0], Weighted) else None

    def op_reducemean(self, node: Operator, inputs: list[Any]) -> Any:
        source, axes = inputs
        if isinstance(source, Spread):
            last = list(axes) in ([-1], [1]) and node.attributes.get("keepdims", 1)
            return llama.step_of_norm(source, "square", "mean") if last else None
        if not isinstance(source, Tensor) or self.masked or node.attributes.get("keepdims", 1) or list(axes) != [1]:
            return None
        return self.add(Pool(self.tensor(node.outputs[0], 1, source.columns), source, "mean"))

    def op_div(self, node: Operator, inputs: list[Any]) -> Any:
        rows, count = inputs
        if isinstance(count, Spread):
            same = isinstance(rows, Tensor) and rows == count.source
            return llama.step_of_norm(count, "root", "normal") if same else None
        if not isinstance(rows, Weighted) or not rows.total or not _is(count, "mask.count"):
            return None
        return self.add(Pool(self.tensor(node.outputs[0], 1, rows.rows.columns), rows.rows, "mean"))


def _is(value: Any, stage: str) -> bool:
    return isinstance(value, Input) and value.stage == stage


def _is_causal(value: Any) -> bool:
    """A constant [sequence, sequence] that hides what is later, and nothing else."""
    if not isinstance(value, np.ndarray) or value.ndim < 2 or value.shape[-1] != value.shape[-2]:
        return False
    if value.size != value.shape[-1] ** 2:
        return False
    square = value.reshape(value.shape[-2:])
    later = np.triu(np.ones(square.shape, bool), 1)
    return bool((square[later] <= -30.0).all() and not square[~later].any())


def _scalar(value: Any) -> float | None:
    return float(value) if isinstance(value, np.ndarray) and value.shape == () else None
