"""What factors must know of the data: moments of inputs, frequencies of tokens, gradients of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.package import Package
from edgesdk.stages.base import Context

if TYPE_CHECKING:
    from torch import Tensor

Vectors = dict[str, NDArray[np.float64]]


def moments(package: Package, context: Context, names: Sequence[str]) -> tuple[Vectors, Vectors]:
    """Mean [K] and covariance [K, K] of what each stored linear layer reads on the calibration data, over all layers
    that share it."""
    from edgesdk.stages.observe import InputStatistics, inputs_of, observe

    readings = inputs_of(package.spec)
    statistics = InputStatistics({reading for name in names for reading in readings[name]}, products=True)
    observe(package, context.calibration.inputs, statistics.add)
    means: Vectors = {}
    covariances: Vectors = {}
    shared: dict[tuple[str, ...], NDArray[np.float64]] = {}
    for name in names:
        reading = readings[name]
        means[name] = statistics.mean(reading)
        if reading not in shared:  # query, key and value read the same
            shared[reading] = statistics.hessian(reading) - np.outer(means[name], means[name])
        covariances[name] = shared[reading]
    return means, covariances


def frequencies(context: Context, vocabulary: int) -> NDArray[np.float64]:
    """How often each token occurs in the training data (else the calibration data), plus one: unseen tokens may come.
    Float64 [V]."""
    data = context.calibration if context.train is None else context.train
    ids = data.inputs["input_ids"][data.inputs["attention_mask"] == 1]
    return np.bincount(ids, minlength=vocabulary).astype(np.float64) + 1.0


def gradient_energies(package: Package, context: Context, names: Sequence[str], samples: int) -> Vectors:
    """Σ over inputs and columns of (∂loss/∂W)² for each row of the matrices, plus the mean over rows where a row was
    never reached; float64 [N] (for `embedding`: [V]). Uses of a shared layer count one by one."""
    import torch

    from edgesdk.stages.importance import labelled_rows, probe_loss
    from edgesdk.stages.train_batches import sorted_batches, take_rows
    from edgesdk.transformer.module import build, no_tap

    data = labelled_rows(context, samples)
    module = build(package.spec, package.weights)
    loss = probe_loss(package, context, data)
    totals: dict[str, Tensor] = {}

    def add(name: str, value: Tensor) -> None:
        totals[name] = totals.get(name, 0.0) + value.double()

    def watch(name: str) -> Any:
        def hook(layer: object, given: tuple[Tensor, ...], output: Tensor) -> None:
            read = given[0].detach()

            def backward(gradient: Tensor) -> None:
                if name == "embedding":
                    energy = gradient.square().sum(-1).double()
                    zeros = torch.zeros(package.weights["embedding.tokens.weight"].shape[0], dtype=torch.float64)
                    add(name, zeros.index_add(0, read.flatten(), energy.flatten()))
                else:
                    add(name, torch.einsum("bsn,bsk->bnk", gradient, read).square().sum((0, 2)))

            output.register_hook(backward)  # type: ignore[no-untyped-call]

        return hook

    for name in names:
        module.get_submodule("embedding.tokens" if name == "embedding" else name).register_forward_hook(watch(name))
    for rows in sorted_batches(data.inputs, 8):
        batch = {name: torch.from_numpy(value) for name, value in take_rows(data.inputs, rows).items()}
        loss(module, batch, torch.from_numpy(rows), no_tap).backward()  # type: ignore[no-untyped-call]
        module.zero_grad(set_to_none=True)
    found: Vectors = {}
    for name in names:
        energy = totals[name].numpy()
        # A row of no weight at all would make the factors infinite.
        found[name] = energy + max(float(energy.mean()), 1e-30) * (1.0 if name == "embedding" else 1e-3)
    return found
