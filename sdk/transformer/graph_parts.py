"""The parts of a model as ONNX nodes: embedding, layers, pooling, head (docs/architecture.md, the graph contract)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from edgesdk.encodings import Encodings
from edgesdk.transformer.graph_builder import Builder
from edgesdk.transformer.graph_linear import LinearWriter
from edgesdk.transformer.rope import rope_tables
from edgesdk.transformer.spec import FeatureEmbedding, Layer, PatchEmbedding, TokenEmbedding, TransformerSpec

MASK = -100.0


class PartsWriter:
    """Writes one part after the other into the innermost scope of its builder; hidden states are [tokens, H]."""

    def __init__(
        self, spec: TransformerSpec, weights: Mapping[str, NDArray[np.float32]], encodings: Encodings | None
    ) -> None:
        self.spec, self.weights = spec, weights
        self.builder = Builder()
        self.linears = LinearWriter(self.builder, spec, weights, encodings)
        self.node, self.constant, self.integers = self.builder.node, self.builder.constant, self.builder.integers
        self.scalar = self.builder.scalar

    def shape(self, *tail: int) -> str:
        """Shape [batch, sequence, *tail] as a tensor; the sequence is constant where the spec fixes it."""
        if isinstance(self.spec.embedding, PatchEmbedding):
            return self.integers(-1, self.spec.max_length, *tail)
        name = "shape.tokens." + "_".join(map(str, tail))
        return self.builder.root("Concat", ["shape.tokens", self.integers(*tail)], name, axis=0)

    def norm(self, name: str, value: str, result: str) -> str:
        stored = self.spec.stored(name)
        if self.spec.norm_kind == "rms":
            return self.rms_norm(stored, value, result)
        names = (f"{stored}.weight", f"{stored}.bias")
        inputs = [value, *(self.constant(part, self.weights[part]) for part in names)]
        return self.node("LayerNormalization", inputs, result, axis=-1, epsilon=self.spec.norm_epsilon)

    def rms_norm(self, stored: str, value: str, result: str) -> str:
        """x / √(mean x² + ε) · weight by primitive operators: opset 21 has no RMSNormalization."""
        square = self.node("Mul", [value, value], f"{result}.square")
        mean = self.node("ReduceMean", [square, self.integers(-1)], f"{result}.mean", keepdims=1)
        epsilon = self.scalar("norm.epsilon", self.spec.norm_epsilon)
        root = self.node("Sqrt", [self.node("Add", [mean, epsilon], f"{result}.shifted")], f"{result}.root")
        normal = self.node("Div", [value, root], f"{result}.normal")
        weight = self.constant(f"{stored}.weight", self.weights[f"{stored}.weight"])
        return self.node("Mul", [normal, weight], result)

    def embedding(self) -> tuple[str, str | None]:
        """Hidden states [tokens, H] and what is added to the scores (None where every position sees every other)."""
        spec, embedding, mask = self.spec, self.spec.embedding, None
        if isinstance(embedding, TokenEmbedding):
            self.node("Shape", ["input_ids"], "shape.tokens")
            self.node("Shape", ["input_ids"], "shape.sequence", start=1, end=2)
            hidden = self.tokens(embedding)
            mask = self.node("Cast", ["attention_mask"], "mask.float", to=TensorProto.FLOAT)
            mask = self.node("Sub", [self.scalar("one", 1.0), mask], "mask.padding")
            mask = self.node("Mul", [mask, self.scalar("mask.value", MASK)], "mask.additive")
            mask = self.node("Unsqueeze", [mask, self.integers(1, 2)], "mask")
            return hidden, self.causal(mask) if spec.causal else mask
        if isinstance(embedding, PatchEmbedding):
            hidden = self.patches(embedding)
        else:
            assert isinstance(embedding, FeatureEmbedding)
            self.node("Shape", ["features"], "shape.tokens", start=0, end=2)
            self.node("Shape", ["features"], "shape.sequence", start=1, end=2)
            hidden = "features"
        hidden = self.node("Reshape", [hidden, self.integers(-1, spec.hidden)], "embedding.output")
        hidden = self.norm("embedding.norm", hidden, "embedding.norm.output") if embedding.norm else hidden
        return hidden, self.causal(None) if spec.causal else None

    def tokens(self, embedding: TokenEmbedding) -> str:
        """Rows of the table and positions, [tokens, H], projected where the table has a width of its own."""
        width, early = embedding.width or self.spec.hidden, embedding.width and embedding.project == "tokens"
        rows = self.linears.rows(
            "embedding.tokens.weight", lambda table, out: self.node("Gather", [table, "input_ids"], out)
        )
        if early:
            rows = self.node("Reshape", [rows, self.integers(-1, width)], "embedding.tokens.flat")
            rows = self.linears.linear("embedding.projection", rows, "embedding.projection.output")
            rows = self.node("Reshape", [rows, self.shape(self.spec.hidden)], "embedding.tokens.projected")
        learned = embedding.positions == "learned"
        hidden = self.node("Add", [rows, self.positions()], "embedding.sum") if learned else rows
        hidden = self.node("Reshape", [hidden, self.integers(-1, self.spec.embedding_width)], "embedding.output")
        if embedding.norm:
            hidden = self.norm("embedding.norm", hidden, "embedding.norm.output")
        if embedding.width is None or early:
            return hidden
        return self.linears.linear("embedding.projection", hidden, "embedding.projection.output")

    def positions(self) -> str:
        """Rows of the position table, [sequence, width]."""
        start, axis = self.integers(0), self.integers(0)
        return self.linears.rows(
            "embedding.positions.weight",
            lambda table, out: self.node("Slice", [table, start, "shape.sequence", axis], out),
        )

    def turned(self, name: str, value: str, size: int, grouped: bool) -> str:
        """Query or key, split into heads [batch, sequence, heads (or kv_heads, group), D], turned by its positions."""
        assert self.spec.rope_base is not None
        tables = rope_tables(self.spec.max_length, size, self.spec.rope_base)
        cosine, sine = (
            self.rope_rows(self.constant(f"rope.{size}.{part}", table), f"rope.{size}.{part}.rows", grouped)
            for part, table in zip(("cosine", "sine"), tables, strict=True)
        )
        last, middle = self.integers(-1), self.integers(size // 2)
        first = self.node("Slice", [value, self.integers(0), middle, last], f"{name}.first")
        second = self.node("Slice", [value, middle, self.integers(size), last], f"{name}.second")
        other = self.node("Concat", [self.node("Neg", [second], f"{name}.negated"), first], f"{name}.other", axis=-1)
        straight = self.node("Mul", [value, cosine], f"{name}.straight")
        return self.node("Add", [straight, self.node("Mul", [other, sine], f"{name}.across")], f"{name}.turned")

    def rope_rows(self, table: str, name: str, grouped: bool) -> str:
        """Rows of a rotary table for the tokens, with axes of 1 for the heads: [sequence, 1, (1,) D]."""
        rows = self.builder.root("Slice", [table, self.integers(0), "shape.sequence", self.integers(0)], name)
        axes = self.integers(1, 2) if grouped else self.integers(1)
        return self.builder.root("Unsqueeze", [rows, axes], f"{name}.{'grouped' if grouped else 'heads'}")

    def causal(self, mask: str | None) -> str:
        """The mask [batch, 1, sequence, sequence] under which a position sees itself and what came before it, or
        [sequence, sequence] where there is no padding."""
        keys, first_later = self.window()
        square = self.node("Concat", ["shape.sequence", keys], "shape.square", axis=0)
        full = self.node("Expand", [self.scalar("mask.value", MASK), square], "mask.full")
        later = self.node("Trilu", [full, first_later], "mask.later", upper=1)
        if mask is None:
            return self.node("Unsqueeze", [later, self.integers(0, 1)], "mask.causal")
        both = self.node("Add", [mask, later], "mask.both")
        return self.node("Max", [both, self.scalar("mask.value", MASK)], "mask.causal")

    def window(self) -> tuple[str, str]:
        """(number of keys [1], index of the first key that the first query may not see, a scalar)."""
        return "shape.sequence", self.constant("mask.diagonal", np.array(1, np.int64))

    def patches(self, embedding: PatchEmbedding) -> str:
        side, patch = embedding.size // embedding.patch, embedding.patch
        width = embedding.channels * patch * patch
        split = self.integers(-1, embedding.channels, side, patch, side, patch)
        value = self.node("Reshape", ["pixel_values", split], "embedding.blocks")
        value = self.node("Transpose", [value], "embedding.blocks.transposed", perm=[0, 2, 4, 1, 3, 5])
        value = self.node("Reshape", [value, self.integers(-1, width)], "embedding.blocks.rows")
        value = self.linears.linear("embedding.patches", value, "embedding.patches.output")
        rows = self.integers(-1, side * side, self.spec.hidden)
        value = self.node("Reshape", [value, rows], "embedding.patches.rows")
        first = ["embedding.cls"] if embedding.cls else []
        first += ["embedding.distillation"] if embedding.distillation else []
        if first:
            self.builder.root("Shape", ["pixel_values"], "shape.batch", start=0, end=1)
            self.node("Concat", ["shape.batch", self.integers(1, self.spec.hidden)], "shape.cls", axis=0)
            for name in first:
                self.node("Expand", [self.constant(name, self.weights[name]), "shape.cls"], f"{name}.rows")
            value = self.node("Concat", [*(f"{name}.rows" for name in first), value], "embedding.cls.concat", axis=1)
        positions = self.linears.rows("embedding.positions.weight", lambda table, out: table)
        return self.node("Add", [value, positions], "embedding.sum")

    def layer(self, name: str, layer: Layer, hidden: str, mask: str | None) -> str:
        pre = self.spec.norm == "pre"
        source = self.norm(f"{name}.attention.norm", hidden, f"{name}.attention.normed") if pre else hidden
        update = self.attention(f"{name}.attention", layer, source, mask)
        hidden = self.node("Add", [hidden, update], f"{name}.attention.residual")
        if not pre:
            hidden = self.norm(f"{name}.attention.norm", hidden, f"{name}.attention.normed")
        source = self.norm(f"{name}.ffn.norm", hidden, f"{name}.ffn.normed") if pre else hidden
        update = self.feed_forward(f"{name}.ffn", layer, source)
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
            rank = layer.ranks.get(f"attention.{part}")
            value = self.linears.part(f"{name}.{part}", rank, source, f"{name}.{part}.output")
            value = self.node("Reshape", [value, split[part]], f"{name}.{part}.split")
            if self.spec.rope_base is not None and part != "value":
                value = self.turned(f"{name}.{part}", value, layer.head_size, not plain)
            heads[part] = self.heads(name, part, layer, value, order[part])
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
        rank = layer.ranks.get("attention.output")
        return self.linears.part(f"{name}.output", rank, context, f"{name}.output.output")

    def heads(self, name: str, part: str, layer: Layer, value: str, order: list[int]) -> str:
        """Heads in front of positions: query and value [..., positions, D], key [..., D, positions]."""
        return self.node("Transpose", [value], f"{name}.{part}.heads", perm=order)

    def feed_forward(self, name: str, layer: Layer, source: str) -> str:
        up = self.linears.part(f"{name}.up", layer.ranks.get("ffn.up"), source, f"{name}.up.output")
        if self.spec.activation == "swiglu":
            gate = self.linears.linear(f"{name}.glu", source, f"{name}.glu.output")
            gate = self.node("Mul", [gate, self.node("Sigmoid", [gate], f"{name}.glu.sigmoid")], f"{name}.glu.silu")
            active = self.node("Mul", [gate, up], f"{name}.active")
        elif self.spec.activation == "relu":
            active = self.node("Relu", [up], f"{name}.active")
        else:
            approximate = "tanh" if self.spec.activation == "gelu_tanh" else "none"
            active = self.node("Gelu", [up], f"{name}.active", approximate=approximate)
        return self.linears.part(f"{name}.down", layer.ranks.get("ffn.down"), active, f"{name}.down.output")

    def head(self, hidden: str) -> str:
        """What comes behind the last layer."""
        spec = self.spec
        if spec.final_norm:
            hidden = self.norm("norm", hidden, "norm.output")
        if spec.lm_head:
            return self.token_logits(hidden)
        if spec.pooling == "none":
            return self.node("Reshape", [hidden, self.shape(spec.hidden)], "pooling.sequence")
        value = self.pool(hidden, "pooling")
        if spec.pooler:
            value = self.linears.linear("pooler", value, "pooler.output")
            active = "Tanh" if spec.pooler_activation == "tanh" else "Relu"
            value = self.node(active, [value], f"pooler.{spec.pooler_activation}")
        if spec.classes is None:
            return value
        return self.linears.linear("classifier", value, "classifier.output")

    def token_logits(self, hidden: str) -> str:
        """Products with the rows of the token table, [batch, sequence, V]."""
        assert isinstance(self.spec.embedding, TokenEmbedding)
        encodings, table = self.linears.encodings, "embedding.tokens"
        encoding = encodings.weights.get(f"{table}.weight") if encodings else None
        rows = f"{table}.weight" if encoding is None else self.linears.dequantized("lm_head", table, encoding)
        value = self.node("Gemm", [hidden, rows], "lm_head.output", transB=1)
        return self.node("Reshape", [value, self.shape(self.spec.embedding.vocabulary)], "lm_head.logits")

    def pool(self, hidden: str, name: str) -> str:
        """[tokens, H] → [batch, H]: the first row, or the mean of the rows that are not padding (also where the model
        itself does not pool: gates need one row)."""
        hidden = self.node("Reshape", [hidden, self.shape(self.spec.hidden)], f"{name}.sequence")
        if self.spec.pooling == "cls":
            first = self.constant("pooling.first", np.array(0, np.int64))
            return self.node("Gather", [hidden, first], f"{name}.input", axis=1)
        if not isinstance(self.spec.embedding, TokenEmbedding):
            return self.node("ReduceMean", [hidden, self.integers(1)], f"{name}.input", keepdims=0)
        root = self.builder.root
        weight = root("Unsqueeze", ["mask.float", self.integers(2)], "pooling.weight")
        count = root("ReduceSum", ["pooling.weight", self.integers(1)], "pooling.count", keepdims=0)
        total = self.node("Mul", [hidden, weight], f"{name}.weighted")
        total = self.node("ReduceSum", [total, self.integers(1)], f"{name}.total", keepdims=0)
        return self.node("Div", [total, count], f"{name}.input")
