"""The tflite converter: our own writer from the package's ONNX straight to a TFLite flatbuffer, without TensorFlow.

The scales are those of the package, so this artifact, the ONNX one and the NEON one agree. `w8a8` puts the linear
layers in int8 and leaves attention products, softmax, LayerNorm and GELU in float: by far the fastest form in LiteRT.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edgesdk.errors import ConvertError, UnsupportedOp

if TYPE_CHECKING:
    from edgesdk.converters.artifact import Artifact
    from edgesdk.converters.base import Outlined
    from edgesdk.package import Package
    from edgesdk.targets import Target

name = "tflite"
scheme: str | None = None
MODEL = "model.tflite"
RUNTIME = "ai-edge-litert"
OLDEST_RUNTIME = "ai-edge-litert 1.0"
SCHEMES = ("fp32", "w8a8", "w8a8-dynamic", "w4a8", "w4a8-dynamic")
LARGEST_FILE = 2**31 - 2**20
"""Offsets of a flatbuffer are signed 32-bit numbers."""

# What reads the file beside LiteRT. tflite-runtime 2.14 knows no per-channel dynamic layers; the version of that
# operator makes it refuse the file (with a lower one it would answer nonsense).
STATIC_NOTE = "also tflite-runtime 2.14 on x86"
DYNAMIC_NOTE = "not tflite-runtime 2.14: it refuses per-channel dynamic layers"


def check(package: Outlined, target: Target) -> list[str]:
    """Reasons why `convert` would not work; empty where it will."""
    reasons = _missing(package, target)
    if reasons:
        return reasons
    from edgesdk.converters.front import lower
    from edgesdk.converters.tflite.model import unsupported

    try:
        return [f"tflite: {problem}" for problem in unsupported(lower(package.graph, package.sequence))]
    except UnsupportedOp as problem:
        return [f"tflite: {problem.message}"]


def convert(package: Package, target: Target, folder: Path) -> Artifact:
    """Write `model.tflite`, golden rows and `artifact.json` into an empty folder.

    Raises:
        ConvertError: the reasons of `check`.
    """
    reasons = _missing(package, target)
    if reasons:
        raise ConvertError("; ".join(reasons), "build this package with another converter")
    from edgesdk.converters.artifact import Artifact, ArtifactFile, write_artifact
    from edgesdk.converters.base import golden, input_tensors, output_tensors, storage_notes
    from edgesdk.converters.front import lower
    from edgesdk.converters.integer_share import share_notes
    from edgesdk.converters.tflite.model import translate
    from edgesdk.package import content_digest

    graph = lower(package.graph, package.sequence)
    (folder / MODEL).write_bytes(translate(graph))
    expected, *rows = golden(package)
    artifact = Artifact(
        name=f"{package.name}-{package.scheme}-tflite",
        converter=name,
        scheme=package.scheme,
        target=target.name,
        package=content_digest(package),
        runtime={"name": "litert", "min": OLDEST_RUNTIME, "model": MODEL},
        files=(ArtifactFile(MODEL, "", 0),),
        inputs=input_tensors(package),
        outputs=output_tensors(package),
        golden=expected,
        notes=(
            DYNAMIC_NOTE if package.scheme.endswith("-dynamic") else STATIC_NOTE, *storage_notes(package, packed=False),
            *share_notes(graph, package.scheme),
        ),
    )
    return write_artifact(folder, artifact, *rows)


def _missing(package: Outlined, target: Target) -> list[str]:
    """What is not there: modules here, a runtime or a scheme on the target."""
    absent = [module for module in ("ai_edge_litert", "flatbuffers", "onnx") if find_spec(module) is None]
    if absent:
        return [f"tflite: {', '.join(absent)} not installed: pip install 'edgesdk[tflite,train]'"]
    reasons = []
    if RUNTIME not in target.runtimes:
        reasons.append(f"tflite: target {target.name} has no runtime {RUNTIME}")
    if package.scheme not in target.schemes:
        reasons.append(f"tflite: target {target.name} does not list the scheme {package.scheme}")
    if package.scheme not in SCHEMES:
        reasons.append(f"tflite: scheme {package.scheme}, this converter has {', '.join(SCHEMES)}")
    if len(package.graph) > LARGEST_FILE:
        reasons.append(f"tflite: the graph has {len(package.graph)} bytes, a TFLite file at most {LARGEST_FILE}")
    return reasons
