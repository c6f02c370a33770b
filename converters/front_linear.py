"""The linear layers of a package's graph: the four forms of the graph contract (`docs/architecture.md`) recognised in
its nodes, Q/DQ absorbed into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from edgesdk.errors import UnsupportedOp

Form = Literal["fp32", "w8a8", "w8a8-dynamic", "w8"]


@dataclass(frozen=True)
class Encoding:
    """Per-tensor int8: real = scale · (q − zero_point), q from −128 to 127."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Linear:
    """y [rows, N] = x [rows, K] · Wᵀ + b.

    `source` and `result` are float tensors; in form `w8a8` x is quantized by `input` and y by `output` on the way
    (round half to even, saturate), `bias` is int32 with scale `input.scale · weight_scale`. Forms `w8a8`,
    `w8a8-dynamic` and `w8` have int8 `weight` [N, K] with `weight_scale` [N]; `fp32` has a float weight. `dynamic`
    scales of the activation belong to the runtime. A layer without a bias (the first of a low-rank pair, the products
    with a token table) has zeros here. Layers that share weights have the same array.
    """

    name: str
    form: Form
    source: str
    result: str
    weight: NDArray[Any]
    bias: NDArray[Any]
    weight_scale: NDArray[np.float32] | None = None
    input: Encoding | None = None
    output: Encoding | None = None


