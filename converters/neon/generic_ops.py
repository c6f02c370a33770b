"""Plain operators of ONNX (opset 21) as kernels of `edge_generic.h` on strided views of floats.

A view is a place and how many elements lie between neighbours along each of six axes: broadcasting is a step of 0,
transposing another order of steps, slicing another place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.converters.neon.memory import stride
from edgesdk.converters.neon.plan import Tensor
from edgesdk.converters.neon.symbols import Input

RANK = 6
SELF = "self"
Shape = tuple[int, ...]
Source = Tensor | Input | str | NDArray[Any]
"""A tensor of the plan, an input of the graph, SELF (the result so far), or a constant."""


@dataclass(frozen=True, eq=False)
class Operand:
    source: Source
    shape: Shape


@dataclass(frozen=True, eq=False)
class View:
    """`steps` between neighbours on each axis of the kernel's loops, from element `offset` of the source on."""

    source: Source
    steps: Shape
    offset: int = 0


@dataclass(frozen=True, eq=False)
class Kernel:
    """`edge_FUNCTION(…)` of `edge_generic.h`: the sizes of its loops, numbers, views; the first view is the result.
    `expression` is C on the floats x, y and z. `work` counts multiply-accumulates, or elements."""

    function: str
    dims: tuple[Shape, ...]
    result: View
    operands: tuple[View, ...]
    expression: str = ""
    numbers: tuple[int | float, ...] = ()
    work: int = 0


UNARY = {
    "Abs": "fabsf(x)", "Ceil": "ceilf(x)", "Cos": "cosf(x)", "Erf": "erff(x)", "Exp": "expf(x)", "Floor": "floorf(x)",
    "Identity": "x", "Log": "logf(x)", "Neg": "-x", "Not": "x == 0.0f", "Reciprocal": "1.0f / x",
    "Relu": "x < 0.0f ? 0.0f : x", "Round": "rintf(x)", "Sigmoid": "1.0f / (1.0f + expf(-x))",
    "Sign": "(float)((x > 0.0f) - (x < 0.0f))", "Sin": "sinf(x)", "Softplus": "logf(1.0f + expf(x))",
    "Softsign": "x / (1.0f + fabsf(x))", "Sqrt": "sqrtf(x)", "Tanh": "tanhf(x)",
}
BINARY = {
    "Add": "x + y", "And": "x != 0.0f && y != 0.0f", "Div": "x / y", "Equal": "x == y", "Greater": "x > y",
    "GreaterOrEqual": "x >= y", "Less": "x < y", "LessOrEqual": "x <= y", "Max": "x > y || x != x ? x : y",
    "Min": "x < y || x != x ? x : y", "Mul": "x * y", "Or": "x != 0.0f || y != 0.0f", "Pow": "powf(x, y)",
    "Sub": "x - y", "Sum": "x + y", "Xor": "(x != 0.0f) != (y != 0.0f)",
}
REDUCTIONS = {
    "ReduceMax": ("-INFINITY", BINARY["Max"], "x"), "ReduceMin": ("INFINITY", BINARY["Min"], "x"),
    "ReduceSum": ("0.0f", "x + y", "x"), "ReduceMean": ("0.0f", "x + y", "x / count"),
    "ReduceProd": ("1.0f", "x * y", "x"), "ReduceSumSquare": ("0.0f", "x + y * y", "x"),
    "ReduceL2": ("0.0f", "x + y * y", "sqrtf(x)"), "ReduceL1": ("0.0f", "x + fabsf(y)", "x"),
}
FLOAT_TYPES = (1, 10, 11, 16)  # FLOAT, FLOAT16, DOUBLE, BFLOAT16
BOOL = 9

Operands = Sequence[Operand | None]


def kernels_for(op: str, shape: Shape, operands: Operands, attributes: dict[str, Any]) -> list[Kernel]:
    """The kernels that write the result `shape` one after the other; empty for an operator without any.

    Raises:
        AttributeError, IndexError, KeyError, TypeError, ValueError: inputs or attributes that the operator cannot have.
    """
    make = MAKERS.get(op)
    if make is not None:
        return make(shape, operands, attributes)
    if op in REDUCTIONS:
        return _reduce(op, shape, operands, attributes)
    expression = UNARY.get(op) or BINARY.get(op)
    if expression is None:
        return []
    if op == "Div" and attributes.get("integer"):
        expression = "truncf(x / y)"
    if op in UNARY:
        return [_map(shape, expression, operands[:1])]
    first, second, *others = operands
    kernels = [_map(shape, expression, (first, second))]
    for other in others:  # only Max, Min and Sum have more than two
        kernels.append(_map(shape, expression, (Operand(SELF, shape), other)))
    return kernels


