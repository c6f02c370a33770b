"""The NEON converter: package → one static executable that holds weights, kernels and the runner; or its sources, which
the board compiles, where there is no compiler here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgesdk.converters.artifact import Artifact, ArtifactFile, Golden, tolerance, write_artifact
from edgesdk.converters.base import (
    DENSE_HERE,
    INT8_HERE,
    Outlined,
    golden,
    has_four_bits,
    input_tensors,
    length_input,
    output_tensors,
)
from edgesdk.converters.front import Graph, Linear, lower
from edgesdk.converters.integer_share import share_notes
from edgesdk.converters.neon.branches import check_regions, settle
from edgesdk.converters.neon.build import build, source_form, write_files
from edgesdk.converters.neon.cache import with_cache
from edgesdk.converters.neon.cost import plain_notes
from edgesdk.converters.neon.emit import Sources, emit
from edgesdk.converters.neon.fuse import fuse
from edgesdk.converters.neon.generic import trace_all
from edgesdk.converters.neon.kernel_sets import KernelSet, choose
from edgesdk.converters.neon.plan import Plan
from edgesdk.converters.neon.specialize import integer_attention_macs
from edgesdk.converters.neon.toolchain import Toolchain, best
from edgesdk.errors import ConvertError
from edgesdk.package import Package, content_digest
from edgesdk.targets import Target
from edgesdk.transformer.spec import TokenEmbedding, is_dynamic

SCHEMES = ("fp32", "w8a8", "w8a8-dynamic", "w4a8", "w4a8-dynamic")

name = "neon"
scheme: str | None = None


def make_plan(graph: bytes, sequence: int) -> Plan:
    """What the program will do for a package's graph.

    Raises:
        UnsupportedOp: something in the graph that the NEON build has no kernel for.
    """
    return plan_of(lower(graph, sequence, branches="marked"))


def plan_of(graph: Graph) -> Plan:
    """The plan of a graph that `lower` gave with its branches marked.

    Raises:
        UnsupportedOp: see `make_plan`.
        ConvertError: weights that are not finite.
    """
    check_weights(graph)
    return check_regions(with_cache(settle(fuse(trace_all(graph)))))


def check_weights(graph: Graph) -> None:
    """Refuse weights, biases and scales that hold NaN or infinity; the first one is named."""
    layers = [node for node in graph.nodes if isinstance(node, Linear)]
    arrays = [(node.name, array) for node in layers for array in (node.weight, node.bias, node.weight_scale)]
    for name, array in (*arrays, *graph.constants.items()):
        if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ConvertError(f"{name}: its weights hold NaN or infinity", "train or quantize the model again")


def check(package: Outlined, target: Target) -> list[str]:
    """The reasons why `convert` would fail; empty where it will not."""
    reasons = []
    if package.scheme not in SCHEMES:
        reasons.append(f"scheme {package.scheme!r}: the NEON build has {', '.join(SCHEMES)}")
    if package.scheme not in target.schemes:
        reasons.append(f"neon: target {target.name} does not list the scheme {package.scheme}")
    return [*reasons, *problems(package, lambda: choose(target))]


def problems(package: Outlined, chosen: Callable[[], KernelSet]) -> list[str]:
    """Why there is no kernel set, or no plan for the package."""
    reasons = []
    for step in (chosen, lambda: make_plan(package.graph, package.sequence)):
        try:
            step()
        except ConvertError as problem:
            reasons.append(str(problem))
    return reasons


def convert(package: Package, target: Target, folder: Path) -> Artifact:
    """Write the executable `model`, or the sources of it, and the artifact around them into the empty `folder`.

    Raises:
        ConvertError: see `check`; or the compiler fails.
    """
    if package.scheme not in SCHEMES:
        message = f"{package.name}: the NEON build has no scheme {package.scheme!r}"
        raise ConvertError(message, f"one of {', '.join(SCHEMES)}")
    return write(package, target, folder, choose(target), name, package.scheme)


def write(
    package: Package, target: Target, folder: Path, kernels: KernelSet, converter: str, scheme: str
) -> Artifact:
    """Build the package with a kernel set, and the artifact of a scheme and converter around what was built."""
    inputs, outputs = input_tensors(package), output_tensors(package)
    graph = lower(package.graph, package.sequence, branches="marked")
    plan = plan_of(graph)
    sources: Sources = emit(plan, kernels, package.name, inputs, outputs)
    toolchain = best(kernels.triple)
    built = _sources(sources, kernels, folder) if toolchain is None else _program(sources, kernels, toolchain, folder)
    expected, *rows = golden(package)
    if scheme != package.scheme:
        expected = Golden(expected.n, *tolerance(scheme))
    # Attention skips masked keys even where rows of padding are output.
    tokens = isinstance(package.spec.embedding, TokenEmbedding) or is_dynamic(package.spec)
    artifact = Artifact(
        name=f"{package.name}-{scheme}-neon",
        converter=converter,
        scheme=scheme,
        target=target.name,
        package=content_digest(package),
        runtime={
            **built.runtime, "isa": list(kernels.isa), "kernels": kernels.name, "weight_bytes": sources.weight_bytes,
            "arena_bytes": sources.arena_bytes,
        },
        files=tuple(ArtifactFile(file, "", 0) for file in built.files),
        inputs=inputs,
        outputs=outputs,
        golden=expected,
        work="per_input" if tokens else "constant",
        length_input=length_input(package),
        executable=built.executable,
        notes=(
            built.by, *_storage_notes(package, sources),
            *share_notes(graph, package.scheme, integer_attention_macs(plan, kernels)), *plain_notes(plan),
            *built.loops,
        ),
    )
    return write_artifact(folder, artifact, *rows)


@dataclass(frozen=True)
class _Built:
    """What an artifact says of the files that were written: `runtime` its name and what only this form has, `by` who
    compiles, `loops` what is known of inner loops."""

    runtime: dict[str, Any]
    files: tuple[str, ...]
    by: str
    executable: str | None = None
    loops: tuple[str, ...] = ()


def _program(sources: Sources, kernels: KernelSet, toolchain: Toolchain, folder: Path) -> _Built:
    code_bytes, loops = build(sources, kernels, toolchain, folder / "model")
    runtime = {"name": "neon", "model_bytes": sources.weight_bytes + code_bytes}
    return _Built(runtime, ("model",), f"compiled by {toolchain.name} {toolchain.version}", "model", loops)


def _sources(sources: Sources, kernels: KernelSet, folder: Path) -> _Built:
    """The model is its weights and the text of its calls here; kernels and runner are as good as a runtime."""
    contents, words = source_form(sources, kernels)
    write_files(folder, contents)
    runtime = {"name": "neon-source", "model_bytes": sum(len(content) for content in sources.files.values()), **words}
    by = f"no C compiler for {kernels.triple.partition('-')[0]} here: compiled on the board"
    return _Built(runtime, tuple(sorted(contents)), by)


def _storage_notes(package: Package, sources: Sources) -> tuple[str, ...]:
    """How weights are stored, and what of the package's savings is lost here."""
    lost = []
    if package.spec.sparse and not sources.blocks:
        why = "4 bits are smaller" if sources.multipliers else "few blocks of the kernels are zero"
        lost.append(f"{DENSE_HERE}: {why}")
    if has_four_bits(package) and not sources.multipliers:
        lost.append(INT8_HERE)
    return (*sources.notes, *lost)
