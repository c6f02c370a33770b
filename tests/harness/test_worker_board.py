"""What the worker sees and sets of its board: on made-up /proc and /sys, and on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.harness import answers
from edgesdk.harness.answer_types import Environment
from edgesdk.harness.pack import pack_worker
from edgesdk.harness.worker import codes, condition, fence, launch, memory, probe, ready, store, timed, tuning
from edgesdk.harness.worker.journal import Journal
from edgesdk.harness.worker.rounds import RoundFailed

MODES = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /sys and /proc, and no commands of boards."""
    for module in (condition, probe, tuning):
        monkeypatch.setattr(module, "SYS", str(tmp_path / "sys"))
    monkeypatch.setattr(condition, "PROC", str(tmp_path / "proc"))
    monkeypatch.setattr(condition, "device_tree", lambda name: None)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path


def put(folder: Path, **files: str) -> None:
    """Small files of /sys; `__` in a name is a slash."""
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def command(folder: Path, name: str, text: str) -> None:
    """A command of the board."""
    (folder / "bin" / name).write_text("#!/bin/sh\n" + text)
    (folder / "bin" / name).chmod(0o755)


@pytest.mark.parametrize(
    ("text", "bits"),
    [("throttled=0x50000\n", 0x50000), ("throttled=0x0", 0), ("VCHI initialization failed", None), ("", None),
     ("throttled=0x", None), ("throttled=0x123456789", None)],
)
def test_throttled_bits(text: str, bits: int | None) -> None:
    """The answer of vcgencmd, and what it prints where it may not ask."""
    assert condition.parse_throttled(text) == bits


NUMBERS = st.integers(0, 10**20).map(str)
LINES = st.one_of(
    st.builds("throttled=0x{}".format, NUMBERS), st.builds("some avg10=0.00 total={}".format, NUMBERS),
    st.builds("pswp{} {}".format, st.sampled_from(["in", "out", ""]), NUMBERS), st.text(max_size=20),
)


@given(st.lists(LINES, max_size=4).map("\n".join))
def test_parsers_of_the_board_survive_junk(text: str) -> None:
    """None, or a number."""
    for found in (condition.parse_throttled(text), condition.parse_pressure(text), condition.parse_swapped(text)):
        assert found is None or found >= 0


def test_watch_sees_deltas_and_extremes(system: Path) -> None:
    """Counters as differences, live throttle bits as their union, clocks against the locked one."""
    cpu, zone = system / "sys/devices/system/cpu", system / "sys/class/thermal/thermal_zone0"
    put(system / "proc", pressure__cpu="some avg10=0.00 total=100\nfull total=9\n", vmstat="pswpin 5\npswpout 5\n")
    put(zone, temp="45000", trip_point_0_type="passive", trip_point_0_temp="70000")
    put(system / "sys/class/hwmon/hwmon3", name="soctherm_oc", oc1_event_cnt="0", oc2_event_cnt="4", oc3_event_cnt="9")
    put(cpu, cpu2__cpufreq__scaling_governor="performance", cpu2__cpufreq__scaling_max_freq="1000000")
    put(cpu, cpu2__cpufreq__scaling_cur_freq="1000000", cpu0__thermal_throttle__core_throttle_count="7")
    command(system, "vcgencmd", "echo throttled=0x50000\n")
    watch = condition.Watch([2])
    command(system, "vcgencmd", "echo throttled=0x50002\n")
    put(zone, temp="66000")
    put(cpu, cpu2__cpufreq__scaling_cur_freq="900000")
    watch.tick()
    command(system, "vcgencmd", "echo throttled=0xd0000\n")
    put(system / "proc", vmstat="pswpin 6\npswpout 7\n")
    put(system / "sys/class/hwmon/hwmon3", oc2_event_cnt="5", oc3_event_cnt="99")
    put(cpu, cpu0__thermal_throttle__core_throttle_count="8")
    seen = watch.end()
    assert (seen["throttled_before"], seen["throttled_now"], seen["throttled_new"]) == (0x50000, 2, 0x80002)
    assert (seen["temperature_start_c"], seen["temperature_end_c"], seen["temperature_limit_c"]) == (45, 66, 70)
    assert (seen["frequency_samples"], seen["frequency_below"], seen["frequency_locked_khz"]) == (3, 2, 1000000)
    assert (seen["swapped_pages"], seen["throttle_count"], seen["overcurrent"]) == (3, 1, [0, 1, 90])
    assert seen["psi_cpu"] == 0 and seen["psi_io"] is None and len(seen["trace"]) == 3
    assert set(codes.environment_codes(seen)) == {
        "E_SWAP", "E_THROTTLED", "E_OVERCURRENT", "E_FREQ_DRIFT", "E_TEMP_RISE",
    }
    assert set(seen) <= set(Environment.model_fields)
    assert Environment.model_validate_json(json.dumps(seen)).throttled_new == 0x80002


