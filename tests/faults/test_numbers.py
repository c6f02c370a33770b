"""Every fault of the list (docs/measuring.md) has exactly one test, named by its number."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

NAME = re.compile(r"test_fault_(\d\d)_")
FAULTS = set(range(1, 49))
FARM = {17, 19, 45}
HARDWARE = {47, 48}


def test_each_fault_has_exactly_one_test() -> None:
    """43 faults: all but those of the farm and of real hardware, none twice."""
    found: Counter[int] = Counter()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (number := NAME.match(node.name)):
                found[int(number[1])] += 1
    wanted = FAULTS - FARM - HARDWARE
    assert len(wanted) == 43
    missing = sorted(wanted - set(found))
    assert not missing, f"faults without a test: {missing}"
    assert found == Counter(wanted), f"faults with another number of tests: {found - Counter(wanted)}"
