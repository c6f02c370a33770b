"""`verify(package)`: a package does not contradict itself. Runs between all stages and behind `edgesdk verify`."""

from __future__ import annotations

import numpy as np

from edgesdk.encodings import static_activations
from edgesdk.errors import VerifyError
from edgesdk.evaluate import run_graph, sqnr_db
from edgesdk.package import Package

# Largest difference of ONNX Runtime and torch on the golden inputs, relative to max(1, |y|).
FLOAT_TOLERANCE = 1e-4
# Share of a float matrix that may be zero by itself, outside the blocks that are structural.
STRAY_ZEROS = 0.01


def verify(package: Package) -> None:
    """Check spec against weights, the graph against its rewriting, ONNX against torch, numbers, and encodings.

    Raises:
        VerifyError: naming the first thing that does not fit.
    """
    from edgesdk.transformer.graph import write_graph
    from edgesdk.transformer.module import build, run

    where = f"package {package.name!r}"
    shapes = {name: tuple(value.shape) for name, value in package.weights.items()}
    if shapes != package.spec.weight_shapes():
        raise VerifyError(f"{where}: the weights are not those of transformer.json")
    for name, value in package.weights.items():
        if not np.isfinite(value).all():
            raise VerifyError(f"{where}: weight {name!r} holds NaN or infinity")
    verify_zeros(package)
    verify_encodings(package)
    if write_graph(package.spec, package.weights, package.encodings) != package.graph:
        raise VerifyError(f"{where}: graph/model.onnx is not the graph of its spec, weights and encodings")
    samples = package.samples
    reference = run(build(package.spec, package.weights), samples.golden_inputs)
    _same(where, "golden_float", samples.golden_float, reference)
    outputs = run_graph(package.graph, samples.golden_inputs, optimize=False, batch=1)
    if not np.isfinite(outputs).all():
        raise VerifyError(f"{where}: the graph's outputs hold NaN or infinity")
    if package.encodings is None:
        _same(where, "golden_outputs", samples.golden_outputs, reference)
        _same(where, "the ONNX graph", outputs, reference)
    elif (quality := sqnr_db(samples.golden_outputs, outputs)) < 60.0:
        raise VerifyError(f"{where}: golden_outputs differ from the graph's outputs (SQNR {quality:.1f} dB < 60)")


def verify_zeros(package: Package) -> None:
    """The zeros follow the patterns of `spec.sparse`: with N:M at most N of each M inputs are not zero; with RxC zeros
    fill whole blocks (in float packages: quantization rounds others to zero). `unstructured` says nothing of places.

    Raises:
        VerifyError: naming the matrix and its pattern.
    """
    for name, pattern in package.spec.sparse.items():
        kept = package.weights[f"{name}.weight"] != 0
        where = f"package {package.name!r}: weight {name!r} is not sparse as transformer.json says ({pattern})"
        if ":" in pattern:
            most, group = (int(number) for number in pattern.split(":"))
            counts = np.add.reduceat(kept, np.arange(0, kept.shape[1], group), 1, dtype=np.int64)
            if counts.max() > most:
                raise VerifyError(f"{where}: {counts.max()} of {group} neighbouring inputs are not zero")
        elif "x" in pattern and package.encodings is None:
            rows, columns = (int(number) for number in pattern.split("x"))
            blocks = np.logical_or.reduceat(kept, np.arange(0, kept.shape[0], rows), 0)
            blocks = np.logical_or.reduceat(blocks, np.arange(0, kept.shape[1], columns), 1)
            whole = np.repeat(np.repeat(blocks, rows, 0), columns, 1)[: kept.shape[0], : kept.shape[1]]
            if (stray := int((whole & ~kept).sum())) > STRAY_ZEROS * kept.size:
                raise VerifyError(f"{where}: {stray} zeros lie in blocks that hold other weights")


def verify_encodings(package: Package) -> None:
    """Every matrix has an encoding, and where the scheme is static every linear layer has its activations.

    Raises:
        VerifyError: naming what is missing.
    """
    encodings = package.encodings
    if encodings is None:
        return
    for name, shape in package.spec.weight_shapes().items():
        if len(shape) == 2 and name not in encodings.weights:
            raise VerifyError(f"package {package.name!r}: encodings.json has no weight {name!r}")
    if encodings.scheme.endswith("-dynamic"):
        return
    for name in sorted(static_activations(package.spec)):
        if name not in encodings.activations:
            raise VerifyError(f"package {package.name!r}: encodings.json has no activation {name!r}")


def _same(where: str, what: str, found: np.ndarray[tuple[int, ...], np.dtype[np.float32]], expected: object) -> None:
    reference = np.asarray(expected)
    difference = np.abs(found - reference) / np.maximum(1.0, np.abs(reference))
    if not float(difference.max(initial=0.0)) <= FLOAT_TOLERANCE:
        raise VerifyError(f"{where}: {what} differs from torch by {difference.max():.2e} > {FLOAT_TOLERANCE}")
