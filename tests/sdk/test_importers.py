"""Imports agree with their originals, and what is not covered, or disagrees, is refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgesdk.errors import ConfigError, ModelError
from edgesdk.transformer import importers
from edgesdk.transformer.importers import EncoderClassifier, Imported, bert, import_model, torch_encoder
from edgesdk.transformer.module import build

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor", "ignore:The PyTorch API of nested")

H, HEADS = 32, 4
BERT = {
    "vocab_size": 90, "hidden_size": H, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": 48,
    "max_position_embeddings": 40,
}
VIT = {
    "hidden_size": H, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": 48, "image_size": 12,
    "patch_size": 4, "num_channels": 2,
}


def randomized(model: nn.Module) -> Any:
    """Weights large enough that every part of the model shows in its output (biases and norms too)."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + 0.2 * noise if parameter.ndim == 1 else 0.3 * noise)
    return model.eval()


def bert_model(kind: str = "BertForSequenceClassification", **options: Any) -> Any:
    import transformers

    kwargs = {"add_pooling_layer": False} if options.pop("no_pooler", False) else {}
    return randomized(getattr(transformers, kind)(transformers.BertConfig(**(BERT | options)), **kwargs))


def vit_model(kind: str = "ViTForImageClassification", **options: Any) -> Any:
    import transformers

    kwargs = {"add_pooling_layer": False} if options.pop("no_pooler", False) else {}
    return randomized(getattr(transformers, kind)(transformers.ViTConfig(**(VIT | options)), **kwargs))


def encoder(norm_first: bool, batch_first: bool, activation: Any = "relu", **options: Any) -> nn.TransformerEncoder:
    layers = [
        nn.TransformerEncoderLayer(
            H, HEADS, ffn, activation=activation, norm_first=norm_first, batch_first=batch_first, **options
        )
        for ffn in (48, 20)
    ]
    stack = nn.TransformerEncoder(layers[0], 2, norm=nn.LayerNorm(H) if norm_first else None)
    stack.layers = nn.ModuleList(layers)  # layers of different widths
    model: nn.TransformerEncoder = randomized(stack)
    return model


def classifier(
    stack: nn.TransformerEncoder, pooling: Any = "mean", table: bool = False, kind: type[Any] = EncoderClassifier
) -> Any:
    positions = nn.Embedding(24, H) if table else nn.Parameter(torch.zeros(24, H))
    return randomized(kind(nn.Embedding(50, H), positions, stack, pooling, nn.Linear(H, 3)))


def logits_of(imported: Imported, **inputs: Tensor) -> Tensor:
    with torch.inference_mode():
        output: Tensor = build(imported.spec, imported.weights)(inputs)
    return output


def tokens(vocabulary: int, width: int) -> tuple[Tensor, Tensor]:
    """Other samples than those of the importer: four rows, padded to `width`."""
    ids = torch.randint(1, vocabulary, (4, width), generator=torch.Generator().manual_seed(5))
    mask = (torch.arange(width) < torch.tensor([[width], [7], [3], [1]])).long()
    return ids, mask


# --- agreement ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_bert_classifier(hidden_act: str) -> None:
    model = bert_model(hidden_act=hidden_act, num_labels=3)
    imported = import_model(model)
    ids, mask = tokens(90, 21)
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).logits
    assert (logits_of(imported, input_ids=ids, attention_mask=mask) - expected).abs().max() < 1e-4
    assert (imported.family, imported.task, imported.labels) == ("bert", "classification", None)
    assert imported.difference <= 1e-4
    assert imported.spec.activation == {"gelu": "gelu", "relu": "relu"}.get(hidden_act, "gelu_tanh")
    assert all(value.dtype == np.float32 for value in imported.weights.values())


def test_labels_come_from_the_config() -> None:
    labels = {0: "sad", 1: "glad", 2: "mad"}
    assert import_model(bert_model(id2label=labels)).labels == ["sad", "glad", "mad"]


