"""A package as a C library: `libmodel.a`, `libmodel.so`, the header, the sources, a CMake file, an example, a binding.

    folder/
      library.json            what it is, and the sha256 of every file
      include/edge_api.h      the interface, documented
      lib/libmodel.{a,so}     built for the target
      src/                    everything that the libraries are made of: they can be built again on the board
      CMakeLists.txt          `add_subdirectory(…)`, then link `edge_model`
      example.c               one inference
      generate.c              the likeliest continuation of a prompt (causal decoders)
      edge_binding.py         ctypes binding, standard library only (see `binding.py`)
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from edgesdk.converters.base import input_tensors, output_tensors
from edgesdk.converters.front import lower
from edgesdk.converters.neon.build import kernel_sources, model_flags, write_files
from edgesdk.converters.neon.cache import decodes
from edgesdk.converters.neon.convert import SCHEMES, plan_of
from edgesdk.converters.neon.emit import Sources, emit
from edgesdk.converters.neon.fp16 import SCHEME, check_range
from edgesdk.converters.neon.kernel_sets import AARCH64, KernelSet, choose, choose_half
from edgesdk.converters.neon.toolchain import COMMON, Toolchain, find
from edgesdk.errors import ConvertError
from edgesdk.files import canonical_json, sha256_file
from edgesdk.package import Package, content_digest
from edgesdk.targets import Target

FORMAT, VERSION = "edgesdk.library", 1
PLAIN_UNITS = ("edge_library", "edge_pool", "edge_cpu")
MOST_THREADS = 16
HANDLE_BYTES = 4096  # more than the library's own structures need
LINK = ("-shared", "-s", "-Wl,-soname,libmodel.so", "-Wl,--build-id=none", "-Wl,-z,defs")


@dataclass(frozen=True)
class Library:
    """`folder` holds it; `arena_bytes` is the memory of activations, `weight_bytes` that of the packed weights."""

    folder: Path
    arena_bytes: int
    weight_bytes: int


def write_library(package: Package, target: Target, folder: Path, half: bool = False) -> Library:
    """Write the library of a package for a target into the empty `folder`; of a float package in half precision if
    `half`.

    Raises:
        ConvertError: what `convert` would refuse; `folder` holds something; no archiver, or the compiler fails.
    """
    if package.scheme not in SCHEMES:
        message = f"{package.name}: the NEON build has no scheme {package.scheme!r}"
        raise ConvertError(message, f"one of {', '.join(SCHEMES)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConvertError(f"{folder}: is not an empty folder", "name a folder that does not exist")
    kernels = choose_half(target) if half else choose(target)
    if half:
        check_range(package)
    toolchain = find(kernels.triple)
    archiver = find_archiver(kernels.triple, toolchain)
    plan = plan_of(lower(package.graph, package.sequence, branches="marked"))
    sources = emit(plan, kernels, package.name, input_tensors(package), output_tensors(package))
    static_bytes = _static_bytes(sources)
    with tempfile.TemporaryDirectory(prefix="edgesdk-neon-") as name:
        work = Path(name)
        contents = _source_files(sources)
        write_files(work, contents)
        objects = _compile(work, kernels, toolchain, static_bytes)
        toolchain.run((*LINK, *objects, "-o", "libmodel.so", "-lm", "-pthread"), work)
        Toolchain(archiver[0], "", archiver).run(("rcsD", "libmodel.a", *objects), work)
        folder.mkdir(parents=True, exist_ok=True)
        for part in ("include", "lib", "src"):
            (folder / part).mkdir()
        for library in ("libmodel.a", "libmodel.so"):
            shutil.copyfile(work / library, folder / "lib" / library)
    write_files(folder / "src", {name: content for name, content in contents.items() if name != "edge_api.h"})
    write_files(folder / "include", {"edge_api.h": contents["edge_api.h"]})
    resources = files("edgesdk.converters.neon")
    examples = ("example", "generate") if decodes(plan) and package.spec.lm_head else ("example",)
    write_files(folder, {
        "CMakeLists.txt": _cmake(kernels, static_bytes, examples).encode(),
        **{f"{name}.c": resources.joinpath("kernels", f"{name}.c").read_bytes() for name in examples},
        "edge_binding.py": resources.joinpath("binding.py").read_bytes(),
    })
    written = sorted(path for path in folder.rglob("*") if path.is_file())
    (folder / "library.json").write_bytes(canonical_json({
        "format": FORMAT, "version": VERSION, "name": package.name,
        "scheme": SCHEME if half else package.scheme, "target": target.name,
        "package": content_digest(package), "isa": list(kernels.isa), "triple": kernels.triple,
        "compiler": f"{toolchain.name} {toolchain.version}", "arena_bytes": sources.arena_bytes,
        "weight_bytes": sources.weight_bytes,
        "files": {path.relative_to(folder).as_posix(): sha256_file(path) for path in written},
    }))
    return Library(folder, sources.arena_bytes, sources.weight_bytes)


def find_archiver(triple: str, toolchain: Toolchain) -> tuple[str, ...]:
    """The command of an `ar` that knows object files of the triple.

    Raises:
        ConvertError: there is none.
    """
    if toolchain.name == "zig":
        return (*toolchain.command[:3], "ar")  # python -m ziglang
    binutils = "aarch64-linux-gnu-ar" if triple == AARCH64 else "ar"
    names = [binutils, toolchain.name.replace("clang", "llvm-ar"), "llvm-ar"]
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return (path,)
    raise ConvertError(f"no archiver for {triple}", f"install one of {', '.join(names)} (binutils or llvm)")


def _static_bytes(sources: Sources) -> int:
    """The library's static memory, enough for the most threads: pages that are not used cost nothing."""
    return HANDLE_BYTES + sources.arena_bytes + sources.token_bytes + (MOST_THREADS - 1) * sources.scratch_bytes


