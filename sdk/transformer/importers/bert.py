"""BERT of transformers 5.x (also MiniLM and other checkpoints of model type `bert`).

`BertForSequenceClassification` → class token, pooler, classifier. `BertModel` → mean of the tokens (as sentence
encoders use it); its pooler is dropped. All tokens are of type 0: that row is folded into the positions, so
inputs of two sentences with token types are not covered.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from edgesdk.transformer.importers.draft import Draft, activation_of, comes_from, linear, norm
from edgesdk.transformer.importers.text_encoder import EncoderSizes, refuse_decoder, text_draft, token_positions
from edgesdk.transformer.spec import Layer, TokenEmbedding

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
    refuse_decoder(FAMILY, config)
    activation = activation_of(FAMILY, config.hidden_act)
    classification = comes_from(model, MODULE, "BertForSequenceClassification")
    bert = model.bert if classification else model
    embeddings = bert.embeddings
    positions = token_positions(FAMILY, embeddings)
    weights: dict[str, Tensor] = {
        "embedding.tokens.weight": embeddings.word_embeddings.weight,
        "embedding.positions.weight": positions + embeddings.token_type_embeddings.weight[0],
        **norm("embedding.norm", embeddings.LayerNorm),
    }
    parts: dict[str, nn.Module] = {"embedding": embeddings}
    layers = []
    for index, block in enumerate(bert.encoder.layer):
        layers.append(layer_of(block))
        weights |= layer_weights(f"layers.{index}", block)
        parts[f"layers.{index}"] = block
    if classification:
        weights |= linear("pooler", bert.pooler.dense) | linear("classifier", model.classifier)
        parts["classifier"] = model.classifier
    embedding = TokenEmbedding(vocabulary=embeddings.word_embeddings.num_embeddings, max_length=len(positions))
    sizes = EncoderSizes(config.hidden_size, float(config.layer_norm_eps), activation)
    return text_draft(FAMILY, model, classification, embedding, sizes, layers, weights, parts)


def layer_of(block: Any) -> Layer:
    """Sizes of a layer of BERT, or of a family that builds its layers in the same way (RoBERTa)."""
    heads = block.attention.self.num_attention_heads
    return Layer(
        heads=heads,
        kv_heads=heads,
        head_size=block.attention.self.attention_head_size,
        ffn=block.intermediate.dense.out_features,
    )


def layer_weights(prefix: str, block: Any) -> dict[str, Tensor]:
    """Weights of such a layer under their canonical names."""
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
