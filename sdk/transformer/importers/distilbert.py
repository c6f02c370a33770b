"""DistilBERT of transformers 5.x: BERT without token types and without the pooler of BERT.

`DistilBertForSequenceClassification` → class token, pooler (its `pre_classifier`, with ReLU), classifier.
`DistilBertModel` → mean of the tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from edgesdk.transformer.importers.draft import Draft, activation_of, comes_from, linear, norm
from edgesdk.transformer.importers.text_encoder import EncoderSizes, refuse_decoder, text_draft, token_positions
from edgesdk.transformer.spec import Layer, TokenEmbedding

FAMILY = "distilbert"
MODULE = "transformers.models.distilbert.modeling_distilbert"
COVERS = "DistilBertForSequenceClassification, DistilBertModel (transformers)"
CLASSIFIER = "DistilBertForSequenceClassification"


def covers(model: object) -> bool:
    return comes_from(model, MODULE, CLASSIFIER) or comes_from(model, MODULE, "DistilBertModel")


def draft(model: Any, sequence: int | None) -> Draft:
    """Read a DistilBERT model in evaluation mode.

    Raises:
        ModelError: a configuration key asks for something that is not covered.
    """
    config = model.config
    refuse_decoder(FAMILY, config)
    activation = activation_of(FAMILY, config.activation, key="activation")
    classification = comes_from(model, MODULE, CLASSIFIER)
    distilbert = model.distilbert if classification else model
    embeddings = distilbert.embeddings
    positions = token_positions(FAMILY, embeddings)
    weights: dict[str, Tensor] = {
        "embedding.tokens.weight": embeddings.word_embeddings.weight,
        "embedding.positions.weight": positions,
        **norm("embedding.norm", embeddings.LayerNorm),
    }
    parts: dict[str, nn.Module] = {"embedding": embeddings}
    layers = []
    for index, block in enumerate(distilbert.transformer.layer):
        layers.append(_layer(block))
        weights |= _layer_weights(f"layers.{index}", block)
        parts[f"layers.{index}"] = block
    if classification:
        weights |= linear("pooler", model.pre_classifier) | linear("classifier", model.classifier)
        parts |= {"pooler": model.pre_classifier, "classifier": model.classifier}
    embedding = TokenEmbedding(vocabulary=embeddings.word_embeddings.num_embeddings, max_length=len(positions))
    # The epsilon is a constant of DistilBERT, not in its configuration.
    sizes = EncoderSizes(config.dim, float(embeddings.LayerNorm.eps), activation, "relu" if classification else "tanh")
    return text_draft(FAMILY, model, classification, embedding, sizes, layers, weights, parts)


def _layer(block: Any) -> Layer:
    heads = block.attention.n_heads
    head_size = block.attention.attention_head_size
    return Layer(heads=heads, kv_heads=heads, head_size=head_size, ffn=block.ffn.lin1.out_features)


def _layer_weights(prefix: str, block: Any) -> dict[str, Tensor]:
    return {
        **linear(f"{prefix}.attention.query", block.attention.q_lin),
        **linear(f"{prefix}.attention.key", block.attention.k_lin),
        **linear(f"{prefix}.attention.value", block.attention.v_lin),
        **linear(f"{prefix}.attention.output", block.attention.out_lin),
        **norm(f"{prefix}.attention.norm", block.sa_layer_norm),
        **linear(f"{prefix}.ffn.up", block.ffn.lin1),
        **linear(f"{prefix}.ffn.down", block.ffn.lin2),
        **norm(f"{prefix}.ffn.norm", block.output_layer_norm),
    }
