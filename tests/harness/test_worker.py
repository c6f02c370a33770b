"""The worker's parts: language level, parsers against junk, comparison, packing."""

from __future__ import annotations

import ast
import io
import json
import math
import os
import struct
import zipfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from harness_python36 import newer_than_3_6
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk.harness.pack import pack_worker
from edgesdk.harness.protocol import PROFILES, interval
from edgesdk.harness.worker import blocks, child, count, facts, result, rounds, steps, store, timing

FOLDER = files("edgesdk.harness.worker")
SOURCES = {entry.name: entry.read_text() for entry in FOLDER.iterdir() if entry.name.endswith(".py")}
ROUND = {
    "format": "edgesdk.round", "version": 1, "count": 5, "batch": 1, "p50_ns": 9, "cold_load_ns": 1,
    "first_inference_ns": 2, "warmup": {}, "steady": True, "peak_rss_bytes": 4096, "cpu_ns": 3,
}
TENSORS = [{"dtype": "float32", "shape": [1, 2]}]


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_runs_on_python_3_6(name: str) -> None:
    """No syntax, no evaluated annotation and no call that Python 3.6 does not have."""
    assert newer_than_3_6(SOURCES[name]) == []


@pytest.mark.parametrize(
    "line",
    [
        "from collections.abc import Callable\nProgress = Callable[[str, int, int], None]",
        "import collections\ncount = collections.Counter[str]()",
        "from typing import Any\nwords = dict[str, Any]()",
        "def f(x: list[int]) -> None: pass",
        "def f(x) -> int | None: pass",
        "x: list[int] = []",
        "from __future__ import annotations",
        "if (n := 3) > 2: pass",
        "def f(a, /): pass",
        'print(f"{x=}")',
        "x = {} | {}",
        "x |= {1: 2}",
        "match x:\n  case 1: pass",
        "with (open(a) as b, open(c) as d): pass",
        "try: pass\nexcept* ValueError: pass",
        "'abc'.removeprefix('a')",
        "'abc'.removesuffix('c')",
        "'abc'.isascii()",
        "import subprocess\nsubprocess.run(['a'], capture_output=True)",
        "import subprocess\nsubprocess.Popen(['a'], text=True)",
        "zip(a, b, strict=True)",
        "import time\ntime.monotonic_ns()",
        "import math\nmath.prod([1])",
        "import shlex\nshlex.join(['a'])",
        "from dataclasses import dataclass",
        "import importlib.metadata",
        "import shutil\nshutil.copytree(a, b, dirs_exist_ok=True)",
        "def f():\n  return 1, *rest",
        "breakpoint()",
    ],
)
def test_newer_python_is_found(line: str) -> None:
    """The check itself sees what it is there for."""
    assert newer_than_3_6(line)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_imports_only_itself_and_the_standard_library(name: str) -> None:
    """Nothing of EdgeSDK but the worker; numpy and the runtimes only inside functions of the runner."""
    tree = ast.parse(SOURCES[name])
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        for module in names:
            ours = module.startswith("edgesdk.harness.worker")
            assert ours or module.split(".")[0] in _standard_library(), f"{name} imports {module}"
    inner = {
        str(getattr(node, "module", "") or node.names[0].name)  # type: ignore[attr-defined]
        for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) and node not in tree.body
    }
    assert not inner or name in ("runner.py", "runtimes.py"), f"{name} imports {inner} inside functions"


def test_pack_is_deterministic_and_complete() -> None:
    """Equal sources, equal bytes; all modules are there; nothing else is."""
    first = pack_worker()
    pack_worker.cache_clear()
    assert pack_worker() == first
    names = set(zipfile.ZipFile(io.BytesIO(first)).namelist())
    expected = {f"edgesdk/harness/worker/{name}" for name in SOURCES}
    assert names == expected | {"__main__.py", "edgesdk/__init__.py", "edgesdk/harness/__init__.py"}


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
@settings(max_examples=200, deadline=None)
def test_parsers_survive_junk(text: str) -> None:
    """Junk gives empty facts or a ValueError, nothing else."""
    assert set(facts.parse_cpuinfo(text)) == {"model", "part", "features", "serial"}
    assert all(isinstance(value, int) for value in facts.parse_meminfo(text).values())
    assert all("total" in counts for counts in count.parse_counts(text))
    try:
        rounds.parse_round(text.encode("utf-8", "replace"))
    except ValueError:
        pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5,
)


