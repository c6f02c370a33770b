"""What every converter is: two functions, `check` and `convert`, and one row in the `CONVERTERS` table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgesdk.converters.artifact import Golden, Tensor, tolerance
from edgesdk.package import Package
from edgesdk.targets import Target
from edgesdk.transformer.spec import FeatureEmbedding, PatchEmbedding, TokenEmbedding, TransformerSpec, is_dynamic

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
    `scheme` is that of its artifacts; None where it is the package's.
    """

    name: str
    scheme: str | None

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
    """The one output of an artifact. (ONNX graphs with exits have a second one, which nothing on a board reads.)"""
    spec = package.spec
    shapes: dict[str, tuple[int, ...]] = {
        "logits": (1, spec.classes or 0),
        "embedding": (1, spec.hidden),
        "hidden_states": (1, package.sequence, spec.hidden),
    }
    if isinstance(spec.embedding, TokenEmbedding):
        shapes["token_logits"] = (1, package.sequence, spec.embedding.vocabulary)
    return (Tensor(spec.output, "float32", shapes[spec.output]),)


def length_input(package: Package) -> str | None:
    """The mask by which a runtime may cut trailing padding; None where there is none, or rows of padding are output."""
    if isinstance(package.spec.embedding, TokenEmbedding) and package.spec.pooling != "none":
        return "attention_mask"
    return None


Arrays = list[NDArray[Any]]


def golden(package: Package) -> tuple[Golden, Arrays, Arrays, Arrays]:
    """Golden rows of the package, what an artifact must answer to them, and the answers in float where they count too.

    For `fp32` and `w8a8-dynamic` these are the outputs of the package's float weights. They are those of its own graph
    (fake-quantized where it is static)

    - for static schemes, whose activations are rounded as the encodings say;
    - for 4 bits, dynamic too: `golden_float` knows nothing of the rounding to 4 bits, so an artifact that computes the
      package exactly would be blamed for what quantization lost. What it lost is the package's accuracy, and is
      reported there;
    - where inputs may leave early or skip layers: a decision near its threshold may fall the other way in float, and
      then the outputs have nothing in common.
    """
    samples = package.samples
    static = package.encodings is not None and not package.scheme.endswith("-dynamic")
    own = static or package.scheme.startswith("w4") or is_dynamic(package.spec)
    outputs = samples.golden_outputs if own else samples.golden_float
    inputs: Mapping[str, NDArray[Any]] = samples.golden_inputs
    ordered = [np.asarray(inputs[tensor.name]) for tensor in input_tensors(package)]
    expected = Golden(len(outputs), *tolerance(package.scheme))
    if not static or is_dynamic(package.spec):
        return expected, ordered, [outputs], []
    return replace(expected, floats="golden/float.bin"), ordered, [outputs], [samples.golden_float]


INT8_HERE = "weights are stored as int8 here; the 4 bits are the ONNX file's"
DENSE_HERE = "sparse weights are stored and computed dense here"


def has_four_bits(package: Package) -> bool:
    """Whether any weight of the package has 4 bits."""
    return package.encodings is not None and any(entry.bits == 4 for entry in package.encodings.weights.values())


def storage_notes(package: Package, packed: bool) -> tuple[str, ...]:
    """What an artifact's reader must know of 4-bit and sparse weights: the ONNX file keeps them small (`packed`),
    its runtime makes them int8 and dense; TFLite has them so in the file. NEON binaries keep both small."""
    notes = []
    if has_four_bits(package):
        notes.append(
            "4-bit weights lie in the file; ONNX Runtime unpacks them to int8 when it loads it" if packed else INT8_HERE
        )
    if package.spec.sparse:
        notes.append(
            "zeros are left out of the file where that is smaller; ONNX Runtime computes with dense weights" if packed
            else DENSE_HERE
        )
    return tuple(notes)
