"""The `neon-fp16` converter: a float package as a NEON build in half precision, for cores that multiply halves.

Linear layers multiply float16 weights and activations and widen their sums (`kernels/edge_gemm_half.h`); tables of
embeddings are float16; attention, norms, activations and biases stay float32. Float16 ends at 65504: what passes it on
the first golden rows is refused here, and other rows of a model that comes near it may become NaN.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from edgesdk.converters.artifact import Artifact
from edgesdk.converters.base import Outlined
from edgesdk.converters.front import Linear, lower
from edgesdk.converters.neon.convert import problems, write
from edgesdk.converters.neon.kernel_sets import choose_half
from edgesdk.errors import ConvertError
from edgesdk.evaluate import Session
from edgesdk.package import Package
from edgesdk.targets import Target

name = "neon-fp16"
SCHEME = "fp16"
scheme: str | None = SCHEME
LARGEST = float(np.finfo(np.float16).max)
BLOCK = 128  # EDGE_HALF_BLOCK
CHECKED_ROWS = 8


def check(package: Outlined, target: Target) -> list[str]:
    """The reasons why `convert` would fail; empty where it will not."""
    reasons = []
    if package.scheme != "fp32":
        reasons.append(f"{name}: makes {SCHEME} of a package in fp32 (package: {package.scheme})")
    if SCHEME not in target.schemes:
        reasons.append(f"{name}: target {target.name} does not list the scheme {SCHEME}")
    return [*reasons, *problems(package, lambda: choose_half(target))]


def convert(package: Package, target: Target, folder: Path) -> Artifact:
    """Write the executable `model`, or the sources of it, and the artifact around them into the empty `folder`.

    Raises:
        ConvertError: see `check` and `check_range`; the compiler fails.
    """
    check_range(package)
    return write(package, target, folder, choose_half(target), name, SCHEME)


def check_range(package: Package) -> None:
    """Refuse what float16 cannot hold: matrices, and on CHECKED_ROWS golden rows what linear layers read and add up. A
    sum may pass the limit on its way, so the magnitudes of the products of a block count.

    Raises:
        ConvertError: the package is quantized, or something in it is beyond float16; the first one is named.
    """
    if package.scheme != "fp32":
        message = f"{package.name}: {name} makes {SCHEME} of a package in fp32"
        raise ConvertError(message, f"this one is {package.scheme}")
    for key, weight in package.weights.items():
        if weight.ndim > 1:
            _check(package, f"{key} holds", np.abs(weight).max(initial=0.0))
    graph = lower(package.graph, package.sequence, branches="marked")
    layers = [node for node in graph.nodes if isinstance(node, Linear)]
    rows = _values(package, {layer.source for layer in layers})
    for layer in layers:
        if layer.source not in rows:  # made in a branch, which these rows may not take
            continue
        x, weight = np.abs(rows[layer.source]).reshape(-1, layer.weight.shape[1]), np.abs(layer.weight)
        _check(package, f"{layer.name} reads", x.max())
        for start in range(0, x.shape[1], BLOCK):
            block = slice(start, start + BLOCK)
            _check(package, f"{layer.name} adds up", (x[:, block] @ weight[:, block].T).max())


def _check(package: Package, what: str, value: float) -> None:
    if not value <= LARGEST:
        message = f"{package.name}: {what} {value:.3g}, beyond the {LARGEST:g} of float16"
        raise ConvertError(message, "build it in fp32 or int8")


def _values(package: Package, names: set[str]) -> dict[str, NDArray[np.float32]]:
    """Values of the graph on a few golden rows; those that lie in a branch are left out."""
    model = onnx.load_from_string(package.graph)
    inputs = package.samples.golden_inputs
    found = {key: np.asarray(inputs[key], np.float32) for key in names & inputs.keys()}
    made = sorted(names & {output for node in model.graph.node for output in node.output})
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(key) for key in made)
    session = Session(model.SerializeToString()).session
    rows = {key: np.ascontiguousarray(value[:CHECKED_ROWS]) for key, value in inputs.items()}
    return found | dict(zip(made, session.run(made, rows), strict=True))
