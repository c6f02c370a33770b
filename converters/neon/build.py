"""Sources → one static executable, in a temporary folder that leaves no trace; or what a board compiles itself."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgesdk.converters.elf import read_only_bytes
from edgesdk.converters.neon.emit import Sources
from edgesdk.converters.neon.inner_loops import disassemble, loop_notes
from edgesdk.converters.neon.kernel_sets import AARCH64, KernelSet
from edgesdk.converters.neon.toolchain import LINK, ON_BOARD, Toolchain

RUNNER = ("edge_main", "edge_cpu", "edge_pool")


def kernel_sources() -> dict[str, bytes]:
    """The C files of `kernels/`."""
    folder = files("edgesdk.converters.neon").joinpath("kernels")
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.name.endswith((".h", ".c"))}


def units(kernels: KernelSet, toolchain: Toolchain) -> dict[str, tuple[str, ...]]:
    """The sources that make a program, in the order of linking, with the compiler's options for each. The runner is
    compiled without the flags of the kernel set, so that it can say that a CPU lacks it."""
    runner = toolchain.options((f"-D{kernels.macro}=1",))
    return {
        "model.c": toolchain.options(model_flags(kernels, toolchain)),
        **{f"{unit}.c": runner for unit in RUNNER},
        "weights.S": (),
    }


def object_of(source: str) -> str:
    """The object file of a source."""
    return f"{source.rpartition('.')[0]}.o"


@cache
def runner_objects(kernels: KernelSet, toolchain: Toolchain) -> dict[str, bytes]:
    """The runner's object files: the same for all models."""
    objects = [f"{unit}.o" for unit in RUNNER]
    with tempfile.TemporaryDirectory(prefix="edgesdk-neon-") as name:
        folder = Path(name)
        write_files(folder, kernel_sources())
        _compile(kernels, toolchain, folder, lambda result: result in objects)
        return {result: (folder / result).read_bytes() for result in objects}


def _compile(kernels: KernelSet, toolchain: Toolchain, folder: Path, wanted: Callable[[str], bool]) -> tuple[str, ...]:
    """Compile the units whose objects are wanted; returns the objects of all, in the order of linking."""
    for source, options in units(kernels, toolchain).items():
        if wanted(object_of(source)):
            toolchain.run((*options, "-c", source, "-o", object_of(source)), folder)
    return tuple(map(object_of, units(kernels, toolchain)))


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
        toolchain.link(_compile(kernels, toolchain, folder, lambda result: result not in runner), "model", folder)
        executable.write_bytes((folder / "model").read_bytes())
        code_bytes = read_only_bytes((folder / "model.o").read_bytes())
        notes = loop_notes(disassemble(str(folder / "model.o")) if kernels.triple == AARCH64 else None, kernels)
    executable.chmod(0o755)
    return code_bytes, notes


def source_form(sources: Sources, kernels: KernelSet) -> tuple[dict[str, bytes], dict[str, Any]]:
    """What a board with a compiler makes the same program of, where there is none here.

    Returns:
        File name → content; and what the artifact's runtime says of them: `units`, a list of lists (source, then its
        options), and `link`, the options behind the objects.
    """
    compiled = units(kernels, ON_BOARD)
    needed = {name: text for name, text in kernel_sources().items() if name in compiled or name.endswith(".h")}
    commands = [[source, *options] for source, options in compiled.items()]
    return {**needed, **sources.files}, {"units": commands, "link": list(LINK)}


def model_flags(kernels: KernelSet, toolchain: Toolchain) -> tuple[str, ...]:
    """What `model.c` is compiled with for a kernel set; everything else is compiled for any CPU."""
    flags = (f"-mcpu={kernels.zig_cpu}",) if toolchain.name == "zig" and kernels.zig_cpu else kernels.flags
    return (f"-D{kernels.macro}=1", *flags)


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Files by name into a folder."""
    for name, content in contents.items():
        (folder / name).write_bytes(content)