@given(st.sampled_from(sorted(ROUND)), JSON)
@settings(max_examples=200, deadline=None)
def test_round_with_a_wrong_value(key: str, value: Any) -> None:
    """A round is accepted only with whole numbers where they belong."""
    try:
        found = rounds.parse_round(json.dumps({**ROUND, key: value}).encode())
    except ValueError:
        return
    assert all(type(found[name]) is int and found[name] >= 0 for name in rounds.ROUND_INTEGERS)
    assert found["count"] >= 1 and found["batch"] >= 1 and type(found["steady"]) is bool


@given(st.lists(JSON, max_size=4))
@settings(max_examples=100, deadline=None)
def test_counts_between_junk(junk: list[Any]) -> None:
    """Only end markers with whole counts are inferences."""
    lines = [json.dumps(entry) for entry in junk]
    lines += ['{"edgecount":"mark","tag":1,"total":9}', '{"edgecount":"mark","tag":2,"total":7,"dot":3,"x":"y"}']
    lines += ['{"edgecount":"exit","tag":0,"total":99}', '{"edgecount":"mark","tag":2,"tot']
    assert count.parse_counts("\n".join(lines)) == [{"total": 7, "dot": 3}]


def test_round_json_may_follow_noise() -> None:
    """A runtime that prints banners does not hide the round."""
    assert rounds.parse_round(b"banner\n{}\n" + json.dumps(ROUND).encode() + b"\nbye\n")["p50_ns"] == 9


def test_cpuinfo_of_arm_and_x86() -> None:
    """Features are found under both names."""
    arm = "processor : 0\nFeatures : fp asimd asimddp\nCPU part : 0xd0b\n\nSerial : 1000abc\nModel : Raspberry Pi 5\n"
    assert facts.parse_cpuinfo(arm)["features"] == ["asimd", "asimddp", "fp"]
    assert facts.parse_cpuinfo(arm)["serial"] == "1000abc"
    assert facts.parse_cpuinfo("model name : Xeon\nflags : avx2 fma\n")["model"] == "Xeon"


def _floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


@pytest.mark.parametrize(
    ("kind", "limit", "actual", "passed", "value"),
    [
        ("max_abs", 0.5, (1.0, 2.5), True, 0.5),
        ("max_abs", 0.4, (1.0, 2.5), False, 0.5),
        ("sqnr_db", 10.0, (1.0, 2.5), True, 10 * math.log10(5 / 0.25)),
        ("sqnr_db", 14.0, (1.0, 2.5), False, 10 * math.log10(5 / 0.25)),
        ("sqnr_db", 30.0, (1.0, 2.0), True, 200.0),
        ("max_abs", 0.5, (1.0, math.nan), False, None),
        ("sqnr_db", 10.0, (math.inf, 2.0), False, None),
        ("other", 1.0, (1.0, 2.0), False, None),
    ],
)
def test_golden_comparison(kind: str, limit: float, actual: Any, passed: bool, value: float | None) -> None:
    """Tolerances by hand-computed values; NaN never passes."""
    verdict = blocks.compare(kind, limit, _floats(1, 2), _floats(*actual), TENSORS, 1)
    assert verdict["passed"] is passed
    assert verdict["value"] == (None if value is None else pytest.approx(value))
    assert bool(verdict["reason"]) is not passed


def test_golden_comparison_of_the_wrong_size() -> None:
    """Half an output does not pass."""
    assert not blocks.compare("max_abs", 1, _floats(1, 2), _floats(1), TENSORS, 1)["passed"]


