"""What steps cost, estimated before anything runs, and the line of the build report that names the plain operators.

The unit is an executed instruction, the nearest to time that does not depend on a board: rates are those counted under
qemu for a Cortex-A76 (MiniLM's layer at 128 tokens for the fused steps, [64, 96] floats for the plain ones).
"""

from __future__ import annotations

import re
from collections import Counter

from edgesdk.converters.integer_share import INTEGER_FORMS
from edgesdk.converters.neon.generic import Generic
from edgesdk.converters.neon.plan import Attend, Dense, Plan, Step

PLAIN = {
    "argmax": 57.0, "gather": 83.0, "input": 2.0, "map": 1.5, "matmul": 1.8, "normalize": 170.0, "reduce": 9.0,
    "reshape": 57.0, "softmax": 42.0,
}
"""Kernel of `edge_generic.h` → instructions for each unit of its `work`: elements, or multiply-accumulates."""
CALL = 32.0  # of an element whose expression calls a function of libm
INT8, FLOAT, ATTENTION = 0.075, 0.30, 0.45  # a multiply-accumulate of a linear layer or of attention
ELEMENT = 8.0  # of any other step
CALLS = re.compile(r"\b(?:cos|erf|exp|log|pow|sin|tanh)f\(")


def instructions(step: Step) -> float:
    """Roughly what a step executes at the longest input."""
    if isinstance(step, Generic):
        kernel = step.kernel
        called = kernel.function == "map" and CALLS.search(kernel.expression)
        return kernel.work * (CALL if called else PLAIN[kernel.function])
    if isinstance(step, Dense):
        macs = step.source.rows * sum(int(linear.weight.size) for linear in step.linears)
        return macs * (INT8 if step.linears[0].form in INTEGER_FORMS else FLOAT)
    if isinstance(step, Attend):
        return 2 * step.query.rows * step.key.rows * step.heads * step.size * ATTENTION
    return step.result.rows * step.result.columns * ELEMENT


def plain_shares(plan: Plan) -> dict[str, float]:
    """Plain operator → its share of the plan's instructions, the largest first; empty where everything is a pattern."""
    costs: dict[str, float] = {}
    for step in plan.steps:
        if isinstance(step, Generic):
            costs[step.op] = costs.get(step.op, 0.0) + instructions(step)
    total = max(1.0, sum(map(instructions, plan.steps)))
    return {op: cost / total for op, cost in sorted(costs.items(), key=lambda entry: -entry[1])}


def plain_notes(plan: Plan) -> tuple[str, ...]:
    """The line of the build report that names the plain operators with their shares; empty where there are none."""
    shares = plain_shares(plan)
    if not shares:
        return ()
    counts = Counter(step.op for step in plan.steps if isinstance(step, Generic))
    names = (f"{f'{op} × {counts[op]}' if counts[op] > 1 else op} {_percent(share)}" for op, share in shares.items())
    total = _percent(sum(shares.values()))
    return (f"plain float operators, about {total} of the time (estimated in instructions): {', '.join(names)}",)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "below 0.1 %"
