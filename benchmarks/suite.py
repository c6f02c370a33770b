"""Seconds of the test suite, and of the test of the whole flow.

    python benchmarks/suite.py            (about seven minutes)
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from _results import figure, write_result

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run the tests and write their wall seconds."""
    flow = run("tests/test_flow.py::test_the_document_has_the_promised_form")
    whole = run("tests")
    write_result("suite", [
        figure("the test of the whole flow, wall (pytest's start included)", flow, "s", "≤ 20", flow <= 20),
        figure("the whole test suite, wall", whole, "s", "≤ 900", whole <= 900),
    ])


def run(what: str) -> float:
    """Wall seconds of pytest over `what`; SystemExit where a test fails."""
    start = time.monotonic()
    code = subprocess.run([sys.executable, "-m", "pytest", "-q", what], cwd=ROOT, check=False).returncode
    if code:
        raise SystemExit(f"pytest {what} ended with {code}: no figure")
    return time.monotonic() - start


if __name__ == "__main__":
    main()
