"""The statistics against simulations under the noise model of the protocol's section 3.0: rounds differ by sd 1 %,
samples within a round by sd 2 or 3 %. Seeded, so each share is one number."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness_artifacts import runner_artifact
from numpy.typing import NDArray

from edgesdk.errors import Unmeasured
from edgesdk.harness import noise
from edgesdk.harness.board import Board
from edgesdk.harness.compare import compare, compare_rounds, least_effect
from edgesdk.harness.noise import noise_floor
from edgesdk.harness.protocol import interval, load_profile
from edgesdk.targets.target import Target

BETWEEN = 0.01


def medians(
    generator: np.random.Generator, rounds: int, samples: int, within: float, truth: float = 1.0,
    between: float = BETWEEN,
) -> NDArray[np.float64]:
    """Medians of rounds [rounds] of a program that takes `truth`."""
    level = generator.normal(0, between, (rounds, 1))
    values = truth * np.exp(level + generator.normal(0, within, (rounds, samples)))
    found: NDArray[np.float64] = np.median(values, axis=1)
    return found


@pytest.mark.parametrize(("rounds", "samples"), [(3, 67), (5, 40), (10, 66)])
def test_the_interval_covers_the_truth_in_95_of_100(rounds: int, samples: int) -> None:
    """93 to 97 % of 1000 tries."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        _, low, high = interval(medians(generator, rounds, samples, 0.02).tolist())
        hits += low <= 1 <= high
    assert 930 <= hits <= 970


