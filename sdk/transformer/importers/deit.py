"""DeiT of transformers 5.x: ViT with a distillation token behind the class token.

`DeiTForImageClassification` (its one head reads the class token) and `DeiTModel` (with its pooler, or the class token
without). `DeiTForImageClassificationWithTeacher` averages two heads that read two tokens, which no one head on one
token can do: it is refused.
"""

from __future__ import annotations

from typing import Any

from edgesdk.errors import ModelError
from edgesdk.transformer.importers import vit
from edgesdk.transformer.importers.draft import Draft, comes_from

FAMILY = "deit"
MODULE = "transformers.models.deit.modeling_deit"
COVERS = "DeiTForImageClassification, DeiTModel (transformers)"
TEACHER = "DeiTForImageClassificationWithTeacher"


def covers(model: object) -> bool:
    return any(comes_from(model, MODULE, name) for name in ("DeiTForImageClassification", "DeiTModel", TEACHER))


def draft(model: Any, sequence: int | None) -> Draft:
    """Read a DeiT model in evaluation mode.

    Raises:
        ModelError: a configuration key asks for something that is not covered, or the model has two heads.
    """
    if comes_from(model, MODULE, TEACHER):
        raise ModelError(
            f"{FAMILY} import: {TEACHER} averages two heads, cls_classifier on the class token and "
            "distillation_classifier on the distillation token; the canonical Transformer has one head on one token",
            "make a DeiTForImageClassification of it, with cls_classifier as its classifier",
        )
    classification = comes_from(model, MODULE, "DeiTForImageClassification")
    return vit.read(FAMILY, model, model.deit if classification else model, classification)
