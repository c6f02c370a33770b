"""The artifact: files that run on a board, with golden inputs and outputs (format `edgesdk.artifact`, version 1).

    name/
      artifact.json      this document
      model…             what the runtime loads (`files`, with sha256 and size)
      golden/in.bin      raw little-endian; for each input in order a block [n, *shape[1:]]
      golden/out.bin     the expected outputs, same layout
      golden/float.bin   static schemes: the outputs of the package's weights in float, same layout

The worker on the board has no numpy, hence raw blocks. The tolerance belongs to the scheme, not to the artifact's
maker: `max_abs` 1e-4 for fp32; for dynamic schemes `sqnr_db` 20 and 98 % equal labels, both against fp32. For static
schemes `sqnr_db` 30 against the package's fake-quantized model; or the error against float is at most 6 / √n dB above
that model's own: rounding turns the last bit of a float into a step of int8 and layers multiply it, so that two right
programs of one trained model may differ by nearly as much as each differs from float (docs/decisions.md, 26). `fp16`:
`sqnr_db` 30 against fp32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.errors import ConvertError
from edgesdk.files import canonical_json, inside, read_document, sha256_bytes, sha256_file

FORMAT, VERSION = "edgesdk.artifact", 1
TOLERANCE = ("kind", "limit", "labels_equal", "noise_db")
DTYPES = {"float32": "<f4", "int64": "<i8", "int32": "<i4"}


@dataclass(frozen=True)
class Tensor:
    """An input or output: `shape` in elements, batch first (1)."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ArtifactFile:
    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Golden:
    """`n` golden rows; `kind` is `max_abs` (largest absolute error ≤ `limit`) or `sqnr_db` (≥ `limit`, in dB).

    `labels_equal` is the share of rows that must keep their label (the largest of `logits`); None where labels are not
    asked for. Outputs of other names have no labels, and fewer than 32 rows are not judged by them.

    Where there is a block `floats`, outputs below `limit` pass too if their error against it, over all rows, is at most
    `noise_db` / √n dB above that of `outputs`.
    """

    n: int
    kind: str
    limit: float
    labels_equal: float | None = None
    noise_db: float | None = None
    inputs: str = "golden/in.bin"
    outputs: str = "golden/out.bin"
    floats: str | None = None

    @property
    def blocks(self) -> dict[str, str]:
        """The golden files by what they are."""
        found = {"inputs": self.inputs, "outputs": self.outputs, "floats": self.floats}
        return {side: path for side, path in found.items() if path is not None}


