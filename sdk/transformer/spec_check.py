"""What must hold inside a `TransformerSpec`, said in words."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from edgesdk.transformer.spec import PARTS, Exit, Layer, PatchEmbedding, TokenEmbedding, TransformerSpec

LARGEST = 1 << 24
MOST_EXITS = 24
"""An exit is an `If` around all that comes behind it. protobuf reads 100 messages inside one another: 30 exits with a
gated layer in the innermost, measured. Some room is left."""
MOST_PASSES = 20
PATTERN = re.compile(r"unstructured|[1-9][0-9]{0,2}:[1-9][0-9]{0,2}|[1-9][0-9]{0,2}x[1-9][0-9]{0,2}")
PASS = re.compile(r"[a-z][a-z0-9_]{0,39}")
CHOICES = {
    "norm": ("pre", "post"),
    "norm_kind": ("layer", "rms"),
    "activation": ("gelu", "gelu_tanh", "relu", "swiglu"),
    "pooling": ("cls", "mean", "none"),
    "pooler_activation": ("tanh", "relu"),
}
CRITERIA = ("confidence", "entropy", "patience")


def problems(spec: TransformerSpec) -> Iterator[str]:
    """Everything that makes `spec` no model, field by field; nothing where it is one."""
    yield from _sizes(spec)
    yield from _choices(spec)
    yield from _embedding(spec)
    if not spec.layers or len(spec.layers) > 1000:
        yield f"{len(spec.layers)} layers"
    for index, layer in enumerate(spec.layers):
        for problem in _layer(layer, index, spec):
            yield f"layers.{index}: {problem}"
    if (exits := sum(layer.exit is not None for layer in spec.layers)) > MOST_EXITS:
        yield f"{exits} exits, at most {MOST_EXITS}"
    if spec.pooling == "none" and (spec.pooler or spec.classes is not None):
        yield "a pooler or a classifier needs pooling"
    if spec.pooler_activation != "tanh" and not spec.pooler:
        yield "pooler_activation without a pooler"
    if spec.lm_head and (spec.classes is not None or spec.pooling != "none"):
        yield "a model with lm_head has no pooling and no classes"
    if spec.lm_head and not (isinstance(spec.embedding, TokenEmbedding) and spec.embedding.width is None):
        yield "lm_head needs a token table of the hidden size"
    yield from _sparse(spec)
    yield from _passes(spec.passes)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST


def _sizes(spec: TransformerSpec) -> Iterator[str]:
    sizes: dict[str, Any] = {"hidden": spec.hidden}
    if spec.classes is not None:
        sizes["classes"] = spec.classes
    for entry in dataclasses.fields(spec.embedding):
        value = getattr(spec.embedding, entry.name)
        if type(value) is int or (entry.name == "width" and value is not None):
            sizes[f"embedding.{entry.name}"] = value
    for index, layer in enumerate(spec.layers):
        sizes |= {f"layers.{index}.{key}": getattr(layer, key) for key in ("heads", "kv_heads", "head_size", "ffn")}
    for name, size in sizes.items():
        if not _is_size(size):
            yield f"{name} is {size!r}, expected an integer from 1 to {LARGEST}"


def _choices(spec: TransformerSpec) -> Iterator[str]:
    if not isinstance(spec.norm_epsilon, float) or not 0 <= spec.norm_epsilon < 1:
        yield f"norm_epsilon is {spec.norm_epsilon!r}"
    for name, allowed in CHOICES.items():
        if getattr(spec, name) not in allowed:
            yield f"{name} is {getattr(spec, name)!r}, expected one of {allowed}"
    for name in ("final_norm", "pooler", "causal", "lm_head"):
        if type(getattr(spec, name)) is not bool:
            yield f"{name} is {getattr(spec, name)!r}, expected true or false"


def _embedding(spec: TransformerSpec) -> Iterator[str]:
    embedding = spec.embedding
    if isinstance(embedding, PatchEmbedding):
        size, patch = embedding.size, embedding.patch
        if type(patch) is int and type(size) is int and patch > 0 and size % patch:
            yield f"patch {patch} does not divide size {size}"
        if embedding.distillation and not embedding.cls:
            yield "a distillation token needs a class token"
    if isinstance(embedding, TokenEmbedding) and embedding.project not in ("tokens", "all"):
        yield f"embedding.project is {str(embedding.project)[:50]!r}, expected tokens or all"
    if isinstance(embedding, TokenEmbedding):
        yield from _positions(embedding, spec)


def _positions(embedding: TokenEmbedding, spec: TransformerSpec) -> Iterator[str]:
    if embedding.positions not in ("learned", "rope"):
        yield f"embedding.positions is {str(embedding.positions)[:50]!r}, expected learned or rope"
    base = embedding.rope_base
    if type(base) is not float or not math.isfinite(base) or base <= 1:
        yield f"embedding.rope_base is {base!r}, expected a number above 1"
    sizes = [layer.head_size for layer in spec.layers if _is_size(layer.head_size)]
    if embedding.positions == "rope" and any(size % 2 for size in sizes):
        yield "rotary positions turn pairs: head_size must be even"


def _layer(layer: Layer, index: int, spec: TransformerSpec) -> Iterator[str]:
    if _is_size(layer.heads) and _is_size(layer.kv_heads) and layer.heads % layer.kv_heads:
        yield f"{layer.heads} heads cannot share {layer.kv_heads} key/value heads"
    if not isinstance(layer.ranks, Mapping):
        yield "ranks is no mapping"
    else:
        for part, rank in layer.ranks.items():
            if part not in PARTS or not _is_size(rank):
                yield f"rank {str(rank)[:50]} of {str(part)[:50]!r}; parts are {', '.join(PARTS)}"
    if type(layer.gate) is not bool:
        yield f"gate is {layer.gate!r}, expected true or false"
    yield from _share(layer, index, spec)
    if layer.exit is not None:
        yield from _exit(layer.exit, index, spec)


def _share(layer: Layer, index: int, spec: TransformerSpec) -> Iterator[str]:
    if layer.share is None:
        return
    if type(layer.share) is not int or not 0 <= layer.share < index:
        yield f"share is {str(layer.share)[:50]}, expected an earlier layer"
        return
    other = spec.layers[layer.share]
    if other.share is not None:
        yield f"shares layer {layer.share}, which shares layer {other.share} itself"
    shape = ("heads", "kv_heads", "head_size", "ffn", "ranks")
    if any(getattr(layer, name) != getattr(other, name) for name in shape):
        yield f"shares layer {layer.share}, whose sizes differ"


def _exit(exit_: Exit, index: int, spec: TransformerSpec) -> Iterator[str]:
    if not isinstance(exit_, Exit) or exit_.criterion not in CRITERIA:
        yield f"exit: criterion is none of {', '.join(CRITERIA)}"
        return
    if spec.classes is None:
        yield "an exit needs a classifier"
    if index == len(spec.layers) - 1:
        yield "nothing can leave early behind the last layer"
    threshold = exit_.threshold
    if threshold is not None and (type(threshold) is not float or not math.isfinite(threshold) or threshold < 0):
        yield f"exit: threshold {threshold!r}, expected a number that is not negative, or nothing"


def _sparse(spec: TransformerSpec) -> Iterator[str]:
    if not isinstance(spec.sparse, Mapping):
        yield "sparse is no mapping"
        return
    if not spec.sparse or any(True for layer in spec.layers for size in (layer.heads,) if not _is_size(size)):
        return
    known = {spec.stored(name) for name, _, _ in spec.linears()}
    for name, pattern in spec.sparse.items():
        if name not in known:
            yield f"sparse: {str(name)[:100]!r} is no linear layer of this model"
        elif not isinstance(pattern, str) or not PATTERN.fullmatch(pattern):
            yield f"sparse: pattern {str(pattern)[:50]!r} of {name}, expected unstructured, N:M or RxC"


def _passes(passes: Any) -> Iterator[str]:
    if not isinstance(passes, tuple) or not all(isinstance(name, str) and PASS.fullmatch(name) for name in passes):
        yield f"passes {str(passes)[:100]}: expected names"
    elif len(set(passes)) < len(passes) or len(passes) > MOST_PASSES:
        yield f"{len(passes)} passes, expected different ones, at most {MOST_PASSES}"
