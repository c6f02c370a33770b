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


def linear_half(
    x: NDArray[np.float16], weight: NDArray[np.float16], bias: Float, residual: Float | None, block: int
) -> Float:
    """What `edge_half_linear` gives, bit by bit: each product added to its sum [M, N] with one rounding to float16,
    sums of `block` products added up in float32."""
    total = np.broadcast_to(bias.astype(np.float32), (len(x), len(weight))).copy()
    left, right = x.astype(np.float64), weight.astype(np.float64)
    for start in range(0, x.shape[1], block):
        part = np.zeros(total.shape, np.float16)
        for k in range(start, min(start + block, x.shape[1])):
            part = (part.astype(np.float64) + left[:, k, None] * right[:, k]).astype(np.float16)
        total += part.astype(np.float32)
    return total if residual is None else total + residual


def layernorm(x: Float, weight: Float, bias: Float, epsilon: float) -> NDArray[np.float64]:
    wide = x.astype(np.float64)
    centred = wide - wide.mean(1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(1, keepdims=True) + epsilon) * weight + bias)


def rmsnorm(x: Float, weight: Float, epsilon: float) -> NDArray[np.float64]:
    wide = x.astype(np.float64)
    return np.asarray(wide / np.sqrt((wide**2).mean(1, keepdims=True) + epsilon) * weight)


def rotate(x: Float, heads: int, cosine: Float, sine: Float) -> NDArray[np.float64]:
    """x [S, heads · D] with the pairs (i, i + D/2) of each head turned by cosine and sine [S, D]."""
    wide = x.astype(np.float64).reshape(len(x), heads, -1)
    first, second = np.split(wide, 2, -1)
    other = np.concatenate([-second, first], -1)
    return np.asarray((wide * cosine[:, None] + other * sine[:, None]).reshape(len(x), -1))


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


def cache_of(key: Float, value: Float, capacity: int, heads: int, size: int, panel: int) -> Float:
    """The cache of `edge_attention_cached.h` that holds key and value [past, heads · size]: for each head keys
    [capacity / panel, size, panel], then values [size / panel, capacity, panel]. Padding of a value row is 0; what is
    not written yet is NaN."""
    past, parts = len(key), []
    for head in range(heads):
        mine = slice(head * size, (head + 1) * size)
        keys = np.full((-(-capacity // panel) * panel, size), np.nan, np.float32)
        keys[:past] = key[:, mine]
        values = np.full((capacity, -(-size // panel) * panel), np.nan, np.float32)
        values[:past] = np.pad(value[:, mine], ((0, 0), (0, values.shape[1] - size)))
        parts += [keys.reshape(-1, panel, size).transpose(0, 2, 1), values.reshape(capacity, -1, panel).swapaxes(0, 1)]
    return np.concatenate([np.ascontiguousarray(part).reshape(-1) for part in parts])


def _high_product(a: NDArray[np.int64], b: NDArray[np.int64] | int, bits: int) -> NDArray[np.int64]:
    """sqrdmulh: the upper half of 2ab, rounded."""
    return np.asarray((2 * a * b + (1 << (bits - 1))) >> bits)


def power(
    apart: NDArray[np.int64], multiplier: int, shift: int, factors: tuple[int, int, int, int]
) -> NDArray[np.int64]:
    """p = about factors[0] · 2^(c · apart), c = multiplier / 2^(41 - shift), as `edge_softmax_rows` gives it."""
    fraction, least = 10, -(1 << 15)
    if shift:
        t = _high_product(np.maximum(np.maximum(apart, least) << shift, least), multiplier >> 16, 16)
    else:
        t = np.maximum(_high_product(apart, multiplier, 32), least)
    g = (t << (16 - fraction)).astype(np.int16).astype(np.int64)
    down = -((t + (1 << (fraction - 1))) >> fraction)
    value = np.full_like(t, factors[3])
    for factor in factors[2::-1]:
        value = _high_product(value, g, 16) + factor
    return np.asarray((value + (1 << down >> 1)) >> down)


def attention_int8(
    query: Int8, key: Int8, value: Int8, zeros: tuple[int, int], softmax: tuple[int, int],
    factors: tuple[int, int, int, int], ratio: float, zero_out: int, heads: int, group: int, size: int,
    causal: bool = False,
) -> Int8:
    """What `edge_attention_int8` gives, bit by bit: int8 [Q, heads · size], [K, heads / group · size] twice; `zeros` of
    query and value, `softmax` multiplier and shift, `factors` of its polynomial, `ratio` the scale of value over that
    of the result."""
    parts = []
    offset = np.float32(zero_out) - np.float32(zeros[1]) * np.float32(ratio)
    for head in range(heads):
        mine = slice(head * size, (head + 1) * size)
        shared = slice(head // group * size, (head // group + 1) * size)
        scores = (query[:, mine].astype(np.int64) - zeros[0]) @ key[:, shared].astype(np.int64).T
        if causal:
            scores = np.where(np.tri(*scores.shape) > 0, scores, -(1 << 30))
        weights = power(scores - scores.max(1, keepdims=True), *softmax, factors)
        total = (weights @ value[:, shared].astype(np.int64)).astype(np.float32)
        factor = np.float32(ratio) / weights.sum(1, keepdims=True).astype(np.float32)
        parts.append(np.clip(np.rint(total * factor + offset), -128, 127).astype(np.int8))
    return np.concatenate(parts, 1)


def elementwise(kind: str, x: Float) -> NDArray[np.float64]:
    """`gelu`, `gelu_tanh`, `relu`, `silu` or `tanh`."""
    return activation(kind, x.astype(np.float64))


def patches(pixels: Float, patch: int) -> Float:
    """[channels, size, size] → [(size / patch)², channels · patch²]."""
    channels, size, _ = pixels.shape
    side = size // patch
    blocks = pixels.reshape(channels, side, patch, side, patch).transpose(1, 3, 0, 2, 4)
    return np.ascontiguousarray(blocks).reshape(side * side, -1)
