"""Whole models through `convert`: the executable against ONNX Runtime, its command line, and its bytes."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from sample_graphs import ROWS, Sample, make, sample, sqnr_db
from test_neon_kernels import EVEX

from edgesdk.converters.artifact import Artifact, read_artifact
from edgesdk.converters.base import input_tensors, output_tensors
from edgesdk.converters.isa_note import read_isa
from edgesdk.converters.neon import build as build_module
from edgesdk.converters.neon import check, convert
from edgesdk.converters.neon.build import build, runner_objects
from edgesdk.converters.neon.convert import make_plan
from edgesdk.converters.neon.emit import emit
from edgesdk.converters.neon.kernel_sets import AARCH64, KERNEL_SETS, choose, host_features
from edgesdk.converters.neon.specialize import specialize
from edgesdk.converters.neon.toolchain import find, find_all
from edgesdk.targets import load_target
from edgesdk.testing.needs import need
from edgesdk.transformer.spec import Layer, TokenEmbedding, TransformerSpec

I8MM = str(Path(__file__).with_name("i8mm.toml"))
QEMU_CPU = {"raspberry-pi/4": "cortex-a72", "raspberry-pi/5": "cortex-a76", I8MM: "max"}
MODELS = [
    ("host", "vit", "fp32"), ("host", "vit", "w8a8"), ("host", "vit", "w8a8-dynamic"),
    ("host", "bert_pooler", "fp32"), ("host", "bert_pooler", "w8a8"), ("host", "bert_pooler", "w8a8-dynamic"),
    ("host", "vit_mean_grouped", "fp32"), ("host", "bert_mean_grouped", "w8a8"), ("host", "features", "w8a8-dynamic"),
    ("host", "hidden_states", "w8a8"),
    ("raspberry-pi/5", "vit", "fp32"), ("raspberry-pi/5", "vit", "w8a8"), ("raspberry-pi/5", "vit", "w8a8-dynamic"),
    ("raspberry-pi/5", "bert_pooler", "fp32"), ("raspberry-pi/5", "bert_pooler", "w8a8"),
    ("raspberry-pi/5", "bert_pooler", "w8a8-dynamic"),
    ("raspberry-pi/4", "vit", "w8a8"), ("raspberry-pi/4", "bert_pooler", "w8a8-dynamic"),
    (I8MM, "bert_pooler", "w8a8"), (I8MM, "hidden_states", "w8a8"), (I8MM, "vit", "w8a8-dynamic"),
    (I8MM, "vit", "fp32"),
]
ODD = TransformerSpec(
    TokenEmbedding(57, 24), 37, (Layer(3, 3, 13, 61), Layer(2, 1, 5, 3)), "pre", 1e-12, "gelu", "none", final_norm=True
)


def sample_of(kind: str, scheme: str) -> Sample:
    """`hidden_states`: token inputs, every row is output, and no size is a multiple of anything."""
    return _odd(scheme) if kind == "hidden_states" else sample(kind, scheme)


@functools.cache
def _odd(scheme: str) -> Sample:
    return make(ODD, scheme, 19, seed=2)


class Built:
    """An artifact folder and the ways to run its executable."""

    def __init__(self, target: str, case: Sample, folder: Path) -> None:
        self.case, self.folder, self.target = case, folder, target
        self.artifact: Artifact = convert(case.package(), load_target(target), folder)

    def run(self, *words: str, cpu: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / "model"), *words]
        if self.target != "host":
            command = ["qemu-aarch64", "-cpu", cpu or QEMU_CPU[self.target], *command]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=self.folder)

    def write_inputs(self, path: Path, **changes: np.ndarray) -> None:
        blocks = {**self.case.inputs, **changes}
        path.write_bytes(b"".join(blocks[tensor.name].tobytes() for tensor in self.artifact.inputs))

    def outputs(self, path: Path, **changes: np.ndarray) -> np.ndarray:
        self.write_inputs(path / "in.bin", **changes)
        done = self.run("run", "--inputs", str(path / "in.bin"), "--n", str(ROWS), "--outputs", str(path / "out.bin"))
        assert done.returncode == 0, done.stderr
        return np.frombuffer((path / "out.bin").read_bytes(), "<f4").reshape(self.case.expected.shape)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> functools._lru_cache_wrapper[Built]:
    @functools.cache
    def build(target: str, kind: str, scheme: str) -> Built:
        kernels = choose(load_target(target))
        need(bool(find_all(kernels.triple)), f"no C compiler for {kernels.triple}")
        need(kernels.triple != AARCH64 or shutil.which("qemu-aarch64") is not None, "no qemu-aarch64 to run ARM code")
        return Built(target, sample_of(kind, scheme), tmp_path_factory.mktemp("artifact"))

    return build


def least_db(target: str) -> float:
    """Of w8a8 against the graph: attention in integers turns more roundings than attention in floats."""
    return 35 if choose(load_target(target)).integer_attention else 40


@pytest.mark.parametrize(("target", "kind", "scheme"), MODELS)
def test_answers_like_onnx_runtime(built, tmp_path: Path, target: str, kind: str, scheme: str) -> None:
    """Far tighter than the artifact's tolerance where the arithmetic is the graph's own; lengths of rows differ."""
    case = built(target, kind, scheme)
    found = case.outputs(tmp_path)
    if scheme == "w8a8-dynamic":
        assert sqnr_db(case.case.reference, found) >= 20
        if case.case.spec.classes:
            assert (found.argmax(-1) == case.case.reference.argmax(-1)).mean() >= 0.98
        return
    if scheme == "fp32":
        assert np.abs(found - case.case.expected).max() <= 1e-4
    assert sqnr_db(case.case.expected, found) >= (80 if scheme == "fp32" else least_db(target))


def test_artifact_is_readable_and_honest(built) -> None:
    case = built("host", "bert_pooler", "w8a8")
    artifact = read_artifact(case.folder)
    assert artifact == case.artifact
    assert artifact.executable == "model" and artifact.work == "per_input" and artifact.length_input == "attention_mask"
    assert artifact.runtime["isa"] == read_isa(case.folder / "model") == list(choose(load_target("host")).isa)
    integers = sum(value.size for name, value in case.case.weights.items() if value.ndim == 2)
    weights = artifact.runtime["weight_bytes"]
    assert integers < weights < 1.5 * integers
    assert weights < artifact.bytes < artifact.bytes_with_runtime == (case.folder / "model").stat().st_size
    golden = np.frombuffer((case.folder / "golden/out.bin").read_bytes(), "<f4")
    np.testing.assert_array_equal(golden, case.case.expected.reshape(-1))
    assert built("host", "vit", "fp32").artifact.work == "constant"


def test_isa_note_of_arm_binaries(built) -> None:
    assert read_isa(built("raspberry-pi/5", "vit", "w8a8").folder / "model") == ["neon", "dotprod"]
    assert read_isa(built("raspberry-pi/4", "vit", "w8a8").folder / "model") == ["neon"]
    assert read_isa(built(I8MM, "bert_pooler", "w8a8").folder / "model") == ["neon", "dotprod", "i8mm"]


@pytest.mark.parametrize(
    ("target", "kind", "cpu", "reason"),
    [("raspberry-pi/5", "vit", "cortex-a72", "dot product"), (I8MM, "bert_pooler", "cortex-a76", "matrix multiply")],
)
def test_wrong_cpu_is_refused_with_a_message(
    built, tmp_path: Path, target: str, kind: str, cpu: str, reason: str
) -> None:
    case = built(target, kind, "w8a8")
    case.write_inputs(tmp_path / "in.bin")
    words = ("run", "--inputs", str(tmp_path / "in.bin"), "--n", str(ROWS), "--outputs", str(tmp_path / "out.bin"))
    done = case.run(*words, cpu=cpu)
    assert done.returncode == 70 and reason in done.stderr


def test_same_inputs_same_bytes(built, tmp_path: Path) -> None:
    first = built("host", "vit", "w8a8")
    again = Built("host", first.case, tmp_path)
    for file in ("model", "artifact.json", "golden/in.bin", "golden/out.bin"):
        assert (tmp_path / file).read_bytes() == (first.folder / file).read_bytes()
    assert again.artifact == first.artifact
    assert b"edgesdk-neon-" not in (tmp_path / "model").read_bytes()


def test_padding_does_not_change_an_answer(built, tmp_path: Path) -> None:
    """Ids behind the mask are not read by the computation."""
    case = built("host", "bert_pooler", "w8a8")
    ids, mask = case.case.inputs["input_ids"], case.case.inputs["attention_mask"]
    other = np.where(mask == 1, ids, (ids + 7) % case.case.spec.embedding.vocabulary)
    assert (other != ids).any()
    np.testing.assert_array_equal(case.outputs(tmp_path, input_ids=other), case.outputs(tmp_path))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("too_short", "bytes"), ("too_long", "bytes"), ("empty", "bytes"), ("missing", "No such file"),
        ("large_id", "vocabulary"), ("negative_id", "vocabulary"), ("huge_id", "vocabulary"),
        ("gap", "padding"), ("all_masked", "everything"), ("other_mask", "0 and 1"),
    ],
)
def test_bad_inputs_are_refused(built, tmp_path: Path, change: str, reason: str) -> None:
    case, path = built("host", "bert_pooler", "w8a8"), tmp_path / "in.bin"
    ids, mask = case.case.inputs["input_ids"].copy(), case.case.inputs["attention_mask"].copy()
    if change.endswith("_id"):
        ids[2, -1] = {"large": case.case.spec.embedding.vocabulary, "negative": -1, "huge": 2**62}[change[:-3]]
    if change == "gap":
        mask[0, 1] = 0
    if change == "all_masked":
        mask[1] = 0
    if change == "other_mask":
        mask[0] = 2
    case.write_inputs(path, input_ids=ids, attention_mask=mask)
    data = path.read_bytes()
    path.write_bytes({"too_short": data[:-1], "too_long": data + b"\0", "empty": b""}.get(change, data))
    if change == "missing":
        path.unlink()
    done = case.run("run", "--inputs", str(path), "--n", str(ROWS), "--outputs", str(tmp_path / "out.bin"))
    assert done.returncode == 65 and reason in done.stderr
    assert not (tmp_path / "out.bin").exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 64), (("fly",), 64), (("run",), 64), (("run", "--inputs", "IN", "--n", "0", "--outputs", "o"), 64),
        (("run", "--inputs", "IN", "--n"), 64), (("run", "--inputs", "IN", "--n", "6x", "--outputs", "o"), 64),
        (("run", "--inputs", "IN", "--n", "6"), 64), (("run", "--inputs", "IN", "--n", "6", "--what", "1"), 64),
        (("bench", "--inputs", "IN", "--n", "6", "--window-seconds", "nan", "--samples", "s"), 64),
        (("run", "--inputs", "IN", "--n", "4611686018427387904", "--outputs", "o"), 65),
        (("run", "--inputs", "IN", "--n", "6", "--outputs", "/dev/full"), 70), (("info", "x"), 64),
    ],
)
def test_command_line_errors(built, tmp_path: Path, words: tuple[str, ...], code: int) -> None:
    case = built("host", "bert_pooler", "w8a8")
    case.write_inputs(tmp_path / "in.bin")
    done = case.run(*(str(tmp_path / "in.bin") if word == "IN" else word for word in words))
    assert done.returncode == code and done.stderr.startswith("model: ")


def test_info(built) -> None:
    case = built("host", "bert_pooler", "w8a8")
    info = json.loads(case.run("info").stdout)
    assert info["name"] == "sample" and info["isa"] == case.artifact.runtime["isa"]
    assert [entry["name"] for entry in info["inputs"]] == ["input_ids", "attention_mask"]
    assert info["outputs"] == [{"name": "logits", "dtype": "float32", "bytes": 20}]
    assert info["weight_bytes"] == case.artifact.runtime["weight_bytes"]


def test_bench_answers_one_json_object_and_raw_samples(built, tmp_path: Path) -> None:
    case = built("host", "vit", "w8a8")
    case.write_inputs(tmp_path / "in.bin")
    samples = tmp_path / "samples.bin"
    done = case.run(
        "bench", "--inputs", str(tmp_path / "in.bin"), "--n", str(ROWS), "--seed", "3", "--warmup-iterations", "25",
        "--warmup-seconds", "0.01", "--max-warmup-seconds", "0.2", "--window-seconds", "0.02", "--min-samples", "12",
        "--samples", str(samples),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    raw = np.fromfile(samples, "<i8")
    assert (result["format"], result["version"], result["count"]) == ("edgesdk.round", 1, len(raw))
    assert len(raw) >= 12 and (raw > 0).all() and result["batch"] >= 1 and result["warmup"]["iterations"] >= 20
    assert result["p50_ns"] == pytest.approx(np.median(raw) / result["batch"], abs=1)
    assert result["peak_rss_bytes"] > 100_000 and result["first_inference_ns"] > 0 and result["cpu_ns"] > 0
    assert isinstance(result["steady"], bool) and result["cold_load_ns"] >= 0


def test_count_marks_every_inference(built, tmp_path: Path) -> None:
    """Two markers for each input, at the system call that instruction counters watch."""
    case = built("raspberry-pi/5", "vit", "w8a8")
    case.write_inputs(tmp_path / "in.bin")
    words = ["count", "--inputs", str(tmp_path / "in.bin"), "--n", str(ROWS)]
    command = ["qemu-aarch64", "-strace", "-cpu", "cortex-a76", str(case.folder / "model"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    marks = [line.split("prctl(")[1].split(",")[:2] for line in done.stderr.splitlines() if "prctl(" in line]
    assert [(int(code, 0), int(mark, 0)) for code, mark in marks] == [(0x45444745, 1), (0x45444745, 2)] * ROWS


def test_profile_names_every_step_and_takes_its_time(built, tmp_path: Path) -> None:
    case = built("host", "vit", "w8a8")
    case.write_inputs(tmp_path / "in.bin")
    done = case.run("profile", "--inputs", str(tmp_path / "in.bin"), "--n", str(ROWS))
    assert done.returncode == 0, done.stderr
    profile = json.loads(done.stdout)
    assert (profile["format"], profile["version"], profile["n"]) == ("edgesdk.profile", 1, ROWS)
    plan = specialize(make_plan(case.case.graph, case.case.sequence), choose(load_target("host")))
    expected = [(step.result.name, type(step).__name__) for step in plan.steps]
    assert [(step["name"], step["kind"]) for step in profile["steps"]] == expected
    assert sum(step["ns"] for step in profile["steps"]) > 0


def test_profile_marks_every_step_for_counters(built, tmp_path: Path) -> None:
    case = built("raspberry-pi/5", "vit", "w8a8")
    case.write_inputs(tmp_path / "in.bin")
    words = ["profile", "--inputs", str(tmp_path / "in.bin"), "--n", str(ROWS)]
    command = ["qemu-aarch64", "-strace", "-cpu", "cortex-a76", str(case.folder / "model"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    marks = [int(line.split("prctl(")[1].split(",")[1], 0) for line in done.stderr.splitlines() if "prctl(" in line]
    steps = len(json.loads(done.stdout)["steps"])
    assert marks == [1, *range(100, 100 + steps), 2] * ROWS


def test_check_accepts_what_converts(built) -> None:
    case = built("host", "bert_pooler", "w8a8")
    assert check(case.case.package(), load_target("host")) == []


@pytest.mark.parametrize(("kind", "scheme"), [("bert_pooler", "w8a8"), ("vit", "w8a8-dynamic")])
def test_i8mm_answers_as_dotprod(built, tmp_path: Path, kind: str, scheme: str) -> None:
    """The same bits, with attention in integers and in floats."""
    mine, other = (built(target, kind, scheme).outputs(tmp_path) for target in (I8MM, "raspberry-pi/5"))
    np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic"])
def test_avxvnni_answers_as_avx2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """The same bits: sums are exact, and both have the same vectors of floats."""
    if not {*EVEX.isa} <= host_features():
        pytest.skip(f"this CPU lacks {EVEX.isa}")
    case, toolchain, answers = sample_of("hidden_states", scheme), find(EVEX.triple), []
    package = case.package()
    inputs, outputs = input_tensors(package), output_tensors(package)
    (tmp_path / "in.bin").write_bytes(b"".join(case.inputs[tensor.name].tobytes() for tensor in inputs))
    # The runner must not ask for AVX-VNNI, which the same tile in EVEX does not need.
    objects = runner_objects(KERNEL_SETS["avx2"], toolchain)
    monkeypatch.setattr(build_module, "runner_objects", lambda kernels, toolchain: objects)
    for kernels in (EVEX, KERNEL_SETS["avx2"]):
        sources = emit(make_plan(case.graph, case.sequence), kernels, "sample", inputs, outputs)
        build(sources, kernels, toolchain, tmp_path / "model")
        words = ["run", "--inputs", str(tmp_path / "in.bin"), "--n", str(ROWS), "--outputs", str(tmp_path / "out.bin")]
        subprocess.run([str(tmp_path / "model"), *words], check=True, timeout=60)
        answers.append((tmp_path / "out.bin").read_bytes())
    assert answers[0] == answers[1]


@pytest.mark.parametrize("target", ["host", "raspberry-pi/5", I8MM])
def test_every_compiler_builds_the_same_answers(built, tmp_path: Path, target: str) -> None:
    """gcc is the second choice behind clang; both must be right."""
    case = built(target, "vit", "w8a8")
    kernels = choose(load_target(target))
    plan = make_plan(case.case.graph, case.case.sequence)
    sources = emit(plan, kernels, "sample", case.artifact.inputs, case.artifact.outputs)
    case.write_inputs(tmp_path / "in.bin")
    compilers = [toolchain for toolchain in find_all(kernels.triple) if toolchain.name != "zig"]
    for toolchain in compilers:
        build(sources, kernels, toolchain, tmp_path / "model")
        words = ["run", "--inputs", str(tmp_path / "in.bin"), "--n", str(ROWS), "--outputs", str(tmp_path / "out.bin")]
        qemu = ["qemu-aarch64", "-cpu", QEMU_CPU[target]] if target != "host" else []
        subprocess.run([*qemu, str(tmp_path / "model"), *words], check=True, timeout=60)
        found = np.fromfile(tmp_path / "out.bin", "<f4").reshape(case.case.expected.shape)
        assert sqnr_db(case.case.expected, found) >= least_db(target)
