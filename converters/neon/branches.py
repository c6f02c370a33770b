"""Steps of a plan that decide what runs: exits and gates.

    Branch(condition)  …steps of then…  Assign(result ← yes)  Otherwise  …steps of else…  Assign(result ← no)  Join

A region's steps may read what was made before it; after the `Join` only assigned results are left of both regions.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from edgesdk.converters.neon.plan import Dense, Normalize, Plan, Step, Sum, Tensor
from edgesdk.errors import UnsupportedOp


@dataclass(frozen=True)
class Branch(Step):
    """Runs the steps up to `Otherwise` where `condition` (one float) is not 0; `result` is nothing but a name."""

    condition: Tensor


@dataclass(frozen=True)
class Otherwise(Step):
    """From here on the steps for a condition that is 0."""


@dataclass(frozen=True)
class Join(Step):
    """End of a branch."""


@dataclass(frozen=True)
class Assign(Step):
    """The result of a branch: `source`, in the same shape. Both regions write the same result."""

    source: Tensor


def mark(name: str) -> Tensor:
    """The result of a step that makes nothing."""
    return Tensor(name, 1, 1)


def settle(plan: Plan) -> Plan:
    """Steps that make what is assigned right after them write it themselves."""
    count = Counter(tensor.name for step in plan.steps for tensor in step.reads())
    steps: list[Step] = []
    for step in plan.steps:
        last = steps[-1] if steps else None
        if isinstance(step, Assign) and isinstance(last, (Dense, Normalize, Sum)) and last.result == step.source:
            if count[step.source.name] == 1 and step.source.name != plan.output.name:
                steps[-1] = replace(last, result=step.result)
                continue
        steps.append(step)
    return replace(plan, steps=tuple(steps))


def check_regions(plan: Plan) -> Plan:
    """The plan, if every step reads what was made on every way to it.

    Raises:
        UnsupportedOp: a step reads what only a branch makes that may not have run, or branches that do not nest.
    """
    written = {step.result.name for step in plan.steps}
    visible: set[str] = set()
    stack: list[tuple[set[str], set[str]]] = []  # what was visible before the branch, what `then` assigned
    for step in plan.steps:
        for tensor in step.reads():
            if tensor.name in written and tensor.name not in visible | {step.result.name}:
                raise UnsupportedOp(f"{step.result.name!r} reads {tensor.name!r}, which only a branch makes")
        if isinstance(step, Branch):
            stack.append((set(visible), set()))
        elif isinstance(step, (Otherwise, Join)) and not stack:
            raise UnsupportedOp(f"{step.result.name!r} ends a branch that has not begun")
        elif isinstance(step, Otherwise):
            before, _ = stack.pop()
            stack.append((before, visible - before))
            visible = set(before)
        elif isinstance(step, Join):
            before, yes = stack.pop()
            visible = before | (visible & yes)
        else:
            visible.add(step.result.name)
    if stack or not {plan.output.name, *(tensor.name for tensor in plan.others)} <= visible:
        raise UnsupportedOp(f"the output {plan.output.name!r} is not made on every way through the graph")
    return plan
