"""Folders, import packages and setup.cfg agree: whatever lies in the five folders is installed."""

from __future__ import annotations

import ast
import configparser
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "sdk": "edgesdk", "targets": "edgesdk.targets", "converters": "edgesdk.converters", "harness": "edgesdk.harness",
    "reports": "edgesdk.reports",
}
FILES = sorted(
    path for folder in FOLDERS for path in (ROOT / folder).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
)


def _setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_is_installed(path: Path) -> None:
    folder, *rest = path.relative_to(ROOT).parts
    installed = files(FOLDERS[folder]).joinpath(*rest)
    assert installed.is_file(), "not in the package: list it in setup.cfg, then install again"
    assert installed.read_bytes() == path.read_bytes()


def test_every_folder_with_modules_is_a_listed_package() -> None:
    listed = set(_setup()["options"]["packages"].split())
    found = {
        ".".join([FOLDERS[path.relative_to(ROOT).parts[0]], *path.relative_to(ROOT).parts[1:-1]])
        for path in FILES if path.suffix == ".py"
    }
    assert found == listed


def test_every_package_says_what_it_is() -> None:
    """Every module begins with a docstring."""
    silent = [
        str(path.relative_to(ROOT)) for path in FILES
        if path.suffix == ".py" and len((ast.get_docstring(ast.parse(path.read_text())) or "").strip()) < 10
    ]
    assert silent == []


def test_tests_are_where_the_code_is() -> None:
    """`tests/` mirrors the folders, beside what spans them all."""
    allowed = {*FOLDERS, "faults", "golden"}
    tracked = subprocess.run(
        ["git", "ls-files", "tests"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    folders = {Path(name).parts[1] for name in tracked if len(Path(name).parts) > 2}
    assert folders <= allowed
