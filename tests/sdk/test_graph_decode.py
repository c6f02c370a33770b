"""Decoding with a cache gives what the whole sequence gives: against the module in torch, and against `generate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from edgesdk.converters import onnx as onnx_converter
from edgesdk.converters.artifact import read_artifact
from edgesdk.errors import PackageError
from edgesdk.stages.quantize_ptq import QuantizePtq, QuantizePtqOptions
from edgesdk.targets import load_target
from edgesdk.testing.models import BERT_MEAN, VIT, random_inputs, random_package, random_weights, staged
from edgesdk.transformer.graph_decode import decode_problems, write_decode_graph
from edgesdk.transformer.importers import import_model
from edgesdk.transformer.module import build
from edgesdk.transformer.spec import FeatureEmbedding, Layer, TokenEmbedding, TransformerSpec

Array = NDArray[Any]
NEW = 12
DECODER = TransformerSpec(
    TokenEmbedding(50, 24, norm=False), 16, (Layer(2, 2, 8, 32), Layer(4, 4, 4, 20)), "pre", 1e-5, "gelu_tanh", "none",
    final_norm=True, causal=True, lm_head=True,
)
GROUPED = dataclasses.replace(DECODER, layers=(Layer(4, 2, 4, 32), Layer(4, 1, 4, 20)))
SHARED = dataclasses.replace(DECODER, layers=(Layer(2, 2, 8, 32), Layer(2, 2, 8, 32, share=0)))
LOW_RANK = dataclasses.replace(
    DECODER, layers=(Layer(2, 2, 8, 32, ranks={"attention.key": 3, "ffn.up": 4}), Layer(2, 1, 8, 32))
)
POST = dataclasses.replace(DECODER, norm="post", final_norm=False, embedding=TokenEmbedding(50, 24))
HIDDEN = dataclasses.replace(DECODER, lm_head=False)
PROJECTED = dataclasses.replace(HIDDEN, embedding=TokenEmbedding(50, 24, width=6, project="all"))
SPECS = {
    "plain": DECODER, "grouped": GROUPED, "shared": SHARED, "low_rank": LOW_RANK, "post": POST, "hidden": HIDDEN,
    "projected": PROJECTED,
}


class Decoder:
    """A decoding graph in ONNX Runtime with its cache, for rows that grow together."""

    def __init__(self, graph: bytes, spec: TransformerSpec, batch: int) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]
        self.mask = np.zeros((batch, 0), np.int64)
        self.past: dict[str, Array] = {}
        for index, layer in enumerate(spec.layers):
            for part in ("key", "value"):
                self.past[f"past.{index}.{part}"] = np.zeros((batch, layer.kv_heads, 0, layer.head_size), np.float32)

    def step(self, ids: Array, mask: Array | None = None) -> Array:
        """Output of the new tokens `ids` [batch, sequence], which join the cache."""
        self.mask = np.concatenate([self.mask, np.ones_like(ids) if mask is None else mask], 1)
        results = self.session.run(None, {"input_ids": ids, "attention_mask": self.mask, **self.past})
        found = dict(zip(self.names, results, strict=True))
        self.past = {name: found[name.replace("past", "present")] for name in self.past}
        return np.asarray(results[0])


def decoder(spec: TransformerSpec, batch: int = 1) -> Decoder:
    return Decoder(write_decode_graph(spec, random_weights(spec)), spec, batch)


def in_torch(spec: TransformerSpec, ids: Array) -> Array:
    """The module over whole sequences [batch, sequence] without padding."""
    with torch.inference_mode():
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.ones(ids.shape, dtype=torch.long)}
        return np.asarray(build(spec, random_weights(spec))(inputs).numpy())


def prompt(length: int, batch: int = 1, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 50, (batch, length))


def gpt2(**options: Any) -> Any:
    """A tiny GPT-2 whose choices are not close to one another."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=None, pad_token_id=0, **options)).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


# --- agreement ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SPECS))
def test_steps_of_any_length_give_what_the_whole_gives(name: str) -> None:
    spec, ids = SPECS[name], prompt(15, batch=2)
    cached = decoder(spec, batch=2)
    steps = [cached.step(ids[:, start:end]) for start, end in ((0, 6), (6, 7), (7, 8), (8, 11), (11, 15))]
    assert np.abs(np.concatenate(steps, 1) - in_torch(spec, ids)).max() < 1e-4


