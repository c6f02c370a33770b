"""A package as a C library: its functions from Python and C, bad arguments, damaged files."""

from __future__ import annotations

import ctypes
import functools
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from sample_graphs import BRANCHED, ROWS, SEQUENCE, VOCABULARY, Sample, make, sample, sqnr_db
from test_neon_models import least_db

from edgesdk.converters.isa_note import read_isa
from edgesdk.converters.neon.binding import LibraryError, Model, _load
from edgesdk.converters.neon.kernel_sets import AARCH64, choose
from edgesdk.converters.neon.library import write_library
from edgesdk.converters.neon.toolchain import find, find_all
from edgesdk.errors import ConvertError
from edgesdk.files import sha256_file
from edgesdk.targets import load_target
from edgesdk.testing.needs import need
from edgesdk.transformer.spec import Layer, TokenEmbedding, TransformerSpec

HIDDEN = TransformerSpec(TokenEmbedding(57, 24), 37, (Layer(3, 3, 13, 61),), "pre", 1e-12, "gelu", "none")


@functools.cache
def case_of(kind: str) -> Sample:
    if kind == "branched":
        return make(BRANCHED, "w8a8", SEQUENCE, seed=3)
    return make(HIDDEN, "fp32", 19, seed=2) if kind == "hidden" else sample(kind, "w8a8")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> functools._lru_cache_wrapper[Path]:
    @functools.cache
    def write(kind: str, target: str = "host") -> Path:
        triple = choose(load_target(target)).triple
        need(bool(find_all(triple)), f"no C compiler for {triple}")
        folder = tmp_path_factory.mktemp("library") / kind
        write_library(case_of(kind).package(), load_target(target), folder)
        return folder

    return write


def rows_of(case: Sample) -> list[tuple[list[bytes], int]]:
    """The inputs of each row without padding, and its length (0 for models without tokens)."""
    if "attention_mask" not in case.inputs:
        return [([value[row].tobytes() for value in case.inputs.values()], 0) for row in range(ROWS)]
    lengths = case.inputs["attention_mask"].sum(1).tolist()
    return [([case.inputs["input_ids"][row, :length].tobytes()], length) for row, length in enumerate(lengths)]


@pytest.mark.parametrize("kind", ["bert_pooler", "vit", "branched"])
def test_binding_answers_like_onnx_runtime(written, kind: str) -> None:
    case = case_of(kind)
    with Model(written(kind)) as model:
        found = [np.frombuffer(model.run(inputs, length or None)[0], "<f4") for inputs, length in rows_of(case)]
    assert sqnr_db(case.expected, np.stack(found).reshape(case.expected.shape)) >= least_db("host")


def test_descriptors(written) -> None:
    with Model(written("branched")) as model:
        assert (model.name, model.max_length) == ("sample", SEQUENCE)
        assert [(t.name, t.dtype, t.shape, t.bytes) for t in model.inputs] == [
            ("input_ids", "int64", (1, SEQUENCE), 8 * SEQUENCE)
        ]
        assert [(t.name, t.dtype, t.shape) for t in model.outputs] == [
            ("logits", "float32", (1, 5)), ("exit", "int64", (1,))
        ]
        exits = {int(np.frombuffer(model.run(inputs)[1], "<i8")[0]) for inputs, _ in rows_of(case_of("branched"))}
    assert exits == {0, 3}
    with Model(written("vit")) as model:
        assert model.max_length == 0 and model.inputs[0].shape == (1, 1, 8, 8)


def test_outputs_by_token_have_as_many_rows_as_tokens(written) -> None:
    case = case_of("hidden")
    with Model(written("hidden")) as model:
        for row, (inputs, length) in enumerate(rows_of(case)):
            found = np.frombuffer(model.run(inputs)[0], "<f4").reshape(length, -1)
            assert np.abs(found - case.expected[row, :length]).max() <= 1e-4


def test_two_models_do_not_disturb_each_other(written) -> None:
    """Each lives in memory of its own, though both are one shared library."""
    rows = rows_of(case_of("bert_pooler"))
    with Model(written("bert_pooler")) as one, Model(written("bert_pooler"), threads=2) as other:
        alone = [bytes(one.run(inputs)[0]) for inputs, _ in rows]
        both = [(bytes(one.run(rows[i][0])[0]), bytes(other.run(rows[-1 - i][0])[0])) for i in range(ROWS)]
    assert both == [(alone[i], alone[-1 - i]) for i in range(ROWS)]


