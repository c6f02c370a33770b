"""What every benchmark writes: `results/NAME.json` (format `edgesdk.benchmark`, version 1)."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgesdk.cli.output import say
from edgesdk.files import canonical_json, write_atomic

FOLDER = Path(__file__).parent / "results"
PACKAGES = ("edgesdk", "torch", "onnxruntime", "ai-edge-litert", "numpy")


def write_result(
    name: str, figures: list[dict[str, Any]], command: str | None = None, extra: Mapping[str, Any] | None = None,
    path: Path | None = None,
) -> None:
    """Write the document of the benchmark `benchmarks/NAME.py`: its figures, and `extra` keys of its own. `path`: of a
    trial, which is no result."""
    document = {
        **(extra or {}),
        "format": "edgesdk.benchmark", "version": 1, "command": command or f"python benchmarks/{name}.py",
        "machine": machine(), "versions": versions(),
        "figures": figures,
    }
    write_atomic(path or FOLDER / f"{name}.json", canonical_json(document))
    missed = sum(entry["met"] is False for entry in figures)
    say(f"wrote {path or f'benchmarks/results/{name}.json'}: {len(figures)} figures, {missed} missed")


def figure(
    name: str, value: Any, unit: str, goal: str | None = None, met: bool | None = None, provenance: str = "measured",
    interval: Any = None,
) -> dict[str, Any]:
    """One entry; numbers are rounded to four digits, and what has no value is `unmeasured`."""
    rounded = float(f"{value:.4g}") if isinstance(value, float) else value
    provenance = "unmeasured" if value is None else provenance
    entry = {"figure": name, "value": rounded, "unit": unit, "goal": goal, "met": met, "provenance": provenance}
    return entry | ({"ci95": [float(f"{end:.4g}") for end in interval]} if interval else {})


def machine() -> str:
    """This machine, in words."""
    return f"{cpu_model()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def versions() -> dict[str, str]:
    """Of the packages that figures depend on."""
    return {package: version(package) for package in PACKAGES} | {"python": platform.python_version()}


def cpu_model() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
