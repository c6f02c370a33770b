"""Energy per inference. Without a sensor it is `unmeasured`, with the reason: never an estimate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgesdk.harness.board import Board
from edgesdk.targets.target import Target

_REASONS = {
    "pmic": "no power sensor: vcgencmd pmic_read_adc is read in a later release",
    "ina3221": "no power sensor: the INA3221 rails are read in a later release",
    "external": "no power sensor: this board needs an external meter, and none is configured",
}


def unmeasured_energy(board: Board, target: Target, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The `energy_mj` part of a measurement: a null value and why."""
    if board.emulated:
        reason = "no power sensor: an emulated board uses no power of its own"
    elif board.meter:
        reason = "a meter is configured, but this release does not read meters yet"
    elif target.power.source == "rapl":
        rails = facts.get("rapl")
        reason = "no power sensor: RAPL (/sys/class/powercap) is missing or not readable"
        if rails:
            reason = "RAPL counters are there but EdgeSDK does not integrate them yet"
    else:
        reason = _REASONS.get(target.power.source, f"no power sensor: source {target.power.source!r} is not read yet")
    return {"value": None, "boundary": None, "provenance": "unmeasured", "reason": reason}
