"""Arrays in the layouts that the kernels read (see `kernels/edge_gemm_int8.h`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgesdk.converters.neon.kernel_sets import KernelSet

ALIGN = 16  # floats of a row, and the padding of K: a multiple of every vector and of every `kr`
ROWS = 8  # buffers hold whole tiles: a multiple of every `mr`


def round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def pack_b(weight: NDArray[np.int8], kernels: KernelSet) -> NDArray[np.int8]:
    """int8 [N, K] → panels [N / nr, K / kr, nr, kr]; N is padded to `nr`, K to 16, with zeros."""
    rows, columns = weight.shape
    padded = np.zeros((round_up(rows, kernels.nr), round_up(columns, ALIGN)), np.int8)
    padded[:rows, :columns] = weight
    panels = padded.reshape(padded.shape[0] // kernels.nr, kernels.nr, padded.shape[1] // kernels.kr, kernels.kr)
    return np.ascontiguousarray(panels.transpose(0, 2, 1, 3))


def pack_a(values: NDArray[np.int8], kernels: KernelSet) -> NDArray[np.int8]:
    """int8 [M, K] → panels [M / mr, K / kr, mr, kr], with the kernel set's `flip`; padded with zeros (for tests)."""
    rows, columns = values.shape
    padded = np.zeros((round_up(rows, ROWS), round_up(columns, ALIGN)), np.int8)
    padded[:rows, :columns] = values
    padded = (padded.view(np.uint8) ^ np.uint8(kernels.flip)).view(np.int8)
    panels = padded.reshape(padded.shape[0] // kernels.mr, kernels.mr, padded.shape[1] // kernels.kr, kernels.kr)
    return np.ascontiguousarray(panels.transpose(0, 2, 1, 3))


def unpack_a(packed: NDArray[np.int8], rows: int, columns: int, kernels: KernelSet) -> NDArray[np.int8]:
    """The inverse of `pack_a`."""
    padded_columns = round_up(columns, ALIGN)
    panels = packed.reshape(-1, padded_columns // kernels.kr, kernels.mr, kernels.kr).transpose(0, 2, 1, 3)
    flat = np.ascontiguousarray(panels).reshape(-1, padded_columns)[:rows, :columns]
    return (flat.view(np.uint8) ^ np.uint8(kernels.flip)).view(np.int8)


def pack_float(weight: NDArray[np.float32], kernels: KernelSet) -> NDArray[np.float32]:
    """float [N, K] → panels [N / nf, K, nf]; N is padded with zeros."""
    rows, columns = weight.shape
    padded = np.zeros((round_up(rows, kernels.nf), columns), np.float32)
    padded[:rows] = weight
    return np.ascontiguousarray(padded.reshape(-1, kernels.nf, columns).transpose(0, 2, 1))


def pack_half(weight: NDArray[np.float32]) -> NDArray[np.float16]:
    """float [N, K] → float16 panels [N / 16, K, 16]; N and K are padded to 16 with zeros (`edge_gemm_half.h`)."""
    rows, columns = (round_up(size, ALIGN) for size in weight.shape)
    padded = np.zeros((rows, columns), np.float16)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    return np.ascontiguousarray(padded.reshape(-1, ALIGN, columns).transpose(0, 2, 1))


def pad_rows(weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """int8 [N, K] → [N, K padded to 16]."""
    return np.pad(weight, ((0, 0), (0, round_up(weight.shape[1], ALIGN) - weight.shape[1])))


def pad(values: NDArray[np.generic], length: int, dtype: type[np.generic]) -> NDArray[np.generic]:
    """A vector padded with zeros to `length`."""
    result = np.zeros(length, dtype)
    result[: len(values)] = values
    return result