def _given(operand: Operand | None) -> Operand:
    if operand is None:
        raise ValueError("an input is missing")
    return operand


def _constant(operand: Operand | None) -> list[int]:
    source = _given(operand).source
    if not isinstance(source, np.ndarray):
        raise ValueError("an input is not a constant")
    return [int(value) for value in source.reshape(-1)]


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} of {rank}")
    return axis % rank


def _steps(operand: Operand) -> list[int]:
    """Steps of a row-major array; rows of tensors of the plan are padded."""
    shape, steps, step = operand.shape, [], 1
    for index, size in enumerate(reversed(shape)):
        steps.append(step)
        padded = isinstance(operand.source, Tensor) or (isinstance(operand.source, str) and operand.source == SELF)
        step *= stride(Tensor("", 1, size)) if padded and index == 0 else size
    return steps[::-1]


def _six(values: Sequence[int], filler: int) -> Shape:
    if len(values) > RANK:
        raise ValueError(f"{len(values)} axes")
    return (*(filler,) * (RANK - len(values)), *values)


def _view(operand: Operand, steps: Sequence[int] | None = None, offset: int = 0) -> View:
    return View(operand.source, _six(_steps(operand) if steps is None else steps, 0), offset)


def _spread(operand: Operand, shape: Shape) -> View:
    """The operand broadcast to `shape`."""
    missing = len(shape) - len(operand.shape)
    sizes = (*(1,) * missing, *operand.shape)
    if missing < 0 or any(size not in (1, whole) for size, whole in zip(sizes, shape, strict=True)):
        raise ValueError(f"{operand.shape} does not broadcast to {shape}")
    steps = [*(0,) * missing, *_steps(operand)]
    return _view(operand, [0 if size == 1 else step for size, step in zip(sizes, steps, strict=True)])


def _result(shape: Shape) -> View:
    return _view(Operand(SELF, shape))


def _map(shape: Shape, expression: str, operands: Operands, result: View | None = None) -> Kernel:
    views = tuple(_spread(_given(operand), shape) for operand in operands)
    return Kernel(
        "map", (_six(shape, 1),), result or _result(shape), views, expression, work=math.prod(shape)
    )


def _copy(shape: Shape, view: View, result: View | None = None) -> list[Kernel]:
    return [Kernel("map", (_six(shape, 1),), result or _result(shape), (view,), "x", work=math.prod(shape))]


def _input(shape: Shape, operands: Operands, _: dict[str, Any]) -> list[Kernel]:
    return [Kernel("input", (_six(shape, 1),), _result(shape), (_view(_given(operands[0])),), work=math.prod(shape))]


def _cast(shape: Shape, operands: Operands, attributes: dict[str, Any]) -> list[Kernel]:
    to = attributes["to"]
    expression = "x" if to in FLOAT_TYPES else "x != 0.0f" if to == BOOL else "truncf(x)"
    return [_map(shape, expression, operands[:1])]


def _where(shape: Shape, operands: Operands, _: dict[str, Any]) -> list[Kernel]:
    return [_map(shape, "x != 0.0f ? y : z", operands[:3])]


def _clip(shape: Shape, operands: Operands, _: dict[str, Any]) -> list[Kernel]:
    low, high = ([*operands, None, None])[1:3]
    low, high = low or Operand(np.array(-np.inf, np.float32), ()), high or Operand(np.array(np.inf, np.float32), ())
    return [_map(shape, "x < y ? y : x > z ? z : x", (operands[0], low, high))]


def _gelu(shape: Shape, operands: Operands, attributes: dict[str, Any]) -> list[Kernel]:
    tanh = {b"none": False, b"tanh": True}[attributes.get("approximate", b"none")]
    inner = "tanhf(0.7978845608f * (x + 0.044715f * x * x * x))" if tanh else "erff(x * 0.70710678118f)"
    return [_map(shape, f"0.5f * x * (1.0f + {inner})", operands[:1])]


def _sloped(shape: Shape, operands: Operands, attributes: dict[str, Any]) -> list[Kernel]:
    alpha = float(np.float32(attributes.get("alpha", 0.01))).hex()
    return [_map(shape, f"x < 0.0f ? x * {alpha}f : x", operands[:1])]


def _expand(shape: Shape, operands: Operands, _: dict[str, Any]) -> list[Kernel]:
    return [_map(shape, "x", operands[:1])]


