"""Plain ONNX operators as TFLite operators: one function each, and the table `OPERATORS`.

Chosen so that LiteRT's XNNPACK delegate takes them: float, static shapes, rank ≤ 6, no operator that copies more than
it must. A translation that cannot be exact raises `UnsupportedOp` with the operator and its name.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from edgesdk.converters.front import Operator
from edgesdk.converters.tflite.flatbuffer import Quantization
from edgesdk.converters.tflite.translation import PLAIN, Translation
from edgesdk.errors import UnsupportedOp

Translator = Callable[[Translation, Operator], None]
MAX_RANK = 6
MAX_MATMUL_RANK = 5
FLOAT = 1
"""`TensorProto.FLOAT` of ONNX."""


def refuse(node: Operator, reason: str) -> UnsupportedOp:
    return UnsupportedOp(f"operator {node.op} {node.name!r}: {reason}", "build this package with another converter")


def _floats(translation: Translation, node: Operator, count: int | None = None) -> list[int]:
    """Tensors of the first `count` inputs (default: all), which have to be float32."""
    tensors = [translation.read(name) for name in node.inputs[:count]]
    types = [translation.writer.operands[tensor].type for tensor in tensors]
    if set(types) != {"FLOAT32"}:
        raise refuse(node, f"inputs of type {', '.join(types)}, expected FLOAT32")
    return tensors


def _plain(op: str) -> Translator:
    """One operator of the same meaning, element by element with broadcasting."""

    def translate(translation: Translation, node: Operator) -> None:
        inputs = _floats(translation, node)
        rank = len(translation.shape(node.outputs[0]))
        if rank > MAX_RANK:
            raise refuse(node, f"rank {rank}, TFLite has {MAX_RANK}")
        translation.writer.operator(op, inputs, [translation.result(node.outputs[0])])

    return translate


def _reduce(op: str) -> Translator:
    def translate(translation: Translation, node: Operator) -> None:
        rank = len(translation.shape(node.inputs[0]))
        axes = translation.constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if axes is None or not rank:
            raise refuse(node, "its axes are not constant, or it reduces one number")
        inputs = _floats(translation, node, 1)
        inputs.append(translation.integers(*(int(axis) % rank for axis in axes.reshape(-1))))
        keep = bool(node.attributes.get("keepdims", 1))
        translation.writer.operator(op, inputs, [translation.result(node.outputs[0])], keepDims=keep)

    return translate


def _reshape(translation: Translation, node: Operator) -> None:
    """Reshape, Unsqueeze, Squeeze and Flatten are one operator once shapes are known."""
    shape, source = translation.shape(node.outputs[0]), _floats(translation, node, 1)[0]
    if shape == translation.shape(node.inputs[0]) and node.outputs[0] not in translation.graph.outputs:
        translation.indices[node.outputs[0]] = source
        return
    _write_reshape(translation, source, translation.result(node.outputs[0]), shape)


def _transpose(translation: Translation, node: Operator) -> None:
    """Transpose; as the right side of one MatMul it leaves the last two axes to that operator (`adjY`), if whole rows
    are moved then."""
    rank, output = len(translation.shape(node.inputs[0])), node.outputs[0]
    if rank > MAX_RANK:
        raise refuse(node, f"rank {rank}, TFLite has {MAX_RANK}")
    permutation = [int(axis) for axis in node.attributes.get("perm", range(rank)[::-1])]
    source, reader = _floats(translation, node)[0], translation.sole_consumer(output)
    is_right = isinstance(reader, Operator) and reader.op == "MatMul" and reader.inputs[1] == output
    if is_right and rank > 2 and permutation[-2] == rank - 1:
        permutation[-2:] = permutation[:-3:-1]
        translation.adjoint.add(output)
        shape = [translation.shape(node.inputs[0])[axis] for axis in permutation]
        translation.indices[output] = translation.emit("TRANSPOSE", [source, translation.integers(*permutation)], shape)
        return
    inputs = [source, translation.integers(*permutation)]
    translation.writer.operator("TRANSPOSE", inputs, [translation.result(output)])


def _matmul(translation: Translation, node: Operator) -> None:
    """BATCH_MATMUL. Where several query heads share one key/value head ([…, g, S, D] · […, 1, D, S]), the shared axis
    is folded into the rows, so that nothing is broadcast."""
    (left_shape, right_shape), output = map(translation.shape, node.inputs), node.outputs[0]
    if min(len(left_shape), len(right_shape)) < 2:
        raise refuse(node, "an operand is a vector")
    left, right = _floats(translation, node)
    adjoint = node.inputs[1] in translation.adjoint
    options = {"adjX": False, "adjY": adjoint}
    shape = translation.shape(output)
    grouped = len(left_shape) == len(right_shape) > 3 and right_shape[-3] == 1 and left_shape[-3] > 1
    if not grouped:
        if max(len(left_shape), len(right_shape)) > MAX_MATMUL_RANK:
            raise refuse(node, f"rank {len(shape)}, TFLite has {MAX_MATMUL_RANK}")
        if left_shape[:-2] != right_shape[:-2]:
            raise refuse(node, f"batches {left_shape[:-2]} and {right_shape[:-2]} differ")
        translation.writer.operator("BATCH_MATMUL", [left, right], [translation.result(output)], **options)
        return
    if left_shape[:-3] != right_shape[:-3] or len(left_shape) - 1 > MAX_MATMUL_RANK:
        raise refuse(node, f"batches {left_shape[:-2]} and {right_shape[:-2]}")
    right_rows = (right_shape[-1], right_shape[-2]) if adjoint else right_shape[-2:]
    rows = left_shape[-3] * left_shape[-2]
    left = _as_shape(translation, left, (*left_shape[:-3], rows, left_shape[-1]))
    right = _as_shape(translation, right, (*right_shape[:-3], *right_rows))
    product = translation.emit("BATCH_MATMUL", [left, right], (*left_shape[:-3], rows, shape[-1]), **options)
    _write_reshape(translation, product, translation.result(output), shape)


def _as_shape(translation: Translation, tensor: int, shape: tuple[int, ...]) -> int:
    result = translation.writer.tensor(shape)
    _write_reshape(translation, tensor, result, shape)
    return result


def _write_reshape(translation: Translation, source: int, result: int, shape: tuple[int, ...]) -> None:
    inputs = [source, translation.integers(*shape)]
    translation.writer.operator("RESHAPE", inputs, [result], newShape=np.array(shape, np.int32))


def _softmax(translation: Translation, node: Operator) -> None:
    rank = len(translation.shape(node.inputs[0]))
    if node.attributes.get("axis", -1) not in (-1, rank - 1):
        raise refuse(node, "its axis is not the last one")
    translation.writer.operator("SOFTMAX", _floats(translation, node), [translation.result(node.outputs[0])], beta=1.0)


def _gelu(translation: Translation, node: Operator) -> None:
    approximate = node.attributes.get("approximate", b"none") in (b"tanh", "tanh")
    result = translation.result(node.outputs[0])
    translation.writer.operator("GELU", _floats(translation, node), [result], approximate=approximate)


def _layer_norm(translation: Translation, node: Operator) -> None:
    """(x − mean) · 1/√(mean of squared differences + ε) · weight + bias, over the last axis."""
    shape = translation.shape(node.inputs[0])
    if node.attributes.get("axis", -1) not in (-1, len(shape) - 1) or len(node.outputs) > 1 or len(node.inputs) != 3:
        raise refuse(node, "its axis is not the last one, or it has no bias, or further outputs")
    source, weight, bias = _floats(translation, node)
    axis, rows = translation.integers(len(shape) - 1), (*shape[:-1], 1)
    mean = translation.emit("MEAN", [source, axis], rows, keepDims=True)
    squares = translation.emit("SQUARED_DIFFERENCE", [source, mean], shape)
    variance = translation.emit("MEAN", [squares, axis], rows, keepDims=True)
    epsilon = translation.scalar(node.attributes.get("epsilon", 1e-5))
    deviation = translation.emit("RSQRT", [translation.emit("ADD", [variance, epsilon], rows)], rows)
    centered = translation.emit("SUB", [source, mean], shape)
    value = translation.emit("MUL", [centered, deviation], shape)
    value = translation.emit("MUL", [value, weight], shape)
    translation.writer.operator("ADD", [value, bias], [translation.result(node.outputs[0])])


def _gather(translation: Translation, node: Operator) -> None:
    """Rows by a tensor of indices are GATHER; one row by a constant index is SLICE, which XNNPACK takes too."""
    table, axis, output = node.inputs[0], int(node.attributes.get("axis", 0)), node.outputs[0]
    shape, index = translation.shape(table), translation.constant(node.inputs[1])
    if index is not None and index.size == 1 and table not in translation.graph.constants:
        begin, size = [0] * len(shape), list(shape)
        begin[axis], size[axis] = int(index.reshape(())) % shape[axis], 1
        inputs = [*_floats(translation, node, 1), translation.integers(*begin), translation.integers(*size)]
        row = translation.emit("SLICE", inputs, size)
        _write_reshape(translation, row, translation.result(output), translation.shape(output))
        return
    source = translation.read(table) if table in translation.graph.constants else _floats(translation, node, 1)[0]
    is_int8 = translation.writer.operands[source].type == "INT8"
    target = translation.result(output, "int8" if is_int8 else "float32", PLAIN if is_int8 else None)
    inputs = [source, translation.read(node.inputs[1])]
    translation.writer.operator("GATHER", inputs, [target], axis=axis % len(shape))


def _cast(translation: Translation, node: Operator) -> None:
    """To float. int8 rows become DEQUANTIZE, constant ones together with their scales, which a runtime does once."""
    if node.attributes.get("to") != FLOAT:
        raise refuse(node, "it casts to something else than float32")
    source, output = translation.read(node.inputs[0]), node.outputs[0]
    if translation.writer.operands[source].type != "INT8":
        translation.writer.operator("CAST", [source], [translation.result(output)])
        return
    table, reader = translation.constant(node.inputs[0]), translation.sole_consumer(output)
    if table is not None and isinstance(reader, Operator) and reader.op == "Mul":
        scale = translation.constant(next(name for name in reader.inputs if name != output))
        if scale is not None and scale.shape == (len(table), 1) and table.ndim == 2:
            source = translation.writer.constant(table, Quantization(scale.reshape(-1)))
            translation.skipped.add(id(reader))
            output = reader.outputs[0]
    translation.writer.operator("DEQUANTIZE", [source], [translation.result(output)])


def _maximum(translation: Translation, node: Operator) -> None:
    if len(node.inputs) != 2:
        raise refuse(node, f"{len(node.inputs)} inputs, TFLite has 2")
    _plain("MAXIMUM")(translation, node)


def _concat(translation: Translation, node: Operator) -> None:
    rank = len(translation.shape(node.outputs[0]))
    inputs = _floats(translation, node)
    axis = int(node.attributes["axis"]) % rank
    translation.writer.operator("CONCATENATION", inputs, [translation.result(node.outputs[0])], axis=axis)


def _slice(translation: Translation, node: Operator) -> None:
    """Slice of a float tensor with constant bounds and step 1."""
    shape = translation.shape(node.inputs[0])
    bounds = [translation.constant(name) for name in node.inputs[1:] if name]
    if len(bounds) < 2 or any(bound is None for bound in bounds):
        raise refuse(node, "its bounds are not constant")
    starts, ends, *rest = [bound.reshape(-1) for bound in bounds if bound is not None]
    axes = rest[0] if rest else np.arange(len(starts))
    if len(rest) > 1 and (rest[1] != 1).any():
        raise refuse(node, "its step is not 1")
    begin, size = [0] * len(shape), list(shape)
    for start, end, axis in zip(starts, ends, axes, strict=True):
        first, last, _ = slice(int(start), int(end)).indices(shape[axis])
        begin[axis], size[axis] = first, last - first
    if prod(size) <= 0 or tuple(size) != translation.shape(node.outputs[0]):
        raise refuse(node, "it leaves nothing")
    inputs = [*_floats(translation, node, 1), translation.integers(*begin), translation.integers(*size)]
    translation.writer.operator("SLICE", inputs, [translation.result(node.outputs[0])])


OPERATORS: dict[str, Translator] = {
    "Add": _plain("ADD"),
    "Cast": _cast,
    "Concat": _concat,
    "Div": _plain("DIV"),
    "Flatten": _reshape,
    "Gather": _gather,
    "Gelu": _gelu,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "Max": _maximum,
    "Mul": _plain("MUL"),
    "ReduceMean": _reduce("MEAN"),
    "ReduceSum": _reduce("SUM"),
    "Relu": _plain("RELU"),
    "Reshape": _reshape,
    "Slice": _slice,
    "Softmax": _softmax,
    "Squeeze": _reshape,
    "Sub": _plain("SUB"),
    "Tanh": _plain("TANH"),
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