def test_a_bootstrap_over_samples_would_not() -> None:
    """Why the unit is the round: an interval from all samples together misses the truth half of the time."""
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        level = generator.normal(0, BETWEEN, (5, 1))
        values = np.exp(level + generator.normal(0, 0.02, (5, 40))).ravel()
        drawn = np.median(generator.choice(values, (200, len(values))), axis=1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        hits += bool(low <= 1 <= high)
    assert hits < 70


@pytest.mark.parametrize("rounds", [5, 10])
def test_identical_artifacts_are_called_changed_in_at_most_one_of_a_hundred(rounds: int) -> None:
    """200 simulated runs of A against A."""
    generator = np.random.default_rng(2)
    called = 0
    for _ in range(200):
        pair = [medians(generator, rounds, 40, 0.03).tolist() for _ in range(2)]
        called += compare_rounds(*pair).changed
    assert called <= 2


@pytest.mark.parametrize(("rounds", "effect", "least"), [(5, 1.05, 0.8), (10, 1.05, 0.99), (10, 1.03, 0.9)])
def test_changes_that_matter_are_called(rounds: int, effect: float, least: float) -> None:
    """5 % at five rounds, 3 % at ten, in nearly every run; the direction is right."""
    generator = np.random.default_rng(3)
    found = [
        compare_rounds(
            medians(generator, rounds, 66, 0.03).tolist(), medians(generator, rounds, 66, 0.03, effect).tolist()
        ).verdict
        for _ in range(200)
    ]
    assert found.count("slower") >= least * 200 and not found.count("faster")


def test_a_comparison_by_hand() -> None:
    """Differences of logs 0.1, 0.2, 0.3: mean 0.2, error 0.1/sqrt(3), t = 2 sqrt(3), p = 0.0742 at two degrees."""
    found = compare_rounds([1, 1, 1], [math.exp(0.1), math.exp(0.2), math.exp(0.3)])
    half = 4.302652730 * 0.1 / math.sqrt(3)
    assert math.log(found.ratio) == pytest.approx(0.2)
    assert (math.log(found.low), math.log(found.high)) == pytest.approx((0.2 - half, 0.2 + half))
    assert found.p == pytest.approx(0.0741799)
    assert found.verdict == "same" and not found.changed


def test_small_noise_and_moving_boards_are_not_changes() -> None:
    """The least effect, twice the board's noise, and a micro-probe that moved."""
    base = [100.0, 101.0, 99.0, 100.5, 99.5]
    slower = [1.1 * value for value in base]
    assert compare_rounds(base, slower).verdict == "slower"
    assert compare_rounds(slower, base).verdict == "faster"
    assert compare_rounds(base, [1.02 * value for value in base]).verdict == "same"
    assert compare_rounds(base, slower, noise=0.06).verdict == "same"
    assert compare_rounds(base, slower, board_changed=True).verdict == "board_change"
    assert compare_rounds(base, base).verdict == "same"
    assert [least_effect(5), least_effect(10), least_effect(10, 0.05)] == [0.03, 0.02, 0.1]


@pytest.mark.parametrize("pair", [([], []), ([1.0], [1.0]), ([1.0, 2.0], [1.0])])
def test_too_few_rounds_are_insufficient(pair: tuple[list[float], list[float]]) -> None:
    """No verdict from less than two pairs."""
    with pytest.raises(Unmeasured, match="insufficient_data"):
        compare_rounds(*pair)


def document(p50s: dict[int, int], **values: Any) -> dict[str, Any]:
    """What `compare` reads of a measurement."""
    return {
        "name": "x", "valid": True, "latency_ms": {"provenance": "measured"}, "board": "host", "profile": "smoke",
        "seed": 0, "started": "2026-11-22T12:00:00+00:00",
        "rounds": [{"index": index, "p50_ns": p50, "codes": []} for index, p50 in p50s.items()], **values,
    }


def test_documents_of_one_job_are_paired_by_round() -> None:
    """Rounds that only one has do not take part; order does not matter."""
    found = compare(document({0: 100, 1: 110, 2: 120}), document({2: 240, 0: 200, 3: 999, 1: 220}))
    assert found.rounds == 3 and found.ratio == pytest.approx(2) and found.verdict == "slower"


@pytest.mark.parametrize(
    ("change", "words"),
    [({"started": "2026-11-23T12:00:00+00:00"}, "one job"), ({"seed": 1}, "one job"), ({"board": "b"}, "one job"),
     ({"valid": False}, "valid"), ({"latency_ms": {"provenance": "unmeasured"}}, "valid")],
)
def test_documents_that_cannot_be_compared(change: dict[str, Any], words: str) -> None:
    """Other jobs, and measurements that are not valid."""
    one = document({0: 100, 1: 100})
    with pytest.raises(Unmeasured, match=words):
        compare(one, {**document({0: 100, 1: 100}), **change})


def test_noise_floor_is_of_two_identical_artifacts(
    host: Board, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two names, equal model files, one job; the noise is the larger of effect and half-width."""
    seen: list[Path] = []

    def measured(board: Board, target: Target, folders: list[Path], **_: Any) -> list[dict[str, Any]]:
        seen.extend(folders)
        assert (folders[0] / "model").read_bytes() == (folders[1] / "model").read_bytes()
        assert (folders[0] / "artifact.json").read_bytes() != (folders[1] / "artifact.json").read_bytes()
        latency = {"provenance": "measured", "p50": 1.0, "ci95": [0.98, 1.02]}
        return [
            document({0: 1000, 1: 1000, 2: 1000}, latency_ms=latency), document({0: 1010, 1: 1020, 2: 1030})
        ]

    monkeypatch.setattr(noise, "measure", measured)
    folder = runner_artifact(tmp_path / "a", b"#!/bin/sh\n")
    found = noise_floor(host, folder, target, load_profile("quick"), tmp_path / "work")
    assert len(seen) == 2 and not seen[1].exists()
    assert found.half_width == pytest.approx(0.02)
    half = (math.log(found.comparison.high) - math.log(found.comparison.low)) / 2
    assert found.noise == pytest.approx(max(half, math.log(found.comparison.ratio))) and found.noise > 0.019


def test_no_noise_floor_without_a_latency(
    host: Board, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reasons of the measurement are those of the missing floor."""
    bad = document({}, valid=False, reasons=["E_CRASH: killed by SIGILL"])
    monkeypatch.setattr(noise, "measure", lambda *_, **__: [bad, bad])
    with pytest.raises(Unmeasured, match="SIGILL"):
        noise_floor(
            host, runner_artifact(tmp_path / "a", b"x"), target, load_profile("quick"), tmp_path / "work"
        )
