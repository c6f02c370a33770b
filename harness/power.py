"""Power cycle of a board by the plug that feeds it: once, and confirmed by the board itself."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edgesdk.errors import BoardError, ConfigError, PowerError
from edgesdk.harness.board import Board
from edgesdk.harness.leases import Lease
from edgesdk.harness.text import plain
from edgesdk.harness.transport import Transport

HTTP_SECONDS = 5.0
REPLY_BYTES = 1 << 16
OFF_SECONDS = 5.0
BOOT_SECONDS = 180.0
YOUNG_SECONDS = 120.0
POLL_SECONDS = 2.0
ON_TRIES = 3


class Plug(Protocol):
    """A switch in a board's supply."""

    def switch(self, on: bool) -> None:
        """Set it, and see that it is set. Raises PowerError."""


@dataclass(frozen=True)
class HttpPlug:
    """A Shelly (second generation and later) or Tasmota plug, over its HTTP interface. Never follows a redirect."""

    kind: str
    url: str

    def switch(self, on: bool) -> None:
        """See `Plug`."""
        is_on: object
        if self.kind == "tasmota":
            reply = self._get(f"/cm?cmnd={urllib.parse.quote('Power On' if on else 'Power Off')}")
            is_on = {"ON": True, "OFF": False}.get(str(reply.get("POWER")))
        else:
            self._get(f"/rpc/Switch.Set?id=0&on={str(on).lower()}")
            is_on = self._get("/rpc/Switch.GetStatus?id=0").get("output")
        if is_on is not on:
            raise PowerError(f"plug {self.url}: asked to be {'on' if on else 'off'}, it says {plain(repr(is_on), 60)}")

    def _get(self, path: str) -> dict[str, object]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
        try:
            with opener.open(self.url + path, timeout=HTTP_SECONDS) as response:
                reply = json.loads(response.read(REPLY_BYTES))
        except (OSError, ValueError, RecursionError) as problem:
            raise PowerError(f"plug {self.url}: {plain(str(problem), 200)} (E_POWER)", "is the plug on?") from problem
        if not isinstance(reply, dict):
            raise PowerError(f"plug {self.url}: answers {plain(repr(reply), 60)} (E_POWER)")
        return reply


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: object, **options: object) -> None:
        """None: a redirect is an error."""


@dataclass(frozen=True)
class Boot:
    """One start of a board."""

    boot_id: str
    uptime_s: float


def plug_of(board: Board) -> Plug:
    """The plug that farm.toml names. ConfigError: none."""
    if board.power is None:
        raise ConfigError(
            f"{board.name}: has no plug", 'power = {kind = "shelly", url = "http://…"} in its table of farm.toml'
        )
    return HttpPlug(*board.power)


def read_boot(transport: Transport) -> Boot:
    """Which start of the board this is. BoardError: also where the answer is something else."""
    completed = transport.run(["cat", "/proc/sys/kernel/random/boot_id", "/proc/uptime"], 10)
    try:
        boot_id, uptime = completed.text.split()[:2]
        return Boot(plain(boot_id, 64), float(uptime))
    except ValueError as problem:
        raise BoardError(f"no boot id and uptime: {plain(completed.text, 100)}") from problem


def power_cycle(
    lease: Lease, plug: Plug, look: Callable[[], Boot], off_s: float = OFF_SECONDS, boot_s: float = BOOT_SECONDS,
    poll_s: float = POLL_SECONDS,
) -> Boot:
    """Switch a board off and on, once, and wait until it says that it has just started.

    Args:
        lease: of the board; checked before.
        look: asks the board (`read_boot` over a new connection); may raise BoardError.

    Raises:
        PowerError: the plug cannot be reached or does not obey; or the board never lost power (it is on another plug),
            or did not come back. It is not tried again: a second cycle would hit whatever is on that plug again.
        LeaseLost: the board is another's.
    """
    name = lease.board.name
    try:
        before: Boot | None = look()
    except BoardError:
        before = None
    lease.check()
    start = time.monotonic()
    plug.switch(False)
    time.sleep(off_s)
    _switch_on(plug)
    end = time.monotonic() + boot_s
    while time.monotonic() < end:
        try:
            now = look()
        except BoardError:
            time.sleep(poll_s)
            continue
        if before is not None and now.boot_id == before.boot_id:
            raise PowerError(
                f"{name}: the plug was switched, and the board did not restart (E_POWER): up for {now.uptime_s:.0f} s",
                "another board is on this plug; correct `power` in farm.toml",
            )
        if now.uptime_s >= max(YOUNG_SECONDS, time.monotonic() - start):
            raise PowerError(f"{name}: up for {now.uptime_s:.0f} s right after a power cycle (E_POWER)")
        return now
    raise PowerError(f"{name}: did not come back within {boot_s:g} s of a power cycle (E_POWER)", "look at its LEDs")


def _switch_on(plug: Plug) -> None:
    """A board must not be left without power by one lost packet."""
    for left in reversed(range(ON_TRIES)):
        try:
            plug.switch(True)
            return
        except PowerError:
            if not left:
                raise
            time.sleep(1)
