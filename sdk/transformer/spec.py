"""The canonical Transformer as plain data: what `transformer.json` of a package holds.

A spec, and a dictionary of weights whose names and shapes follow from it (`weight_shapes`), describe a model wholly;
importers produce them, stages edit them, `module.py` runs them in torch and `graph.py` writes them as ONNX.

Shapes: B batch, S sequence, H hidden, h heads, D head size, F feed-forward width, V vocabulary, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from edgesdk.errors import PackageError
from edgesdk.transformer.spec_parts import (
    PARTS,
    Activation,
    Criterion,
    Embedding,
    Exit,
    FeatureEmbedding,
    Layer,
    Norm,
    NormKind,
    PatchEmbedding,
    PoolerActivation,
    Pooling,
    Positions,
    TokenEmbedding,
)

__all__ = [
    "PARTS", "Activation", "Criterion", "Embedding", "Exit", "FeatureEmbedding", "Layer", "Norm", "NormKind",
    "PatchEmbedding", "PoolerActivation", "Pooling", "Positions", "TokenEmbedding", "TransformerSpec", "is_dynamic",
]


@dataclass(frozen=True)
class TransformerSpec:
    """A whole model: embedding → layers → (final norm) → pooling → (pooler: linear + activation) →
    (classifier).

    Attributes:
        norm_kind: `layer` (LayerNorm), or `rms`: x / √(mean x² + ε) · weight, without a bias (Zhang and Sennrich 2019).
        activation: `swiglu` is SiLU(ffn.glu x) · (ffn.up x), with one more linear layer (Shazeer 2020).
        pooler_activation: of the pooler (ReLU in DistilBERT).
        causal: a position sees itself and what came before it (decoders).
        lm_head: the output is `token_logits` [B, S, V] by the token table (tied, no bias).
        sparse: name of a linear layer → pattern of its structural zeros: `unstructured`, `N:M` along the inputs, or
            `RxC` (blocks of R outputs by C inputs). Training keeps them zero; graphs store the other weights only.
        passes: graph passes of `optimize`, in the order in which they are applied when the graph is written.
    """

    embedding: Embedding
    hidden: int
    layers: tuple[Layer, ...]
    norm: Norm
    norm_epsilon: float
    activation: Activation
    pooling: Pooling
    final_norm: bool = False
    pooler: bool = False
    classes: int | None = None
    causal: bool = False
    lm_head: bool = False
    sparse: Mapping[str, str] = field(default_factory=dict)
    passes: tuple[str, ...] = ()
    pooler_activation: PoolerActivation = "tanh"
    norm_kind: NormKind = "layer"

    def __post_init__(self) -> None:
        from edgesdk.transformer.spec_check import problems

        found = list(problems(self))
        if found:
            raise PackageError("transformer: " + "; ".join(found))

    @property
    def max_length(self) -> int:
        """Longest sequence S, the class token included."""
        if isinstance(self.embedding, PatchEmbedding):
            return self.embedding.patches + int(self.embedding.cls) + int(self.embedding.distillation)
        return self.embedding.max_length

    @property
    def output(self) -> str:
        """Name of the output: `logits` [B, C], `embedding` [B, H], `hidden_states` [B, S, H] or `token_logits`
        [B, S, V]."""
        if self.classes is not None:
            return "logits"
        if self.lm_head:
            return "token_logits"
        return "hidden_states" if self.pooling == "none" else "embedding"

    @property
    def embedding_width(self) -> int:
        """Size of a row of the position table: E of an embedding that is projected as a whole, else H."""
        embedding = self.embedding
        if isinstance(embedding, TokenEmbedding) and embedding.width is not None and embedding.project == "all":
            return embedding.width
        return self.hidden

    @property
    def rope_base(self) -> float | None:
        """Base of the rotary positions; None where positions are a table or come with the input."""
        embedding = self.embedding
        if isinstance(embedding, TokenEmbedding) and embedding.positions == "rope":
            return embedding.rope_base
        return None

    def stored(self, name: str) -> str:
        """Under which name a weight or linear layer is stored: `layers.3.ffn.up` is `layers.0.ffn.up` where layer 3
        shares the weights of layer 0."""
        head, _, rest = name.partition(".")
        index, _, part = rest.partition(".")
        if head != "layers" or part.partition(".")[0] in ("gate", "exit"):
            return name
        share = self.layers[int(index)].share
        return name if share is None else f"layers.{share}.{part}"

    def exits(self) -> tuple[int, ...]:
        """Indices of the layers after which inputs may leave: those whose exit has a threshold."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.exit and layer.exit.threshold is not None)

    def linears(self) -> Iterator[tuple[str, int, int]]:
        """Every linear layer that can run as (name, inputs K, outputs N), in the order of execution. A layer that
        shares weights has its own names here; `stored` says where the weights are."""
        if isinstance(self.embedding, PatchEmbedding):
            yield "embedding.patches", self.embedding.channels * self.embedding.patch**2, self.hidden
        if isinstance(self.embedding, TokenEmbedding) and self.embedding.width is not None:
            yield "embedding.projection", self.embedding.width, self.hidden
        for index, layer in enumerate(self.layers):
            yield from self._linears_of(f"layers.{index}", layer)
        if self.pooler:
            yield "pooler", self.hidden, self.hidden
        if self.classes is not None:
            yield "classifier", self.hidden, self.classes

    def _linears_of(self, prefix: str, layer: Layer) -> Iterator[tuple[str, int, int]]:
        width, kv_width = layer.heads * layer.head_size, layer.kv_heads * layer.head_size
        sizes = (
            (self.hidden, width), (self.hidden, kv_width), (self.hidden, kv_width), (width, self.hidden),
            (self.hidden, layer.ffn), (layer.ffn, self.hidden),
        )
        if layer.gate:
            yield f"{prefix}.gate", self.hidden, 1
        for part, (inputs, outputs) in zip(PARTS, sizes, strict=True):
            rank = layer.ranks.get(part)
            if rank is None:
                yield f"{prefix}.{part}", inputs, outputs
            else:
                yield f"{prefix}.{part}.v", inputs, rank
                yield f"{prefix}.{part}.u", rank, outputs
            if part == "attention.output" and self.activation == "swiglu":
                yield f"{prefix}.ffn.glu", self.hidden, layer.ffn
        if layer.exit is not None and self.classes is not None:
            yield f"{prefix}.exit", self.hidden, self.classes

    def norms(self) -> Iterator[str]:
        """Names of the stored norms, each with `.weight` and (LayerNorm) `.bias` [H] (`embedding.norm`:
        [embedding_width])."""
        if self.embedding.norm:
            yield "embedding.norm"
        for index, layer in enumerate(self.layers):
            if layer.share is None:
                yield f"layers.{index}.attention.norm"
                yield f"layers.{index}.ffn.norm"
        if self.final_norm:
            yield "norm"

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every weight (float32), each stored once. Linear weights are [N, K] as in torch and TFLite;
        NAME.v of a low-rank pair has no bias."""
        shapes: dict[str, tuple[int, ...]] = {}
        if isinstance(self.embedding, TokenEmbedding):
            shapes["embedding.tokens.weight"] = (self.embedding.vocabulary, self.embedding.width or self.hidden)
        if not isinstance(self.embedding, FeatureEmbedding) and self.rope_base is None:
            shapes["embedding.positions.weight"] = (self.max_length, self.embedding_width)
        if isinstance(self.embedding, PatchEmbedding):
            shapes |= {"embedding.cls": (self.hidden,)} if self.embedding.cls else {}
            shapes |= {"embedding.distillation": (self.hidden,)} if self.embedding.distillation else {}
        for name, inputs, outputs in self.linears():
            if self.stored(name) != name:
                continue
            shapes[f"{name}.weight"] = (outputs, inputs)
            if not name.endswith(".v"):
                shapes[f"{name}.bias"] = (outputs,)
        for name in self.norms():
            width = self.embedding_width if name == "embedding.norm" else self.hidden
            shapes[f"{name}.weight"] = (width,)
            if self.norm_kind == "layer":
                shapes[f"{name}.bias"] = (width,)
        return shapes

    def macs(self, sequence: int | None = None) -> int:
        """Multiply-accumulates of one inference at `sequence` tokens (default: the longest) in the worst case: every
        layer, gate and exit that a graph holds runs; attention included."""
        tokens = sequence or self.max_length
        total = self.embedding_macs(tokens) + sum(self.layer_macs(index, tokens) for index in range(len(self.layers)))
        total += sum(self.gate_macs(index) + self.exit_macs(index) for index in range(len(self.layers)))
        return total + self.head_macs(tokens)

    def embedding_macs(self, tokens: int) -> int:
        """Multiply-accumulates of the patches or of the projection of token rows."""
        embedding = self.embedding
        if isinstance(embedding, PatchEmbedding):
            return embedding.patches * embedding.channels * embedding.patch**2 * self.hidden
        if isinstance(embedding, TokenEmbedding) and embedding.width is not None:
            return tokens * embedding.width * self.hidden
        return 0

    def layer_macs(self, index: int, tokens: int) -> int:
        """Multiply-accumulates of layer `index` where it runs, without its gate and exit."""
        layer, prefix = dataclasses.replace(self.layers[index], gate=False, exit=None), f"layers.{index}"
        linear = sum(inputs * outputs for _, inputs, outputs in self._linears_of(prefix, layer))
        return tokens * linear + 2 * tokens * tokens * layer.heads * layer.head_size

    def gate_macs(self, index: int) -> int:
        """Multiply-accumulates of the gate of layer `index`; 0 where it has none."""
        return self.hidden if self.layers[index].gate else 0

    def exit_macs(self, index: int) -> int:
        """Multiply-accumulates of the exit of layer `index`; 0 where no graph holds one."""
        return self.hidden * (self.classes or 0) if index in self.exits() else 0

    def head_macs(self, tokens: int) -> int:
        """Multiply-accumulates behind the last layer: pooler, classifier, `lm_head`."""
        total = self.hidden * self.hidden if self.pooler else 0
        total += self.hidden * (self.classes or 0)
        if self.lm_head and isinstance(self.embedding, TokenEmbedding):
            total += tokens * self.hidden * self.embedding.vocabulary
        return total

    def parameters(self) -> int:
        """Number of stored weights, embeddings included."""
        total = 0
        for shape in self.weight_shapes().values():
            size = 1
            for extent in shape:
                size *= extent
            total += size
        return total


def is_dynamic(spec: TransformerSpec) -> bool:
    """Whether the work depends on the input by more than its length: a graph of this spec has exits or gates."""
    return bool(spec.exits()) or any(layer.gate for layer in spec.layers)
