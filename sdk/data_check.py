"""Checks of arrays that are to be inputs and labels; every refusal names file, key, row and value.

Shapes: N rows, S tokens, H hidden. Rows count from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.errors import ConfigError
from edgesdk.transformer.spec import PatchEmbedding, TokenEmbedding, TransformerSpec


def check_inputs(inputs: Mapping[str, NDArray[Any]], spec: TransformerSpec, where: str) -> dict[str, NDArray[Any]]:
    """The inputs of a model in the types that it takes (int64 tokens, float32 pixels and features).

    Raises:
        ConfigError: wrong type or shape, no rows, ids outside the vocabulary, a mask that is not 1…1 0…0, values that
            are not finite, or rows longer than the model allows.
    """
    if isinstance(spec.embedding, TokenEmbedding):
        return _check_tokens(inputs["input_ids"], inputs["attention_mask"], spec.embedding, where)
    if isinstance(spec.embedding, PatchEmbedding):
        side = spec.embedding.size
        return {"pixel_values": _check_floats(inputs, "pixel_values", (spec.embedding.channels, side, side), where)}
    features = _check_floats(inputs, "features", (None, spec.hidden), where)
    _check_length(features.shape[1], spec.embedding.max_length, "features", where)
    return {"features": features}


def fit_tokens(inputs: Mapping[str, NDArray[Any]], sequence: int, where: str) -> dict[str, NDArray[Any]]:
    """Checked tokens [N, S] padded with zeros, or cut, to [N, sequence].

    Raises:
        ConfigError: a row has more than `sequence` tokens.
    """
    lengths = inputs["attention_mask"].sum(1)
    if lengths.max() > sequence:
        row = int(np.argmax(lengths > sequence))
        raise ConfigError(
            f"{where}: attention_mask row {row} has {lengths[row]} tokens, the sequence is {sequence}",
            f"set the sequence to {lengths.max()} or more, or cut the rows",
        )
    fitted = {}
    for name, value in inputs.items():
        cut = value[:, :sequence]
        fitted[name] = np.pad(cut, ((0, 0), (0, sequence - cut.shape[1])))
    return fitted


def check_labels(labels: NDArray[Any], rows: int, classes: int | None, where: str) -> NDArray[np.int64]:
    """Labels [N] as int64; from 0 to classes − 1 where the model has classes.

    Raises:
        ConfigError: wrong type, shape or range.
    """
    if labels.dtype.kind not in "iu":
        raise ConfigError(f"{where}: labels has type {labels.dtype}, expected integers", "store labels as int64")
    if labels.shape != (rows,):
        raise ConfigError(f"{where}: labels has shape {list(labels.shape)}, expected [{rows}], one for each row")
    if classes is not None and (wrong := (labels < 0) | (labels >= classes)).any():
        row = int(np.argmax(wrong))
        raise ConfigError(
            f"{where}: labels row {row} is {labels[row]}, the model has {classes} classes (0 to {classes - 1})",
            "give data for this model, or a model with more classes",
        )
    return labels.astype(np.int64)


def _check_tokens(
    ids: NDArray[Any], mask: NDArray[Any], embedding: TokenEmbedding, where: str
) -> dict[str, NDArray[Any]]:
    for name, value, kinds in (("input_ids", ids, "iu"), ("attention_mask", mask, "iub")):
        if value.dtype.kind not in kinds:
            raise ConfigError(f"{where}: {name} has type {value.dtype}, expected integers", f"store {name} as int64")
        _check_shape(value, name, (None, None), where)
    if ids.shape != mask.shape:
        raise ConfigError(f"{where}: input_ids has shape {list(ids.shape)}, attention_mask {list(mask.shape)}")
    _check_length(ids.shape[1], embedding.max_length, "input_ids", where)
    if (wrong := (ids < 0) | (ids >= embedding.vocabulary)).any():
        row, column = _first(wrong)
        raise ConfigError(
            f"{where}: input_ids row {row}, token {column} is {ids[row, column]}, "
            f"the vocabulary has {embedding.vocabulary} (0 to {embedding.vocabulary - 1})",
            "use the tokenizer of this model",
        )
    if mask.dtype.kind != "b" and (wrong := (mask != 0) & (mask != 1)).any():
        row, column = _first(wrong)
        raise ConfigError(f"{where}: attention_mask row {row}, token {column} is {mask[row, column]}, expected 0 or 1")
    mask = mask.astype(np.int64)
    if (wrong := mask[:, 0] == 0).any():
        row = int(np.argmax(wrong))
        story = "has no tokens (all zeros)" if not mask[row].any() else "begins with padding"
        raise ConfigError(f"{where}: attention_mask row {row} {story}", "pad at the end, and leave empty rows out")
    if (wrong := (np.diff(mask, axis=1) > 0)).any():
        row, column = _first(wrong)
        raise ConfigError(
            f"{where}: attention_mask row {row} has a token after padding, at {column + 1}", "pad at the end only"
        )
    return {"input_ids": ids.astype(np.int64), "attention_mask": mask}


def _check_floats(
    inputs: Mapping[str, NDArray[Any]], name: str, shape: tuple[int | None, ...], where: str
) -> NDArray[np.float32]:
    value = inputs[name]
    if value.dtype.kind != "f":
        raise ConfigError(
            f"{where}: {name} has type {value.dtype}, expected float32",
            f"store {name} as float32, scaled as the model was trained",
        )
    _check_shape(value, name, (None, *shape), where)
    with np.errstate(over="ignore", invalid="ignore"):
        floats: NDArray[np.float32] = value.astype(np.float32)
    finite = np.isfinite(floats).all(axis=tuple(range(1, floats.ndim)))
    if not finite.all():
        row = int(np.argmin(finite))
        raise ConfigError(f"{where}: {name} row {row} has values that are not finite (NaN or infinity)")
    return floats


def _check_shape(value: NDArray[Any], name: str, shape: tuple[int | None, ...], where: str) -> None:
    fits = value.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, value.shape, strict=True))
    if not fits:
        wanted = ", ".join(str(extent or symbol) for extent, symbol in zip(shape, "NSHW", strict=False))
        raise ConfigError(f"{where}: {name} has shape {list(value.shape)}, expected [{wanted}]")
    if 0 in value.shape:
        raise ConfigError(f"{where}: the data set is empty: {name} has shape {list(value.shape)}", "give some rows")


def _check_length(length: int, limit: int, name: str, where: str) -> None:
    if length > limit:
        raise ConfigError(f"{where}: {name} has {length} tokens a row, the model allows {limit}", "cut the rows")


def _first(wrong: NDArray[Any]) -> tuple[int, int]:
    """Row and column of the first True of [N, S]."""
    row, column = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    return int(row), int(column)
