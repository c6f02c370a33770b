"""Rows in several processes at once, each with one thread: two processes use two cores better than two threads do.

A group of rows goes to one process: those whose recipes begin with the same training. What groups share besides (cheap
stages) is made by the first that wants it, while the other waits (`compression_cpu`).
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Protocol

from compression_rows import Row

from edgesdk.files import canonical_json


class Maker(Protocol):
    """What makes a row and says whether that went well."""

    def make(self, row: Row) -> bool: ...


_maker: Maker | None = None


def groups(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows in groups of one corpus and one beginning, up to the first stage that trains; those with the most
    stages that train come first, since they take longest."""
    found: dict[bytes, list[Row]] = {}
    for row in rows:
        found.setdefault(canonical_json([row.corpus, _beginning(row)]), []).append(row)
    return sorted(found.values(), key=lambda group: -sum(_trainings(row) for row in group))


def _beginning(row: Row) -> list[object]:
    texts: list[object] = []
    for stage in row.recipe().stages:
        texts.append([stage.name, stage.options.model_dump(mode="json")])
        if stage.trains:
            return texts
    return [row.name]  # nothing that takes long is shared


def _trainings(row: Row) -> int:
    return sum(stage.trains for stage in row.recipe().stages)


def make_all(rows: Sequence[Row], jobs: int, opened: Callable[[], Maker], here: Maker) -> list[bool]:
    """Make the rows; False for each that failed.

    Args:
        opened: makes a maker in another process; it must be a function of a module, or a partial of one.
        here: makes them where one job was asked for.
    """
    if jobs == 1:
        return [here.make(row) for row in rows]
    os.environ["OMP_NUM_THREADS"] = "1"  # the new processes read it when they load their libraries
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _start, (opened,)) as pool:
        try:
            waiting = [pool.submit(_make, group) for group in groups(rows)]
            return [done for future in as_completed(waiting) for done in future.result()]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start(opened: Callable[[], Maker]) -> None:
    global _maker
    _maker = opened()


def _make(group: Sequence[Row]) -> list[bool]:
    assert _maker is not None
    return [_maker.make(row) for row in group]
