"""Find a C compiler for a kernel set and run it in a folder: clang >= 19 first, then gcc, then the `ziglang` wheel.

The same sources and compiler give the same bytes: file names are relative, and nothing of the machine or the time goes
into the binary.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgesdk.converters.neon.kernel_sets import AARCH64
from edgesdk.errors import ConvertError

DEADLINE_SECONDS = 300
OLDEST_CLANG = 19
APT = {
    AARCH64: "apt install clang-19 gcc-aarch64-linux-gnu libc6-dev-arm64-cross   (or: pip install ziglang)",
    "x86_64-linux-gnu": "apt install gcc libc6-dev   (or: pip install ziglang)",
}
COMMON = (
    "-std=gnu11", "-O2", "-Wall", "-Wextra", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fwrapv",
    "-fno-asynchronous-unwind-tables", "-fno-unwind-tables", "-fno-stack-protector", "-fno-pie", "-fno-ident",
)
GCC_ONLY = ("-fno-schedule-insns", "-fno-schedule-insns2")  # they make gcc spill the accumulators of the tiles
LINK = ("-static", "-no-pie", "-s", "-Wl,--build-id=none", "-lm", "-pthread")  # behind the objects


@dataclass(frozen=True)
class Toolchain:
    """`command` compiles and links for the triple; `name` and `version` go into the artifact's notes."""

    name: str
    version: str
    command: tuple[str, ...]

    def run(self, arguments: tuple[str, ...], folder: Path) -> None:
        """Run the compiler in `folder`.

        Raises:
            ConvertError: it fails, or takes longer than five minutes.
        """
        command = [*self.command, *arguments]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=DEADLINE_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise ConvertError(f"{self.name}: not done after {DEADLINE_SECONDS} s: {' '.join(arguments)}") from None
        except OSError as problem:
            raise ConvertError(f"{self.name}: cannot be started: {problem}") from problem
        if done.returncode:
            raise ConvertError(f"{self.name} failed on {' '.join(arguments)}:\n{done.stderr[-2000:]}")

    def options(self, flags: tuple[str, ...]) -> tuple[str, ...]:
        """All options for a C file that needs `flags`."""
        return (*COMMON, *(GCC_ONLY if self.name.endswith("gcc") else ()), *flags)

    def compile(self, source: str, result: str, flags: tuple[str, ...], folder: Path) -> None:
        self.run((*self.options(flags), "-c", source, "-o", result), folder)

    def link(self, objects: tuple[str, ...], result: str, folder: Path) -> None:
        self.run((*objects, *LINK, "-o", result), folder)


# The board's own compiler, which only the board can run: gcc, or a clang that passes over what only gcc knows.
ON_BOARD = Toolchain("gcc", "", ())


def best(triple: str) -> Toolchain | None:
    """The best compiler for a triple; None where there is none."""
    return next(iter(find_all(triple)), None)


def find(triple: str) -> Toolchain:
    """The best compiler for a triple.

    Raises:
        ConvertError: there is none; the hint is the line to type.
    """
    toolchain = best(triple)
    if toolchain is None:
        raise ConvertError(f"no C compiler for {triple}", APT.get(triple, "install a C compiler for it"))
    return toolchain


@cache
def find_all(triple: str) -> tuple[Toolchain, ...]:
    """Every usable compiler, the best first."""
    found = []
    if triple != AARCH64 or shutil.which("aarch64-linux-gnu-gcc"):  # clang takes libc and libgcc from there
        found += [_clang(name, triple) for name in _clang_names()]
    gcc = "aarch64-linux-gnu-gcc" if triple == AARCH64 else "gcc"
    path = shutil.which(gcc)
    if path is not None:
        found.append(Toolchain(gcc, _version((path, "-dumpfullversion")), (path,)))
    if importlib.util.find_spec("ziglang") is not None:
        target = triple.replace("gnu", "musl")
        command = (sys.executable, "-m", "ziglang", "cc", f"--target={target}")
        found.append(Toolchain("zig", _version((sys.executable, "-m", "ziglang", "version")), command))
    return tuple(toolchain for toolchain in found if toolchain is not None and toolchain.version)


def _clang_names() -> list[str]:
    names = [*(f"clang-{number}" for number in range(OLDEST_CLANG + 6, OLDEST_CLANG - 1, -1)), "clang"]
    return [name for name in names if shutil.which(name)]


def _clang(name: str, triple: str) -> Toolchain | None:
    path = shutil.which(name)
    if path is None:
        return None
    match = re.search(r"version (\d+)([.\d]*)", _version((path, "--version")))
    if match is None or int(match[1]) < OLDEST_CLANG:
        return None
    return Toolchain(name, match[1] + match[2], (path, f"--target={triple}"))


@cache
def _version(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
