"""What every converter is: two functions, `check` and `convert`, and one row in the `CONVERTERS` table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgesdk.converters.artifact import Golden, Tensor, tolerance
from edgesdk.package import Package
from edgesdk.targets import Target
from edgesdk.transformer.spec import FeatureEmbedding, PatchEmbedding, TokenEmbedding, TransformerSpec

if TYPE_CHECKING:
    from edgesdk.converters.artifact import Artifact


class Outlined(Protocol):
    """What `check` may look at: the graph's operators and shapes, not its weights."""

    @property
    def spec(self) -> TransformerSpec: ...

    @property
    def graph(self) -> bytes: ...

    @property
    def sequence(self) -> int: ...

    @property
    def scheme(self) -> str: ...


class Converter(Protocol):
    """Package + Target → Artifact.

    `check` answers before any training, for a package or the shadow of one that is yet to be made (its graph with zeros
    for weights): the reasons why `convert` would not work, empty where it will.
    `convert` writes into an empty temporary folder and ends with `write_artifact`; it raises `ConvertError`.
    """

    name: str

    def check(self, package: Outlined, target: Target) -> list[str]: ...

    def convert(self, package: Package, target: Target, folder: Path) -> Artifact: ...


def input_tensors(package: Package) -> tuple[Tensor, ...]:
    """Inputs of an artifact: batch 1, the package's fixed sequence."""
    embedding, sequence = package.spec.embedding, package.sequence
    if isinstance(embedding, PatchEmbedding):
        return (Tensor("pixel_values", "float32", (1, embedding.channels, embedding.size, embedding.size)),)
    if isinstance(embedding, FeatureEmbedding):
        return (Tensor("features", "float32", (1, sequence, package.spec.hidden)),)
    return tuple(Tensor(name, "int64", (1, sequence)) for name in ("input_ids", "attention_mask"))


def output_tensors(package: Package) -> tuple[Tensor, ...]:
    """The one output of an artifact."""
    spec = package.spec
    shapes = {
        "logits": (1, spec.classes or 0),
        "embedding": (1, spec.hidden),
        "hidden_states": (1, package.sequence, spec.hidden),
    }
    return (Tensor(spec.output, "float32", shapes[spec.output]),)


def length_input(package: Package) -> str | None:
    """The mask by which a runtime may cut trailing padding; None where there is none, or rows of padding are output."""
    if isinstance(package.spec.embedding, TokenEmbedding) and package.spec.pooling != "none":
        return "attention_mask"
    return None


def golden(package: Package) -> tuple[Golden, list[NDArray[Any]], list[NDArray[Any]]]:
    """Golden rows of the package and what an artifact must answer to them: the package's float outputs for `fp32` and
    dynamic schemes, its fake-quantized ones for static schemes."""
    samples = package.samples
    static = package.encodings is not None and not package.scheme.endswith("-dynamic")
    outputs = samples.golden_outputs if static else samples.golden_float
    inputs: Mapping[str, NDArray[Any]] = samples.golden_inputs
    ordered = [np.asarray(inputs[tensor.name]) for tensor in input_tensors(package)]
    return Golden(len(outputs), *tolerance(package.scheme)), ordered, [outputs]
