"""Slow numpy versions of the kernels in `kernels/`, for tests: plain arrays, no packing, no tiles.

Where a kernel is exact (int8 sums, requantization) its reference rounds in the same places and must be met bit by bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgesdk.converters.neon.fuse import activation

Float = NDArray[np.float32]
Int8 = NDArray[np.int8]


def accumulate(x: Int8, weight: Int8) -> NDArray[np.int64]:
    """int8 [M, K] · int8 [N, K]ᵀ in integers."""
    return x.astype(np.int64) @ weight.astype(np.int64).T


def requantize(x: Int8, weight: Int8, bias: NDArray[np.int64], scale: Float, zero: Float) -> Float:
    """clamp(rint((x Wᵀ + bias) · scale) + zero), as float integers [M, N]."""
    total = (accumulate(x, weight) + bias).astype(np.float32)
    return np.asarray(np.clip(np.rint(total * scale) + zero, -128, 127), np.float32)


def linear_static(
    x: Int8, weight: Int8, bias: NDArray[np.int64], scale: Float, zero: Float, step: Float, residual: Float | None
) -> Float:
    """What `edge_int8_to_float` gives, bit by bit."""
    value = ((requantize(x, weight, bias, scale, zero) - zero) * step).astype(np.float32)
    return value if residual is None else value + residual


def linear_dynamic(
    x: Int8, row_scale: Float, row_zero: NDArray[np.int32], weight: Int8, scale: Float, bias: Float
) -> NDArray[np.float64]:
    """What `edge_int8_dynamic` gives, up to the last rounding."""
    exact = accumulate(x, weight) - row_zero[:, None] * weight.astype(np.int64).sum(1)
    return np.asarray(exact * (row_scale[:, None].astype(np.float64) * scale) + bias)


def quantize(x: Float, inverse: float, zero: int) -> Int8:
    """What `edge_quantize` gives, bit by bit."""
    return np.asarray(np.clip(np.rint(x * np.float32(inverse)) + np.float32(zero), -128, 127), np.int8)


def quantize_rows(x: Float) -> tuple[Int8, Float, NDArray[np.int32]]:
    """int8 rows, their scales and zero points; the range of a row holds 0."""
    low = np.minimum(x.min(1), 0).astype(np.float32)
    scale = ((np.maximum(x.max(1), 0).astype(np.float32) - low) / np.float32(255)).astype(np.float32)
    scale = np.where(scale > 1e-30, scale, np.float32(1)).astype(np.float32)
    zero = np.minimum(np.rint(np.float32(-128) - low / scale), 127).astype(np.float32)
    inverse = (np.float32(1) / scale).astype(np.float32)
    integers = np.clip(np.rint(x * inverse[:, None]) + zero[:, None], -128, 127).astype(np.int8)
    return integers, scale, zero.astype(np.int32)


def layernorm(x: Float, weight: Float, bias: Float, epsilon: float) -> NDArray[np.float64]:
    wide = x.astype(np.float64)
    centred = wide - wide.mean(1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(1, keepdims=True) + epsilon) * weight + bias)


def attention(
    query: Float, key: Float, value: Float, heads: int, group: int, size: int, scale: float,
    causal: bool = False,
) -> NDArray[np.float64]:
    """query [Q, heads · size], key and value [K, heads / group · size] → [Q, heads · size]; where `causal`, query i
    sees the keys up to i."""
    parts = []
    for head in range(heads):
        mine = slice(head * size, (head + 1) * size)
        shared = slice(head // group * size, (head // group + 1) * size)
        scores = query[:, mine].astype(np.float64) @ key[:, shared].astype(np.float64).T * scale
        if causal:
            scores = np.where(np.tri(*scores.shape) > 0, scores, -np.inf)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        parts.append(weights / weights.sum(1, keepdims=True) @ value[:, shared].astype(np.float64))
    return np.concatenate(parts, 1)


def elementwise(kind: str, x: Float) -> NDArray[np.float64]:
    """`gelu`, `gelu_tanh`, `relu` or `tanh`."""
    return activation(kind, x.astype(np.float64))


def patches(pixels: Float, patch: int) -> Float:
    """[channels, size, size] → [(size / patch)², channels · patch²]."""
    channels, size, _ = pixels.shape
    side = size // patch
    blocks = pixels.reshape(channels, side, patch, side, patch).transpose(1, 3, 0, 2, 4)
    return np.ascontiguousarray(blocks).reshape(side * side, -1)
