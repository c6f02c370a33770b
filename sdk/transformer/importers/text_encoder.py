"""What the text encoders of transformers have in common: positions, pooling, the spec of a post-norm encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgesdk.errors import ModelError
from edgesdk.transformer.importers.draft import Draft, classes_of, labels_of, refuse_config
from edgesdk.transformer.spec import Activation, Layer, PoolerActivation, TokenEmbedding, TransformerSpec


@dataclass(frozen=True)
class EncoderSizes:
    """What a family reads from its configuration, besides the embedding and the layers."""

    hidden: int
    norm_epsilon: float
    activation: Activation
    pooler_activation: PoolerActivation = "tanh"


def text_draft(
    family: str, model: Any, classification: bool, embedding: TokenEmbedding, sizes: EncoderSizes,
    layers: Sequence[Layer], weights: dict[str, Tensor], parts: Mapping[str, nn.Module], padding: int | None = None,
) -> Draft:
    """The draft of a post-norm encoder: with a classification head (first token, pooler, classifier) it gives logits,
    else the mean of its tokens.

    Raises:
        ModelError: the classification head is not for one label of several.
    """
    classes = classes_of(family, model.config) if classification else None
    spec = TransformerSpec(
        embedding=embedding,
        hidden=sizes.hidden,
        layers=tuple(layers),
        norm="post",
        norm_epsilon=sizes.norm_epsilon,
        activation=sizes.activation,
        pooling="cls" if classification else "mean",
        pooler=classification,
        pooler_activation=sizes.pooler_activation,
        classes=classes,
    )

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], return_dict=True)
        if classification:
            logits: Tensor = output.logits
            return logits
        return mean_of_tokens(output.last_hidden_state, inputs["attention_mask"])

    return Draft(spec, weights, forward, parts, labels_of(model.config, classes) if classes else None, padding)


def token_positions(family: str, embeddings: Any) -> Tensor:
    """The table of positions [S, H] of embeddings that count them from 0.

    Raises:
        ModelError: the positions are counted in another way.
    """
    table: Tensor = embeddings.position_embeddings.weight
    if not torch.equal(embeddings.position_ids.reshape(-1), torch.arange(len(table))):
        raise ModelError(f"{family} import: position_ids do not count from 0 to {len(table) - 1}")
    return table


def refuse_decoder(family: str, config: Any) -> None:
    """ModelError where the configuration of an encoder makes it a decoder, or positions are not absolute."""
    for key in ("is_decoder", "add_cross_attention", "is_encoder_decoder"):
        if getattr(config, key, False):
            refuse_config(family, key, getattr(config, key), "False (encoders)")
    kind = getattr(config, "position_embedding_type", "absolute")
    if kind != "absolute":
        refuse_config(family, "position_embedding_type", kind, "absolute")


def mean_of_tokens(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """[B, S, H] → [B, H]: the mean of the rows that are not padding."""
    weight = attention_mask[:, :, None].to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1)
