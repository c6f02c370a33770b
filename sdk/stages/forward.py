"""Passes through a module, as fast as the machine allows. This module loads torch: import it inside `apply`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgesdk.stages.train_batches import sorted_batches, take_rows
from edgesdk.transformer.module import Transformer
from edgesdk.transformer.spec import TransformerSpec

_INSIDE: list[None] = []  # blocks of `no_denormals` that are open


def autocast(spec: TransformerSpec, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """A factory of contexts in which matrices are multiplied in bfloat16, where that is faster: on GPUs and CPUs that
    have it, for models of at least 128 hidden units (small ones lose more by converting)."""
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else has_bfloat16()
    if spec.hidden >= 128 and fast:
        return functools.partial(torch.autocast, device.type, torch.bfloat16)
    return contextlib.nullcontext


@contextlib.contextmanager
def no_denormals() -> Iterator[None]:
    """Numbers below 1e-38 are zero inside: e^-100 of masked scores is one, and they cost a sixth of a step."""
    _INSIDE.append(None)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        _INSIDE.pop()
        torch.set_flush_denormal(bool(_INSIDE))


@functools.cache
def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (Linux)."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return "amx_bf16" in flags or "avx512_bf16" in flags


def tensors_of(inputs: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, Tensor]:
    """NumPy inputs as tensors; the arrays may be read-only, the tensors are copies then."""
    return {
        name: torch.from_numpy(value if value.flags.writeable else value.copy()).to(device)
        for name, value in inputs.items()
    }


def predict(
    module: Transformer, inputs: Mapping[str, NDArray[Any]], forward: Callable[[dict[str, Tensor]], Tensor],
    batch: int = 128,
) -> Tensor:
    """Float32 results [N, …] of `forward(batch)` on the CPU, without gradients; rows of similar length together.
    Results of each token, [N, S, …], are filled with zeros where a batch was cut."""
    device = next(module.parameters()).device
    found: list[Tensor] = []
    order = sorted_batches(inputs, batch)
    with torch.no_grad(), no_denormals():
        for rows in order:
            found.append(forward(tensors_of(take_rows(inputs, rows), device)).float().cpu())
    if found[-1].dim() == 3:
        longest = max(part.shape[1] for part in found)
        found = [functional.pad(part, (0, 0, 0, longest - part.shape[1])) for part in found]
    result = torch.cat(found)
    back = np.argsort(np.concatenate(order), kind="stable")
    return result[torch.from_numpy(back)]
