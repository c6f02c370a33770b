"""Take a board out of a farm file; everything else in the file stays as it is, comments too."""

from __future__ import annotations

import contextlib
import re
import tomllib
from pathlib import Path

from edgesdk.errors import ConfigError
from edgesdk.files import write_atomic
from edgesdk.harness.farm import HOST, load_farm
from edgesdk.harness.text import plain

_HEADER = re.compile(r"^[ \t]*\[", re.MULTILINE)


def remove_board(path: Path, name: str) -> None:
    """Remove the table `[boards.NAME]`.

    Raises:
        ConfigError: no such board, or a table that is not written as `[boards.NAME]`.
    """
    farm = load_farm(path)
    if name == HOST.name:
        raise ConfigError(f"{name} is this machine; it is always there")
    if name not in farm:
        known = ", ".join(board for board in farm if board != HOST.name) or "none"
        raise ConfigError(f"{path}: has no board {plain(name, 80)!r}", f"its boards: {known}")
    text = path.read_text()
    wanted = tomllib.loads(text)
    del wanted["boards"][name]
    if not wanted["boards"]:
        del wanted["boards"]
    header = re.compile(rf"^[ \t]*\[ *boards *\. *([\"']?){re.escape(name)}\1 *\][ \t]*(#.*)?\n?", re.MULTILINE)
    for found in header.finditer(text):
        for after in [*(start.start() for start in _HEADER.finditer(text, found.end())), len(text)]:
            rest = text[: found.start()].rstrip("\n") + "\n" + ("\n" + text[after:] if text[after:].strip() else "")
            # What looks like a header may be inside a string or a list: only the wanted change is written.
            with contextlib.suppress(tomllib.TOMLDecodeError):
                if tomllib.loads(rest) == wanted:
                    write_atomic(path, rest.encode())
                    return
    raise ConfigError(f"{path}: has no table [boards.{name}] to remove", "remove it by hand")
