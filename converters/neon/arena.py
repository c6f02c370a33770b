"""Static memory for activations: one block in which buffers share bytes when their lives do not overlap.

Greedy by size, as in the memory planners of TFLite and XNNPACK (Pisarchyk and Lee, 2020): the largest buffer first,
each at the lowest offset that is free during its whole life.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True)
class Life:
    """`size` bytes, in use from step `first` to step `last`, both included."""

    name: str
    size: int
    first: int
    last: int

    def overlaps(self, other: Life) -> bool:
        return self.first <= other.last and other.first <= self.last


def place(lives: Sequence[Life]) -> tuple[dict[str, int], int]:
    """Offsets by name, multiples of 64, and the size of the arena; both in bytes."""
    offsets: dict[str, int] = {}
    placed: list[Life] = []
    for life in sorted(lives, key=lambda life: (-life.size, life.first, life.name)):
        taken = sorted((offsets[other.name], other.size) for other in placed if life.overlaps(other))
        offset = 0
        for start, size in taken:
            if start - offset >= life.size:
                break
            offset = max(offset, -(-(start + size) // ALIGNMENT) * ALIGNMENT)
        offsets[life.name] = offset
        placed.append(life)
    end = max((offsets[life.name] + life.size for life in placed), default=0)
    return offsets, -(-end // ALIGNMENT) * ALIGNMENT
