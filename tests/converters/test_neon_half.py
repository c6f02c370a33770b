"""Half precision in NEON builds: the kernels bit by bit, the plan, and whole models on a core that has fp16."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_graphs import BRANCHED, ROWS, SEQUENCE, Sample, make, sample, sqnr_db
from test_neon_kernels import Driver, around, driver, floats, program, rows_of
from test_neon_models import ODD

from edgesdk.converters import converter
from edgesdk.converters.artifact import read_artifact, tolerance
from edgesdk.converters.front import Linear
from edgesdk.converters.isa_note import read_isa
from edgesdk.converters.neon import fp16, reference
from edgesdk.converters.neon.branches import Branch, Join, Otherwise, mark
from edgesdk.converters.neon.convert import make_plan
from edgesdk.converters.neon.kernel_sets import AARCH64, KERNEL_SETS
from edgesdk.converters.neon.library import write_library
from edgesdk.converters.neon.packing import ALIGN, pack_half, pad, round_up
from edgesdk.converters.neon.plan import Dense, DenseHalf, Halve, Step, Tensor
from edgesdk.converters.neon.specialize import halve, specialize
from edgesdk.converters.neon.toolchain import find_all
from edgesdk.errors import ConvertError
from edgesdk.targets import load_target
from edgesdk.testing.needs import need
from edgesdk.transformer.graph import write_graph

__all__ = ["driver", "program"]
TARGET, CPU = "raspberry-pi/5", "cortex-a76"
MODELS = ("bert_pooler", "vit", "bert_mean_grouped", "features", "odd", "branched", "llama", "decoder")


def pack_rows_half(values: np.ndarray) -> np.ndarray:
    """float16 [M, K] → panels [M / 8, K / 8, 8, 8], padded with zeros."""
    rows, columns = values.shape
    padded = np.zeros((round_up(rows, 8), round_up(columns, ALIGN)), np.float16)
    padded[:rows, :columns] = values
    return np.ascontiguousarray(padded.reshape(len(padded) // 8, 8, -1, 8).transpose(0, 2, 1, 3))


@pytest.mark.parametrize("program", ["half"], indirect=True)
def test_linear_layers_are_bit_exact(driver: Driver) -> None:
    """Rows and columns around the tile, sums of less than a block, of whole ones and of one more; with residual too."""
    rng, checks = np.random.default_rng(3), []
    depths = (1, 15, 16, 17, 127, 128, 129, 272)
    for index, (m, n) in enumerate((m, n) for m in (*around(8, 13), 2, 4, 5) for n in around(16, 37)):
        k = depths[index % len(depths)]
        x, weight = rng.standard_normal((m, k)).astype(np.float16), rng.standard_normal((n, k)).astype(np.float16)
        bias = rng.standard_normal(n).astype(np.float32)
        stride, depth = round_up(n, ALIGN), round_up(k, ALIGN)
        residual = rng.standard_normal((m, n)).astype(np.float32) if index % 2 else None
        arrays = [
            pack_half(weight.astype(np.float32)), pad(bias, stride, np.float32), pack_rows_half(x),
            None if residual is None else rows_of(residual),
        ]
        driver.call(40, [depth, stride, m], arrays, m * stride * 4)
        checks.append((n, stride, reference.linear_half(x, weight, bias, residual, fp16.BLOCK)))
    for data, (n, stride, expected) in zip(driver.run(), checks, strict=True):
        np.testing.assert_array_equal(floats(data, stride, n), expected)


@pytest.mark.parametrize("program", ["half"], indirect=True)
def test_rows_become_halves(driver: Driver) -> None:
    """Rounded to nearest even, subnormals and what is too large as well; padding columns become zeros, whatever lies
    there, since 0 · NaN would spread."""
    rng, checks = np.random.default_rng(4), []
    for rows, columns in ((1, 1), (3, 7), (8, 8), (9, 15), (16, 16), (17, 37)):
        x = (rng.standard_normal((rows, columns)) * 10.0 ** rng.integers(-9, 6, (rows, columns))).astype(np.float32)
        stride = round_up(columns, ALIGN)
        size = round_up(rows, 8) * stride * 2
        driver.call(41, [stride, rows, columns, stride, size], [rows_of(x)], size)
        with np.errstate(over="ignore"):
            checks.append((rows, pack_rows_half(x.astype(np.float16))))
    for data, (rows, expected) in zip(driver.run(), checks, strict=True):
        found = np.frombuffer(data, np.float16).reshape(expected.shape)
        for row in range(rows):  # rows of padding are not written
            np.testing.assert_array_equal(found[row // 8, :, row % 8], expected[row // 8, :, row % 8])


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), k=st.integers(1, 70), seed=st.integers(0, 99))
def test_panels_hold_the_weights(n: int, k: int, seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)
    packed = pack_half(weight)
    assert packed.shape == (round_up(n, 16) // 16, round_up(k, 16), 16) and packed.dtype == np.float16
    flat = packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])
    np.testing.assert_array_equal(flat[:n, :k], weight.astype(np.float16))
    assert not flat[n:].any() and not flat[:, k:].any()


@functools.cache
def case_of(kind: str) -> Sample:
    if kind == "odd":
        return make(ODD, "fp32", 19, seed=2)
    return make(BRANCHED, "fp32", SEQUENCE, seed=3) if kind == "branched" else sample(kind, "fp32")


Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The folder of a model's artifact."""
    need(bool(find_all(AARCH64)), f"no C compiler for {AARCH64}")
    need(shutil.which("qemu-aarch64") is not None, "no qemu-aarch64 to run ARM code")

    @functools.cache
    def make_artifact(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        fp16.convert(case_of(kind).package(), load_target(TARGET), folder)
        return folder

    return make_artifact


def run(folder: Path, place: Path, case: Sample, *words: str, cpu: str = CPU) -> subprocess.CompletedProcess[str]:
    tensors = read_artifact(folder).inputs
    (place / "in.bin").write_bytes(b"".join(case.inputs[tensor.name].tobytes() for tensor in tensors))
    command = ["qemu-aarch64", "-cpu", cpu, str(folder / "model"), "run", "--inputs", "in.bin", "--n", str(ROWS)]
    return subprocess.run(
        [*command, "--outputs", "out.bin", *words], capture_output=True, text=True, timeout=60, cwd=place
    )


@pytest.mark.parametrize("kind", MODELS)
def test_models_answer_as_in_float(made: Made, tmp_path: Path, kind: str) -> None:
    """With a margin of 15 dB to what the golden check asks for, by any number of threads."""
    case, folder = case_of(kind), made(kind)
    answers = []
    for threads in ("1", "3"):
        done = run(folder, tmp_path, case, "--threads", threads)
        assert done.returncode == 0, done.stderr
        answers.append((tmp_path / "out.bin").read_bytes())
    assert answers[0] == answers[1]
    found = np.frombuffer(answers[0], "<f4").reshape(case.expected.shape)
    assert 45 <= sqnr_db(case.expected, found) < 90, "not computed in half precision"


def test_the_artifact_says_what_it_is(made: Made) -> None:
    folder = made("bert_pooler")
    artifact, whole = read_artifact(folder), case_of("bert_pooler").package()
    assert (artifact.converter, artifact.scheme, artifact.name) == ("neon-fp16", "fp16", "sample-fp16-neon")
    assert artifact.runtime["name"] == "neon" and artifact.runtime["kernels"] == "half"
    assert artifact.runtime["isa"] == read_isa(folder / "model") == ["neon", "fp16"]
    golden = artifact.golden
    assert (golden.kind, golden.limit, golden.labels_equal, golden.noise_db) == tolerance("fp16")
    floats_ = 2 * sum(value.size for value in whole.weights.values())
    assert floats_ < artifact.runtime["weight_bytes"] < 1.3 * floats_
    rates = [note for note in artifact.notes if note.startswith("llvm-mca")]  # none without llvm
    assert all("neoverse-n1" in note and "100 % of the peak" in note for note in rates)


def test_a_core_without_halves_refuses_it(made: Made, tmp_path: Path) -> None:
    done = run(made("vit"), tmp_path, case_of("vit"), cpu="cortex-a72")
    assert done.returncode and "no half-precision arithmetic (asimdhp)" in done.stderr


def test_halves_are_made_once_for_their_readers() -> None:
    """Gate and up projection read the same rows."""
    steps = specialize(make_plan(case_of("llama").graph, SEQUENCE), KERNEL_SETS["half"]).steps
    dense = [step for step in steps if isinstance(step, DenseHalf)]
    halves = [step.result for step in steps if isinstance(step, Halve)]
    assert len(halves) < len(dense) and {step.source for step in dense} == set(halves)


def test_halves_of_a_region_are_not_read_behind_it() -> None:
    """Either region of a branch, and what comes behind, make their own."""
    weight, tensors = np.ones((4, 16), np.float32), [Tensor(f"y{index}", 1, 4) for index in range(4)]
    linear = Linear("linear", "fp32", "x", "y", weight, np.zeros(4, np.float32), None, None, None)
    first, yes, no, last = (Dense(tensor, Tensor("x", 1, 16), (linear,)) for tensor in tensors)
    steps: list[Step] = [
        first, Branch(mark("b"), Tensor("c", 1, 1)), yes, yes, Otherwise(mark("o")), no, Join(mark("j")), last,
    ]
    names = [type(step).__name__ for step in halve(steps)]
    made = ["Halve", "DenseHalf"]
    assert names == [*made, "Branch", *made, "DenseHalf", "Otherwise", *made, "Join", *made]


def test_what_cannot_be_halved_is_refused(tmp_path: Path) -> None:
    """A quantized package, a core or target without fp16, a weight beyond float16; each says so, nothing is written."""
    quantized, package, pi5 = sample("vit", "w8a8").package(), case_of("vit").package(), load_target(TARGET)
    assert fp16.check(package, pi5) == []
    assert any("of a package in fp32 (package: w8a8)" in reason for reason in fp16.check(quantized, pi5))
    assert any("does not compute in half precision" in reason for reason in fp16.check(package, load_target("host")))
    reasons = fp16.check(package, load_target("raspberry-pi/4"))
    assert any("does not list the scheme fp16" in reason for reason in reasons)
    with pytest.raises(ConvertError, match="of a package in fp32"):
        fp16.convert(quantized, pi5, tmp_path)
    with pytest.raises(ConvertError, match="half precision"):
        fp16.convert(package, load_target("raspberry-pi/4"), tmp_path)
    name = next(key for key in package.weights if key.endswith("ffn.up.weight"))
    weights = {**package.weights, name: np.full_like(package.weights[name], 7e4)}
    with pytest.raises(ConvertError, match=rf"{name} holds 7e\+04, beyond the 65504 of float16"):
        fp16.convert(dataclasses.replace(package, weights=weights), pi5, tmp_path)
    assert not list(tmp_path.iterdir()) and converter("neon-fp16") is fp16


@pytest.mark.parametrize(("kind", "scale", "words"), [
    ("vit", 30000.0, r"ffn\.up.* adds up \d.*, beyond"), ("bert_pooler", 3e7, r"reads .*, beyond|adds up .*, beyond"),
])
def test_what_overflows_on_the_golden_rows_is_refused(tmp_path: Path, kind: str, scale: float, words: str) -> None:
    """Every weight fits, products and sums do not: NaN otherwise. A library has no golden check, so it asks too."""
    package, target = case_of(kind).package(), load_target(TARGET)
    weights = dict(package.weights)
    first = "layers.0.ffn.up.weight" if kind == "vit" else next(key for key in weights if key.endswith("norm.weight"))
    weights[first] = weights[first] * np.float32(scale)
    large = dataclasses.replace(package, weights=weights, graph=write_graph(package.spec, weights))
    with pytest.raises(ConvertError, match=words):
        fp16.convert(large, target, tmp_path)
    with pytest.raises(ConvertError, match=words):
        write_library(large, target, tmp_path / "library", half=True)
    assert not list(tmp_path.iterdir())


def test_a_library_in_half_precision(tmp_path: Path) -> None:
    need(bool(find_all(AARCH64)), f"no C compiler for {AARCH64}")
    package, target = case_of("vit").package(), load_target(TARGET)
    half = write_library(package, target, tmp_path / "half", half=True)
    whole = write_library(package, target, tmp_path / "whole")
    assert half.weight_bytes < 0.7 * whole.weight_bytes
    document = json.loads((tmp_path / "half/library.json").read_text())
    assert (document["scheme"], document["isa"]) == ("fp16", ["neon", "fp16"])
    assert "-march=armv8.2-a+fp16" in (tmp_path / "half/CMakeLists.txt").read_text()
