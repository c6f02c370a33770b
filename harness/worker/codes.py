"""Rejection codes of one round, from its samples and from what was seen of the board around it.

The board uses them to repeat a round, the host to judge it and to verify a stored one: one implementation, without
numpy. Numbers are those of the measuring protocol (docs/measuring.md).
"""

import math
from collections.abc import Sequence
from typing import Any

from edgesdk.harness.worker.machine import OVERDUE

E_NOISY, E_DRIFT, E_BIMODAL, E_NOT_STEADY = "E_NOISY", "E_DRIFT", "E_BIMODAL", "E_NOT_STEADY"
E_LOAD, E_SWAP, E_BOARD_CHANGED = "E_LOAD", "E_SWAP", "E_BOARD_CHANGED"
E_THROTTLED, E_UNDERVOLT, E_OVERCURRENT = "E_THROTTLED", "E_UNDERVOLT", "E_OVERCURRENT"
E_FREQ_DRIFT, E_TEMP_RISE, E_IMPLAUSIBLE = "E_FREQ_DRIFT", "E_TEMP_RISE", "E_IMPLAUSIBLE"
E_SHARED_MACHINE = "E_SHARED_MACHINE"
# How often a round is repeated for a code; codes that are not here are kept as they are.
REPEATS = {
    E_THROTTLED: 2, E_UNDERVOLT: 1, E_OVERCURRENT: 1, E_FREQ_DRIFT: 2, E_TEMP_RISE: 2, E_NOISY: 2, E_DRIFT: 1,
    E_SWAP: 1, E_LOAD: 2, E_BOARD_CHANGED: 2, E_NOT_STEADY: 1, "E_TIMEOUT": 1,
}
HOT_CODES = (E_THROTTLED, E_TEMP_RISE, E_FREQ_DRIFT)

NOISY_CV = 0.10
NOISY_P90 = 1.5
DRIFT = 0.03
DRIFT_P = 0.002
FEWEST_SAMPLES = 6
BIMODAL_SAMPLES = 20
BIMODAL_MASS = 0.10
BIMODAL_GAP = 5.0
BIMODAL_SHARE = 0.02  # a gap below this share of the median is quantization, not a second mode
OTHER_CPU = 0.05
PRESSURE = 0.05
PROBE_CHANGE = 0.02
FREQUENCY_SHARE = 0.01
TEMPERATURE_MARGIN_C = 5.0
# Samples must fill half of the window that was asked for, and no more time than the process had.
LEAST_WINDOW = 0.5
LIVE_BITS, UNDERVOLT_BITS = 0xF, 0x10001


def median(values: "Sequence[float]") -> float:
    """Middle value (mean of the middle two)."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return float(ordered[half]) if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2.0


def percentile(ordered: "Sequence[float]", share: float) -> float:
    """The value below which `share` of sorted values lies, interpolated linearly."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def spread(values: "Sequence[float]", center: float) -> float:
    """Median of absolute deviations from `center`."""
    return median([abs(value - center) for value in values])


def mann_whitney_p(first: "Sequence[float]", second: "Sequence[float]") -> float:
    """Two-sided p of the Mann-Whitney U test, by the normal approximation with ties and continuity correction."""
    merged = sorted([(value, 0) for value in first] + [(value, 1) for value in second])
    total = len(merged)
    rank_sum = ties = 0.0
    start = 0
    while start < total:
        end = start
        while end < total and merged[end][0] == merged[start][0]:
            end += 1
        count = end - start
        ties += count ** 3 - count
        rank_sum += (start + end + 1) / 2.0 * sum(1 for at in range(start, end) if merged[at][1] == 0)
        start = end
    n, m = len(first), len(second)
    u = rank_sum - n * (n + 1) / 2.0
    variance = n * m / 12.0 * (total + 1 - ties / (total * (total - 1.0)))
    if variance <= 0:
        return 1.0
    z = max(0.0, abs(u - n * m / 2.0) - 0.5) / math.sqrt(variance)
    return min(1.0, math.erfc(z / math.sqrt(2)))


def is_bimodal(ordered: "Sequence[float]") -> bool:
    """Do sorted values fall into two clusters, each with a tenth of them, with a gap of five spreads between?"""
    total = len(ordered)
    least = int(math.ceil(BIMODAL_MASS * total))
    if total < BIMODAL_SAMPLES:
        return False
    cut = max(range(least, total - least + 1), key=lambda at: ordered[at] - ordered[at - 1])
    gap = ordered[cut] - ordered[cut - 1]
    halves = (ordered[:cut], ordered[cut:])
    widest = max(spread(half, median(half)) for half in halves)
    return gap > BIMODAL_GAP * widest and gap > BIMODAL_SHARE * median(ordered)