def _reshape(shape: Shape, operands: Operands, _: dict[str, Any]) -> list[Kernel]:
    source = _given(operands[0])
    if math.prod(source.shape) != math.prod(shape):
        raise ValueError("another number of elements")
    dims = (_six(shape, 1), _six(source.shape, 1))
    return [Kernel("reshape", dims, _result(shape), (_view(source),), work=math.prod(shape))]


def _transpose(shape: Shape, operands: Operands, attributes: dict[str, Any]) -> list[Kernel]:
    source = _given(operands[0])
    order = [int(axis) for axis in attributes.get("perm", range(len(shape))[::-1])]
    if tuple(source.shape[axis] for axis in order) != shape or sorted(order) != list(range(len(shape))):
        raise ValueError("not a permutation of the axes")
    steps = _steps(source)
    return _copy(shape, _view(source, [steps[axis] for axis in order]))


def _slice(shape: Shape, operands: Operands, _: dict[str, Any]) -> list[Kernel]:
    source, rank = _given(operands[0]), len(shape)
    starts, ends = _constant(operands[1]), _constant(operands[2])
    axes = _constant(operands[3]) if len(operands) > 3 and operands[3] else list(range(len(starts)))
    strides = _constant(operands[4]) if len(operands) > 4 and operands[4] else [1] * len(starts)
    steps, offset, sizes = _steps(source), 0, list(source.shape)
    for start, end, axis, by in zip(starts, ends, axes, strides, strict=True):
        axis = _axis(axis, rank)
        size = source.shape[axis]
        window = range(*slice(start, None if by < 0 and end < -size else end, by).indices(size))
        sizes[axis], offset = len(window), offset + window.start * steps[axis]
        steps[axis] *= by
    if tuple(sizes) != shape:
        raise ValueError("another shape than the slice")
    return _copy(shape, _view(source, steps, offset))


