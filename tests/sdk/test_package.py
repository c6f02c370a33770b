"""Packages: what is written is read again, equal packages are equal bytes, and nothing hostile gets through."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgesdk.errors import PackageError
from edgesdk.files import canonical_json, sha256_bytes
from edgesdk.package import (
    ActivationEncoding,
    Baseline,
    Encodings,
    LineageEntry,
    Package,
    Samples,
    WeightEncoding,
    content_digest,
    package_digest,
    read_package,
    read_run,
    replace,
    write_package,
)
from edgesdk.transformer.graph import write_graph
from edgesdk.transformer.quantize import row_scales
from edgesdk.transformer.spec import FeatureEmbedding, Layer, PatchEmbedding, Pooling, TokenEmbedding, TransformerSpec

VIT = TransformerSpec(
    PatchEmbedding(channels=1, size=4, patch=2), 8, (Layer(2, 2, 4, 12),), "pre", 1e-5, "gelu", "cls",
    final_norm=True, classes=3,
)
BERT = TransformerSpec(
    TokenEmbedding(vocabulary=11, max_length=6), 8, (Layer(2, 1, 4, 12), Layer(1, 1, 4, 5)), "post", 1e-12, "relu",
    "mean", pooler=True,
)
PLAIN = TransformerSpec(FeatureEmbedding(max_length=5), 8, (Layer(2, 2, 4, 12),), "post", 1e-5, "relu", "none")
SPECS = {"vit": VIT, "bert": BERT, "plain": PLAIN}


def make_samples(spec: TransformerSpec, sequence: int, random: np.random.Generator) -> Samples:
    def inputs(rows: int) -> dict[str, Any]:
        if isinstance(spec.embedding, TokenEmbedding):
            lengths = random.integers(1, sequence + 1, (rows, 1))
            ids = random.integers(0, spec.embedding.vocabulary, (rows, sequence))
            return {"input_ids": ids, "attention_mask": (np.arange(sequence) < lengths).astype(np.int64)}
        if isinstance(spec.embedding, PatchEmbedding):
            shape = (rows, spec.embedding.channels, spec.embedding.size, spec.embedding.size)
            return {"pixel_values": random.random(shape, np.float32)}
        return {"features": random.random((rows, sequence, spec.hidden), np.float32)}

    shape = (2, sequence, spec.hidden) if spec.output == "hidden_states" else (2, spec.classes or spec.hidden)
    return Samples(inputs(3), inputs(2), *(random.random(shape, np.float32) for _ in range(3)))


def make_package(spec: TransformerSpec = VIT, seed: int = 0, quantized: bool = False) -> Package:
    random = np.random.default_rng(seed)
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in spec.weight_shapes().items()}
    encodings = None
    if quantized:
        matrices = {name: row_scales(weight) for name, weight in weights.items() if weight.ndim == 2}
        encodings = Encodings(
            "w8a8", "percentile", 3,
            {
                "layers.0.attention.input": ActivationEncoding(0.03, -4),
                "layers.0.attention.query": ActivationEncoding(0.1, 3),
            },
            {name: WeightEncoding(8, 0, scale) for name, scale in matrices.items()},
        )
    sequence = spec.max_length if isinstance(spec.embedding, PatchEmbedding) else spec.max_length - 1
    entry = LineageEntry("import", {"family": "vit"}, 0, None, {"accuracy": 0.9}, {"accuracy": 0.9}, 9, 9, 8, 8, 7, 7)
    return Package(
        name="tiny", task="encoding" if spec.classes is None else "classification",
        metric="cosine" if spec.classes is None else "accuracy",
        labels=None if spec.classes is None else tuple("abc"), spec=spec, weights=weights,
        graph=write_graph(spec, weights, encodings), encodings=encodings,
        samples=make_samples(spec, sequence, random), preprocess={"scale.json": b'{"divide": 16}'}, lineage=(entry,),
        baseline=Baseline(1000, 0.9, 360), environment={"torch": "2.13.0"}, sequence=sequence,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def sign(folder: Path) -> None:
    """Make the manifest name the files as they are now: what an attacker would do."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": sha256_bytes(data), "bytes": len(data)}
    (folder / "manifest.json").write_bytes(canonical_json(manifest))


