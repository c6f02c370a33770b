"""Run calibration inputs through the torch model and hand every tapped activation to an observer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.package import Package


def observe(
    package: Package, inputs: Mapping[str, NDArray[Any]], collect: Callable[[str, NDArray[np.float32]], None]
) -> None:
    """Call `collect(name, rows)` with rows [tokens, width] of each tapped tensor, batch by batch, in a fixed order.

    Rows of padded positions are left out: no runtime's result depends on them.
    """
    import torch

    from edgesdk.transformer.module import build

    module = build(package.spec, package.weights)
    count = len(next(iter(inputs.values())))
    with torch.inference_mode():
        for start in range(0, count, 32):
            batch = {
                name: torch.from_numpy(np.array(value[start : start + 32]))  # a copy: packages are read-only
                for name, value in inputs.items()
            }
            mask = batch.get("attention_mask")

            def tap(name: str, value: torch.Tensor, mask: torch.Tensor | None = mask) -> torch.Tensor:
                rows = value
                if mask is not None and value.dim() == 3:
                    rows = value[mask.bool()]
                collect(name, rows.reshape(-1, value.shape[-1]).numpy())
                return value

            module(batch, tap)
