"""The tflite converter under the contract of converters, in LiteRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from litert_runtime import run_once
from numpy.typing import NDArray

from edgesdk.converters import tflite
from edgesdk.converters.artifact import Artifact
from edgesdk.testing.converters import ConverterTestCase


class TestTflite(ConverterTestCase):
    converter: ClassVar[Any] = tflite

    def run(self, folder: Path, artifact: Artifact, inputs: list[NDArray[Any]]) -> NDArray[np.float32]:
        feeds = {tensor.name: value for tensor, value in zip(artifact.inputs, inputs, strict=True)}
        return run_once((folder / artifact.runtime["model"]).read_bytes(), feeds)
