"""The timed round: warm-up until steady, then a window of samples on CLOCK_MONOTONIC_RAW."""

import array
import math
import random
import resource
import time
from collections.abc import Callable
from typing import Any

STEADY_PERCENT = 5.0
BLOCK = 10
SHORT_NS = 1000000


def now_ns() -> int:
    """CLOCK_MONOTONIC_RAW in nanoseconds (Python 3.6 only has it as a float)."""
    read = getattr(time, "clock_gettime_ns", None)
    if read is not None:
        return int(read(time.CLOCK_MONOTONIC_RAW))
    return int(time.clock_gettime(time.CLOCK_MONOTONIC_RAW) * 1e9)


def median(values: "list[int]") -> float:
    """Middle value (mean of the middle two)."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return float(ordered[half]) if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2.0


# 97.5 % quantiles of Student's t for 1 … 19 degrees of freedom.
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093,
)


def is_wide(medians: "list[int]", half_width: float) -> bool:
    """Is the 95 % t interval on the logarithms of round medians wider than `half_width` of the median to each side?

    The same question as the label `wide_ci` asks on the host; one round has no interval and is wide.
    """
    if len(medians) < 2 or min(medians) <= 0:
        return True
    logs = [math.log(value) for value in medians]
    mean = math.fsum(logs) / len(logs)
    variance = math.fsum((value - mean) ** 2 for value in logs) / (len(logs) - 1)
    quantile = T_QUANTILES[min(len(logs) - 1, len(T_QUANTILES)) - 1]
    return 2 * math.sinh(quantile * math.sqrt(variance / len(logs))) > 2 * half_width


def seeded_order(n: int, seed: int) -> "list[int]":
    """The order in which n inputs are cycled."""
    order = list(range(n))
    random.Random(seed).shuffle(order)
    return order


def round_order(candidates: "list[int]", seed: int, number: int) -> "list[int]":
    """The order in which candidates take part in round `number`."""
    return [candidates[place] for place in seeded_order(len(candidates), seed * 1000003 + number)]


def is_steady(durations: "list[int]", block: int, percent: float = STEADY_PERCENT) -> bool:
    """Medians of the last two blocks differ by less than `percent`."""
    if len(durations) < 2 * block:
        return False
    before = median(durations[-2 * block : -block])
    after = median(durations[-block:])
    return abs(after - before) < percent / 100.0 * before


class Options:
    """Numbers of one round; seconds and counts as in `harness/protocol.py`."""

    def __init__(
        self, warmup_iterations: int, warmup_seconds: float, max_warmup_seconds: float, window_seconds: float,
        min_samples: int, block: int, steady_percent: float = STEADY_PERCENT,
    ) -> None:
        self.warmup_iterations = warmup_iterations
        self.warmup_seconds = warmup_seconds
        self.max_warmup_seconds = max_warmup_seconds
        self.window_seconds = window_seconds
        self.min_samples = min_samples
        self.block = block
        self.steady_percent = steady_percent


def timed_round(infer: "Callable[[int], Any]", order: "list[int]", options: Options) -> "dict[str, Any]":
    """Time `infer(row)` over the rows of `order`, cycled.

    Returns:
        the keys of the round's JSON that come from timing, and `samples`: array of int64 nanoseconds, each for
        `batch` calls in a row.
    """
    position = 0
    durations = []  # type: list[int]
    start = now_ns()
    steady = False
    while True:
        before = now_ns()
        infer(order[position % len(order)])
        after = now_ns()
        position += 1
        durations.append(after - before)
        elapsed = (after - start) / 1e9
        if len(durations) >= options.warmup_iterations and elapsed >= options.warmup_seconds:
            steady = is_steady(durations, options.block, options.steady_percent)
            if steady:
                break
        if elapsed >= options.max_warmup_seconds:
            break
    warmup = {"iterations": len(durations), "seconds": elapsed}
    typical = max(1.0, median(durations[-2 * options.block :]))
    batch = 1 if typical >= SHORT_NS else int(-(-SHORT_NS // typical))
    samples = array.array("q")
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    cpu = time.process_time()
    start = now_ns()
    window = options.window_seconds * 1e9
    while True:
        before = now_ns()
        for _ in range(batch):
            infer(order[position % len(order)])
            position += 1
        after = now_ns()
        samples.append(after - before)
        if after - start >= window and len(samples) >= options.min_samples:
            break
    cpu_ns = int((time.process_time() - cpu) * 1e9)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults
    return {
        "count": len(samples), "batch": batch, "p50_ns": int(round(median(list(samples)) / batch)),
        "warmup": warmup, "steady": steady, "cpu_ns": cpu_ns, "samples": samples,
        "major_faults": faults,
        "window_start_ns": start, "window_end_ns": after,
    }
