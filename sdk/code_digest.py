"""Digest of the code behind a result, so that an edited stage is never served from the cache."""

from __future__ import annotations

import ast
import functools
from importlib.resources import files
from importlib.resources.abc import Traversable

from edgesdk.files import canonical_json, sha256_bytes

PACKAGE = "edgesdk"
# A table of all stages: none of them stands behind another one because of it.
TABLE = "edgesdk.stages"


@functools.cache
def code_digest(module: str) -> str:
    """Hexadecimal SHA-256 of what stands behind a module; see `code_behind`."""
    return sha256_bytes(canonical_json(code_behind(module)))


def code_behind(module: str) -> dict[str, str]:
    """Name → text of a module of EdgeSDK and of every module of EdgeSDK that it imports, directly or not, at the top or
    inside functions. A package of which a name is imported counts with all modules below it, since it may load them by
    name; `edgesdk.stages` is left out."""
    texts: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _path(name)
        if name in texts or name == TABLE or path is None:
            continue
        if path.is_dir():
            inside = {entry.name.removesuffix(".py") for entry in path.iterdir()} - {"__init__"}
            waiting += sorted(f"{name}.{entry}" for entry in inside)
            path = path.joinpath("__init__.py")
        texts[name] = path.read_text(encoding="utf-8")
        waiting += _imports(texts[name])
    return texts


def _path(name: str) -> Traversable | None:
    """The file of module `edgesdk.a.b`, or the folder of a package; None for all else, EdgeSDK itself too."""
    first, *parts = name.split(".")
    if first != PACKAGE or not parts:
        return None
    folder = files(PACKAGE).joinpath(*parts)
    if folder.joinpath("__init__.py").is_file():
        return folder
    path = files(PACKAGE).joinpath(*parts[:-1], f"{parts[-1]}.py")
    return path if path.is_file() else None


def _imports(source: str) -> list[str]:
    """The modules and packages of EdgeSDK that the import statements of a source take something from."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name if _path(name) is not None else node.module for name in names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found
