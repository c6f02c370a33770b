"""What commands print: progress and remarks on stderr, results on stdout, as text or as one JSON document."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

stderr = Console(stderr=True, highlight=False, soft_wrap=True)
# In a pipe or a file there is no terminal to fit: wide tables stay whole.
stdout = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 220)


def say(text: str) -> None:
    """A remark for people, on stderr."""
    stderr.print(escape(text))


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """A table on stdout; cells are printed as they are, never as markup."""
    table = Table(*columns, title=title, title_justify="left", show_edge=False, pad_edge=False)
    for row in rows:
        table.add_row(*(escape("" if cell is None else str(cell)) for cell in row))
    stdout.print(table)


def print_mapping(values: Mapping[str, Any]) -> None:
    """Names and values, one line each."""
    print_table(("name", "value"), [(key, _text(value)) for key, value in values.items()])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@contextmanager
def progress_bar() -> Iterator[Any]:
    """A progress callback (what, done, total) that draws on stderr; on a plain stream it prints each new step."""
    if not stderr.is_terminal:
        last = ""

        def line(what: str, done: int, total: int) -> None:
            nonlocal last
            if what != last:
                last = what
                say(what)

        yield line
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def draw(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total or None)

        yield draw
