"""Two candidates of one job against one another (section 3.4 of the measuring protocol).

Rounds of one index ran near one another, interleaved in random order: the statistics are of their paired differences.
Two separate jobs differ by more than most changes do, so measurements of different jobs are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from edgesdk.errors import Unmeasured

P_LIMIT = 0.01
SMALL_EFFECT, SMALLER_EFFECT, MANY_ROUNDS = 0.03, 0.02, 10
FEWEST_ROUNDS = 2
NOISE_FACTOR = 2.0


@dataclass(frozen=True)
class Comparison:
    """b against a: `ratio` of their latencies with its 95 % interval, `p` of a paired t test on log round medians,
    the `least` effect that counts here, and the `verdict`: `faster`, `slower`, `same`, or `board_change` where the
    micro-probe moved in the rounds too."""

    ratio: float
    low: float
    high: float
    p: float
    least: float
    rounds: int
    verdict: str

    @property
    def changed(self) -> bool:
        """Is b another speed than a?"""
        return self.verdict in ("faster", "slower")


def least_effect(rounds: int, noise: float = 0.0) -> float:
    """The smallest effect that counts: 3 % (2 % from ten rounds on), and at least twice the board's A/A noise."""
    return max(SMALLER_EFFECT if rounds >= MANY_ROUNDS else SMALL_EFFECT, NOISE_FACTOR * noise)


def compare_rounds(
    first: Sequence[float], second: Sequence[float], noise: float = 0.0, board_changed: bool = False
) -> Comparison:
    """Compare round medians that belong together by their places.

    Args:
        first, second: medians of the rounds of a and of b, in any unit.
        noise: the board's A/A noise floor, as a share.
        board_changed: the micro-probe moved: what differs is then not said of the model.

    Raises:
        Unmeasured: fewer than two pairs.
    """
    if len(first) != len(second) or len(first) < FEWEST_ROUNDS:
        raise Unmeasured(
            f"{len(first)} and {len(second)} rounds: too few pairs to compare (insufficient_data)",
            "measure both candidates in one job, in a profile with more rounds",
        )
    differences = np.log(np.asarray(second, np.float64)) - np.log(np.asarray(first, np.float64))
    n = len(differences)
    center = float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(center) / error, n - 1)) if error > 0 else float(center == 0)
    least = least_effect(n, noise)
    ratio = math.exp(center)
    changed = p < P_LIMIT and abs(center) > half and abs(ratio - 1) >= least
    verdict = "same"
    if changed:
        verdict = "board_change" if board_changed else "slower" if center > 0 else "faster"
    return Comparison(ratio, math.exp(center - half), math.exp(center + half), p, least, n, verdict)


def compare(a: Mapping[str, Any], b: Mapping[str, Any], noise: float = 0.0) -> Comparison:
    """Compare two measurement documents of one job.

    Raises:
        Unmeasured: they are not timed, not valid, not of one job (board, profile, seed and start), or have fewer than
            two rounds in common.
    """
    for document in (a, b):
        if not document["valid"] or document["latency_ms"]["provenance"] != "measured":
            raise Unmeasured(f"{document['name']}: has no valid latency to compare", "see its `reasons`")
    keys = ("board", "profile", "seed", "started")
    if any(a[key] != b[key] for key in keys):
        raise Unmeasured(
            f"{a['name']} and {b['name']} were not measured in one job: jobs differ by more than most changes do",
            "measure both with one `edgesdk bench` command",
        )
    medians = [{entry["index"]: entry for entry in document["rounds"]} for document in (a, b)]
    common = sorted(set(medians[0]) & set(medians[1]))
    pairs = [[entries[index] for index in common] for entries in medians]
    moved = any("E_BOARD_CHANGED" in entry["codes"] for entries in pairs for entry in entries)
    first, second = ([float(entry["p50_ns"]) for entry in entries] for entries in pairs)
    return compare_rounds(first, second, noise, moved)
