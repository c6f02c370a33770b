"""The runtime trtexec: its log and files in old and new spelling, its engine's cache, and whole measurements with the
emulated Jetson's stand-in."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness_artifacts import assert_measured, describe, golden_rows, measure_one, onnx_artifact, weights
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.converters.artifact import write_artifact
from edgesdk.errors import Identity
from edgesdk.harness import emulate
from edgesdk.harness.board import Board
from edgesdk.harness.measure import Evaluation
from edgesdk.harness.replay import Frame, shipped
from edgesdk.harness.session import Session
from edgesdk.harness.worker import engine, memory, runner, trtexec
from edgesdk.harness.worker.facts import EMULATED_FILE
from edgesdk.harness.worker.runtimes import RUNTIMES
from edgesdk.harness.worker.traits import traits_of
from edgesdk.targets.target import Target, load_target
from edgesdk.testing.needs import need

NEW = """&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --loadEngine=e
[09/02/2024-17:47:01] [I] Engine deserialized in 0.0125 sec.
[09/02/2024-17:47:04] [I] Throughput: 1574.34 qps
[09/02/2024-17:47:04] [I] Latency: min = 0.94249 ms, max = 1.51343 ms, mean = 0.949318 ms, median = 0.948975 ms, \
percentile(90%) = 0.951172 ms, percentile(95%) = 0.951843 ms, percentile(99%) = 0.953735 ms
&&&& PASSED TensorRT.trtexec # trtexec
"""
MIDDLE = """[I] Latency: min = 1.1 ms, max = 2.5 ms, mean = 1.3 ms, median = 1.25 ms, percentile(99%) = 2 ms
[I] End-to-End Host Latency: min = 2.1 ms, max = 9.5 ms, mean = 2.3 ms, median = 2.25 ms, percentile(99%) = 3 ms
"""
OLD = """[06/12/2022-22:34:00] [I] Host Latency
[06/12/2022-22:34:00] [I] min: 1.64058 ms (end to end 1.66368 ms)
[06/12/2022-22:34:00] [I] max: 6.2915 ms (end to end 7.65552 ms)
[06/12/2022-22:34:00] [I] mean: 1.66069 ms (end to end 3.00909 ms)
[06/12/2022-22:34:00] [I] median: 1.65601 ms (end to end 3.01636 ms)
[06/12/2022-22:34:00] [I] percentile: 1.67065 ms at 99% (end to end 3.03931 ms at 99%)
[06/12/2022-22:34:00] [I] throughput: 0 qps
"""


@pytest.mark.parametrize(
    ("log", "found"),
    [
        (NEW, {"min": 0.94249, "max": 1.51343, "mean": 0.949318, "median": 0.948975, "percentile(90%)": 0.951172,
               "percentile(95%)": 0.951843, "percentile(99%)": 0.953735}),
        (MIDDLE, {"min": 1.1, "max": 2.5, "mean": 1.3, "median": 1.25, "percentile(99%)": 2}),
        (OLD, {"min": 1.64058, "max": 6.2915, "mean": 1.66069, "median": 1.65601, "percentile(99%)": 1.67065}),
        ("", {}), ("[I] Latency: median = 1.2.3 ms", {}),
    ],
)
def test_latency_of_logs(log: str, found: dict[str, float]) -> None:
    """Three spellings; the end-to-end latency is never taken for it."""
    assert trtexec.parse_latency(log) == found


@pytest.mark.parametrize(
    ("text", "version"), [("[TensorRT v8001]", "8.0.1"), ("[TensorRT v8502] # x", "8.5.2"),
                          ("[TensorRT v100300] [b31]", "10.3.0"), ("[TensorRT v1]", None), ("", None)],
)
def test_version_of_logs(text: str, version: str | None) -> None:
    """Four digits up to 9, six from 10 on."""
    assert engine.parse_version(text) == version


NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), 1e39, 1 << 63])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["latencyMs", "inMs", "computeMs", "outMs", "name", "values", "x"]), inner, max_size=4
    ), max_leaves=12,
)
TIMES = st.fixed_dictionaries({"latencyMs": NUMBERS | st.floats(0, 1e7)})
OUTPUTS = st.fixed_dictionaries({
    "name": st.sampled_from(["logits", "exit", "x"]),
    "values": st.lists(NUMBERS | st.floats(-1e38, 1e38), min_size=3, max_size=3) | JSON,
})
WORDS = st.sampled_from(["0.95", "1.2.3", ".", "1e9", "", "nan", "-1"]) | st.integers(0, 10**22).map(str)
LOG_LINES = st.one_of(
    st.builds("[I] Latency: min = {} ms, median = {} ms, percentile(99%) = {} ms".format, WORDS, WORDS, WORDS),
    st.builds("[I] Host Latency\n[I] min: {} ms\n[I] median: {} ms (end to end {} ms)".format, WORDS, WORDS, WORDS),
    st.builds("[I] percentile: {} ms at {}%".format, WORDS, WORDS), st.text(max_size=20),
)
LOGITS = {"name": "logits", "dtype": "float32", "shape": [1, 3]}
EXIT = {"name": "exit", "dtype": "int64", "shape": [1, 3]}


@given(st.lists(LOG_LINES, max_size=5).map("\n".join))
def test_logs_of_any_numbers(text: str) -> None:
    """Known names, and numbers that a log may claim."""
    found = trtexec.parse_latency(text)
    assert set(found) <= {"min", "median", "percentile(99%)"} | {f"percentile({share}%)" for share in range(100)}
    assert all(value >= 0 for value in found.values())


@given(st.integers(0, 10**9), st.text(max_size=8))
def test_versions_of_any_number(number: int, text: str) -> None:
    """Major, minor and patch are those of the number that the log has; there are four to seven digits."""
    found = engine.parse_version(f"{text}[TensorRT v{number}]{text}")
    if not 1000 <= number < 10**7:
        assert found is None
        return
    assert found is not None
    major, minor, patch = map(int, found.split("."))
    assert major * (10000 if number >= 100000 else 1000) + minor * 100 + patch == number


@given(st.lists(TIMES, max_size=4) | JSON)
def test_times_of_any_numbers(data: Any) -> None:
    """A positive number of nanoseconds of each inference, or a ValueError that says what is wrong."""
    try:
        found = trtexec.parse_times(data)
    except ValueError as problem:
        assert str(problem)
        return
    assert len(found) == len(data) > 0 and all(1 <= value <= 3e13 for value in found)


@given(st.lists(OUTPUTS, max_size=4) | JSON, st.sampled_from([LOGITS, EXIT]))
def test_outputs_of_any_numbers(data: Any, tensor: dict[str, Any]) -> None:
    """The bytes of the last entry of that name, or a ValueError that says what is wrong."""
    try:
        (row,) = trtexec.parse_output(data, [tensor])
    except ValueError as problem:
        assert str(problem)
        return
    values = [entry["values"] for entry in data if isinstance(entry, dict) and entry.get("name") == tensor["name"]][-1]
    exact = values if tensor is LOGITS else [int(value) for value in values]
    wanted = np.array(exact, "<f4" if tensor is LOGITS else "<i8")
    assert row == wanted.tobytes() and np.isfinite(np.frombuffer(row, wanted.dtype)).all()


def test_exported_files() -> None:
    """Copies count; older files have no sum."""
    entries = [{"latencyMs": 1.5, "computeMs": 1.0}, {"inMs": 0.25, "computeMs": 1.0, "outMs": 0.5}]
    assert trtexec.parse_times(entries) == [1500000, 1750000]
    data = [{"name": "logits", "dimensions": "1x3", "values": [1, 2.5, -3]}]
    assert trtexec.parse_output(data, [LOGITS]) == [np.array([1, 2.5, -3], "<f4").tobytes()]
    most = trtexec.parse_output([{"name": "logits", "values": [-3.40282347e38, 3.4028234e38, 0]}], [LOGITS])[0]
    assert np.isfinite(np.frombuffer(most, "<f4")).all()
    for values in ([1, 2], [1, 2, float("nan")], [1, 2, 10**400], [1, 2, "3"], [1, 2, True]):
        with pytest.raises(ValueError, match="exported output"):
            trtexec.parse_output([{"name": "logits", "values": values}], [LOGITS])
    with pytest.raises(ValueError, match="malformed"):
        trtexec.parse_output({}, [LOGITS])


def gpu_artifact(folder: Path, wrong: bool = False, n: int = 3) -> Path:
    """`onnx_artifact` for trtexec, with few golden rows."""
    onnx_artifact(folder)
    rows = golden_rows(n)
    artifact = describe("tiny-fp16-tensorrt", {"name": "trtexec", "model": "model.onnx", "precision": "fp16"},
                        ["model.onnx"])
    artifact = dataclasses.replace(artifact, golden=dataclasses.replace(artifact.golden, n=n))
    import onnx

    model = onnx.load(folder / "model.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, folder / "model.onnx")
    write_artifact(folder, artifact, [rows], [rows @ weights() + (1.0 if wrong else 0.0)])
    return folder


@pytest.fixture
def gpu(host: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    """This machine with the stand-in of the emulated Jetson; each call leaves a line in `calls`."""
    standins = files("edgesdk.harness.emulate").joinpath("assets", "standins")
    head = standins.joinpath("answer.sh").read_text().replace("/usr/lib/edgesdk-answers", str(tmp_path / "answers"))
    body = standins.joinpath("trtexec.sh").read_text().replace("python3 -", f"{sys.executable} -")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/trtexec").write_text(head + f'echo "$*" >> {tmp_path}/calls\n' + body)
    (tmp_path / "bin/trtexec").chmod(0o755)
    recording = shipped("jetson/orin-nano")
    assert recording is not None
    frame = recording.command("trtexec", 0)
    assert frame is not None
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers/trtexec").write_text(f"0\n{frame.text}\n")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return host


def test_a_timed_measurement(gpu: Board, target: Target, tmp_path: Path) -> None:
    """One engine for all calls and for the next measurement; samples, load time and outputs are those that it gave."""
    artifact = gpu_artifact(tmp_path / "a")
    document = measure_one(gpu, target, tmp_path, artifact, evaluation=Evaluation([golden_rows(2, 1)], 2))
    assert document["valid"], document["reasons"]
    assert document["golden"]["passed"] and document["evaluation"]["n"] == 2
    assert document["latency_ms"]["p50"] == pytest.approx(0.948975, rel=1e-6)
    assert document["loading_ms"]["cold_load"] == 12.5 and document["loading_ms"]["first_inference"] is None
    assert document["facts"]["runtimes"]["tensorrt"] == "unknown"  # the stand-in brings no library
    assert document["energy_mj"]["value"] is None and "when its window starts" in document["energy_mj"]["reason"]
    # The stand-in is a shell; the worker's Python around it has more.
    assert 1 << 16 < document["peak_rss_bytes"]["value"] < 8 << 20
    assert document["memory_bytes"]["peak_rss"] == document["peak_rss_bytes"]["value"]
    measure_one(gpu, target, tmp_path, artifact)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert sum("--saveEngine" in call for call in calls) == 1
    assert all("--fp16" in call for call in calls if "--saveEngine" in call)
    assert sum("--exportTimes" in call for call in calls) == 4 and sum("--exportOutput" in call for call in calls) == 8


def builds(folder: Path) -> int:
    """How often an engine was built."""
    return (folder / "calls").read_text().count("--saveEngine")


def test_an_engine_that_is_not_whole_is_built_again(gpu: Board, target: Target, tmp_path: Path) -> None:
    """Cut, changed in one byte, without its note, or of another TensorRT: each time one build, and right outputs."""
    artifact, wanted = gpu_artifact(tmp_path / "a"), 1
    assert measure_one(gpu, target, tmp_path, artifact)["valid"]
    (plan,) = (tmp_path / "home/.edgesdk/engines").glob("*.plan")
    whole = plan.read_bytes()
    for spoil in (
        lambda: plan.write_bytes(whole[:-1]), lambda: plan.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1])),
        lambda: Path(f"{plan}.json").unlink(), lambda: Path(f"{plan}.json").write_text("[]"),
    ):
        spoil()
        wanted += 1
        assert measure_one(gpu, target, tmp_path, artifact)["valid"] and builds(tmp_path) == wanted
        assert plan.read_bytes() == whole
    program = tmp_path / "bin/trtexec"
    program.write_text(program.read_text().replace("v100300", "v100400"))
    assert measure_one(gpu, target, tmp_path, artifact)["valid"] and builds(tmp_path) == wanted + 1
    assert len(list(plan.parent.glob("*.plan"))) == 2


def test_an_engine_that_does_not_load_is_built_again_once(gpu: Board, target: Target, tmp_path: Path) -> None:
    """As after a change that no version tells; one that never loads is a reason after that one build."""
    artifact, program = gpu_artifact(tmp_path / "a"), tmp_path / "bin/trtexec"
    assert measure_one(gpu, target, tmp_path, artifact)["valid"]
    sound, mark = program.read_text(), tmp_path / "refused"
    refuse = f'[ -n "$engine" ] && [ ! -e {mark} ] && {{ touch {mark}; fail "cannot load"; }}\n'
    program.write_text(sound.replace('[ -r "${model', refuse + '[ -r "${model'))
    assert measure_one(gpu, target, tmp_path, artifact)["valid"] and builds(tmp_path) == 2
    program.write_text(sound.replace('[ -r "${model', '[ -n "$engine" ] && fail "cannot load"\n[ -r "${model'))
    (reason,) = measure_one(gpu, target, tmp_path, artifact)["reasons"]
    assert "cannot load" in reason and builds(tmp_path) == 3


def script(folder: Path, text: str) -> str:
    """An executable of the test's own in the place of trtexec."""
    path = folder / "fake"
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def test_calls_of_trtexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long log the head and the tail are kept; memory is that of the process itself; a hang ends."""
    monkeypatch.chdir(tmp_path)
    long = "echo '[TensorRT v8502]'; yes 0123456789abcdef | head -c 3000000; echo '&&&& PASSED'"
    ended = engine.call(script(tmp_path, long), [], 60)
    assert engine.parse_version(ended.log) == "8.5.2" and ended.log.endswith("&&&& PASSED\n")
    assert len(ended.log) <= engine.HEAD_BYTES + engine.TAIL_BYTES + 1
    holds = f"import time; held = b'x' * (96 << 20); time.sleep({3 * engine.LOOK_SECONDS}); print('&&&& PASSED')"
    ended = engine.call(script(tmp_path, f'exec {sys.executable} -c "{holds}"'), [], 60)
    assert 96 << 20 < ended.seen["peak_rss"] < 160 << 20 and ended.seen["anon"] > 96 << 20
    with pytest.raises(engine.Failed, match="did not end within 1 s"):
        engine.call(script(tmp_path, "exec sleep 60"), [], 1)


def test_memory_of_the_gpu_is_that_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its line in nvmap, while it runs; others have none."""
    clients = tmp_path / "clients"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory, "NVMAP", str(clients))
    says = f"echo user fake $$ 2048K > {clients}; sleep {3 * engine.LOOK_SECONDS}; echo '&&&& PASSED'"
    assert engine.call(script(tmp_path, says), [], 60).seen["nvmap"] == 2 << 20
    assert memory.memory_numbers()["nvmap"] is None


