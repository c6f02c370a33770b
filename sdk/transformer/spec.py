"""The canonical Transformer as plain data: what `transformer.json` of a package holds.

A spec, and a dictionary of weights whose names and shapes follow from it (`weight_shapes`), describe a model wholly;
importers produce them, stages edit them, `module.py` runs them in torch and `graph.py` writes them as ONNX.

Shapes: B batch, S sequence, H hidden, h heads, D head size, F feed-forward width, V vocabulary, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgesdk.errors import EdgeSDKError, PackageError
from edgesdk.files import check_document

FORMAT, VERSION = "edgesdk.transformer", 1

Norm = Literal["pre", "post"]
Activation = Literal["gelu", "gelu_tanh", "relu"]
Pooling = Literal["cls", "mean", "none"]


@dataclass(frozen=True)
class TokenEmbedding:
    """Token ids [B, S] → [B, S, H] by table [V, H] plus learned positions [max_length, H] (token type 0 folded in).
    Inputs: `input_ids` int64 [B, S], `attention_mask` int64 [B, S] (1 = token, 0 = padding at the end)."""

    vocabulary: int
    max_length: int
    norm: bool = True
    kind: Literal["tokens"] = "tokens"


@dataclass(frozen=True)
class PatchEmbedding:
    """Pixels [B, channels, size, size] → [B, S, H]: square patches by one linear layer, learned positions, and a
    class token in front where `cls`. Input: `pixel_values` float32 [B, channels, size, size]."""

    channels: int
    size: int
    patch: int
    cls: bool = True
    norm: bool = False
    kind: Literal["patches"] = "patches"

    @property
    def patches(self) -> int:
        return (self.size // self.patch) ** 2


@dataclass(frozen=True)
class FeatureEmbedding:
    """Float vectors [B, S, H] go straight into the first layer (`torch.nn.TransformerEncoder` by itself).
    Input: `features` float32 [B, S, H]."""

    max_length: int
    norm: bool = False
    kind: Literal["features"] = "features"


Embedding = TokenEmbedding | PatchEmbedding | FeatureEmbedding


@dataclass(frozen=True)
class Layer:
    """One encoder layer: `heads` query heads of `head_size`, `kv_heads` key/value heads, feed-forward width `ffn`.
    Layers may differ from one another."""

    heads: int
    kv_heads: int
    head_size: int
    ffn: int


@dataclass(frozen=True)
class TransformerSpec:
    """A whole encoder: embedding → layers → (final norm) → pooling → (pooler: linear + tanh) → (classifier)."""

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

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise PackageError("transformer: " + "; ".join(problems))

    @property
    def max_length(self) -> int:
        """Longest sequence S, the class token included."""
        if isinstance(self.embedding, PatchEmbedding):
            return self.embedding.patches + int(self.embedding.cls)
        return self.embedding.max_length

    @property
    def output(self) -> str:
        """Name of the output: `logits` [B, C], `embedding` [B, H] or `hidden_states` [B, S, H]."""
        if self.classes is not None:
            return "logits"
        return "hidden_states" if self.pooling == "none" else "embedding"

    def linears(self) -> Iterator[tuple[str, int, int]]:
        """Every linear layer as (name, inputs K, outputs N), in the order of execution."""
        if isinstance(self.embedding, PatchEmbedding):
            yield "embedding.patches", self.embedding.channels * self.embedding.patch**2, self.hidden
        for index, layer in enumerate(self.layers):
            prefix, width = f"layers.{index}", layer.heads * layer.head_size
            yield f"{prefix}.attention.query", self.hidden, width
            yield f"{prefix}.attention.key", self.hidden, layer.kv_heads * layer.head_size
            yield f"{prefix}.attention.value", self.hidden, layer.kv_heads * layer.head_size
            yield f"{prefix}.attention.output", width, self.hidden
            yield f"{prefix}.ffn.up", self.hidden, layer.ffn
            yield f"{prefix}.ffn.down", layer.ffn, self.hidden
        if self.pooler:
            yield "pooler", self.hidden, self.hidden
        if self.classes is not None:
            yield "classifier", self.hidden, self.classes

    def norms(self) -> Iterator[str]:
        """Names of the LayerNorms, each with `.weight` and `.bias` [H]."""
        if self.embedding.norm:
            yield "embedding.norm"
        for index in range(len(self.layers)):
            yield f"layers.{index}.attention.norm"
            yield f"layers.{index}.ffn.norm"
        if self.final_norm:
            yield "norm"

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every weight (float32). Linear weights are [N, K] as in torch and TFLite."""
        shapes: dict[str, tuple[int, ...]] = {}
        if isinstance(self.embedding, TokenEmbedding):
            shapes["embedding.tokens.weight"] = (self.embedding.vocabulary, self.hidden)
        if not isinstance(self.embedding, FeatureEmbedding):
            shapes["embedding.positions.weight"] = (self.max_length, self.hidden)
        if isinstance(self.embedding, PatchEmbedding) and self.embedding.cls:
            shapes["embedding.cls"] = (self.hidden,)
        for name, inputs, outputs in self.linears():
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)
        for name in self.norms():
            shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (self.hidden,)
        return shapes

    def macs(self, sequence: int | None = None) -> int:
        """Multiply-accumulates of one inference at `sequence` tokens (default: the longest), attention included."""
        tokens = sequence or self.max_length
        total = 0
        for name, inputs, outputs in self.linears():
            rows = 1 if name in ("pooler", "classifier") else tokens
            if name == "embedding.patches" and isinstance(self.embedding, PatchEmbedding):
                rows = self.embedding.patches
            total += rows * inputs * outputs
        return total + sum(2 * tokens * tokens * layer.heads * layer.head_size for layer in self.layers)

    def parameters(self) -> int:
        """Number of weights, embeddings included."""
        total = 0
        for shape in self.weight_shapes().values():
            size = 1
            for extent in shape:
                size *= extent
            total += size
        return total