def test_sticky_bits_of_before_are_not_of_this_round(system: Path) -> None:
    """0x50000 before and after: throttled once, not now."""
    command(system, "vcgencmd", "echo throttled=0x50000\n")
    seen = condition.Watch([]).end()
    assert (seen["throttled_now"], seen["throttled_new"]) == (0, 0)
    assert codes.environment_codes(seen) == []


def test_watch_without_any_sensor(system: Path) -> None:
    """Nothing there: nothing seen, no code."""
    seen = condition.Watch([0]).end()
    assert codes.environment_codes(seen) == [] and seen["overcurrent"] is None and seen["throttled_now"] is None


@pytest.mark.parametrize(
    ("model", "limit"),
    [("Raspberry Pi 5 Model B Rev 1.0", 80.0), ("Raspberry Pi 3 Model B Plus Rev 1.3", 60.0), ("Jetson", None)],
)
def test_temperature_limit_by_model(
    system: Path, monkeypatch: pytest.MonkeyPatch, model: str, limit: float | None
) -> None:
    """The soft limit of the firmware."""
    monkeypatch.setattr(condition, "device_tree", lambda name: model)
    assert condition.temperature_limit() == limit


@pytest.mark.parametrize(
    ("cores", "fastest", "threads", "chosen"),
    [
        ({0, 1}, {}, 1, []), ({0, 1, 2, 3}, {}, 1, [3]), ({0, 1, 2, 3}, {}, 2, [2, 3]),
        ({0, 1, 2, 3}, {}, 9, [1, 2, 3]),
        ({0, 1, 2, 3, 4, 5}, {4: 1800, 5: 1800, 1: 1400, 2: 1400, 3: 1400}, 2, [4, 5]),
    ],
)
def test_cores_for_the_work(
    system: Path, monkeypatch: pytest.MonkeyPatch, cores: set[int], fastest: dict[int, int], threads: int,
    chosen: list[int],
) -> None:
    """Not core 0 from four cores on, and the fast ones of big.LITTLE."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores)
    for core, clock in fastest.items():
        put(system / f"sys/devices/system/cpu/cpu{core}/cpufreq", cpuinfo_max_freq=str(clock))
    assert probe.work_cores(threads) == chosen


def test_probe_is_the_same_work_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that ticks a nanosecond for each turn, every probe takes what the first one was set to take."""
    monkeypatch.setattr(probe.Probe, "_loop", lambda self: self.turns)
    found = probe.Probe(0.2, [])
    assert found.nanoseconds() == found.nanoseconds() == 200_000_000
    assert probe.Probe(0, []).nanoseconds() is None


def test_memory_of_this_process() -> None:
    """The kernel's names; the peak is at least what is resident."""
    found = memory.memory_numbers()
    assert found["peak_rss"] is not None and found["anon"] is not None and found["pss"] is not None
    assert found["peak_rss"] >= found["anon"] > 1 << 20
    assert set(found) | {"arena"} == set(answers.Memory.model_fields)
    assert found["nvmap"] is None


