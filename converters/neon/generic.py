"""The fallback: what is not a pattern of `trace.py` runs operator by operator on plain float kernels.

Every tensor of the graph that a pattern has understood without computing it (a mask, the heads of a projection, scores)
can still be computed from its node, so a pattern that breaks off half-way costs speed and nothing else. Integers and
truth values are floats here: exact up to 2²⁴. Nodes between the marks of `front_branches.py` become branches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgesdk.converters.front import Graph, Linear, Operator
from edgesdk.converters.front_branches import BRANCH, JOIN, OTHERWISE
from edgesdk.converters.neon.branches import Assign, Branch, Join, Otherwise, mark
from edgesdk.converters.neon.generic_ops import Kernel, Operand, kernels_for
from edgesdk.converters.neon.plan import Plan, Step, Tensor
from edgesdk.converters.neon.symbols import Input, Sigmoid
from edgesdk.converters.neon.trace import Tracer
from edgesdk.errors import UnsupportedOp

MOST_RANK = 6
LARGEST_INTEGER = 1 << 24  # floats hold every integer up to here
LEFT = "exit"


@dataclass(frozen=True)
class Generic(Step):
    """One kernel of `edge_generic.h` on strided operands: tensors of the plan, constants or inputs."""

    op: str
    kernel: Kernel

    def reads(self) -> tuple[Tensor, ...]:
        return tuple(view.source for view in self.kernel.operands if isinstance(view.source, Tensor))


def trace_all(graph: Graph) -> Plan:
    """Like `trace`, with branches and with plain operators where no pattern fits.

    Raises:
        UnsupportedOp: an operator, or a use of it, that has no plain kernel either; it is named.
    """
    try:
        return GenericTracer(graph).run()
    except RecursionError:
        raise UnsupportedOp("the graph has too long a chain of operators that only shape others") from None


class GenericTracer(Tracer):
    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.producers = {
            name: node for node in graph.nodes if isinstance(node, Operator) for name in node.outputs
        }
        self.joins: dict[str, list[Operator]] = {}
        for node in graph.nodes:
            if isinstance(node, Operator) and node.name.startswith(JOIN):
                self.joins.setdefault(node.name[len(JOIN) :], []).append(node)
        self.plain: dict[str, Tensor] = {}
        self.integers: set[str] = {name for name in ("input_ids", "attention_mask") if name in self.names}
        self.integers |= {name for name, array in graph.constants.items() if array.dtype.kind == "i"}
        self.regions: list[dict[str, Tensor]] = []
        self.whole = False
        if "input_ids" in self.names:
            self.sequence = graph.shapes["input_ids"][1]

    # --- nodes --------------------------------------------------------------------------------------------------------

    def operator(self, node: Operator) -> None:
        for prefix, action in ((BRANCH, self.branch), (OTHERWISE, self.otherwise), (JOIN, self.join)):
            if node.name.startswith(prefix):
                action(node, node.name[len(prefix) :])
                return
        if self.fits(node):
            try:
                super().operator(node)
                return
            except UnsupportedOp as problem:
                reason = problem
        else:
            reason = UnsupportedOp(f"{node.op} {node.name!r}: this use of it has no kernel in the NEON build")
        self.compute(node, reason)

    def fits(self, node: Operator) -> bool:
        """False where a pattern would misread shapes that graphs of packages never have."""
        shapes = [self.graph.shapes.get(name, ()) for name in node.inputs]
        values = [self.values.get(name) for name in node.inputs]
        tensors = [shape for shape, value in zip(shapes, values, strict=True) if isinstance(value, Tensor)]
        if not tensors:
            return True
        if node.op == "Add" and len(tensors) == 2:
            return tensors[0] == tensors[1]
        if node.op in ("ReduceMean", "Gather"):
            return len(tensors[0]) == 3 and tensors[0][0] == 1
        if node.op == "Mul" and (len(tensors) == 2 or any(isinstance(value, Sigmoid) for value in values)):
            return shapes[0] == shapes[1] and len(shapes[0]) == 2
        if node.op == "Mul":
            return len(tensors) == 1 and shapes[0][-2:-1] == (self.sequence,)
        return True

    def linear(self, linear: Linear) -> None:
        if not isinstance(self.values.get(linear.source), Tensor) and linear.source in self.graph.shapes:
            source = self.tensor_of(linear.source)
            if source is not None:
                self.values[linear.source] = source
        super().linear(linear)

    def plan(self) -> Plan:
        first, *others = (self.final(name) for name in self.graph.outputs)
        if len(others) > 1 or (others and self.graph.outputs[1] != LEFT):
            raise UnsupportedOp(f"outputs {list(self.graph.outputs)}: expected one float tensor, and {LEFT!r}")
        if self.masked and not self.vocabulary:
            self.vocabulary = LARGEST_INTEGER
        plan = Plan(tuple(self.steps), first, self.sequence, self.masked, self.vocabulary, tuple(others), self.whole)
        return without_dead_steps(plan)

    def final(self, name: str) -> Tensor:
        tensor = self.tensor_of(name)
        if tensor is None:
            raise UnsupportedOp(f"output {name!r} is not a float tensor of rows")
        self.values[name] = tensor
        return tensor

    # --- branches -----------------------------------------------------------------------------------------------------

    def branch(self, node: Operator, name: str) -> None:
        condition = self.tensor_of(node.inputs[0])
        if condition is None or condition.rows * condition.columns != 1 or name not in self.joins:
            raise UnsupportedOp(f"If {name!r}: its condition is not one truth value")
        asks = node.inputs[0].removesuffix(".leaves").removesuffix(".runs")
        self.steps.append(Branch(mark(f"{asks}.branch"), condition))
        self.regions.append(dict(self.plain))

    def otherwise(self, node: Operator, name: str) -> None:
        self.assign(name, 1)
        self.steps.append(Otherwise(mark(f"{name}.otherwise")))
        self.plain = dict(self.regions[-1]) if self.regions else {}

    def join(self, node: Operator, name: str) -> None:
        if node is not self.joins[name][0]:
            return
        self.assign(name, 2)
        self.steps.append(Join(mark(f"{name}.join")))
        self.plain = self.regions.pop() if self.regions else {}

    def assign(self, name: str, index: int) -> None:
        for join in self.joins.get(name, ()):
            source = self.tensor_of(join.inputs[index])
            if source is None:
                raise UnsupportedOp(f"If {name!r}: {join.inputs[index]!r} is not a float tensor")
            result = replace(source, name=join.outputs[0])
            known = self.values.get(join.outputs[0])
            if known is not None and known != result:
                raise UnsupportedOp(f"If {name!r}: its branches make {join.outputs[0]!r} in two shapes")
            self.values[join.outputs[0]] = result
            self.steps.append(Assign(result, source))

    # --- plain operators ----------------------------------------------------------------------------------------------

    def tensor_of(self, name: str) -> Tensor | None:
        """The tensor of the plan that holds a tensor of the graph, computed where a pattern had only understood it."""
        value = self.values.get(name)
        if isinstance(value, Tensor):
            return value
        if name in self.plain:
            return self.plain[name]
        shape = self.graph.shapes.get(name)
        if shape is None or len(shape) > MOST_RANK:
            return None
        node = self.producers.get(name)
        if name in self.names:
            self.whole |= self.masked
            made = self.emit("Input", f"{name}.plain", shape, [Operand(Input(name), shape)], {})
        elif isinstance(value, np.ndarray):
            made = self.emit("Identity", f"{name}.plain", shape, [self.operand(name)], {})
        elif node is not None:
            made = self.evaluate(node, f"{name}.plain" if value is not None else name, node.outputs.index(name))
        else:
            made = None
        if made is not None:
            self.plain[name] = made
        return made

    def compute(self, node: Operator, reason: UnsupportedOp) -> None:
        for index, name in enumerate(node.outputs):
            tensor = self.evaluate(node, name, index)
            if tensor is None:
                raise reason
            self.values[name] = tensor

    def evaluate(self, node: Operator, name: str, index: int) -> Tensor | None:
        """Write the steps of one output of a node; None where there is no kernel for it."""
        shape = self.graph.shapes[node.outputs[index]]
        if len(shape) > MOST_RANK:
            return None
        operands = []
        for source in node.inputs:
            operand = self.operand(source) if source else None
            if source and operand is None:
                return None
            operands.append(operand)
        if node.op in ("Cast", "ArgMax"):
            to = node.attributes.get("to", 7)
            if to in (1, 10, 11, 16):
                self.integers.discard(node.outputs[index])
            else:
                self.integers.add(node.outputs[index])
        elif node.inputs and node.inputs[0] in self.integers:
            self.integers.add(node.outputs[index])
        if node.op == "Gather" and node.inputs[1:] == ("input_ids",) and operands[0] is not None:
            rows = max(1, *operands[0].shape)
            self.vocabulary = min(self.vocabulary or rows, rows)
        attributes = {**node.attributes, "integer": node.outputs[index] in self.integers, "index": index}
        return self.emit(node.op, name, shape, operands, attributes)

    def operand(self, name: str) -> Operand | None:
        value, shape = self.values.get(name), self.graph.shapes.get(name)
        if shape is None or len(shape) > MOST_RANK:
            return None
        if isinstance(value, np.ndarray):
            if value.dtype.kind in "iu":
                value = value.clip(-LARGEST_INTEGER, LARGEST_INTEGER)  # "up to the end" of a slice
            return Operand(value.astype(np.float32), shape) if value.dtype.kind in "fiub" else None
        tensor = self.tensor_of(name)
        if tensor is None or tensor.rows * tensor.columns != math.prod(shape):
            return None
        if shape and shape[-1] != tensor.columns:
            return None
        self.whole |= tensor.tokens
        return Operand(tensor, shape)

    def emit(
        self, op: str, name: str, shape: tuple[int, ...], operands: list[Operand | None], attributes: dict[str, Any]
    ) -> Tensor | None:
        """Write the steps of an operator; the last one makes `name`."""
        try:
            made = kernels_for(op, shape, operands, attributes)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            made = None  # inputs or attributes of another kind: graphs may come from anywhere
        if not made:
            return None
        result = self.tensor(name, math.prod(shape[:-1]), shape[-1] if shape else 1)
        for kernel in made:
            self.steps.append(Generic(result, op, kernel))
        return result


def without_dead_steps(plan: Plan) -> Plan:
    """Without steps whose results nobody reads."""
    needed = {plan.output.name, *(tensor.name for tensor in plan.others)}
    kept: list[Step] = []
    for step in reversed(plan.steps):
        if isinstance(step, (Branch, Otherwise, Join)) or step.result.name in needed:
            kept.append(step)
            needed |= {tensor.name for tensor in step.reads()}
    return replace(plan, steps=tuple(reversed(kept)))
