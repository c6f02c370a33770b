"""Integer arithmetic that every part of EdgeSDK shares: rows of a weight to int8."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def row_scales(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Symmetric scales [N] of a weight [N, K], so that the largest |w| of a row becomes 127 (zero rows: scale 1)."""
    largest = np.abs(weight).max(1)
    return np.where(largest > 1e-30, largest / 127.0, 1.0).astype(np.float32)


def quantize_rows(weight: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int8]:
    """[N, K] float → int8 with |q| ≤ 127 (never -128: two products must fit 16 bits in the NEON `base` kernel)."""
    integers: NDArray[np.int8] = np.clip(np.rint(weight / scales[:, None]), -127, 127).astype(np.int8)
    return integers