def to_json(spec: TransformerSpec) -> dict[str, Any]:
    """The document `transformer.json`."""
    return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(spec)}


def from_json(document: Any, where: str = "transformer.json") -> TransformerSpec:
    """Read the document; every field is checked.

    Raises:
        PackageError: unknown format, version, field or kind, a wrong type, or a size that makes no model.
    """
    document = check_document(document, where, FORMAT, VERSION, PackageError)
    fields = {key: value for key, value in document.items() if key not in ("format", "version")}
    try:
        embedding = dict(fields.pop("embedding"))
        kinds: dict[str, type[Any]] = {
            "tokens": TokenEmbedding, "patches": PatchEmbedding, "features": FeatureEmbedding,
        }
        layers = tuple(Layer(**_integers(layer)) for layer in fields.pop("layers"))
        kind = kinds[embedding["kind"]]
        return TransformerSpec(embedding=kind(**_integers(embedding)), layers=layers, **fields)
    except EdgeSDKError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise PackageError(f"{where}: malformed: {problem!r}") from problem


def _integers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse sizes that are not integers (True is not 1 here), so that arithmetic on them is safe."""
    for key, value in values.items():
        allowed: type = str if key == "kind" else bool if key in ("cls", "norm") else int
        if type(value) is not allowed:
            raise ValueError(f"{key} is {value!r}, expected {allowed.__name__}")
    return dict(values)


def _problems(spec: TransformerSpec) -> Iterator[str]:
    limit = 1 << 24
    sizes = {"hidden": spec.hidden}
    sizes |= {
        f"embedding.{field.name}": value
        for field in dataclasses.fields(spec.embedding)
        if type(value := getattr(spec.embedding, field.name)) is int
    }
    for index, layer in enumerate(spec.layers):
        sizes |= {f"layers.{index}.{key}": value for key, value in dataclasses.asdict(layer).items()}
        if isinstance(layer.heads, int) and isinstance(layer.kv_heads, int) and layer.kv_heads > 0:
            if layer.heads % layer.kv_heads:
                yield f"layers.{index}: {layer.heads} heads cannot share {layer.kv_heads} key/value heads"
    if spec.classes is not None:
        sizes["classes"] = spec.classes
    for name, size in sizes.items():
        if type(size) is not int or not 0 < size <= limit:
            yield f"{name} is {size!r}, expected an integer from 1 to {limit}"
    if isinstance(spec.embedding, PatchEmbedding):
        size, patch = spec.embedding.size, spec.embedding.patch
        if type(patch) is int and type(size) is int and patch > 0 and size % patch:
            yield f"patch {patch} does not divide size {size}"
    if not spec.layers or len(spec.layers) > 1000:
        yield f"{len(spec.layers)} layers"
    if not isinstance(spec.norm_epsilon, float) or not 0 <= spec.norm_epsilon < 1:
        yield f"norm_epsilon is {spec.norm_epsilon!r}"
    choices = {"norm": ("pre", "post"), "activation": ("gelu", "gelu_tanh", "relu"), "pooling": ("cls", "mean", "none")}
    for name, allowed in choices.items():
        if getattr(spec, name) not in allowed:
            yield f"{name} is {getattr(spec, name)!r}, expected one of {allowed}"
    for name in ("final_norm", "pooler"):
        if type(getattr(spec, name)) is not bool:
            yield f"{name} is {getattr(spec, name)!r}, expected true or false"
    if spec.pooling == "none" and (spec.pooler or spec.classes is not None):
        yield "a pooler or a classifier needs pooling"
