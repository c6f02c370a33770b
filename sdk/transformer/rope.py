"""Tables of rotary positions (Su et al. 2021, arXiv:2104.09864), the same for torch and for graphs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rope_tables(sequence: int, size: int, base: float) -> NDArray[np.float32]:
    """Cosines and sines [2, sequence, size] of position · base^(−2i/size), each angle for elements i and i + size/2."""
    angles = np.arange(sequence)[:, None] * base ** (-np.arange(0, size, 2) / size)
    both = np.concatenate([angles, angles], 1)
    return np.stack([np.cos(both), np.sin(both)]).astype(np.float32)
