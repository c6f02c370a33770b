"""What can be known before a candidate is sent: wrong architecture, missing CPU feature, missing runtime."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgesdk.converters.artifact import Artifact
from edgesdk.converters.isa_note import read_isa
from edgesdk.errors import ConvertError
from edgesdk.harness.board import Board
from edgesdk.harness.elf import elf_machine, wanted_glibc
from edgesdk.harness.protocol import E_PREFLIGHT
from edgesdk.harness.worker.compiled import COMPILERS
from edgesdk.harness.worker.store import safe_parts

# Our names of instruction sets → names in /proc/cpuinfo; x86 features carry the name of /proc/cpuinfo already.
FEATURES = {"neon": "asimd", "dotprod": "asimddp", "i8mm": "i8mm", "fp16": "asimdhp"}
RUNTIMES = {
    "onnxruntime": {"onnxruntime": "onnxruntime"},
    "litert": {"ai-edge-litert": "ai-edge-litert", "tflite-runtime": "tflite-runtime"},
    "neon": {},
    "neon-source": {},
    "trtexec": {"tensorrt": "tensorrt"},
}


def new_enough(version: str, wanted: str) -> bool:
    """Is a version at least the one of `>=A.B` or `PACKAGE A.B`? Anything else is not judged here."""
    least = re.fullmatch(r"(?:>=|[a-z-]+) ?([0-9][0-9.]*)", wanted)
    found = _numbers(version)
    return least is None or not found or found >= _numbers(least[1])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]+", version)[:3])


def problems(folder: Path, artifact: Artifact, board: Board, facts: Mapping[str, Any]) -> list[str]:
    """Reasons why this artifact cannot run on this board; empty when none is known."""
    return [f"{E_PREFLIGHT}: {text}" for text in _problems(folder, artifact, board, facts)]


def _problems(folder: Path, artifact: Artifact, board: Board, facts: Mapping[str, Any]) -> Iterator[str]:
    name = str(artifact.runtime.get("name"))
    if name not in RUNTIMES:
        yield f"runtime {name!r} is not one that the worker runs: {', '.join(sorted(RUNTIMES))}"
        return
    if artifact.executable is not None:
        found = elf_machine(folder / artifact.executable)
        # A script is allowed: an interpreter on the board decides.
        if found is not None and found != facts.get("machine"):
            yield f"{artifact.executable} is built for {found}, {board.name} is {facts.get('machine')}"
            return
        needed, libc = wanted_glibc(folder / artifact.executable), _numbers(str(facts.get("libc") or ""))[:2]
        if needed and libc and libc < needed:
            version = ".".join(map(str, needed))
            yield f"{artifact.executable} wants GLIBC_{version}, the board has {'.'.join(map(str, libc))}"
    elif name == "neon-source":
        reason = _no_compiler(board, facts)
        if reason:
            yield reason
            return
    elif not RUNTIMES[name]:
        yield f"a {name} artifact needs an executable"
    for file in artifact.files:
        try:
            safe_parts(file.path)
        except ValueError as problem:
            yield f"{problem}: the worker takes letters, digits, '.', '_', '-' only"
    if artifact.executable is None and facts.get("agent") == "shell":
        yield f"{name} needs Python on the board, and {board.name} has no {board.python}: only NEON artifacts run there"
        return
    installed = facts.get("runtimes") or {}
    packages = list(RUNTIMES[name])
    versions = {package: str(installed[package]) for package in packages if installed.get(package)}
    if packages and artifact.executable is None:
        if not versions:
            yield f"{' or '.join(packages)} is not installed for {board.python} on {board.name}"
        wanted = str(artifact.runtime.get("min", ""))
        package = packages[0]
        if package in versions and not new_enough(versions[package], wanted):
            yield f"{package} on {board.name} is {versions[package]}, the artifact wants {wanted}"
    features = set(facts.get("cpu_features") or ())
    absent = [flag for flag in _isa(folder, artifact) if FEATURES.get(flag, flag) not in features]
    if features and absent:
        yield f"needs CPU feature {', '.join(absent)}, which {facts.get('cpu_model') or board.name} lacks"


def _no_compiler(board: Board, facts: Mapping[str, Any]) -> str | None:
    """Why a board cannot compile an artifact in source form; None where it can."""
    if facts.get("agent") == "shell":
        what = f"is compiled on the board by the worker in Python, and {board.name} has no {board.python}"
        return f"neon-source {what}: install python3 there, or a compiler here (pip install ziglang)"
    if facts.get("compiler"):
        return None
    what = f"is compiled on the board, and {board.name} has no C compiler ({', '.join(COMPILERS)})"
    return f"neon-source {what}: install gcc on the board, or a compiler here (pip install ziglang)"


def _isa(folder: Path, artifact: Artifact) -> list[str]:
    """CPU features that the artifact's document names, and those in the note of its binary: a document is text, which
    anybody may have changed."""
    named = list(artifact.runtime.get("isa") or ())
    if artifact.executable is None:
        return named
    try:
        noted = read_isa(folder / artifact.executable)
    except ConvertError:
        return named  # a script, or a program of somebody else's
    return [*named, *(flag for flag in noted if flag not in named)]
