"""The results store: append-only, shared by processes, content-addressed samples, audited from raw data."""

import dataclasses
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import edgesdk.store
from edgesdk.errors import ConfigError, MeasureError, VerifyError
from edgesdk.files import sha256_bytes
from edgesdk.record import BuildRecord
from edgesdk.store import COLUMNS, Store, verify_store
from edgesdk.store_verify import store_problems
from edgesdk.testing.sample_record import sample_record


@pytest.fixture
def record(tmp_path: Path) -> BuildRecord:
    return sample_record(tmp_path / "raw")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store" / "results.sqlite")


def test_build_comes_back_as_it_was_stored(store: Store, record: BuildRecord) -> None:
    number = store.add_build(record)
    found = Store(store.path, create=False).build(number)
    assert dataclasses.replace(found, candidates=()) == dataclasses.replace(record, candidates=())
    assert [candidate.name for candidate in found.candidates] == [candidate.name for candidate in record.candidates]
    for before, after in zip(record.candidates, found.candidates, strict=True):
        assert after.accuracy == before.accuracy
        assert (after.valid, after.reasons, after.notes) == (before.valid, before.reasons, before.notes)
        assert after.figure("latency_ms") == before.figure("latency_ms")


def test_samples_are_stored_by_content_and_named_in_the_document(store: Store, record: BuildRecord) -> None:
    number = store.add_build(record)
    names = {path.name for path in store.samples.iterdir()}
    assert names and all(sha256_bytes((store.samples / name).read_bytes()) == name for name in names)
    rounds = [entry for candidate in store.build(number).candidates for entry in candidate.figure("rounds") or ()]
    assert {entry["samples"] for entry in rounds} == {f"samples/{name}" for name in names}
    store.add_build(record)
    assert {path.name for path in store.samples.iterdir()} == names


def test_attempts_are_appended_and_never_changed(store: Store, record: BuildRecord) -> None:
    first, second = store.add_build(record), store.add_build(record)
    assert second > first
    assert len(store.attempts()) == 2 * len(record.candidates)
    assert [row["name"] for row in store.attempts(first)] == [row["name"] for row in store.attempts(second)]
    with sqlite3.connect(store.path) as connection:
        for statement in (
            "UPDATE attempts SET p50_ms = 0", "DELETE FROM attempts",
            "UPDATE builds SET model = ''", "DELETE FROM builds",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)


def test_results_are_tidy(store: Store, record: BuildRecord, tmp_path: Path) -> None:
    assert list(store.results().columns) == COLUMNS and store.results().empty
    host = store.add_build(record)
    emulated = store.add_build(sample_record(tmp_path / "raw-emulated", emulated=True))
    table = store.results()
    assert list(table.columns) == COLUMNS
    assert set(table["build"]) == {host, emulated}
    neon = store.results(target="host", board="host", model="digits-vit").set_index("name").loc["digits-int8-neon"]
    assert neon["p50_ms"] == pytest.approx(0.0712, rel=0.01)
    assert neon["ci_low_ms"] < neon["p50_ms"] < neon["ci_high_ms"]
    assert (neon["bytes"], neon["bytes_with_runtime"], neon["valid"]) == (196_553, 1_022_768, True)
    counted = store.results(build=emulated)
    assert counted["p50_ms"].isna().all() and set(counted["latency_provenance"].dropna()) == {"unmeasured"}
    assert counted.set_index("name").loc["digits-small-neon", "instructions"] == 2_310_871
    refused = counted.set_index("name").loc["digits-int8-dynamic-tflite"]
    assert not refused["valid"] and "no dynamic scheme" in refused["reasons"]
    assert store.results(target="jetson").empty


def test_latest_build_of_a_target(store: Store, record: BuildRecord) -> None:
    with pytest.raises(ConfigError, match="no build for target host"):
        store.latest(target="host")
    store.add_build(record)
    newest = store.add_build(record)
    assert store.latest(target="host") == store.latest() == store.latest(model="digits-vit") == newest
    with pytest.raises(ConfigError, match="no build 99"):
        store.build(99)


WRITER = """
import sys
from pathlib import Path
from edgesdk.store import Store
from edgesdk.testing.sample_record import sample_record
record = sample_record(Path(sys.argv[2]))
sys.stdin.readline()
for _ in range(4):
    Store(sys.argv[1]).add_build(record)
"""


def test_two_processes_write_at_once(store: Store, record: BuildRecord, tmp_path: Path) -> None:
    path = tmp_path / "shared" / "results.sqlite"  # neither process finds it made
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(tmp_path / str(index))], stdin=subprocess.PIPE)
        for index in range(2)
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    assert [writer.wait(120) for writer in writers] == [0, 0]
    shared = Store(path, create=False)
    builds = {row["build"] for row in shared.attempts()}
    assert builds == set(range(1, 9))
    assert all(len(shared.attempts(build)) == len(record.candidates) for build in builds)


