"""Random models of every kind as graphs in every scheme, for the tests of the converters.

Weights and inputs come from a seed; scales of activations from one float run over the inputs (minimum and maximum).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgesdk.encodings import (
    ActivationEncoding,
    Encodings,
    WeightEncoding,
    is_float_linear,
    static_activations,
)
from edgesdk.package import Baseline, Package, Samples
from edgesdk.stages.masks import parse
from edgesdk.transformer import module
from edgesdk.transformer.graph import write_graph
from edgesdk.transformer.quantize import row_scales
from edgesdk.transformer.spec import Exit, FeatureEmbedding, Layer, PatchEmbedding, TokenEmbedding, TransformerSpec

ROWS, SEQUENCE, VOCABULARY = 6, 20, 300
SCHEMES = ("fp32", "w8a8", "w8a8-dynamic")
FOUR_BITS = ("w4a8", "w4a8-dynamic")
LARGEST_GROUP = 16
_Arrays = dict[str, NDArray[Any]]

SPECS = {
    "vit": TransformerSpec(
        PatchEmbedding(1, 8, 2), 64, (Layer(4, 4, 16, 256),) * 3, "pre", 1e-6, "gelu", "cls", True, False, 10
    ),
    "vit_mean_grouped": TransformerSpec(
        PatchEmbedding(3, 8, 2, cls=False), 64, (Layer(4, 2, 16, 96),) * 2, "pre", 1e-6, "relu", "mean", True, False, 7
    ),
    "bert_pooler": TransformerSpec(
        TokenEmbedding(VOCABULARY, 64), 64, (Layer(4, 4, 16, 128), Layer(3, 3, 16, 100)), "post", 1e-12, "gelu", "cls",
        pooler=True, classes=5,
    ),
    "bert_mean_grouped": TransformerSpec(
        TokenEmbedding(VOCABULARY, 32), 64, (Layer(4, 1, 16, 128), Layer(3, 3, 16, 100)), "post", 1e-12, "gelu_tanh",
        "mean",
    ),
    "features": TransformerSpec(
        FeatureEmbedding(SEQUENCE), 64, (Layer(4, 4, 16, 128),), "post", 1e-5, "relu", "none"
    ),
    "one_head_one_class": TransformerSpec(
        FeatureEmbedding(SEQUENCE), 24, (Layer(1, 1, 8, 12),), "post", 1e-5, "gelu", "mean", classes=1
    ),
}


RANKS = {"attention.query": 12, "attention.output": 20, "ffn.up": 16, "ffn.down": 24}
_LAYER = Layer(4, 4, 16, 128)
FORMS = {
    "low_rank": TransformerSpec(
        TokenEmbedding(VOCABULARY, 32), 64, (dataclasses.replace(_LAYER, ranks=RANKS), _LAYER), "post", 1e-12, "gelu",
        "cls", pooler=True, classes=5,
    ),
    "low_rank_relu": TransformerSpec(
        PatchEmbedding(1, 8, 2), 64, (dataclasses.replace(_LAYER, ranks=RANKS),) * 2, "pre", 1e-6, "relu", "cls", True,
        False, 10,
    ),
    "shared": TransformerSpec(
        TokenEmbedding(VOCABULARY, 32, width=24, project="all"), 64,
        (_LAYER, dataclasses.replace(_LAYER, share=0), dataclasses.replace(_LAYER, share=0)), "post", 1e-12,
        "gelu_tanh", "cls", pooler=True, classes=5,
    ),
    "factorized": TransformerSpec(
        TokenEmbedding(VOCABULARY, 32, width=24), 64, (_LAYER,), "post", 1e-12, "gelu", "mean", classes=3,
        pooler=True, pooler_activation="relu",
    ),
    "sparse": TransformerSpec(
        TokenEmbedding(VOCABULARY, 32), 64, (_LAYER, Layer(4, 2, 16, 96)), "post", 1e-12, "gelu", "mean", classes=5,
        sparse={"layers.0.ffn.up": "unstructured", "layers.1.attention.key": "2:4", "layers.0.ffn.down": "4x1"},
    ),
    "deit": TransformerSpec(
        PatchEmbedding(3, 8, 2, distillation=True), 64, (_LAYER,), "pre", 1e-6, "gelu", "cls", True, False, 7
    ),
    "decoder": TransformerSpec(
        TokenEmbedding(VOCABULARY, 32, norm=False), 64, (_LAYER, Layer(4, 2, 16, 128)), "pre", 1e-5, "gelu_tanh",
        "none", True, causal=True, lm_head=True,
    ),
    "causal_features": TransformerSpec(
        FeatureEmbedding(SEQUENCE), 64, (Layer(4, 2, 16, 96),), "post", 1e-5, "relu", "mean", causal=True, classes=4
    ),
}
"""Every form that compression gives to a model, without exits and gates."""

LLAMA = TransformerSpec(
    TokenEmbedding(VOCABULARY, 32, norm=False, positions="rope"), 64, (_LAYER, Layer(6, 2, 10, 100)), "pre", 1e-5,
    "swiglu", "none", True, causal=True, lm_head=True, norm_kind="rms",
)

# Whole k-steps of the panels of every kernel set are zero: in the widest, of AVX-512, each block is one.
BLOCKS = TransformerSpec(
    TokenEmbedding(VOCABULARY, 32), 64, (_LAYER, Layer(4, 2, 16, 96)), "post", 1e-12, "gelu", "mean", classes=5,
    sparse={
        f"layers.{layer}.{name}": "32x16" for layer in (0, 1)
        for name in ("attention.query", "attention.key", "attention.value", "attention.output", "ffn.up", "ffn.down")
    },
)

BRANCHED = TransformerSpec(
    TokenEmbedding(VOCABULARY, 32), 64,
    (
        dataclasses.replace(_LAYER, exit=Exit("confidence", 0.4)), dataclasses.replace(_LAYER, gate=True),
        dataclasses.replace(_LAYER, exit=Exit("entropy", 0.6)), dataclasses.replace(_LAYER, share=0),
    ),
    "post", 1e-12, "gelu", "cls", pooler=True, classes=5,
)


@dataclass(frozen=True, eq=False)
class Sample:
    """A graph with inputs [ROWS, …] and what ONNX Runtime answers without optimizations, as `expected` [ROWS, …];
    `reference` is that of the fp32 graph."""

    spec: TransformerSpec
    weights: _Arrays
    encodings: Encodings | None
    graph: bytes
    sequence: int
    inputs: _Arrays
    expected: NDArray[np.float32]
    reference: NDArray[np.float32]

    def package(self, name: str = "sample") -> Package:
        """The whole as a package without a history."""
        samples = Samples(self.inputs, self.inputs, self.reference, self.reference, self.expected)
        task, metric = ("encoding", "cosine") if self.spec.classes is None else ("classification", "accuracy")
        return Package(
            name, task, metric, None, self.spec, self.weights, self.graph, self.encodings, samples, {}, (),
            Baseline(len(self.graph), None, 0), {}, self.sequence,
        )


@cache
def sample(kind: str, scheme: str) -> Sample:
    """One of `SPECS`, `FORMS`, "llama" or "blocks" in one of `SCHEMES` or `FOUR_BITS`."""
    return make({**SPECS, **FORMS, "llama": LLAMA, "blocks": BLOCKS}[kind], scheme, SEQUENCE, seed=1)


def make(spec: TransformerSpec, scheme: str, sequence: int, seed: int = 0) -> Sample:
    """A random model of any spec; patches fix the sequence themselves."""
    random = np.random.default_rng(seed)
    weights = random_weights(spec, random)
    sequence = spec.max_length if isinstance(spec.embedding, PatchEmbedding) else sequence
    inputs = random_inputs(spec, sequence, random)
    plain = write_graph(spec, weights)
    reference = run(plain, inputs)
    if scheme == "fp32":
        return Sample(spec, weights, None, plain, sequence, inputs, reference, reference)
    encodings = encode(spec, weights, inputs, scheme)
    graph = write_graph(spec, weights, encodings)
    return Sample(spec, weights, encodings, graph, sequence, inputs, run(graph, inputs), reference)


def random_weights(spec: TransformerSpec, random: np.random.Generator) -> _Arrays:
    weights = {}
    for name, shape in spec.weight_shapes().items():
        value = random.normal(size=shape) * (0.3 if "embedding" in name else shape[-1] ** -0.5)
        weights[name] = (1 + 0.1 * value if name.endswith("norm.weight") else value).astype(np.float32)
    for name, pattern in spec.sparse.items():
        value, block = weights[f"{name}.weight"], parse(pattern)
        if block.rows * block.columns > 4 and block.kept is None:
            cells = (-(-value.shape[0] // block.rows), -(-value.shape[1] // block.columns))
            kept = (random.random(cells) < 0.3).repeat(block.rows, 0).repeat(block.columns, 1)
            kept = kept[: value.shape[0], : value.shape[1]]
        else:
            kept = random.random(value.shape) < 0.3
        weights[f"{name}.weight"] = np.where(kept, value, 0).astype(np.float32)
    return weights


def random_inputs(spec: TransformerSpec, sequence: int, random: np.random.Generator) -> _Arrays:
    """ROWS inputs; token inputs have rows of different lengths, padded at the end."""
    embedding = spec.embedding
    if isinstance(embedding, TokenEmbedding):
        mask = np.ones((ROWS, sequence), np.int64)
        for row in range(ROWS):
            mask[row, max(1, sequence - row * sequence // ROWS) :] = 0
        return {"input_ids": random.integers(0, embedding.vocabulary, (ROWS, sequence)), "attention_mask": mask}
    if isinstance(embedding, PatchEmbedding):
        shape = (ROWS, embedding.channels, embedding.size, embedding.size)
        return {"pixel_values": random.normal(size=shape).astype(np.float32)}
    return {"features": random.normal(size=(ROWS, sequence, spec.hidden)).astype(np.float32)}


def encode(spec: TransformerSpec, weights: _Arrays, inputs: _Arrays, scheme: str) -> Encodings:
    """Encodings by minimum and maximum; dynamic schemes have none for activations."""
    ranges: dict[str, tuple[float, float]] = {}

    def observe(name: str, value: Any) -> Any:
        low, high = ranges.get(name, (0.0, 0.0))
        ranges[name] = (min(low, float(value.min())), max(high, float(value.max())))
        return value

    module.run(module.build(spec, weights), inputs, observe)
    activations = {}
    if not scheme.endswith("-dynamic"):
        for name in static_activations(spec):
            low, high = ranges[name]
            scale = float(np.float32(max(high - low, 1e-6) / 255))
            activations[name] = ActivationEncoding(scale, int(np.rint(-128 - low / scale)))
    tables = {
        name: four_bits(value) if scheme.startswith("w4") and not is_float_linear(name.removesuffix(".weight"))
        else WeightEncoding(8, 0, row_scales(value))
        for name, value in weights.items()
        if name.endswith(".weight") and value.ndim == 2
    }
    calibrator, count = (None, 0) if scheme.endswith("-dynamic") else ("minmax", ROWS)
    return Encodings(scheme, calibrator, count, activations, tables)


def four_bits(weight: NDArray[Any]) -> WeightEncoding:
    """4 bits: a group's multiplier brings its largest weight to 7 steps, as nearly as 15 multipliers can."""
    rows, columns = weight.shape
    group = next(size for size in range(min(LARGEST_GROUP, columns), 0, -1) if columns % size == 0)
    largest = np.abs(weight.reshape(rows, -1, group)).max(-1)
    scale = np.maximum(largest.max(1) / (7 * 15), 1e-8).astype(np.float32)
    multiplier = np.clip(np.ceil(largest / (7 * scale[:, None])), 1, 15).astype(np.uint8)
    return WeightEncoding(4, 0, scale, group, multiplier)


def run(graph: bytes, inputs: _Arrays) -> NDArray[np.float32]:
    """First output of ONNX Runtime without graph optimizations, row by row (dynamic scales are per call)."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options)
    rows = len(next(iter(inputs.values())))
    return np.concatenate(
        [session.run(None, {name: value[row : row + 1] for name, value in inputs.items()})[0] for row in range(rows)]
    )


def sqnr_db(reference: NDArray[Any], other: NDArray[Any]) -> float:
    """Signal-to-quantization-noise ratio in dB."""
    noise = float(np.square(reference.astype(np.float64) - other).sum())
    return float(10 * np.log10(np.square(reference.astype(np.float64)).sum() / max(noise, 1e-300)))


def without(sample: Sample, **changes: Any) -> Sample:
    """A copy with some fields changed."""
    return dataclasses.replace(sample, **changes)