def sample_codes(values: "Sequence[float]", batch: int, work: str, inputs: int) -> "list[str]":
    """Codes that follow from the samples of one round.

    Args:
        values: nanoseconds of each sample of `batch` calls, in order.
        work: `constant`, or `per_input`: sums over full passes are then compared instead of samples.
        inputs: number of inputs that are cycled.
    """
    if work != "constant":
        if batch != 1 or len(values) < FEWEST_SAMPLES * inputs:
            return []
        values = [sum(values[at : at + inputs]) for at in range(0, len(values) // inputs * inputs, inputs)]
    if len(values) < FEWEST_SAMPLES:
        return []
    codes = []
    ordered = sorted(values)
    center = median(ordered)
    if 1.4826 * spread(ordered, center) > NOISY_CV * center or percentile(ordered, 0.9) > NOISY_P90 * center:
        codes.append(E_NOISY)
    third = len(values) // 3
    first, last = values[:third], values[-third:]
    before = median(first)
    if abs(median(last) - before) > DRIFT * before and mann_whitney_p(first, last) < DRIFT_P:
        codes.append(E_DRIFT)
    if is_bimodal(ordered):
        codes.append(E_BIMODAL)
    return codes


def environment_codes(seen: "dict[str, Any]") -> "list[str]":
    """Codes that follow from what was seen of the board around a round (`condition.Watch`); what was not seen, None or
    absent, gives none."""
    codes = []
    pressure = max(seen.get("psi_cpu") or 0, seen.get("psi_memory") or 0)
    if (seen.get("other_cpu") or 0) > OTHER_CPU or pressure > PRESSURE:
        codes.append(E_LOAD)
    if (seen.get("swapped_pages") or 0) > 0 or (seen.get("major_faults") or 0) > 0:
        codes.append(E_SWAP)
    bits = (seen.get("throttled_now") or 0) & LIVE_BITS | (seen.get("throttled_new") or 0) & LIVE_BITS << 16
    if bits or (seen.get("throttle_count") or 0) > 0:
        codes.append(E_THROTTLED)
    current = (list(seen.get("overcurrent") or []) + [0, 0])[:2]
    if bits & UNDERVOLT_BITS or seen.get("undervolt_alarm") or current[0] > 0:
        codes.append(E_UNDERVOLT)
    if current[1] > 0:
        codes.append(E_OVERCURRENT)
    if (seen.get("frequency_below") or 0) > FREQUENCY_SHARE * (seen.get("frequency_samples") or 0):
        codes.append(E_FREQ_DRIFT)
    end, limit = seen.get("temperature_end_c"), seen.get("temperature_limit_c")
    if end is not None and limit is not None and end >= limit - TEMPERATURE_MARGIN_C:
        codes.append(E_TEMP_RISE)
    before, after = seen.get("probe_before_ns"), seen.get("probe_after_ns")
    if before and after and abs(after - before) > PROBE_CHANGE * before:
        codes.append(E_BOARD_CHANGED)
    if seen.get("turn") == OVERDUE:
        codes.append(E_SHARED_MACHINE)
    return codes


def plausibility_codes(total_ns: float, seen: "dict[str, Any]") -> "list[str]":
    """`E_IMPLAUSIBLE` where the samples together cannot be true: less than half of the window that they had to fill, or
    more than the process lived (milliseconds for nanoseconds, or the other way round)."""
    window, wall = seen.get("window_s"), seen.get("wall_s")
    if window is not None and total_ns < LEAST_WINDOW * window * 1e9:
        return [E_IMPLAUSIBLE]
    return [E_IMPLAUSIBLE] if wall is not None and total_ns > wall * 1e9 else []


def round_codes(
    values: "Sequence[float]", batch: int, steady: bool, work: str, inputs: int, seen: "dict[str, Any]"
) -> "list[str]":
    """All codes of one round; see the functions above."""
    codes = sample_codes(values, batch, work, inputs) + environment_codes(seen)
    codes += plausibility_codes(sum(values), seen)
    return codes if steady else [*codes, E_NOT_STEADY]


def repeats(codes: "Sequence[str]") -> int:
    """How often a round with these codes is repeated: as often as the most patient of them allows."""
    return max([REPEATS.get(code, 0) for code in codes] or [0])
