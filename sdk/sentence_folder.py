"""What a folder of sentence-transformers says beside the model: how one vector is made of its tokens.

`modules.json` lists the steps; covered are the model itself, `Pooling` (mean or class token) and `Normalize`. The files
are read as data, and nothing of sentence-transformers is loaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgesdk.errors import ModelError
from edgesdk.files import inside
from edgesdk.tokenizer import JSON_LIMIT, read_json

MODULES = "modules.json"
MODES = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


@dataclass(frozen=True)
class SentencePooling:
    """`normalized`: vectors are divided by their length behind the pooling."""

    pooling: Literal["mean", "cls"]
    normalized: bool


def read_sentence_pooling(folder: Path) -> SentencePooling | None:
    """The pooling that the folder asks for; None where it is no folder of sentence-transformers.

    Raises:
        ModelError: a step or a pooling that is not covered, or files that are broken.
    """
    path = folder / MODULES
    if not path.is_file():
        return None
    pooling: Literal["mean", "cls"] | None = None
    normalized = False
    for index, module in enumerate(_steps(path)):
        kind, where = _module(module, path)
        if kind == "Transformer" and index == 0:
            if where:
                raise ModelError(
                    f"{path}: the model lies in {where[:100]!r}, expected it beside {MODULES}",
                    "save it again with a current sentence-transformers",
                )
        elif kind == "Pooling" and index == 1:
            pooling = _pooling(inside(folder, where, ModelError) / "config.json")
        elif kind == "Normalize" and pooling is not None:
            normalized = True
        else:
            raise ModelError(
                f"{path}: step {index} is {kind[:100]!r}; covered: Transformer, Pooling, Normalize, in this order",
                "import the encoder without its other steps: leave modules.json away and pool by the mean",
            )
    if pooling is None:
        raise ModelError(f"{path}: no Pooling step", "save the model again with sentence-transformers")
    return SentencePooling(pooling, normalized)


def _steps(path: Path) -> list[Any]:
    if path.stat().st_size > JSON_LIMIT:
        raise ModelError(f"{path}: larger than {JSON_LIMIT >> 20} MiB")
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        raise ModelError(f"{path}: not readable as JSON: {problem}") from problem
    if not isinstance(document, list):
        raise ModelError(f"{path}: expected a JSON list, found {type(document).__name__}")
    return document


def _module(module: Any, path: Path) -> tuple[str, str]:
    """Class name and folder of a step."""
    kind, where = (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
    if not isinstance(kind, str) or not isinstance(where, str):
        raise ModelError(f"{path}: {str(module)[:100]} is no step with a type and a path")
    return kind.rpartition(".")[2], where


def _pooling(path: Path) -> Literal["mean", "cls"]:
    if not path.is_file():
        raise ModelError(f"{path}: missing, {MODULES} names it")
    config = read_json(path)
    chosen = sorted(key for key, value in config.items() if key.startswith("pooling_mode_") and value is not False)
    newer = config.get("pooling_mode")  # one name instead of a flag for each
    if newer is not None:
        chosen = newer if isinstance(newer, list) else [newer]
    modes = [MODES.get(str(key), key) for key in chosen]
    if modes == ["mean"]:
        return "mean"
    if modes == ["cls"]:
        return "cls"
    found = ", ".join(map(str, chosen))[:200] or "nothing"
    raise ModelError(
        f"{path}: pooling by {found}, covered: {' or '.join(MODES)}, one alone",
        "train or choose a model that pools by the mean or by the class token",
    )
