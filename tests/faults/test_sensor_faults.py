"""Faults 22 to 28: power sensors and throttle state that are missing, lie, break off or wrap. Latency always stands."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from harness_artifacts import runner_artifact
from harness_power import PMIC, command, files, header, idle, ina3221, log_lines, window, windowed_runner

from edgesdk.harness.board import Board
from edgesdk.harness.energy import plan
from edgesdk.harness.energy.figure import energy_figure
from edgesdk.harness.energy.log import read_log
from edgesdk.harness.energy.plugs import Plug
from edgesdk.harness.measure import load_profile, measure, verify_measurement
from edgesdk.harness.worker import rails, sampler, sensors
from edgesdk.targets.target import Target

QUICK = load_profile("quick")


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /sys; commands that a test puts into `bin` come before the machine's."""
    root = tmp_path / "sys"
    root.mkdir()
    monkeypatch.setenv("EDGESDK_SYSFS", str(root))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return root


def measured(host: Board, target: Target, folder: Path) -> dict[str, Any]:
    """One artifact's measurement, verified; its latency must stand."""
    artifact = runner_artifact(folder / "artifact", windowed_runner())
    (document,) = measure(
        host, target, [artifact], evaluation=None, profile=QUICK, seed=1, workdir=folder / "work"
    )
    verify_measurement(folder / "work" / document["artifact"])
    assert document["valid"], document["reasons"]
    assert document["latency_ms"]["p50"] is not None
    return document


def sampled(path: Path, stretch: Any = lambda: time.sleep(0.2)) -> list[Any]:
    """Segments that the sampler's process wrote while `stretch` ran."""
    running = sampler.Sampler(str(path))
    assert running.start() == ""
    stretch()
    running.stop()
    return read_log(path.read_bytes(), "log").segments


def steady(*, period_s: float = 0.1, **changes: Any) -> list[Any]:
    """A run at 4 W: header, samples of 60 s, one window from 10 to 40 s, idle around it."""
    samples = [[int(n * period_s * 1e9), 4_000_000, 0] for n in range(int(60 / period_s))]
    head = header(period_ns=int(period_s * 1e9), **changes)
    return [head, *samples, window(0, 10, 40), idle("before", 1, 9), idle("after", 41, 55)]


def test_fault_22_throttling_of_before_is_accepted_and_noted(
    host: Board, target: Target, sysfs: Path, tmp_path: Path
) -> None:
    """0x50000 at the start and at the end: sticky since boot, not this round's; the facts keep it."""
    command(tmp_path / "bin", "vcgencmd", '[ "$1" = get_throttled ] && echo throttled=0x50000')
    document = measured(host, target, tmp_path)
    assert document["facts"]["throttled"] == 0x50000
    assert document["facts"]["after"]["throttled"] == 0x50000
    codes = {code for entry in document["rounds"] for code in entry["codes"]}
    assert not codes & {"E_THROTTLED", "E_UNDERVOLT"} and "throttled" not in document["latency_ms"]["labels"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (None, "vcgencmd is not installed"),
        ("echo 'VCHI initialization failed'; exit 255", "group `video`"),
        ("echo \"Can't open device file: /dev/vcio\"; exit 1", "group `video`"),
    ],
)
def test_fault_23_vcgencmd_is_missing_or_may_not_be_used(
    host: Board, target: Target, sysfs: Path, tmp_path: Path, script: str | None, words: str
) -> None:
    """A Raspberry Pi 5 whose PMIC cannot be asked: energy `unmeasured` with what to do, latency valid."""
    files(sysfs, {"firmware/devicetree/base/model": "Raspberry Pi 5 Model B Rev 1.0"})
    if script is not None:
        command(tmp_path / "bin", "vcgencmd", script)
    energy = measured(host, target, tmp_path)["energy_mj"]
    assert energy["value"] is None and energy["provenance"] == "unmeasured"
    assert words in energy["reason"]


