"""Smart plugs by HTTP: Shelly (first and second generation) and Tasmota. A plug says what it likes: answers are small,
soon, JSON, and numbers in a plug's range, or they do not count.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import socket
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgesdk.errors import BoardError, ConfigError
from edgesdk.harness.text import plain

TIMEOUT_SECONDS = 2.0
MOST_BYTES = 64 << 10
MOST_WATTS = 10_000.0


@dataclass(frozen=True)
class PlugKind:
    """What to ask a plug, and how to read its answer; the first of `asks` that gives watts is used."""

    name: str
    asks: tuple[tuple[str, str, Callable[[Any], Any]], ...]


def _second_generation(answer: Any) -> Any:
    return answer["apower"]


def _first_generation(answer: Any) -> Any:
    return answer["meters"][0]["power"]


def _tasmota(answer: Any) -> Any:
    return answer["StatusSNS"]["ENERGY"]["Power"]


SHELLY = PlugKind("shelly", (
    ("shelly-gen2", "/rpc/Switch.GetStatus?id=0", _second_generation), ("shelly-gen1", "/status", _first_generation),
))
TASMOTA = PlugKind("tasmota", (("tasmota", "/cm?cmnd=Status%2010", _tasmota),))


def parse_watts(data: bytes, pick: Callable[[Any], Any]) -> float | None:
    """Watts in a plug's answer; None where it is anything else."""
    try:
        value = pick(json.loads(data))
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    if type(value) not in (int, float):
        return None
    return float(value) if -MOST_WATTS < value < MOST_WATTS and math.isfinite(value) else None


class Plug:
    """A `Meter` of about one reading a second, 2 % or 1 W whichever is more. Only the host and port of the farm's URL
    are asked: no redirect is followed, no proxy used.

    Raises:
        ConfigError: not a plain http URL.
    """

    period_s = 1.0
    gain = (0.02, 1.0)
    paced = False

    def __init__(self, kind: PlugKind, url: str, boundary: str) -> None:
        self.kind = kind
        self.name = kind.name
        self.boundary = boundary
        self.host, self.port = _address(url)
        self.ask: Sequence[Any] = ()
        self.socket: socket.socket | None = None

    def open(self) -> None:
        for ask in self.kind.asks:
            data = self._get(ask[1])
            if data is not None and parse_watts(data, ask[2]) is not None:
                self.ask, self.name = ask, ask[0]
                return
        where = f"http://{self.host}:{self.port}"
        raise BoardError(f"meter {where}: gives no watts as a {self.kind.name} plug", f"open {where} in a browser")

    def read(self) -> float | None:
        data = self._get(self.ask[1]) if self.ask else None
        return None if data is None else parse_watts(data, self.ask[2])

    def close(self) -> None:
        self.ask = ()
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)  # a reader that waits gets an error

    def _get(self, path: str) -> bytes | None:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_SECONDS)
        deadline = time.monotonic() + 2 * TIMEOUT_SECONDS
        data = b""
        try:
            connection.connect()
            self.socket = connection.sock
            connection.request("GET", path, headers={"Accept": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                return None
            while len(data) <= MOST_BYTES and time.monotonic() < deadline:
                part = response.read1(MOST_BYTES)
                if not part:
                    return data
                data += part
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()
        return None


def _address(url: str) -> tuple[str, int]:
    hint = 'meter = {kind = "shelly", url = "http://192.0.2.30"}'
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as problem:
        raise ConfigError(f"meter: not a URL: {plain(url, 200)!r}", hint) from problem
    extra = parts.path.strip("/") or parts.query or parts.fragment or parts.username or parts.password
    if parts.scheme != "http" or not host or extra or not url.isprintable() or " " in url:
        raise ConfigError(f"meter: {plain(url, 200)!r} is not http://HOST or http://HOST:PORT", hint)
    return host, port or 80