def test_a_wrong_engine_is_never_timed(gpu: Board, target: Target, tmp_path: Path) -> None:
    """The golden check comes first, as for every runtime."""
    document = measure_one(gpu, target, tmp_path, gpu_artifact(tmp_path / "a", wrong=True))
    (reason,) = document["reasons"]
    assert reason.startswith("E_ACCURACY") and "--exportTimes" not in (tmp_path / "calls").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace('cp "$model" "$save"', "false"), "trtexec failed"),
        (lambda text: text.replace('cp "$model" "$save"', "true"), "wrote no engine"),
        (lambda text: text.replace('say "$log"', 'say "$log" | grep -v Latency'), "the log claims no median"),
        (lambda text: text.replace('latencyMs\\":%s', 'latencyMs\\":7%s'), "the log claims a median of 0.948975 ms"),
        (lambda text: text.replace('latencyMs\\":%s', 'latencyMs\\":-%s'), "something else than times"),
        (lambda text: text.replace('"values": found.ravel().tolist()', '"values": [0]'), "no 3 values of logits"),
    ],
)
def test_faults_of_trtexec(gpu: Board, target: Target, tmp_path: Path, change: Any, words: str) -> None:
    """Each is a reason, and no engine that is half there stays."""
    program = tmp_path / "bin/trtexec"
    program.write_text(change(program.read_text()))
    (reason,) = measure_one(gpu, target, tmp_path, gpu_artifact(tmp_path / "a"))["reasons"]
    assert words in reason and reason.startswith("E_CRASH")
    if "engine" in words or words == "trtexec failed":
        assert not list((tmp_path / "home/.edgesdk/engines").glob("*.plan*"))


