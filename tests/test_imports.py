"""Imports run one way: cli → pipeline → {stages, converters, harness, reports} → {package, targets} → errors."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What a folder may never import, not even inside a function.
FORBIDDEN = {
    "targets": ("edgesdk.converters", "edgesdk.harness", "edgesdk.reports", "edgesdk.stages", "edgesdk.transformer"),
    "converters": ("edgesdk.harness", "edgesdk.reports", "edgesdk.stages", "edgesdk.pipeline", "torch"),
    "harness": (
        "edgesdk.reports", "edgesdk.stages", "edgesdk.transformer", "edgesdk.package", "edgesdk.pipeline", "torch",
    ),
    "reports": ("edgesdk.harness", "edgesdk.converters", "edgesdk.stages", "edgesdk.transformer", "edgesdk.pipeline"),
    "sdk/stages": ("edgesdk.converters", "edgesdk.harness", "edgesdk.reports", "edgesdk.pipeline", "edgesdk.cli"),
    "sdk/transformer": (
        "edgesdk.converters", "edgesdk.harness", "edgesdk.reports", "edgesdk.stages", "edgesdk.pipeline",
    ),
}
FILES = [(folder, path) for folder in FORBIDDEN for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize(("folder", "path"), FILES, ids=lambda value: str(value).removeprefix(f"{ROOT}/"))
def test_imports_run_one_way(folder: str, path: Path) -> None:
    """No module reaches back up the arrows."""
    wrong = [
        name for name in imported(ast.parse(path.read_text()))
        for banned in FORBIDDEN[folder] if name == banned or name.startswith(banned + ".")
    ]
    assert wrong == []


def test_the_core_does_not_import_reports_or_boards() -> None:
    """Only the pipeline, its helpers and the command line know harness and reports."""
    allowed = {"pipeline.py", "boards.py", "bench.py", "audit.py", "assemble.py", "store_verify.py"}
    for path in sorted((ROOT / "sdk").glob("*.py")):
        if path.name not in allowed:
            names = imported(ast.parse(path.read_text()))
            assert not [name for name in names if name.startswith(("edgesdk.harness", "edgesdk.reports"))], path.name


def imported(tree: ast.Module) -> list[str]:
    """Names of all imported modules, those under TYPE_CHECKING too."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names
