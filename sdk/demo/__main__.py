"""Train the demo model: `python -m edgesdk.demo [OUT]` (about 40 CPU seconds, one thread)."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn import functional

from edgesdk import demo
from edgesdk.importing import import_job
from edgesdk.package import write_package
from edgesdk.stages.base import Context
from edgesdk.stages.train import TrainingOptions, fit
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
    labels = rest.labels
    assert labels is not None

    def loss(module: Transformer, batch: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        targets = torch.from_numpy(labels)[rows.cpu()].to(rows.device)
        return functional.cross_entropy(module.trace(batch).output, targets, label_smoothing=0.1)

    def show(what: str, step: int, steps: int) -> None:
        if step % 100 == 0:
            print(f"{what}: {step} of {steps}", flush=True)

    untrained = import_job(module, demo.test_data(), demo.train_data(), name="digits").package
    context = Context(rest, validation, validation, untrained, demo.SEED, show)
    options = TrainingOptions(epochs=60, learning_rate=2e-3, head_learning_rate=2e-3)
    best = fit(module, context, options, loss, what="training")
    print(f"validation accuracy {best:.4f}")
    job = import_job(module, demo.test_data(), demo.train_data(), name="digits")
    print(f"test accuracy {job.package.baseline.accuracy:.4f} of {job.package.baseline.n}")
    print(write_package(job.package, out))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else demo.package_path())