def test_take_rows_cuts_every_block() -> None:
    """Rows of several tensors stay together."""
    tensors = [{"dtype": "float32", "shape": [1, 2]}, {"dtype": "int64", "shape": [1, 1]}]
    data = _floats(0, 1, 2, 3, 4, 5) + struct.pack("<3q", 7, 8, 9)
    assert blocks.take_rows(data, tensors, 3, [2, 0]) == _floats(4, 5, 0, 1) + struct.pack("<2q", 9, 7)
    with pytest.raises(ValueError, match="expected"):
        blocks.take_rows(data[:-1], tensors, 3, [0])


@pytest.mark.parametrize("path", ["../x", "a/../b", "/etc/passwd", "", "a//b", ".ssh/x", "a\\b", "a\0b", "-x", "a b"])
def test_paths_of_artifacts_stay_inside(path: str) -> None:
    """The worker refuses paths that could leave the artifact's folder."""
    with pytest.raises(ValueError, match="illegal path"):
        store.safe_parts(path)


EXITED, SIGNALLED = st.integers(0, 255).map(lambda code: code << 8), st.integers(1, 64)


@given(EXITED | SIGNALLED, st.sampled_from(["", "; vmstat: 1"]), st.text(max_size=30))
@settings(deadline=None)
def test_every_wait_status_has_words(status: int, oom: str, stderr: str) -> None:
    """A child that did not succeed has a code and a reason, always."""
    code, reason = child.describe_status(status, oom, stderr)
    assert (code == "") == (status == 0)
    assert bool(reason) == bool(code)


