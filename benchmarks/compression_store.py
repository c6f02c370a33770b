"""What the compression benchmark keeps in its cache besides packages: facts of rows, answers, the freeze."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgesdk.errors import ConfigError
from edgesdk.files import canonical_json, read_document, write_atomic

VERSION = 1
Digests = dict[str, str | None]


class Store:
    """Small JSON documents below a folder, each with a format of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, kind: str, name: str) -> dict[str, Any] | None:
        """The document, or None where there is none."""
        path = self._path(kind, name)
        return read_document(path, f"edgesdk.benchmark.{kind}", VERSION, ConfigError) if path.is_file() else None

    def write(self, kind: str, name: str, document: dict[str, Any]) -> None:
        content = {"format": f"edgesdk.benchmark.{kind}", "version": VERSION, **document}
        write_atomic(self._path(kind, name), canonical_json(content))

    def _path(self, kind: str, name: str) -> Path:
        return self.folder / kind / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name).strip('-')}.json"


def freeze(store: Store, name: str, found: dict[str, Digests], thaw: bool) -> list[str]:
    """Write down what is going to be tested, or compare with what was written before; returns what was thawed.

    Args:
        name: of the freeze: each corpus has its own.
        found: row → `recipe` digest, `data` digest (teacher and rows), `model` sha256 (None: it could not be made).
        thaw: go on although something changed; every change stays on record.

    Raises:
        ConfigError: a recipe, its data or its model changed after the test split was read.
    """
    known = store.read("freeze", name)
    if known is None:
        store.write("freeze", name, {"rows": found, "thawed": []})
        return []
    rows: dict[str, Digests] = known["rows"]
    lines = [f"{row}: {change}" for row, digests in found.items() if (change := _change(rows.get(row), digests))]
    lines += [f"{row}: left out" for row in rows if row not in found]
    if lines and not thaw:
        raise ConfigError(
            f"{len(lines)} rows are not those that were frozen before the test split was read: " + "; ".join(lines[:6]),
            "--thaw goes on, and says so in the results",
        )
    thawed: list[str] = [*known["thawed"], *lines]
    store.write("freeze", name, {"rows": found, "thawed": thawed})
    return thawed


def _change(known: Digests | None, found: Digests) -> str | None:
    """What happened to a row since the freeze, in words."""
    if known is None:
        return "new"
    if any(known[key] != found[key] for key in ("recipe", "data")):
        return "changed"
    if known["model"] == found["model"]:
        return None
    if known["model"] is None:
        return "made after the freeze"
    return "no longer made" if found["model"] is None else "changed"
