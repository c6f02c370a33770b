"""Meters that this machine reads: plugs on 127.0.0.1, a serial line on a pseudo-terminal, plug-ins, and clocks."""

from __future__ import annotations

import contextlib
import http.server
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness_power import idle, log_lines, window
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.errors import BoardError, ConfigError
from edgesdk.harness.board import Board
from edgesdk.harness.energy import meters, plugs, recorder
from edgesdk.harness.energy.figure import energy_figure
from edgesdk.harness.energy.plugs import MOST_BYTES, SHELLY, TASMOTA, parse_watts
from edgesdk.harness.energy.serial_meter import SerialMeter, parse_line
from edgesdk.harness.facts import deploy_worker
from edgesdk.harness.session import Session

GEN2 = (
    '{"id":0,"source":"HTTP","output":false,"apower":47.11,"voltage":232.0,"current":0.000,"pf":0.00,'
    '"aenergy":{"total":5.125,"by_minute":[0,0,0],"minute_ts":1675718520},"temperature":{"tC":25.3,"tF":77.5}}'
)
GEN1 = '{"meters":[{"power":12.5,"is_valid":true,"total":4321}],"relays":[]}'
TASMOTA_ANSWER = (
    '{"StatusSNS":{"Time":"2022-12-30T14:24:20","ENERGY":{"TotalStartTime":"x","Total":263.033,"Yesterday":0.091,'
    '"Today":0.166,"Power":4,"ApparentPower":48,"ReactivePower":47,"Factor":0.08,"Voltage":235,"Current":0.202}}}'
)


@contextlib.contextmanager
def served(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """An HTTP server on 127.0.0.1 whose GET is `answer`; gives its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(OSError):
                answer(self)

        def log_message(self, *_: Any) -> None:
            """Silent."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pages(contents: dict[str, str]) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    """Answers by path; 404 for others."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        body = contents.get(request.path)
        request.send_response(200 if body is not None else 404)
        request.end_headers()
        request.wfile.write((body or "").encode())

    return answer


@pytest.mark.parametrize(
    ("kind", "path", "body", "name", "watts"),
    [
        ("shelly", "/rpc/Switch.GetStatus?id=0", GEN2, "shelly-gen2", 47.11),
        ("shelly", "/status", GEN1, "shelly-gen1", 12.5),
        ("tasmota", "/cm?cmnd=Status%2010", TASMOTA_ANSWER, "tasmota", 4.0),
    ],
)
def test_plugs(kind: str, path: str, body: str, name: str, watts: float) -> None:
    """The samples of the three kinds; the generation of a Shelly is found out."""
    with served(pages({path: body})) as url:
        meter = meters.make_meter({"kind": kind, "url": url})
        meter.open()
        assert (meter.name, meter.boundary, meter.read()) == (name, "wall", watts)
        meter.close()
    assert meter.read() is None


def redirect(request: http.server.BaseHTTPRequestHandler) -> None:
    request.send_response(302)
    request.send_header("Location", "/status")
    request.end_headers()


def huge(request: http.server.BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    request.wfile.write(GEN2.encode() + b" " * MOST_BYTES)


def not_http(request: http.server.BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"\x00\xff" * 100)


@pytest.mark.parametrize("answer", [redirect, huge, not_http, pages({}), pages({"/status": "[[[[" * 9999})])
def test_a_plug_that_is_none_is_refused(answer: Callable[[Any], None]) -> None:
    """Redirects, floods, noise, nothing: one error with its address, no power."""
    with served(answer) as url:
        meter = meters.make_meter({"kind": "shelly", "url": url})
        with pytest.raises(BoardError, match=f"meter {url}: gives no watts as a shelly plug"):
            meter.open()


@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_answers_of_plugs_may_be_anything(data: bytes) -> None:
    """Watts, or None."""
    for kind in (SHELLY, TASMOTA):
        for _, _, pick in kind.asks:
            assert parse_watts(data, pick) is None


@pytest.mark.parametrize("value", ["true", '"5"', "1e9", "1e400", "NaN", "null", "[]", "-20000"])
def test_watts_of_a_plug_are_plausible_numbers(value: str) -> None:
    """Not a switch's state, not text, not more than a socket gives."""
    assert parse_watts(GEN2.replace("47.11", value).encode(), SHELLY.asks[0][2]) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "shelly"}, "setting 'url' is missing"),
        ({"kind": "shelly", "url": "https://192.0.2.1"}, "is not http://HOST"),
        ({"kind": "shelly", "url": "http://192.0.2.1/relay/0?turn=off"}, "is not http://HOST"),
        ({"kind": "shelly", "url": "http://user:pass@192.0.2.1"}, "is not http://HOST"),
        ({"kind": "shelly", "url": "http://192.0.2.1:99999"}, "not a URL"),
        ({"kind": "shelly", "url": "file:///etc/passwd"}, "is not http://HOST"),
        ({"kind": "shelly", "url": "http://a\nb"}, "is not http://HOST"),
        ({"kind": "shelly", "url": "http://192.0.2.1", "boundary": "moon"}, "unknown boundary 'moon'"),
        ({"kind": "tasmota", "url": "http://192.0.2.1", "cmnd": "Power off"}, "unknown setting 'cmnd'"),
        ({"kind": "joulescope"}, "unknown kind 'joulescope'"),
        ({}, "unknown kind ''"),
        ({"kind": "serial", "device": "/etc/passwd"}, "is not below /dev"),
        ({"kind": "serial", "device": "/dev/../etc/passwd"}, "is not below /dev"),
        ({"kind": "serial", "device": "/dev/ttyUSB0", "baud": "12345"}, "unknown baud '12345'"),
        ({"kind": "serial", "device": "/dev/ttyUSB0", "query": "A\nB"}, "is not one printable line"),
    ],
)
def test_settings_are_checked(settings: dict[str, str], words: str) -> None:
    """Each wrong setting is named before anything is asked."""
    with pytest.raises(ConfigError) as caught:
        meters.make_meter(settings)
    assert words in caught.value.message