def test_fence_of_epochs(tmp_path: Path) -> None:
    """Newer leases come in, older ones do not; a held board is busy; codes are those of the shell's fence."""
    state = str(tmp_path)
    assert fence.check(state, 5)[0] == 0 and fence.largest_epoch(state) == 5
    assert fence.check(state, 4)[0] == fence.STALE == 75
    assert fence.check(state, None)[0] == 75
    assert fence.check(state, 5)[0] == 0
    lock = fence.take_lock(state)
    assert lock is not None and fence.take_lock(state) is None
    assert fence.check(state, 6)[0] == fence.BUSY == 73
    assert fence.largest_epoch(state) == 5
    os.close(lock)
    (tmp_path / "epoch").write_text("junk")
    assert fence.largest_epoch(state) == 0 and fence.check(state, 7)[0] == 0


def test_fence_command_exits_with_its_code(tmp_path: Path) -> None:
    """73 and 75 reach whoever runs the worker."""
    (tmp_path / "worker.pyz").write_bytes(pack_worker())
    argv = [sys.executable, str(tmp_path / "worker.pyz"), "fence", "--state", str(tmp_path / "state"), "--epoch"]
    codes_found = [subprocess.run([*argv, epoch], capture_output=True, check=False).returncode for epoch in ("9", "8")]
    assert codes_found == [0, 75]


def test_launch_without_linger_is_setsid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known before anything is started, and logged; a unit that systemd refuses falls back too."""
    monkeypatch.setattr(launch, "_as_session", lambda folder, run: run(0))
    said: list[str] = []
    for linger in (None, False):
        monkeypatch.setattr(launch, "has_linger", lambda linger=linger: linger)
        launch.launch("state", str(tmp_path), "a" * 64, False, lambda words, ready: said.append(words))
    monkeypatch.setattr(launch, "has_linger", lambda: True)
    (tmp_path / "systemd-run").write_text("#!/bin/sh\necho Failed to connect to bus >&2\nexit 1\n")
    (tmp_path / "systemd-run").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    launch.launch("state", str(tmp_path), "a" * 64, False, lambda words, ready: said.append(words))
    assert said == [
        "setsid: no systemd", "setsid: no linger for this user",
        "setsid: systemd-run --user failed: Failed to connect to bus",
    ]
    assert (tmp_path / "log").read_text().splitlines() == [f"launch: {words}" for words in said]


def test_launch_as_a_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unit runs the worker's command `work`, under a name of its own; nothing is forked here."""
    monkeypatch.setattr(launch, "has_linger", lambda: True)
    (tmp_path / "systemd-run").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/argv\n')
    (tmp_path / "systemd-run").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    words = launch.launch("state", str(tmp_path), "ab" * 32, True, lambda words, ready: pytest.fail("forked"))
    argv = (tmp_path / "argv").read_text().splitlines()
    assert words == "systemd-run --user" and f"--unit=edgesdk-{('ab' * 32)[:16]}" in argv
    assert argv[-6:] == ["work", "--state", "state", "--job", "ab" * 32, "--resume"]


def test_journal_keeps_what_is_whole(tmp_path: Path) -> None:
    """Steps, records and starts come back; a raw file that a power cut took is measured again."""
    for name in ("c0-round0.bin", "c0-round1.bin", "c0-evaluation.bin"):
        (tmp_path / name).write_bytes(name.encode())

    def entry(name: str, **values: Any) -> dict[str, Any]:
        return {"file": name, "sha256": store.sha256_file(str(tmp_path / name)), **values}

    record = {
        "rounds": [entry("c0-round0.bin", index=0), entry("c0-round1.bin", index=1)], "rejected": [],
        "evaluation": entry("c0-evaluation.bin"), "raw": ["c0-evaluation.bin", "c0-round0.bin", "c0-round1.bin"],
    }
    first = Journal(str(tmp_path))
    assert first.begin() == 0
    for step in ("c0-golden", "c0-evaluate", "c0-round0", "c0-round1"):
        first.finish(step, [record], [0.5])
    whole = Journal(str(tmp_path))
    assert whole.load() and whole.values == first.values
    (tmp_path / "c0-round1.bin").write_bytes(b"")
    (tmp_path / "c0-evaluation.bin").unlink()
    second = Journal(str(tmp_path))
    assert second.load() and second.begin() == 1
    assert second.values["done"] == ["c0-golden", "c0-round0"] and second.values["speeds"] == [0.5]
    (kept,) = second.values["records"]
    assert [found["index"] for found in kept["rounds"]] == [0]
    assert kept["evaluation"] is None and kept["raw"] == ["c0-round0.bin"]
    for junk in ("", "[]", "{}", '{"records": 1}'):
        (tmp_path / "journal.json").write_text(junk)
        assert not Journal(str(tmp_path)).load()


