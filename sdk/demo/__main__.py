"""Train the demo model: `python -m edgesdk.demo [OUT]` (about 40 CPU seconds, one thread)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgesdk import demo
from edgesdk.evaluate import accuracy
from edgesdk.importing import import_job
from edgesdk.package import write_package
from edgesdk.stages.train import Schedule, train
from edgesdk.transformer.module import Transformer
from edgesdk.transformer.spec import Layer, PatchEmbedding, TransformerSpec

SPEC = TransformerSpec(
    embedding=PatchEmbedding(channels=1, size=8, patch=2),
    hidden=64,
    layers=(Layer(heads=4, kv_heads=4, head_size=16, ffn=256),) * 3,
    norm="pre",
    norm_epsilon=1e-6,
    activation="gelu",
    pooling="cls",
    final_norm=True,
    classes=10,
)


def main(out: Path) -> None:
    """Train from the fixed seed and write the package."""
    # One thread: the sums of several threads depend on how many there are.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(demo.SEED)
    module = Transformer(SPEC)
    for name, parameter in module.named_parameters():
        if name in ("embedding.positions.weight", "embedding.cls"):
            torch.nn.init.trunc_normal_(parameter, std=0.02)
    rest, validation = demo.train_data().split(0.1, demo.SEED)
    labels, validation_labels = rest.labels, validation.labels
    assert labels is not None and validation_labels is not None

    def loss(logits: torch.Tensor, rows: NDArray[np.int64]) -> torch.Tensor:
        return functional.cross_entropy(logits, torch.from_numpy(labels[rows]), label_smoothing=0.1)

    def show(what: str, step: int, steps: int) -> None:
        if step % 100 == 0:
            print(f"{what}: {step} of {steps}", flush=True)

    schedule = Schedule(epochs=60, batch=64, learning_rate=2e-3, weight_decay=0.05)
    best = train(
        module, rest, loss, schedule, demo.SEED, lambda y: accuracy(y, validation_labels), validation, show
    )
    print(f"validation accuracy {best:.4f}")
    job = import_job(module, demo.test_data(), demo.train_data(), name="digits")
    print(f"test accuracy {job.package.baseline.accuracy:.4f} of {job.package.baseline.n}")
    print(write_package(job.package, out))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else demo.package_path())
