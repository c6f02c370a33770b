"""Statistics of the measuring protocol against values computed by hand, and its codes on made-up samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from edgesdk.harness.board import Board
from edgesdk.harness.protocol import (
    ALWAYS_REFUSE,
    LABELS,
    NEVER_REFUSE,
    PROFILES,
    clock_is_wrong,
    interval,
    refuses,
    round_codes,
)
from edgesdk.harness.worker import codes as worker_codes
from edgesdk.harness.worker.codes import (
    E_BIMODAL,
    E_BOARD_CHANGED,
    E_DRIFT,
    E_FREQ_DRIFT,
    E_IMPLAUSIBLE,
    E_LOAD,
    E_NOISY,
    E_NOT_STEADY,
    E_OVERCURRENT,
    E_SWAP,
    E_TEMP_RISE,
    E_THROTTLED,
    E_UNDERVOLT,
    REPEATS,
    is_bimodal,
    mann_whitney_p,
    repeats,
)


def codes(samples: list[float], steady: bool = True, work: str = "constant", **seen: Any) -> list[str]:
    """Codes of one round over four inputs."""
    return round_codes(np.array(samples, dtype=np.int64), 1, steady, work, 4, seen)


def test_interval_by_hand() -> None:
    """Logs 0, 1, 2: mean 1, standard error 1/sqrt(3), t(0.975, 2) = 4.302653."""
    center, low, high = interval([math.exp(0), math.exp(1), math.exp(2)])
    assert math.log(center) == pytest.approx(1)
    assert math.log(high) == pytest.approx(1 + 4.302652730 / math.sqrt(3))
    assert math.log(low) == pytest.approx(1 - 4.302652730 / math.sqrt(3))


def test_one_round_has_no_interval() -> None:
    """One round says nothing about the spread between rounds."""
    center, low, high = interval([2.0])
    assert center == pytest.approx(2.0) and math.isnan(low) and math.isnan(high)


def test_interval_covers() -> None:
    """With 3 rounds of log-normal medians the 95 % interval covers the truth in 92 to 98 % of 2000 simulations."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        _, low, high = interval([float(value) for value in np.exp(generator.normal(0, 0.01, 3))])
        hits += low <= 1 <= high
    assert 0.92 < hits / 2000 < 0.98


def test_quiet_round_has_no_codes() -> None:
    """1 % of jitter is fine."""
    jitter = np.random.default_rng(1).normal(1e6, 1e4, 90)
    assert codes(list(jitter)) == []


def test_noise_drift_load_and_warm_up() -> None:
    """Each fault has its code."""
    generator = np.random.default_rng(2)
    assert E_NOISY in codes(list(generator.uniform(1e6, 2e6, 90)))
    assert E_NOISY in codes([1e6] * 80 + [1.6e6] * 20)
    assert codes(list(np.linspace(1e6, 1.08e6, 90) + generator.normal(0, 1e3, 90))) == [E_DRIFT]
    assert codes([1e6] * 30, other_cpu=0.06) == [E_LOAD]
    assert codes([1e6] * 30, steady=False) == [E_NOT_STEADY]


def test_inputs_that_differ_in_work_are_compared_by_full_passes() -> None:
    """Four inputs of 1 to 4 ms, cycled: noisy as constant work, quiet as work per input."""
    samples = [1e6, 2e6, 3e6, 4e6] * 12
    assert codes(samples) == [E_NOISY]
    assert codes(samples, work="per_input") == []
    slower = samples + [1.2 * value for value in samples]
    assert E_DRIFT in codes(slower, work="per_input")


QUIET = [1e6] * 30


@pytest.mark.parametrize(
    ("seen", "code"),
    [
        ({"other_cpu": 0.06}, E_LOAD), ({"psi_cpu": 0.06}, E_LOAD), ({"psi_memory": 0.06}, E_LOAD),
        ({"swapped_pages": 1}, E_SWAP), ({"major_faults": 1}, E_SWAP),
        ({"throttled_now": 0x8}, E_THROTTLED), ({"throttled_new": 0x40000}, E_THROTTLED),
        ({"throttle_count": 1}, E_THROTTLED), ({"undervolt_alarm": True}, E_UNDERVOLT),
        ({"overcurrent": [1, 0, 0]}, E_UNDERVOLT), ({"overcurrent": [0, 1, 0]}, E_OVERCURRENT),
        ({"frequency_samples": 100, "frequency_below": 2}, E_FREQ_DRIFT),
        ({"temperature_end_c": 75.0, "temperature_limit_c": 80.0}, E_TEMP_RISE),
        ({"probe_before_ns": 100_000, "probe_after_ns": 102_100}, E_BOARD_CHANGED),
        ({"probe_before_ns": 100_000, "probe_after_ns": 97_900}, E_BOARD_CHANGED),
        ({"window_s": 0.1}, E_IMPLAUSIBLE), ({"wall_s": 0.02}, E_IMPLAUSIBLE),
    ],
)
def test_what_is_seen_of_the_board_has_its_code(seen: dict[str, Any], code: str) -> None:
    """One fault, one code."""
    assert codes(QUIET, **seen) == [code]


