"""Importers: models of torch and transformers → the canonical Transformer, checked against the original.

One module a family; `IMPORTERS` is the whole list. Nothing here loads transformers: a model of it brings it along.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgesdk.errors import ConfigError, ModelError, PackageError
from edgesdk.transformer.importers import (
    albert,
    bert,
    deit,
    distilbert,
    gpt2,
    llama,
    roberta,
    sentence,
    torch_encoder,
    vit,
)
from edgesdk.transformer.importers.check import check
from edgesdk.transformer.importers.draft import Draft
from edgesdk.transformer.importers.sentence import SentenceEncoder
from edgesdk.transformer.importers.torch_encoder import EncoderClassifier
from edgesdk.transformer.module import build
from edgesdk.transformer.spec import TokenEmbedding, TransformerSpec

__all__ = ["IMPORTERS", "EncoderClassifier", "Family", "Imported", "SentenceEncoder", "import_model"]

Task = Literal["classification", "encoding"]


@dataclass(frozen=True)
class Family:
    """A family of models: what it covers, in words and as a test, and how to read one."""

    name: str
    classes: str
    covers: Callable[[object], bool]
    draft: Callable[[nn.Module, int | None], Draft]


IMPORTERS: tuple[Family, ...] = (
    Family(bert.FAMILY, bert.COVERS, bert.covers, bert.draft),
    Family(distilbert.FAMILY, distilbert.COVERS, distilbert.covers, distilbert.draft),
    Family(roberta.FAMILY, roberta.COVERS, roberta.covers, roberta.draft),
    Family(albert.FAMILY, albert.COVERS, albert.covers, albert.draft),
    Family(sentence.FAMILY, sentence.COVERS, sentence.covers, sentence.draft),
    Family(gpt2.FAMILY, gpt2.COVERS, gpt2.covers, gpt2.draft),
    Family(llama.FAMILY, llama.COVERS, llama.covers, llama.draft),
    Family(vit.FAMILY, vit.COVERS, vit.covers, vit.draft),
    Family(deit.FAMILY, deit.COVERS, deit.covers, deit.draft),
    Family(torch_encoder.FAMILY, torch_encoder.COVERS, torch_encoder.covers, torch_encoder.draft),
)


@dataclass(frozen=True)
class Imported:
    """A checked import.

    Attributes:
        spec: the canonical form.
        weights: name → float32 array, as in `spec.weight_shapes()`.
        task: `classification` (the output is `logits`) or `encoding` (`embedding`, `hidden_states` or
            `token_logits`).
        labels: names of the classes in the order of the logits, where the model has its own.
        family: name of the importer.
        difference: largest |imported − original| / max(1, |original|) on the sample inputs, at most 1e-4.
        notes: what the user should know, such as a normalisation that was left out.
    """

    spec: TransformerSpec
    weights: dict[str, NDArray[np.float32]]
    task: Task
    labels: list[str] | None
    family: str
    difference: float
    notes: tuple[str, ...] = ()


def import_model(model: object, *, sequence: int | None = None) -> Imported:
    """Import a model and check it against the original on sample inputs, padded rows included.

    The model itself stays as it is: a float32 copy on the CPU in evaluation mode is read and run.

    Args:
        model: a model of one of the families of `IMPORTERS`.
        sequence: tokens of the padded samples, or `max_length` of a `torch.nn.TransformerEncoder` by itself; of no
            meaning for images.

    Raises:
        ModelError: unknown family, something not covered, weights that are not finite, or outputs that differ.
        ConfigError: `sequence` is not positive, or longer than the model allows.
    """
    family = next((family for family in IMPORTERS if family.covers(model)), None)
    if family is None or not isinstance(model, nn.Module):
        covered = "; ".join(family.classes for family in IMPORTERS)
        raise ModelError(
            f"import: {type(model).__module__}.{type(model).__qualname__} is of no family that can be imported; "
            f"covered: {covered}",
            "bring the model into one of these forms (structural import of ONNX comes with a later release)",
        )
    if sequence is not None and sequence < 1:
        raise ConfigError(f"sequence is {sequence}, expected a positive number of tokens")
    try:
        original = copy.deepcopy(model).cpu().float().eval()
        draft = family.draft(original, sequence)
        weights = draft.arrays()
        module = build(draft.spec, weights)
    except PackageError as problem:
        raise ModelError(f"{family.name} import: {problem.message}") from problem
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as problem:
        raise ModelError(
            f"{family.name} import: {type(model).__qualname__} is not built as expected: "
            f"{type(problem).__name__}: {problem}",
            "the importers know the modules of transformers 5.23 and torch 2.13, unquantized and unwrapped",
        ) from problem
    tokens = isinstance(draft.spec.embedding, TokenEmbedding)
    if tokens and sequence is not None and sequence > draft.spec.max_length:
        raise ConfigError(f"sequence is {sequence}, the longest of this model is {draft.spec.max_length}")
    difference = check(draft, module, sequence)
    task: Task = "classification" if draft.spec.classes is not None else "encoding"
    return Imported(draft.spec, weights, task, draft.labels, draft.family or family.name, difference, draft.notes)
