"""The package: the portable form of a model between import, stages and converters, and its only reader and writer.

    name.edgepkg/
      manifest.json         format, version, name, task, metric, labels, io, sequence, lineage, baseline, environment,
                            and the sha256 and size of every other file: its own sha256 is the package's digest
      run.json              seconds, host, date: may differ between equal packages, outside the digest
      transformer.json      the spec (`edgesdk.transformer.spec`)
      weights.safetensors   float32 weights for the next stage to go on from
      encodings.json        scales, once a quantize stage ran (`edgesdk.encodings`)
      graph/model.onnx      standalone ONNX, written by `edgesdk.transformer.graph`
      samples.npz           calibration inputs, golden inputs, reference and own outputs
      preprocess/NAME       tokenizer or image transform (optional)

A weight is stored once: `weights.safetensors` leaves out each tensor that the graph holds bit for bit as a float32
initializer of the same name and shape, and reading takes it from there. So an fp32 package is as large as its ONNX
file, and a quantized one keeps the float weights that its graph no longer has.

Writing is atomic and canonical: equal packages are equal bytes. Reading checks everything before anything is used and
executes nothing; a `Package` object that exists is consistent (`edgesdk.package_check`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk import encodings as encoding_format
from edgesdk.encodings import ActivationEncoding, Encodings, WeightEncoding
from edgesdk.errors import PackageError
from edgesdk.files import canonical_json
from edgesdk.package_arrays import read_npz, read_safetensors, write_npz, write_safetensors
from edgesdk.package_check import GOLDEN_OUTPUTS, check_package, signature
from edgesdk.package_files import (
    ENCODINGS,
    GRAPH,
    MANIFEST,
    PREPROCESS,
    SAMPLES,
    TRANSFORMER,
    WEIGHTS,
    digest_of,
    hostile,
    manifest_bytes,
    parse_json,
    read_folder,
    read_manifest,
    read_run,
    write_folder,
)
from edgesdk.package_graph import check_graph
from edgesdk.transformer import spec_json as spec_format
from edgesdk.transformer.spec import TransformerSpec

__all__ = [
    "ActivationEncoding", "Baseline", "Encodings", "LineageEntry", "Package", "Samples", "WeightEncoding",
    "content_digest", "package_digest", "read_package", "read_run", "replace", "signature", "write_package",
]

Array = NDArray[Any]
KEYS = {"name", "task", "metric", "labels", "io", "sequence", "lineage", "baseline", "environment"}


@dataclass(frozen=True)
class LineageEntry:
    """What one stage did. The import is the first entry: `parent` None, before equal to after. `parameters` is JSON;
    metrics are fractions by name; bytes are those of the ONNX file. Seconds lie in `run.json`, by index."""

    stage: str
    parameters: Mapping[str, Any]
    seed: int
    parent: str | None
    metrics_before: Mapping[str, float]
    metrics_after: Mapping[str, float]
    bytes_before: int
    bytes_after: int
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs by name, batch first, and three answers to `golden_inputs`: `golden_reference` of the original float
    baseline, `golden_float` of this package's weights in float, `golden_outputs` of this package as it is, quantized
    where it has encodings (else equal to `golden_float`). Arrays become read-only."""

    calibration: Mapping[str, Array]
    golden_inputs: Mapping[str, Array]
    golden_reference: Array
    golden_float: Array
    golden_outputs: Array

    def __post_init__(self) -> None:
        for name in ("calibration", "golden_inputs"):
            object.__setattr__(self, name, {key: _read_only(array) for key, array in getattr(self, name).items()})
        for name in GOLDEN_OUTPUTS:
            object.__setattr__(self, name, _read_only(getattr(self, name)))


@dataclass(frozen=True)
class Baseline:
    """The float model that percentages refer to: bytes of its ONNX file, metric as a fraction over `n` rows."""

    bytes: int
    accuracy: float | None
    n: int


@dataclass(frozen=True, eq=False)
class Package:
    """See the module's text. `graph` is the ONNX file, `sequence` the fixed length of the samples in tokens.

    Weights are copied unless they are read-only already, and become read-only: what is in a package stays as it is.
    Compare packages by `content_digest`.

    Raises:
        PackageError: the parts contradict one another.
    """

    name: str
    task: str
    metric: str
    labels: tuple[str, ...] | None
    spec: TransformerSpec
    weights: Mapping[str, NDArray[np.float32]]
    graph: bytes = field(repr=False)
    encodings: Encodings | None
    samples: Samples
    preprocess: Mapping[str, bytes] = field(repr=False)
    lineage: tuple[LineageEntry, ...]
    baseline: Baseline
    environment: Mapping[str, str]
    sequence: int

    def __post_init__(self) -> None:
        weights = {name: _read_only(array) for name, array in self.weights.items()}
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "labels", tuple(self.labels) if isinstance(self.labels, list) else self.labels)
        object.__setattr__(self, "lineage", tuple(self.lineage))
        check_package(self)

    @property
    def scheme(self) -> str:
        """`fp32`, or the scheme of the encodings."""
        return "fp32" if self.encodings is None else self.encodings.scheme


def replace(package: Package, **changes: Any) -> Package:
    """A copy with some fields changed; change what belongs together (spec, weights, graph …) in one call."""
    return dataclasses.replace(package, **changes)