def _split(shape: Shape, operands: Operands, attributes: dict[str, Any]) -> list[Kernel]:
    source, index = _given(operands[0]), int(attributes["index"])
    axis = _axis(attributes.get("axis", 0), len(shape))
    if len(operands) > 1 and operands[1]:
        first = sum(_constant(operands[1])[:index])
    else:
        first = index * -(-source.shape[axis] // int(attributes["num_outputs"]))
    if first + shape[axis] > source.shape[axis]:
        raise ValueError("parts beyond the end")
    steps = _steps(source)
    return _copy(shape, _view(source, steps, first * steps[axis]))


def _concat(shape: Shape, operands: Operands, attributes: dict[str, Any]) -> list[Kernel]:
    axis, first = _axis(attributes["axis"], len(shape)), 0
    kernels, result = [], _result(shape)
    step = result.steps[RANK - len(shape) + axis]
    for operand in map(_given, operands):
        kernels += _copy(operand.shape, _view(operand), replace(result, offset=first * step))
        first += operand.shape[axis]
    if first != shape[axis]:
        raise ValueError("another size than that of the parts")
    return kernels


def _gather(shape: Shape, operands: Operands, attributes: dict[str, Any]) -> list[Kernel]:
    data, index = _given(operands[0]), _given(operands[1])
    axis, count = _axis(attributes.get("axis", 0), len(data.shape)), len(index.shape)
    if shape != (*data.shape[:axis], *index.shape, *data.shape[axis + 1 :]):
        raise ValueError("another shape than what is gathered")
    steps = _steps(data)
    behind = len(data.shape) - axis - 1
    rows = _view(data, [*steps[:axis], *(0,) * count, *steps[axis + 1 :]])
    places = _view(index, [*(0,) * axis, *_steps(index), *(0,) * behind])
    numbers = (data.shape[axis], steps[axis])
    return [Kernel("gather", (_six(shape, 1),), _result(shape), (rows, places), "", numbers, math.prod(shape))]


def _over(source: Operand, shape: Shape, axes: Sequence[int]) -> tuple[Shape, Shape, View]:
    """Loops over what stays, loops over `axes`, and the result's view along the axes of the source."""
    sizes, rank = source.shape, len(source.shape)
    axes = [_axis(axis, rank) for axis in axes]
    kept = [1 if axis in axes else size for axis, size in enumerate(sizes)]
    over = [size if axis in axes else 1 for axis, size in enumerate(sizes)]
    if math.prod(kept) != math.prod(shape):
        raise ValueError("another shape than that of the reduced tensor")
    steps = list(_steps(Operand(SELF, shape)))
    if len(shape) == rank:
        along = [0 if axis in axes else steps[axis] for axis in range(rank)]
    else:
        left = iter(steps)
        along = [0 if axis in axes else next(left) for axis in range(rank)]
    return _six(kept, 1), _six(over, 1), View(SELF, _six(along, 0))


def _reduce(op: str, shape: Shape, operands: Operands, attributes: dict[str, Any]) -> list[Kernel]:
    source = _given(operands[0])
    axes = _constant(operands[1]) if len(operands) > 1 and operands[1] else []
    if not axes:
        if attributes.get("noop_with_empty_axes", 0):
            return [_map(shape, "x", operands[:1])]
        axes = list(range(len(source.shape)))
    kept, over, result = _over(source, shape, axes)
    start, combine, finish = REDUCTIONS[op]
    expression = f"{start}, {combine}, {finish}"
    return [
        Kernel("reduce", (kept, over), result, (_view(source),), expression, work=math.prod(source.shape))
    ]


def _arg(shape: Shape, operands: Operands, attributes: dict[str, Any]) -> list[Kernel]:
    source = _given(operands[0])
    if attributes.get("select_last_index", 0):
        return []
    kept, over, result = _over(source, shape, [attributes.get("axis", 0)])
    return [Kernel("argmax", (kept, over), result, (_view(source),), "", (), math.prod(source.shape))]


def _softmax(shape: Shape, operands: Operands, attributes: dict[str, Any]) -> list[Kernel]:
    source = _given(operands[0])
    axis = _axis(attributes.get("axis", -1), len(shape))
    if source.shape != shape:
        raise ValueError("another shape than that of the input")
    kept = [1 if index == axis else size for index, size in enumerate(shape)]
    numbers = (shape[axis], _steps(source)[axis], _steps(Operand(SELF, shape))[axis])
    return [
        Kernel("softmax", (_six(kept, 1),), _result(shape), (_view(source),), "", numbers, math.prod(shape))
    ]


def _normalize(shape: Shape, operands: Operands, attributes: dict[str, Any]) -> list[Kernel]:
    """LayerNormalization over the axes from `axis` on, with or without a bias."""
    source, rank = _given(operands[0]), len(shape)
    first = _axis(attributes.get("axis", -1), rank)
    kept = [1 if axis >= first else size for axis, size in enumerate(shape)]
    over = [size if axis >= first else 1 for axis, size in enumerate(shape)]
    zero = Operand(np.zeros((), np.float32), ())
    bias = operands[2] if len(operands) > 2 and operands[2] else zero
    views = (_view(source), _spread(_given(operands[1]), shape), _spread(bias, shape))
    epsilon = float(attributes.get("epsilon", 1e-5))
    dims = (_six(kept, 1), _six(over, 1))
    return [Kernel("normalize", dims, _result(shape), views, "", (epsilon,), math.prod(shape))]


def _matmul(shape: Shape, operands: Operands, _: dict[str, Any]) -> list[Kernel]:
    left, right = _given(operands[0]), _given(operands[1])
    if len(left.shape) < 2 or len(right.shape) < 2 or left.shape[-1] != right.shape[-2]:
        raise ValueError("shapes that do not multiply")
    batch, inner = shape[:-2], left.shape[-1]
    if shape[-2:] != (left.shape[-2], right.shape[-1]):
        raise ValueError("another shape than that of the product")
    views = []
    for operand in (left, right):
        outer = _spread(Operand(operand.source, operand.shape), (*batch, *operand.shape[-2:]))
        views.append(replace(outer, steps=(*outer.steps[:-2], *_steps(operand)[-2:])))
    dims = (_six((*batch, *shape[-2:]), 1),)
    return [Kernel("matmul", dims, _result(shape), tuple(views), "", (inner,), math.prod(shape) * inner)]


Maker = Callable[[Shape, Operands, dict[str, Any]], list[Kernel]]
MAKERS: dict[str, Maker] = {
    "ArgMax": _arg, "Cast": _cast, "Clip": _clip, "Concat": _concat, "Expand": _expand, "Flatten": _reshape,
    "Gather": _gather, "Gelu": _gelu, "Input": _input, "LayerNormalization": _normalize, "LeakyRelu": _sloped,
    "MatMul": _matmul, "Reshape": _reshape, "Slice": _slice, "Softmax": _softmax, "Split": _split,
    "Squeeze": _reshape, "Transpose": _transpose, "Unsqueeze": _reshape, "Where": _where,
}