@pytest.mark.parametrize("spec", [DECODER, GROUPED], ids=["plain", "grouped"])
def test_the_cache_is_that_of_the_layers(spec: TransformerSpec) -> None:
    cached, ids = decoder(spec), prompt(5)
    cached.step(ids[:, :3])
    cached.step(ids[:, 3:])
    for index, layer in enumerate(spec.layers):
        assert cached.past[f"past.{index}.value"].shape == (1, layer.kv_heads, 5, layer.head_size)
    values: dict[str, torch.Tensor] = {}

    def tap(name: str, value: torch.Tensor) -> torch.Tensor:
        values[name] = value
        return value

    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    with torch.inference_mode():
        build(spec, random_weights(spec))(inputs, tap)
    for part in ("key", "value"):
        layer = spec.layers[1]
        expected = values[f"layers.1.attention.{part}"].reshape(1, 5, layer.kv_heads, layer.head_size).transpose(1, 2)
        assert np.abs(cached.past[f"past.1.{part}"] - expected.numpy()).max() < 1e-5


@pytest.mark.parametrize("options", [{}, {"scale_attn_by_inverse_layer_idx": True}])
def test_greedy_decoding_is_that_of_transformers(options: dict[str, Any]) -> None:
    model, ids = gpt2(**options), prompt(6)
    expected = model.generate(torch.from_numpy(ids), max_new_tokens=NEW, do_sample=False)[0, 6:].tolist()
    imported = import_model(model)
    module = build(imported.spec, imported.weights)
    cached = Decoder(write_decode_graph(imported.spec, imported.weights), imported.spec, 1)
    logits, found, whole = cached.step(ids), [], ids
    for _ in range(NEW):
        with torch.inference_mode():
            inputs = {"input_ids": torch.from_numpy(whole), "attention_mask": torch.ones(whole.shape).long()}
            again = module(inputs)[0, -1]
        assert np.abs(logits[0, -1] - again.numpy()).max() < 1e-3
        found.append(int(logits[0, -1].argmax()))
        assert found[-1] == int(again.argmax())
        whole = np.append(whole, [found[-1:]], 1)
        logits = cached.step(np.array([found[-1:]]))
    assert found == expected
    assert len(set(found)) > 1


def test_a_batch_padded_on_the_left_decodes_as_transformers_does() -> None:
    model = gpt2()
    ids, mask = prompt(6, batch=2), np.ones((2, 6), np.int64)
    ids[1, :4], mask[1, :4] = 0, 0
    expected = model.generate(
        torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), max_new_tokens=NEW, do_sample=False
    )[:, 6:].numpy()
    imported = import_model(model)
    cached = Decoder(write_decode_graph(imported.spec, imported.weights), imported.spec, 2)
    found = []
    logits = cached.step(ids, mask)
    for _ in range(NEW):
        found.append(logits[:, -1].argmax(-1)[:, None])
        logits = cached.step(found[-1])
    assert np.array_equal(np.concatenate(found, 1), expected)


@pytest.mark.parametrize("spec", [DECODER, GROUPED], ids=["plain", "grouped"])
def test_padding_behind_a_prompt_stays_masked(spec: TransformerSpec) -> None:
    """Row 1 has 2 tokens of 6: its next token is that of column 1, and later steps are those of the row by itself."""
    ids, mask = prompt(6, batch=2), np.ones((2, 6), np.int64)
    mask[1, 2:] = 0
    cached, more = decoder(spec, batch=2), prompt(3, batch=2, seed=1)
    first = cached.step(ids, mask)
    steps = np.concatenate([cached.step(more[:, :1]), cached.step(more[:, 1:])], 1)
    for row, length in ((0, 6), (1, 2)):
        alone = in_torch(spec, np.concatenate([ids[row : row + 1, :length], more[row : row + 1]], 1))[0]
        assert np.abs(first[row, :length] - alone[:length]).max() < 1e-4
        assert np.abs(steps[row] - alone[length:]).max() < 1e-4


def test_the_last_position_and_no_further() -> None:
    cached, ids = decoder(DECODER), prompt(24)
    cached.step(ids[:, :23])
    assert np.abs(cached.step(ids[:, 23:])[0] - in_torch(DECODER, ids)[0, 23:]).max() < 1e-4
    with pytest.raises(Exception, match="indices element out of data bounds"):
        cached.step(ids[:, :1])


