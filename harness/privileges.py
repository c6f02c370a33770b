"""May commands on a board run as root, and what is lost where they may not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgesdk.harness.text import plain_line
from edgesdk.harness.transport import Transport

ASK_SECONDS = 15.0
E_SUDO = "E_SUDO"
LOST = (
    "cold load without cached pages", "governor, power mode and clocks set for the time of the job",
    "energy counters that only root may read (RAPL)", "memory of the GPU (nvmap)",
)
# `sudo -n` fails at once where a password is wanted; nothing is ever typed.
_ASK = """
if [ "$(id -u)" = 0 ]; then echo root
elif ! command -v sudo >/dev/null; then echo none no sudo here
elif words=$(sudo -n true 2>&1); then echo sudo
else echo none "$words"
fi
"""


@dataclass(frozen=True)
class Privileges:
    """`by`: `root`, `sudo` (without a password) or `none`; then `code`, words, and the checks that are lost."""

    by: str
    code: str | None = None
    reason: str = ""
    lost: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """As it is stored with a measurement."""
        return asdict(self)


def privileges(transport: Transport) -> Privileges:
    """Ask the board once. Everything that is not a clear yes counts as no.

    Raises:
        What `Transport.run` raises.
    """
    words = plain_line(transport.run(["sh", "-c", _ASK], ASK_SECONDS).text, 300)
    if words in ("root", "sudo"):
        return Privileges(words)
    reason = words.removeprefix("none ") or "no answer"
    code = None if reason == "no sudo here" else E_SUDO
    return Privileges("none", code, f"sudo -n: {reason}" if code else reason, LOST)
