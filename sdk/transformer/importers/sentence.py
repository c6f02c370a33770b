"""A sentence encoder: an encoder without a head, and how one vector is made of its tokens.

`edgesdk.model_source` makes it of a folder of sentence-transformers, whose own pooling counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from edgesdk.errors import ModelError
from edgesdk.transformer.importers import albert, bert, distilbert, roberta
from edgesdk.transformer.importers.draft import Draft
from edgesdk.transformer.importers.text_encoder import mean_of_tokens

FAMILY = "sentence"
COVERS = "SentenceEncoder (edgesdk.transformer.importers) of one of the encoders above"
ENCODERS = (bert, distilbert, roberta, albert)
NORMALIZED = (
    "the sentence encoder ends in a normalisation to length 1, which the package leaves out: cosine similarities stay "
    "what they are; divide by the length before comparing by dot product or distance"
)


class SentenceEncoder(nn.Module):
    """An encoder of transformers with the pooling of a sentence encoder: `forward(input_ids, attention_mask)`, int64
    [B, S], gives [B, H], the mean of the tokens or the first token.

    Attributes:
        normalized: the original makes vectors of length 1 of them; `forward` does not.
    """

    def __init__(self, encoder: nn.Module, pooling: Literal["mean", "cls"], normalized: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.normalized = normalized

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
        hidden: Tensor = output.last_hidden_state
        return mean_of_tokens(hidden, attention_mask) if self.pooling == "mean" else hidden[:, 0]


def covers(model: object) -> bool:
    return isinstance(model, SentenceEncoder)


def draft(model: nn.Module, sequence: int | None) -> Draft:
    """Read the encoder by its own family's importer, with the pooling of the sentence encoder.

    Raises:
        ModelError: the encoder is of no covered family or has a head, or the pooling is not `mean` or `cls`.
    """
    assert isinstance(model, SentenceEncoder)
    if model.pooling not in ("mean", "cls"):
        raise ModelError(f"{FAMILY} import: pooling is {model.pooling!r}, covered: 'mean' and 'cls'")
    family = next((family for family in ENCODERS if family.covers(model.encoder)), None)
    inner: Draft | None = None if family is None else family.draft(model.encoder, sequence)
    if family is None or inner is None or inner.spec.classes is not None:
        raise ModelError(
            f"{FAMILY} import: {type(model.encoder).__qualname__} is no encoder that is covered",
            f"covered without a head: {', '.join(family.FAMILY for family in ENCODERS)}",
        )
    spec = dataclasses.replace(inner.spec, pooling=model.pooling)

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        pooled: Tensor = model(inputs["input_ids"], inputs["attention_mask"])
        return pooled

    notes = (NORMALIZED,) if model.normalized else ()
    return dataclasses.replace(inner, spec=spec, forward=forward, notes=notes, family=family.FAMILY)
