"""The `onnx` converter: the package's graph for ONNX Runtime.

The graph is standard ONNX (opset 21, IR 10) already, with uint8 activations that x86 and ARM kernels both like, so it
ships as it is; ONNX Runtime fuses Q/DQ into `QGemm` and the dynamic form into `DynamicQuantizeMatMul` when it loads.
"""

from __future__ import annotations

from pathlib import Path

from edgesdk.converters.artifact import Artifact, ArtifactFile, write_artifact
from edgesdk.converters.base import Outlined, golden, input_tensors, length_input, output_tensors
from edgesdk.converters.front import lower
from edgesdk.converters.integer_share import share_notes
from edgesdk.package import Package, content_digest
from edgesdk.targets import Target

name = "onnx"
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
    (folder / "model.onnx").write_bytes(package.graph)
    expected, inputs, outputs = golden(package)
    notes = () if package.scheme == "fp32" else share_notes(lower(package.graph, package.sequence), package.scheme)
    artifact = Artifact(
        name=f"{package.name}-{package.scheme}-onnx",
        converter=name,
        scheme=package.scheme,
        target=target.name,
        package=content_digest(package),
        runtime={"name": "onnxruntime", "min": target.runtimes["onnxruntime"], "model": "model.onnx"},
        files=(ArtifactFile("model.onnx", "", 0),),
        inputs=input_tensors(package),
        outputs=output_tensors(package),
        golden=expected,
        length_input=length_input(package),
        work="per_input" if length_input(package) else "constant",
        notes=notes,
    )
    return write_artifact(folder, artifact, inputs, outputs)