@pytest.mark.parametrize(("runtime", "action"), [("trtexec", "count"), ("onnxruntime", "build"), ("trtexec", "")])
def test_what_a_runtime_does_not_do_is_usage(runtime: str, action: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Said before anything is read."""
    parser = argparse.ArgumentParser()
    runner.add_commands(parser)
    options = ["--inputs", "x", "--n", "1"] if action == "count" else []
    arguments = parser.parse_args([runtime, "nowhere", *filter(None, [action]), *options])
    assert runner.main(arguments) == 64
    words = f"{runtime} has no {action}" if action else "expected build, run, bench or count"
    assert capsys.readouterr().err == words + "\n"


def test_only_trtexec_is_apart() -> None:
    """Its engine is built first; a GPU's instructions are not counted, nor its windows placed on the board's clock."""
    assert traits_of("trtexec") == (True, False, False)
    assert {traits_of(name) for name in ("neon", *RUNTIMES)} == {(False, True, True)}


def test_a_board_without_it(host: Board, target: Target, tmp_path: Path) -> None:
    """Known before anything is sent."""
    (reason,) = measure_one(host, target, tmp_path, gpu_artifact(tmp_path / "a"))["reasons"]
    assert reason.startswith("E_PREFLIGHT: tensorrt is not installed")


def test_the_version_is_that_of_the_library(gpu: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest one that lies there."""
    for version in ("8.6.2", "10.3.0", "x"):
        (tmp_path / f"libnvinfer.so.{version}").touch()
    monkeypatch.setattr(engine, "LIBRARIES", (f"{tmp_path}/libnvinfer.so.*",))
    assert engine.installed_version() == "10.3.0"


@pytest.fixture(scope="module")
def jetson() -> Iterator[Board]:
    """An emulated Jetson of its own."""
    need(not emulate.missing(), "; ".join(emulate.missing()))
    own = load_target("jetson/orin-nano").model_copy(update={"aliases": ("jetson-trtexec",)})
    whole = shipped("jetson/orin-nano")
    assert whole is not None
    cool = {path: (Frame(at_s=0, text="41000"),) for path in whole.files if path.startswith("/sys/class/thermal/")
            and path.endswith("/temp")}
    recording = whole.without_power().model_copy(update={"files": {**whole.without_power().files, **cool}})
    with emulate.emulated(own, recording=recording) as running:
        yield running


def test_on_the_emulated_jetson(jetson: Board, tmp_path: Path) -> None:
    """The whole path over SSH; no time and no instructions are claimed, and the reason is said."""
    target = load_target("jetson/orin-nano")
    evaluation = Evaluation([golden_rows(2)], 2)
    document = measure_one(jetson, target, tmp_path, gpu_artifact(tmp_path / "a"), evaluation=evaluation)
    assert document["valid"], document["reasons"]
    assert document["provenance"] == "emulated" and document["golden"]["passed"] and document["golden"]["n"] == 2
    assert document["latency_ms"]["p50"] is None and document["instructions"]["provenance"] == "unmeasured"
    assert "stand-in" in document["instructions"]["reason"] and document["evaluation"] is None
    assert document["facts"]["runtimes"]["tensorrt"] == "10.3.0"
    assert json.loads((tmp_path / "work" / document["artifact"] / "measurement.json").read_bytes())["valid"]


def test_rounds_on_the_emulated_jetson(jetson: Board, tmp_path: Path) -> None:
    """Under a name that claims a real board it is refused. Without what it says of itself it is timed: the rounds are
    those of the recorded log."""
    target, artifact = load_target("jetson/orin-nano"), gpu_artifact(tmp_path / "a", n=1)
    real = dataclasses.replace(jetson, name="desk", emulated=False, counting_plugin=None)
    with pytest.raises(Identity, match="desk: an emulated board answers"):
        measure_one(real, target, tmp_path, artifact)
    with Session(jetson) as session:
        assert session.step(lambda to: to.run(["rm", EMULATED_FILE], 30)).returncode == 0
    document = measure_one(real, target, tmp_path, artifact)
    assert_measured(document)
    assert document["rounds"] and {entry["p50_ns"] for entry in document["rounds"]} == {948975}
