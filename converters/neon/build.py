"""Sources → one static executable, in a temporary folder that leaves no trace in it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

from edgesdk.converters.neon.elf import read_only_bytes
from edgesdk.converters.neon.emit import Sources
from edgesdk.converters.neon.kernel_sets import KernelSet
from edgesdk.converters.neon.toolchain import Toolchain

RUNNER = ("edge_main", "edge_cpu")


def kernel_sources() -> dict[str, bytes]:
    """The C files of `kernels/`."""
    folder = files("edgesdk.converters.neon").joinpath("kernels")
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.name.endswith((".h", ".c"))}


@cache
def runner_objects(kernels: KernelSet, toolchain: Toolchain) -> dict[str, bytes]:
    """The runner's object files: the same for all models, and compiled without the flags of the kernel set, so that
    it can say that a CPU lacks it."""
    with tempfile.TemporaryDirectory(prefix="edgesdk-neon-") as name:
        folder = Path(name)
        _write(folder, kernel_sources())
        for unit in RUNNER:
            toolchain.compile(f"{unit}.c", f"{unit}.o", (f"-D{kernels.macro}=1",), folder)
        return {f"{unit}.o": (folder / f"{unit}.o").read_bytes() for unit in RUNNER}


def build(sources: Sources, kernels: KernelSet, toolchain: Toolchain, executable: Path) -> int:
    """Compile and link the program of a plan with the runner.

    Returns:
        Bytes of the model's own code: its calls and the kernels that they use, without weights, runner and libc.

    Raises:
        ConvertError: the compiler fails.
    """
    runner = runner_objects(kernels, toolchain)
    with tempfile.TemporaryDirectory(prefix="edgesdk-neon-") as name:
        folder = Path(name)
        _write(folder, {**kernel_sources(), **sources.files, **runner})
        flags = (f"-mcpu={kernels.zig_cpu}",) if toolchain.name == "zig" and kernels.zig_cpu else kernels.flags
        toolchain.compile("model.c", "model.o", (f"-D{kernels.macro}=1", *flags), folder)
        toolchain.run(("-c", "weights.S", "-o", "weights.o"), folder)
        toolchain.link(("model.o", *runner, "weights.o"), "model", folder)
        executable.write_bytes((folder / "model").read_bytes())
        code_bytes = read_only_bytes((folder / "model.o").read_bytes())
    executable.chmod(0o755)
    return code_bytes


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