def test_clocks_are_set_and_restored(system: Path) -> None:
    """Governor, power mode by name, jetson_clocks; what was set before is on the disk while they are changed."""
    policy = system / "sys/devices/system/cpu/cpufreq/policy0"
    put(policy, scaling_governor="schedutil\n", scaling_available_governors="performance schedutil\n")
    command(system, "jetson_clocks", f'echo "$@" >> {system}/clocks\n')
    mode = system / "mode"
    mode.write_text("15W")
    command(system, "nvpmodel", f"""case "$1" in
-q) printf 'NV Power Mode: %s\\n0\\n' "$(cat {mode})" ;;
-p) cat <<'END'
{MODES}END
;;
-m) [ "$2" = 2 ] && printf MAXN_SUPER > {mode}; [ "$2" = 0 ] && printf 15W > {mode}; exit 0 ;;
esac
""")
    if os.geteuid() != 0:
        command(system, "sudo", 'shift 2; exec "$@"\n')
    (system / "state").mkdir()
    clocks = tuning.Tuning(str(system / "state"), "a" * 64)
    clocks.apply("MAXN_SUPER")
    assert (policy / "scaling_governor").read_text() == "performance"
    assert mode.read_text() == "MAXN_SUPER" and tuning.power_mode() == "MAXN_SUPER" and clocks.notes == []
    saved = json.loads((system / "state/restore.json").read_bytes())
    assert saved["governors"] == {str(policy / "scaling_governor"): "schedutil"} and saved["power_mode"] == "15W"
    # The board lost its power: the next job finds the file, and sets back first.
    tuning.Tuning(str(system / "state"), "b" * 64).restore()
    assert (policy / "scaling_governor").read_text() == "schedutil" and mode.read_text() == "15W"
    assert not (system / "state/restore.json").exists()
    words = [line.split()[:1] for line in (system / "clocks").read_text().splitlines()]
    assert words == [["--store"], [], ["--restore"]]


def test_restoring_touches_only_governors(system: Path) -> None:
    """A file that names other paths, or is junk, writes nothing there."""
    put(system / "sys/devices/system/cpu/cpufreq/policy0", scaling_governor="powersave")
    (system / "victim").write_text("before")
    saved = {"job": "x", "governors": {str(system / "victim"): "after"}, "clocks": None, "power_mode": None}
    (system / "restore.json").write_text(json.dumps(saved))
    tuning.Tuning(str(system), "x").restore()
    assert (system / "victim").read_text() == "before"
    for junk in ("", "[]", '{"governors": 3}'):
        (system / "restore.json").write_text(junk)
        tuning.Tuning(str(system), "x").restore()


