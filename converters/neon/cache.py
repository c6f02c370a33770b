"""Decoders that go on where they stopped: attention keeps the keys and values of earlier tokens.

A plan can be run token by token where every row depends on itself and, by causal attention, on the rows before it. Its
attention then reads a cache in the arena, whose bytes no other buffer shares and which outlives the call: a call puts
its tokens behind the `past` ones, in the panels that the products read, so nothing is packed twice. Every row is
computed by the same operations in the same order however the tokens are cut into calls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgesdk.converters.neon.kernel_sets import KernelSet
from edgesdk.converters.neon.packing import round_up
from edgesdk.converters.neon.plan import (
    Activate,
    Attend,
    Dense,
    Embed,
    Lookup,
    Normalize,
    Plan,
    Product,
    Quantize,
    QuantizeRows,
    RootNormalize,
    Rotate,
    Step,
    Sum,
)

BY_ROW = (
    Activate, Dense, Embed, Lookup, Normalize, Product, Quantize, QuantizeRows, RootNormalize, Rotate, Sum
)


@dataclass(frozen=True)
class AttendCached(Attend):
    """Causal attention over the tokens of this call and of the calls before it; `key.rows` of them at most."""


def with_cache(plan: Plan) -> Plan:
    """The plan with a cache in every attention where it can be run token by token; else the plan as it is."""
    if not plan.masked or not plan.output.tokens or plan.whole or plan.others:
        return plan
    if not all(_goes_on(step) for step in plan.steps):
        return plan
    steps = (AttendCached(**vars(step)) if isinstance(step, Attend) else step for step in plan.steps)
    return replace(plan, steps=tuple(steps))


def decodes(plan: Plan) -> bool:
    """Whether the plan can be run token by token."""
    return any(isinstance(step, AttendCached) for step in plan.steps)


def cache_bytes(step: AttendCached, kernels: KernelSet) -> int:
    """Bytes of a cache: for each key/value head its keys, then its values (`edge_attention_cached.h`)."""
    capacity, heads = step.key.rows, step.heads // step.group
    return 4 * heads * (round_up(capacity, kernels.nf) * step.size + capacity * round_up(step.size, kernels.nf))


def _goes_on(step: Step) -> bool:
    if type(step) is Attend:
        return step.causal and all(part.tokens for part in (step.query, step.key, step.value))
    return isinstance(step, BY_ROW) and step.result.tokens
