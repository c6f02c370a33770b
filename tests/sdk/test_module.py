"""The torch module: its attention against torch's own and a loop, masks, pooling, taps."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgesdk.encodings import activation_names
from edgesdk.errors import PackageError
from edgesdk.testing.models import BERT, BERT_MEAN, SPECS, VIT, VIT_MEAN, random_inputs, random_weights
from edgesdk.transformer.module import build, run, weights_of
from edgesdk.transformer.module_parts import Attention
from edgesdk.transformer.spec import Layer, TokenEmbedding, TransformerSpec


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1), (6, 3), (1, 1)])
def test_attention_is_torchs_grouped_attention(heads: int, kv_heads: int) -> None:
    torch.manual_seed(0)
    spec = dataclasses.replace(BERT, hidden=16)
    attention = Attention(Layer(heads, kv_heads, 4, 8), spec)
    hidden = torch.randn(2, 5, 16)
    seen: dict[str, torch.Tensor] = {}

    def tap(name: str, value: torch.Tensor) -> torch.Tensor:
        seen[name] = value
        return value

    attention(hidden, None, "a", tap)
    query, key, value = (
        seen[f"a.{part}"].reshape(2, 5, count, 4).transpose(1, 2)
        for part, count in (("query", heads), ("key", kv_heads), ("value", kv_heads))
    )
    expected = functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(seen["a.context"], expected.transpose(1, 2).reshape(2, 5, -1), atol=1e-6, rtol=1e-5)


def _loop_attention(
    query: NDArray[Any], key: NDArray[Any], value: NDArray[Any], heads: int, kv_heads: int, length: int
) -> NDArray[Any]:
    """Attention [S, heads·D] of one sequence whose first `length` rows are no padding, head by head, row by row."""
    size = query.shape[1] // heads
    context = np.zeros_like(query)
    for head in range(heads):
        shared = head // (heads // kv_heads)
        own, other = slice(head * size, (head + 1) * size), slice(shared * size, (shared + 1) * size)
        for row in range(len(query)):
            scores = np.array([query[row, own] @ key[column, other] for column in range(length)]) / np.sqrt(size)
            shares = np.exp(scores - scores.max())
            context[row, own] = (shares / shares.sum()) @ value[:length, other]
    return context


def test_grouped_masked_attention_is_a_loop_over_heads() -> None:
    module = build(BERT_MEAN, random_weights(BERT_MEAN))
    inputs = random_inputs(BERT_MEAN, 3)
    seen: dict[str, NDArray[Any]] = {}

    def tap(name: str, value: torch.Tensor) -> torch.Tensor:
        seen[name] = value.numpy().astype(np.float64)
        return value

    run(module, inputs, tap)
    for index, layer in enumerate(BERT_MEAN.layers):
        parts = [seen[f"layers.{index}.attention.{part}"] for part in ("query", "key", "value")]
        for row, mask in enumerate(inputs["attention_mask"]):
            query, key, value = (part[row] for part in parts)
            expected = _loop_attention(query, key, value, layer.heads, layer.kv_heads, int(mask.sum()))
            found = seen[f"layers.{index}.attention.context"][row]
            np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("spec", [BERT, BERT_MEAN], ids=["cls", "mean"])
def test_padding_changes_nothing(spec: TransformerSpec) -> None:
    module = build(spec, random_weights(spec))
    ids = random_inputs(spec, 4)["input_ids"]
    short = run(module, {"input_ids": ids[:, :5], "attention_mask": np.ones((4, 5), np.int64)})
    mask = np.concatenate([np.ones((4, 5), np.int64), np.zeros((4, 3), np.int64)], 1)
    np.testing.assert_allclose(run(module, {"input_ids": ids, "attention_mask": mask}), short, atol=1e-6)
    other = np.concatenate([ids[:, :5], (ids[:, 5:] + 7) % 50], 1)
    np.testing.assert_allclose(run(module, {"input_ids": other, "attention_mask": mask}), short, atol=1e-6)


def test_patches_are_read_row_by_row() -> None:
    module = build(VIT_MEAN, random_weights(VIT_MEAN))
    pixels = random_inputs(VIT_MEAN, 2)["pixel_values"]
    blocks = module.embedding.unfold(torch.from_numpy(pixels)).numpy()
    for row in range(2):
        for down in range(2):
            for right in range(2):
                expected = pixels[row, :, down * 4 : down * 4 + 4, right * 4 : right * 4 + 4].reshape(-1)
                np.testing.assert_array_equal(blocks[row, down * 2 + right], expected)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_taps_are_the_activations_that_encodings_name(spec: TransformerSpec) -> None:
    names: set[str] = set()

    def tap(name: str, value: torch.Tensor) -> torch.Tensor:
        names.add(name)
        return value

    run(build(spec, random_weights(spec)), random_inputs(spec, 2), tap)
    assert names == activation_names(spec) | {f"layers.{index}.result" for index in range(len(spec.layers))}


def test_tap_replaces_what_flows_on() -> None:
    module, inputs = build(VIT, random_weights(VIT)), random_inputs(VIT, 2)

    def tap(name: str, value: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(value) if name.endswith((".attention.output", ".ffn.down")) else value

    first = run(module, inputs, tap)
    shallow = dataclasses.replace(VIT, layers=VIT.layers[:1])
    weights = {name: value for name, value in random_weights(VIT).items() if name in shallow.weight_shapes()}
    np.testing.assert_array_equal(first, run(build(shallow, weights), inputs, tap))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_weights_go_in_and_come_out(spec: TransformerSpec) -> None:
    weights = random_weights(spec)
    found = weights_of(build(spec, weights))
    assert list(found) == list(spec.weight_shapes())
    for name, value in weights.items():
        np.testing.assert_array_equal(found[name], value)


def test_batches_do_not_matter() -> None:
    module, inputs = build(BERT, random_weights(BERT)), random_inputs(BERT, 7)
    np.testing.assert_allclose(run(module, inputs, batch=2), run(module, inputs, batch=7), atol=1e-6)


def test_weights_that_do_not_fit_are_named() -> None:
    weights = random_weights(VIT)
    weights["layers.0.ffn.up.weight"] = weights["layers.0.ffn.up.weight"][:-1]
    with pytest.raises(PackageError, match=r"layers\.0\.ffn\.up\.weight"):
        build(VIT, weights)
    del weights["layers.0.ffn.up.weight"]
    with pytest.raises(PackageError, match=r"layers\.0\.ffn\.up\.weight"):
        build(VIT, weights)


def test_one_token_sequence() -> None:
    spec = TransformerSpec(TokenEmbedding(5, 1), 8, (Layer(2, 1, 4, 8),), "post", 1e-5, "relu", "mean")
    inputs = {"input_ids": np.array([[3]]), "attention_mask": np.array([[1]])}
    assert np.isfinite(run(build(spec, random_weights(spec)), inputs)).all()
