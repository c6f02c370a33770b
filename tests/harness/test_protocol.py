"""Statistics of the measuring protocol against values computed by hand, and its codes on made-up samples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgesdk.harness.protocol import (
    E_DRIFT,
    E_LOAD,
    E_NOISY,
    E_NOT_STEADY,
    PROFILES,
    interval,
    passes,
    round_codes,
)


def codes(samples: list[float], steady: bool = True, other: float = 0.0, work: str = "constant") -> list[str]:
    """Codes of one round over four inputs."""
    return round_codes(np.array(samples, dtype=np.int64), 1, steady, other, work, 4)


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
    assert codes([1e6] * 30, other=0.06) == [E_LOAD]
    assert codes([1e6] * 30, steady=False) == [E_NOT_STEADY]


def test_inputs_that_differ_in_work_are_compared_by_full_passes() -> None:
    """Four inputs of 1 to 4 ms, cycled: noisy as constant work, quiet as work per input."""
    samples = [1e6, 2e6, 3e6, 4e6] * 12
    assert codes(samples) == [E_NOISY]
    assert codes(samples, work="per_input") == []
    slower = samples + [1.2 * value for value in samples]
    assert E_DRIFT in codes(slower, work="per_input")
    np.testing.assert_array_equal(passes(np.array([1.0, 2, 3, 4, 5]), 2), [3, 7])


def test_rounds_together_reach_the_sample_minimum() -> None:
    """Each round takes its share, rounded up."""
    for profile in PROFILES.values():
        numbers = profile.worker_numbers()
        assert numbers["min_samples"] * profile.rounds >= profile.min_samples
        assert set(numbers) == {
            "warmup_iterations", "warmup_seconds", "max_warmup_seconds", "window_seconds", "min_samples",
            "ci_half_width", "extra_rounds", "steady_percent",
        }
