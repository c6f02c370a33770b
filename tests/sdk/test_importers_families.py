"""Families beside BERT, ViT and torch's own: each agrees with its original on other samples than the importer's, with
padding, or says by its configuration key why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgesdk.errors import ModelError, PackageError
from edgesdk.evaluate import run_graph
from edgesdk.transformer.graph import write_graph
from edgesdk.transformer.importers import Imported, SentenceEncoder, import_model
from edgesdk.transformer.module import build
from edgesdk.transformer.spec import TokenEmbedding
from edgesdk.transformer.spec_json import from_json, to_json

VOCABULARY, WIDTH = 90, 21
BERT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 40,
}
SIZES: dict[str, dict[str, Any]] = {
    "DistilBert": {
        "vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48,
        "max_position_embeddings": 40,
    },
    "Bert": BERT,
    "Roberta": BERT,
    "Albert": {**BERT, "embedding_size": 12},
    "GPT2": {
        "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "DeiT": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 12,
        "patch_size": 4, "num_channels": 2,
    },
}


def make(family: str, kind: str = "ForSequenceClassification", **options: Any) -> Any:
    """A model of a family with weights large enough that every part of it shows in its output."""
    import transformers

    kwargs = {"add_pooling_layer": False} if options.pop("no_pooler", False) else {}
    config = getattr(transformers, f"{family}Config")(**(SIZES[family] | options))
    model: nn.Module = getattr(transformers, f"{family}{kind}")(config, **kwargs)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.2 * noise if parameter.ndim == 1 else 0.3 * noise)
    return model.eval()


def tokens(padding: int = 0) -> dict[str, Tensor]:
    """Four rows of different lengths, padded at the end with an id that is nowhere else."""
    ids = torch.randint(3, VOCABULARY, (4, WIDTH), generator=torch.Generator().manual_seed(5))
    mask = (torch.arange(WIDTH) < torch.tensor([[WIDTH], [7], [3], [1]])).long()
    return {"input_ids": torch.where(mask == 1, ids, padding), "attention_mask": mask}


def pixels() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(3, 2, 12, 12, generator=torch.Generator().manual_seed(3))}


def output_of(imported: Imported, inputs: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        output: Tensor = build(imported.spec, imported.weights)(inputs)
    return output


def means(hidden: Tensor, mask: Tensor) -> Tensor:
    return torch.stack([row[keep.bool()].mean(0) for row, keep in zip(hidden, mask, strict=True)])


@torch.inference_mode()
def close(imported: Imported, inputs: dict[str, Tensor], expected: Tensor) -> bool:
    found = output_of(imported, inputs)
    return found.shape == expected.shape and bool((found - expected).abs().max() < 1e-4)


# --- classifiers and encoders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "options", "padding"),
    [
        ("DistilBert", {}, 0),
        ("DistilBert", {"activation": "relu", "sinusoidal_pos_embds": True}, 0),
        ("Roberta", {}, 1),
        ("Roberta", {"pad_token_id": 0}, 0),
        ("Roberta", {"hidden_act": "gelu_new", "type_vocab_size": 1, "layer_norm_eps": 1e-5}, 1),
        ("Albert", {}, 0),
        ("Albert", {"hidden_act": "gelu", "num_hidden_groups": 3}, 0),
    ],
)
def test_token_classifiers(family: str, options: dict[str, Any], padding: int) -> None:
    model = make(family, num_labels=3, id2label={0: "sad", 1: "glad", 2: "mad"}, **options)
    imported, inputs = import_model(model), tokens(padding)
    with torch.inference_mode():
        expected = model(**inputs).logits
    assert close(imported, inputs, expected)
    assert (imported.family, imported.task) == (family.lower(), "classification")
    assert imported.labels == ["sad", "glad", "mad"]
    assert (imported.spec.pooling, imported.spec.pooler) == ("cls", True)
    assert imported.spec.pooler_activation == ("relu" if family == "DistilBert" else "tanh")


@pytest.mark.parametrize("family", ["DistilBert", "Roberta", "Albert"])
def test_token_encoders_are_mean_pooled(family: str) -> None:
    model, inputs = make(family, "Model"), tokens(1)
    imported = import_model(model, sequence=16)
    with torch.inference_mode():
        expected = means(model(**inputs).last_hidden_state, inputs["attention_mask"])
    assert close(imported, inputs, expected)
    assert (imported.task, imported.spec.output, imported.spec.pooler) == ("encoding", "embedding", False)


def test_positions_of_roberta_begin_behind_the_padding_token() -> None:
    model = make("Roberta", "Model")
    imported = import_model(model)
    assert imported.spec.max_length == 38
    table = model.embeddings.position_embeddings.weight + model.embeddings.token_type_embeddings.weight[0]
    assert np.array_equal(imported.weights["embedding.positions.weight"], table.detach().numpy()[2:])


def test_a_full_row_of_roberta_agrees() -> None:
    model = make("Roberta")
    inputs = {"input_ids": torch.arange(38)[None] + 3, "attention_mask": torch.ones(1, 38, dtype=torch.long)}
    with torch.inference_mode():
        expected = model(**inputs).logits
    assert close(import_model(model), inputs, expected)


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({}, [None, 0, 0]),
        ({"num_hidden_groups": 2}, [None, 0, None]),
        ({"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2}, [None, None, 0, 1, None, None, 4, 5]),
    ],
)
def test_albert_comes_in_shared(options: dict[str, Any], shares: list[int | None]) -> None:
    model, inputs = make("Albert", **options), tokens()
    imported = import_model(model)
    with torch.inference_mode():
        expected = model(**inputs).logits
    assert close(imported, inputs, expected)
    assert [layer.share for layer in imported.spec.layers] == shares
    assert isinstance(imported.spec.embedding, TokenEmbedding)
    assert (imported.spec.embedding.width, imported.spec.embedding.project) == (12, "all")
    # All weights of the original but the other token types' rows, each once.
    types = model.albert.embeddings.token_type_embeddings.weight.numel()
    assert imported.spec.parameters() == sum(parameter.numel() for parameter in model.parameters()) - types


def test_the_place_where_shared_layers_diverge_is_named() -> None:
    model = make("Albert", num_hidden_groups=2)
    group = model.albert.encoder.albert_layer_groups[1].albert_layers[0]
    group.ffn.register_forward_hook(lambda owner, arguments, output: output * 1.1)
    with pytest.raises(ModelError, match=r"it begins in layers\.2"):
        import_model(model)


# --- sentence encoders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_a_sentence_encoder_pools_as_it_says(family: str, pooling: Any, normalized: bool) -> None:
    model, inputs = make(family, "Model"), tokens(1)
    imported = import_model(SentenceEncoder(model, pooling, normalized))
    with torch.inference_mode():
        hidden = model(**inputs).last_hidden_state
    expected = hidden[:, 0] if pooling == "cls" else means(hidden, inputs["attention_mask"])
    assert close(imported, inputs, expected)
    assert (imported.family, imported.spec.pooling) == (family.lower(), pooling)
    assert any("normalisation" in note for note in imported.notes) == normalized


# --- decoders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_inner": 50, "activation_function": "relu"},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"reorder_and_upcast_attn": True},
    ],
)
def test_gpt2_language_model(options: dict[str, Any]) -> None:
    model, inputs = make("GPT2", "LMHeadModel", **options), tokens()
    imported = import_model(model)
    with torch.inference_mode():
        expected = model(**inputs).logits
    found, kept = output_of(imported, inputs), inputs["attention_mask"].bool()
    assert found.shape == (4, WIDTH, VOCABULARY)
    assert (found[kept] - expected[kept]).abs().max() < 1e-4 * expected[kept].abs().max()
    spec = imported.spec
    assert (imported.family, imported.task, spec.output) == ("gpt2", "encoding", "token_logits")
    assert (spec.causal, spec.lm_head, spec.norm, spec.final_norm) == (True, True, "pre", True)


def test_gpt2_without_a_head_gives_hidden_states() -> None:
    model, inputs = make("GPT2", "Model"), tokens()
    imported = import_model(model)
    with torch.inference_mode():
        expected = model(**inputs).last_hidden_state
    kept = inputs["attention_mask"].bool()
    assert (output_of(imported, inputs)[kept] - expected[kept]).abs().max() < 1e-4
    assert (imported.spec.output, imported.spec.lm_head, imported.spec.causal) == ("hidden_states", False, True)


def test_what_comes_later_changes_nothing_before_it() -> None:
    imported, inputs = import_model(make("GPT2", "LMHeadModel")), tokens()
    changed = dict(inputs, input_ids=inputs["input_ids"].clone())
    changed["input_ids"][0, 11:] = 4
    before, after = output_of(imported, inputs)[0], output_of(imported, changed)[0]
    assert torch.equal(before[:11], after[:11])
    assert (before[11:] - after[11:]).abs().max() > 1e-2


# --- images ---------------------------------------------------------------------------------------------------------


def test_deit_classifier() -> None:
    model = make("DeiT", "ForImageClassification", num_labels=5)
    imported = import_model(model)
    with torch.inference_mode():
        expected = model(**pixels()).logits
    assert close(imported, pixels(), expected)
    assert (imported.family, imported.spec.classes, imported.spec.max_length) == ("deit", 5, 11)


@pytest.mark.parametrize("no_pooler", [False, True])
def test_deit_without_a_head(no_pooler: bool) -> None:
    model = make("DeiT", "Model", no_pooler=no_pooler)
    imported = import_model(model)
    with torch.inference_mode():
        output = model(**pixels())
    expected = output.last_hidden_state[:, 0] if no_pooler else output.pooler_output
    assert close(imported, pixels(), expected)
    assert imported.spec.pooler != no_pooler


# --- graphs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("DistilBert", "ForSequenceClassification"), ("Roberta", "ForSequenceClassification"),
        ("Albert", "ForSequenceClassification"), ("GPT2", "LMHeadModel"), ("DeiT", "ForImageClassification"),
    ],
)
def test_the_graph_of_an_import_answers_as_the_original(family: str, kind: str) -> None:
    model = make(family, kind)
    imported, inputs = import_model(model), pixels() if family == "DeiT" else tokens(1)
    with torch.inference_mode():
        expected = model(**inputs).logits.numpy()
    arrays = {name: value.numpy() for name, value in inputs.items()}
    found = run_graph(write_graph(imported.spec, imported.weights), arrays)
    if family == "GPT2":
        kept = arrays["attention_mask"] == 1
        found, expected = found[kept], expected[kept]
    assert np.abs(found - expected).max() < 1e-4 * max(1.0, np.abs(expected).max())


# --- refusals -------------------------------------------------------------------------------------------------------


def with_positions_of_its_own() -> Any:
    model = make("DistilBert")
    model.distilbert.embeddings.position_ids += 1
    return model


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda: make("DistilBert", activation="silu"), ["config.activation ", "silu"]),
        (lambda: make("DistilBert", num_labels=1), ["num_labels", "1"]),
        (with_positions_of_its_own, ["distilbert", "position_ids"]),
        (lambda: make("Roberta", hidden_act="silu"), ["roberta", "hidden_act", "silu"]),
        (lambda: make("Roberta", "Model", is_decoder=True), ["roberta", "is_decoder"]),
        (lambda: make("Roberta", pad_token_id=None), ["roberta", "config.pad_token_id"]),
        (lambda: make("Roberta", problem_type="regression"), ["problem_type", "regression"]),
        (lambda: make("Albert", hidden_act="mish"), ["albert", "hidden_act", "mish"]),
        (lambda: make("GPT2", "LMHeadModel", activation_function="silu"), ["config.activation_function", "silu"]),
        (lambda: make("GPT2", "LMHeadModel", add_cross_attention=True), ["config.add_cross_attention"]),
        (lambda: make("GPT2", "LMHeadModel", tie_word_embeddings=False), ["config.tie_word_embeddings"]),
        (lambda: make("GPT2", "ForSequenceClassification"), ["GPT2ForSequenceClassification", "GPT2LMHeadModel"]),
        (lambda: make("DeiT", "ForImageClassificationWithTeacher"), ["WithTeacher", "distillation_classifier"]),
        (lambda: make("DeiT", "Model", pooler_act="relu"), ["deit", "pooler_act", "relu"]),
        (lambda: SentenceEncoder(make("Bert", "Model"), "max"), ["pooling", "'max'"]),  # type: ignore[arg-type]
        (lambda: SentenceEncoder(make("Bert"), "mean"), ["BertForSequenceClassification", "without a head"]),
        (lambda: SentenceEncoder(make("GPT2", "Model"), "mean"), ["GPT2Model"]),
    ],
)
def test_what_is_not_covered_is_named(broken: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        import_model(broken())
    assert all(word in str(caught.value) for word in words), str(caught.value)


# --- the pooler's activation in the spec ----------------------------------------------------------------------------


def test_the_poolers_activation_in_the_document() -> None:
    spec = import_model(make("DistilBert")).spec
    document = to_json(spec)
    assert document["pooler_activation"] == "relu"
    assert from_json(document) == spec
    assert "pooler_activation" not in to_json(import_model(make("Roberta")).spec)


@pytest.mark.parametrize("changes", [{"pooler_activation": "gelu"}, {"pooler_activation": 1}, {"pooler": False}])
def test_other_activations_of_the_pooler_are_no_model(changes: dict[str, Any]) -> None:
    document = to_json(import_model(make("DistilBert")).spec) | changes
    with pytest.raises(PackageError, match="pooler_activation"):
        from_json(document)
