"""The whole path on this machine: golden check, evaluation, rounds, document, verification."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness_artifacts import describe, golden_rows, onnx_artifact, runner, runner_artifact, weights

from edgesdk.converters.artifact import Tensor, write_artifact
from edgesdk.errors import ConfigError, MeasureError
from edgesdk.files import canonical_json
from edgesdk.harness import facts, pack
from edgesdk.harness.board import Board
from edgesdk.harness.measure import Evaluation, load_profile, measure, probe, verify_measurement
from edgesdk.targets.target import Target

QUICK = load_profile("quick")


def run(board: Board, target: Target, folder: Path, *candidates: Path, **options: Any) -> list[dict[str, Any]]:
    """Measure with the quick profile; each document is written, and its figures follow from its raw files."""
    values: dict[str, Any] = {"evaluation": None, "profile": QUICK, "seed": 3, "workdir": folder / "work", **options}
    documents = measure(board, target, candidates, **values)
    for document in documents:
        stored = verify_measurement(folder / "work" / document["artifact"])
        assert stored == json.loads(canonical_json(document))
    return documents


def test_onnx_end_to_end(host: Board, target: Target, tmp_path: Path) -> None:
    """A right model is measured; a wrong one in the same job is refused before any timing."""
    rows = golden_rows(50, seed=1)
    right = onnx_artifact(tmp_path / "right")
    wrong = onnx_artifact(tmp_path / "wrong", name="wrong", wrong=True)
    steps: list[tuple[str, int, int]] = []
    first, second = run(
        host, target, tmp_path, right, wrong, evaluation=Evaluation([rows], 50),
        progress=lambda *step: steps.append(step),
    )
    assert first["valid"] and first["reasons"] == []
    verdict = {"passed": True, "kind": "max_abs", "value": 0.0, "limit": 1e-4, "labels_equal": None, "n": 32}
    assert first["golden"] == verdict | {"noise_db": None}
    raw = (tmp_path / "work" / first["artifact"] / first["evaluation"]["outputs"]).read_bytes()
    np.testing.assert_allclose(np.frombuffer(raw, "<f4").reshape(50, 3), rows @ weights(), atol=1e-5)
    assert [entry["index"] for entry in first["rounds"]] == [0, 1]
    assert first["latency_ms"]["provenance"] == "measured"
    assert "quick" in first["latency_ms"]["labels"]
    low, high = first["latency_ms"]["ci95"]
    assert low <= first["latency_ms"]["p50"] <= high
    assert first["peak_rss_bytes"]["value"] == first["memory_bytes"]["peak_rss"] > 1 << 20
    assert 0 < first["memory_bytes"]["pss"] <= first["memory_bytes"]["peak_rss"] and first["memory_bytes"]["anon"] > 0
    assert first["loading_ms"]["cold_load"] > 0 and first["loading_ms"]["first_inference"] > 0
    assert first["loading_ms"]["warm_load"] > 0 and first["loading_ms"]["warm_loads"] == 2 * QUICK.warm_loads
    seen = first["rounds"][0]["environment"]
    assert seen["turn"] == "held" and "unserialized" not in first["latency_ms"]["labels"]
    assert seen["probe_before_ns"] > 0 and seen["probe_after_ns"] > 0 and seen["window_s"] == QUICK.window_seconds
    assert first["protocol"] == QUICK.worker_numbers() and first["exits"] is None
    assert abs(first["facts"]["clock"]["skew_s"]) < 1 and len(first["facts"]["starts"]) == 1
    assert any("setsid" in note or "systemd-run" in note for note in first["facts"]["notes"])
    assert first["energy_mj"]["value"] is None and "RAPL" in first["energy_mj"]["reason"]
    assert first["instructions"]["value"] is None

    assert not second["valid"]
    assert second["reasons"] == ["E_ACCURACY: golden check: max_abs is 1, limit 0.0001"]
    assert second["rounds"] == [] and second["latency_ms"]["p50"] is None and second["evaluation"] is None
    assert not [step for step, _, _ in steps if step.startswith("round") and "wrong" in step]
    assert not list((tmp_path / "home/.edgesdk/jobs").iterdir())


def test_own_binary_end_to_end(host: Board, target: Target, tmp_path: Path) -> None:
    """An artifact with an executable of its own goes through the same protocol; equal ones are measured once."""
    folder = runner_artifact(tmp_path / "a", runner())
    first, second = run(host, target, tmp_path, folder, folder)
    assert first is second
    assert first["valid"], first["reasons"]
    assert [entry["batch"] for entry in first["rounds"]] == [4, 4]
    assert first["peak_rss_bytes"]["value"] == 4096


def test_a_machine_without_a_lock_is_labelled(
    host: Board, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no turn could be taken, nobody knows what was timed beside a round."""
    entry = f"from edgesdk.harness.worker import machine\nmachine.LOCK = {str(tmp_path / 'none/timing')!r}\n"
    monkeypatch.setattr(pack, "ENTRY", entry + pack.ENTRY)
    monkeypatch.setattr(facts, "pack_worker", pack.pack_worker.__wrapped__)
    (document,) = run(host, target, tmp_path, runner_artifact(tmp_path / "a", runner()))
    assert document["valid"] and "unserialized" in document["latency_ms"]["labels"]
    assert {entry["environment"]["turn"] for entry in document["rounds"]} == {"no_lock"}


