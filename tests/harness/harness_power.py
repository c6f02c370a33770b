"""Fake power sensors: a `/sys` in a folder, commands in a folder, and a runner that tells its window."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness_artifacts import runner

# `vcgencmd pmic_read_adc` of a Raspberry Pi 5 with four busy cores (zeus issue 273).
PMIC = """ 3V7_WL_SW_A current(0)=0.09368929A
   3V3_SYS_A current(1)=0.08783370A
   1V8_SYS_A current(2)=0.18054710A
  DDR_VDD2_A current(3)=0.22543980A
  DDR_VDDQ_A current(4)=0.06666720A
   1V1_SYS_A current(5)=0.17566740A
    0V8_SW_A current(6)=0.37670900A
  VDD_CORE_A current(7)=6.22421000A
   3V3_DAC_A current(17)=0.00006105A
   3V3_ADC_A current(18)=0.00036630A
   0V8_AON_A current(16)=0.00305250A
      HDMI_A current(22)=0.02417580A
 3V7_WL_SW_V volt(8)=3.69977600V
   3V3_SYS_V volt(9)=3.31003300V
   1V8_SYS_V volt(10)=1.80512600V
  DDR_VDD2_V volt(11)=1.10476100V
  DDR_VDDQ_V volt(12)=0.60146460V
   1V1_SYS_V volt(13)=1.11025500V
    0V8_SW_V volt(14)=0.80146440V
  VDD_CORE_V volt(15)=0.86173300V
   3V3_DAC_V volt(20)=3.31318300V
   3V3_ADC_V volt(21)=3.30677300V
   0V8_AON_V volt(19)=0.80029220V
      HDMI_V volt(23)=5.08664000V
     EXT5V_V volt(24)=5.09066000V
      BATT_V volt(25)=0.00000000V
"""


def ina3221(root: Path, channels: Sequence[tuple[str, int, int]], address: str = "1-0040", hwmon: int = 1) -> Path:
    """An INA3221 of JetPack 5 to 7 below `root` (the sysfs); channels are (label, mV, mA). Returns its folder."""
    chip = root / "bus/i2c/drivers/ina3221" / address / "hwmon" / f"hwmon{hwmon}"
    chip.mkdir(parents=True)
    for number, (label, volts, amperes) in enumerate(channels, 1):
        (chip / f"in{number}_label").write_text(f"{label}\n")
        (chip / f"in{number}_input").write_text(f"{volts}\n")
        (chip / f"curr{number}_input").write_text(f"{amperes}\n")
    (chip / "in7_label").write_text("sum of shunt voltages\n")
    return chip


def files(root: Path, contents: Mapping[str, object]) -> None:
    """Write small files below `root`, each with a line end."""
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


def command(folder: Path, name: str, script: str) -> Path:
    """An executable shell script."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n" + script + "\n")
    path.chmod(0o755)
    return path


def windowed_runner(fault: str = "") -> bytes:
    """The tests' runner, which also tells the edges of its window."""
    start = b'    samples = array.array("q")\n'
    edges = b"time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)"
    program = runner(fault)
    assert start in program and b'"cpu_ns": 11' in program
    program = program.replace(start, start + b"    opened = " + edges + b"\n")
    return program.replace(
        b'"cpu_ns": 11', b'"cpu_ns": 11, "window_start_ns": opened, "window_end_ns": ' + edges
    )


def log_lines(*entries: Any) -> bytes:
    """Lines of a raw energy file."""
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


def header(**changes: Any) -> dict[str, Any]:
    """The header of an INA3221's segment."""
    values = {
        "format": "edgesdk.power", "version": 1, "sensor": "ina3221", "boundary": "board_input",
        "rails": ["VDD_IN", "VDD_SOC"], "total": ["VDD_IN"], "unit": "uW", "period_ns": 50_000_000,
    }
    return values | changes


def window(index: int, start_s: float, end_s: float, inferences: int = 100, p50_ns: int = 20_000_000) -> dict[str, Any]:
    """A window's event."""
    return {
        "event": "window", "index": index, "start_ns": int(start_s * 1e9), "end_ns": int(end_s * 1e9),
        "inferences": inferences, "p50_ns": p50_ns,
    }


def idle(when: str, start_s: float, end_s: float) -> dict[str, Any]:
    """An idle stretch's event."""
    return {"event": "idle", "when": when, "start_ns": int(start_s * 1e9), "end_ns": int(end_s * 1e9)}
