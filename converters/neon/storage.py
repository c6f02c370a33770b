"""How the int8 matrix of a layer lies in a binary: whole panels, only its blocks that are not zero, or 4 bits.

The weights themselves decide, whatever the package says of them. A block is one k-step of a panel, [nr, kr], so blocks
pruned in the target's pattern are found, and so is any other zero that fills a block. Weights of 4 bits are
multiplier · q with a multiplier for each group of inputs: the greatest common divisor of a group serves as well.
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
GROUPS = (8, 16, 32, 64, 128, 256)  # inputs that may share a multiplier; what fits a group fits its halves
LARGEST_PANEL = 96 << 10  # bytes of an unpacked panel, which lies on the stack


@dataclass(frozen=True)
class Stored:
    """`weights` as the kernels read them; where block-sparse, `blocks` int32 [panels, 3] and `strides` int32 [blocks]
    too; where of 4 bits, `multipliers` uint8 [panels, groups, nr] with `group` inputs each (see `edge_gemm_int8.h`).
    `depth` is the padded K. `left_out` is the share of k-steps that are not computed, of the `steps` of all panels."""

    weights: NDArray[np.int8]
    depth: int = 0
    blocks: NDArray[np.int32] | None = None
    strides: NDArray[np.int32] | None = None
    left_out: float = 0.0
    steps: int = 0
    multipliers: NDArray[np.uint8] | None = None
    group: int = 0

    @property
    def bytes(self) -> int:
        """Of all arrays."""
        arrays = (self.weights, self.blocks, self.strides, self.multipliers)
        return sum(array.nbytes for array in arrays if array is not None)


def store_matrix(weight: NDArray[np.int8], kernels: KernelSet) -> Stored:
    """int8 [N, K] in the form that costs least: blocks where enough are zero, unless 4 bits are a tenth smaller."""
    panels = pack_b(weight, kernels)
    small = pack_four_bits(panels, kernels)
    if zero_share(panels, kernels) >= sparse_from(kernels):
        sparse = pack_blocks(panels, kernels)
        if small is None or small.bytes > 0.9 * sparse.bytes:
            return sparse
    return small or Stored(panels)


def sparse_from(kernels: KernelSet) -> float:
    """The share of zero blocks from which a kernel set leaves them out."""
    return SPARSE_FROM if kernels.name in BLOCK_TILES else SPARSE_FROM_GATHERED


def zero_share(panels: NDArray[np.int8], kernels: KernelSet) -> float:
    """The share of the blocks of `pack_b` that `pack_blocks` leaves out."""
    kept, unit = np.asarray(panels.any((2, 3))), _list_unit(kernels)
    return 1 - sum(round_up(int(count), unit) for count in kept.sum(1)) / kept.size


def pack_blocks(panels: NDArray[np.int8], kernels: KernelSet) -> Stored:
    """The blocks of `pack_b` that are not zero."""
    kept = np.asarray(panels.any((2, 3)))
    step_bytes, group = kernels.mr * kernels.kr, _list_unit(kernels)
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
    return Stored(
        np.concatenate(parts), blocks=np.array(blocks, np.int32), strides=np.concatenate(strides),
        left_out=1 - begin / kept.size, steps=kept.size,
    )


def _list_unit(kernels: KernelSet) -> int:
    """Lists of blocks are padded with zero blocks to a multiple of the k-steps that the dense tile needs, unless the
    set has a tile for blocks."""
    return 1 if kernels.name in BLOCK_TILES else ALIGN // kernels.kr


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


def pack_four_bits(panels: NDArray[np.int8], kernels: KernelSet) -> Stored | None:
    """The panels of `pack_b` as q of 4 bits and multipliers, in the largest groups that hold it; None where there are
    none, or the shape does not suit: pairs of k-steps lie in the bytes of one, and a panel must fit in
    LARGEST_PANEL."""
    count, steps, depth = len(panels), panels.shape[1], panels.shape[1] * kernels.kr
    if steps % 2 or kernels.nr * depth > LARGEST_PANEL:
        return None
    found = None
    for group in GROUPS:
        if group % (2 * kernels.kr):
            continue
        size = group // kernels.kr
        groups = -(-steps // size)
        whole = np.zeros((count, groups * size, kernels.nr, kernels.kr), np.int8)
        whole[:, :steps] = panels
        grouped = whole.reshape(count, groups, size, kernels.nr, kernels.kr)
        divisor = np.gcd.reduce(np.abs(grouped.astype(np.int16)), axis=(2, 4))  # [panels, groups, nr]
        multipliers = np.maximum(divisor, 1)
        small = (grouped // multipliers[:, :, None, :, None]).reshape(whole.shape)[:, :steps]
        if small.min() < -8 or small.max() > 7:
            break
        pairs = small.reshape(count, steps // 2, 2, kernels.nr, kernels.kr)
        packed = ((pairs[:, :, 0] & 15) | (pairs[:, :, 1] << 4)).astype(np.uint8).view(np.int8)
        found = Stored(packed, depth, multipliers=multipliers.astype(np.uint8), group=group)
    return found


@dataclass(frozen=True)
class SmallRows:
    """A table of 4 bits: `weights` int8 [V, (H + 1) / 2], the even column in the low half, and `multipliers` uint8
    [V, groups], one for `group` columns (`edge_lookup` in `edge_rows.h`)."""

    weights: NDArray[np.int8]
    multipliers: NDArray[np.uint8]
    group: int


def pack_rows(values: NDArray[np.int8]) -> SmallRows | None:
    """int8 [V, H] as q of 4 bits and multipliers, in the largest groups that hold it; None where there are none."""
    (rows, columns), found = values.shape, None
    for group in GROUPS:
        whole = np.zeros((rows, -(-columns // group), group), np.int8)
        whole.reshape(rows, -1)[:, :columns] = values
        multipliers = np.maximum(np.gcd.reduce(np.abs(whole.astype(np.int16)), axis=2), 1)
        small = (whole // multipliers[:, :, None]).reshape(rows, -1)[:, : columns + columns % 2]
        if small.min() < -8 or small.max() > 7:
            break
        packed = ((small[:, ::2] & 15) | (small[:, 1::2] << 4)).astype(np.uint8).view(np.int8)
        found = SmallRows(packed, multipliers.astype(np.uint8), group)
    return found


def unpack_four_bits(stored: Stored, rows: int, columns: int, kernels: KernelSet) -> NDArray[np.int8]:
    """The inverse of `pack_four_bits` (for tests)."""
    assert stored.multipliers is not None
    count, pairs = stored.weights.shape[:2]
    low, high = (stored.weights << 4) >> 4, stored.weights >> 4
    small = np.stack([low, high], 2).reshape(count, 2 * pairs, kernels.nr, kernels.kr)
    wide = stored.multipliers.repeat(stored.group // kernels.kr, 1)[:, : 2 * pairs, :, None]
    flat = (small * wide.astype(np.int16)).transpose(0, 2, 1, 3).reshape(count * kernels.nr, -1)
    return flat[:rows, :columns].astype(np.int8)


def kernel_macros(stored: Sequence[Stored]) -> tuple[str, ...]:
    """What `model.c` defines so that the kernels can read these matrices; others are compiled without that code."""
    deepest = max((matrix.depth for matrix in stored if matrix.multipliers is not None), default=0)
    sparse = any(matrix.blocks is not None for matrix in stored)
    return (*(("EDGE_BLOCKS 1",) if sparse else ()), *((f"EDGE_FOUR_BITS {deepest}",) if deepest else ()))


def storage_summary(stored: Sequence[Stored], small_tables: int = 0) -> tuple[str, ...]:
    """What the artifact says of its int8 matrices and of its tables of 4 bits."""
    notes = []
    sparse = [matrix for matrix in stored if matrix.blocks is not None]
    small = [matrix for matrix in stored if matrix.multipliers is not None]
    if sparse:
        shares, steps = [matrix.left_out for matrix in sparse], [matrix.steps for matrix in sparse]
        share = 100 * float(np.average(shares, weights=steps))
        count = f"{len(sparse)} of {len(stored)} int8 matrices"
        notes.append(f"block-sparse: {count}, {share:.0f} % of their k-steps left out")
    if small:
        notes.append(f"4-bit weights: {len(small)} of {len(stored)} int8 matrices, unpacked as they are read")
    if small_tables:
        notes.append(f"4-bit tables of embeddings: {small_tables}, unpacked as they are read")
    return tuple(notes)
