"""`transformer.json`: a `TransformerSpec` as a document and back, every field checked.

Fields that came with later capabilities are left out where they hold their default, so that a model without them has
one document, whatever EdgeSDK wrote it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgesdk.errors import EdgeSDKError, PackageError
from edgesdk.files import check_document
from edgesdk.transformer.spec import (
    Exit,
    FeatureEmbedding,
    Layer,
    PatchEmbedding,
    TokenEmbedding,
    TransformerSpec,
)

FORMAT, VERSION = "edgesdk.transformer", 1
KINDS: dict[str, type[Any]] = {"tokens": TokenEmbedding, "patches": PatchEmbedding, "features": FeatureEmbedding}
LEFT_OUT: dict[str, Any] = {
    "width": None, "project": "tokens", "distillation": False, "ranks": {}, "share": None, "gate": False,
    "exit": None, "causal": False, "lm_head": False, "sparse": {}, "passes": (),
    "pooler_activation": "tanh", "norm_kind": "layer", "positions": "learned", "rope_base": 10000.0,
}


def to_json(spec: TransformerSpec) -> dict[str, Any]:
    """The document `transformer.json`."""
    document = _without_defaults(dataclasses.asdict(spec))
    document["embedding"] = _without_defaults(document["embedding"])
    document["layers"] = [_without_defaults(layer) for layer in document["layers"]]
    if "passes" in document:
        document["passes"] = list(document["passes"])
    return {"format": FORMAT, "version": VERSION, **document}


def from_json(document: Any, where: str = "transformer.json") -> TransformerSpec:
    """Read the document.

    Raises:
        PackageError: unknown format, version, field or kind, a wrong type, or a size that makes no model.
    """
    document = check_document(document, where, FORMAT, VERSION, PackageError)
    fields = {key: value for key, value in document.items() if key not in ("format", "version")}
    try:
        embedding = dict(fields.pop("embedding"))
        kind = KINDS[embedding["kind"]]
        layers = tuple(_layer(layer) for layer in fields.pop("layers"))
        if "passes" in fields:
            fields["passes"] = tuple(_typed(fields["passes"], list))
        if "sparse" in fields:
            fields["sparse"] = dict(_typed(fields["sparse"], dict))
        return TransformerSpec(embedding=kind(**_of_their_types(embedding)), layers=layers, **fields)
    except EdgeSDKError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise PackageError(f"{where}: malformed: {problem!r}") from problem


def _without_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in LEFT_OUT or value != LEFT_OUT[key]}


def _layer(document: Any) -> Layer:
    fields = dict(_typed(document, dict))
    extra: dict[str, Any] = {}
    if "ranks" in fields:
        extra["ranks"] = _of_their_types(_typed(fields.pop("ranks"), dict))
    if "gate" in fields:
        extra["gate"] = _typed(fields.pop("gate"), bool)
    if fields.get("exit") is not None:
        extra["exit"] = Exit(**_typed(fields.pop("exit"), dict))
    for key in ("share", "exit"):
        if key in fields and fields[key] is None:
            del fields[key]
    return Layer(**_of_their_types(fields), **extra)


def _typed(value: Any, expected: type[Any]) -> Any:
    if type(value) is not expected:
        raise ValueError(f"{str(value)[:100]!r}, expected {expected.__name__}")
    return value


def _of_their_types(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, where each has its type: texts, flags, the float `rope_base`, and else integers (True is not 1 here),
    so that arithmetic on them is safe.

    Raises:
        ValueError: a field has another type; it is named.
    """
    texts, flags, numbers = ("kind", "project", "positions"), ("cls", "norm", "distillation"), ("rope_base",)
    for key, value in values.items():
        allowed: type = str if key in texts else bool if key in flags else float if key in numbers else int
        if type(value) is not allowed and not (key == "width" and value is None):
            raise ValueError(f"{key} is {value!r}, expected {allowed.__name__}")
    return dict(values)
