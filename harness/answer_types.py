"""Types of what boards answer, and the parts of a round: what was seen of the board around it, its memory."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

# Patterns of pydantic are those of Rust: `$` is the very end.
MOST = 1 << 62
TEXT_LIMIT = 4096
CODE = r"^E_[A-Z_]{1,30}$"

Whole = Annotated[int, Field(ge=0, lt=MOST)]
Positive = Annotated[int, Field(ge=1, lt=MOST)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1e9, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, lt=1e9, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=2 * TEXT_LIMIT)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Member = Annotated[str, Field(pattern=r"^c[0-9]{1,6}-[a-z0-9]{1,40}\.(bin|jsonl)$")]


class Answer(BaseModel):
    # Unknown keys are dropped: a document holds what this EdgeSDK knows, nothing that a board made up.
    model_config = ConfigDict(strict=True, extra="ignore")


class Environment(Answer):
    """`harness/worker/condition.py`, `Watch.end`, and what `timed.py` adds. Shares are of one core or of wall time;
    `trace` has one [seconds, °C, kHz, throttle bits] a second."""

    other_cpu: Share | None = None
    psi_cpu: Share | None = None
    psi_io: Share | None = None
    psi_memory: Share | None = None
    swapped_pages: Whole | None = None
    major_faults: Whole | None = None
    throttle_count: Whole | None = None
    overcurrent: Annotated[list[Whole | None], Field(max_length=3)] | None = None
    throttled_before: Whole | None = None
    throttled_now: Whole | None = None
    throttled_new: Whole | None = None
    undervolt_alarm: bool | None = None
    temperature_start_c: Number | None = None
    temperature_end_c: Number | None = None
    temperature_max_c: Number | None = None
    temperature_limit_c: Number | None = None
    frequency_locked_khz: Whole | None = None
    frequency_samples: Whole = 0
    frequency_below: Whole = 0
    probe_before_ns: Whole | None = None
    probe_after_ns: Whole | None = None
    wall_s: Seconds | None = None
    window_s: Seconds | None = None
    waited_s: Seconds | None = None
    turn: Literal["held", "overdue", "no_lock"] | None = None
    file_evicted: bool = False
    cores: Annotated[list[Whole], Field(max_length=1024)] = []
    trace: Annotated[
        list[Annotated[list[Number | None], Field(min_length=4, max_length=4)]], Field(max_length=1000)
    ] = []


class Memory(Answer):
    """Bytes of the process of a round, by the kernel's names (`harness/worker/memory.py`)."""

    peak_rss: Whole | None = None
    anon: Whole | None = None
    file: Whole | None = None
    pss: Whole | None = None
    arena: Whole | None = None
    cgroup_peak: Whole | None = None
    nvmap: Whole | None = None


class Fault(Answer):
    code: Annotated[str, Field(pattern=CODE)]
    text: Text


class Start(Answer):
    """One beginning of a job: more than one where the board restarted, or its worker was killed."""

    boot_id: Text | None = None
    wall_clock_s: Whole | None = None