def edit_json(folder: Path, name: str, change: Callable[[Any], None]) -> None:
    document = json.loads((folder / name).read_bytes())
    change(document)
    (folder / name).write_text(json.dumps(document))
    if name != "manifest.json":
        sign(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_package(make_package(), tmp_path / "tiny.edgepkg")
    return tmp_path / "tiny.edgepkg"


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    write_package(make_package(quantized=True), tmp_path / "tiny-w8a8.edgepkg")
    return tmp_path / "tiny-w8a8.edgepkg"


# --- writing and reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("quantize", [False, True], ids=["fp32", "w8a8"])
def test_round_trip(spec: TransformerSpec, quantize: bool, tmp_path: Path) -> None:
    package = make_package(spec, quantized=quantize)
    digest = write_package(package, tmp_path / "a.edgepkg", {"seconds": [1.5], "host": "here"})
    again = read_package(tmp_path / "a.edgepkg")
    assert again.spec == package.spec
    assert again.lineage == package.lineage
    assert again.baseline == package.baseline
    assert (again.name, again.labels, again.sequence) == (package.name, package.labels, package.sequence)
    assert (again.environment, again.preprocess) == (package.environment, package.preprocess)
    assert again.scheme == ("w8a8" if quantize else "fp32")
    assert again.weights.keys() == package.weights.keys()
    for name, weight in package.weights.items():
        np.testing.assert_array_equal(again.weights[name], weight)
    for name, array in package.samples.golden_inputs.items():
        np.testing.assert_array_equal(again.samples.golden_inputs[name], array)
    if package.encodings is not None and again.encodings is not None:
        assert again.encodings.activations == package.encodings.activations
        for name, encoding in package.encodings.weights.items():
            np.testing.assert_array_equal(again.encodings.weights[name].scale, encoding.scale)
    assert digest == package_digest(tmp_path / "a.edgepkg") == content_digest(package) == content_digest(again)
    assert read_run(tmp_path / "a.edgepkg") == {"seconds": [1.5], "host": "here"}


def test_rewriting_gives_the_same_bytes(quantized: Path, tmp_path: Path) -> None:
    write_package(read_package(quantized), tmp_path / "b.edgepkg")
    assert contents(tmp_path / "b.edgepkg") == contents(quantized)


def test_the_order_of_names_does_not_matter() -> None:
    package = make_package(quantized=True)
    backwards = dict(reversed(list(package.weights.items())))
    assert content_digest(replace(package, weights=backwards)) == content_digest(package)


def test_fp32_weights_are_stored_once(folder: Path, quantized: Path) -> None:
    assert safetensors.numpy.load_file(folder / "weights.safetensors") == {}
    stored = safetensors.numpy.load_file(quantized / "weights.safetensors")
    package = make_package(quantized=True)
    assert {"layers.0.ffn.up.weight", "embedding.positions.weight"} <= stored.keys() < package.weights.keys()
    for name, weight in stored.items():
        np.testing.assert_array_equal(weight, package.weights[name])


def test_a_weight_that_differs_from_the_graph_in_one_sign_of_zero_is_stored(tmp_path: Path) -> None:
    package = make_package()
    graph = {name: weight.copy() for name, weight in package.weights.items()}
    graph["classifier.bias"][0] = 0.0
    weights = {name: weight.copy() for name, weight in graph.items()}
    weights["classifier.bias"][0] = -0.0
    package = replace(package, weights=weights, graph=write_graph(VIT, graph))
    write_package(package, tmp_path / "a.edgepkg")
    assert np.signbit(read_package(tmp_path / "a.edgepkg").weights["classifier.bias"][0])


def test_samples_are_an_ordinary_npz(folder: Path) -> None:
    with np.load(folder / "samples.npz", allow_pickle=False) as archive:
        pixels = make_package().samples.calibration["pixel_values"]
        np.testing.assert_array_equal(archive["calibration/pixel_values"], pixels)


def test_the_digest_follows_the_content_and_not_the_run(tmp_path: Path) -> None:
    package = make_package()
    first = write_package(package, tmp_path / "a.edgepkg", {"date": "today"})
    assert write_package(package, tmp_path / "b.edgepkg", {"date": "tomorrow"}) == first
    changed = {
        "name": "other", "labels": ("a", "b", "d"), "environment": {"torch": "2.14.0"}, "preprocess": {},
        "baseline": Baseline(1001, 0.9, 360), "lineage": (),
        "weights": {**package.weights, "classifier.bias": np.zeros(3, np.float32)},
        "samples": make_samples(VIT, package.sequence, np.random.default_rng(9)),
    }
    digests = {content_digest(replace(package, **{key: value})) for key, value in changed.items()}
    assert len(digests) == len(changed)
    assert first not in digests


def test_a_package_keeps_what_it_was_given() -> None:
    weights = {name: weight.copy() for name, weight in make_package().weights.items()}
    package = replace(make_package(), weights=weights)
    weights["classifier.bias"][0] = 77
    assert package.weights["classifier.bias"][0] != 77
    with pytest.raises(ValueError, match="read-only"):
        package.weights["classifier.bias"][0] = 1
    with pytest.raises(ValueError, match="read-only"):
        package.samples.golden_outputs[0] = 1


def test_import_loads_neither_torch_nor_onnx() -> None:
    code = "import edgesdk.package, sys; print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# --- nothing half-written -----------------------------------------------------------------------------------------


def test_writing_replaces_a_package(folder: Path) -> None:
    digest = write_package(replace(make_package(), name="new"), folder)
    assert read_package(folder).name == "new"
    assert package_digest(folder) == digest
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def test_a_failing_write_leaves_the_old_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(folder)
    real = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name == "samples.npz":
            raise OSError(28, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(PackageError, match="not written.*No space left"):
        write_package(replace(make_package(), name="new"), folder)
    assert contents(folder) == before
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("problem", [{"graph": b"no graph"}, {"lineage": "not JSON"}])
def test_a_package_that_cannot_be_written_leaves_nothing(problem: dict[str, Any], tmp_path: Path) -> None:
    package = make_package()
    if "lineage" in problem:
        values = {**vars(package.lineage[0]), "parameters": {"keep": float("nan")}}
        problem = {"lineage": (LineageEntry(**values),)}
    with pytest.raises(PackageError):
        write_package(replace(package, **problem), tmp_path / "a.edgepkg")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_package_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("three years")
    with pytest.raises(PackageError, match="not a package; not replaced"):
        write_package(make_package(), tmp_path / "home")
    with pytest.raises(PackageError, match="not a package; not replaced"):
        write_package(make_package(), tmp_path / "home" / "thesis.txt")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "three years"


# --- hostile folders ----------------------------------------------------------------------------------------------


def refused(folder: Path, match: str) -> None:
    with pytest.raises(PackageError, match=match) as caught:
        read_package(folder)
    assert str(folder) in caught.value.message


def test_paths_that_are_no_package(tmp_path: Path) -> None:
    (tmp_path / "file.onnx").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "missing", "no such package")
    refused(tmp_path / "file.onnx", "is a file")
    refused(tmp_path / "empty", "no manifest.json")


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "graph/../../secret", "preprocess/../../secret", "preprocess\\x", "preprocess/a/b",
     "preprocess/.hidden", "manifest.json", "", "preprocess/", "preprocess/a\0", "graph/other.onnx"],
)
def test_paths_in_the_manifest(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_bytes(b"secret")
    entry = {"sha256": sha256_bytes(b"secret"), "bytes": 6}
    edit_json(folder, "manifest.json", lambda manifest: manifest["files"].update({name: entry}))
    refused(folder, "illegal path")


@pytest.mark.parametrize("name", ["manifest.json", "samples.npz", "graph/model.onnx", "run.json"])
def test_a_linked_file(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")
    refused(folder, "is a link")


def test_a_linked_folder(folder: Path) -> None:
    (folder / "graph").rename(folder.parent / "elsewhere")
    (folder / "graph").symlink_to(folder.parent / "elsewhere")
    refused(folder, "is a link")


def test_a_named_pipe_does_not_block(folder: Path) -> None:
    (folder / "samples.npz").unlink()
    os.mkfifo(folder / "samples.npz")
    refused(folder, "not a regular file")


def test_a_wrong_digest(folder: Path) -> None:
    data = bytearray((folder / "samples.npz").read_bytes())
    data[-1] ^= 1
    (folder / "samples.npz").write_bytes(data)
    refused(folder, "samples.npz: its sha256 differs")


def test_a_truncated_file(folder: Path) -> None:
    (folder / "graph" / "model.onnx").write_bytes((folder / "graph" / "model.onnx").read_bytes()[:-1])
    refused(folder, "model.onnx: has .* bytes, expected")


def test_a_missing_file(folder: Path) -> None:
    (folder / "samples.npz").unlink()
    refused(folder, "samples.npz: missing")
    edit_json(folder, "manifest.json", lambda manifest: manifest["files"].pop("samples.npz"))
    refused(folder, "does not list samples.npz")


@pytest.mark.parametrize("name", ["extra.bin", "graph/extra.bin", "preprocess/extra.bin", "other/extra.bin"])
def test_an_unlisted_file(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    refused(folder, "not listed in manifest.json")


@pytest.mark.parametrize(("key", "value", "match"), [
    ("version", 2, "version 2; this EdgeSDK reads version 1"),
    ("format", "edgesdk.artifact", "expected format 'edgesdk.package'"),
    ("name", "../up", "name '../up'"),
    ("task", "regression", "task 'regression'"),
    ("labels", ["a", "b"], "2 labels for 3 classes"),
    ("labels", "abc", "labels: expected a list"),
    ("sequence", 6, "sequence 6"),
    ("sequence", True, "sequence True"),
    ("io", {"inputs": [], "outputs": []}, "`io` differs"),
    ("lineage", [{"stage": "x"}], "malformed"),
    ("baseline", {"bytes": -1, "accuracy": None, "n": 0}, "baseline: bytes is -1"),
    ("environment", {"torch": 2}, "environment: 'torch'"),
    ("surprise", 1, "wrong or missing keys"),
    ("files", [], "`files` must map"),
])
def test_manifest_values(folder: Path, key: str, value: Any, match: str) -> None:
    edit_json(folder, "manifest.json", lambda manifest: manifest.update({key: value}))
    refused(folder, match)


@pytest.mark.parametrize("entry", [
    None, {}, {"sha256": "0" * 64}, {"sha256": "0" * 63, "bytes": 1}, {"sha256": "0" * 64, "bytes": -1},
    {"sha256": "0" * 64, "bytes": 1.5}, {"sha256": "0" * 64, "bytes": 1 << 62},
])
def test_manifest_file_entries(folder: Path, entry: Any) -> None:
    edit_json(folder, "manifest.json", lambda manifest: manifest["files"].update({"samples.npz": entry}))
    refused(folder, "samples.npz")


@pytest.mark.parametrize("text", [
    b"[" * 100_000, b'{"a":' * 100_000, b"{", b"\xff\xfe", b'{"format": "edgesdk.package", "format": 1}', b"NaN",
    b'{"a": 1e999}', b'{"a": "\\ud800"}', b'{"a": ' + b"9" * 10_000 + b"}", b"null", b"[]", b'"x"',
])
@pytest.mark.parametrize("name", ["manifest.json", "transformer.json", "encodings.json"])
def test_json_that_is_no_document(quantized: Path, name: str, text: bytes) -> None:
    (quantized / name).write_bytes(text)
    if name != "manifest.json":
        sign(quantized)
    refused(quantized, name)


# --- hostile weights ----------------------------------------------------------------------------------------------


def tensors_file(header: Any, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


BIAS = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
ZEROS = bytes(12)


@pytest.mark.parametrize(("content", "match"), [
    (b"", "malformed"),
    (b"\x01\x02", "malformed"),
    (tensors_file({}, b"", 1 << 62), "header of"),
    (tensors_file({}, b"", 1 << 30), "header of"),
    (tensors_file(b"[" * 100_000, b""), "malformed"),
    (tensors_file({"classifier.bias": BIAS}, ZEROS[:-1]), "ends after"),
    (tensors_file({"classifier.bias": BIAS}, ZEROS + b"x"), "belong to no tensor"),
    (tensors_file({"classifier.bias": {**BIAS, "data_offsets": [4, 16]}}, ZEROS + bytes(4)), "expected"),
    (tensors_file({"classifier.bias": {**BIAS, "data_offsets": [-12, 0]}}, ZEROS), "expected"),
    (tensors_file({"classifier.bias": {**BIAS, "shape": [1 << 62]}}, ZEROS), "shape"),
    (tensors_file({"classifier.bias": {**BIAS, "shape": [-3]}}, ZEROS), "shape"),
    (tensors_file({"classifier.bias": {**BIAS, "dtype": "F16", "data_offsets": [0, 6]}}, bytes(6)), "expected F32"),
    (tensors_file({"classifier.bias": {**BIAS, "shape": [3, 1]}}, ZEROS), r"expected float32 \(3,\)"),
    (tensors_file({"classifier.bias": BIAS, "norm.bias": BIAS}, ZEROS), "expected"),
    (tensors_file({"other": BIAS}, ZEROS), "not part of this model"),
    (tensors_file({"classifier.bias": BIAS}, struct.pack("<3f", 0, float("nan"), 0)), "NaN or infinity"),
    (tensors_file({"classifier.bias": BIAS}, struct.pack("<3f", 0, float("-inf"), 0)), "NaN or infinity"),
    (tensors_file({"classifier.bias": []}, ZEROS), "malformed"),
    (tensors_file([], b""), "malformed"),
])
def test_weights(folder: Path, content: bytes, match: str) -> None:
    (folder / "weights.safetensors").write_bytes(content)
    sign(folder)
    refused(folder, match)


def test_a_missing_weight(quantized: Path) -> None:
    (quantized / "weights.safetensors").write_bytes(tensors_file({}, b""))
    sign(quantized)
    refused(quantized, r"weights: .* is missing")


# --- hostile samples ----------------------------------------------------------------------------------------------


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_is_refused_and_not_executed(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    bomb = np.empty(1, object)
    bomb[0] = Bomb(marker)
    arrays = dict(np.load(folder / "samples.npz"))
    np.savez(folder / "samples.npz", allow_pickle=True, **{**arrays, "golden_outputs": bomb})
    sign(folder)
    refused(folder, "not a plain float32 or int64 array")
    assert not marker.exists()
    np.load(folder / "samples.npz", allow_pickle=True)["golden_outputs"]
    assert marker.exists(), "the bomb was no bomb"


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def unzipped(folder: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(folder / "samples.npz") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("name", ["../golden_outputs.npy", "/golden_outputs.npy", "a/../b.npy", "golden_outputs.exe"])
def test_member_names(folder: Path, name: str) -> None:
    (folder / "samples.npz").write_bytes(zipped({**unzipped(folder), name: b""}))
    sign(folder)
    refused(folder, "illegal member")


def test_a_zip_bomb(folder: Path) -> None:
    members = unzipped(folder) | {"golden_outputs.npy": bytes(50_000_000)}
    (folder / "samples.npz").write_bytes(zipped(members, zipfile.ZIP_DEFLATED))
    sign(folder)
    refused(folder, "claim more bytes|compressed")


def test_a_small_compressed_archive(folder: Path) -> None:
    (folder / "samples.npz").write_bytes(zipped(unzipped(folder), zipfile.ZIP_DEFLATED) + bytes(5000))
    sign(folder)
    refused(folder, "compressed or encrypted|malformed")


def npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(("name", "data", "match"), [
    ("golden_outputs", npy(np.zeros((2, 4), np.float32)), r"expected float32 \(2, 3\)"),
    ("golden_outputs", npy(np.zeros((3, 3), np.float32)), r"expected float32 \(2, 3\)"),
    ("golden_outputs", npy(np.zeros((2, 3))), "not a plain float32"),
    ("golden_outputs", npy(np.zeros((3, 2), np.float32).T), "not a plain float32"),
    ("golden_outputs", npy(np.full((2, 3), np.nan, np.float32)), "NaN or infinity"),
    ("golden_reference", npy(np.zeros((0, 3), np.float32)), "0 golden outputs"),
    ("golden_outputs", npy(np.zeros((2, 3), np.float32))[:-1], "bytes of data for shape"),
    ("golden_outputs", b"", "malformed"),
    ("golden_outputs", npy(np.zeros((2, 3), np.float32)).replace(b"(2, 3), }" + b" " * 9, b"(9999999999, 3), }"),
     "24 bytes of data for shape"),
    ("calibration/pixel_values", npy(np.zeros((3, 1, 4, 5), np.float32)), r"expected float32 \(3, 1, 4, 4\)"),
    ("calibration/pixel_values", npy(np.zeros((), np.float32)), "no array of rows"),
    ("calibration/input_ids", npy(np.zeros((3, 4), np.int64)), "has the inputs"),
    ("elsewhere/pixel_values", npy(np.zeros((3, 4), np.int64)), "malformed"),
])
def test_samples(folder: Path, name: str, data: bytes, match: str) -> None:
    (folder / "samples.npz").write_bytes(zipped({**unzipped(folder), f"{name}.npy": data}))
    sign(folder)
    refused(folder, match)


@pytest.mark.parametrize(("name", "values", "match"), [
    ("input_ids", [0, 1, 2, 3, 11], "for a vocabulary of 11"),
    ("input_ids", [0, 1, 2, 3, -1], "for a vocabulary of 11"),
    ("attention_mask", [1, 1, 2, 0, 0], "ones and then zeros"),
    ("attention_mask", [0, 0, 1, 1, 1], "ones and then zeros"),
    ("attention_mask", [0, 0, 0, 0, 0], "ones and then zeros"),
])
def test_tokens(name: str, values: list[int], match: str) -> None:
    package = make_package(BERT)
    samples = package.samples
    inputs = {**samples.golden_inputs, name: np.array([values, values])}
    with pytest.raises(PackageError, match=match):
        replace(package, samples=Samples(
            samples.calibration, inputs, samples.golden_reference, samples.golden_float, samples.golden_outputs
        ))


# --- hostile graphs -----------------------------------------------------------------------------------------------


def external(tensor: onnx.TensorProto, location: str = "../../secret") -> onnx.TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def outside(model: onnx.ModelProto) -> None:
    external(model.graph.initializer[0])


def outside_quietly(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")


def outside_in_attribute(model: onnx.ModelProto) -> None:
    node = model.graph.node.add(op_type="Constant", output=["hidden"])
    node.attribute.append(helper.make_attribute("value", external(helper.make_tensor("t", 1, [1], [1.0]))))


def outside_in_subgraph(model: onnx.ModelProto) -> None:
    tensor = external(helper.make_tensor("t", 1, [1], [1.0]))
    info = helper.make_tensor_value_info("t", 1, [1])
    inner = helper.make_graph([], "inner", [], [info], [tensor])
    node = helper.make_node("If", ["c"], ["t"], then_branch=inner, else_branch=inner)
    inner = helper.make_graph([node], "g", [], [info])
    model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=inner, else_branch=inner))


def outside_in_sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(external(helper.make_tensor("t", 1, [1], [1.0])))


def outside_in_function(model: onnx.ModelProto) -> None:
    model.functions.add(name="f", domain="edge")


def custom_domain(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="ai.onnx.contrib", version=1)


def custom_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.microsoft"


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "PyOp"


def new_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 22


def new_ir(model: onnx.ModelProto) -> None:
    model.ir_version = 11


def training(model: onnx.ModelProto) -> None:
    model.training_info.add()


def nan_constant(model: onnx.ModelProto) -> None:
    scale = next(tensor for tensor in model.graph.initializer if tensor.name.startswith("attention.scale"))
    scale.raw_data = struct.pack("<f", float("nan"))


def short_tensor(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] += 1


def huge_tensor(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 1 << 60


def texts(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("text", TensorProto.STRING, [1], [b"x"]))


def twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def other_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "pixels"


def other_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4


def fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def dangling(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


@pytest.mark.parametrize(("attack", "match"), [
    (outside, "keeps its data in another file"),
    (outside_quietly, "keeps its data in another file"),
    (outside_in_attribute, "keeps its data in another file"),
    (outside_in_subgraph, "keeps its data in another file"),
    (outside_in_sparse, "keeps its data in another file|sparse tensor"),
    (outside_in_function, "functions"),
    (custom_domain, "domain 'ai.onnx.contrib'"),
    (custom_operator, "domain 'com.microsoft'"),
    (unknown_operator, "malformed.*PyOp"),
    (new_opset, "opset 22"),
    (new_ir, "IR version 11"),
    (training, "training graph"),
    (nan_constant, "NaN or infinity"),
    (short_tensor, "malformed"),
    (huge_tensor, "malformed"),
    (texts, "holds no numbers"),
    (twice, "the same name"),
    (other_input, "inputs"),
    (other_output, "outputs"),
    (fixed_batch, "inputs"),
    (dangling, "malformed.*nowhere"),
])
def test_graph(folder: Path, attack: Callable[[onnx.ModelProto], None], match: str) -> None:
    (folder.parent / "secret").write_bytes(bytes(1000))
    model = onnx.load(folder / "graph" / "model.onnx")
    attack(model)
    (folder / "graph" / "model.onnx").write_bytes(model.SerializeToString())
    sign(folder)
    refused(folder, match)
    with pytest.raises(PackageError, match=match):
        write_package(replace(make_package(), graph=model.SerializeToString()), folder.parent / "b.edgepkg")
    assert not (folder.parent / "b.edgepkg").exists()


# --- hostile encodings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("place", "value", "match"), [
    (("activations", "layers.0.attention.input", "scale"), 0.0, "scale 0.0"),
    (("activations", "layers.0.attention.input", "scale"), -1.0, "scale -1.0"),
    (("activations", "layers.0.attention.input", "scale"), 1, "scale 1,"),
    (("activations", "layers.0.attention.input", "scale"), 1e-300, "scale 1e-300"),
    (("activations", "layers.0.attention.input", "scale"), 1e300, "scale"),
    (("activations", "layers.0.attention.input", "zero_point"), 128, r"outside \[-128, 127\]"),
    (("activations", "layers.0.attention.input", "zero_point"), 0.5, "zero point 0.5"),
    (("activations", "layers.0.attention.input", "bits"), 64, "bits 64"),
    (("activations", "layers.0.attention.input", "other"), 64, "malformed"),
    (("activations", "layers.7.attention.input"), {"scale": 1.0, "zero_point": 0, "bits": 8}, "not part of this model"),
    (("weights", "classifier.weight", "scale"), [0.1, 0.0, 0.1], "a scale is zero"),
    (("weights", "classifier.weight", "scale"), [0.1, 1e300, 0.1], "infinite"),
    (("weights", "classifier.weight", "scale"), [0.1, 0.1], "for 3 rows"),
    (("weights", "classifier.weight", "scale"), [[0.1, 0.1, 0.1]], "malformed"),
    (("weights", "classifier.weight", "scale"), ["0.1", 0.1, 0.1], "malformed"),
    (("weights", "classifier.weight", "axis"), 1, "axis 1"),
    (("weights", "classifier.weight", "bits"), 3, "bits 3"),
    (("weights", "norm.bias"), {"scale": [0.1] * 8, "axis": 0, "bits": 8}, "only rows of matrices"),
    (("scheme",), "fp32", "no quantized scheme"),
    (("samples",), -1, "samples -1"),
    (("version",), 2, "version 2"),
])
def test_encodings(quantized: Path, place: tuple[str, ...], value: Any, match: str) -> None:
    def change(document: Any) -> None:
        for key in place[:-1]:
            document = document[key]
        document[place[-1]] = value

    edit_json(quantized, "encodings.json", change)
    refused(quantized, match)


def test_a_nan_scale(quantized: Path) -> None:
    edit_json(quantized, "encodings.json", lambda document: document["weights"]["classifier.weight"].update(
        scale=[0.1, float("nan"), 0.1]
    ))
    refused(quantized, "NaN is not JSON")


# --- properties ---------------------------------------------------------------------------------------------------

FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FILES = ["manifest.json", "run.json", "transformer.json", "weights.safetensors", "encodings.json", "graph/model.onnx",
         "samples.npz", "preprocess/scale.json"]


def damage(data: bytes, how: str, place: float, value: int) -> bytes:
    at = int(place * len(data))
    if how == "truncate":
        return data[:at]
    if how == "insert":
        return data[:at] + bytes([value]) + data[at:]
    return data[:at] + bytes([data[at] ^ value]) + data[at + 1 :] if at < len(data) else data


DAMAGE = st.tuples(
    st.sampled_from(["flip", "truncate", "insert"]), st.floats(0, 1, exclude_max=True), st.integers(1, 255)
)


@FEW
@given(name=st.sampled_from(FILES), hit=DAMAGE)
def test_damage_is_noticed(quantized: Path, name: str, hit: tuple[str, float, int]) -> None:
    """Any damage is a PackageError, but for run.json, which is no part of the package."""
    digest, original = package_digest(quantized), (quantized / name).read_bytes()
    damaged = damage(original, *hit)
    try:
        (quantized / name).write_bytes(damaged)
        if name == "run.json":
            assert content_digest(read_package(quantized)) == digest
        elif damaged != original:
            with pytest.raises(PackageError):
                assert package_digest(quantized) == digest or name == "manifest.json"
                read_package(quantized)
                if name == "manifest.json" and package_digest(quantized) != digest:
                    raise PackageError("another package, not this one")
    finally:
        (quantized / name).write_bytes(original)


@FEW
@given(name=st.sampled_from([name for name in FILES if name not in ("run.json", "manifest.json")]), hit=DAMAGE)
def test_damage_that_is_signed_never_escapes(quantized: Path, name: str, hit: tuple[str, float, int]) -> None:
    """With a manifest made to fit, the parsers themselves face the damage: a PackageError or another whole package."""
    before = contents(quantized)
    try:
        (quantized / name).write_bytes(damage(before[name], *hit))
        sign(quantized)
        try:
            content_digest(read_package(quantized))
        except PackageError as problem:
            assert str(quantized) in problem.message
    finally:
        for other, data in before.items():
            (quantized / other).write_bytes(data)


@st.composite
def specs(draw: st.DrawFn) -> TransformerSpec:
    embedding = draw(st.one_of(
        st.builds(TokenEmbedding, st.integers(1, 20), st.integers(2, 6), st.booleans()),
        st.builds(PatchEmbedding, st.integers(1, 3), st.just(4), st.sampled_from([1, 2, 4]), st.booleans()),
        st.builds(FeatureEmbedding, st.integers(2, 6)),
    ))
    layer = st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 4), st.integers(1, 9)).map(
        lambda sizes: Layer(sizes[0] * sizes[1], sizes[1], sizes[2], sizes[3])
    )
    poolings: list[Pooling] = ["cls", "mean", "none"]
    pooling = draw(st.sampled_from(poolings))
    return TransformerSpec(
        embedding, draw(st.integers(1, 9)), tuple(draw(st.lists(layer, min_size=1, max_size=2))),
        draw(st.sampled_from(["pre", "post"])), 1e-5, draw(st.sampled_from(["gelu", "gelu_tanh", "relu"])), pooling,
        draw(st.booleans()), pooling != "none" and draw(st.booleans()),
        draw(st.sampled_from([None, 3])) if pooling != "none" else None,
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spec=specs(), seed=st.integers(0, 99), quantize=st.booleans())
def test_any_package_survives(tmp_path: Path, spec: TransformerSpec, seed: int, quantize: bool) -> None:
    package = make_package(spec, seed, quantize)
    digest = write_package(package, tmp_path / "any.edgepkg")
    again = read_package(tmp_path / "any.edgepkg")
    assert content_digest(again) == digest
    assert all(again.weights[name].tobytes() == weight.tobytes() for name, weight in package.weights.items())
    shutil.rmtree(tmp_path / "any.edgepkg")