def test_timed_round_with_a_known_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that ticks 0.3 ms per inference: batches of 4 and a median of 0.3 ms."""
    now = [0]

    def infer(row: int) -> None:
        now[0] += 300_000

    monkeypatch.setattr(timing, "now_ns", lambda: now[0])
    result = timing.timed_round(infer, [0, 1, 2], timing.Options(10, 0.0, 1.0, 0.01, 5, 10))
    assert (result["batch"], result["p50_ns"], result["steady"]) == (4, 300_000, True)
    assert list(result["samples"]) == [1_200_000] * result["count"]
    assert result["warmup"]["iterations"] == 20
    assert result["count"] == 9  # the first number of samples that fills 10 ms


def test_warm_up_has_a_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that never becomes steady is timed all the same, and marked."""
    now, calls = [0], [0]

    def infer(row: int) -> None:
        calls[0] += 1
        now[0] += 1_000_000 * (1 + calls[0] // 10)

    monkeypatch.setattr(timing, "now_ns", lambda: now[0])
    result = timing.timed_round(infer, [0], timing.Options(2, 0.0, 0.5, 0.01, 2, 10))
    assert result["steady"] is False


def test_order_is_seeded() -> None:
    """Equal seeds, equal orders; every input takes part."""
    assert timing.seeded_order(32, 1) == timing.seeded_order(32, 1) != timing.seeded_order(32, 2)
    assert sorted(timing.seeded_order(32, 1)) == list(range(32))


def test_both_workers_take_these_rows_in_this_order() -> None:
    """Golden rows evenly spread; more counted inputs where they differ; every candidate once in every round."""
    assert steps.golden_rows(32, 8) == list(range(0, 32, 4)) and steps.golden_rows(7, 2) == [0, 3]
    assert steps.golden_rows(3, 8) == [0, 1, 2] and steps.golden_rows(0, 8) == []
    order = timing.seeded_order(32, 5)
    assert rounds.counted_rows(32, "constant", 5) == order[:4] and rounds.counted_rows(32, "per_input", 5) == order[:8]
    found = [timing.round_order([2, 5, 7, 9], 1, number) for number in range(20)]
    assert found == [timing.round_order([2, 5, 7, 9], 1, number) for number in range(20)]
    assert all(sorted(order) == [2, 5, 7, 9] for order in found) and len({tuple(order) for order in found}) > 5


@pytest.mark.parametrize(
    ("text", "ticks"),
    [("cpu  1 2 4 800 1600 8 16 3200 0 0\ncpu0 9", 31), ("cpu 1 2 4 800 1600 8 16 3200", 31), ("", None),
     ("cpu0 1 2 4 800 1600 8 16 3200", None), ("cpu 1 2 4 800 1600 8 16", None), ("cpu 1 2 4 800 1600 8 16 x", None),
     (f"cpu 1 2 4 800 1600 8 16 {'9' * 19}", None)],
)
def test_busy_ticks(text: str, ticks: int | None) -> None:
    """User, nice, system and interrupts: neither idle nor waiting nor stolen."""
    assert rounds.parse_busy(text) == ticks


def test_steadiness_is_by_the_given_percent() -> None:
    """3 % of change: steady at 5 %, not at 2 %."""
    durations = [1000] * 10 + [1030] * 10
    assert timing.is_steady(durations, 10) and timing.is_steady(durations, 10, 3.1)
    assert not timing.is_steady(durations, 10, 3.0) and not timing.is_steady(durations, 10, 2.0)


def test_t_quantiles_are_those_of_scipy() -> None:
    """The table on the board, to its three digits."""
    from scipy import stats

    expected = [round(float(stats.t.ppf(0.975, freedom)), 3) for freedom in range(1, len(timing.T_QUANTILES) + 1)]
    assert list(timing.T_QUANTILES) == expected
    most = max(profile.rounds + profile.extra_rounds for profile in PROFILES.values())
    assert len(timing.T_QUANTILES) >= most - 1


@given(st.lists(st.integers(900_000, 1_100_000), min_size=2, max_size=20), st.sampled_from([0.01, 0.02, 0.05]))
@settings(max_examples=200, deadline=None)
def test_board_and_host_agree_on_what_is_wide(medians: list[int], limit: float) -> None:
    """The question that asks for more rounds is the one that gives the label (but for the table's three digits)."""
    center, low, high = interval([float(value) for value in medians])
    excess = (high - low) / (2 * limit * center)
    if abs(excess - 1) > 1e-3:
        assert timing.is_wide(medians, limit) == (excess > 1)
    assert timing.is_wide(medians[:1], limit)


def test_round_keeps_only_what_is_known() -> None:
    """Junk beside the known keys, not even JSON, does not travel on."""
    line = json.dumps({**ROUND, "x": 1, "warmup": {"iterations": 3, "seconds": 1.5, "y": [1]}})[:-1] + ', "z": NaN}'
    found = rounds.parse_round(line.encode())
    assert found["warmup"] == {"iterations": 3, "seconds": 1.5}
    assert set(found) == {
        *rounds.ROUND_INTEGERS, *rounds.LOADING, "steady", "peak_rss_bytes", "cpu_ns", "warmup", "window_start_ns",
        "window_end_ns",
        "major_faults", "memory", "warm_load_ns",
    }
    odd = {**ROUND, "memory": {"anon": 5, "pss": -1, "x": 1}, "warm_load_ns": [1, "2"], "major_faults": 0.5}
    found = rounds.parse_round(json.dumps(odd).encode())
    assert (found["memory"], found["warm_load_ns"], found["major_faults"]) == ({"anon": 5}, [], None)
    assert rounds.parse_round(json.dumps({**ROUND, "warm_load_ns": [1, 2]}).encode())["warm_load_ns"] == [1, 2]
    assert rounds.parse_round(json.dumps({**ROUND, "warmup": "no"}).encode())["warmup"] is None


def _standard_library() -> frozenset[str]:
    import sys

    return sys.stdlib_module_names


def test_results_of_a_board_whose_clock_stands_at_1970(tmp_path: Path) -> None:
    """Zip knows no time before 1980: the entries carry none."""
    (tmp_path / "c0-round0.bin").write_bytes(b"samples")
    os.utime(tmp_path / "c0-round0.bin", (3600, 3600))
    ended = result.write_result(str(tmp_path), str(tmp_path), {"format": "x"}, ["c0-round0.bin"])
    with zipfile.ZipFile(tmp_path / "result.zip") as archive:
        assert archive.read("c0-round0.bin") == b"samples"
        assert json.loads(archive.read("result.json")) == {"format": "x"}
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert ended["sha256"] == store.sha256_file(str(tmp_path / "result.zip"))
