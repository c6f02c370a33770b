"""Evaluation of what depends on constants and fixed shapes alone: shape arithmetic, masks of decoders, and the nodes
that unpack weights stored in 4 bits or without their zeros (`sdk/transformer/graph_storage.py`).

int8 numbers stay int8: a `Cast` to float and a `DequantizeLinear` are the model's, since folding them would make
artifacts four times as large.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgesdk.errors import UnsupportedOp

Array = NDArray[Any]
LARGEST = 1 << 31
"""Bytes that folded tensors may have together: what an ONNX file (protobuf) could have held without any folding."""
ELEMENTWISE = ("Add", "Div", "Max", "Mod", "Mul", "Sub")


def constants_of(graph: onnx.GraphProto) -> dict[str, Array]:
    """Initializers by name; 4-bit integers in a byte each."""
    constants = {}
    for tensor in graph.initializer:
        value = numpy_helper.to_array(tensor)
        if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4):
            value = value.astype(np.int8 if tensor.data_type == TensorProto.INT4 else np.uint8)
        constants[tensor.name] = value
    return constants


def fold(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Array],
    shapes: Mapping[str, tuple[int, ...]],
    keep: Collection[str],
) -> list[onnx.NodeProto]:
    """Evaluate what can be; the nodes that are left. `constants` gets the results and loses what only folded nodes have
    read; `keep` are names that stay (outputs); `shapes` are those of the inputs.

    Raises:
        UnsupportedOp: a node that constants cannot satisfy; it is named.
    """
    readers = Counter(name for node in nodes for name in node.input)
    held: dict[str, int] = {}
    free = LARGEST
    left = []
    for node in nodes:
        try:
            result = _evaluate(node, constants, shapes, free)
        except (ArithmeticError, IndexError, KeyError, MemoryError, TypeError, ValueError) as problem:
            raise UnsupportedOp(f"{node.op_type} {node.name!r}: its constants do not fit: {problem}") from problem
        if result is None:
            left.append(node)
            continue
        constants[node.output[0]] = result
        held[node.output[0]] = result.nbytes
        free -= result.nbytes
        for name in node.input:
            readers[name] -= 1
            if not readers[name] and name not in keep:
                constants.pop(name, None)
                free += held.pop(name, 0)
    return left


def _evaluate(
    node: onnx.NodeProto, constants: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], free: int
) -> Array | None:
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "Shape":
        dims = shapes.get(node.input[0])
        return None if dims is None else np.array(dims[attributes.get("start", 0) : attributes.get("end")], np.int64)
    function = FOLDERS.get(node.op_type)
    if function is None or len(node.output) != 1 or not node.input:
        return None
    values = [constants.get(name) for name in node.input]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    if (size := _bytes(node.op_type, attributes, known)) > free:
        raise ValueError(f"a result of {size} bytes, {free} are left of the {LARGEST} for all constants")
    return function(attributes, *known)


def _bytes(op: str, attributes: dict[str, Any], values: Sequence[Array]) -> int:
    """Size of what a node makes of constants, known before anything is allocated."""
    first, shapes = values[0], [value.shape for value in values]
    if op in ELEMENTWISE:
        return math.prod(np.broadcast_shapes(*shapes)) * int(np.result_type(*values).itemsize)
    if op == "Concat":
        return sum(value.size for value in values) * np.result_type(*values).itemsize
    if op == "Cast":
        return first.size * int(helper.tensor_dtype_to_np_dtype(attributes["to"]).itemsize)
    if op == "Expand":
        return math.prod(_expanded(first, values[1])) * int(first.itemsize)
    if op == "Gather":
        others: list[int] = list(first.shape)
        del others[int(attributes.get("axis", 0))]
        return math.prod(others) * values[1].size * int(first.itemsize)
    return first.nbytes


def _cast(attributes: dict[str, Any], value: Array) -> Array | None:
    dtype = helper.tensor_dtype_to_np_dtype(attributes["to"])
    if value.dtype == np.int8 and dtype.kind == "f":
        return None
    return value.astype(dtype)


def _divide(_: dict[str, Any], left: Array, right: Array) -> Array:
    """Integers are divided towards zero, as in ONNX."""
    if left.dtype.kind == "f":
        return np.asarray(left / right)
    if not right.all():
        raise ZeroDivisionError("division by zero")
    quotient = np.abs(left) // np.abs(right)
    return np.asarray(np.sign(left) * np.sign(right) * quotient, left.dtype)


def _modulo(attributes: dict[str, Any], left: Array, right: Array) -> Array:
    if not right.all():
        raise ZeroDivisionError("division by zero")
    return np.asarray(np.fmod(left, right) if attributes.get("fmod", 0) else np.mod(left, right))


def _slice(_: dict[str, Any], value: Array, starts: Array, ends: Array, *rest: Array) -> Array:
    axes = rest[0].tolist() if rest else list(range(len(starts)))
    steps = rest[1].tolist() if len(rest) > 1 else [1] * len(starts)
    window = [slice(None)] * value.ndim
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), axes, steps, strict=True):
        # An end far in front of the first element means "down to the first one".
        window[axis] = slice(start, None if step < 0 and end < -value.shape[axis] else end, step)
    return np.ascontiguousarray(value[tuple(window)])


def _expand(_: dict[str, Any], value: Array, shape: Array) -> Array:
    return np.ascontiguousarray(np.broadcast_to(value, _expanded(value, shape)))


def _expanded(value: Array, shape: Array) -> tuple[int, ...]:
    return np.broadcast_shapes(value.shape, tuple(int(size) for size in shape))


def _reshape(attributes: dict[str, Any], value: Array, shape: Array) -> Array:
    """A 0 in the shape copies the size of the input there, unless `allowzero`."""
    zero = attributes.get("allowzero", 0)
    sizes = [int(size) if size or zero else value.shape[at] for at, size in enumerate(shape.tolist())]
    return value.reshape(sizes)


def _sum_up(attributes: dict[str, Any], value: Array, axis: Array) -> Array | None:
    if attributes.get("exclusive", 0) or attributes.get("reverse", 0):
        return None
    return np.cumsum(value, int(axis.item()), dtype=value.dtype)


def _gather(attributes: dict[str, Any], value: Array, indices: Array) -> Array:
    return np.take(value, indices, int(attributes.get("axis", 0)))


def _largest(_: dict[str, Any], first: Array, *others: Array) -> Array:
    for other in others:
        first = np.maximum(first, other)
    return first


def _triangle(attributes: dict[str, Any], value: Array, diagonal: Array | None = None) -> Array:
    first = 0 if diagonal is None else int(diagonal.item())
    return np.triu(value, first) if attributes.get("upper", 1) else np.tril(value, first)


def _concat(attributes: dict[str, Any], *values: Array) -> Array:
    return np.concatenate(values, int(attributes["axis"]))


def _transpose(attributes: dict[str, Any], value: Array) -> Array:
    return np.ascontiguousarray(value.transpose(attributes.get("perm")))


# `Unsqueeze` and others of activations never have constant inputs only; what is missing here is left as a node.
FOLDERS: dict[str, Callable[..., Array | None]] = {
    "Add": lambda _, left, right: np.asarray(left + right),
    "Cast": _cast,
    "Concat": _concat,
    "CumSum": _sum_up,
    "Div": _divide,
    "Expand": _expand,
    "Gather": _gather,
    "Identity": lambda _, value: value,
    "Max": _largest,
    "Mod": _modulo,
    "Mul": lambda _, left, right: np.asarray(left * right),
    "Reshape": _reshape,
    "Slice": _slice,
    "Sub": lambda _, left, right: np.asarray(left - right),
    "Transpose": _transpose,
    "Trilu": _triangle,
    "Unsqueeze": lambda _, value, axes: np.expand_dims(value, tuple(int(axis) for axis in axes)),
}