def test_fault_24_ina3221_channels_fail_and_change_their_number(sysfs: Path, tmp_path: Path) -> None:
    """A channel that gives an error and one that is not connected are skipped; after a reboot the chip is found under
    another number, by its label."""
    chip = ina3221(sysfs, [("VDD_SOC", 5000, 300), ("NC", 5000, 999), ("VDD_IN", 5000, 1200)], hwmon=3)
    (chip / "in1_input").unlink()
    (chip / "in1_input").mkdir()  # reading it fails, as that of a channel that is off does (EIO)
    (segment,) = sampled(tmp_path / "first")
    assert (segment.rails, segment.total) == (("VDD_IN",), ("VDD_IN",))
    chip.rename(chip.parent / "hwmon7")
    (again,) = sampled(tmp_path / "second")
    assert again.kind == segment.kind and again.rows[0][1:] == [6_000_000]

    def fails() -> None:
        (chip.parent / "hwmon7/curr3_input").unlink()
        time.sleep(0.3)

    (broken,) = sampled(tmp_path / "third", fails)
    assert broken.rows[0][1] == 6_000_000 and broken.rows[-1][1] is None


def test_fault_25_pmic_nan_is_ignored_and_zero_kept(sysfs: Path, tmp_path: Path) -> None:
    """nan is no reading, 0 A of a DDR rail is one; a set of rails that changes spoils the window it changes in."""
    text = PMIC.replace("BATT_V volt(25)=0.00000000V", "BATT_V volt(25)=nanV")
    text = text.replace("DDR_VDDQ_A current(4)=0.06666720A", "DDR_VDDQ_A current(4)=0.00000000A")
    answer = tmp_path / "answer"
    answer.write_text(text)
    command(tmp_path / "bin", "vcgencmd", f"exec cat {answer}")

    def changes() -> None:
        answer.write_text(text.replace("HDMI_A current(22)=0.02417580A", "HDMI_A current(22)=nanA"))
        time.sleep(2.5)  # some periods: reading takes its time

    first, second = sampled(tmp_path / "log", changes)
    row = dict(zip(first.rails, first.rows[0][1:], strict=True))
    assert len(first.rails) == 12 and row["DDR_VDDQ"] == 0 and "BATT" not in row
    assert set(first.rails) - set(second.rails) == {"HDMI"}

    run = steady(sensor="pmic", boundary="pmic_rails", total=["VDD_IN", "VDD_SOC"])
    assert energy_figure(log_lines(*run), "nightly", "measured", False)["value"] == pytest.approx(1200)
    head = {**run[0], "rails": ["VDD_IN"], "total": ["VDD_IN"]}
    changed = [*run[:200], head, *([row[0], row[1]] for row in run[200:601]), *run[601:]]
    found = energy_figure(log_lines(*changed), "nightly", "measured", False)
    assert found["value"] is None and found["reason"].startswith("E_SAMPLE_GAP")


def test_fault_26_lines_of_tegrastats_are_cut_and_odd(sysfs: Path, tmp_path: Path) -> None:
    """Half a line, a core that is off, dead sensors, lower-case names, three values: nothing raises, what is not known
    is kept, and the sampler goes on."""
    odd = (
        "RAM 1/2MB (lfb 1x1MB) CPU [1%@102,off] cv0@-256C Tj@51.5C EMC_FREQ bogus VDD_IN 5000mW/4900mW/4950mW "
        "VDD_FUTURE 1kW new@token"
    )
    found = rails.parse_tegrastats(odd)
    assert found is not None
    assert (found["rails"], found["cpu"], found["temps"]) == ({"VDD_IN": 5000}, [(1, 102), None], {"tj": 51.5})
    assert {"VDD_FUTURE", "1kW", "new@token", "bogus"} <= set(found["other"])
    cuts = [rails.parse_tegrastats(odd[:end]) for end in range(len(odd))]
    assert all(cut is None or cut["rails"] in ({}, {"VDD_IN": 5000}) for cut in cuts)
    script = f"while :; do echo '{odd}'; echo '{odd[:40]}'; echo 'VDD_IN 50'; sleep 0.02; done"
    command(tmp_path / "bin", "tegrastats", script)
    (segment,) = sampled(tmp_path / "log", lambda: time.sleep(0.5))
    assert segment.sensor == "tegrastats" and segment.total == ("VDD_IN",)
    assert {row[1] for row in segment.rows} == {5_000_000, None}


