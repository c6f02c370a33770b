"""The packages that `benchmarks/neon.py` counts: MiniLM-L6 (6 layers, hidden 384, 12 heads, feed-forward 1536), mean
pooling, four classes, in every scheme and for any sequence.

Weights are random, or those of the fine-tuned model that `neon_trained.py` writes: counts of instructions do not depend
on them, accuracy and memory do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.encodings import ActivationEncoding, Encodings, static_activations
from edgesdk.evaluate import golden_outputs, run_graph
from edgesdk.files import canonical_json, sha256_bytes, sha256_file
from edgesdk.package import Baseline, Package, Samples, package_digest, read_package
from edgesdk.stages.calibrate import weight_encoding
from edgesdk.transformer import module
from edgesdk.transformer.graph import write_graph
from edgesdk.transformer.spec import Layer, TokenEmbedding, TransformerSpec

VOCABULARY, CLASSES, ROWS, SEED = 2000, 4, 2, 7
FOUR_BITS = ("layers.", "embedding.tokens.")  # what w4a8 has in 4 bits
SPEC = TransformerSpec(
    TokenEmbedding(VOCABULARY, 512), 384, (Layer(12, 12, 32, 1536),) * 6, "post", 1e-12, "gelu", "mean", classes=CLASSES
)
Arrays = dict[str, NDArray[Any]]


def macs(sequence: int, spec: TransformerSpec = SPEC) -> int:
    """Multiplications of the linear layers and of attention for one input of `sequence` tokens."""
    linear = sum(4 * spec.hidden * layer.heads * layer.head_size + 2 * spec.hidden * layer.ffn for layer in spec.layers)
    attention = sum(2 * sequence * layer.heads * layer.head_size for layer in spec.layers)
    return sequence * (linear + attention)


def attention_macs(sequence: int, spec: TransformerSpec = SPEC) -> int:
    """Those of attention alone."""
    return sum(2 * sequence**2 * layer.heads * layer.head_size for layer in spec.layers)


def random_weights(spec: TransformerSpec, seed: int = SEED) -> Arrays:
    """Weights that keep activations near 1, and biases that matter."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in spec.weight_shapes().items():
        value = random.normal(size=shape) * (0.3 if len(shape) == 1 or "embedding" in name else shape[-1] ** -0.5)
        weights[name] = (1 + 0.3 * value if name.endswith("norm.weight") else value).astype(np.float32)
    return weights


@dataclass(frozen=True, eq=False)
class Model:
    """A model and text for it, int64 [N] token ids in one row; `folder` holds its packages where it is trained."""

    spec: TransformerSpec
    weights: Mapping[str, NDArray[Any]]
    tokens: NDArray[np.int64]
    folder: Path | None = None

    def inputs(self, sequence: int, rows: int = ROWS) -> Arrays:
        """`rows` full rows of tokens: no padding."""
        ids = np.resize(self.tokens, (rows, sequence))
        return {"input_ids": ids, "attention_mask": np.ones((rows, sequence), np.int64)}

    def package(self, scheme: str, sequence: int) -> Package:
        """The model in a scheme, as it was calibrated on its own data where it is trained (else see `package`), with
        samples of this length."""
        rows = self.inputs(sequence)
        if self.folder is None:
            return package(self.weights, scheme, sequence, self.spec, rows)
        found = read_package(self.folder / f"{scheme}.edgepkg")
        answers = golden_outputs(found.spec, found.weights, found.graph, scheme != "fp32", rows)
        samples = Samples(rows, rows, answers[0], *answers)
        return dataclasses.replace(found, samples=samples, sequence=sequence)


def random_model() -> Model:
    """MiniLM's layers with a small vocabulary and four classes."""
    tokens = np.random.default_rng(SEED).integers(5, VOCABULARY, 4096)
    return Model(SPEC, random_weights(SPEC), tokens)


def trained_model(folder: Path) -> Model:
    """The fine-tuned model of a folder that `neon_trained.py` wrote; its text is that of the calibration, joined."""
    found = read_package(folder / "fp32.edgepkg")
    samples = found.samples.calibration
    return Model(found.spec, found.weights, samples["input_ids"][samples["attention_mask"] == 1], folder)


def trained_digest(folder: Path) -> str:
    """Of all that figures with such a folder depend on: every package in it, and the test rows."""
    parts = {path.name: package_digest(path) for path in folder.glob("*.edgepkg")}
    tests = folder / "test.npz"
    return f"sha256:{sha256_bytes(canonical_json(parts | {tests.name: sha256_file(tests)}))}"


def inputs(sequence: int, spec: TransformerSpec = SPEC) -> Arrays:
    """ROWS full rows of tokens: no padding."""
    assert isinstance(spec.embedding, TokenEmbedding)
    ids = np.random.default_rng(SEED).integers(5, spec.embedding.vocabulary, (ROWS, sequence))
    return {"input_ids": ids, "attention_mask": np.ones((ROWS, sequence), np.int64)}


def package(
    weights: Mapping[str, NDArray[Any]], scheme: str, sequence: int, spec: TransformerSpec = SPEC,
    rows: Arrays | None = None,
) -> Package:
    """A package in `fp32`, `w8a8`, `w8a8-dynamic` or `w4a8`, calibrated by minimum and maximum on its own inputs."""
    rows, stored = rows or inputs(sequence, spec), dict(weights)
    ranges: dict[str, tuple[float, float]] = {}

    def observe(name: str, value: Any) -> Any:
        low, high = ranges.get(name, (0.0, 0.0))
        ranges[name] = (min(low, float(value.min())), max(high, float(value.max())))
        return value

    answers = np.asarray(module.run(module.build(spec, stored), rows, observe), np.float32)
    encodings = None if scheme == "fp32" else _encodings(spec, stored, scheme, ranges)
    graph = write_graph(spec, stored, encodings)
    own = answers if encodings is None else run_graph(graph, rows, optimize=False, batch=1)
    task, metric = ("encoding", "cosine") if spec.classes is None else ("classification", "accuracy")
    return Package(
        name="minilm", task=task, metric=metric, labels=None, spec=spec, weights=stored, graph=graph,
        encodings=encodings, samples=Samples(rows, rows, answers, answers, own), preprocess={}, lineage=(),
        baseline=Baseline(len(graph), None, 0), environment={}, sequence=sequence,
    )


def _encodings(
    spec: TransformerSpec, weights: Arrays, scheme: str, ranges: Mapping[str, tuple[float, float]]
) -> Encodings:
    activations = {}
    if not scheme.endswith("-dynamic"):
        for name in static_activations(spec):
            low, high = ranges[name]
            scale = float(np.float32(max(high - low, 1e-6) / 255))
            activations[name] = ActivationEncoding(scale, int(np.rint(-128 - low / scale)))
    small = FOUR_BITS if scheme.startswith("w4") else ()
    tables = {
        name: weight_encoding(value, 4 if name.startswith(small) else 8, method="max")
        for name, value in weights.items() if name.endswith(".weight") and value.ndim == 2
    }
    calibrator, count = (None, 0) if scheme.endswith("-dynamic") else ("minmax", ROWS)
    return Encodings(scheme, calibrator, count, activations, tables)
