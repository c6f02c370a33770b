"""Which rows make a batch: rows of similar length together, so that little padding is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 50  # batches that are sorted by length together


def lengths(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.int64] | None:
    """Tokens of each row [N]; None where all rows are of one length."""
    mask = inputs.get("attention_mask")
    return None if mask is None else np.asarray(mask.sum(1), np.int64)


def epoch_batches(
    inputs: Mapping[str, NDArray[Any]], batch: int, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """Row numbers of every batch of an epoch; each row once. They follow from seed and epoch alone.

    Rows are shuffled, sorted by length within chunks of `CHUNK` batches, and the batches shuffled again.
    """
    random = np.random.default_rng([seed, epoch])
    count = len(next(iter(inputs.values())))
    order, size = random.permutation(count), lengths(inputs)
    batches = []
    for start in range(0, count, CHUNK * batch):
        chunk = order[start : start + CHUNK * batch]
        if size is not None:
            chunk = chunk[np.argsort(size[chunk], kind="stable")]
        batches += [chunk[first : first + batch] for first in range(0, len(chunk), batch)]
    return [batches[index] for index in random.permutation(len(batches))] if size is not None else batches


def sorted_batches(inputs: Mapping[str, NDArray[Any]], batch: int) -> list[NDArray[np.int64]]:
    """Row numbers in batches, shortest rows first: for passes whose order does not matter."""
    size = lengths(inputs)
    order = np.arange(len(next(iter(inputs.values())))) if size is None else np.argsort(size, kind="stable")
    return [order[start : start + batch] for start in range(0, len(order), batch)]


def take_rows(inputs: Mapping[str, NDArray[Any]], rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """The inputs of some rows, without the columns that are padding in all of them."""
    taken = {name: np.ascontiguousarray(value[rows]) for name, value in inputs.items()}
    mask = taken.get("attention_mask")
    if mask is None:
        return taken
    used = np.flatnonzero(mask.any(0))
    longest = int(used[-1]) + 1 if len(used) else 1
    return {name: np.ascontiguousarray(value[:, :longest]) for name, value in taken.items()}
