"""Write the canonical Transformer as ONNX from its spec (not traced): the graph contract of `docs/architecture.md`.

Opset 21, IR version 10. With encodings, linear layers are written as QDQ (`w8a8`) or as DynamicQuantizeLinear +
MatMulInteger (`w8a8-dynamic`) and tables as int8 rows. Equal inputs give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgesdk.package import Encodings
from edgesdk.transformer.quantize import quantize_rows
from edgesdk.transformer.spec import FeatureEmbedding, Layer, PatchEmbedding, TokenEmbedding, TransformerSpec

OPSET, IR_VERSION = 21, 10
MASK = -100.0


def write_graph(
    spec: TransformerSpec, weights: Mapping[str, NDArray[np.float32]], encodings: Encodings | None = None
) -> bytes:
    """The ONNX file as bytes; weights as in `spec.weight_shapes()`, quantized where `encodings` says so."""
    return bytes(_Writer(spec, weights, encodings).model().SerializeToString(deterministic=True))


class _Writer:
    def __init__(
        self, spec: TransformerSpec, weights: Mapping[str, NDArray[np.float32]], encodings: Encodings | None
    ) -> None:
        self.spec, self.weights, self.encodings = spec, weights, encodings
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.quantized: dict[str, str] = {}

    # --- plumbing -------------------------------------------------------------------------------------------------

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: NDArray[Any]) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def integers(self, *values: int) -> str:
        return self.constant("shape." + "_".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, name: str, value: float) -> str:
        return self.constant(name, np.array(value, np.float32))

    def shape(self, *tail: int) -> str:
        """Shape [batch, sequence, *tail] as a tensor; the sequence is constant where the spec fixes it."""
        if isinstance(self.spec.embedding, PatchEmbedding):
            return self.integers(-1, self.spec.max_length, *tail)
        name = "shape.tokens." + "_".join(map(str, tail))
        if not any(node.output[0] == name for node in self.nodes):
            self.node("Concat", ["shape.tokens", self.integers(*tail)], name, axis=0)
        return name

    # --- quantization ---------------------------------------------------------------------------------------------

    def activation(self, name: str, value: str) -> str:
        """Q/DQ of a float tensor by the encoding `name`; the tensor itself where there is none."""
        if self.encodings is None or name not in self.encodings.activations:
            return value
        if name not in self.quantized:
            encoding = self.encodings.activations[name]
            scale = self.scalar(f"{name}.scale", encoding.scale)
            # uint8 in the graph: the fast form of ONNX Runtime on x86 and as good as int8 on ARM.
            zero_point = self.constant(f"{name}.zero_point", np.array(encoding.zero_point + 128, np.uint8))
            self.node("QuantizeLinear", [value, scale, zero_point], f"{name}.q")
            self.quantized[name] = self.node("DequantizeLinear", [f"{name}.q", scale, zero_point], f"{name}.dq")
        return self.quantized[name]

    def linear(self, name: str, value: str, input_encoding: str, result: str) -> str:
        """y = x·Wᵀ + b for x [rows, K], W [N, K], in the form that the encodings ask for."""
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        encoding = self.encodings.weights.get(f"{name}.weight") if self.encodings else None
        if encoding is None:
            weight_name = self.constant(f"{name}.weight", weight)
            return self.node("Gemm", [value, weight_name, self.constant(f"{name}.bias", bias)], result, transB=1)
        integers = quantize_rows(weight, encoding.scale)
        scales = self.constant(f"{name}.weight.scale", encoding.scale.astype(np.float32))
        assert self.encodings is not None
        if self.encodings.scheme == "w8a8-dynamic":
            return self.dynamic_linear(name, value, integers, scales, bias, input_encoding, result)
        zeros = self.constant(f"zeros.int8.{len(weight)}", np.zeros(len(weight), np.int8))
        quantized = self.constant(f"{name}.weight", integers)
        weight_dq = self.node("DequantizeLinear", [quantized, scales, zeros], f"{name}.weight.dq", axis=0)
        source = self.encodings.activations.get(input_encoding)
        if source is None:
            return self.node("Gemm", [value, weight_dq, self.constant(f"{name}.bias", bias)], result, transB=1)
        bias_scale = (np.float32(source.scale) * encoding.scale).astype(np.float32)
        bias_integers = np.clip(np.rint(bias / bias_scale.astype(np.float64)), -(2**31) + 1, 2**31 - 1).astype(np.int32)
        bias_dq = self.node(
            "DequantizeLinear",
            [
                self.constant(f"{name}.bias", bias_integers),
                self.constant(f"{name}.bias.scale", bias_scale),
                self.constant(f"zeros.int32.{len(bias)}", np.zeros(len(bias), np.int32)),
            ],
            f"{name}.bias.dq",
            axis=0,
        )
        self.node("Gemm", [self.activation(input_encoding, value), weight_dq, bias_dq], f"{result}.float", transB=1)
        return self.activation(name, f"{result}.float")

    def dynamic_linear(
        self, name: str, value: str, integers: NDArray[np.int8], scales: str, bias: NDArray[np.float32],
        input_encoding: str, result: str,
    ) -> str:
        if input_encoding not in self.quantized:
            outputs = [f"{input_encoding}.{part}" for part in ("q", "scale", "zero_point")]
            self.nodes.append(helper.make_node("DynamicQuantizeLinear", [value], outputs, name=f"{input_encoding}.q"))
            self.quantized[input_encoding] = outputs[0]
        weight = self.constant(f"{name}.weight", np.ascontiguousarray(integers.T))
        zeros = self.constant(f"zeros.int8.{len(bias)}", np.zeros(len(bias), np.int8))
        inputs = [self.quantized[input_encoding], weight, f"{input_encoding}.zero_point", zeros]
        product = self.node("MatMulInteger", inputs, f"{name}.integer")
        product = self.node("Cast", [product], f"{name}.cast", to=TensorProto.FLOAT)
        scale = self.node("Mul", [f"{input_encoding}.scale", scales], f"{name}.scale")
        product = self.node("Mul", [product, scale], f"{name}.product")
        return self.node("Add", [product, self.constant(f"{name}.bias", bias)], result)

    def rows(self, name: str, pick: Any) -> str:
        """Rows of a table, chosen by `pick(table name, output name)`; int8 rows are scaled by their own scale."""
        table = self.weights[name]
        encoding = self.encodings.weights.get(name) if self.encodings else None
        if encoding is None:
            return str(pick(self.constant(name, table), f"{name}.rows"))
        integers = pick(self.constant(name, quantize_rows(table, encoding.scale)), f"{name}.rows.q")
        scale = pick(self.constant(f"{name}.scale", encoding.scale.astype(np.float32)[:, None]), f"{name}.rows.scale")
        cast = self.node("Cast", [integers], f"{name}.rows.cast", to=TensorProto.FLOAT)
        return self.node("Mul", [cast, scale], f"{name}.rows")

    # --- parts of the model ---------------------------------------------------------------------------------------

    def model(self) -> onnx.ModelProto:
        spec = self.spec
        hidden, mask = self.embedding()
        for index, layer in enumerate(spec.layers):
            hidden = self.layer(f"layers.{index}", layer, hidden, mask)
        if spec.final_norm:
            hidden = self.norm("norm", hidden, "norm.output")
        last = self.pooling(hidden)
        self.nodes[-1].output[0] = spec.output if last == self.nodes[-1].output[0] else last
        graph = helper.make_graph(
            self.nodes, "edgesdk", self.graph_inputs(), [self.graph_output()], list(self.initializers.values())
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="edgesdk")
        model.ir_version = IR_VERSION
        return model

    def graph_inputs(self) -> list[onnx.ValueInfoProto]:
        embedding = self.spec.embedding
        if isinstance(embedding, TokenEmbedding):
            names = ("input_ids", "attention_mask")
            return [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in names]
        if isinstance(embedding, PatchEmbedding):
            shape: list[Any] = ["batch", embedding.channels, embedding.size, embedding.size]
            return [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, shape)]
        shape = ["batch", "sequence", self.spec.hidden]
        return [helper.make_tensor_value_info("features", TensorProto.FLOAT, shape)]

    def graph_output(self) -> onnx.ValueInfoProto:
        shapes: dict[str, list[Any]] = {
            "logits": ["batch", self.spec.classes],
            "embedding": ["batch", self.spec.hidden],
            "hidden_states": ["batch", "sequence", self.spec.hidden],
        }
        return helper.make_tensor_value_info(self.spec.output, TensorProto.FLOAT, shapes[self.spec.output])

    def norm(self, name: str, value: str, result: str) -> str:
        names = (f"{name}.weight", f"{name}.bias")
        inputs = [value, *(self.constant(part, self.weights[part]) for part in names)]
        return self.node("LayerNormalization", inputs, result, axis=-1, epsilon=self.spec.norm_epsilon)

    def embedding(self) -> tuple[str, str | None]:
        """Hidden states [tokens, H] and the additive mask [batch, 1, 1, sequence] (None where all is attended)."""
        spec, embedding, mask = self.spec, self.spec.embedding, None
        if isinstance(embedding, TokenEmbedding):
            self.node("Shape", ["input_ids"], "shape.tokens")
            self.node("Shape", ["input_ids"], "shape.sequence", start=1, end=2)
            tokens = self.rows(
                "embedding.tokens.weight", lambda table, out: self.node("Gather", [table, "input_ids"], out)
            )
            start, axis = self.integers(0), self.integers(0)
            positions = self.rows(
                "embedding.positions.weight",
                lambda table, out: self.node("Slice", [table, start, "shape.sequence", axis], out),
            )
            hidden = self.node("Add", [tokens, positions], "embedding.sum")
            mask = self.node("Cast", ["attention_mask"], "mask.float", to=TensorProto.FLOAT)
            mask = self.node("Sub", [self.scalar("one", 1.0), mask], "mask.padding")
            mask = self.node("Mul", [mask, self.scalar("mask.value", MASK)], "mask.additive")
            mask = self.node("Unsqueeze", [mask, self.integers(1, 2)], "mask")
        elif isinstance(embedding, PatchEmbedding):
            hidden = self.patches(embedding)
        else:
            assert isinstance(embedding, FeatureEmbedding)
            self.node("Shape", ["features"], "shape.tokens", start=0, end=2)
            hidden = "features"
        hidden = self.node("Reshape", [hidden, self.integers(-1, spec.hidden)], "embedding.output")
        return (self.norm("embedding.norm", hidden, "embedding.norm.output") if embedding.norm else hidden), mask

    def patches(self, embedding: PatchEmbedding) -> str:
        side, patch = embedding.size // embedding.patch, embedding.patch
        width = embedding.channels * patch * patch
        split = self.integers(-1, embedding.channels, side, patch, side, patch)
        value = self.node("Reshape", ["pixel_values", split], "embedding.blocks")
        value = self.node("Transpose", [value], "embedding.blocks.transposed", perm=[0, 2, 4, 1, 3, 5])
        value = self.node("Reshape", [value, self.integers(-1, width)], "embedding.blocks.rows")
        value = self.linear("embedding.patches", value, "embedding.patches.input", "embedding.patches.output")
        rows = self.integers(-1, side * side, self.spec.hidden)
        value = self.node("Reshape", [value, rows], "embedding.patches.rows")
        if embedding.cls:
            self.node("Shape", ["pixel_values"], "shape.batch", start=0, end=1)
            self.node("Concat", ["shape.batch", self.integers(1, self.spec.hidden)], "shape.cls", axis=0)
            cls = self.constant("embedding.cls", self.weights["embedding.cls"])
            cls = self.node("Expand", [cls, "shape.cls"], "embedding.cls.rows")
            value = self.node("Concat", [cls, value], "embedding.cls.concat", axis=1)
        positions = self.rows("embedding.positions.weight", lambda table, out: table)
        return self.node("Add", [value, positions], "embedding.sum")

    def layer(self, name: str, layer: Layer, hidden: str, mask: str | None) -> str:
        pre = self.spec.norm == "pre"
        source = self.norm(f"{name}.attention.norm", hidden, f"{name}.attention.normed") if pre else hidden
        update = self.attention(f"{name}.attention", layer, source, mask)
        hidden = self.node("Add", [hidden, update], f"{name}.attention.residual")
        if not pre:
            hidden = self.norm(f"{name}.attention.norm", hidden, f"{name}.attention.normed")
        source = self.norm(f"{name}.ffn.norm", hidden, f"{name}.ffn.normed") if pre else hidden
        update = self.feed_forward(f"{name}.ffn", source)
        hidden = self.node("Add", [hidden, update], f"{name}.ffn.residual")
        return hidden if pre else self.norm(f"{name}.ffn.norm", hidden, f"{name}.ffn.normed")

    def attention(self, name: str, layer: Layer, source: str, mask: str | None) -> str:
        groups = layer.heads // layer.kv_heads
        plain = groups == 1
        split = {
            "query": self.shape(layer.heads, layer.head_size) if plain
            else self.shape(layer.kv_heads, groups, layer.head_size),
            "key": self.shape(layer.kv_heads, layer.head_size) if plain
            else self.shape(layer.kv_heads, 1, layer.head_size),
        }
        split["value"] = split["key"]
        order = {"query": [0, 2, 1, 3], "key": [0, 2, 3, 1], "value": [0, 2, 1, 3]} if plain else {
            "query": [0, 2, 3, 1, 4], "key": [0, 2, 3, 4, 1], "value": [0, 2, 3, 1, 4],
        }
        heads = {}
        for part in ("query", "key", "value"):
            value = self.linear(f"{name}.{part}", source, f"{name}.input", f"{name}.{part}.output")
            value = self.node("Reshape", [value, split[part]], f"{name}.{part}.split")
            heads[part] = self.node("Transpose", [value], f"{name}.{part}.heads", perm=order[part])
        scale = self.scalar(f"attention.scale.{layer.head_size}", layer.head_size**-0.5)
        query = self.node("Mul", [heads["query"], scale], f"{name}.query.scaled")
        scores = self.node("MatMul", [query, heads["key"]], f"{name}.scores")
        if mask is not None:
            if not plain:
                mask = self.node("Unsqueeze", [mask, self.integers(1)], f"{name}.mask")
            scores = self.node("Add", [scores, mask], f"{name}.scores.masked")
        weights = self.node("Softmax", [scores], f"{name}.probabilities", axis=-1)
        context = self.node("MatMul", [weights, heads["value"]], f"{name}.context.heads")
        merge = [0, 2, 1, 3] if plain else [0, 3, 1, 2, 4]
        context = self.node("Transpose", [context], f"{name}.context.transposed", perm=merge)
        width = self.integers(-1, layer.heads * layer.head_size)
        context = self.node("Reshape", [context, width], f"{name}.context.rows")
        return self.linear(f"{name}.output", context, f"{name}.context", f"{name}.output.output")

    def feed_forward(self, name: str, source: str) -> str:
        up = self.linear(f"{name}.up", source, f"{name}.input", f"{name}.up.output")
        if self.spec.activation == "relu":
            active = self.node("Relu", [up], f"{name}.active")
        else:
            approximate = "tanh" if self.spec.activation == "gelu_tanh" else "none"
            active = self.node("Gelu", [up], f"{name}.active", approximate=approximate)
        return self.linear(f"{name}.down", active, f"{name}.hidden", f"{name}.down.output")

    def pooling(self, hidden: str) -> str:
        spec = self.spec
        hidden = self.node("Reshape", [hidden, self.shape(spec.hidden)], "pooling.sequence")
        if spec.pooling == "none":
            return hidden
        if spec.pooling == "cls":
            first = self.constant("pooling.first", np.array(0, np.int64))
            value = self.node("Gather", [hidden, first], "pooling.output", axis=1)
        elif isinstance(spec.embedding, TokenEmbedding):
            weight = self.node("Unsqueeze", ["mask.float", self.integers(2)], "pooling.weight")
            total = self.node("Mul", [hidden, weight], "pooling.weighted")
            total = self.node("ReduceSum", [total, self.integers(1)], "pooling.total", keepdims=0)
            count = self.node("ReduceSum", [weight, self.integers(1)], "pooling.count", keepdims=0)
            value = self.node("Div", [total, count], "pooling.output")
        else:
            value = self.node("ReduceMean", [hidden, self.integers(1)], "pooling.output", keepdims=0)
        if spec.pooler:
            value = self.linear("pooler", value, "pooler.input", "pooler.output")
            value = self.node("Tanh", [value], "pooler.tanh")
        if spec.classes is None:
            return value
        return self.linear("classifier", value, "classifier.input", "classifier.output")