def _source_files(sources: Sources) -> dict[str, bytes]:
    runner_only = ("edge_main.c", "edge_generate.h", "example.c", "generate.c")
    kernels = {name: content for name, content in kernel_sources().items() if name not in runner_only}
    return {**kernels, **sources.files}


def _compile(work: Path, kernels: KernelSet, toolchain: Toolchain, static_bytes: int) -> tuple[str, ...]:
    shared = ("-fPIC", "-fvisibility=hidden", "-DEDGE_LIBRARY=1", f"-DEDGE_STATIC_BYTES={static_bytes}")
    toolchain.compile("model.c", "model.o", (*model_flags(kernels, toolchain), *shared), work)
    for unit in PLAIN_UNITS:
        toolchain.compile(f"{unit}.c", f"{unit}.o", (f"-D{kernels.macro}=1", *shared), work)
    toolchain.run(("-c", "weights.S", "-o", "weights.o"), work)
    return ("model.o", *(f"{unit}.o" for unit in PLAIN_UNITS), "weights.o")


def _cmake(kernels: KernelSet, static_bytes: int, examples: tuple[str, ...]) -> str:
    common = " ".join(flag for flag in COMMON if not flag.startswith(("-W", "-std", "-O", "-fno-pie")))
    return f"""\
# Written by EdgeSDK. Builds the model from its sources for {kernels.name} CPUs: {", ".join(kernels.isa) or "any"}.
cmake_minimum_required(VERSION 3.16)
project(edge_model C ASM)
find_package(Threads REQUIRED)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

add_library(edge_model STATIC src/model.c src/weights.S {" ".join(f"src/{unit}.c" for unit in PLAIN_UNITS)})
target_include_directories(edge_model PUBLIC include PRIVATE src)
target_compile_definitions(edge_model PRIVATE {kernels.macro}=1 EDGE_LIBRARY=1 EDGE_STATIC_BYTES={static_bytes})
set(common $<$<COMPILE_LANGUAGE:C>:-std=gnu11;-O2;{common.replace(" ", ";")}>)
target_compile_options(edge_model PRIVATE "${{common}}")
set_property(TARGET edge_model PROPERTY POSITION_INDEPENDENT_CODE ON)
set_property(TARGET edge_model PROPERTY C_VISIBILITY_PRESET hidden)
set_property(SOURCE src/model.c PROPERTY COMPILE_OPTIONS "{";".join(kernels.flags)}")
set_property(SOURCE src/weights.S PROPERTY COMPILE_OPTIONS "-I${{CMAKE_CURRENT_SOURCE_DIR}}/src")
set_property(SOURCE src/weights.S PROPERTY OBJECT_DEPENDS "${{CMAKE_CURRENT_SOURCE_DIR}}/src/weights.bin")
target_link_libraries(edge_model PUBLIC Threads::Threads m)

if(CMAKE_SOURCE_DIR STREQUAL CMAKE_CURRENT_SOURCE_DIR)
  foreach(example {" ".join(examples)})
    add_executable(${{example}} ${{example}}.c)
    target_link_libraries(${{example}} edge_model)
  endforeach()
endif()
"""
