"""Sources → one static executable, in a temporary folder that leaves no trace in it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

from edgesdk.converters.elf import read_only_bytes
from edgesdk.converters.neon.emit import Sources
from edgesdk.converters.neon.inner_loops import disassemble, loop_notes
from edgesdk.converters.neon.kernel_sets import AARCH64, KernelSet
from edgesdk.converters.neon.toolchain import Toolchain

RUNNER = ("edge_main", "edge_cpu", "edge_pool")


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
        write_files(folder, kernel_sources())
        for unit in RUNNER:
            toolchain.compile(f"{unit}.c", f"{unit}.o", (f"-D{kernels.macro}=1",), folder)
        return {f"{unit}.o": (folder / f"{unit}.o").read_bytes() for unit in RUNNER}


def build(
    sources: Sources, kernels: KernelSet, toolchain: Toolchain, executable: Path
) -> tuple[int, tuple[str, ...]]:
    """Compile and link the program of a plan with the runner.

    Returns:
        Bytes of the model's own code (its calls and the kernels that they use, without weights, runner and libc), and
        what the build report says of its inner loops.

    Raises:
        ConvertError: the compiler fails.
    """
    runner = runner_objects(kernels, toolchain)
    with tempfile.TemporaryDirectory(prefix="edgesdk-neon-") as name:
        folder = Path(name)
        write_files(folder, {**kernel_sources(), **sources.files, **runner})
        toolchain.compile("model.c", "model.o", model_flags(kernels, toolchain), folder)
        toolchain.run(("-c", "weights.S", "-o", "weights.o"), folder)
        toolchain.link(("model.o", *runner, "weights.o"), "model", folder)
        executable.write_bytes((folder / "model").read_bytes())
        code_bytes = read_only_bytes((folder / "model.o").read_bytes())
        notes = loop_notes(disassemble(str(folder / "model.o")) if kernels.triple == AARCH64 else None, kernels)
    executable.chmod(0o755)
    return code_bytes, notes


def model_flags(kernels: KernelSet, toolchain: Toolchain) -> tuple[str, ...]:
    """What `model.c` is compiled with for a kernel set; everything else is compiled for any CPU."""
    flags = (f"-mcpu={kernels.zig_cpu}",) if toolchain.name == "zig" and kernels.zig_cpu else kernels.flags
    return (f"-D{kernels.macro}=1", *flags)


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Files by name into a folder."""
    for name, content in contents.items():
        (folder / name).write_bytes(content)
