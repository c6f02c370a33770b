"""BERT of transformers 5.x (also MiniLM and other checkpoints of model type `bert`).

`BertForSequenceClassification` → class token, pooler, classifier. `BertModel` → mean of the tokens (as sentence
encoders use it); its pooler is dropped. All tokens are of type 0: that row is folded into the positions, so
inputs of two sentences with token types are not covered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgesdk.errors import ModelError
from edgesdk.transformer.importers.draft import (
    Draft,
    activation_of,
    classes_of,
    comes_from,
    labels_of,
    linear,
    norm,
    refuse_config,
)
from edgesdk.transformer.spec import Layer, TokenEmbedding, TransformerSpec

FAMILY = "bert"
MODULE = "transformers.models.bert.modeling_bert"
COVERS = "BertForSequenceClassification, BertModel (transformers)"


def covers(model: object) -> bool:
    return comes_from(model, MODULE, "BertForSequenceClassification") or comes_from(model, MODULE, "BertModel")


def draft(model: Any, sequence: int | None) -> Draft:
    """Read a BERT model in evaluation mode.

    Raises:
        ModelError: a configuration key asks for something that is not covered.
    """
    config = model.config
    _refuse_uncovered(config)
    classification = comes_from(model, MODULE, "BertForSequenceClassification")
    bert = model.bert if classification else model
    embeddings = bert.embeddings
    positions = embeddings.position_embeddings.weight
    if not torch.equal(embeddings.position_ids.reshape(-1), torch.arange(len(positions))):
        raise ModelError(
            f"{FAMILY} import: position_ids do not count from 0 to {len(positions) - 1}",
            "models with a position offset (RoBERTa) are not covered",
        )
    weights: dict[str, Tensor] = {
        "embedding.tokens.weight": embeddings.word_embeddings.weight,
        "embedding.positions.weight": positions + embeddings.token_type_embeddings.weight[0],
        **norm("embedding.norm", embeddings.LayerNorm),
    }
    parts: dict[str, nn.Module] = {"embedding": embeddings}
    layers = []
    for index, block in enumerate(bert.encoder.layer):
        layers.append(_layer(block))
        weights |= _layer_weights(f"layers.{index}", block)
        parts[f"layers.{index}"] = block
    if classification:
        weights |= linear("pooler", bert.pooler.dense) | linear("classifier", model.classifier)
        parts["classifier"] = model.classifier
    classes = classes_of(FAMILY, config) if classification else None
    spec = TransformerSpec(
        embedding=TokenEmbedding(vocabulary=embeddings.word_embeddings.num_embeddings, max_length=len(positions)),
        hidden=config.hidden_size,
        layers=tuple(layers),
        norm="post",
        norm_epsilon=float(config.layer_norm_eps),
        activation=activation_of(FAMILY, config.hidden_act),
        pooling="cls" if classification else "mean",
        pooler=classification,
        classes=classes,
    )

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], return_dict=True)
        if classification:
            logits: Tensor = output.logits
            return logits
        weight = inputs["attention_mask"][:, :, None].to(output.last_hidden_state.dtype)
        mean: Tensor = (output.last_hidden_state * weight).sum(1) / weight.sum(1)
        return mean

    return Draft(spec, weights, forward, parts, labels_of(config, classes) if classes else None)


def _refuse_uncovered(config: Any) -> None:
    for key in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
        if getattr(config, key, False):
            refuse_config(FAMILY, key, getattr(config, key), "False (encoders)")
    kind = getattr(config, "position_embedding_type", "absolute")
    if kind != "absolute":
        refuse_config(FAMILY, "position_embedding_type", kind, "absolute")
    activation_of(FAMILY, config.hidden_act)


def _layer(block: Any) -> Layer:
    heads = block.attention.self.num_attention_heads
    return Layer(
        heads=heads,
        kv_heads=heads,
        head_size=block.attention.self.attention_head_size,
        ffn=block.intermediate.dense.out_features,
    )


def _layer_weights(prefix: str, block: Any) -> dict[str, Tensor]:
    return {
        **linear(f"{prefix}.attention.query", block.attention.self.query),
        **linear(f"{prefix}.attention.key", block.attention.self.key),
        **linear(f"{prefix}.attention.value", block.attention.self.value),
        **linear(f"{prefix}.attention.output", block.attention.output.dense),
        **norm(f"{prefix}.attention.norm", block.attention.output.LayerNorm),
        **linear(f"{prefix}.ffn.up", block.intermediate.dense),
        **linear(f"{prefix}.ffn.down", block.output.dense),
        **norm(f"{prefix}.ffn.norm", block.output.LayerNorm),
    }