class Fine:
    """A plug-in's meter: 7 W."""

    name, boundary, period_s, gain, paced = "fine", "board_input", 0.05, (0.01, 0.0), False

    def open(self) -> None:
        """Nothing to do."""

    def read(self) -> float | None:
        return 7.0

    def close(self) -> None:
        """Nothing to do."""


def plugin(monkeypatch: pytest.MonkeyPatch, factory: Any) -> None:
    """Install `factory` as the plug-in `mine`."""

    class Entry:
        name = "mine"

        def load(self) -> Any:
            return factory

    monkeypatch.setattr(meters, "entry_points", lambda group: [Entry()] if group == "edgesdk.meters" else [])


def test_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind of the entry-point group gets the settings and gives a meter."""
    seen: list[Any] = []
    plugin(monkeypatch, lambda settings: seen.append(dict(settings)) or Fine())
    assert meters.make_meter({"kind": "mine", "port": "3"}).read() == 7.0
    assert seen == [{"kind": "mine", "port": "3"}]


@pytest.mark.parametrize("change", [{"period_s": 0.0}, {"boundary": "x"}, {"gain": (2, 0)}, {"gain": None}])
def test_a_plug_in_that_is_no_meter(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    """Bounds, and whatever it raises, are a ConfigError with its name."""
    plugin(monkeypatch, lambda settings: type("Bad", (Fine,), change)())
    with pytest.raises(ConfigError, match="meter 'mine'"):
        meters.make_meter({"kind": "mine"})


def test_serial_lines() -> None:
    """Watts in a line of a USB meter; bare numbers only where asked for."""
    assert parse_line("USB: 5.062V, 0.1146A,  0.580W,   44.1Ω", False) == 0.58
    assert parse_line("1.234", False) is None and parse_line("1.234\r", True) == 1.234
    assert parse_line("2.5E-1", True) == 0.25
    assert parse_line("99999W", False) is None and parse_line("5.062V", True) is None


@given(st.text(max_size=200), st.booleans())
def test_serial_lines_may_be_anything(line: str, bare: bool) -> None:
    """Plausible watts, or None."""
    value = parse_line(line, bare)
    assert value is None or abs(value) < 10_000


@contextlib.contextmanager
def terminal(talk: Callable[[int, threading.Event], None]) -> Iterator[str]:
    """A pseudo-terminal whose other end `talk` holds; gives its path."""
    controller, device = os.openpty()
    ended = threading.Event()
    thread = threading.Thread(target=talk, args=(controller, ended))
    thread.start()
    try:
        yield os.ttyname(device)
    finally:
        ended.set()
        thread.join()
        os.close(controller)
        os.close(device)


def test_serial_meter_that_writes_by_itself() -> None:
    """Its period is found out; half lines and noise are passed over."""

    def talk(descriptor: int, ended: threading.Event) -> None:
        os.write(descriptor, b"80W half a line, \xff\xfe\n")
        while not ended.wait(0.05):
            os.write(descriptor, b"hello\nUSB: 5.062V, 0.1146A,  0.580W\n")

    with terminal(talk) as path:
        meter = meters.make_meter({"kind": "serial", "device": path})
        meter.open()
        assert meter.paced and 0.02 <= meter.period_s < 2
        assert meter.read() == 0.58
        meter.close()
    assert meter.read() is None


def test_serial_meter_that_is_asked() -> None:
    """SCPI: the query goes out with a line end, a number comes back."""

    def talk(descriptor: int, ended: threading.Event) -> None:
        os.set_blocking(descriptor, False)
        while not ended.wait(0.01):
            with contextlib.suppress(BlockingIOError):
                if os.read(descriptor, 100) == b"MEAS:POW? CH1\n":
                    os.write(descriptor, b"1.234\n")

    with terminal(talk) as path:
        meter = SerialMeter(path, "9600", "MEAS:POW? CH1", "board_input")
        meter.open()
        assert not meter.paced and meter.read() == 1.234
        meter.close()


def test_a_device_that_is_none() -> None:
    """Missing, or not a terminal: one error."""
    for path in ("/dev/edgesdk-none", "/dev/null"):
        with pytest.raises(BoardError, match=f"meter {path}"):
            meters.make_meter({"kind": "serial", "device": path}).open()


def test_recorder_ends_with_its_thread() -> None:
    """Samples on this machine's clock; a meter that raises costs a sample; the thread is gone afterwards."""

    class Moody(Fine):
        readings = 0

        def read(self) -> float | None:
            self.readings += 1
            if self.readings == 2:
                raise RuntimeError("unplugged")
            return 7.0

    before = recorder.raw_ns()
    running = recorder.Recorder(Moody())
    running.start()
    while len(running.samples) < 4:
        time.sleep(0.01)
    running.stop()
    assert [value for _, value in running.samples[:4]] == [7_000_000, None, 7_000_000, 7_000_000]
    times = [time_ns for time_ns, _ in running.samples]
    assert times == sorted(times) and before < times[0] < recorder.raw_ns()
    assert not [thread for thread in threading.enumerate() if thread.name == "edgesdk-meter"]


