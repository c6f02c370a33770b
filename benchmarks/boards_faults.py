"""The numbered fault tests, run once: how many of the 43 give the expected outcome."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Of 48: 17, 19 and 45 belong to the farm, 47 and 48 need hardware.
NUMBERS = [number for number in range(1, 49) if number not in (17, 19, 45, 47, 48)]
SECONDS = 3000


def run(names: list[str]) -> dict[str, Any]:
    """Run `tests/faults` and count the numbers whose tests all pass."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/faults", "-k", "test_fault_",
                   f"--junitxml={report}"]
        subprocess.run(command, cwd=ROOT, timeout=SECONDS, stdout=subprocess.DEVNULL, check=False)
        outcomes = read(report)
    passed = [number for number in NUMBERS if outcomes.get(number) == "passed"]
    rest = {str(number): outcomes.get(number, "no test") for number in NUMBERS if number not in passed}
    return {names[0]: (len(passed), len(passed) == len(NUMBERS), "measured", {"others": rest})}


def read(report: Path) -> dict[int, str]:
    """Outcome by fault number: passed, or the worst of its tests."""
    outcomes: dict[int, str] = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        found = re.match(r"test_fault_(\d\d)", case.get("name") or "")
        if found is None:
            continue
        state = next((tag for tag in ("failure", "error", "skipped") if case.find(tag) is not None), "passed")
        number = int(found[1])
        if outcomes.get(number, "passed") == "passed":
            outcomes[number] = state
    return outcomes
