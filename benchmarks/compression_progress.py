"""Progress of long work where no terminal draws it: now and then one line that says how far it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from edgesdk.cli.output import progress_bar, say, stderr
from edgesdk.stages import Progress

SECONDS_BETWEEN_LINES = 10.0


class Lines:
    """A progress callback that prints at most one line in ten seconds, with what is done of how much."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            say(f"{what}: {done} of {total}")


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """A bar on a terminal, else lines."""
    if not stderr.is_terminal:
        yield Lines()
        return
    with progress_bar() as bar:
        yield bar
