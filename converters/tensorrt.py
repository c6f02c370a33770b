"""The `tensorrt` converter: the package's float graph in half precision, for an engine that the board itself builds.

An engine belongs to one GPU and one version of TensorRT, so the artifact is ONNX and the worker on the board builds the
engine with `trtexec` (`harness/worker/trtexec.py`). The graph is lowered to opset 17, which TensorRT 8.6 reads, with
static shapes and int32 tokens (TensorRT 8 has no int64); `Gelu` becomes the pattern that TensorRT fuses, RMSNorm is
scaled by the largest of its row. Weights are float16; inputs and outputs of float keep float32.

Quantized packages are refused: TensorRT's Q/DQ take symmetric int8 activations, ours have zero points.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgesdk.converters.artifact import Artifact, ArtifactFile, Golden, tolerance, write_artifact
from edgesdk.converters.base import Outlined, golden, input_tensors, output_tensors
from edgesdk.converters.tensorrt_norm import scalar, scaled_norms
from edgesdk.files import sha256_bytes
from edgesdk.package import Package, content_digest
from edgesdk.targets import Target
from edgesdk.transformer.spec import is_dynamic

name = "tensorrt"
OPSET = 17
SCHEME = "fp16"
scheme: str | None = SCHEME


def check(package: Outlined, target: Target) -> list[str]:
    """Reasons why `convert` would not work for this target."""
    reasons = []
    if "tensorrt" not in target.runtimes:
        reasons.append(f"tensorrt: target {target.name} has no runtime tensorrt")
    if SCHEME not in target.schemes:
        reasons.append(f"tensorrt: target {target.name} does not list the scheme {SCHEME} (package: {package.scheme})")
    if package.scheme != "fp32":
        why = "has no dynamic quantization" if package.scheme.endswith("-dynamic") else (
            "takes activations with zero point 0 only, the encodings have others"
        )
        reasons.append(f"tensorrt: TensorRT {why} (package: {package.scheme})")
    if is_dynamic(package.spec):
        reasons.append("tensorrt: exits and gates are `If` nodes, which are not tried on TensorRT yet")
    if package.spec.sparse:
        reasons.append("tensorrt: weights stored sparse are unpacked by operators that TensorRT lacks")
    return reasons


def convert(package: Package, target: Target, folder: Path) -> Artifact:
    """Write `model.onnx` and the artifact's document into the empty `folder`."""
    (folder / "model.onnx").write_bytes(lowered(package.graph, package.sequence))
    whole, inputs, outputs, _ = golden(package)
    tensors = tuple(
        replace(tensor, dtype="int32" if tensor.dtype == "int64" else tensor.dtype)
        for tensor in input_tensors(package)
    )
    artifact = Artifact(
        name=f"{package.name}-{SCHEME}-tensorrt", converter=name, scheme=SCHEME, target=target.name,
        package=content_digest(package),
        runtime={"name": "trtexec", "min": target.runtimes["tensorrt"], "model": "model.onnx", "precision": SCHEME},
        files=(ArtifactFile("model.onnx", "", 0),), inputs=tensors, outputs=output_tensors(package),
        golden=Golden(whole.n, *tolerance(SCHEME)),
        notes=("the engine is built on the board", "trtexec times one input, without cutting padding"),
    )
    return write_artifact(folder, artifact, inputs, outputs)


def lowered(graph: bytes, sequence: int) -> bytes:
    """The graph for TensorRT: opset 17, batch 1, `sequence` tokens, int32 inputs, float16 inside."""
    model = onnx.load_from_string(graph)
    nodes = [made for node in scaled_norms(model.graph) for made in _lower(node, model.graph)]
    renamed: dict[str, str] = {}
    before, after = [], []
    for value in model.graph.input:
        _fix(value, sequence)
        kind = value.type.tensor_type
        if kind.elem_type == TensorProto.INT64:
            kind.elem_type = TensorProto.INT32
        else:
            renamed[value.name] = f"{value.name}.half"
            before.append(_cast(value.name, renamed[value.name], TensorProto.FLOAT16))
    for value in model.graph.output:
        _fix(value, sequence)
        renamed[value.name] = f"{value.name}.half"
        after.append(_cast(renamed[value.name], value.name, TensorProto.FLOAT))
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [renamed.get(text, text) for text in names]
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    used = {text for node in nodes for text in node.input}
    constants = [_half(entry) for entry in model.graph.initializer if entry.name in used]
    values = model.graph.input, model.graph.output
    inside = helper.make_graph([*before, *nodes, *after], model.graph.name, *values, constants)
    whole = helper.make_model(inside, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(whole, full_check=True)
    return bytes(whole.SerializeToString(deterministic=True))


def _fix(value: onnx.ValueInfoProto, sequence: int) -> None:
    """Give the symbolic extents of an input or output their sizes."""
    for extent in value.type.tensor_type.shape.dim:
        if extent.dim_param:
            extent.dim_value = sequence if extent.dim_param == "sequence" else 1


def _lower(node: onnx.NodeProto, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """A node in operators of opset 17; constants that it needs are added to the graph."""
    if node.op_type == "Gelu":
        return _gelu(node, graph)
    if node.op_type == "ReduceMean" and len(node.input) == 2:  # the axes were an attribute
        axes = next(entry for entry in graph.initializer if entry.name == node.input[1])
        del node.input[1]
        node.attribute.append(helper.make_attribute("axes", numpy_helper.to_array(axes).tolist()))
    return [node]


def _gelu(node: onnx.NodeProto, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """x · (1 + erf(x / √2)) / 2, or with tanh: x · (1 + tanh(√(2/π) · (x + 0.044715 x³))) / 2."""
    x, y = node.input[0], node.output[0]

    def constant(value: float) -> str:
        return scalar(graph, f"gelu.{sha256_bytes(np.float32(value).tobytes())[:8]}", value)

    made: list[onnx.NodeProto] = []

    def step(op: str, first: str, second: str | None, part: str) -> str:
        inputs = [first] if second is None else [first, second]
        out = f"{y}.{part}" if part else y
        made.append(helper.make_node(op, inputs, [out], name=out))
        return out

    if any(entry.name == "approximate" and entry.s == b"tanh" for entry in node.attribute):
        cube = step("Mul", step("Mul", x, x, "square"), x, "cube")
        inner = step("Add", x, step("Mul", cube, constant(0.044715), "small"), "inner")
        bent = step("Tanh", step("Mul", inner, constant(math.sqrt(2 / math.pi)), "scaled"), None, "tanh")
    else:
        bent = step("Erf", step("Div", x, constant(math.sqrt(2)), "scaled"), None, "erf")
    step("Mul", step("Mul", x, step("Add", bent, constant(1.0), "shifted"), "doubled"), constant(0.5), "")
    return made


def _cast(source: str, result: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], name=f"{result}.cast", to=kind)


def _half(entry: onnx.TensorProto) -> onnx.TensorProto:
    """A float initializer as float16, another one as it is."""
    if entry.data_type != TensorProto.FLOAT:
        return entry
    return numpy_helper.from_array(numpy_helper.to_array(entry).astype(np.float16), entry.name)
