"""What a test needs of the machine: root or packages. Missing, it fails; with EDGESDK_NO_EMULATION=1 it is skipped."""

from __future__ import annotations

import os

import pytest


def need(there: bool, what: str) -> None:
    """Go on where `there` is true; else skip if the user asked to do without, and fail if not: a silent skip would
    claim what was not tested."""
    if there:
        return
    if os.environ.get("EDGESDK_NO_EMULATION") == "1":
        pytest.skip(f"{what} (EDGESDK_NO_EMULATION=1)")
    pytest.fail(f"{what}; install it (`make test` does), or set EDGESDK_NO_EMULATION=1 to skip what needs packages")
