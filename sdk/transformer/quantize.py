"""Integer arithmetic that every part of EdgeSDK shares: rows of a weight to int8, whatever their bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgesdk.encodings import WeightEncoding


def row_scales(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Symmetric scales [N] of a weight [N, K], so that the largest |w| of a row becomes 127 (zero rows: scale 1)."""
    largest = np.abs(weight).max(1)
    return np.where(largest > 1e-30, largest / 127.0, 1.0).astype(np.float32)


def quantize_rows(weight: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int8]:
    """[N, K] float → int8 with |q| ≤ 127 (never -128: two products must fit 16 bits in the NEON `base` kernel)."""
    integers: NDArray[np.int8] = np.clip(np.rint(weight / scales[:, None]), -127, 127).astype(np.int8)
    return integers


def four_bits(weight: NDArray[np.float32], encoding: WeightEncoding) -> NDArray[np.int8]:
    """[N, K] float → q in [−8, 7] of a 4-bit encoding, before the multipliers."""
    assert encoding.multiplier is not None and encoding.group is not None
    steps = encoding.scale[:, None] * encoding.multiplier.astype(np.float32)
    integers = np.rint(weight / np.repeat(steps, encoding.group, axis=1))
    result: NDArray[np.int8] = np.clip(integers, -8, 7).astype(np.int8)
    return result


def integers(weight: NDArray[np.float32], encoding: WeightEncoding) -> NDArray[np.int8]:
    """[N, K] float → the int8 weights that kernels see, |w| ≤ 127: real = scale · w."""
    if encoding.bits == 8:
        return quantize_rows(weight, encoding.scale)
    assert encoding.multiplier is not None and encoding.group is not None
    wide = np.repeat(encoding.multiplier.astype(np.int16), encoding.group, axis=1)
    result: NDArray[np.int8] = (four_bits(weight, encoding) * wide).astype(np.int8)
    return result


def dequantized(weight: NDArray[np.float32], encoding: WeightEncoding) -> NDArray[np.float32]:
    """[N, K] float → the nearest real numbers of the encoding. Rounding methods (GPTQ, AdaRound) put these into the
    package: numbers of the grid round to themselves, so weights and encodings say everything."""
    result: NDArray[np.float32] = integers(weight, encoding) * encoding.scale[:, None]
    return result.astype(np.float32)
