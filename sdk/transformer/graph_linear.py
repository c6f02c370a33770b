"""Linear layers and tables of a graph, in the form that their encodings ask for (`docs/architecture.md`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgesdk.encodings import Encodings, WeightEncoding, input_activation, output_activation
from edgesdk.transformer.graph_builder import Builder
from edgesdk.transformer.graph_storage import store_float, store_integers
from edgesdk.transformer.spec import TransformerSpec


class LinearWriter:
    """Writes y = x·Wᵀ + b for x [rows, K], W [N, K]; a tensor is quantized once, whoever reads it."""

    def __init__(
        self, builder: Builder, spec: TransformerSpec, weights: Mapping[str, NDArray[np.float32]],
        encodings: Encodings | None,
    ) -> None:
        self.builder, self.spec, self.weights, self.encodings = builder, spec, weights, encodings
        self.quantized: dict[str, str] = {}

    def part(self, name: str, rank: int | None, value: str, result: str) -> str:
        """A linear layer that is plain (`rank` None) or a low-rank pair."""
        if rank is None:
            return self.linear(name, value, result)
        middle = self.linear(f"{name}.v", value, f"{name}.v.output")
        return self.linear(f"{name}.u", middle, result)

    def linear(self, name: str, value: str, result: str) -> str:
        stored = self.spec.stored(name)
        weight, bias = self.weights[f"{stored}.weight"], self.weights.get(f"{stored}.bias")
        encoding = self.encodings.weights.get(f"{stored}.weight") if self.encodings else None
        if encoding is None:
            inputs = [value, store_float(self.builder, f"{stored}.weight", weight, stored in self.spec.sparse)]
            return self.builder.node("Gemm", inputs + self.float_bias(stored, bias), result, transB=1)
        assert self.encodings is not None
        if self.encodings.scheme.endswith("-dynamic"):
            return self.dynamic(name, value, encoding, result)
        weight_dq = self.dequantized(name, stored, encoding)
        source = self.encodings.activations.get(input_activation(name))
        if source is None:
            inputs = [value, weight_dq, *self.float_bias(stored, bias)]
            return self.builder.node("Gemm", inputs, result, transB=1)
        inputs = [self.activation(input_activation(name), value), weight_dq]
        if bias is not None:
            # Shared layers have the scales of each use: their integer biases are their own.
            inputs.append(self.static_bias(name, bias, np.float32(source.scale) * encoding.scale))
        self.builder.node("Gemm", inputs, f"{result}.float", transB=1)
        return self.activation(output_activation(name), f"{result}.float")

    def activation(self, name: str, value: str) -> str:
        """Q/DQ of a float tensor by the encoding `name`; the tensor itself where there is none."""
        if self.encodings is None or name not in self.encodings.activations:
            return value
        if name not in self.quantized:
            encoding = self.encodings.activations[name]
            scale = self.builder.scalar(f"{name}.scale", encoding.scale)
            # uint8 in the graph: the fast form of ONNX Runtime on x86 and as good as int8 on ARM.
            zero_point = self.builder.constant(f"{name}.zero_point", np.array(encoding.zero_point + 128, np.uint8))
            self.builder.node("QuantizeLinear", [value, scale, zero_point], f"{name}.q")
            inputs = [f"{name}.q", scale, zero_point]
            self.quantized[name] = self.builder.node("DequantizeLinear", inputs, f"{name}.dq")
        return self.quantized[name]

    def float_bias(self, stored: str, bias: NDArray[np.float32] | None) -> list[str]:
        return [] if bias is None else [self.builder.constant(f"{stored}.bias", bias)]

    def static_bias(self, name: str, bias: NDArray[np.float32], scale: NDArray[np.float32]) -> str:
        scale = scale.astype(np.float32)
        values = np.clip(np.rint(bias / scale.astype(np.float64)), -(2**31) + 1, 2**31 - 1).astype(np.int32)
        inputs = [
            self.builder.constant(f"{name}.bias", values),
            self.builder.constant(f"{name}.bias.scale", scale),
            self.builder.constant(f"zeros.int32.{len(bias)}", np.zeros(len(bias), np.int32)),
        ]
        return self.builder.node("DequantizeLinear", inputs, f"{name}.bias.dq", axis=0)

    def integers(self, stored: str, encoding: WeightEncoding, transposed: bool = False) -> tuple[str, str]:
        """(int8 matrix, float scales of its rows) of a quantized weight."""
        name = f"{stored}.weight"
        sparse = stored in self.spec.sparse
        matrix = store_integers(self.builder, name, self.weights[name], encoding, sparse, transposed)
        # The token table's scales are a column already, for its rows to be gathered with (see `rows`).
        scale = f"{name}.scale.flat" if stored == "embedding.tokens" else f"{name}.scale"
        return matrix, self.builder.constant(scale, encoding.scale.astype(np.float32))

    def dequantized(self, name: str, stored: str, encoding: WeightEncoding) -> str:
        """The weight in float: a node of each use, since runtimes fuse it with the Gemm beside it."""
        rows = len(encoding.scale)
        zeros = self.builder.constant(f"zeros.int8.{rows}", np.zeros(rows, np.int8))
        inputs = [*self.integers(stored, encoding), zeros]
        return self.builder.node("DequantizeLinear", inputs, f"{name}.weight.dq", axis=0)

    def dynamic(self, name: str, value: str, encoding: WeightEncoding, result: str) -> str:
        """DynamicQuantizeLinear of the input, MatMulInteger, scales, bias."""
        builder, source, stored = self.builder, input_activation(name), self.spec.stored(name)
        if source not in self.quantized:
            outputs = [f"{source}.{part}" for part in ("q", "scale", "zero_point")]
            node = helper.make_node("DynamicQuantizeLinear", [value], outputs, name=f"{source}.q")
            builder.scopes[-1].append(node)
            self.quantized[source] = outputs[0]
        matrix, scales = self.integers(stored, encoding, transposed=True)
        zeros = builder.constant(f"zeros.int8.{len(encoding.scale)}", np.zeros(len(encoding.scale), np.int8))
        inputs = [self.quantized[source], matrix, f"{source}.zero_point", zeros]
        product = builder.node("MatMulInteger", inputs, f"{name}.integer")
        product = builder.node("Cast", [product], f"{name}.cast", to=TensorProto.FLOAT)
        scale = builder.node("Mul", [f"{source}.scale", scales], f"{name}.product.scale")
        bias = self.float_bias(stored, self.weights.get(f"{stored}.bias"))
        product = builder.node("Mul", [product, scale], f"{name}.product" if bias else result)
        return builder.node("Add", [product, *bias], result) if bias else product

    def rows(self, name: str, pick: Callable[[str, str], str]) -> str:
        """Rows of a table, chosen by `pick(table name, output name)`; int8 rows are scaled by their own scale."""
        encoding = self.encodings.weights.get(name) if self.encodings else None
        if encoding is None:
            return pick(self.builder.constant(name, self.weights[name]), f"{name}.rows")
        table = store_integers(self.builder, name, self.weights[name], encoding, False, False)
        integers = pick(table, f"{name}.rows.q")
        scale = self.builder.constant(f"{name}.scale", encoding.scale.astype(np.float32)[:, None])
        cast = self.builder.node("Cast", [integers], f"{name}.rows.cast", to=TensorProto.FLOAT)
        return self.builder.node("Mul", [cast, pick(scale, f"{name}.rows.scale")], f"{name}.rows")