@contextmanager
def plug(unplugged: threading.Event) -> Iterator[str]:
    """A Shelly of 4 W on 127.0.0.1 that answers nothing once it is unplugged."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not unplugged.is_set():
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b'{"apower": 4.0}')

        def log_message(self, *_: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_fault_27_the_meter_is_unplugged_in_the_window(
    host: Board, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Energy E_SAMPLE_GAP, latency kept; the samples up to there are stored."""
    monkeypatch.setattr(Plug, "period_s", 0.1)
    monkeypatch.setitem(plan.PLANS, "quick", plan.EnergyPlan(1, 2.0, 0, 2.0, 0.5, 0.02, 0, 1))
    unplugged = threading.Event()
    artifact = runner_artifact(tmp_path / "artifact", windowed_runner())

    def progress(step: str, done: int, total: int) -> None:
        # Idle is over half a second after the energy run began; the window takes two.
        if step.startswith("energy") and not timer.is_alive() and not unplugged.is_set():
            timer.start()

    timer = threading.Timer(2.0, unplugged.set)
    with plug(unplugged) as url:
        board = Board(**{**host.__dict__, "meter": (("kind", "shelly"), ("url", url))})
        (document,) = measure(
            board, target, [artifact], evaluation=None, profile=QUICK, seed=1, workdir=tmp_path / "work",
            progress=progress,
        )
        timer.join()
    energy = document["energy_mj"]
    assert document["valid"] and document["latency_ms"]["p50"] is not None
    assert energy["value"] is None and energy["reason"].startswith("E_SAMPLE_GAP")
    data = (tmp_path / "work" / document["artifact"] / energy["samples"]).read_bytes()
    assert b"4000000" in data
    verify_measurement(tmp_path / "work" / document["artifact"])


def test_fault_28_counters_wrap_or_are_reset(sysfs: Path, tmp_path: Path) -> None:
    """RAPL at its end goes on from 0: the wrap is added. A counter that falls from elsewhere was reset: no energy."""
    limit = 262_143_328_850
    folder = "class/powercap/intel-rapl:0"
    contents: dict[str, object] = {"name": "package-0", "energy_uj": limit - 5, "max_energy_range_uj": limit}
    files(sysfs, {f"{folder}/{name}": value for name, value in contents.items()})

    def wraps() -> None:
        time.sleep(0.15)
        files(sysfs, {f"{folder}/energy_uj": 10})
        time.sleep(0.5)

    (segment,) = sampled(tmp_path / "log", wraps)
    assert segment.unit == "uJ" and segment.ranges == (limit,)
    assert (segment.rows[0][1], segment.rows[-1][1]) == (limit - 5, 10)
    assert sensors.discover()[0] is not None

    def counted(start: int, reset: int | None) -> dict[str, Any]:
        """4 W from a counter that stands at `start` at first, and is set to 0 before sample `reset`."""
        run = steady(
            sensor="rapl", boundary="cpu_package", rails=["package-0"], total=["package-0"], unit="uJ", ranges=[limit]
        )
        for index, row in enumerate(entry for entry in run if isinstance(entry, list)):
            value = start + 400_000 * index
            if reset is not None and index >= reset:
                value = 400_000 * (index - reset)
            row[1:] = [value % (limit + 1)]
        return energy_figure(log_lines(*run), "nightly", "measured", False)

    wrapped = counted(limit - 80_000_000, None)
    assert wrapped["reason"] is None and wrapped["value"] == pytest.approx(1200)
    was_reset = counted(1_000_000, 200)
    assert was_reset["value"] is None and was_reset["reason"].startswith("E_SAMPLE_GAP")
    assert "reset" in was_reset["reason"]
