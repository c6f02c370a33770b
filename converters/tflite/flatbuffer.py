"""A TFLite file under construction: tensors, buffers and operators of one subgraph, written as a flatbuffer.

The schema's classes come from `ai_edge_litert`, the writing from `flatbuffers`; no TensorFlow. Equal calls give equal
bytes: nothing depends on time, hashing or order of a set. Equal vectors (weights, zero points, shapes) are stored
once, weights lie at multiples of 16 bytes as the format asks, and only inputs and outputs have names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edgesdk.converters.tflite.versions import Operand, minimum_runtime, operator_version

IDENTIFIER = b"TFL3"
ALIGNMENT = 16
TYPES = {"float32": "FLOAT32", "int8": "INT8", "int32": "INT32", "int64": "INT64"}

# Operator → its options in the schema; the others have none that matter.
OPTIONS = {
    "ADD": "AddOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "CAST": "CastOptions",
    "CONCATENATION": "ConcatenationOptions",
    "DIV": "DivOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "GATHER": "GatherOptions",
    "GELU": "GeluOptions",
    "MEAN": "ReducerOptions",
    "MUL": "MulOptions",
    "RESHAPE": "ReshapeOptions",
    "SOFTMAX": "SoftmaxOptions",
    "SUB": "SubOptions",
    "SUM": "ReducerOptions",
}


@dataclass(frozen=True, eq=False)
class Quantization:
    """real = scale · (q − zero_point), for the whole tensor or, with several scales, per index of axis 0."""

    scale: NDArray[np.float32]
    zero_point: int = 0

    def key(self) -> tuple[bytes, int]:
        return self.scale.tobytes(), self.zero_point


class FlatbufferWriter:
    """Collects one subgraph; tensors are known by their index."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.operands: list[Operand] = []
        self.operators: list[Any] = []
        self.codes: dict[tuple[str, int], int] = {}
        self.buffers: list[Any] = [schema.BufferT()]
        self.constants: dict[Any, int] = {}

    def tensor(
        self, shape: Sequence[int], dtype: str = "float32", quantization: Quantization | None = None, name: str = ""
    ) -> int:
        """Declare a tensor of a numpy dtype and get its index."""
        tensor = schema.TensorT()
        tensor.shape = np.array(shape, np.int32)
        tensor.type = getattr(schema.TensorType, TYPES[dtype])
        tensor.name = name
        if quantization is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = quantization.scale.astype(np.float32)
            tensor.quantization.zeroPoint = np.full(quantization.scale.shape, quantization.zero_point, np.int64)
        per_channel = quantization is not None and len(quantization.scale) > 1
        self.tensors.append(tensor)
        self.operands.append(Operand(TYPES[dtype], tuple(shape), per_channel))
        return len(self.tensors) - 1

    def constant(self, value: NDArray[Any], quantization: Quantization | None = None) -> int:
        """A tensor with data; equal constants are one tensor."""
        data = np.ascontiguousarray(value).tobytes()
        key = (data, value.dtype.str, value.shape, quantization.key() if quantization else None)
        if key not in self.constants:
            index = self.tensor(value.shape, value.dtype.name, quantization)
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data, np.uint8)
            self.buffers.append(buffer)
            self.tensors[index].buffer = len(self.buffers) - 1
            self.constants[key] = index
        return self.constants[key]

    def operator(self, op: str, inputs: Sequence[int], outputs: Sequence[int], **options: Any) -> None:
        """Append an operator by its name in the schema; `options` are fields of its options."""
        pair = (op, operator_version(op, [self.operands[index] for index in inputs]))
        operator = schema.OperatorT()
        operator.opcodeIndex = self.codes.setdefault(pair, len(self.codes))
        operator.inputs = np.array(inputs, np.int32)
        operator.outputs = np.array(outputs, np.int32)
        if op in OPTIONS:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, OPTIONS[op])
            operator.builtinOptions = getattr(schema, OPTIONS[op] + "T")()
            for field, value in options.items():
                setattr(operator.builtinOptions, field, value)
        self.operators.append(operator)

    def finish(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """The file; inputs and outputs in the order in which a runtime lists them."""
        subgraph = schema.SubGraphT()
        subgraph.tensors = self.tensors
        subgraph.operators = self.operators
        subgraph.inputs = np.array(inputs, np.int32)
        subgraph.outputs = np.array(outputs, np.int32)
        model = schema.ModelT()
        model.version = 3
        model.description = "edgesdk"
        model.operatorCodes = [_operator_code(op, version) for op, version in self.codes]
        model.subgraphs = [subgraph]
        model.metadata = [self._runtime_metadata()]
        model.buffers = self.buffers
        model.signatureDefs = [self._signature(inputs, outputs)]
        builder = _Builder()
        builder.Finish(model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())

    def _runtime_metadata(self) -> Any:
        """`min_runtime_version` as TensorFlow writes it: 16 bytes, padded with zeros."""
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(minimum_runtime(list(self.codes)).encode().ljust(16, b"\0"), np.uint8)
        self.buffers.append(buffer)
        metadata = schema.MetadataT()
        metadata.name = "min_runtime_version"
        metadata.buffer = len(self.buffers) - 1
        return metadata

    def _signature(self, inputs: Sequence[int], outputs: Sequence[int]) -> Any:
        signature = schema.SignatureDefT()
        signature.signatureKey = "serving_default"
        signature.inputs = [self._named(index) for index in inputs]
        signature.outputs = [self._named(index) for index in outputs]
        return signature

    def _named(self, index: int) -> Any:
        entry = schema.TensorMapT()
        entry.name = self.tensors[index].name
        entry.tensorIndex = index
        return entry


class _Builder(flatbuffers.Builder):  # type: ignore[misc]
    """A builder that stores equal vectors once and byte vectors, which hold tensors, at multiples of 16."""

    def __init__(self) -> None:
        super().__init__(1 << 16)
        self.vectors: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: NDArray[Any]) -> int:
        payload = x.astype(x.dtype.newbyteorder("<")).tobytes()
        key = (x.dtype.str, payload)
        if key not in self.vectors:
            self.StartVector(x.itemsize, x.size, ALIGNMENT if x.dtype == np.uint8 else x.dtype.alignment)
            self.head -= len(payload)
            self.Bytes[self.head : self.head + len(payload)] = payload
            self.vectors[key] = self.EndVector()
        return self.vectors[key]


def _operator_code(op: str, version: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, op)
    # Old readers know the field of one byte only; 127 sends them to `builtinCode`.
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = version
    return code
