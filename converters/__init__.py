"""Converters: Package + Target → Artifact, in one table written by hand (loaded on first use: some are heavy)."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgesdk.converters.base import Converter

CONVERTERS = {
    "neon": "edgesdk.converters.neon",
    "neon-fp16": "edgesdk.converters.neon.fp16",
    "onnx": "edgesdk.converters.onnx",
    "tensorrt": "edgesdk.converters.tensorrt",
    "tflite": "edgesdk.converters.tflite",
}


def suitable(names: Sequence[str], scheme: str) -> list[str]:
    """Those of the converters that make something of packages of a scheme: one with a scheme of its own makes it of
    fp32. All of them where none does, so that each can say why."""
    found = [name for name in names if scheme == "fp32" or converter(name).scheme is None]
    return found or list(names)


def converter(name: str) -> Converter:
    """The converter of that name (a module with `check` and `convert`); KeyError for any other name."""
    return importlib.import_module(CONVERTERS[name])
