"""The adaptive deadline follows what exchanges take, within its limits."""

from __future__ import annotations

import random

import numpy as np
import pytest

from freshscore.scoring.exchange_limit import TIMED, ExchangeLimit

LEAST_S, MOST_S = 0.02, 1.0


def test_without_measurements_it_is_the_whole_timeout() -> None:
    limit = ExchangeLimit(LEAST_S, MOST_S)
    for _ in range(10):
        limit.took(0.000_1)
    assert limit.limit_s == MOST_S


def test_a_floor_above_the_timeout_is_the_timeout() -> None:
    limit = ExchangeLimit(2.0, MOST_S)
    for _ in range(1_000):
        limit.took(0.000_1)
    assert limit.limit_s == MOST_S


@pytest.mark.parametrize("scale_s", [0.000_05, 0.002, 0.01, 0.1])
def test_it_is_four_times_the_percentile_to_a_factor_of_two(scale_s: float) -> None:
    chance = np.random.default_rng(1)
    took_s = scale_s * chance.lognormal(0.0, 0.5, 900)
    limit = ExchangeLimit(LEAST_S, MOST_S)
    for one in took_s.tolist():
        limit.took(one)
    wanted = 4.0 * float(np.quantile(took_s, 0.999))
    least, most = max(LEAST_S, 0.5 * wanted), min(MOST_S, 4.0 * wanted)
    assert min(least, MOST_S) <= limit.limit_s <= max(most, LEAST_S)


def test_a_server_that_became_slow_is_not_given_up_for_good() -> None:
    """It answers in 80 ms where 20 were allowed: what is given up lets the limit rise."""
    limit = ExchangeLimit(LEAST_S, MOST_S)
    for _ in range(5_000):
        limit.took(0.000_1)
    assert limit.limit_s == LEAST_S
    n_given_up = 0
    while limit.limit_s < 0.08:
        limit.gave_up(limit.limit_s)
        n_given_up += 1
    assert n_given_up < 100
    # And falls again once it is as fast as it was.
    for _ in range(12 * 8_192 // TIMED):
        limit.took(0.000_1)
    assert limit.limit_s == LEAST_S


def test_a_rare_pause_does_not_move_it() -> None:
    chance = random.Random(1)
    limit = ExchangeLimit(LEAST_S, MOST_S)
    for number in range(20_000):
        limit.took(0.000_1 * chance.uniform(0.5, 3.0))
        if number % 4_000 == 3_999:
            limit.gave_up(limit.limit_s)
        assert number < 100 or limit.limit_s == LEAST_S