@dataclass(frozen=True)
class Artifact:
    """See the module's text. `length_input` names the mask by which a runtime may cut trailing padding (work then is
    `per_input`); `executable` is the file that gets mode 0755 on the board."""

    name: str
    converter: str
    scheme: str
    target: str
    package: str
    runtime: Mapping[str, Any]
    files: tuple[ArtifactFile, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    golden: Golden
    work: str = "constant"
    length_input: str | None = None
    executable: str | None = None
    segments: Sequence[str] | None = None
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Model data: weights and graph, or the code that a compiler made of it; golden files and the runtime are not
        counted."""
        return int(self.runtime.get("model_bytes", self.bytes_with_runtime))

    @property
    def bytes_with_runtime(self) -> int:
        """What is copied to the board: the files. They hold the runtime only where the artifact is a NEON build; a
        runtime that is installed on the board (ONNX Runtime, LiteRT) is not counted, and this equals `bytes`."""
        return sum(file.bytes for file in self.files)


def tolerance(scheme: str) -> tuple[str, float, float | None, float | None]:
    """The tolerance of a scheme (see the module's text) as (kind, limit, labels_equal, noise_db) of `Golden`."""
    if scheme == "fp32":
        return "max_abs", 1e-4, None, None
    if scheme == "fp16":
        return "sqnr_db", 30.0, None, None
    return ("sqnr_db", 20.0, 0.98, None) if scheme.endswith("-dynamic") else ("sqnr_db", 30.0, None, 6.0)


def write_artifact(
    folder: Path, artifact: Artifact, golden_inputs: Sequence[NDArray[Any]], golden_outputs: Sequence[NDArray[Any]],
    golden_floats: Sequence[NDArray[Any]] = (),
) -> Artifact:
    """Write `artifact.json` and the golden blocks into `folder`, which already holds the model files named in
    `artifact.files` (their sha256 and sizes are filled in here). Use inside `edgesdk.files.atomic_folder`."""
    (folder / "golden").mkdir(exist_ok=True)
    given = {"inputs": golden_inputs, "outputs": golden_outputs, "floats": golden_floats}
    for side, block in artifact.golden.blocks.items():
        arrays = given[side]
        tensors = artifact.inputs if side == "inputs" else artifact.outputs
        data = b"".join(
            np.ascontiguousarray(array.reshape(artifact.golden.n, *tensor.shape[1:]), DTYPES[tensor.dtype]).tobytes()
            for tensor, array in zip(tensors, arrays, strict=True)
        )
        (folder / block).write_bytes(data)
    files = tuple(
        ArtifactFile(file.path, sha256_file(folder / file.path), (folder / file.path).stat().st_size)
        for file in artifact.files
    )
    artifact = dataclasses.replace(artifact, files=files)
    (folder / "artifact.json").write_bytes(canonical_json(to_json(artifact, folder)))
    return artifact


def to_json(artifact: Artifact, folder: Path) -> dict[str, Any]:
    """The document; the golden blocks' digests are taken from `folder`."""
    document = dataclasses.asdict(artifact)
    golden = document["golden"]
    golden["tolerance"] = {key: golden.pop(key) for key in TOLERANCE}
    golden["sha256"] = {side: sha256_file(folder / golden[side]) for side in artifact.golden.blocks}
    return {"format": FORMAT, "version": VERSION, **document}


def artifact_sha256(folder: Path) -> str:
    """Digest of the whole artifact: of artifact.json, which names the digest of every file."""
    return sha256_bytes((folder / "artifact.json").read_bytes())


def read_artifact(folder: Path) -> Artifact:
    """Read and verify an artifact folder.

    Raises:
        ConvertError: unknown version, a path outside the folder, a missing file, a wrong digest or size, or a tolerance
            that is not the one of the scheme.
    """
    document = read_document(folder / "artifact.json", FORMAT, VERSION, ConvertError)
    try:
        golden = document["golden"]
        limits = golden["tolerance"]
        artifact = Artifact(
            **{key: document[key] for key in ("name", "converter", "scheme", "target", "package", "runtime", "work")},
            length_input=document.get("length_input"),
            executable=document.get("executable"),
            segments=document.get("segments"),
            notes=tuple(document.get("notes", ())),
            files=tuple(ArtifactFile(str(f["path"]), str(f["sha256"]), int(f["bytes"])) for f in document["files"]),
            inputs=tuple(_tensor(entry) for entry in document["inputs"]),
            outputs=tuple(_tensor(entry) for entry in document["outputs"]),
            golden=Golden(
                int(golden["n"]), limits["kind"], limits["limit"], limits["labels_equal"], limits.get("noise_db"),
                inputs=str(golden["inputs"]), outputs=str(golden["outputs"]),
                floats=str(golden["floats"]) if golden.get("floats") is not None else None,
            ),
        )
        expected = [(f.path, f.sha256) for f in artifact.files]
        expected += [(path, golden["sha256"][side]) for side, path in artifact.golden.blocks.items()]
        _check_types(artifact)
        sizes = [f.bytes for f in artifact.files]
        for side in artifact.golden.blocks:
            sizes.append(_block_bytes(artifact.golden.n, artifact.inputs if side == "inputs" else artifact.outputs))
    except (KeyError, TypeError, ValueError, OverflowError) as problem:
        raise ConvertError(f"{folder}/artifact.json: malformed: {problem!r}") from problem
    found, wanted = [getattr(artifact.golden, key) for key in TOLERANCE], list(tolerance(artifact.scheme))
    if found != wanted:
        where = f"{folder}/artifact.json: golden.tolerance"
        raise ConvertError(f"{where} is {found}, that of {artifact.scheme} is {wanted}", "build the artifact again")
    for (relative, digest), size in zip(expected, sizes, strict=True):
        path = inside(folder, relative, ConvertError)
        if not path.is_file():
            raise ConvertError(f"{path}: missing")
        if path.stat().st_size != size:
            raise ConvertError(f"{path}: has {path.stat().st_size} bytes, artifact.json says {size}")
        if sha256_file(path) != digest:
            raise ConvertError(f"{path}: sha256 differs from artifact.json", "build the artifact again")
    if artifact.executable is not None and artifact.executable not in {file.path for file in artifact.files}:
        raise ConvertError(f"{folder}/artifact.json: executable {artifact.executable!r} is not one of its files")
    return artifact


def _check_types(artifact: Artifact) -> None:
    """ValueError where a field that is used as it is has another type."""
    texts = (artifact.name, artifact.converter, artifact.scheme, artifact.target, artifact.package, artifact.work)
    optional = [text for text in (artifact.length_input, artifact.executable) if text is not None]
    if not all(isinstance(text, str) for text in (*texts, *optional, *artifact.notes)):
        raise ValueError("a field that should be text is not")
    if not isinstance(artifact.runtime, dict) or not isinstance(artifact.segments, list | None):
        raise ValueError("runtime is not a mapping, or segments is not a list")
    if min(artifact.golden.n, artifact.bytes_with_runtime) < 1:
        raise ValueError("there are no golden rows, or a size is not positive")
    whole = artifact.bytes_with_runtime
    model_bytes = artifact.runtime.get("model_bytes", whole)
    if type(model_bytes) is not int or not 0 < model_bytes <= whole:
        raise ValueError(f"runtime.model_bytes is {model_bytes!r}, the files have {whole} bytes")


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"dtype {entry['dtype']!r}")
    shape = tuple(int(size) for size in entry["shape"])
    if not shape or min(shape) < 1:
        raise ValueError(f"shape {shape}")
    return Tensor(str(entry["name"]), str(entry["dtype"]), shape)


def _block_bytes(rows: int, tensors: Sequence[Tensor]) -> int:
    """Bytes of a golden block of that many rows."""
    return sum(rows * math.prod(tensor.shape[1:]) * np.dtype(DTYPES[tensor.dtype]).itemsize for tensor in tensors)
