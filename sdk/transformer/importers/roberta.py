"""RoBERTa of transformers 5.x: BERT whose positions begin behind the id of the padding token.

`RobertaForSequenceClassification` → first token (`<s>`), pooler (the dense layer of its head), classifier.
`RobertaModel` → mean of the tokens; its pooler is dropped. Position p of the canonical table is row p + padding id + 1
of RoBERTa's; rows before that are never looked up but by padding, which is masked.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from edgesdk.transformer.importers.bert import layer_of, layer_weights
from edgesdk.transformer.importers.draft import Draft, activation_of, comes_from, linear, norm, refuse_config
from edgesdk.transformer.importers.text_encoder import EncoderSizes, refuse_decoder, text_draft
from edgesdk.transformer.spec import TokenEmbedding

FAMILY = "roberta"
MODULE = "transformers.models.roberta.modeling_roberta"
COVERS = "RobertaForSequenceClassification, RobertaModel (transformers)"
CLASSIFIER = "RobertaForSequenceClassification"


def covers(model: object) -> bool:
    return comes_from(model, MODULE, CLASSIFIER) or comes_from(model, MODULE, "RobertaModel")


def draft(model: Any, sequence: int | None) -> Draft:
    """Read a RoBERTa model in evaluation mode.

    Raises:
        ModelError: a configuration key asks for something that is not covered.
    """
    config = model.config
    refuse_decoder(FAMILY, config)
    activation = activation_of(FAMILY, config.hidden_act)
    classification = comes_from(model, MODULE, CLASSIFIER)
    roberta = model.roberta if classification else model
    embeddings = roberta.embeddings
    padding, table = embeddings.padding_idx, embeddings.position_embeddings.weight
    if not isinstance(padding, int) or not 0 <= padding < len(table) - 1:
        refuse_config(FAMILY, "pad_token_id", padding, f"0 to {len(table) - 2} (positions begin behind it)")
    positions = table[padding + 1 :]
    weights: dict[str, Tensor] = {
        "embedding.tokens.weight": embeddings.word_embeddings.weight,
        "embedding.positions.weight": positions + embeddings.token_type_embeddings.weight[0],
        **norm("embedding.norm", embeddings.LayerNorm),
    }
    parts: dict[str, nn.Module] = {"embedding": embeddings}
    layers = []
    for index, block in enumerate(roberta.encoder.layer):
        layers.append(layer_of(block))
        weights |= layer_weights(f"layers.{index}", block)
        parts[f"layers.{index}"] = block
    if classification:
        weights |= linear("pooler", model.classifier.dense) | linear("classifier", model.classifier.out_proj)
        parts |= {"pooler": model.classifier.dense, "classifier": model.classifier.out_proj}
    embedding = TokenEmbedding(vocabulary=embeddings.word_embeddings.num_embeddings, max_length=len(positions))
    sizes = EncoderSizes(config.hidden_size, float(config.layer_norm_eps), activation)
    return text_draft(FAMILY, model, classification, embedding, sizes, layers, weights, parts, padding=padding)