@pytest.mark.parametrize(
    ("ids", "length", "reason"),
    [
        ([1] * (SEQUENCE + 1), None, "more tokens"), ([], None, "no token"), ([1, -1], None, "vocabulary"),
        ([1, VOCABULARY], None, "vocabulary"), ([1, 2**62], None, "vocabulary"), ([1, 2], 3, "bytes"),
    ],
)
def test_bad_inputs_are_refused_and_the_model_goes_on(written, ids: list[int], length: int | None, reason: str) -> None:
    inputs, _ = rows_of(case_of("bert_pooler"))[0]
    with Model(written("bert_pooler")) as model:
        before = bytes(model.run(inputs)[0])
        with pytest.raises(LibraryError, match=reason):
            model.run([np.array(ids, np.int64).tobytes()], length)
        with pytest.raises(LibraryError, match="inputs"):
            model.run([])
        assert bytes(model.run(inputs)[0]) == before
    with pytest.raises(LibraryError, match="closed"):
        model.run(inputs)


@pytest.mark.parametrize(
    "ids",
    [
        np.array([1, 2], np.int32), np.array([1, 2, 3], np.int32), np.array([1.0, 2.0]), np.array([1], np.uint64),
        np.array([1], ">i8"), bytes(12), [1, 2],
    ],
    ids=str,
)
def test_ids_of_another_type_are_refused(written, ids: object) -> None:
    """Also where their bytes would be whole int64."""
    with Model(written("bert_pooler")) as model, pytest.raises(LibraryError, match="input_ids must be int64"):
        model.run([ids])


def test_numbers_of_another_type_are_refused(written) -> None:
    pixels = case_of("vit").inputs["pixel_values"][0]
    with Model(written("vit")) as model:
        for wrong in (pixels.astype(np.float64), pixels.view(np.int32), pixels.tobytes()[:-1]):
            with pytest.raises(LibraryError, match="pixel_values must be float32"):
                model.run([wrong])
        assert model.run([pixels]) == model.run([pixels.tobytes()])


@pytest.mark.parametrize(("code", "found"), [("int edge_version(void) { return 1; }", 1), ("int other;", 0)])
def test_library_of_another_interface_is_refused(tmp_path: Path, code: str, found: int) -> None:
    triple = choose(load_target("host")).triple
    need(bool(find_all(triple)), f"no C compiler for {triple}")
    (tmp_path / "lib").mkdir()
    (tmp_path / "old.c").write_text(code)
    find(triple).run(("-shared", "-fPIC", "old.c", "-o", "lib/libmodel.so"), tmp_path)
    digest = sha256_file(tmp_path / "lib" / "libmodel.so")
    document = {"format": "edgesdk.library", "version": 1, "files": {"lib/libmodel.so": digest}}
    (tmp_path / "library.json").write_text(json.dumps(document))
    with pytest.raises(LibraryError, match=f"has interface {found}, this binding needs 2: write the library again"):
        Model(tmp_path)


@pytest.mark.parametrize("threads", [0, -1, 17])
def test_bad_number_of_threads(written, threads: int) -> None:
    with pytest.raises(LibraryError, match="threads"):
        Model(written("bert_pooler"), threads=threads)


def test_c_interface_refuses_bad_arguments(written) -> None:
    library, model = _load(str(written("bert_pooler"))), ctypes.c_void_p()
    needed = library.edge_memory(1)
    memory = ctypes.create_string_buffer(needed)
    assert library.edge_create(None, memory, needed, 1) == 1
    assert library.edge_create(ctypes.byref(model), memory, needed - 1, 1) == 3 and not model.value
    assert library.edge_memory(2) > needed and library.edge_memory(17) == 0
    assert library.edge_create(ctypes.byref(model), None, 0, 16) == 0
    first = ctypes.c_void_p(model.value)
    assert library.edge_create(ctypes.byref(model), None, 0, 1) == 3  # the static memory is in use
    assert library.edge_infer(first, None, 1, None) == 1
    assert library.edge_infer(None, None, 1, None) == 1
    assert b"NULL" in library.edge_message(first)
    library.edge_destroy(first)
    library.edge_destroy(None)
    assert library.edge_create(ctypes.byref(model), None, 0, 1) == 0
    library.edge_destroy(model)
    assert not library.edge_input(1) and not library.edge_input(-1) and not library.edge_output(9)