def test_a_slow_plug_does_not_hold_the_recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plug that stops answering in the middle: stop closes its connection, and the thread ends."""
    monkeypatch.setattr(plugs, "TIMEOUT_SECONDS", 30.0)
    asked = threading.Event()
    ended = threading.Event()

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        if not asked.is_set():
            pages({"/rpc/Switch.GetStatus?id=0": GEN2})(request)
            asked.set()
            return
        request.send_response(200)
        request.end_headers()
        request.wfile.flush()
        ended.wait(20)

    with served(answer) as url:
        running = recorder.Recorder(meters.make_meter({"kind": "shelly", "url": url}))
        running.start()
        time.sleep(0.2)
        running.stop()
        ended.set()
        assert not [thread for thread in threading.enumerate() if thread.name == "edgesdk-meter"]


def test_samples_of_another_clock(tmp_path: Path) -> None:
    """The board's clock is 1000 s ahead: the offset is kept in the file, and the integral is that of the board's
    window."""
    running = recorder.Recorder(Fine())
    running.samples = [(n * 50_000_000, 5_000_000 if n < 400 else 9_000_000) for n in range(1000)]
    events = [window(0, 1025, 1035), idle("before", 1002, 1010), idle("after", 1003, 1012)]
    (tmp_path / "c0-energy.jsonl").write_bytes(log_lines(*events))
    record = {"energy": {"file": "c0-energy.jsonl", "sha256": "", "reason": ""}}
    shifted = recorder.add_samples(record, tmp_path, running, recorder.Offset(1000 * 10**9, 10**6))
    data = (tmp_path / "c0-energy.jsonl").read_bytes()
    assert shifted["energy"]["sha256"] != "" and b'"offset_ns": 1000000000000' in data
    found = energy_figure(data, "smoke", "measured", True)
    assert found["value"] == pytest.approx(900) and found["idle_mw"] == pytest.approx(5000)
    assert found["sensor"] == "fine" and found["boundary"] == "board_input" and found["sampler"]["value"] is None


def test_clocks_that_are_not_known_are_not_used(tmp_path: Path) -> None:
    """Half a second between the clocks: no energy, E_CLOCK."""
    record = {"energy": {"file": "c0-energy.jsonl", "sha256": "", "reason": ""}}
    refused = recorder.add_samples(record, tmp_path, recorder.Recorder(Fine()), recorder.Offset(0, 500_000_000))
    assert refused["energy"]["file"] is None and refused["energy"]["reason"].startswith("E_CLOCK")


def test_offset_of_a_board_behind_ssh(remote: Board) -> None:
    """The same machine behind SSH: the offset is 0 within its own error."""
    with Session(remote) as session:
        found = recorder.board_offset(session, deploy_worker(session))
    assert abs(found.offset_ns) <= found.error_ns and found.error_ns > 0


