"""The errors of EdgeSDK and the exit codes of its command line.

    EdgeSDKError                       exit 3
    ├── ConfigError                    2   a recipe, a farm file, a target, an option or data of the user
    ├── ModelError                     3   a model that cannot be imported, or is not what it claims
    ├── PackageError                   3   a package that is broken, hostile, or of another version
    ├── StageError                     3   a compression stage cannot be applied
    ├── VerifyError                    3   a package contradicts itself
    ├── ConvertError                   3   an artifact cannot be made
    │   └── UnsupportedOp
    ├── BoardError                     4   the board or the way to it
    │   ├── Unreachable, Busy, HostKey, Identity, DiskFull, ReadOnly
    │   ├── LeaseLost, Quarantined, PowerError, Rebooting
    │   ├── Corrupt                        bytes on the board are not the bytes that were sent
    │   └── Deadline                   7   a hard deadline passed
    ├── MeasureError                   5   the measurement is not valid
    │   ├── Throttled, Noisy, Drift
    │   └── Unmeasured                 6   a goal on something that was not measured
    ├── JobError                       3   the artifact fails on the board
    │   └── OutOfMemory, Crash, Accuracy
    └── GoalError                      1   no candidate meets the goals

A message says what, where (file and key, layer, board), what was found and what to try.
"""

from __future__ import annotations


class EdgeSDKError(Exception):
    """Base of all errors that EdgeSDK raises on purpose.

    Args:
        message: what went wrong, where, and what was found.
        hint: what to try; shown on a line of its own.
    """

    exit_code = 3

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  try: {self.hint}" if self.hint else self.message


class ConfigError(EdgeSDKError):
    exit_code = 2


class ModelError(EdgeSDKError):
    pass


class PackageError(EdgeSDKError):
    pass


class StageError(EdgeSDKError):
    pass


class VerifyError(EdgeSDKError):
    pass


class ConvertError(EdgeSDKError):
    pass


class UnsupportedOp(ConvertError):
    pass


class BoardError(EdgeSDKError):
    exit_code = 4


class Unreachable(BoardError):
    pass


class Busy(BoardError):
    pass


class HostKey(BoardError):
    pass


class Identity(BoardError):
    pass


class DiskFull(BoardError):
    pass


class ReadOnly(BoardError):
    pass


class Corrupt(BoardError):
    pass


class Deadline(BoardError):
    exit_code = 7


class MeasureError(EdgeSDKError):
    exit_code = 5


class Throttled(MeasureError):
    pass


class Noisy(MeasureError):
    pass


class Drift(MeasureError):
    pass


class Unmeasured(MeasureError):
    exit_code = 6


class JobError(EdgeSDKError):
    pass


class OutOfMemory(JobError):
    pass


class Crash(JobError):
    pass


class Accuracy(JobError):
    pass


class GoalError(EdgeSDKError):
    exit_code = 1


class LeaseLost(BoardError):
    """The board belongs to another harness by now (E_LEASE_LOST, E_FENCED)."""


class Quarantined(BoardError):
    """The board was set aside after a fault; a person has to look at it."""


class PowerError(BoardError):
    """A power cycle that cannot be confirmed (E_POWER)."""


class Rebooting(BoardError):
    """The board restarts again and again."""