def test_undervoltage_is_throttling_too() -> None:
    """Bits 0 and 16 of a Raspberry Pi."""
    assert codes(QUIET, throttled_now=1) == codes(QUIET, throttled_new=1 << 16) == [E_THROTTLED, E_UNDERVOLT]


def test_what_is_within_limits_or_not_seen_has_no_code() -> None:
    """The other side of each limit; sticky bits of before; OC3 events, which are normal in the fastest mode."""
    seen: dict[str, Any] = {
        "other_cpu": 0.05, "psi_cpu": 0.05, "psi_io": 0.9, "swapped_pages": 0, "throttled_before": 0x50000,
        "throttled_now": 0, "throttled_new": 0, "throttle_count": 0, "overcurrent": [0, 0, 27390],
        "frequency_samples": 100, "frequency_below": 1, "temperature_end_c": 74.9, "temperature_limit_c": 80.0,
        "probe_before_ns": 100_000, "probe_after_ns": 102_000, "window_s": 0.05, "wall_s": 0.03,
    }
    assert codes(QUIET, **seen) == []
    nothing: dict[str, Any] = dict.fromkeys(seen)
    assert codes(QUIET, **nothing) == []


def test_two_modes_are_found_and_one_is_not() -> None:
    """Clusters of 50:50 and of 85:15 with a gap; a broad one, quantized times and a few outliers have one mode."""
    generator = np.random.default_rng(3)
    for share in (50, 85):
        low, high = generator.normal(1e6, 2e3, share), generator.normal(1.06e6, 2e3, 100 - share)
        assert is_bimodal(sorted([*low, *high]))
    assert not is_bimodal(sorted(generator.normal(1e6, 3e4, 400)))
    assert not is_bimodal(sorted([*generator.normal(1e6, 2e3, 95), *generator.normal(1.2e6, 2e3, 5)]))
    assert not is_bimodal([1_000_000] * 50 + [1_000_100] * 50)
    assert codes([1e6] * 50 + [1.06e6] * 50).count(E_BIMODAL) == 1


@pytest.mark.parametrize("tied", [False, True])
def test_mann_whitney_is_that_of_scipy(tied: bool) -> None:
    """The board's p is the asymptotic one of scipy, with and without ties."""
    generator = np.random.default_rng(4)
    for shift in (0.0, 0.3, 1.0):
        first, second = generator.normal(0, 1, 40), generator.normal(shift, 1, 50)
        if tied:
            first, second = np.round(first), np.round(second)
        expected = stats.mannwhitneyu(first, second, method="asymptotic").pvalue
        assert mann_whitney_p(first.tolist(), second.tolist()) == pytest.approx(expected, rel=1e-9)
    assert mann_whitney_p([1.0] * 9, [1.0] * 9) == 1.0


def test_every_code_has_a_label_and_its_repeats() -> None:
    """No round can get a code that the document has no word for."""
    known = {value for name, value in vars(worker_codes).items() if name.startswith("E_")}
    assert known <= set(LABELS)
    assert set(NEVER_REFUSE) | set(ALWAYS_REFUSE) <= set(LABELS)
    assert repeats([]) == repeats([E_BIMODAL, E_IMPLAUSIBLE]) == 0
    assert repeats([E_DRIFT]) == 1 and repeats([E_DRIFT, E_NOISY]) == 2
    assert max(REPEATS.values()) == 2


def test_who_refuses() -> None:
    """A lenient profile labels on this machine and on emulated boards, and refuses on a real board like the others."""
    here, real = Board("host", "host"), Board("pi", "rpi5", host="192.0.2.1")
    emulated = Board("emu", "rpi5", host="127.0.0.1", emulated=True)
    smoke, nightly = PROFILES["smoke"], PROFILES["nightly"]
    assert [refuses(smoke, board) for board in (here, emulated, real)] == [False, False, True]
    assert [refuses(nightly, board) for board in (here, emulated, real)] == [True, True, True]


@pytest.mark.parametrize(
    ("skew", "rtt", "resolution", "wrong"),
    [
        (0.39, 0.0, 1e-9, False), (0.41, 0.0, 1e-9, True), (-3600.0, 0.01, 1e-9, True), (0.6, 1.0, 1e-9, False),
        (0.8, 0.0, 1.0, False), (1.0, 0.0, 1.0, True),
    ],
)
def test_a_clock_is_wrong_beyond_doubt(skew: float, rtt: float, resolution: float, wrong: bool) -> None:
    """400 ms, and what the round trip or whole seconds leave open is not held against the board."""
    assert clock_is_wrong({"skew_s": skew, "rtt_s": rtt, "resolution_s": resolution}) is wrong
    assert not clock_is_wrong(None)
    assert not clock_is_wrong({"skew_s": None, "rtt_s": None, "resolution_s": None})


def test_rounds_together_reach_the_sample_minimum() -> None:
    """Each round takes its share, rounded up."""
    for profile in PROFILES.values():
        numbers = profile.worker_numbers()
        assert numbers["min_samples"] * profile.rounds >= profile.min_samples
        assert set(numbers) == {
            "warmup_iterations", "warmup_seconds", "max_warmup_seconds", "window_seconds", "min_samples",
            "ci_half_width", "extra_rounds", "steady_percent", "probe_seconds", "idle_seconds", "idle_wait_seconds",
            "cool_wait_seconds", "warm_loads",
        }
