"""Digest of the code behind a result, so that an edited stage is never served from the cache."""

from __future__ import annotations

import ast
import functools
from importlib.resources import files

from edgesdk.files import canonical_json, sha256_bytes

PACKAGE = "edgesdk"


@functools.cache
def code_digest(module: str) -> str:
    """Hexadecimal SHA-256 of a module of EdgeSDK and of every module of EdgeSDK that it imports, directly or not, at
    the top or inside functions. What packages import in their `__init__` is left out: it holds tables, not work."""
    texts: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in texts:
            continue
        source = _source(name)
        if source is not None:
            texts[name] = source
            waiting += _imports(source)
    return sha256_bytes(canonical_json(texts))


def _source(module: str) -> str | None:
    """The text of `edgesdk.a.b`; None for packages and for names that are no modules."""
    parts = module.split(".")[1:]
    if not parts:
        return None
    path = files(PACKAGE).joinpath(*parts[:-1], f"{parts[-1]}.py")
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _imports(source: str) -> list[str]:
    """Everything that may be a module of EdgeSDK in the import statements of a source."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.startswith(f"{PACKAGE}.")]
