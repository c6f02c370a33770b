"""Write the canonical Transformer as ONNX from its spec (not traced): the graph contract of `docs/architecture.md`.

Opset 21, IR version 10. With encodings, linear layers are written as QDQ (`w8a8`, `w4a8`) or as DynamicQuantizeLinear +
MatMulInteger (`…-dynamic`) and tables as int8 rows. Exits and gates are `If` nodes, so that what is skipped is not
computed. Equal inputs give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgesdk.encodings import Encodings
from edgesdk.transformer.graph_branches import leaving
from edgesdk.transformer.graph_parts import PartsWriter
from edgesdk.transformer.passes import apply_passes
from edgesdk.transformer.spec import Layer, PatchEmbedding, TokenEmbedding, TransformerSpec

OPSET, IR_VERSION = 21, 10
LEFT = "exit"


def write_graph(
    spec: TransformerSpec, weights: Mapping[str, NDArray[np.float32]], encodings: Encodings | None = None
) -> bytes:
    """The ONNX file as bytes; weights as in `spec.weight_shapes()`, quantized where `encodings` says so.

    Where inputs may leave early there is a second output `exit`, int64 [batch]: the index of the layer after which a
    row left. With several rows in a batch, all leave when all may, and a gated layer runs when one row wants it.
    """
    model = apply_passes(GraphWriter(spec, weights, encodings).model(), spec)
    return bytes(model.SerializeToString(deterministic=True))


def write_trace_graph(
    spec: TransformerSpec, weights: Mapping[str, NDArray[np.float32]], encodings: Encodings | None = None
) -> bytes:
    """The same model without leaving: behind its output come, in the order of the layers, the logits of every gate as
    `layers.I.gate` [B, 1] and of every exit, set or not, as `layers.I.exit` [B, C]. Gates decide as in the model."""
    return bytes(GraphWriter(spec, weights, encodings, trace=True).model().SerializeToString(deterministic=True))


class GraphWriter(PartsWriter):
    """Puts the parts together, with the branches of exits and gates; `trace` writes every exit instead of leaving."""

    def __init__(
        self, spec: TransformerSpec, weights: Mapping[str, NDArray[np.float32]], encodings: Encodings | None,
        trace: bool = False,
    ) -> None:
        super().__init__(spec, weights, encodings)
        self.trace = trace
        self.traced: list[onnx.ValueInfoProto] = []

    def model(self) -> onnx.ModelProto:
        hidden, mask = self.embedding()
        last, left = self.layers_from(0, hidden, mask, [])
        nodes = self.builder.scopes[0]
        outputs = [self.output_info(self.spec.output)]
        if last == nodes[-1].output[0]:
            nodes[-1].output[0] = self.spec.output
        else:
            self.node("Identity", [last], self.spec.output)
        if left is not None:
            nodes[-1].output[1] = LEFT
            outputs.append(self.left_info(LEFT))
        outputs += self.traced
        initializers = list(self.builder.initializers.values())
        graph = helper.make_graph(nodes, "edgesdk", self.graph_inputs(), outputs, initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="edgesdk")
        model.ir_version = IR_VERSION
        return model

    def layers_from(self, index: int, hidden: str, mask: str | None, history: list[str]) -> tuple[str, str | None]:
        """Everything from layer `index` on: (output, index of the layer it left after, None without exits). `history`
        holds the logits of the exits passed so far."""
        spec, exits = self.spec, () if self.trace else self.spec.exits()
        for number in range(index, len(spec.layers)):
            hidden = self.gated(f"layers.{number}", spec.layers[number], hidden, mask)
            if self.trace and spec.layers[number].exit is not None:
                logits = self.exit_logits(f"layers.{number}.exit", hidden, f"layers.{number}.exit")
                self.traced.append(self.logits_info(logits))
            if number in exits:
                return self.leave_or_go_on(number, hidden, mask, history)
        return self.head(hidden), self.left(len(spec.layers) - 1) if exits else None

    def leave_or_go_on(self, index: int, hidden: str, mask: str | None, history: list[str]) -> tuple[str, str]:
        name = f"layers.{index}.exit"
        exit_ = self.spec.layers[index].exit
        assert exit_ is not None and self.spec.classes is not None
        history = [*history, self.exit_logits(name, hidden, f"{name}.output")]
        condition = leaving(self.builder, name, exit_, history, self.spec.classes)
        self.builder.open()
        answer = self.node("Identity", [history[-1]], f"{name}.answer")
        yes = self.builder.close(f"{name}.leave", [self.logits_info(answer), self.left_info(self.left(index))])
        self.builder.open()
        value, left = self.layers_from(index + 1, hidden, mask, history)
        assert left is not None
        no = self.builder.close(f"{name}.go_on", [self.logits_info(value), self.left_info(left)])
        outputs = [f"{name}.result", f"{name}.result.left"]
        self.builder.branch(condition, outputs, yes, no)
        return outputs[0], outputs[1]

    def left(self, index: int) -> str:
        """The number `index` for every row, int64 [batch]."""
        first = self.graph_inputs()[0].name
        batch = self.builder.root("Shape", [first], "shape.batch", start=0, end=1)
        return self.node("Expand", [self.integers(index), batch], f"layers.{index}.left")

    def gated(self, name: str, layer: Layer, hidden: str, mask: str | None) -> str:
        """The layer, behind its gate where it has one."""
        if not layer.gate:
            return self.layer(name, layer, hidden, mask)
        result = f"{name}.gate" if self.trace else f"{name}.gate.output"
        wish = self.linears.linear(f"{name}.gate", self.pool(hidden, f"{name}.gate"), result)
        if self.trace:
            self.traced.append(helper.make_tensor_value_info(wish, TensorProto.FLOAT, ["batch", 1]))
        largest = self.node("ReduceMax", [wish], f"{name}.gate.largest", keepdims=0)
        condition = self.node("Greater", [largest, self.scalar("zero", 0.0)], f"{name}.gate.runs")
        rows = ["tokens", self.spec.hidden]
        self.builder.open()
        result = self.layer(name, layer, hidden, mask)
        yes = self.builder.close(f"{name}.run", [helper.make_tensor_value_info(result, TensorProto.FLOAT, rows)])
        self.builder.open()
        same = self.node("Identity", [hidden], f"{name}.skipped")
        no = self.builder.close(f"{name}.skip", [helper.make_tensor_value_info(same, TensorProto.FLOAT, rows)])
        self.builder.branch(condition, [f"{name}.gated"], yes, no)
        return f"{name}.gated"

    def exit_logits(self, name: str, hidden: str, result: str) -> str:
        if self.spec.final_norm:
            hidden = self.norm("norm", hidden, f"{name}.norm")
        return self.linears.linear(name, self.pool(hidden, name), result)

    # --- inputs and outputs ---------------------------------------------------------------------------------------

    def logits_info(self, name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", self.spec.classes])

    def left_info(self, name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.INT64, ["batch"])

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

    def output_info(self, name: str) -> onnx.ValueInfoProto:
        shapes: dict[str, list[Any]] = {
            "logits": ["batch", self.spec.classes],
            "embedding": ["batch", self.spec.hidden],
            "hidden_states": ["batch", "sequence", self.spec.hidden],
        }
        if isinstance(self.spec.embedding, TokenEmbedding):
            shapes["token_logits"] = ["batch", "sequence", self.spec.embedding.vocabulary]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[self.spec.output])
