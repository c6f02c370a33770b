"""The decoding graph of a causal model: keys and values of earlier tokens come in, so that a step computes one token.

One ONNX file (opset 21, IR 10) for both: the prompt with an empty past, then token after token. Layer I takes
`past.I.key` and `past.I.value` and gives them back with the new tokens at their end as `present.I.key` and
`present.I.value`, float32 [batch, kv_heads, past (+ sequence), head_size]; layers that share weights have caches of
their own.

    input_ids       int64 [batch, sequence]        the new tokens
    attention_mask  int64 [batch, past + sequence] 1 = token, 0 = padding, of past and new tokens
    token_logits    float32 [batch, sequence, V], or hidden_states [batch, sequence, H]

A token's position is the number of tokens before it in its row, so padding may stand anywhere: before a short prompt
(its next token is that of the last column) or behind it (that of its own last token), and stays masked in later steps.
Weights lie under the names and in the form that they have in the package's own graph; `spec.passes` are not applied.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgesdk.encodings import Encodings
from edgesdk.errors import PackageError
from edgesdk.transformer.graph import GraphWriter
from edgesdk.transformer.spec import Layer, TokenEmbedding, TransformerSpec


def decode_problems(spec: TransformerSpec) -> list[str]:
    """Reasons why a spec has no decoding graph; empty where it has one."""
    problems = []
    if not isinstance(spec.embedding, TokenEmbedding):
        problems.append(f"its inputs are {spec.embedding.kind}, not tokens")
    if not spec.causal:
        problems.append("it is not causal: what comes later changes the keys and values of what came before")
    if spec.pooling != "none":
        problems.append(f"it pools its tokens ({spec.pooling}) instead of answering at each of them")
    if any(layer.gate for layer in spec.layers):
        problems.append("a gated layer that was skipped has no keys and values for later tokens")
    return problems


def write_decode_graph(
    spec: TransformerSpec, weights: Mapping[str, NDArray[np.float32]], encodings: Encodings | None = None
) -> bytes:
    """The decoding graph as bytes (see the module's text); weights as in `spec.weight_shapes()`, quantized where
    `encodings` says so.

    Raises:
        PackageError: the model cannot be run token by token; says why.
    """
    if problems := decode_problems(spec):
        raise PackageError(
            f"no decoding graph for this model: {'; '.join(problems)}",
            "decoding needs a causal model of tokens without pooling and gates (GPT-2)",
        )
    return bytes(_DecodeWriter(spec, weights, encodings).model().SerializeToString(deterministic=True))


class _DecodeWriter(GraphWriter):
    def model(self) -> onnx.ModelProto:
        model = super().model()
        for index, layer in enumerate(self.spec.layers):
            model.graph.output.extend(_cache(f"present.{index}", layer, "total"))
        return model

    def graph_inputs(self) -> list[onnx.ValueInfoProto]:
        inputs = [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"]),
        ]
        for index, layer in enumerate(self.spec.layers):
            inputs += _cache(f"past.{index}", layer, "past")
        return inputs

    def past(self) -> str:
        """Number of tokens in the cache, int64 [1]."""
        return self.builder.root("Shape", ["past.0.key"], "shape.past", start=2, end=3)

    def total(self) -> str:
        """Number of tokens in all, int64 [1]."""
        return self.builder.root("Shape", ["attention_mask"], "shape.total", start=1, end=2)

    def index(self) -> str:
        """Positions of the new tokens, int64 [batch, sequence]: each row counts its own tokens."""
        root = self.builder.root
        count = root("CumSum", ["attention_mask", self.constant("position.axis", np.array(1, np.int64))], "count")
        index = root("Sub", [count, self.constant("position.one", np.array(1, np.int64))], "position.index")
        index = root("Max", [index, self.constant("position.first", np.array(0, np.int64))], "position.known")
        return root("Slice", [index, self.past(), self.total(), self.integers(1)], "position.new")

    def positions(self) -> str:
        """Rows of the position table for the new tokens, [batch, sequence, width]."""
        return self.linears.rows(
            "embedding.positions.weight", lambda table, out: self.node("Gather", [table, self.index()], out)
        )

    def rope_rows(self, table: str, name: str, grouped: bool) -> str:
        """Rows of a rotary table for the new tokens, [batch, sequence, 1, (1,) D]."""
        rows = self.builder.root("Gather", [table, self.index()], name)
        axes = self.integers(2, 3) if grouped else self.integers(2)
        return self.builder.root("Unsqueeze", [rows, axes], f"{name}.{'grouped' if grouped else 'heads'}")

    def window(self) -> tuple[str, str]:
        one = self.constant("position.one", np.array(1, np.int64))
        first = self.node("Add", [self.past(), one], "mask.first")
        return self.total(), self.node("Squeeze", [first, self.integers(0)], "mask.first.scalar")

    def heads(self, name: str, part: str, layer: Layer, value: str, order: list[int]) -> str:
        if part == "query":
            return super().heads(name, part, layer, value, order)
        # Not [..., D, positions], as keys are multiplied: the cache grows along its positions. ONNX Runtime makes the
        # last transpose part of the product.
        index, grouped = name.split(".")[1], layer.heads != layer.kv_heads
        rows = self.node("Transpose", [value], f"{name}.{part}.new", perm=[0, 2, 3, 1, 4] if grouped else [0, 2, 1, 3])
        if grouped:
            rows = self.node("Squeeze", [rows, self.integers(2)], f"{name}.{part}.new.rows")
        present = self.node("Concat", [f"past.{index}.{part}", rows], f"present.{index}.{part}", axis=2)
        if grouped:
            present = self.node("Unsqueeze", [present, self.integers(2)], f"{name}.{part}.all")
        if part == "value":
            return present
        axes = [0, 1, 2, 4, 3] if grouped else [0, 1, 3, 2]
        return self.node("Transpose", [present], f"{name}.key.heads", perm=axes)


def _cache(name: str, layer: Layer, positions: str) -> list[onnx.ValueInfoProto]:
    shape = ["batch", layer.kv_heads, positions, layer.head_size]
    return [
        helper.make_tensor_value_info(f"{name}.{part}", TensorProto.FLOAT, shape) for part in ("key", "value")
    ]
