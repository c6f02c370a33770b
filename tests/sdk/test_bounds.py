"""Bounds against scipy's exact functions, by hand, and by simulation: how often they lie."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from edgesdk.bounds import best_stake, betting_p_value, binomial_p_value, clopper_pearson_upper, rows_needed


@pytest.mark.parametrize(("losses", "rows"), [(0, 10), (0, 1000), (3, 50), (49, 50), (17, 3000)])
@pytest.mark.parametrize("delta", [0.01, 0.05, 0.5])
def test_clopper_pearson_is_where_so_few_losses_have_probability_delta(losses: int, rows: int, delta: float) -> None:
    bound = clopper_pearson_upper(losses, rows, delta)
    assert stats.binom.cdf(losses, rows, bound) == pytest.approx(delta, rel=1e-6)
    assert binomial_p_value(losses, rows, bound) == pytest.approx(delta, rel=1e-6)


def test_bounds_at_the_ends() -> None:
    assert clopper_pearson_upper(5, 5, 0.05) == 1.0
    assert clopper_pearson_upper(0, 0, 0.05) == 1.0
    assert clopper_pearson_upper(0, 59, 0.05) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert binomial_p_value(10, 10, 0.3) == 1.0


@pytest.mark.parametrize(("risk", "delta"), [(0.004, 0.05), (0.05, 0.05), (0.5, 0.01)])
def test_rows_needed_is_the_smallest_number_that_proves_it(risk: float, delta: float) -> None:
    rows = rows_needed(risk, delta)
    assert binomial_p_value(0, rows, risk) <= delta < binomial_p_value(0, rows - 1, risk)


def test_rows_needed_by_hand() -> None:
    assert rows_needed(0.05, 0.05) == 59  # 0.95^59 = 0.0485, the rule of three


def test_betting_by_hand() -> None:
    # 10 rows: one loss 1, two of −1, seven of 0; stake 0.5, risk 0.1.
    capital = (1 - 0.5 * 0.9) * (1 + 0.5 * 1.1) ** 2 * (1 + 0.5 * 0.1) ** 7
    assert betting_p_value(1, 2, 10, 0.1, 0.5) == pytest.approx(1 / capital)
    assert betting_p_value(5, 0, 10, 0.1, 0.5) == 1.0


def test_betting_everything_on_no_loss_is_the_binomial_test() -> None:
    assert betting_p_value(0, 0, 500, 0.01, 1e9) == pytest.approx(binomial_p_value(0, 500, 0.01))
    assert betting_p_value(1, 0, 500, 0.01, 1e9) == 1.0


def test_no_stake_proves_nothing() -> None:
    assert betting_p_value(0, 100, 1000, 0.01, 0.0) == 1.0
    assert betting_p_value(0, 0, 0, 0.01, 0.5) == 1.0


@pytest.mark.parametrize("better", [0.0, 0.01, 0.05])
def test_p_values_of_true_hypotheses_are_below_delta_in_delta_of_the_draws(better: float) -> None:
    """The risk is a little above what is claimed, so every p-value ≤ delta is a lie."""
    random, risk, delta, rows, draws = np.random.default_rng(1), 0.02, 0.1, 400, 3000
    worse = risk + better
    stake = best_stake(risk * rows / 4, better * rows, rows, risk)  # of somebody who hopes for a smaller risk
    counts = random.multinomial(rows, [worse, better, 1 - worse - better], draws)
    lies = np.mean([betting_p_value(int(w), int(b), rows, risk, stake) <= delta for w, b, _ in counts])
    assert lies <= delta + 3 * math.sqrt(delta * (1 - delta) / draws)
    if better < risk:
        assert lies > 0  # the test has something to find
    if better == 0.0:
        exact = np.mean([binomial_p_value(int(w), rows, risk) <= delta for w, _, _ in counts])
        assert exact <= delta + 3 * math.sqrt(delta * (1 - delta) / draws)


def test_betting_proves_a_gain_that_gross_losses_hide() -> None:
    """20 losses and 30 wins in 3000 rows: accuracy does not fall, though 0.67 % of the rows are lost."""
    stake = best_stake(20, 30, 3000, 0.004)
    assert betting_p_value(20, 30, 3000, 0.004, stake) < 0.05
    assert binomial_p_value(20, 3000, 0.004) > 0.5


def test_stake_grows_as_losses_become_rare() -> None:
    stakes = [best_stake(losses, 0, 1000, 0.02) for losses in (30, 10, 1, 0)]
    assert stakes == sorted(stakes)
    assert 0 <= stakes[0] < stakes[-1] < 1 / 0.98
