"""The spec: JSON and back, every bad field refused, and sizes that agree with counting by hand."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk.errors import PackageError
from edgesdk.testing.models import BERT, FEATURES, SPECS, VIT
from edgesdk.transformer.module import Transformer
from edgesdk.transformer.spec import (
    Embedding,
    FeatureEmbedding,
    Layer,
    PatchEmbedding,
    Pooling,
    TokenEmbedding,
    TransformerSpec,
)
from edgesdk.transformer.spec_json import from_json, to_json

sizes = st.integers(1, 1 << 24)


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    kv_heads = draw(st.integers(1, 64))
    return Layer(kv_heads * draw(st.integers(1, 64)), kv_heads, draw(sizes), draw(sizes))


@st.composite
def patches(draw: st.DrawFn) -> PatchEmbedding:
    patch = draw(st.integers(1, 1000))
    size = patch * draw(st.integers(1, 1000))
    return PatchEmbedding(draw(sizes), size, patch, draw(st.booleans()), draw(st.booleans()))


embeddings: st.SearchStrategy[Embedding] = st.one_of(
    st.builds(TokenEmbedding, sizes, sizes, st.booleans()), patches(),
    st.builds(FeatureEmbedding, sizes, st.booleans()),
)


@st.composite
def specs(draw: st.DrawFn) -> TransformerSpec:
    pooling: Pooling = draw(st.sampled_from(["cls", "mean", "none"]))
    return TransformerSpec(
        embedding=draw(embeddings),
        hidden=draw(sizes),
        layers=tuple(draw(st.lists(layers(), min_size=1, max_size=4))),
        norm=draw(st.sampled_from(["pre", "post"])),
        norm_epsilon=draw(st.floats(0, 1, exclude_max=True)),
        activation=draw(st.sampled_from(["gelu", "gelu_tanh", "relu"])),
        pooling=pooling,
        final_norm=draw(st.booleans()),
        pooler=pooling != "none" and draw(st.booleans()),
        classes=None if pooling == "none" else draw(st.none() | sizes),
    )


@given(specs())
def test_json_round_trip(spec: TransformerSpec) -> None:
    assert from_json(json.loads(json.dumps(to_json(spec)))) == spec


BAD_FIELDS: list[tuple[str, Any]] = [
    ("hidden", 0), ("hidden", -1), ("hidden", True), ("hidden", 16.0), ("hidden", "16"), ("hidden", None),
    ("hidden", [16]), ("hidden", 1 << 25), ("classes", 0), ("classes", -3), ("classes", True), ("classes", 2.0),
    ("classes", "3"), ("classes", []), ("classes", 1 << 25),
    ("norm", "none"), ("norm", None), ("norm", []), ("activation", "swish"), ("activation", 1), ("pooling", "max"),
    ("pooling", {}), ("pooling", "none"), ("final_norm", 1), ("final_norm", "yes"), ("pooler", None), ("pooler", 0),
    ("norm_epsilon", 0), ("norm_epsilon", 1.0), ("norm_epsilon", -1e-5), ("norm_epsilon", float("nan")),
    ("norm_epsilon", "1e-5"), ("layers", []), ("layers", None), ("layers", "layers"), ("layers", [1]),
    ("layers", [{"heads": 2, "kv_heads": 2, "head_size": 8, "ffn": 32}] * 1001),
    ("embedding", None), ("embedding", []), ("embedding", "tokens"), ("embedding", {}),
    ("embedding", {"kind": "patches"}), ("embedding", {"kind": []}), ("embedding", {"kind": "audio"}),
    ("format", "edgesdk.package"), ("format", None), ("version", 2), ("version", 0), ("version", "1"),
    ("version", True), ("version", 1.0), ("version", None), ("unknown", 1), ("", 0),
]


@pytest.mark.parametrize(("key", "value"), BAD_FIELDS)
def test_bad_field_is_refused(key: str, value: Any) -> None:
    document = to_json(VIT) | {key: value}
    with pytest.raises(PackageError):
        from_json(document)


@pytest.mark.parametrize("passes", [["merge_qkv", "merge_qkv"], [f"pass_{index}" for index in range(21)]])
def test_passes_are_different_and_few(passes: list[str]) -> None:
    with pytest.raises(PackageError, match="passes, expected different ones, at most 20"):
        from_json(to_json(VIT) | {"passes": passes})
    assert from_json(to_json(VIT) | {"passes": passes[1:]}).passes == tuple(passes[1:])


@pytest.mark.parametrize("key", sorted(to_json(VIT).keys() - {"final_norm", "pooler", "classes"}))
def test_missing_field_is_refused(key: str) -> None:
    document = to_json(VIT)
    del document[key]
    with pytest.raises(PackageError):
        from_json(document)


@pytest.mark.parametrize(
    ("key", "value"),
    [("heads", 0), ("heads", True), ("heads", 2.0), ("heads", "2"), ("kv_heads", 0), ("kv_heads", -1), ("kv_heads", 3),
     ("head_size", 0), ("ffn", 0), ("ffn", None), ("extra", 1)],
)
def test_bad_layer_is_refused(key: str, value: Any) -> None:
    document = to_json(VIT)
    document["layers"] = [document["layers"][0] | {key: value}]
    with pytest.raises(PackageError):
        from_json(document)


@pytest.mark.parametrize(
    ("spec", "key", "value"),
    [(VIT, "patch", 3), (VIT, "patch", 0), (VIT, "patch", 16), (VIT, "size", -8), (VIT, "channels", 1.5),
     (VIT, "cls", 1), (VIT, "norm", "no"), (VIT, "vocabulary", 5), (BERT, "vocabulary", 0), (BERT, "max_length", None),
     (BERT, "patch", 2), (FEATURES, "max_length", False), (FEATURES, "kind", "tokens")],
)
def test_bad_embedding_is_refused(spec: TransformerSpec, key: str, value: Any) -> None:
    document = to_json(spec)
    document["embedding"] = document["embedding"] | {key: value}
    with pytest.raises(PackageError):
        from_json(document)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200)
@given(st.sampled_from(sorted(to_json(BERT))), junk, st.booleans())
def test_junk_raises_nothing_but_package_errors(key: str, value: Any, inside_layer: bool) -> None:
    document: Any = json.loads(json.dumps(to_json(BERT)))
    if inside_layer:
        document["layers"][0][key] = value
    else:
        document[key] = value
    try:
        spec = from_json(document)
    except PackageError:
        return
    assert from_json(to_json(spec)) == spec


@pytest.mark.parametrize("document", [None, [], "spec", 3, {}])
def test_no_document_is_refused(document: Any) -> None:
    with pytest.raises(PackageError):
        from_json(document)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_weights_and_parameters_are_those_of_the_module(spec: TransformerSpec) -> None:
    module = Transformer(spec)
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == spec.weight_shapes()
    assert sum(value.numel() for value in module.parameters()) == spec.parameters()


@settings(max_examples=25, deadline=None)
@given(
    st.builds(TokenEmbedding, st.integers(1, 9), st.integers(1, 9), st.booleans()),
    st.lists(st.builds(Layer, st.just(4), st.sampled_from([1, 2, 4]), st.integers(1, 5), st.integers(1, 9)),
             min_size=1, max_size=3),
    st.integers(1, 9), st.booleans(), st.booleans(), st.none() | st.integers(1, 5),
)
def test_any_spec_agrees_with_its_module(
    embedding: TokenEmbedding, blocks: list[Layer], hidden: int, final_norm: bool, pooler: bool, classes: int | None
) -> None:
    spec = TransformerSpec(
        embedding, hidden, tuple(blocks), "pre", 1e-5, "relu", "mean", final_norm, pooler, classes
    )
    state = Transformer(spec).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == spec.weight_shapes()
    linears = {name for name, value in state.items() if name.endswith(".weight") and value.dim() == 2}
    assert {f"{name}.weight" for name, _, _ in spec.linears()} == linears - {
        "embedding.tokens.weight", "embedding.positions.weight"
    }


def test_macs_of_a_vit_by_hand() -> None:
    # 4 patches of 1·4·4 pixels and a class token; widths 16; one head each of size 8; feed-forward 32 and 24.
    patches = 4 * 16 * 16
    projections = 2 * (4 * 5 * 16 * 16)
    attention = 2 * (2 * 5 * 5 * 2 * 8)
    feed_forward = 2 * 5 * 16 * 32 + 2 * 5 * 16 * 24
    classifier = 16 * 5
    assert VIT.macs() == patches + projections + attention + feed_forward + classifier


def test_macs_of_a_grouped_bert_by_hand() -> None:
    spec = TransformerSpec(TokenEmbedding(50, 12), 16, (Layer(4, 1, 4, 32),), "post", 1e-12, "gelu", "cls", pooler=True)
    # At 3 tokens: query and output are 16 × 16, key and value 4 × 16; the pooler sees one row.
    assert spec.macs(3) == 3 * (2 * 16 * 16 + 2 * 16 * 4 + 2 * 16 * 32) + 2 * 3 * 3 * 4 * 4 + 16 * 16
    assert spec.macs() == spec.macs(12)


def test_parameters_of_a_bert_by_hand() -> None:
    spec = TransformerSpec(TokenEmbedding(50, 12), 16, (Layer(2, 2, 8, 32),), "post", 1e-12, "gelu", "cls", classes=3)
    embedding = 50 * 16 + 12 * 16 + 2 * 16
    layer = 4 * (16 * 16 + 16) + (32 * 16 + 32) + (16 * 32 + 16) + 4 * 16
    assert spec.parameters() == embedding + layer + 3 * 16 + 3


@pytest.mark.parametrize(
    ("changes", "output"),
    [({}, "logits"), ({"classes": None}, "embedding"), ({"classes": None, "pooling": "none"}, "hidden_states")],
)
def test_output_name(changes: dict[str, Any], output: str) -> None:
    assert dataclasses.replace(VIT, **changes).output == output


def test_linears_name_every_matrix_but_the_tables() -> None:
    for spec in SPECS.values():
        shapes = spec.weight_shapes()
        named = {f"{name}.weight": (outputs, inputs) for name, inputs, outputs in spec.linears()}
        matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2 and name not in (
            "embedding.tokens.weight", "embedding.positions.weight")}
        assert named == matrices
        assert all(np.prod(shape) > 0 for shape in shapes.values())
