"""Rewrites of a plan: projections side by side, residuals into linear layers, quantization as steps of its own."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgesdk.converters.front import Encoding
from edgesdk.converters.integer_share import INTEGER_FORMS
from edgesdk.converters.neon.plan import (
    Activate,
    Attend,
    Dense,
    DenseDynamic,
    DenseStatic,
    Lookup,
    Plan,
    Quantize,
    QuantizeRows,
    Step,
    Sum,
    Tensor,
)


def fuse(plan: Plan) -> Plan:
    """All rewrites, in their order."""
    steps = list(plan.steps)
    steps = merge_projections(steps)
    steps = absorb_residuals(steps, plan.output)
    steps = quantize(steps)
    return replace(plan, steps=tuple(steps))


def uses(steps: list[Step]) -> Counter[str]:
    """How many steps read each tensor."""
    return Counter(name for step in steps for name in {tensor.name for tensor in step.reads()})


def merge_projections(steps: list[Step]) -> list[Step]:
    """Query, key and value of one source and form become one linear layer, which stands where the first one stood."""
    producers = {step.result.name: step for step in steps}
    count = uses(steps)
    merged: dict[str, Dense] = {}
    dropped: set[str] = set()
    attends: dict[str, Attend] = {}
    for step in steps:
        if not isinstance(step, Attend):
            continue
        parts = [producers[tensor.name] for tensor in (step.query, step.key, step.value)]
        layers = [part for part in parts if isinstance(part, Dense)]
        if len({part.result.name for part in layers}) < 3 or any(count[part.result.name] > 1 for part in layers):
            continue
        if len({(part.source.name, part.linears[0].form) for part in layers}) > 1:
            continue
        if len({layer.linears[0].input for layer in layers}) > 1 or layers[0].linears[0].form == "w8":
            continue
        widths = [part.result.columns for part in layers]
        result = replace(layers[0].result, name=f"{step.result.name}.projections", columns=sum(widths))
        whole = Dense(result, layers[0].source, tuple(part.linears[0] for part in layers))
        names = {part.result.name for part in layers}
        merged[next(other.result.name for other in steps if other.result.name in names)] = whole
        dropped |= names
        attends[step.result.name] = replace(
            step, query=result, key=result, value=result, starts=(0, widths[0], widths[0] + widths[1])
        )
    rewritten: list[Step] = []
    for step in steps:
        name = step.result.name
        if name in merged:
            rewritten.append(merged[name])
        elif name not in dropped:
            rewritten.append(attends.get(name, step))
    return rewritten


def absorb_residuals(steps: list[Step], output: Tensor) -> list[Step]:
    """hidden + linear(x) becomes one step, where the sum stood."""
    producers = {step.result.name: step for step in steps}
    count = uses(steps)
    absorbed: set[str] = set()
    rewritten: dict[str, Step] = {}
    for step in steps:
        if not isinstance(step, Sum):
            continue
        for update, residual in ((step.right, step.left), (step.left, step.right)):
            layer = producers.get(update.name)
            if not isinstance(layer, Dense) or layer.residual is not None or count[update.name] > 1:
                continue
            if layer.linears[0].form == "w8" or update.name in absorbed or update.name == output.name:
                continue
            rewritten[step.result.name] = replace(layer, result=step.result, residual=residual)
            absorbed.add(update.name)
            break
    return [rewritten.get(step.result.name, step) for step in steps if step.result.name not in absorbed]


def quantize(steps: list[Step]) -> list[Step]:
    """Give int8 layers packed int8 sources; activations between two static layers become tables of 256 entries."""
    readers: dict[str, list[Step]] = {}
    for step in steps:
        for tensor in step.reads():
            readers.setdefault(tensor.name, []).append(step)
    packed: dict[tuple[str, Encoding | None], Tensor] = {}
    scales: dict[str, Tensor] = {}
    rewritten: list[Step] = []
    for step in steps:
        if isinstance(step, Activate) and (table := _as_table(step, rewritten, readers)) is not None:
            layer, encoding, entries = table
            bytes_out = replace(step.result, name=f"{step.result.name}.packed", layout="packed_a")
            rewritten[-1] = replace(layer, result=bytes_out)
            rewritten.append(Lookup(bytes_out, entries))
            packed[step.result.name, encoding] = bytes_out
            continue
        if not isinstance(step, Dense) or step.linears[0].form not in INTEGER_FORMS:
            rewritten.append(step)
            continue
        source, encoding_in = step.source, step.linears[0].input
        key = (source.name, encoding_in)
        if key not in packed:
            packed[key] = replace(source, name=f"{source.name}.packed{len(packed)}", layout="packed_a")
            if encoding_in is not None:
                rewritten.append(Quantize(packed[key], source, encoding_in))
            else:
                scales[source.name] = replace(source, name=f"{source.name}.scales", columns=2, layout="row_scales")
                rewritten.append(QuantizeRows(packed[key], source, scales[source.name]))
        if encoding_in is not None:
            result = step.result
            as_made = _read_as_made(step, readers)
            if as_made is not None:
                result = replace(step.result, name=f"{step.result.name}.packed", layout="packed_a")
                packed[step.result.name, as_made] = result
            rewritten.append(DenseStatic(result, packed[key], step.linears, step.residual))
        else:
            rewritten.append(DenseDynamic(step.result, packed[key], step.linears, step.residual, scales[source.name]))
    return rewritten


def _read_as_made(step: Dense, readers: dict[str, list[Step]]) -> Encoding | None:
    """The encoding of a static layer's output where only static layers of that encoding read it (low-rank pairs): they
    take the integers as they are."""
    following = readers.get(step.result.name, [])
    encoding = step.linears[0].output
    if not following or step.residual is not None or len(step.linears) != 1:
        return None
    same = all(isinstance(reader, Dense) and reader.linears[0].input == encoding for reader in following)
    return encoding if same and not any(step.result in reader.reads()[1:] for reader in following) else None


def _as_table(
    step: Activate, done: list[Step], readers: dict[str, list[Step]]
) -> tuple[DenseStatic, Encoding, NDArray[np.int8]] | None:
    """int8 → int8 where a static layer's output goes through `step` alone into static layers of one encoding."""
    layer = done[-1] if done else None
    if not isinstance(layer, DenseStatic) or layer.result != step.source or layer.residual is not None:
        return None
    following = readers.get(step.result.name, [])
    encodings = {reader.linears[0].input if isinstance(reader, Dense) else None for reader in following}
    encoding = next(iter(encodings), None)
    if len(readers[step.source.name]) != 1 or len(encodings) != 1 or encoding is None or len(layer.linears) != 1:
        return None
    before = layer.linears[0].output
    assert before is not None
    return layer, encoding, table_entries(step.kind, before, encoding)


def table_entries(kind: str, before: Encoding, after: Encoding) -> NDArray[np.int8]:
    """The int8 answer to every int8 from -128 to 127: dequantize, activate, quantize."""
    values = (np.arange(-128, 128) - before.zero_point).astype(np.float32) * np.float32(before.scale)
    active = activation(kind, values.astype(np.float64)).astype(np.float32)
    integers = np.rint(active / np.float32(after.scale)) + after.zero_point
    return np.asarray(np.clip(integers, -128, 127), np.int8)


def activation(kind: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The activations in float64."""
    if kind == "relu":
        return np.maximum(x, 0.0)
    if kind == "tanh":
        return np.tanh(x)
    if kind == "silu":
        return x / (1.0 + np.exp(-x))
    if kind == "gelu_tanh":
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    erf = np.array([math.erf(value / math.sqrt(2.0)) for value in x.reshape(-1)], np.float64).reshape(x.shape)
    return 0.5 * x * (1.0 + erf)