def test_missing_store_is_not_made_by_readers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no results store"):
        Store(tmp_path / "none" / "results.sqlite", create=False)
    assert not (tmp_path / "none").exists()


def test_path_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGESDK_STORE", raising=False)
    assert Store().path == tmp_path / ".edgesdk" / "results.sqlite"
    monkeypatch.setenv("EDGESDK_STORE", str(tmp_path / "other.sqlite"))
    assert Store().path == tmp_path / "other.sqlite"
    assert Store(tmp_path / "third.sqlite").path == tmp_path / "third.sqlite"


def test_other_versions_and_other_files_are_refused(store: Store, tmp_path: Path) -> None:
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE meta SET value = '2' WHERE key = 'version'")
    with pytest.raises(ConfigError, match="edgesdk.store version 2"):
        Store(store.path)
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE addresses (name)")
    with pytest.raises(ConfigError, match="not a results store"):
        Store(foreign)
    text = tmp_path / "notes.txt"
    text.write_text("not a database" * 100)
    with pytest.raises(ConfigError, match="not usable as a results store"):
        Store(text)
    assert text.read_text() == "not a database" * 100
    with pytest.raises(ConfigError, match="not usable as a results store"):
        Store(text / "results.sqlite")


def test_samples_that_changed_or_lead_elsewhere_are_refused(store: Store, record: BuildRecord, tmp_path: Path) -> None:
    candidate = record.candidates[0]
    assert candidate.measurement is not None
    raw = tmp_path / "raw" / candidate.figure("rounds", 0, "samples")
    raw.write_bytes(b"\0" * 1600)
    with pytest.raises(MeasureError, match="sha256 is not that of the measurement"):
        store.add_build(record)
    raw.unlink()
    with pytest.raises(MeasureError, match="No such file"):
        store.add_build(record)
    (tmp_path / "secret").write_text("secret")
    measurement = json.loads(json.dumps(candidate.measurement))
    measurement["rounds"][0] |= {"samples": "../secret", "sha256": sha256_bytes(b"secret")}
    hostile = dataclasses.replace(record, candidates=(dataclasses.replace(candidate, measurement=measurement),))
    with pytest.raises(MeasureError, match="leaves its folder"):
        store.add_build(hostile)
    assert store.attempts() == []


def test_figures_that_are_not_finite_are_refused(store: Store, record: BuildRecord) -> None:
    hostile = dataclasses.replace(record, facts={"temperature": float("nan")})
    with pytest.raises(MeasureError, match="not storable"):
        store.add_build(hostile)
    assert store.attempts() == []


def test_names_in_one_build_are_unique(record: BuildRecord) -> None:
    with pytest.raises(ValueError, match="share a name: digits-fp32-onnx"):
        dataclasses.replace(record, candidates=record.candidates[:1] * 2)


def test_audit_recomputes_figures_from_raw_samples(store: Store, record: BuildRecord) -> None:
    number = store.add_build(record)
    assert store_problems(store) == []
    assert verify_store(store.path) == {"builds": 1, "attempts": len(record.candidates), "samples": 33}
    entry = store.build(number).candidates[0].figure("rounds", 1)
    samples = store.path.parent / entry["samples"]
    samples.write_bytes(samples.read_bytes()[::-1])
    (problem,) = store_problems(store)
    with pytest.raises(VerifyError, match="1 problems:\nbuild 1, digits-fp32-onnx"):
        verify_store(store.path)
    assert problem.startswith("build 1, digits-fp32-onnx:") and "sha256 differs" in problem
    assert [path.name for path in store.path.parent.iterdir() if path.name.startswith(".verify")] == []


def test_audit_finds_a_column_or_figure_that_was_edited(store: Store, record: BuildRecord) -> None:
    store.add_build(record)
    with sqlite3.connect(store.path) as connection:
        connection.execute("DROP TRIGGER attempts_update")
        connection.execute("UPDATE attempts SET p50_ms = p50_ms / 2 WHERE name = 'digits-int8-neon'")
        connection.execute(
            "UPDATE attempts SET document = json_set(document, '$.measurement.latency_ms.p90', 0.01) "
            "WHERE name = 'digits-int8-onnx'"
        )
    problems = store_problems(store)
    assert len(problems) == 3
    assert any("digits-int8-neon: column p50_ms" in problem for problem in problems)
    assert any("digits-int8-onnx: column p90_ms" in problem for problem in problems)
    assert any("digits-int8-onnx: measurement: latency_ms.p90 is 0.01" in problem for problem in problems)


def test_store_imports_no_heavy_module() -> None:
    code = "import sys, edgesdk.store; sys.exit(any(name in sys.modules for name in ('torch', 'onnx', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert edgesdk.store.VERSION == 1
