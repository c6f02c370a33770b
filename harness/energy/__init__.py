"""Energy per inference. Without a sensor it is `unmeasured`, with the reason: never an estimate.

`plan.py` says how long windows are, the worker's `power_window.py` runs them, `log.py` reads what came back,
`integrate.py` and `figure.py` make the figure of it; `meters.py` are meters that this machine reads for a board.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgesdk.harness.board import Board
from edgesdk.harness.energy.figure import unmeasured
from edgesdk.targets.target import Target

_REASONS = {
    "pmic": "no power sensor: vcgencmd pmic_read_adc gives no rails",
    "ina3221": "no power sensor: no INA3221 rails in hwmon or iio",
    "external": "no power sensor: this board needs an external meter, and none is configured",
    "rapl": "no power sensor: RAPL (/sys/class/powercap) is missing or not readable",
}


def unmeasured_energy(board: Board, target: Target, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The `energy_mj` part of a measurement whose board ran no energy windows: a null value and why."""
    said = (facts.get("power") or {}).get("reason")
    if board.emulated:
        reason = "no power sensor: an emulated board uses no power of its own, and none is replayed"
    elif board.meter:
        reason = "a meter is configured, but no energy window was run"
    elif facts.get("rapl") and target.power.source == "rapl":
        reason = "RAPL counters are there, but no energy window was run"
    elif said and target.power.source != "external":
        reason = str(said)
    else:
        reason = _REASONS.get(target.power.source, f"no power sensor: source {target.power.source!r} is not read yet")
    return unmeasured(reason)
