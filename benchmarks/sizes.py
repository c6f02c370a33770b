"""Sizes of a BERT-like encoder: 4 layers, hidden 256, feed-forward 1024, vocabulary 8000, 512 positions, sequence 64.

    python benchmarks/sizes.py            (seconds)

Weights are random: sizes do not depend on them.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from _results import figure, write_result

from edgesdk.converters import converter
from edgesdk.package import Package
from edgesdk.recipe import load_recipes
from edgesdk.stages import run_stage
from edgesdk.targets import load_target
from edgesdk.testing.models import random_context, random_package
from edgesdk.transformer.spec import Layer, TokenEmbedding, TransformerSpec

SPEC = TransformerSpec(
    TokenEmbedding(8000, 512), 256, (Layer(8, 8, 32, 1024),) * 4, "post", 1e-12, "gelu", "cls", pooler=True, classes=5
)


def main() -> None:
    """Quantize, convert, count bytes."""
    package = random_package(SPEC, 0)
    baseline = len(package.graph)
    figures: list[dict[str, Any]] = [figure("fp32 ONNX, bytes", baseline, "B")]
    target = load_target("host")
    for name in ("int8", "int8-dynamic"):
        (recipe,) = load_recipes(name)
        quantized = run_stage(recipe.stages[0], package, random_context(package, training=False, seed=0))
        share = 100 * weight_bytes(quantized) / weight_bytes(package)
        figures.append(figure(f"{name}: matrices and their scales, of fp32", share, "%", "≤ 25.5", share <= 25.5))
        for kind in ("onnx", "tflite"):
            with tempfile.TemporaryDirectory() as folder:
                artifact = converter(kind).convert(quantized, target, Path(folder))
            share = 100 * artifact.bytes / baseline
            figures.append(figure(f"{name}-{kind}: file, of the fp32 ONNX", share, "%", "≤ 27", share <= 27))
    write_result("sizes", figures)


def weight_bytes(package: Package) -> int:
    """Bytes of matrices and tables: float32, or int8 with one float scale a row."""
    matrices = [shape for shape in package.spec.weight_shapes().values() if len(shape) == 2]
    if package.encodings is None:
        return sum(4 * math.prod(shape) for shape in matrices)
    return sum(math.prod(shape) + 4 * shape[0] for shape in matrices)


if __name__ == "__main__":
    main()
