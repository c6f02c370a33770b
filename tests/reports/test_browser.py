"""report.html in a real browser: no console message, no request to any address, nothing of a hostile string runs."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgesdk.reports.report import write_report
from edgesdk.store import Store
from edgesdk.testing.sample_record import HOSTILE, sample_record

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-default-apps", "--no-default-browser-check", "--disable-dev-shm-usage", "--enable-logging=stderr",
    "--v=0",
]
pytestmark = pytest.mark.skipif(
    BROWSER is None and os.environ.get("EDGESDK_NO_EMULATION") == "1", reason="no Chromium (EDGESDK_NO_EMULATION=1)"
)


def visit(page: Path, folder: Path) -> tuple[str, list[str], list[str]]:
    """Open a page; returns its DOM, the console's messages and the addresses that were asked for."""
    assert BROWSER is not None, "install chromium, or set EDGESDK_NO_EMULATION=1 to skip what needs packages"
    log = folder / "net.json"
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console, requests(json.loads(log.read_text()))


def requests(log: dict[str, Any]) -> list[str]:
    """Addresses of the requests in a net log that the page made; the browser's own housekeeping has no initiator."""
    started = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    events = [event["params"] for event in log["events"] if event["type"] == started and "params" in event]
    return [str(event["url"]) for event in events if event.get("initiator", "not an origin") != "not an origin"]


@pytest.mark.parametrize("kind", ["measured", "emulated", "hostile"])
def test_report_opens_without_an_error_or_a_request(tmp_path: Path, kind: str) -> None:
    record = sample_record(tmp_path / "raw", emulated=kind == "emulated", hostile=kind == "hostile")
    store = Store(tmp_path / "results.sqlite")
    page = write_report(store, store.add_build(record), tmp_path / "report")
    dom, console, asked = visit(page, tmp_path)
    assert (console, asked) == ([], [])
    assert "digits-small-neon" in dom and "</html>" in dom
    assert len(re.findall(r"<section", dom)) >= 6
    if kind == "hostile":
        assert not re.search(r"<script", dom)
        assert HOSTILE.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in dom


def test_the_check_sees_console_errors_and_requests(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    address = "http://127.0.0.1:9/picture.png"
    page.write_text(f"<!doctype html><script>console.error('broken')</script><img src='{address}'>")
    _, console, asked = visit(page, tmp_path)
    assert any("broken" in line for line in console)
    assert address in asked