def test_checks_before_a_job(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fault has its code; a board without faults has none."""
    state = str(system)
    assert ready.check_disk(state, 0) == [] and not (system / "write-test").exists()
    assert ready.check_disk(state, 1 << 60)[0]["code"] == "E_DISK_FULL"
    assert ready.memory_fault(130, 100) == [] and ready.memory_fault(129, 100)[0]["code"] == "E_MEMORY"
    assert ready.check_throttle() == [] and ready.check_cool() == []
    command(system, "vcgencmd", "echo throttled=0x50004\n")
    assert ready.check_throttle()[0]["code"] == "E_THROTTLED"
    command(system, "vcgencmd", "echo throttled=0x50005\n")
    assert ready.check_throttle()[0]["code"] == "E_UNDERVOLT"
    put(system / "sys/class/thermal/thermal_zone0", temp="50100")
    (fault,) = ready.check_cool()
    assert fault == {"code": "E_TOO_HOT", "text": "50.1 °C before the first round, at most 50 °C"}
    assert ready.check_idle(0) == []


def test_judges_of_a_board() -> None:
    """Each bound from both sides, and its words; what is not known is no fault."""
    most = 2 * 100 + ready.SPARE_BYTES
    assert ready.disk_fault(most, 100, "x") == ready.load_fault(0.8, 4) == ready.heat_fault(50.0) == []
    assert ready.disk_fault(most - 1, 100, "x") == [
        {"code": "E_DISK_FULL", "text": "200 MiB free in x, needed 200 MiB"}
    ]
    assert ready.load_fault(0.81, 4) == [{"code": "E_BACKGROUND_LOAD", "text": "load average 0.81"}]
    assert ready.throttle_fault(0xF0000) == []
    assert ready.throttle_fault(0x50004) == [{"code": "E_THROTTLED", "text": "throttled now (throttled=0x4)"}]
    unknown = [ready.disk_fault(None, 1, "x"), ready.memory_fault(None, 1), ready.throttle_fault(None),
               ready.heat_fault(None), ready.load_fault(None, 4), ready.load_fault(9.0, None)]
    assert unknown == [[]] * 6


def test_waiting_for_a_board_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as a check finds nothing, or when the time is over, with what it found last."""
    monkeypatch.setattr(ready, "POLL_SECONDS", 0.001)
    found = [[{"code": "E_X", "text": "x"}], [{"code": "E_X", "text": "y"}], []]
    assert ready.wait_until(lambda: found.pop(0), 60, lambda: None) == [] and found == []
    assert ready.wait_until(lambda: [{"code": "E_X", "text": "z"}], 0.01, lambda: None)[0]["text"] == "z"


def attempts(*found: list[str]) -> tuple[int, int, int]:
    """(attempt that counts, how many were rejected, how often the board cooled down) for the codes of attempts."""
    cooled = []
    last, rejected = timed.with_repeats(
        lambda attempt: {"attempt": attempt}, lambda record, attempt: found[attempt], lambda: cooled.append(1), True
    )
    return last["attempt"], len(rejected), len(cooled)


def test_rounds_are_repeated_by_code() -> None:
    """Noise twice, drift once, heat after cooling down; what is good, or is never repeated, is taken."""
    assert attempts([]) == attempts(["E_BIMODAL"]) == (0, 0, 0)
    assert attempts(["E_NOISY"], []) == (1, 1, 0)
    assert attempts(["E_NOISY"], ["E_NOISY"], ["E_NOISY"]) == (2, 2, 0)
    assert attempts(["E_DRIFT"], ["E_DRIFT"]) == (1, 1, 0)
    assert attempts(["E_THROTTLED"], ["E_TEMP_RISE"], []) == (2, 2, 2)
    lenient = timed.with_repeats(lambda attempt: {}, lambda record, attempt: ["E_NOISY"], lambda: None, False)
    assert lenient == ({}, [])


def test_a_deadline_is_tried_once_more() -> None:
    """And a crash is not."""
    tries: list[int] = []

    def fails(code: str) -> Any:
        def once(attempt: int) -> dict[str, Any]:
            tries.append(attempt)
            raise RoundFailed(code, "no end")

        return once

    for code, expected in (("E_TIMEOUT", [0, 1]), ("E_CRASH", [0])):
        tries.clear()
        with pytest.raises(RoundFailed):
            timed.with_repeats(fails(code), lambda record, attempt: [], lambda: None, True)
        assert tries == expected


def test_files_are_evicted_where_they_can_be(tmp_path: Path) -> None:
    """True for files, False for what is not there."""
    (tmp_path / "model").write_bytes(b"x")
    assert timed.evict([str(tmp_path / "model")])
    assert not timed.evict([str(tmp_path / "gone")])


def test_the_worker_has_all_its_files() -> None:
    """New modules travel with the worker."""
    import io

    names = zipfile.ZipFile(io.BytesIO(pack_worker())).namelist()
    for name in ("codes", "condition", "fence", "journal", "launch", "probe", "ready", "timed", "tuning"):
        assert f"edgesdk/harness/worker/{name}.py" in names
