"""How a weight lies in the ONNX file: dense or without its structural zeros, in float, 8 bits or 4 bits.

What is stored in fewer bytes is unpacked by nodes that read initializers only, so every runtime folds them once, when
it loads the model: the file is small and the kernels see a plain int8 or float matrix. Sparse matrices keep one bit a
weight that says where values are, and the values that are not zero in order (the bitmask format of sparse kernels,
e.g. in the NVIDIA and ARM sparse libraries).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from edgesdk.encodings import WeightEncoding
from edgesdk.transformer.graph_builder import Builder
from edgesdk.transformer.quantize import four_bits, integers


def store_float(builder: Builder, name: str, weight: NDArray[np.float32], sparse: bool) -> str:
    """The tensor `name` [N, K] float32."""
    if not sparse or np.count_nonzero(weight) > 0.9 * weight.size:
        return builder.constant(name, weight)
    values = builder.constant(f"{name}.values", _values(weight))
    return _spread(builder, name, weight != 0, values, TensorProto.FLOAT, name)


def store_integers(
    builder: Builder, name: str, weight: NDArray[np.float32], encoding: WeightEncoding, sparse: bool, transposed: bool
) -> str:
    """The tensor `name` [N, K] int8 ([K, N] where `transposed`), quantized by its encoding."""
    if encoding.bits == 8:
        dense = integers(weight, encoding)
        if not sparse or np.count_nonzero(dense) > 0.8 * dense.size:
            return builder.constant(name, np.ascontiguousarray(dense.T) if transposed else dense)
        wide = _int32(builder, f"{name}.values", builder.constant(f"{name}.values", _values(dense)))
        wide = _spread(builder, name, dense != 0, wide, TensorProto.INT32, f"{name}.wide")
    else:
        wide = _four_bits(builder, name, weight, encoding, sparse)
    if not transposed:
        return builder.root("Cast", [wide], name, to=TensorProto.INT8)
    rows = builder.root("Cast", [wide], f"{name}.rows", to=TensorProto.INT8)
    return builder.root("Transpose", [rows], name, perm=[1, 0])


def _four_bits(
    builder: Builder, name: str, weight: NDArray[np.float32], encoding: WeightEncoding, sparse: bool
) -> str:
    """multiplier · q as int32 [N, K], from INT4 q and UINT4 multipliers."""
    assert encoding.multiplier is not None and encoding.group is not None
    small = four_bits(weight, encoding)
    (rows, columns), groups = small.shape, encoding.multiplier.shape[1]
    if not sparse or np.count_nonzero(small) > 0.6 * small.size:
        wide = _int32(builder, f"{name}.q", builder.four_bit_constant(f"{name}.q", small))
    else:
        wide = _int32(builder, f"{name}.q", builder.four_bit_constant(f"{name}.q", _values(small)))
        wide = _spread(builder, name, small != 0, wide, TensorProto.INT32, f"{name}.dense")
    split = builder.root(
        "Reshape", [wide, builder.integers(rows, groups, encoding.group)], f"{name}.groups"
    )
    multiplier = builder.four_bit_constant(f"{name}.multiplier", encoding.multiplier.reshape(rows, groups, 1))
    product = builder.root("Mul", [split, _int32(builder, f"{name}.multiplier", multiplier)], f"{name}.steps")
    return builder.root("Reshape", [product, builder.integers(rows, columns)], f"{name}.wide")


def _int32(builder: Builder, name: str, value: str) -> str:
    return builder.root("Cast", [value], f"{name}.int32", to=TensorProto.INT32)


def _values(matrix: NDArray[Any]) -> NDArray[Any]:
    """What is not zero, row by row; one zero where there is nothing, since empty tensors cannot be gathered from."""
    values = matrix[matrix != 0]
    return values if values.size else np.zeros(1, matrix.dtype)


def _spread(builder: Builder, name: str, kept: NDArray[np.bool_], values: str, kind: int, result: str) -> str:
    """The dense matrix [N, K] of `values` at the places where `kept` [N, K] is set."""
    packed = np.packbits(kept.reshape(-1))
    mask = _int32(builder, f"{name}.mask", builder.constant(f"{name}.mask", packed[:, None]))
    weights_of_bits = builder.constant("bits.weights", np.array([[128, 64, 32, 16, 8, 4, 2, 1]], np.int32))
    shifted = builder.root("Div", [mask, weights_of_bits], f"{name}.mask.shifted")
    bits = builder.root("Mod", [shifted, builder.constant("bits.two", np.array(2, np.int32))], f"{name}.mask.bits")
    flat = builder.root("Reshape", [bits, builder.integers(-1)], f"{name}.mask.flat")
    window = [builder.integers(0), builder.integers(kept.size), builder.integers(0)]
    flat = builder.root("Slice", [flat, *window], f"{name}.mask.exact")
    # The number of set bits up to a place, less one, is the index of its value.
    count = builder.root("CumSum", [flat, builder.constant("bits.axis", np.array(0, np.int64))], f"{name}.mask.count")
    one = builder.constant("bits.one", np.array(1, np.int32))
    index = builder.root("Sub", [count, one], f"{name}.mask.index")
    index = builder.root("Max", [index, builder.constant("bits.zero", np.array(0, np.int32))], f"{name}.mask.first")
    gathered = builder.root("Gather", [values, index], f"{name}.gathered", axis=0)
    if kind != TensorProto.INT32:
        flat = builder.root("Cast", [flat], f"{name}.mask.cast", to=kind)
    dense = builder.root("Mul", [gathered, flat], f"{name}.flat")
    return builder.root("Reshape", [dense, builder.integers(*kept.shape)], result)
