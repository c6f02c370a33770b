"""What the compression benchmark keeps in its cache besides packages: facts of rows, the freeze, and test answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgesdk.errors import ConfigError
from edgesdk.files import canonical_json, read_document, write_atomic

VERSION = 1
FREEZE = "edgesdk.benchmark.freeze"


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


def freeze(store: Store, found: dict[str, dict[str, str | None]], thaw: bool) -> list[str]:
    """Write down what is going to be tested, or compare with what was written before; returns what was thawed.

    Args:
        found: row → `recipe` digest and `model` sha256 (None: not made yet, may be filled in later).
        thaw: go on although something changed; every change stays on record.

    Raises:
        ConfigError: a recipe or a model changed after the test split was read.
    """
    known = store.read("freeze", "freeze")
    if known is None:
        store.write("freeze", "freeze", {"rows": found, "thawed": []})
        return []
    rows: dict[str, Any] = known["rows"]
    changed = [name for name, digests in found.items() if name in rows and _differs(rows[name], digests)]
    new = [name for name in found if name not in rows]
    gone = [name for name in rows if name not in found]
    thawed: list[str] = known["thawed"]
    lines = [f"{name}: changed" for name in changed] + [f"{name}: new" for name in new]
    lines += [f"{name}: left out" for name in gone]
    if lines and not thaw:
        raise ConfigError(
            f"{len(lines)} rows are not those that were frozen before the test split was read: " + "; ".join(lines[:6]),
            "--thaw goes on, and says so in the results",
        )
    kept = {name: {**digests, "model": digests["model"] or rows.get(name, {}).get("model")}
            for name, digests in found.items()}
    store.write("freeze", "freeze", {"rows": kept, "thawed": [*thawed, *lines]})
    return [*thawed, *lines]


def _differs(known: dict[str, str | None], found: dict[str, str | None]) -> bool:
    if known["recipe"] != found["recipe"]:
        return True
    return None not in (known["model"], found["model"]) and known["model"] != found["model"]