def write_package(package: Package, path: Path | str, run: Mapping[str, Any] | None = None) -> str:
    """Write the folder `path` whole or not at all, replacing a package there, and return its digest `sha256:…`.

    `run` is the content of `run.json`, as JSON.

    Raises:
        PackageError: the graph is not one that a package may hold, `path` is something else than a package, or the
            disk refused; what was at `path` stays as it was.
    """
    return write_folder(Path(path), _manifest(package), _files(package), run or {})


def content_digest(package: Package) -> str:
    """The digest that `write_package` would return."""
    return digest_of(manifest_bytes(_manifest(package), _files(package)))


def package_digest(path: Path | str) -> str:
    """The digest of the package at `path`, from its manifest alone: the files it names are not read here."""
    return read_manifest(Path(path))[1]


def read_package(path: Path | str) -> Package:
    """Read and check a package folder, which may come from anywhere.

    Raises:
        PackageError: it is not a package, of another version, incomplete, changed, inconsistent or hostile; the
            message says which file and what was found.
    """
    path = Path(path)
    manifest, files, _ = read_folder(path)
    with hostile(f"{path}/{TRANSFORMER}"):
        document = parse_json(files[TRANSFORMER], f"{path}/{TRANSFORMER}")
        spec = spec_format.from_json(document, f"{path}/{TRANSFORMER}")
    with hostile(f"{path}/{MANIFEST}"):
        fields = {key: value for key, value in manifest.items() if key not in ("format", "version", "files")}
        if fields.keys() != KEYS:
            raise PackageError(f"{path}/{MANIFEST}: wrong or missing keys: {sorted(fields.keys() ^ KEYS)}"[:500])
        io = signature(spec)
        if fields.pop("io") != io:
            raise PackageError(f"{path}/{MANIFEST}: `io` differs from what {TRANSFORMER} takes and gives")
        fields["lineage"] = tuple(LineageEntry(**entry) for entry in fields["lineage"])
        fields["baseline"] = Baseline(**fields["baseline"])
        fields["environment"] = dict(fields["environment"])
    encodings = None
    if ENCODINGS in files:
        with hostile(f"{path}/{ENCODINGS}"):
            document = parse_json(files[ENCODINGS], f"{path}/{ENCODINGS}")
            encodings = encoding_format.from_json(document, f"{path}/{ENCODINGS}")
    held = check_graph(files[GRAPH], io["inputs"], io["outputs"], f"{path}/{GRAPH}")
    weights = {name: held[name] for name in spec.weight_shapes() if name in held}
    weights |= read_safetensors(files[WEIGHTS], f"{path}/{WEIGHTS}")
    samples = _samples(read_npz(files[SAMPLES], f"{path}/{SAMPLES}"), f"{path}/{SAMPLES}")
    preprocess = {name.removeprefix(PREPROCESS): data for name, data in files.items() if name.startswith(PREPROCESS)}
    with hostile(str(path)):
        return Package(
            spec=spec, weights=weights, graph=files[GRAPH], encodings=encodings, samples=samples,
            preprocess=preprocess, **fields,
        )


def _manifest(package: Package) -> dict[str, Any]:
    return {
        "name": package.name,
        "task": package.task,
        "metric": package.metric,
        "labels": None if package.labels is None else list(package.labels),
        "io": signature(package.spec),
        "sequence": package.sequence,
        "lineage": [vars(entry) for entry in package.lineage],
        "baseline": vars(package.baseline),
        "environment": dict(package.environment),
    }


def _files(package: Package) -> dict[str, bytes]:
    """Every file that the manifest lists, by its path."""
    io = signature(package.spec)
    held = check_graph(package.graph, io["inputs"], io["outputs"])
    stored = {name: weight for name, weight in package.weights.items() if not _same(weight, held.get(name))}
    files = {
        TRANSFORMER: canonical_json(spec_format.to_json(package.spec)),
        WEIGHTS: write_safetensors(stored),
        GRAPH: package.graph,
        SAMPLES: write_npz(_arrays(package.samples)),
    }
    if package.encodings is not None:
        files[ENCODINGS] = canonical_json(encoding_format.to_json(package.encodings))
    return files | {PREPROCESS + name: bytes(data) for name, data in package.preprocess.items()}


def _same(weight: Array, other: Array | None) -> bool:
    """Bit for bit: 0.0 and -0.0 differ."""
    return other is not None and weight.shape == other.shape and weight.tobytes() == other.tobytes()


def _arrays(samples: Samples) -> dict[str, Array]:
    arrays = {name: getattr(samples, name) for name in GOLDEN_OUTPUTS}
    for side, inputs in (("calibration", samples.calibration), ("golden_inputs", samples.golden_inputs)):
        arrays |= {f"{side}/{name}": array for name, array in inputs.items()}
    return arrays


def _samples(arrays: dict[str, Array], where: str) -> Samples:
    inputs: dict[str, dict[str, Array]] = {"calibration": {}, "golden_inputs": {}}
    with hostile(where):
        outputs = [arrays.pop(name) for name in GOLDEN_OUTPUTS]
        for name, array in arrays.items():
            side, _, key = name.partition("/")
            inputs[side][key] = array
        return Samples(inputs["calibration"], inputs["golden_inputs"], *outputs)


def _read_only(array: Any) -> Any:
    """The array, copied where somebody could still write to it; what is no array is left to `check_package`."""
    if isinstance(array, np.ndarray) and array.flags.writeable:
        array = array.copy()
        array.flags.writeable = False
    return array
