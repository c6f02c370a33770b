"""How the int8 matrix of a layer lies in a binary: whole panels, or only its blocks that are not zero.

The weights themselves decide, whatever the package says of them: a block is one k-step of a panel, [nr, kr], so blocks
pruned in the target's pattern are found, and so is any other zero that fills a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgesdk.converters.neon.kernel_sets import KernelSet
from edgesdk.converters.neon.packing import ALIGN, pack_b, round_up

# Sets with `edge_blocks_*.h` of their own; others gather and use the dense tile.
BLOCK_TILES = ("base", "dotprod", "i8mm")
# Share of zero blocks from which it is cheaper to leave them out (benchmarks/neon_sparse.py): lists cost 4 % of a step.
SPARSE_FROM, SPARSE_FROM_GATHERED = 0.05, 0.25


@dataclass(frozen=True)
class Stored:
    """`weights` as the kernels read them; where block-sparse, `blocks` int32 [panels, 3] and `strides` int32 [blocks]
    too (see `edge_gemm_int8.h`). `left_out` is the share of k-steps that are not computed."""

    weights: NDArray[np.int8]
    blocks: NDArray[np.int32] | None = None
    strides: NDArray[np.int32] | None = None
    left_out: float = 0.0


def store_matrix(weight: NDArray[np.int8], kernels: KernelSet) -> Stored:
    """int8 [N, K] in the form that the kernel set runs with the fewest instructions."""
    sparse = pack_blocks(weight, kernels)
    return sparse if sparse.left_out >= sparse_from(kernels) else Stored(pack_b(weight, kernels))


def sparse_from(kernels: KernelSet) -> float:
    """The share of zero blocks from which a kernel set leaves them out."""
    return SPARSE_FROM if kernels.name in BLOCK_TILES else SPARSE_FROM_GATHERED


def pack_blocks(weight: NDArray[np.int8], kernels: KernelSet) -> Stored:
    """The blocks of int8 [N, K] that are not zero. A panel's list is padded with zero blocks to a multiple of the
    k-steps that the dense tile needs, unless the set has a tile for blocks."""
    panels = pack_b(weight, kernels)  # [N / nr, K / kr, nr, kr]
    kept = np.asarray(panels.any((2, 3)))
    step_bytes = kernels.mr * kernels.kr
    group = 1 if kernels.name in BLOCK_TILES else ALIGN // kernels.kr
    blocks, strides, parts, begin = [], list[NDArray[np.int32]](), list[NDArray[np.int8]](), 0
    for panel, present in zip(panels, kept, strict=True):
        steps = np.flatnonzero(present)
        count = round_up(len(steps), group)
        padded = np.zeros((count, kernels.nr, kernels.kr), np.int8)
        padded[: len(steps)] = panel[steps]
        own = np.zeros(count, np.int32)
        own[: max(0, len(steps) - 1)] = np.diff(steps) * step_bytes
        blocks.append((begin, count, int(steps[0]) * step_bytes if len(steps) else 0))
        strides.append(own)
        parts.append(padded)
        begin += count
    if not begin:  # nothing at all: one block that no panel has, so that there is an address
        strides, parts = [np.zeros(1, np.int32)], [np.zeros((1, kernels.nr, kernels.kr), np.int8)]
    left_out = 1 - begin / kept.size
    return Stored(np.concatenate(parts), np.array(blocks, np.int32), np.concatenate(strides), left_out)


def unpack_blocks(stored: Stored, rows: int, columns: int, kernels: KernelSet) -> NDArray[np.int8]:
    """The inverse of `pack_blocks` (for tests)."""
    assert stored.blocks is not None and stored.strides is not None
    depth = round_up(columns, ALIGN) // kernels.kr
    panels = np.zeros((len(stored.blocks), depth, kernels.nr, kernels.kr), np.int16)
    for panel, (begin, count, offset) in zip(panels, stored.blocks.tolist(), strict=True):
        steps = (offset + np.concatenate([[0], np.cumsum(stored.strides[begin : begin + count])])[:-1])[:count]
        for step, block in zip(steps // (kernels.mr * kernels.kr), stored.weights[begin : begin + count], strict=True):
            panel[int(step)] += block
    flat = panels.transpose(0, 2, 1, 3).reshape(len(panels) * kernels.nr, depth * kernels.kr)
    return flat[:rows, :columns].astype(np.int8)


def kernel_macros(stored: Sequence[Stored]) -> tuple[str, ...]:
    """What `model.c` defines so that the kernels can read these matrices; others are compiled without that code."""
    return ("EDGE_BLOCKS 1",) if any(matrix.blocks is not None for matrix in stored) else ()


def storage_summary(stored: Sequence[Stored]) -> tuple[str, ...]:
    """What the artifact says of its int8 matrices."""
    sparse = [matrix for matrix in stored if matrix.blocks is not None]
    if not sparse:
        return ()
    share = 100 * float(np.mean([matrix.left_out for matrix in sparse]))
    return (f"block-sparse: {len(sparse)} of {len(stored)} int8 matrices, {share:.0f} % of their k-steps left out",)