# --- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [DECODER, GROUPED, HIDDEN], ids=["plain", "grouped", "hidden"])
def test_the_file_is_standard_and_says_its_shapes(spec: TransformerSpec) -> None:
    data = write_decode_graph(spec, random_weights(spec))
    assert data == write_decode_graph(spec, random_weights(spec))
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import[0].version) == (10, 21)

    def shapes(values: Any) -> dict[str, list[Any]]:
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    inputs, outputs = shapes(model.graph.input), shapes(model.graph.output)
    assert inputs["input_ids"] == ["batch", "sequence"] and inputs["attention_mask"] == ["batch", "total"]
    tail = 50 if spec.lm_head else 16
    assert outputs[spec.output] == ["batch", "sequence", tail] and list(outputs)[0] == spec.output
    for index, layer in enumerate(spec.layers):
        for part in ("key", "value"):
            assert inputs[f"past.{index}.{part}"] == ["batch", layer.kv_heads, "past", layer.head_size]
            assert outputs[f"present.{index}.{part}"] == ["batch", layer.kv_heads, "total", layer.head_size]


def test_weights_are_those_of_the_packages_graph() -> None:
    package = random_package(DECODER)
    theirs = {tensor.name: tensor for tensor in onnx.load_from_string(package.graph).graph.initializer}
    ours = {t.name: t for t in onnx.load_from_string(write_decode_graph(DECODER, package.weights)).graph.initializer}
    for name in DECODER.weight_shapes():
        assert ours[name] == theirs[name]


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic"])
def test_quantized_decoding_stays_near_the_quantized_model(scheme: Any) -> None:
    package = staged(random_package(DECODER), QuantizePtq(QuantizePtqOptions(scheme=scheme)))
    assert package.encodings is not None
    graph = write_decode_graph(package.spec, package.weights, package.encodings)
    inputs = random_inputs(DECODER, 1, seed=3)
    ids = inputs["input_ids"]
    session = onnxruntime.InferenceSession(package.graph, providers=["CPUExecutionProvider"])
    whole = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
    cached = Decoder(graph, DECODER, 1)
    steps = np.concatenate([cached.step(ids[:, :3]), *(cached.step(ids[:, i : i + 1]) for i in range(3, 8))], 1)
    # Dynamic scales are those of a step's own tokens; static ones differ by single roundings at most.
    error = np.abs(steps - whole).max() / np.abs(whole).max()
    assert error < (0.02 if scheme == "w8a8" else 0.06)
    theirs = {tensor.name: tensor for tensor in onnx.load_from_string(package.graph).graph.initializer}
    ours = {tensor.name: tensor for tensor in onnx.load_from_string(graph).graph.initializer}
    for name in package.encodings.weights:
        assert ours[name] == theirs[name] and ours[name].data_type == onnx.TensorProto.INT8


# --- the artifact ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [DECODER, HIDDEN], ids=["plain", "hidden"])
def test_the_onnx_artifact_of_a_decoder_holds_both_files(spec: TransformerSpec, tmp_path: Path) -> None:
    package = random_package(spec)
    written = onnx_converter.convert(package, load_target("host"), tmp_path)
    artifact = read_artifact(tmp_path)
    assert [file.path for file in artifact.files] == ["model.onnx", "decode.onnx"]
    assert (artifact.runtime["model"], artifact.runtime["decode"]) == ("model.onnx", "decode.onnx")
    assert artifact.bytes == len(package.graph) < artifact.bytes_with_runtime
    assert any("decode.onnx" in note for note in written.notes)
    data = (tmp_path / "decode.onnx").read_bytes()
    assert data == write_decode_graph(spec, package.weights)
    ids, mask = (package.samples.golden_inputs[name][:1] for name in ("input_ids", "attention_mask"))
    found = Decoder(data, spec, 1).step(ids, mask)
    length = int(mask.sum())
    assert np.abs(found[:, :length] - package.samples.golden_outputs[:1, :length]).max() < 1e-4


def test_other_artifacts_hold_one_file(tmp_path: Path) -> None:
    artifact = onnx_converter.convert(random_package(BERT_MEAN), load_target("host"), tmp_path)
    assert [file.path for file in artifact.files] == ["model.onnx"] and "decode" not in artifact.runtime


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (BERT_MEAN, ["not causal", "pools its tokens (mean)"]),
        (VIT, ["patches, not tokens", "not causal"]),
        (dataclasses.replace(DECODER, lm_head=False, pooling="mean"), ["pools its tokens (mean)"]),
        (dataclasses.replace(HIDDEN, embedding=FeatureEmbedding(12)), ["features, not tokens"]),
        (dataclasses.replace(HIDDEN, layers=(Layer(2, 2, 8, 32, gate=True),)), ["gated"]),
    ],
)
def test_models_that_cannot_be_decoded_are_refused(spec: TransformerSpec, words: list[str]) -> None:
    with pytest.raises(PackageError) as caught:
        write_decode_graph(spec, random_weights(spec))
    assert all(word in str(caught.value) for word in words)
    assert len(decode_problems(spec)) >= len(words)
