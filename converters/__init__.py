"""Converters: Package + Target → Artifact, in one table written by hand (loaded on first use: some are heavy)."""

from __future__ import annotations

import importlib
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


def converter(name: str) -> Converter:
    """The converter of that name (a module with `check` and `convert`); KeyError for any other name."""
    return importlib.import_module(CONVERTERS[name])