@pytest.mark.parametrize("no_pooler", [False, True])
def test_bert_without_a_head_is_mean_pooled(no_pooler: bool) -> None:
    model = bert_model("BertModel", no_pooler=no_pooler)
    imported = import_model(model, sequence=16)
    ids, mask = tokens(90, 16)
    with torch.inference_mode():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    expected = torch.stack([row[keep.bool()].mean(0) for row, keep in zip(hidden, mask, strict=True)])
    assert (logits_of(imported, input_ids=ids, attention_mask=mask) - expected).abs().max() < 1e-4
    assert (imported.task, imported.spec.output, imported.spec.pooler) == ("encoding", "embedding", False)


@pytest.mark.parametrize("options", [{}, {"qkv_bias": False}, {"image_size": [12, 12], "patch_size": (4, 4)}])
def test_vit_classifier(options: dict[str, Any]) -> None:
    model = vit_model(num_labels=5, **options)
    imported = import_model(model)
    pixels = torch.randn(3, 2, 12, 12, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = model(pixel_values=pixels).logits
    assert (logits_of(imported, pixel_values=pixels) - expected).abs().max() < 1e-4
    assert (imported.family, imported.task, imported.spec.classes) == ("vit", "classification", 5)
    has_bias = options.get("qkv_bias", True)
    assert imported.weights["layers.0.attention.query.bias"].any() == has_bias


@pytest.mark.parametrize("no_pooler", [False, True])
def test_vit_without_a_head(no_pooler: bool) -> None:
    model = vit_model("ViTModel", no_pooler=no_pooler)
    imported = import_model(model)
    pixels = torch.randn(3, 2, 12, 12, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        output = model(pixel_values=pixels)
    expected = output.last_hidden_state[:, 0] if no_pooler else output.pooler_output
    assert (logits_of(imported, pixel_values=pixels) - expected).abs().max() < 1e-4
    assert (imported.task, imported.spec.pooler) == ("encoding", not no_pooler)


@pytest.mark.parametrize("activation", ["relu", "gelu", nn.GELU(approximate="tanh"), nn.ReLU()])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_torch_encoder(norm_first: bool, batch_first: bool, activation: Any) -> None:
    model = encoder(norm_first, batch_first, activation)
    imported = import_model(model, sequence=10)
    features = torch.randn(2, 10, H, generator=torch.Generator().manual_seed(3))
    expected = torch_encoder.run_encoder(model, features, None)  # with gradients: the slow path of torch
    assert (logits_of(imported, features=features) - expected).abs().max() < 1e-4
    assert (imported.task, imported.spec.output, imported.spec.max_length) == ("encoding", "hidden_states", 10)
    assert [layer.ffn for layer in imported.spec.layers] == [48, 20]
    assert (imported.spec.norm, imported.spec.final_norm) == (("pre", True) if norm_first else ("post", False))


def test_torch_encoder_without_biases() -> None:
    imported = import_model(encoder(True, True, bias=False))
    assert not imported.weights["layers.1.ffn.up.bias"].any()


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_encoder_classifier(batch_first: bool, pooling: str, table: bool) -> None:
    model = classifier(encoder(False, batch_first, "gelu"), pooling, table)
    imported = import_model(model)
    ids, mask = tokens(50, 20)
    with torch.inference_mode():
        expected = model(ids, mask)
    assert (logits_of(imported, input_ids=ids, attention_mask=mask) - expected).abs().max() < 1e-4
    assert (imported.task, imported.spec.classes, imported.spec.max_length) == ("classification", 3, 24)


def test_the_model_itself_stays_as_it_is() -> None:
    model = classifier(encoder(False, True)).half().train()
    fast = torch.backends.mha.get_fastpath_enabled()
    import_model(model)
    assert model.training and next(model.parameters()).dtype == torch.float16
    assert torch.backends.mha.get_fastpath_enabled() == fast


def uneven_epsilon() -> nn.TransformerEncoder:
    """A final norm with another epsilon than the layers'."""
    model = encoder(True, True)
    model.norm = nn.LayerNorm(H, 0.1)
    return model


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: bert_model(hidden_act="silu"), ["hidden_act", "silu"]),
        (lambda: bert_model("BertModel", is_decoder=True), ["is_decoder"]),
        (lambda: bert_model(position_embedding_type="relative_key"), ["position_embedding_type", "relative_key"]),
        (lambda: bert_model(num_labels=1), ["num_labels", "1"]),
        (lambda: bert_model(problem_type="multi_label_classification"), ["problem_type", "multi_label"]),
        (lambda: vit_model(image_size=[12, 8]), ["image_size", "[12, 8]"]),
        (lambda: vit_model("ViTModel", pooler_act="relu"), ["pooler_act", "relu"]),
        (lambda: vit_model("ViTModel", pooler_output_size=16), ["pooler_output_size", "16"]),
        (lambda: encoder(False, True, nn.SiLU()), ["layers.0.activation", "SiLU"]),
        (uneven_epsilon, ["eps", "0.1"]),
        (lambda: classifier(encoder(False, True), "max"), ["pooling", "'max'"]),
        (lambda: nn.Linear(2, 2), ["torch.nn.modules.linear.Linear", "BertModel", "TransformerEncoder", "ONNX"]),
        (lambda: {"not": "a model"}, ["builtins.dict"]),
    ],
)
def test_what_is_not_covered_is_named(make: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        import_model(make())
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_position_offset_is_refused() -> None:
    model = bert_model()
    model.bert.embeddings.position_ids += 2
    with pytest.raises(ModelError, match="position_ids"):
        import_model(model)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = encoder(False, True)
    with torch.no_grad():
        model.layers[1].linear1.bias[3] = float("nan")
    with pytest.raises(ModelError, match=r"layers\.1\.ffn\.up\.bias has 1 values that are not finite"):
        import_model(model)


def test_a_wrong_import_is_refused_and_its_place_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bert_model()

    def corrupted(original: Any, sequence: int | None) -> Any:
        draft = bert.draft(original, sequence)
        swapped = {
            "layers.1.attention.query.weight": draft.weights["layers.1.attention.key.weight"],
            "layers.1.attention.key.weight": draft.weights["layers.1.attention.query.weight"],
        }
        return dataclasses.replace(draft, weights=draft.weights | swapped)

    family = dataclasses.replace(importers.IMPORTERS[0], draft=corrupted)
    monkeypatch.setattr(importers, "IMPORTERS", (family,))
    with pytest.raises(ModelError, match=r"differs from the original by .* it begins in layers\.1"):
        import_model(model)


class Scaled(EncoderClassifier):
    """Has the attributes of an EncoderClassifier and computes something else."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return super().forward(input_ids, attention_mask) * 1.001


class Unmasked(EncoderClassifier):
    """Looks at padding."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return super().forward(input_ids, torch.ones_like(attention_mask))


class Broken(EncoderClassifier):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        raise KeyError("segment_ids")


@pytest.mark.parametrize(
    ("kind", "words"), [(Scaled, "differs"), (Unmasked, "differs"), (Broken, "failed on sample inputs: KeyError")]
)
def test_the_users_own_forward_is_what_counts(kind: type[EncoderClassifier], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        import_model(classifier(encoder(False, True), kind=kind))


def test_a_model_of_another_build_is_refused_without_a_traceback() -> None:
    model = bert_model()
    del model.bert.encoder.layer[1].attention.output.dense
    with pytest.raises(ModelError, match="not built as expected: AttributeError"):
        import_model(model)


@pytest.mark.parametrize("sequence", [0, -1, 25])
def test_sequences_outside_the_model(sequence: int) -> None:
    with pytest.raises(ConfigError, match=f"sequence is {sequence}"):
        import_model(classifier(encoder(False, True)), sequence=sequence)
