"""Random tiny models of every kind, with data: what tests of stages, converters and packages run on.

Everything follows from a seed. H is the hidden size, S the sequence in tokens, N a number of rows.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.data import Dataset
from edgesdk.evaluate import golden_outputs
from edgesdk.package import Baseline, Package, Samples
from edgesdk.stages.base import Context, Stage, run_stage
from edgesdk.stages.masks import choose, parse
from edgesdk.transformer.graph import write_graph
from edgesdk.transformer.spec import FeatureEmbedding, Layer, PatchEmbedding, TokenEmbedding, TransformerSpec

SEQUENCE, VOCABULARY, GOLDEN_ROWS = 8, 50, 3
Arrays = dict[str, NDArray[Any]]

VIT = TransformerSpec(
    PatchEmbedding(channels=1, size=8, patch=4), 16, (Layer(2, 2, 8, 32), Layer(2, 2, 8, 24)), "pre", 1e-6, "gelu",
    "cls", final_norm=True, classes=5,
)
VIT_MEAN = TransformerSpec(
    PatchEmbedding(channels=3, size=8, patch=4, cls=False, norm=True), 16, (Layer(4, 2, 4, 32),), "pre", 1e-6, "relu",
    "mean", final_norm=True, classes=4,
)
BERT = TransformerSpec(
    TokenEmbedding(VOCABULARY, max_length=12), 16, (Layer(2, 2, 8, 32), Layer(1, 1, 8, 20)), "post", 1e-12, "gelu",
    "cls", pooler=True, classes=3,
)
BERT_MEAN = TransformerSpec(
    TokenEmbedding(VOCABULARY, max_length=12), 16, (Layer(4, 1, 4, 32), Layer(2, 2, 8, 24)), "post", 1e-12,
    "gelu_tanh", "mean",
)
FEATURES = TransformerSpec(FeatureEmbedding(max_length=12), 16, (Layer(2, 2, 8, 32),), "post", 1e-5, "relu", "none")
SPECS = {"vit": VIT, "vit_mean": VIT_MEAN, "bert": BERT, "bert_mean": BERT_MEAN, "features": FEATURES}


def sequence_of(spec: TransformerSpec) -> int:
    """The sequence of the samples that this module makes: SEQUENCE, or what the patches fix."""
    return spec.max_length if isinstance(spec.embedding, PatchEmbedding) else min(SEQUENCE, spec.max_length)


def random_weights(spec: TransformerSpec, seed: int = 0) -> Arrays:
    """Weights of a size that keeps activations near 1; LayerNorm weights near 1; biases that matter; half of what the
    spec says to be sparse is zero."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in spec.weight_shapes().items():
        value = random.normal(size=shape) * (0.3 if len(shape) == 1 or "embedding" in name else shape[-1] ** -0.5)
        weights[name] = (1 + value if name.endswith("norm.weight") else value).astype(np.float32)
    for name, pattern in spec.sparse.items():
        matrix = weights[f"{name}.weight"]
        weights[f"{name}.weight"] = matrix * choose({"": np.abs(matrix)}, parse(pattern), 0.5, "uniform")[""]
    return weights


def random_inputs(spec: TransformerSpec, rows: int, seed: int = 0) -> Arrays:
    """Inputs [rows, …]; token inputs have different lengths, padded at the end."""
    random = np.random.default_rng(seed)
    embedding, sequence = spec.embedding, sequence_of(spec)
    if isinstance(embedding, TokenEmbedding):
        lengths = 1 + (np.arange(rows)[:, None] * 3 + sequence - 1) % sequence
        mask = (np.arange(sequence) < lengths).astype(np.int64)
        return {"input_ids": random.integers(0, embedding.vocabulary, (rows, sequence)), "attention_mask": mask}
    if isinstance(embedding, PatchEmbedding):
        shape = (rows, embedding.channels, embedding.size, embedding.size)
        return {"pixel_values": random.normal(size=shape).astype(np.float32)}
    return {"features": random.normal(size=(rows, sequence, spec.hidden)).astype(np.float32)}


def random_dataset(spec: TransformerSpec, rows: int, seed: int = 0) -> Dataset:
    """Inputs with labels where the spec has classes; labels are random, so nothing can be learned but by heart."""
    labels = None
    if spec.classes is not None:
        labels = np.random.default_rng(seed + 1).integers(0, spec.classes, rows)
    return Dataset(random_inputs(spec, rows, seed), labels, "random")


def random_package(spec: TransformerSpec, seed: int = 0) -> Package:
    """An fp32 package with GOLDEN_ROWS golden rows and eight rows of calibration data."""
    weights, golden = random_weights(spec, seed), random_inputs(spec, GOLDEN_ROWS, seed + 1)
    graph = write_graph(spec, weights)
    outputs, _ = golden_outputs(spec, weights, graph, False, golden)
    task, metric = ("encoding", "cosine") if spec.classes is None else ("classification", "accuracy")
    return Package(
        name="random", task=task, metric=metric, labels=None, spec=spec, weights=weights, graph=graph, encodings=None,
        samples=Samples(random_inputs(spec, 8, seed + 2), golden, outputs, outputs, outputs), preprocess={},
        lineage=(), baseline=Baseline(len(graph), None, 0), environment={}, sequence=sequence_of(spec),
    )


def random_context(package: Package, *, training: bool = True, seed: int = 0) -> Context:
    """What stages may use: 24 rows of each kind of data; `training=False` is a build without training data."""
    data = random_dataset(package.spec, 24, seed + 10)
    train = random_dataset(package.spec, 24, seed + 20) if training else None
    return Context(train, data, data, package, seed)


def staged(package: Package, *stages: Stage) -> Package:
    """The package after stages."""
    context = random_context(package)
    for stage in stages:
        package = run_stage(stage, package, context)
    return package


def with_weights(package: Package, **weights: NDArray[np.float32]) -> Package:
    """A copy of an fp32 package with some weights changed (`.` written `__`) and everything else made to fit."""
    changed = {**package.weights, **{name.replace("__", "."): value for name, value in weights.items()}}
    graph = write_graph(package.spec, changed)
    outputs, _ = golden_outputs(package.spec, changed, graph, False, package.samples.golden_inputs)
    samples = dataclasses.replace(package.samples, golden_float=outputs, golden_outputs=outputs)
    return dataclasses.replace(package, weights=changed, graph=graph, samples=samples)
