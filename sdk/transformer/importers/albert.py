"""ALBERT of transformers 5.x: narrow token and position tables that one linear layer widens, and layers that share
their weights.

`AlbertForSequenceClassification` → class token, pooler, classifier. `AlbertModel` → mean of the tokens; its pooler is
dropped. Every layer that runs is a layer of the spec; those that run again share the first one's weights. Token type 0
is folded into the positions.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from edgesdk.transformer.importers.draft import Draft, activation_of, comes_from, linear, norm
from edgesdk.transformer.importers.text_encoder import EncoderSizes, refuse_decoder, text_draft, token_positions
from edgesdk.transformer.spec import Layer, TokenEmbedding

FAMILY = "albert"
MODULE = "transformers.models.albert.modeling_albert"
COVERS = "AlbertForSequenceClassification, AlbertModel (transformers)"
CLASSIFIER = "AlbertForSequenceClassification"


def covers(model: object) -> bool:
    return comes_from(model, MODULE, CLASSIFIER) or comes_from(model, MODULE, "AlbertModel")


def draft(model: Any, sequence: int | None) -> Draft:
    """Read an ALBERT model in evaluation mode.

    Raises:
        ModelError: a configuration key asks for something that is not covered.
    """
    config = model.config
    refuse_decoder(FAMILY, config)
    activation = activation_of(FAMILY, config.hidden_act)
    classification = comes_from(model, MODULE, CLASSIFIER)
    albert = model.albert if classification else model
    embeddings, widening = albert.embeddings, albert.encoder.embedding_hidden_mapping_in
    positions = token_positions(FAMILY, embeddings)
    weights: dict[str, Tensor] = {
        "embedding.tokens.weight": embeddings.word_embeddings.weight,
        "embedding.positions.weight": positions + embeddings.token_type_embeddings.weight[0],
        **norm("embedding.norm", embeddings.LayerNorm),
        **linear("embedding.projection", widening),
    }
    parts: dict[str, nn.Module] = {"embedding": widening}
    layers: list[Layer] = []
    owners: dict[nn.Module, int] = {}
    for index, block in enumerate(_blocks(albert.encoder)):
        if block in owners:
            owner = owners[block]
            layers.append(dataclasses.replace(layers[owner], share=owner))
            continue
        owners[block] = index
        layers.append(_layer(block))
        weights |= _layer_weights(f"layers.{index}", block)
        parts[f"layers.{index}"] = block
    if classification:
        weights |= linear("pooler", albert.pooler) | linear("classifier", model.classifier)
        parts |= {"pooler": albert.pooler, "classifier": model.classifier}
    embedding = TokenEmbedding(
        vocabulary=embeddings.word_embeddings.num_embeddings, max_length=len(positions), width=config.embedding_size,
        project="all",
    )
    sizes = EncoderSizes(config.hidden_size, float(config.layer_norm_eps), activation)
    return text_draft(FAMILY, model, classification, embedding, sizes, layers, weights, parts)


def _blocks(encoder: Any) -> list[nn.Module]:
    """The layers in the order in which they run, shared ones several times: `num_hidden_layers` runs of groups, each of
    them `inner_group_num` layers."""
    runs, groups = encoder.config.num_hidden_layers, encoder.config.num_hidden_groups
    blocks: list[nn.Module] = []
    for run in range(runs):
        blocks += encoder.albert_layer_groups[int(run / (runs / groups))].albert_layers  # as transformers rounds
    return blocks


def _layer(block: Any) -> Layer:
    heads = block.attention.num_attention_heads
    return Layer(heads=heads, kv_heads=heads, head_size=block.attention.attention_head_size, ffn=block.ffn.out_features)


def _layer_weights(prefix: str, block: Any) -> dict[str, Tensor]:
    return {
        **linear(f"{prefix}.attention.query", block.attention.query),
        **linear(f"{prefix}.attention.key", block.attention.key),
        **linear(f"{prefix}.attention.value", block.attention.value),
        **linear(f"{prefix}.attention.output", block.attention.dense),
        **norm(f"{prefix}.attention.norm", block.attention.LayerNorm),
        **linear(f"{prefix}.ffn.up", block.ffn),
        **linear(f"{prefix}.ffn.down", block.ffn_output),
        **norm(f"{prefix}.ffn.norm", block.full_layer_layer_norm),
    }