@dataclass(frozen=True)
class Operator:
    """One plain ONNX operator; an empty input name is an omitted optional input."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


class Recogniser:
    """Replaces the nodes of each linear layer by one `Linear`; `shapes` are static and complete."""

    def __init__(
        self, nodes: list[onnx.NodeProto], constants: dict[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self.nodes, self.constants, self.shapes = nodes, constants, shapes
        self.producer = {name: node for node in nodes for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in nodes:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.linears: dict[int, list[Linear]] = {}
        self.absorbed: set[int] = set()
        self.transposed: dict[int, NDArray[Any]] = {}

    def run(self) -> list[Linear | Operator]:
        for node in self.nodes:
            if node.op_type == "Gemm":
                self.linears[id(node)] = self.parts(self.gemm(node))
            elif node.op_type == "MatMulInteger":
                linear, last = self.dynamic(node)
                self.linears[id(last)] = [linear]
        result: list[Linear | Operator] = []
        for node in self.nodes:
            if id(node) in self.linears:
                result.extend(self.linears[id(node)])
            elif id(node) not in self.absorbed:
                if node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"):
                    raise UnsupportedOp(f"{node.op_type} {node.name!r} belongs to no linear layer of a known form")
                result.append(
                    Operator(node.op_type, node.name, tuple(node.input), tuple(node.output), attributes_of(node))
                )
        return result

    def gemm(self, node: onnx.NodeProto) -> Linear:
        attributes = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0} | attributes_of(node)
        if attributes != {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1} or len(node.input) not in (2, 3):
            raise UnsupportedOp(f"Gemm {node.name!r}: expected x · Wᵀ + b")
        source, weight = node.input[:2]
        name = _name(node, weight)
        if weight in self.constants:
            matrix = self.constants[weight]
            return Linear(name, "fp32", source, node.output[0], matrix, self.float_bias(node, matrix))
        integers, scale = self.constant_dq(node, weight, np.int8)
        dequantize = self.producer.get(source)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            return Linear(name, "w8", source, node.output[0], integers, self.float_bias(node, integers), scale)
        quantize = self.producer.get(dequantize.input[0])
        if quantize is None or quantize.op_type != "QuantizeLinear":
            raise UnsupportedOp(f"Gemm {node.name!r}: its input is dequantized but never quantized")
        encoding = self.encoding(quantize, dequantize)
        requantize = self.only_consumer(node, "QuantizeLinear", "its output is not quantized")
        last = self.only_consumer(requantize, "DequantizeLinear", "its output is not dequantized")
        integer_bias = np.zeros(len(integers), np.int32)
        if len(node.input) == 3:
            integer_bias, bias_scale = self.constant_dq(node, node.input[2], np.int32)
            if not np.allclose(bias_scale, np.float32(encoding.scale) * scale, rtol=1e-5, atol=0):
                raise UnsupportedOp(f"Gemm {node.name!r}: the scale of its bias is not that of its products")
        self.absorbed |= {id(dequantize), id(quantize), id(requantize), id(last)}
        if not self.is_output_of_static(quantize.input[0]):
            source = quantize.input[0]  # else the result of that layer, whose encoding this one reads
        return Linear(
            name, "w8a8", source, last.output[0], integers, integer_bias, scale, encoding,
            self.encoding(requantize, last),
        )

    def is_output_of_static(self, name: str) -> bool:
        """Whether the tensor is what a static layer makes before it is quantized."""
        node = self.producer.get(name)
        before = self.producer.get(node.input[0]) if node is not None and node.op_type == "Gemm" else None
        return before is not None and before.op_type == "DequantizeLinear"

    def parts(self, linear: Linear) -> list[Linear]:
        """Layers that the graph computes side by side and splits (pass `merge_qkv`), one by one: converters merge what
        suits their kernels themselves."""
        readers = self.consumers.get(linear.result, [])
        if linear.form != "fp32" or len(readers) != 1 or readers[0].op_type != "Split":
            return [linear]
        (split,) = readers
        if attributes_of(split).get("axis", 0) not in (1, -1) or len(self.shapes[linear.source]) != 2:
            return [linear]
        ends = np.cumsum([self.shapes[name][-1] for name in split.output])
        self.absorbed.add(id(split))
        return [
            Linear(
                name.removesuffix(".output"), "fp32", linear.source, name,
                linear.weight[end - self.shapes[name][-1] : end], linear.bias[end - self.shapes[name][-1] : end],
            )
            for name, end in zip(split.output, ends, strict=True)
        ]

    def dynamic(self, node: onnx.NodeProto) -> tuple[Linear, onnx.NodeProto]:
        """DynamicQuantizeLinear → MatMulInteger → Cast → Mul → Add (where there is a bias), and its scale product."""
        quantize = self.producer.get(node.input[0])
        if quantize is None or quantize.op_type != "DynamicQuantizeLinear" or len(node.input) != 4:
            raise UnsupportedOp(f"MatMulInteger {node.name!r}: its input is not quantized dynamically")
        if list(quantize.output) != [node.input[0], quantize.output[1], node.input[2]]:
            raise UnsupportedOp(f"MatMulInteger {node.name!r}: the zero point is not that of its input")
        weight = self.constant(node, node.input[1])
        if weight.dtype != np.int8 or weight.ndim != 2 or self.constant(node, node.input[3]).any():
            raise UnsupportedOp(f"MatMulInteger {node.name!r}: expected int8 weights with zero points 0")
        cast = self.only_consumer(node, "Cast", "expected one Cast behind it")
        last = self.only_consumer(cast, "Mul", "expected one Mul behind it")
        product = self.producer.get(last.input[1])
        if product is None or product.op_type != "Mul" or product.input[0] != quantize.output[1]:
            raise UnsupportedOp(f"MatMulInteger {node.name!r}: its products are not scaled by its input's scale")
        scale, bias = self.constant(node, product.input[1]), np.zeros(weight.shape[1], np.float32)
        self.absorbed |= {id(part) for part in (quantize, product, node, cast, last)}
        following = self.consumers.get(last.output[0], [])
        if [after.op_type for after in following] == ["Add"]:
            added = self.constants.get(following[0].input[1])
            if added is not None and added.shape == bias.shape:
                last, bias = following[0], added
                self.absorbed.add(id(last))
        name = _name(node, node.input[1])
        linear = Linear(
            name, "w8a8-dynamic", quantize.input[0], last.output[0], self.rows_of(weight), bias, scale
        )
        return linear, last

    def rows_of(self, weight: NDArray[Any]) -> NDArray[Any]:
        """[K, N] → [N, K]; one array for all layers that share it."""
        if id(weight) not in self.transposed:
            self.transposed[id(weight)] = np.ascontiguousarray(weight.T)
        return self.transposed[id(weight)]

    def float_bias(self, node: onnx.NodeProto, weight: NDArray[Any]) -> NDArray[Any]:
        if len(node.input) == 3:
            return self.constant(node, node.input[2])
        return np.zeros(len(weight), np.float32)

    def only_consumer(self, node: onnx.NodeProto, op: str, otherwise: str) -> onnx.NodeProto:
        following = self.consumers.get(node.output[0], [])
        if [after.op_type for after in following] != [op]:
            raise UnsupportedOp(f"{node.op_type} {node.name!r}: {otherwise}")
        return following[0]

    def constant(self, node: onnx.NodeProto, name: str) -> NDArray[Any]:
        if name not in self.constants:
            raise UnsupportedOp(f"{node.op_type} {node.name!r}: {name!r} is not a constant")
        return self.constants[name]

    def constant_dq(self, node: onnx.NodeProto, name: str, dtype: Any) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Integers [N, …] and scales [N] of a constant that is dequantized by rows, symmetrically."""
        dequantize = self.producer.get(name)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            raise UnsupportedOp(f"{node.op_type} {node.name!r}: {name!r} is neither a constant nor a dequantized one")
        integers, scale = (self.constant(dequantize, part) for part in dequantize.input[:2])
        zero_points = self.constant(dequantize, dequantize.input[2]) if len(dequantize.input) > 2 else np.zeros(1)
        attributes = {"axis": 1, "block_size": 0} | attributes_of(dequantize)
        rows = attributes["axis"] in (0, -integers.ndim) and not attributes["block_size"]
        if not rows or integers.dtype != dtype or scale.shape != integers.shape[:1] or zero_points.any():
            raise UnsupportedOp(
                f"DequantizeLinear {dequantize.name!r}: expected {np.dtype(dtype)} by rows, with zero points 0"
            )
        self.absorbed.add(id(dequantize))
        return integers, scale

    def encoding(self, quantize: onnx.NodeProto, dequantize: onnx.NodeProto) -> Encoding:
        if len(quantize.input) != 3 or quantize.input[1:] != dequantize.input[1:]:
            raise UnsupportedOp(f"QuantizeLinear {quantize.name!r}: quantized by one encoding, dequantized by another")
        scale, zero_point = (self.constant(quantize, name) for name in quantize.input[1:])
        if zero_point.dtype != np.uint8 or zero_point.size != 1 or scale.size != 1:
            raise UnsupportedOp(f"QuantizeLinear {quantize.name!r}: expected one uint8 zero point")
        return Encoding(float(scale.item()), int(zero_point.item()) - 128)


def _name(node: onnx.NodeProto, weight: str) -> str:
    """The layer's own name, which is not that of its weight where layers share weights."""
    stored = weight.removesuffix(".scaled").removesuffix(".dq").removesuffix(".weight")
    name = str(node.name).removesuffix(".float").removesuffix(".output").removesuffix(".integer")
    if not name:
        return stored
    pair = stored.endswith(".u") and not name.endswith(".u")  # the result of a pair is named after the whole
    return f"{name}.u" if pair else name


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