def test_counting_board_reports_instructions_only(host: Board, target: Target, tmp_path: Path) -> None:
    """On an emulated board with a plugin: instructions are `emulated`, nothing is timed."""
    board = Board(
        "emu", "host", python=host.python, emulated=True, counting_plugin=str(tmp_path / "plugin.so"),
    )
    (document,) = run(board, target, tmp_path, runner_artifact(tmp_path / "a", runner()))
    assert document["valid"], document["reasons"]
    # The runner reports 2000 + row for each of four inferences.
    assert document["instructions"]["value"] == 2002 and document["instructions"]["classes"] == {"dot": 16}
    assert (document["instructions"]["n"], document["instructions"]["labels"]) == (4, [])
    assert document["instructions"]["provenance"] == document["provenance"] == "emulated"
    assert document["latency_ms"]["p50"] is None and document["latency_ms"]["provenance"] == "unmeasured"
    assert document["peak_rss_bytes"]["provenance"] == "unmeasured"
    assert [entry["p50_ns"] for entry in document["rounds"]] == [None, None]


def test_inputs_that_differ_in_work_are_counted_in_greater_number(host: Board, target: Target, tmp_path: Path) -> None:
    """Eight rows where the work depends on the input; the document says how many, and that they are few."""
    board = Board("emu", "host", python=host.python, emulated=True, counting_plugin=str(tmp_path / "plugin.so"))
    (document,) = run(board, target, tmp_path, runner_artifact(tmp_path / "a", runner(), work="per_input"))
    assert document["valid"], document["reasons"]
    assert [entry["count"] for entry in document["rounds"]] == [8, 8]
    assert (document["instructions"]["n"], document["instructions"]["labels"]) == (8, ["few_inputs"])


def test_inputs_that_leave_early_are_counted_by_depth(host: Board, target: Target, tmp_path: Path) -> None:
    """The output `exit` of every evaluation input, and verification counts again."""
    line = b'open(options.outputs, "wb").write(out.tobytes())'
    left = b"array.array('q', [2 if row % 4 else 5 for row in range(options.n)])"
    program = runner().replace(line, b'open(options.outputs, "wb").write(out.tobytes() + ' + left + b".tobytes())")
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "model").write_bytes(program)
    outputs = (Tensor("logits", "float32", (1, 3)), Tensor("exit", "int64", (1,)))
    artifact = describe("dynamic", {"name": "neon"}, ["model"], executable="model", outputs=outputs)
    rows = golden_rows()
    exits = np.array([2 if row % 4 else 5 for row in range(32)], np.int64)
    write_artifact(folder, artifact, [rows], [rows @ weights(), exits])
    (document,) = run(host, target, tmp_path, folder, evaluation=Evaluation([golden_rows(40, seed=1)], 40))
    assert document["valid"], document["reasons"]
    assert document["exits"] == {"n": 40, "left": {"2": 30, "5": 10}, "provenance": "measured"}
    document["exits"]["left"]["2"] = 31
    where = tmp_path / "work" / document["artifact"]
    path = where / "changed.json"
    path.write_bytes(canonical_json(document))
    with pytest.raises(MeasureError, match="exits is"):
        verify_measurement(path)


