"""The ONNX graph of a package as hostile bytes: what it may hold, and the float weights that it carries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.errors import PackageError
from edgesdk.package_files import GRAPH, hostile

NEWEST_OPSET, NEWEST_IR = 21, 10
LARGEST_GRAPH = (2 << 30) - 1  # protobuf's own limit


def check_graph(
    data: bytes, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]], where: str = GRAPH
) -> dict[str, NDArray[np.float32]]:
    """Check a serialized ONNX model and return its float32 initializers by name.

    Nothing outside `data` is opened: external data is refused wherever it hides (subgraphs, attributes).
    `inputs` and `outputs` are the entries of the manifest's `io`.

    Raises:
        PackageError: not ONNX; opset or IR too new; functions, training graphs or custom domains; external, sparse,
            string, misshapen or non-finite tensors; other inputs or outputs; or what `onnx.checker` refuses.
    """
    import onnx

    if len(data) > LARGEST_GRAPH:
        raise PackageError(f"{where}: {len(data)} bytes; an ONNX file has at most {LARGEST_GRAPH}")
    with hostile(where):
        model = onnx.ModelProto.FromString(data)
        _check_version(model, where)
        initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        if len(initializers) != len(model.graph.initializer):
            raise PackageError(f"{where}: two initializers have the same name")
        for message in _messages(model):
            if isinstance(message, onnx.TensorProto):
                _tensor(message, where)
            elif isinstance(message, onnx.SparseTensorProto):
                raise PackageError(f"{where}: holds a sparse tensor, whose dense size nothing bounds")
            elif isinstance(message, onnx.NodeProto) and message.domain not in ("", "ai.onnx"):
                raise PackageError(f"{where}: node {message.name!r}: operator of domain {message.domain!r}")
        _check_io(model.graph.input, inputs, f"{where}: inputs")
        _check_io(model.graph.output, outputs, f"{where}: outputs")
        onnx.checker.check_model(data)
        floats = [tensor for tensor in initializers.values() if tensor.data_type == onnx.TensorProto.FLOAT]
        return {tensor.name: _tensor(tensor, where) for tensor in floats}


def _check_version(model: Any, where: str) -> None:
    hint = "packages hold standard ONNX: opset 21, IR 10, no functions"
    if not 3 <= model.ir_version <= NEWEST_IR:
        raise PackageError(f"{where}: IR version {model.ir_version}, expected at most {NEWEST_IR}", hint)
    for opset in model.opset_import:
        if opset.domain not in ("", "ai.onnx"):
            raise PackageError(f"{where}: imports the operators of domain {opset.domain!r}", hint)
        if not 1 <= opset.version <= NEWEST_OPSET:
            raise PackageError(f"{where}: opset {opset.version}, expected at most {NEWEST_OPSET}", hint)
    if model.functions or model.training_info:
        raise PackageError(f"{where}: holds functions or a training graph", hint)


def _messages(root: Any) -> Iterator[Any]:
    """Every protobuf message below `root`, however deep."""
    stack = [root]
    while stack:
        message = stack.pop()
        yield message
        for field, value in message.ListFields():
            if field.message_type is not None:
                stack.extend([value] if hasattr(value, "ListFields") else value)


def _tensor(tensor: Any, where: str) -> NDArray[Any]:
    """The values of a tensor that lie in the file itself."""
    import onnx

    where = f"{where}: tensor {tensor.name[:200]!r}"
    if tensor.data_location != onnx.TensorProto.DEFAULT or tensor.external_data:
        raise PackageError(f"{where}: keeps its data in another file", "save the model with its weights inside")
    if tensor.data_type in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED) or tensor.HasField("segment"):
        raise PackageError(f"{where}: holds no numbers")
    with hostile(where):
        array: NDArray[Any] = onnx.numpy_helper.to_array(tensor)
    if array.shape != tuple(tensor.dims) or array.size != math.prod(tensor.dims):
        raise PackageError(f"{where}: shape {array.shape}, declared {tuple(tensor.dims)}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise PackageError(f"{where}: holds NaN or infinity")
    return array


def _check_io(values: Any, expected: Sequence[Mapping[str, Any]], where: str) -> None:
    """Names, dtypes and sizes as in the manifest; a size given by a name there must be symbolic here."""
    import onnx

    found = []
    for value in values:
        tensor = value.type.tensor_type
        dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        shape = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim]
        found.append({"name": value.name, "dtype": "float32" if dtype == "float" else dtype, "shape": shape})
    if sorted(found, key=lambda entry: str(entry["name"])) != sorted(expected, key=lambda entry: str(entry["name"])):
        raise PackageError(f"{where} {str(found)[:300]}, expected {list(expected)}")
