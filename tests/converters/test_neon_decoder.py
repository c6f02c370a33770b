"""Decoders token by token: the cache against the whole sequence, from Python, C and the runner; what is refused."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from sample_graphs import ROWS, SEQUENCE, Sample, make, sample

from edgesdk.converters.neon import convert
from edgesdk.converters.neon.binding import LibraryError, Model
from edgesdk.converters.neon.cache import AttendCached, decodes
from edgesdk.converters.neon.convert import make_plan
from edgesdk.converters.neon.kernel_sets import choose
from edgesdk.converters.neon.library import write_library
from edgesdk.converters.neon.plan import Attend
from edgesdk.converters.neon.toolchain import find, find_all
from edgesdk.targets import load_target
from edgesdk.testing.needs import need
from edgesdk.transformer.graph_decode import write_decode_graph
from edgesdk.transformer.spec import Layer, TokenEmbedding, TransformerSpec

QEMU = {"raspberry-pi/4": ["qemu-aarch64", "-cpu", "cortex-a72"],
        "raspberry-pi/5": ["qemu-aarch64", "-cpu", "cortex-a76"]}
ODD = TransformerSpec(
    TokenEmbedding(57, 37, norm=False), 36, (Layer(6, 2, 13, 61), Layer(3, 3, 5, 50)), "pre", 1e-5, "gelu_tanh", "none",
    True, causal=True, lm_head=True,
)
SCHEMES = ("fp32", "w8a8", "w8a8-dynamic", "w4a8")


@functools.cache
def case_of(kind: str, scheme: str) -> Sample:
    return make(ODD, scheme, 37, seed=4) if kind == "odd" else sample(kind, scheme)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> functools._lru_cache_wrapper[Path]:
    @functools.cache
    def write(kind: str, scheme: str) -> Path:
        triple = choose(load_target("host")).triple
        need(bool(find_all(triple)), f"no C compiler for {triple}")
        folder = tmp_path_factory.mktemp("decoder") / "library"
        write_library(case_of(kind, scheme).package(), load_target("host"), folder)
        return folder

    return write


def rows_of(data: bytes | bytearray, width: int) -> np.ndarray:
    return np.frombuffer(bytes(data), "<f4").reshape(-1, width)


def ids_of(case: Sample) -> np.ndarray:
    """The first row, which has no padding."""
    return np.ascontiguousarray(case.inputs["input_ids"][0])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["decoder", "odd", "llama"])
def test_steps_are_the_whole_sequence_bit_by_bit(library, kind: str, scheme: str) -> None:
    """However the tokens are cut into calls, with one thread and with three; float sums have one order too."""
    case = case_of(kind, scheme)
    ids = ids_of(case)
    width = case.expected.shape[-1]
    with Model(library(kind, scheme)) as model, Model(library(kind, scheme), threads=3) as other:
        assert model.decodes
        whole = rows_of(model.run([ids])[0], width)
        for cuts in ([5], list(range(1, len(ids))), [1, 9, 10, len(ids) - 1], []):
            for made in (model, other):
                made.rewind()
                steps = [rows_of(made.step(part), width) for part in np.split(ids, cuts)]
                assert made.past == len(ids)
                np.testing.assert_array_equal(np.concatenate(steps), whole)


@pytest.mark.parametrize(("kind", "scheme"), [("decoder", "fp32"), ("decoder", "w8a8"), ("llama", "fp32")])
def test_steps_answer_like_the_decoding_graph(library, kind: str, scheme: str) -> None:
    """Against ONNX Runtime on `decode.onnx`, whose past is given back call by call."""
    case = case_of(kind, scheme)
    session = onnxruntime.InferenceSession(write_decode_graph(case.spec, case.weights, case.encodings))
    past = {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs() if value.name.startswith("past.")
    }
    ids = ids_of(case)
    with Model(library(kind, scheme)) as model:
        for start, end in [(0, 7), *((at, at + 1) for at in range(7, len(ids)))]:
            mask = np.ones((1, end), np.int64)
            expected, *present = session.run(None, {"input_ids": ids[None, start:end], "attention_mask": mask, **past})
            past = dict(zip(past, present, strict=True))
            found = rows_of(model.step(ids[start:end]), expected.shape[-1])
            limit = 1e-4 if scheme == "fp32" else 0.03 * np.abs(expected).max()
            assert np.abs(found - expected[0]).max() <= limit


def greedy(model: Model, prompt: list[int], count: int, vocabulary: int) -> list[int]:
    """Without a cache: the whole sequence again for every token."""
    ids = list(prompt)
    for _ in range(count):
        logits = rows_of(model.run([np.array(ids, np.int64)])[0], vocabulary)
        ids.append(int(logits[-1].argmax()))
    return ids[len(prompt):]


def test_generating_from_python_and_c(library, tmp_path: Path) -> None:
    case = case_of("odd", "w8a8")
    prompt = ids_of(case)[:6].tolist()
    folder = library("odd", "w8a8")
    with Model(folder) as model:
        expected = greedy(model, prompt, 12, 57)
        assert model.generate(prompt, 12) == expected == model.generate(prompt, 12)
        assert model.past == len(prompt) + 11
    words = (str(folder / "generate.c"), "-I", str(folder / "include"), str(folder / "lib" / "libmodel.a"))
    find(choose(load_target("host")).triple).run((*words, "-Wall", "-Werror", "-lm", "-pthread", "-o", "g"), tmp_path)
    command = [str(tmp_path / "g"), "12", *map(str, prompt)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert [int(line) for line in done.stdout.split()] == expected
    full = subprocess.run([str(tmp_path / "g"), "40", *map(str, prompt)], capture_output=True, text=True, timeout=60)
    assert full.returncode == 1 and "more tokens than edge_max_length" in full.stdout


@pytest.mark.parametrize("target", ["host", "raspberry-pi/4", "raspberry-pi/5"])
def test_the_runner_generates(library, tmp_path: Path, target: str) -> None:
    """The same tokens by the runner (fp32: kernel sets differ by float rounding only), which refuses too long a text
    before it computes anything: no inference was announced to a counter by `prctl`."""
    case = case_of("decoder", "fp32")
    kernels = choose(load_target(target))
    need(bool(find_all(kernels.triple)), f"no C compiler for {kernels.triple}")
    need(target == "host" or shutil.which("qemu-aarch64") is not None, "no qemu-aarch64 to run ARM code")
    convert(case.package(), load_target(target), tmp_path)
    ids, mask = case.inputs["input_ids"], case.inputs["attention_mask"]
    ids, mask = ids[:1:-1], mask[:1:-1]  # the longest one comes last
    (tmp_path / "in.bin").write_bytes(ids.tobytes() + mask.tobytes())
    words = [str(tmp_path / "model"), "generate", "--inputs", "in.bin", "--n", str(ROWS - 2)]
    traced, words = [*QEMU.get(target, []), "-strace", *words], [*QEMU.get(target, []), *words]
    lengths = mask.sum(1).tolist()
    most = SEQUENCE + 1 - lengths[-1]
    run = functools.partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    done = run([*words, "--tokens", str(most), "--outputs", "out.bin"])
    assert done.returncode == 0, done.stderr
    found = np.fromfile(tmp_path / "out.bin", "<i8").reshape(ROWS - 2, most)
    with Model(library("decoder", "fp32")) as model:
        for row, length in enumerate(lengths):
            assert model.generate(ids[row, :length].tolist(), most) == found[row].tolist()
    (tmp_path / "out.bin").unlink()
    full = run([*words, "--tokens", str(most + 1), "--outputs", "out.bin"])
    reason = f"row {len(lengths) - 1}: {lengths[-1]} tokens and {most + 1} new ones do not fit"
    assert full.returncode == 65 and reason in full.stderr
    assert not (tmp_path / "out.bin").exists()
    if target in QEMU:
        assert "prctl(" in run([*traced, "--tokens", str(most)]).stderr
        assert "prctl(" not in run([*traced, "--tokens", str(most + 1)]).stderr
    for wrong in (["--tokens", "0"], [], ["--tokens", "9999"]):
        assert run([*words, *wrong]).returncode == 64


def test_bad_steps_are_refused_and_the_model_goes_on(library) -> None:
    case = case_of("decoder", "fp32")
    ids, width = ids_of(case), case.expected.shape[-1]
    with Model(library("decoder", "fp32")) as model:
        whole = rows_of(model.run([ids])[0], width)
        model.rewind(0)
        for wrong in (ids[:2].astype(np.int32), ids[:2].astype(float), ids[:2].tobytes()[:-1], ids[:2].tolist()):
            with pytest.raises(LibraryError, match="ids must be int64"):
                model.step(wrong)
        assert model.past == 0
        model.run([ids])
        with pytest.raises(LibraryError, match="more tokens than edge_max_length, those before included"):
            model.step(ids[:1])
        with pytest.raises(LibraryError, match="not so many tokens"):
            model.rewind(len(ids) + 1)
        with pytest.raises(LibraryError, match="not so many tokens"):
            model.rewind(-1)
        model.rewind(len(ids) - 3)
        for bad, reason in ((np.array([-1]), "vocabulary"), (np.array([], np.int64), "no token"),
                            (np.ones(SEQUENCE + 1, np.int64), "more tokens")):
            with pytest.raises(LibraryError, match=reason):
                model.step(bad)
        assert model.past == len(ids) - 3
        np.testing.assert_array_equal(rows_of(model.step(ids[-3:]), width), whole[-3:])
    with pytest.raises(LibraryError, match="closed"):
        model.step(ids)


def test_models_that_look_ahead_or_pool_have_no_steps(tmp_path: Path) -> None:
    folder = tmp_path / "library"
    need(bool(find_all(choose(load_target("host")).triple)), "no C compiler")
    write_library(sample("bert_pooler", "fp32").package(), load_target("host"), folder)
    assert not (folder / "generate.c").exists()
    with Model(folder) as model:
        assert not model.decodes and model.past == 0
        with pytest.raises(LibraryError, match="not a causal decoder"):
            model.step(np.array([1], np.int64))
        with pytest.raises(LibraryError, match="not a causal decoder"):
            model.generate([1], 2)


@pytest.mark.parametrize(("kind", "cached"), [("decoder", True), ("odd", True), ("llama", True),
                                              ("causal_features", False), ("bert_mean_grouped", False), ("vit", False)])
def test_which_plans_have_a_cache(kind: str, cached: bool) -> None:
    case = case_of(kind, "fp32")
    plan = make_plan(case.graph, case.sequence)
    assert decodes(plan) == cached
    kinds = {type(step) for step in plan.steps if isinstance(step, Attend)}
    assert kinds == ({AttendCached} if cached else {Attend})


def test_cmake_cross_builds_for_arm(library, tmp_path: Path) -> None:
    """From a fresh folder, with nothing but a cross compiler; the same tokens as by this machine."""
    need(all(map(shutil.which, ("cmake", "aarch64-linux-gnu-gcc", "qemu-aarch64"))), "no cmake, cross gcc or qemu")
    write_library(case_of("odd", "fp32").package(), load_target("raspberry-pi/5"), tmp_path / "library")
    settings = {
        "CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": "aarch64", "CMAKE_C_COMPILER": "aarch64-linux-gnu-gcc",
        "CMAKE_EXE_LINKER_FLAGS": "-static",
    }
    words = ["cmake", "-S", str(tmp_path / "library"), "-B", str(tmp_path / "build")]
    words += [f"-D{key}={value}" for key, value in settings.items()]
    subprocess.run(words, check=True, capture_output=True, timeout=300)
    subprocess.run(["cmake", "--build", str(tmp_path / "build")], check=True, capture_output=True, timeout=600)
    command = [*QEMU["raspberry-pi/5"], str(tmp_path / "build" / "generate"), "5", "5", "6", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    with Model(library("odd", "fp32")) as model:
        assert [int(line) for line in done.stdout.split()] == model.generate([5, 6, 7], 5)


def test_cmake_builds_both_examples(library, tmp_path: Path) -> None:
    need(shutil.which("cmake") is not None, "no cmake")
    folder = library("odd", "w8a8")
    subprocess.run(["cmake", "-S", str(folder), "-B", str(tmp_path)], check=True, capture_output=True, timeout=120)
    subprocess.run(["cmake", "--build", str(tmp_path)], check=True, capture_output=True, timeout=300)
    done = subprocess.run([str(tmp_path / "generate"), "3", "5", "6"], capture_output=True, text=True, timeout=60)
    with Model(folder) as model:
        assert [int(line) for line in done.stdout.split()] == model.generate([5, 6], 3)
    assert "generate.c" in json.loads((folder / "library.json").read_text())["files"]