def test_board_that_is_not_ready_is_not_timed(
    host: Board, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profile that refuses: outputs are checked, rounds are not run, the fault is the reason."""
    (tmp_path / "vcgencmd").write_text("#!/bin/sh\necho throttled=0x50005\n")
    (tmp_path / "vcgencmd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    strict = dataclasses.replace(QUICK, lenient=False)
    folder = runner_artifact(tmp_path / "a", runner())
    (document,) = run(host, target, tmp_path, folder, profile=strict)
    assert document["golden"]["passed"] and not document["rounds"] and not document["valid"]
    (reason,) = document["reasons"]
    assert reason.startswith("E_UNDERVOLT: under-voltage now (throttled=0x5)")


# A runner whose rounds take 0.1, 0.2, 0.3 ... ms (or 0.1 ms always), by a file that counts them.
PACED = (
    "rounds = open({path!r}, 'a+'); rounds.write('x' * (options.action == 'bench')); rounds.flush(); rounds.seek(0); "
    "pace = iter(range(0, 1 << 60, 100000 * {step})); time.monotonic_ns = lambda: next(pace)"
)


@pytest.mark.parametrize(("step", "rounds"), [("(len(rounds.read()) or 1)", 4), ("1", 2)])
def test_more_rounds_until_the_interval_is_narrow(
    host: Board, target: Target, tmp_path: Path, step: str, rounds: int
) -> None:
    """Where round medians differ, the profile's extra rounds are run, no more, and the label stays; else none is."""
    profile = dataclasses.replace(QUICK, extra_rounds=2, ci_half_width=0.05)
    program = runner(PACED.format(path=str(tmp_path / "rounds"), step=step))
    (document,) = measure(
        host, target, [runner_artifact(tmp_path / "a", program)], evaluation=None, profile=profile, seed=0,
        workdir=tmp_path / "work",
    )
    assert document["valid"], document["reasons"]
    assert [entry["index"] for entry in document["rounds"]] == list(range(rounds))
    p50s = [25_000 * (index + 1 if rounds == 4 else 1) for index in range(rounds)]
    assert [entry["p50_ns"] for entry in document["rounds"]] == p50s
    assert document["latency_ms"]["rounds"] == rounds
    wide = document["latency_ms"]["ci95"][1] - document["latency_ms"]["ci95"][0] > 0.1 * document["latency_ms"]["p50"]
    assert wide == (rounds == 4)


def test_outputs_that_are_not_finite_are_not_kept(host: Board, target: Target, tmp_path: Path) -> None:
    """NaN for an evaluation input: that candidate is invalid, its neighbour is not."""
    rows = golden_rows(5, seed=1)
    rows[3, 0] = np.nan
    bad = runner_artifact(tmp_path / "bad", runner(), name="bad")
    careful = runner().replace(b"infer(row)]", b"map(lambda x: x if x == x else 0.0, infer(row))]")
    good = runner_artifact(tmp_path / "good", careful, name="good")
    first, second = run(host, target, tmp_path, bad, good, evaluation=Evaluation([rows], 5))
    assert first["reasons"] == ["E_ACCURACY: evaluation outputs hold NaN or infinity"]
    assert first["evaluation"] is None and not first["valid"]
    assert not (tmp_path / "work" / first["artifact"] / "evaluation.bin").exists()
    assert second["valid"], second["reasons"]
    assert second["evaluation"]["n"] == 5


def test_samples_that_give_no_figures_are_a_reason(host: Board, target: Target, tmp_path: Path) -> None:
    """One candidate with a sample that is not positive: it is invalid, the other one is measured."""
    line = b"samples.append(time.monotonic_ns() - start)"
    bad = runner_artifact(tmp_path / "bad", runner().replace(line, b"samples.append(-1)"), name="bad")
    bad_too = runner_artifact(tmp_path / "zero", runner().replace(line, b"samples.append(0)"), name="zero")
    good = runner_artifact(tmp_path / "good", runner(), name="good")
    first, second, third = run(host, target, tmp_path, bad, good, bad_too)
    assert second["valid"], second["reasons"]
    assert third["rounds"] == [] and third["latency_ms"]["p50"] is None and not third["valid"]
    words = "E_CRASH: no figures follow from the raw files: round-0.bin: has samples that are not positive"
    assert third["reasons"] == [words]
    assert not first["valid"] and first["reasons"][0].startswith("E_CRASH")


def test_a_measurement_is_replaced_only_by_a_whole_one(
    host: Board, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A harness that dies while it writes leaves the earlier document and its raw files."""
    folder = runner_artifact(tmp_path / "a", runner())
    (document,) = run(host, target, tmp_path, folder)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("edgesdk.harness.document.figures.latency", _stop)
        run(host, target, tmp_path, folder)
    assert verify_measurement(tmp_path / "work" / document["artifact"]) == json.loads(canonical_json(document))


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGILL)", "E_CRASH", "SIGILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "E_CRASH", "SIGSEGV"),
        ("sys.exit(65)", "E_CRASH", "bad input file"),
        ("sys.exit(128 + 4)", "E_CRASH", "SIGILL"),
        ("raise MemoryError", "E_OOM", "out of memory"),
        ("sys.exit(0)", "E_CRASH", "wrote no outputs"),
        ("open(options.outputs, 'w').write('x'); sys.exit(0)", "E_CRASH", "wrote 1 bytes"),
        ("print('{}' * 9); options.action == 'bench' and sys.exit(0)", "E_CRASH", "no edgesdk.round"),
    ],
)
def test_failing_candidate_is_a_result(
    host: Board, target: Target, tmp_path: Path, fault: str, code: str, words: str
) -> None:
    """Whatever a candidate does, the answer is a document with the reason."""
    (document,) = run(host, target, tmp_path, runner_artifact(tmp_path / "a", runner(fault)))
    assert not document["valid"]
    (reason,) = document["reasons"]
    assert reason.startswith(code) and words in reason
    assert document["latency_ms"]["p50"] is None
    if words == "SIGILL":
        assert "CPU features of the board" in reason


def test_summary_that_contradicts_its_samples_is_not_believed(host: Board, target: Target, tmp_path: Path) -> None:
    """A runner that prints a better median than its samples have is not valid."""
    program = runner().replace(b'"p50_ns": p50', b'"p50_ns": p50 // 2 + 1')
    (document,) = run(host, target, tmp_path, runner_artifact(tmp_path / "a", program))
    assert not document["valid"] and "its samples have" in document["reasons"][0]


def test_wrong_architecture_is_found_before_upload(host: Board, target: Target, tmp_path: Path) -> None:
    """An aarch64 binary is not sent to an x86 machine (and the other way round)."""
    machine = 62 if probe(host)["machine"] == "aarch64" else 183
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, machine)
    (document,) = run(host, target, tmp_path, runner_artifact(tmp_path / "a", header))
    assert document["golden"] is None
    assert "is built for" in document["reasons"][0]


def test_missing_runtime_is_named(host: Board, target: Target, tmp_path: Path) -> None:
    """A runtime that the worker does not know is a reason, not a crash."""
    folder = runner_artifact(tmp_path / "a", b"not run", runtime={"name": "tensorrt"}, executable=None)
    (document,) = run(host, target, tmp_path, folder)
    assert "tensorrt" in document["reasons"][0]


def test_inputs_that_do_not_fit_are_a_reason(host: Board, target: Target, tmp_path: Path) -> None:
    """An evaluation set of another shape is refused for that candidate."""
    evaluation = Evaluation([np.zeros((4, 5), np.float32)], 4)
    (document,) = run(host, target, tmp_path, runner_artifact(tmp_path / "a", runner()), evaluation=evaluation)
    assert "input features takes (4, 6)" in document["reasons"][0]


def test_unknown_profile() -> None:
    """The message lists the profiles."""
    with pytest.raises(ConfigError, match="unknown profile 'fast'\n  try: one of nightly, publish, quick, smoke"):
        load_profile("fast")


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("latency_ms.p50", lambda document: document["latency_ms"].update(p50=0.1234)),
        ("latency_ms.p90", lambda document: document["latency_ms"].update(p90=0.1234)),
        ("latency_ms.ci95", lambda document: document["latency_ms"].update(ci95=[0.1, 0.2])),
        ("latency_ms.labels", lambda document: document["latency_ms"].update(labels=[])),
        ("rounds[1].p50_ns", lambda document: document["rounds"][1].update(p50_ns=1)),
        ("rounds[0].codes", lambda document: document["rounds"][0].update(codes=["E_X"])),
        ("peak_rss_bytes.value", lambda document: document["peak_rss_bytes"].update(value=1)),
        ("loading_ms.cold_load", lambda document: document["loading_ms"].update(cold_load=1.5)),
        ("memory_bytes.peak_rss", lambda document: document["memory_bytes"].update(peak_rss=1)),
        ("exits", lambda document: document.update(exits={})),
        ("instructions.value", lambda document: document["instructions"].update(value=1)),
        ("energy_mj.value", lambda document: document["energy_mj"].update(value=0.5)),
        ("valid", lambda document: document.update(valid=False)),
        ("sha256 differs", lambda document: document["rounds"][0].update(sha256="0" * 64)),
        ("malformed", lambda document: document["rounds"][0].pop("batch")),
        ("leaves its folder", lambda document: document["rounds"][0].update(samples="../x")),
    ],
)
def test_every_changed_figure_is_found(measured: Path, key: str, change: Any) -> None:
    """Verification names the figure that does not follow from the raw files."""
    document = json.loads((measured / "measurement.json").read_bytes())
    change(document)
    changed = measured / "changed.json"
    changed.write_bytes(canonical_json(document))
    with pytest.raises(MeasureError) as caught:
        verify_measurement(changed)
    assert key in caught.value.message


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one measurement."""
    from edgesdk.targets.target import load_target

    folder = tmp_path_factory.mktemp("measured")
    board = Board("host", "host", python=probe_python(), state=str(folder / "state"))
    (document,) = run(board, load_target("host"), folder, runner_artifact(folder / "a", runner()))
    return folder / "work" / str(document["artifact"])


def probe_python() -> str:
    """The interpreter of this process."""
    import sys

    return sys.executable
