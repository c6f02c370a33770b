"""Plan → plan for one kernel set: half precision, int8 attention where the set has it, steps that quantize each row as
they make it, and sparse projections that lie side by side in whole panels.

The middle two need steps in a row, so nothing moves in or out of a branch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from edgesdk.converters.front import Encoding, Linear
from edgesdk.converters.integer_share import INTEGER_FORMS
from edgesdk.converters.neon.branches import Branch, Join, Otherwise
from edgesdk.converters.neon.fuse import uses
from edgesdk.converters.neon.kernel_sets import KernelSet
from edgesdk.converters.neon.packing import ALIGN, pack_b, round_up
from edgesdk.converters.neon.plan import (
    Activate,
    Attend,
    Dense,
    DenseHalf,
    DenseStatic,
    Halve,
    Normalize,
    Plan,
    Quantize,
    QuantizeRows,
    RootNormalize,
    Step,
    Tensor,
)
from edgesdk.converters.neon.storage import sparse_from, zero_share

FRACTION_BITS = 10  # EDGE_FRACTION: of the exponents of softmax; 16 bits hold -32 to 32
# 2^(g / 2) for g from -1 to 1, divided by its first coefficient (minimax, relative error 7.5e-5).
POWERS = (1.0, 0.34665542, 0.06065714, 0.00689696)
LARGEST_POWER = 23160  # times 2^(1 / 2), where g is 1, is the most that int16 holds

ByRow = Normalize | RootNormalize | Activate  # they make a whole row from a row of their source


@dataclass(frozen=True)
class AttendStatic(Attend):
    """`query`, `key` and `value` are one packed int8 tensor with an encoding each; the context is quantized by
    `output` into a packed tensor."""

    query_encoding: Encoding = Encoding(1.0, 0)
    key_encoding: Encoding = Encoding(1.0, 0)
    value_encoding: Encoding = Encoding(1.0, 0)
    output: Encoding = Encoding(1.0, 0)


@dataclass(frozen=True)
class NormalizeStatic(Normalize):
    """LayerNorm whose result is quantized by `encoding`, and also written to `floats` where somebody reads that."""

    encoding: Encoding = Encoding(1.0, 0)
    floats: Tensor | None = None


@dataclass(frozen=True)
class QuantizeAsMade(QuantizeRows):
    """`maker` writes `source`; each of its rows is quantized as soon as it is there."""

    maker: ByRow

    def reads(self) -> tuple[Tensor, ...]:
        return (*self.maker.reads(), *super().reads())


def specialize(plan: Plan, kernels: KernelSet) -> Plan:
    """All rewrites that depend on the kernel set."""
    steps = list(plan.steps)
    if kernels.halves:
        steps = halve(steps)
    if kernels.integer_attention:
        steps = attend_in_integers(steps, plan.output)
    return replace(plan, steps=tuple(align_panels(quantize_in_place(steps, plan.output), kernels)))


def integer_attention_macs(plan: Plan, kernels: KernelSet) -> int:
    """Multiply-accumulates of attention that run in integers, for one input of the whole sequence."""
    if not kernels.integer_attention:
        return 0
    static = [step for step in attend_in_integers(list(plan.steps), plan.output) if isinstance(step, AttendStatic)]
    return sum(2 * step.query.rows * step.key.rows * step.heads * step.size for step in static)


def halve(steps: list[Step]) -> list[Step]:
    """Float linear layers read float16, which is made once for all that read the same rows."""
    halved: dict[str, Tensor] = {}
    rewritten: list[Step] = []
    for step in steps:
        if isinstance(step, (Branch, Otherwise, Join)):
            halved.clear()  # what a region made is not there on every way
        if isinstance(step, Dense) and step.linears[0].form == "fp32":
            source = step.source
            if source.name not in halved:
                halved[source.name] = replace(source, name=f"{source.name}.half{len(rewritten)}", layout="packed_half")
                rewritten.append(Halve(halved[source.name], source))
            step = DenseHalf(step.result, halved[source.name], step.linears, step.residual)
        rewritten.append(step)
    return rewritten


def attend_in_integers(steps: list[Step], output: Tensor) -> list[Step]:
    """Projections → attention → quantization, all static, stay in int8."""
    count, rewritten, at = uses(steps), list[Step](), 0
    while at < len(steps):
        found = _attention(steps[at : at + 3], output)
        names = [step.result.name for step in steps[at : at + 2]]
        if found is None or any(count[name] > 1 for name in names):
            rewritten.append(steps[at])
            at += 1
        else:
            rewritten += found
            at += 3
    return rewritten


def _attention(steps: list[Step], output: Tensor) -> list[Step] | None:
    if len(steps) < 3:
        return None
    dense, attend, quantize = steps
    if not (isinstance(dense, DenseStatic) and type(attend) is Attend and isinstance(quantize, Quantize)):
        return None
    same = attend.query == attend.key == attend.value == dense.result and quantize.source == attend.result
    if not same or dense.residual is not None or len(dense.linears) != 3 or attend.size % ALIGN:
        return None
    if output in (dense.result, attend.result):
        return None
    encodings = [linear.output for linear in dense.linears]
    query, key, value = encodings
    if query is None or key is None or value is None or exponent(query, key, attend.scale) is None:
        return None
    packed = replace(dense.result, name=f"{dense.result.name}.packed", layout="packed_a")
    static = AttendStatic(
        quantize.result, packed, packed, packed, attend.heads, attend.group, attend.size, attend.scale, attend.starts,
        attend.causal, query, key, value, quantize.encoding,
    )
    return [replace(dense, result=packed), static]


def exponent(query: Encoding, key: Encoding, scale: float) -> tuple[int, int] | None:
    """The factor c of integer scores in 2^(c · score), as (multiplier in Q31, left shift of the scores); with a shift
    the multiplier has 15 bits, see `edge_softmax_integer.h`. None where one step of a score is so large that integers
    are too coarse, or so small that even hidden keys, whose score is -2^30, would have a p above 0."""
    factor = query.scale * key.scale * scale * math.log2(math.e)
    if not 2.0**-25 <= factor < 0.25:
        return None
    shift = max(0, math.ceil(math.log2(factor) + FRACTION_BITS))
    if shift:
        return min(round(factor * 2.0 ** (FRACTION_BITS + 15 - shift)), 2**15 - 1) << 16, shift
    return min(round(factor * 2.0 ** (FRACTION_BITS + 31)), 2**31 - 1), 0


def powers(keys: int) -> tuple[int, int, int, int]:
    """The factors of the polynomial that gives p, so that a sum of `keys` products of p and an int8 fits int32."""
    first = min(LARGEST_POWER, (2**31 - 1) // (128 * keys))
    second, third, fourth = (round(first * factor) for factor in POWERS[1:])
    return first, second, third, fourth


def quantize_in_place(steps: list[Step], output: Tensor) -> list[Step]:
    """LayerNorm → static quantization become one step, and so do all that work by rows → quantization by rows."""
    count, rewritten = uses(steps), list[Step]()
    for step in steps:
        last = rewritten[-1] if rewritten else None
        kept = last is not None and (count[last.result.name] > 1 or last.result == output)
        if isinstance(step, Quantize) and type(last) is Normalize and step.source == last.result:
            rewritten[-1] = NormalizeStatic(
                step.result, last.source, last.weight, last.bias, last.epsilon, step.encoding,
                last.result if kept else None,
            )
        elif type(step) is QuantizeRows and isinstance(last, ByRow) and step.source == last.result:
            if not kept and count[last.source.name] == 1 and last.source != output:
                last = replace(last, result=last.source)  # nobody reads either of them again
            rewritten[-1] = QuantizeAsMade(step.result, last.result, step.scales, last)
        else:
            rewritten.append(step)
    return rewritten


def align_panels(steps: list[Step], kernels: KernelSet) -> list[Step]:
    """Sparse query, key and value layers side by side begin at whole panels: else a panel that belongs to two of them,
    and all of the second one's, would find hardly a block that is zero."""
    moved: dict[str, tuple[Tensor, tuple[int, ...]]] = {}
    rewritten: list[Step] = []
    for step in steps:
        if isinstance(step, Dense) and len(step.linears) > 1 and _worth_aligning(step.linears, kernels):
            unit = math.lcm(kernels.nr, ALIGN)
            linears = tuple(_padded(linear, round_up(len(linear.weight), unit)) for linear in step.linears)
            ends = np.cumsum([len(linear.weight) for linear in linears]).tolist()
            result = replace(step.result, columns=ends[-1])
            moved[result.name] = result, (0, *ends[:-1])
            step = replace(step, result=result, linears=linears)
        elif isinstance(step, Attend) and step.query.name in moved:
            result, starts = moved[step.query.name]
            query, key, value = starts
            step = replace(step, query=result, key=result, value=result, starts=(query, key, value))
        rewritten.append(step)
    return rewritten


def _worth_aligning(linears: tuple[Linear, ...], kernels: KernelSet) -> bool:
    if linears[0].form not in INTEGER_FORMS or not any(len(one.weight) % kernels.nr for one in linears[:-1]):
        return False
    return any(zero_share(pack_b(linear.weight, kernels), kernels) >= sparse_from(kernels) for linear in linears)


def _padded(linear: Linear, outputs: int) -> Linear:
    """The layer with outputs of 0 behind its own."""
    more = outputs - len(linear.weight)
    assert linear.weight_scale is not None
    return replace(
        linear, weight=np.pad(linear.weight, ((0, more), (0, 0))), bias=np.pad(linear.bias, (0, more)),
        weight_scale=np.pad(linear.weight_scale.reshape(-1), (0, more), constant_values=1),
    )
