"""The `neon-fp16` converter: a float package as a NEON build in half precision, for cores that multiply halves.

Linear layers multiply float16 weights and activations and widen their sums (`kernels/edge_gemm_half.h`); tables of
embeddings are float16; attention, norms, activations and biases stay float32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgesdk.converters.artifact import Artifact
from edgesdk.converters.base import Outlined
from edgesdk.converters.neon.convert import problems, write
from edgesdk.converters.neon.kernel_sets import choose_half
from edgesdk.errors import ConvertError
from edgesdk.package import Package
from edgesdk.targets import Target

name = "neon-fp16"
SCHEME = "fp16"
scheme: str | None = SCHEME


def check(package: Outlined, target: Target) -> list[str]:
    """The reasons why `convert` would fail; empty where it will not."""
    reasons = []
    if package.scheme != "fp32":
        reasons.append(f"{name}: makes {SCHEME} of a package in fp32 (package: {package.scheme})")
    if SCHEME not in target.schemes:
        reasons.append(f"{name}: target {target.name} does not list the scheme {SCHEME}")
    return [*reasons, *problems(package, lambda: choose_half(target))]


def convert(package: Package, target: Target, folder: Path) -> Artifact:
    """Write the executable `model` and the artifact around it into the empty `folder`.

    Raises:
        ConvertError: see `check`; a weight is beyond float16; the compiler fails.
    """
    return write(half_package(package), target, folder, choose_half(target), name, SCHEME)


def half_package(package: Package) -> Package:
    """The package, if its weights can be rounded to float16.

    Raises:
        ConvertError: it is quantized, or a weight is beyond float16.
    """
    if package.scheme != "fp32":
        message = f"{package.name}: {name} makes {SCHEME} of a package in fp32"
        raise ConvertError(message, f"this one is {package.scheme}")
    largest = float(np.finfo(np.float16).max)
    for key, weight in package.weights.items():
        if np.abs(weight).max(initial=0.0) > largest:
            message = f"{package.name}: {key} holds {np.abs(weight).max():.3g}, beyond the {largest:g} of float16"
            raise ConvertError(message, "build it in fp32 or int8")
    return package