@pytest.mark.parametrize("damage", ["cut", "byte", "document", "format", "missing"])
def test_damaged_library_is_refused_before_it_is_loaded(written, tmp_path: Path, damage: str) -> None:
    shutil.copytree(written("vit"), tmp_path / "copy")
    library, document = tmp_path / "copy" / "lib" / "libmodel.so", tmp_path / "copy" / "library.json"
    data = library.read_bytes()
    if damage == "cut":
        library.write_bytes(data[: len(data) // 2])
    if damage == "byte":
        library.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    if damage == "document":
        document.write_bytes(b"{}")
    if damage == "format":
        document.write_text(json.dumps({**json.loads(document.read_text()), "version": 2}))
    if damage == "missing":
        library.unlink()
    with pytest.raises(LibraryError):
        Model(tmp_path / "copy")


def test_example_links_with_the_static_library(written, tmp_path: Path) -> None:
    """The 20 lines of C, against the same inputs through the binding."""
    folder = written("bert_pooler")
    compiler = find(choose(load_target("host")).triple)
    words = (str(folder / "example.c"), "-I", str(folder / "include"), str(folder / "lib" / "libmodel.a"))
    compiler.run((*words, "-Wall", "-Werror", "-lm", "-pthread", "-o", "example"), tmp_path)
    done = subprocess.run([str(tmp_path / "example")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    with Model(folder) as model:
        expected = np.frombuffer(model.run([bytes(8 * SEQUENCE)])[0], "<f4")
    np.testing.assert_array_equal(np.array(done.stdout.split(), np.float32), expected)


def test_header_is_c_plus_plus_too(written, tmp_path: Path) -> None:
    need(shutil.which("g++") is not None, "no g++")
    (tmp_path / "use.cpp").write_text("#include <edge_api.h>\nint main() { return edge_version() != 2; }\n")
    folder = written("vit")
    command = ["g++", "use.cpp", "-I", str(folder / "include"), str(folder / "lib" / "libmodel.a"), "-lm", "-pthread"]
    subprocess.run([*command, "-o", "use"], cwd=tmp_path, check=True, timeout=120)
    assert subprocess.run([str(tmp_path / "use")], timeout=60).returncode == 0


def test_cmake_builds_it_from_the_sources(written, tmp_path: Path) -> None:
    need(shutil.which("cmake") is not None, "no cmake")
    folder = written("vit")
    subprocess.run(["cmake", "-S", str(folder), "-B", str(tmp_path)], check=True, capture_output=True, timeout=120)
    subprocess.run(["cmake", "--build", str(tmp_path)], check=True, capture_output=True, timeout=300)
    done = subprocess.run([str(tmp_path / "example")], capture_output=True, text=True, timeout=60)
    with Model(folder) as model:
        expected = np.frombuffer(model.run([bytes(model.inputs[0].bytes)])[0], "<f4")
    np.testing.assert_allclose(np.array(done.stdout.split(), np.float32), expected, rtol=1e-5, atol=1e-6)


def test_arm_library_under_qemu(written, tmp_path: Path) -> None:
    """Built for a Raspberry Pi 5, run by its example; and its note names the CPU features."""
    need(shutil.which("qemu-aarch64") is not None, "no qemu-aarch64 to run ARM code")
    folder = written("bert_pooler", "raspberry-pi/5")
    assert read_isa(folder / "lib" / "libmodel.so") == ["neon", "dotprod"]
    words = (str(folder / "example.c"), "-I", str(folder / "include"), str(folder / "lib" / "libmodel.a"), "-static")
    find(AARCH64).run((*words, "-lm", "-pthread", "-o", "example"), tmp_path)
    command = ["qemu-aarch64", "-cpu", "cortex-a76", str(tmp_path / "example")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    with Model(written("bert_pooler")) as model:
        expected = np.frombuffer(model.run([bytes(8 * SEQUENCE)])[0], "<f4")
    assert sqnr_db(expected, np.array(done.stdout.split(), np.float32)) >= 30  # two kernel sets
    with pytest.raises(LibraryError, match="cannot be loaded"):
        Model(folder)


def test_only_the_interface_is_exported(written) -> None:
    need(shutil.which("nm") is not None, "no nm")
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", str(written("vit") / "lib" / "libmodel.so")], capture_output=True, text=True
    ).stdout
    names = {line.split()[-1] for line in listing.splitlines()}
    assert "edge_infer" in names
    assert not {name for name in names if name.startswith(("edge_model_", "edge_pool", "edge_weights"))}


def test_same_package_same_bytes(written, tmp_path: Path) -> None:
    write_library(case_of("vit").package(), load_target("host"), tmp_path / "again")
    for file in ("lib/libmodel.a", "lib/libmodel.so", "library.json", "src/model.c"):
        assert (tmp_path / "again" / file).read_bytes() == (written("vit") / file).read_bytes()


def test_no_folder_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("text")
    with pytest.raises(ConvertError, match="not an empty folder"):
        write_library(case_of("vit").package(), load_target("host"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
