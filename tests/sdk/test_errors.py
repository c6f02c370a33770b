"""The tree of errors is the one that its module draws, and exit codes are those of the design."""

from __future__ import annotations

import re

import pytest

from edgesdk import errors
from edgesdk.errors import EdgeSDKError

CLASSES: dict[str, type[EdgeSDKError]] = {
    name: value for name, value in vars(errors).items() if isinstance(value, type)
}


def _drawn() -> dict[str, int]:
    """Class name → exit code, as the module's docstring draws the tree; codes are inherited."""
    codes: dict[str, int] = {}
    above = 0
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    ([ │├└─]*)([A-Z]\w+(?:, [A-Z]\w+)*)(?:\s+(?:exit )?(\d))?(?:\s|$)", line)
        if match is None:
            continue
        nested = len(match[1]) > 4
        code = int(match[3]) if match[3] else above
        if not nested:
            above = code
        codes |= dict.fromkeys(match[2].split(", "), code)
    return codes


def test_docstring_draws_every_class_with_its_exit_code() -> None:
    assert _drawn() == {name: value.exit_code for name, value in CLASSES.items()}


def test_every_class_is_an_edgesdk_error() -> None:
    assert all(issubclass(value, EdgeSDKError) for value in CLASSES.values())


@pytest.mark.parametrize(
    ("name", "code"),
    [("GoalError", 1), ("ConfigError", 2), ("ModelError", 3), ("OutOfMemory", 3), ("UnsupportedOp", 3), ("HostKey", 4),
     ("Throttled", 5), ("Unmeasured", 6), ("Deadline", 7)],
)
def test_exit_codes_of_the_design(name: str, code: int) -> None:
    assert CLASSES[name].exit_code == code


def test_message_and_hint() -> None:
    assert str(EdgeSDKError("what")) == "what"
    problem = EdgeSDKError("what", "this")
    assert (problem.message, problem.hint) == ("what", "this")
    assert str(problem).splitlines() == ["what", "  try: this"]
