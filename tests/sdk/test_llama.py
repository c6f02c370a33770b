"""RMSNorm, rotary positions, SwiGLU: spec, module, graphs with and without a cache, stages, the importer of Llama."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from edgesdk.errors import ModelError, PackageError
from edgesdk.evaluate import run_graph
from edgesdk.model_source import load_model
from edgesdk.stages.base import Outline
from edgesdk.stages.prune_neurons import PruneNeurons, PruneNeuronsOptions
from edgesdk.stages.quantize_ptq import QuantizePtq, QuantizePtqOptions
from edgesdk.testing.models import random_weights
from edgesdk.transformer.graph import write_graph
from edgesdk.transformer.graph_decode import write_decode_graph
from edgesdk.transformer.importers import import_model
from edgesdk.transformer.module import build, run
from edgesdk.transformer.rope import rope_tables
from edgesdk.transformer.spec import Layer, TokenEmbedding, TransformerSpec
from edgesdk.transformer.spec_json import from_json, to_json

LLAMA = TransformerSpec(
    TokenEmbedding(50, 24, norm=False, positions="rope", rope_base=500.0), 16, (Layer(4, 2, 6, 20), Layer(2, 2, 8, 12)),
    "pre", 1e-5, "swiglu", "none", True, causal=True, lm_head=True, norm_kind="rms",
)
MIXED = [
    dataclasses.replace(LLAMA, activation="gelu"), dataclasses.replace(LLAMA, norm_kind="layer"),
    dataclasses.replace(LLAMA, embedding=TokenEmbedding(50, 24)), dataclasses.replace(LLAMA, norm="post"),
    dataclasses.replace(LLAMA, causal=False, lm_head=False, pooling="mean", classes=3),
]
CONFIG: dict[str, Any] = {
    "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 44, "max_position_embeddings": 40, "tie_word_embeddings": True,
}


def inputs_of(spec: TransformerSpec, rows: int = 3) -> dict[str, np.ndarray]:
    random, length = np.random.default_rng(3), 17
    mask = (np.arange(length) < np.array([length, 9, 1])[:rows, None]).astype(np.int64)
    return {"input_ids": random.integers(0, 50, (rows, length)), "attention_mask": mask}


def make(kind: str = "ForCausalLM", **options: Any) -> Any:
    import transformers

    model: nn.Module = getattr(transformers, f"Llama{kind}")(transformers.LlamaConfig(**(CONFIG | options)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.2 * noise if parameter.ndim == 1 else 0.2 * noise)
    return model.eval()


def plain_layer(spec: TransformerSpec, weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Layer 0 on rows [S, H] in float64, loop by loop."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return np.stack([row / math.sqrt((row**2).mean() + spec.norm_epsilon) for row in x]) * weights[f"{name}.weight"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].astype(np.float64).T + weights[f"{name}.bias"]

    def turn(x: np.ndarray, position: int) -> np.ndarray:
        half, turned = len(x) // 2, np.empty_like(x)
        for i in range(half):
            angle = position * spec.rope_base ** (-2 * i / len(x))
            turned[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
            turned[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
        return turned

    layer, prefix = spec.layers[0], "layers.0"
    source = norm(x, f"{prefix}.attention.norm")
    q, k, v = (linear(source, f"{prefix}.attention.{part}") for part in ("query", "key", "value"))
    context = np.zeros((len(x), layer.heads * layer.head_size))
    for head in range(layer.heads):
        mine = slice(head * layer.head_size, (head + 1) * layer.head_size)
        first = head // (layer.heads // layer.kv_heads) * layer.head_size
        shared = slice(first, first + layer.head_size)
        for s in range(len(x)):
            scores = [turn(q[s, mine], s) @ turn(k[t, shared], t) / math.sqrt(layer.head_size) for t in range(s + 1)]
            weight = np.exp(np.array(scores) - max(scores))
            context[s, mine] = weight / weight.sum() @ v[: s + 1, shared]
    x = x + linear(context, f"{prefix}.attention.output")
    source = norm(x, f"{prefix}.ffn.norm")
    gate = linear(source, f"{prefix}.ffn.glu")
    return x + linear(gate / (1 + np.exp(-gate)) * linear(source, f"{prefix}.ffn.up"), f"{prefix}.ffn.down")


def test_the_module_is_the_formulas() -> None:
    """One layer, without a final norm, against loops over positions, pairs and neurons."""
    spec = dataclasses.replace(LLAMA, layers=LLAMA.layers[:1], final_norm=False, lm_head=False)
    weights = random_weights(spec)
    ids = inputs_of(spec)["input_ids"][:1]
    expected = plain_layer(spec, weights, weights["embedding.tokens.weight"][ids[0]].astype(np.float64))
    found = run(build(spec, weights), {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_is_stored() -> None:
    shapes = LLAMA.weight_shapes()
    assert "embedding.positions.weight" not in shapes and "norm.bias" not in shapes
    assert shapes["layers.0.ffn.glu.weight"] == (20, 16) and shapes["layers.1.attention.norm.weight"] == (16,)
    assert [name for name, _, _ in LLAMA.linears()][4:7] == ["layers.0.ffn.glu", "layers.0.ffn.up", "layers.0.ffn.down"]
    gelu = dataclasses.replace(LLAMA, activation="gelu")
    assert LLAMA.layer_macs(0, 3) - gelu.layer_macs(0, 3) == 3 * 16 * 20


@pytest.mark.parametrize("spec", [LLAMA, *MIXED])
def test_the_graph_is_the_module(spec: TransformerSpec) -> None:
    weights, inputs = random_weights(spec), inputs_of(spec)
    graph = write_graph(spec, weights)
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    kept = inputs["attention_mask"] == 1 if spec.pooling == "none" else slice(None)
    found, expected = run_graph(graph, inputs)[kept], run(build(spec, weights), inputs)[kept]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", [LLAMA, MIXED[0], MIXED[1], MIXED[2], MIXED[3]])
def test_decoding_step_by_step_is_the_whole(spec: TransformerSpec) -> None:
    weights, ids = random_weights(spec), inputs_of(spec)["input_ids"][:1]
    whole = run(build(spec, weights), {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
    session = onnxruntime.InferenceSession(write_decode_graph(spec, weights))
    past = {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32) for value in session.get_inputs()[2:]
    }
    steps = []
    for start, end in [(0, 5), *((at, at + 1) for at in range(5, ids.shape[1]))]:
        mask = np.ones((1, end), np.int64)
        answer, *present = session.run(None, {"input_ids": ids[:, start:end], "attention_mask": mask, **past})
        past = dict(zip(past, present, strict=True))
        steps.append(answer[0])
    np.testing.assert_allclose(np.concatenate(steps), whole, rtol=1e-4, atol=1e-5)


def test_the_document_keeps_it_and_leaves_defaults_out() -> None:
    document = to_json(LLAMA)
    assert (document["norm_kind"], document["embedding"]["positions"]) == ("rms", "rope")
    assert document["embedding"]["rope_base"] == 500.0
    assert from_json(document) == LLAMA
    plain = to_json(MIXED[2])["embedding"]
    assert "positions" not in plain and "rope_base" not in plain


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda d: d.update(norm_kind="batch"), "norm_kind"),
        (lambda d: d["embedding"].update(positions="alibi"), "embedding.positions"),
        (lambda d: d["embedding"].update(rope_base=0.5), "rope_base"),
        (lambda d: d["embedding"].update(rope_base=10000), "rope_base"),
        (lambda d: d["embedding"].update(rope_base=math.inf), "rope_base"),
        (lambda d: d["layers"][0].update(head_size=5), "head_size must be even"),
    ],
)
def test_what_is_no_model(change: Callable[[dict[str, Any]], None], word: str) -> None:
    document = to_json(LLAMA)
    change(document)
    with pytest.raises(PackageError, match=word):
        from_json(document)


def test_tables_of_angles() -> None:
    cosine, sine = rope_tables(9, 6, 100.0)
    np.testing.assert_allclose(cosine**2 + sine**2, 1.0, rtol=1e-6)
    np.testing.assert_array_equal(sine[:, :3], sine[:, 3:])
    assert sine[7, 1] == pytest.approx(math.sin(7 * 100 ** (-2 / 6)))


def test_stages_that_do_not_know_them_say_so() -> None:
    outline = Outline(LLAMA, "fp32", "encoding", True)
    (reason,) = PruneNeurons(PruneNeuronsOptions(keep=0.5)).requires(outline)
    assert "SwiGLU" in reason
    (reason,) = QuantizePtq(QuantizePtqOptions(scheme="w8a8", smooth=0.5)).requires(outline)
    assert "smooth" in reason


@pytest.mark.parametrize(
    "options", [{}, {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}, {"head_dim": 6},
                {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}],
)
def test_llama_comes_in(options: dict[str, Any]) -> None:
    model = make(**options)
    imported = import_model(model, sequence=16)
    assert (imported.family, imported.spec.output, imported.task) == ("llama", "token_logits", "encoding")
    assert imported.difference <= 1e-4 and not imported.notes
    ids = torch.randint(0, 90, (2, 21), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = model(input_ids=ids).logits.numpy()
    inputs = {"input_ids": ids.numpy(), "attention_mask": np.ones((2, 21), np.int64)}
    found = run_graph(write_graph(imported.spec, imported.weights), inputs)
    assert np.abs(found - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


def test_a_folder_of_llama(tmp_path: Path) -> None:
    """As transformers writes it: tied weights are stored once."""
    model = make()
    model.save_pretrained(tmp_path)
    imported = import_model(load_model(str(tmp_path)), sequence=16)
    assert np.array_equal(imported.weights["embedding.tokens.weight"], model.lm_head.weight.detach().numpy())


def test_llama_without_a_head_and_longer_than_is_kept() -> None:
    imported = import_model(make("Model", max_position_embeddings=5000, hidden_size=16, num_hidden_layers=1))
    assert (imported.spec.output, imported.spec.max_length) == ("hidden_states", 2048)
    assert imported.notes == ("sequences of up to 2048 tokens are kept, of 5000",)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tie_word_embeddings": False}, "tie_word_embeddings"), ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope_parameters"),
    ],
)
def test_what_is_not_covered_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        import_model(make(**options))
