"""The constants of linear layers, packed for a kernel set: the fields of `edge_int8` and `edge_float` as C text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.converters.front import Linear
from edgesdk.converters.neon.kernel_sets import KernelSet
from edgesdk.converters.neon.packing import ALIGN, pack_float, pack_half, pad, pad_rows, round_up
from edgesdk.converters.neon.plan import Dense
from edgesdk.converters.neon.storage import Stored, store_matrix

Store = Callable[[NDArray[np.generic], str], str]  # array, C type → C pointer


def static_layer(step: Dense, kernels: KernelSet, store: Store) -> tuple[Sequence[str], Stored]:
    """w8a8: bias - zero_x · Σw (and the offset of unsigned activations) in int32, scale s_x · s_w / s_y; and how the
    matrix is stored."""
    weight = _weights(step.linears)
    stored = store_matrix(weight, kernels)
    count = round_up(len(weight), kernels.nr)
    sums = weight.astype(np.int64).sum(1)
    biases, scales, zeros, steps = [], [], [], []
    for linear in step.linears:
        assert linear.input is not None and linear.output is not None and linear.weight_scale is not None
        outputs = len(linear.weight)
        biases.append(linear.bias.astype(np.int64))
        ratio = np.float64(linear.input.scale) / np.float64(linear.output.scale)
        scales.append((linear.weight_scale.astype(np.float64) * ratio).astype(np.float32))
        zeros.append(np.full(outputs, linear.output.zero_point, np.float32))
        steps.append(np.full(outputs, linear.output.scale, np.float32))
    assert step.linears[0].input is not None
    bias = np.concatenate(biases) - (step.linears[0].input.zero_point + kernels.flip) * sums
    varied = len({linear.output for linear in step.linears}) > 1
    zero, scale_out = np.concatenate(zeros), np.concatenate(steps)
    if not varied:
        zero, scale_out = zero[:1].repeat(kernels.nr), scale_out[:1].repeat(kernels.nr)
    length = count if varied else kernels.nr
    fields = [
        store(stored.weights, "int8_t"),
        store(pad(bias, count, np.int32), "int32_t"),
        store(pad(np.concatenate(scales), count, np.float32), "float"),
        store(pad(zero, length, np.float32), "float"),
        store(pad(scale_out, length, np.float32), "float"),
        str(int(varied)), str(round_up(weight.shape[1], ALIGN)), str(count), *_storage(stored, kernels, store),
    ]
    return fields, stored


def dynamic_layer(step: Dense, kernels: KernelSet, store: Store) -> tuple[Sequence[str], Stored]:
    """w8a8-dynamic: Σw in int32, scale s_w, float bias; the activation's scale and zero point come at run time; and
    how the matrix is stored."""
    weight = _weights(step.linears)
    stored = store_matrix(weight, kernels)
    count = round_up(len(weight), kernels.nr)
    fields = [
        store(stored.weights, "int8_t"),
        store(pad(weight.astype(np.int64).sum(1), count, np.int32), "int32_t"),
        store(pad(np.concatenate([_scale(linear) for linear in step.linears]), count, np.float32), "float"),
        store(pad(np.concatenate([linear.bias for linear in step.linears]), count, np.float32), "float"),
        "NULL", "0", str(round_up(weight.shape[1], ALIGN)), str(count), *_storage(stored, kernels, store),
    ]
    return fields, stored


def float_layer(step: Dense, kernels: KernelSet, store: Store) -> Sequence[str]:
    """fp32 panels and bias."""
    weight = _weights(step.linears).astype(np.float32)
    count = round_up(len(weight), kernels.nf)
    bias = np.concatenate([linear.bias for linear in step.linears])
    return [
        store(pack_float(weight, kernels), "float"), store(pad(bias, count, np.float32), "float"),
        str(weight.shape[1]), str(count),
    ]


def half_layer(step: Dense, store: Store) -> Sequence[str]:
    """fp16 panels and a float bias."""
    packed = pack_half(_weights(step.linears).astype(np.float32))
    panels, depth, columns = packed.shape
    bias = np.concatenate([linear.bias for linear in step.linears])
    return [
        store(packed, "edge_f16"), store(pad(bias, panels * columns, np.float32), "float"), str(depth),
        str(panels * columns),
    ]


def w8_layer(step: Dense, store: Store) -> Sequence[str]:
    """int8 rows, their scales and a float bias; then N, K and the padded K."""
    linear = step.linears[0]
    outputs, inputs = linear.weight.shape
    return [
        store(pad_rows(linear.weight), "int8_t"), store(_scale(linear), "float"),
        store(linear.bias.astype(np.float32), "float"), str(outputs), str(inputs), str(round_up(inputs, ALIGN)),
    ]


def _storage(stored: Stored, kernels: KernelSet, store: Store) -> Sequence[str]:
    """The fields behind `n`."""
    blocks = ["NULL", "NULL"] if stored.blocks is None or stored.strides is None else [
        store(stored.blocks, "edge_blocks"), store(stored.strides, "int32_t")
    ]
    if stored.multipliers is None:
        return [*blocks, "NULL", "0"]
    readable = np.pad(stored.multipliers.reshape(-1), (0, 16))  # rows are read as whole vectors
    return [*blocks, store(readable, "uint8_t"), str(stored.group // (2 * kernels.kr))]


def _weights(linears: Sequence[Linear]) -> NDArray[Any]:
    return np.concatenate([linear.weight for linear in linears])


def _scale(linear: Linear) -> NDArray[np.float32]:
    assert linear.weight_scale is not None
    return np.asarray(linear.weight_scale, np.float32).reshape(-1)
