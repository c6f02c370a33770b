"""How large the buffers of a plan are, and when they live."""

from __future__ import annotations

from edgesdk.converters.neon.arena import Life
from edgesdk.converters.neon.cache import AttendCached, cache_bytes
from edgesdk.converters.neon.kernel_sets import KernelSet
from edgesdk.converters.neon.packing import ALIGN, ROWS, round_up
from edgesdk.converters.neon.plan import Attend, Plan, Tensor
from edgesdk.converters.neon.specialize import AttendStatic


def stride(tensor: Tensor) -> int:
    """Elements from one row to the next."""
    return round_up(tensor.columns, ALIGN)


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's buffer: whole tiles of rows, rows of whole vectors."""
    rows = round_up(tensor.rows, ROWS)
    if tensor.layout == "row_scales":
        return rows * 8
    columns = round_up(tensor.columns, ALIGN)
    return rows * columns * {"packed_a": 1, "packed_half": 2}.get(tensor.layout, 4)


def scratch_bytes(step: Attend, kernels: KernelSet) -> int:
    """What attention needs: panels of keys and values of one head, scores of up to 8 queries."""
    if isinstance(step, AttendStatic):
        if kernels.name.startswith("avx512"):  # edge_attention_avx512.h
            return round_up(step.key.rows, kernels.nr) * (3 * step.size + 52)
        padded = round_up(step.key.rows, ALIGN)
        return padded * (step.size + 4 + 6 * kernels.mr)
    if isinstance(step, AttendCached):
        return 4 * ROWS * round_up(round_up(step.key.rows, kernels.nf), ALIGN)
    keys, columns = round_up(step.key.rows, kernels.nf), round_up(step.size, kernels.nf)
    return 4 * (keys * step.size + columns * step.value.rows + ROWS * round_up(keys, ALIGN))


def lives(plan: Plan, kernels: KernelSet) -> list[Life]:
    """The life of every buffer of the plan: from the first to the last step that touches it."""
    spans: dict[str, tuple[int, int, int]] = {}
    for index, step in enumerate(plan.steps):
        for tensor in (step.result, *step.reads()):
            first = spans[tensor.name][1] if tensor.name in spans else index
            spans[tensor.name] = (tensor_bytes(tensor), first, index)
        if isinstance(step, Attend):
            spans[f"{step.result.name}.scratch"] = (scratch_bytes(step, kernels), index, index)
        if isinstance(step, AttendCached):  # from one call to the next
            spans[f"{step.result.name}.cache"] = (cache_bytes(step, kernels), 0, len(plan.steps))
    size, first, _ = spans[plan.output.name]
    spans[plan.output.name] = (size, first, len(plan.steps))
    return [Life(name, *span) for name, span in spans.items()]
