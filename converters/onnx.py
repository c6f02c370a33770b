"""The `onnx` converter: the package's graph for ONNX Runtime.

The graph is standard ONNX (opset 21, IR 10) already, with uint8 activations that x86 and ARM kernels both like, so it
ships as it is; ONNX Runtime fuses Q/DQ into `QGemm` and the dynamic form into `DynamicQuantizeMatMul` when it loads.

With the pass `fuse_quantized` the artifact holds that form already (`onnx_fused.py`), which loads faster.

A causal model that answers at every token gets `decode.onnx` beside `model.onnx`: the same model with a cache of keys
and values, for generating token by token (`edgesdk.transformer.graph_decode`). Measurements run `model.onnx`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgesdk.converters.artifact import Artifact, ArtifactFile, write_artifact
from edgesdk.converters.base import Outlined, golden, input_tensors, length_input, output_tensors, storage_notes
from edgesdk.converters.front import lower
from edgesdk.converters.integer_share import share_notes
from edgesdk.converters.onnx_fused import fused, wants_fused
from edgesdk.package import Package, content_digest
from edgesdk.targets import Target
from edgesdk.transformer.graph_decode import decode_problems, write_decode_graph
from edgesdk.transformer.spec import is_dynamic

name = "onnx"
scheme: str | None = None
OPSET = 21


def check(package: Outlined, target: Target) -> list[str]:
    """Reasons why `convert` would not work for this target."""
    reasons = []
    if package.scheme not in target.schemes:
        reasons.append(f"onnx: target {target.name} does not list the scheme {package.scheme}")
    if target.onnx_opset_max < OPSET:
        reasons.append(f"onnx: target {target.name} reads opset {target.onnx_opset_max}, the graph has {OPSET}")
    if "onnxruntime" not in target.runtimes:
        reasons.append(f"onnx: target {target.name} has no runtime onnxruntime")
    return reasons


def convert(package: Package, target: Target, folder: Path) -> Artifact:
    """Write `model.onnx` and the artifact's document into the empty `folder`."""
    model, oldest, notes = package.graph, target.runtimes["onnxruntime"], storage_notes(package, packed=True)
    if wants_fused(package.spec, package.scheme):
        model, oldest = fused(package.graph)
        notes += (f"fused for ONNX Runtime {oldest}: operators of com.microsoft, which other runtimes do not know",)
    (folder / "model.onnx").write_bytes(model)
    expected, *rows = golden(package)
    if package.scheme != "fp32":
        notes += share_notes(lower(package.graph, package.sequence, branches=True), package.scheme)
    runtime: dict[str, Any] = {"name": "onnxruntime", "min": oldest, "model": "model.onnx"}
    files = [ArtifactFile("model.onnx", "", 0)]
    if not decode_problems(package.spec):
        (folder / "decode.onnx").write_bytes(write_decode_graph(package.spec, package.weights, package.encodings))
        files.append(ArtifactFile("decode.onnx", "", 0))
        runtime |= {"decode": "decode.onnx", "model_bytes": len(model)}
        notes += ("decode.onnx generates token by token with a cache; it holds the weights again and is not measured",)
    artifact = Artifact(
        name=f"{package.name}-{package.scheme}-onnx",
        converter=name,
        scheme=package.scheme,
        target=target.name,
        package=content_digest(package),
        runtime=runtime,
        files=tuple(files),
        inputs=input_tensors(package),
        outputs=output_tensors(package),
        golden=expected,
        length_input=length_input(package),
        work="per_input" if length_input(package) or is_dynamic(package.spec) else "constant",
        notes=notes,
    )
    return write_artifact(folder, artifact, *rows)
