"""History of the shipped specifications: beside a live replay, and beside pandas."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest

from freshscore.features.history import history_features
from freshscore.features.program import compiled
from freshscore.features.reading import read_payments
from freshscore.features.specification import FeatureSpecification
from freshscore.features.table import PaymentTable
from freshscore.simulations.generator import Parameters, generate
from freshscore.simulations.generator_attacks import BurstShape
from tests.features.handbook_in_pandas import handbook_features, tied_rows
from tests.features.history_streams import Floats, keys_of, live_history, same

# What pandas' running sums of floats lose over half a year.
_RELATIVE = 1e-9


def features_of(table: PaymentTable) -> Floats:
    program = compiled(table.specification)
    return history_features(table, program, keys_of(program))


def test_payments_history_equals_a_live_replay(rng: np.random.Generator) -> None:
    """Five entities, absent ones, bursts with many ties, flags and facts known later."""
    burst = BurstShape(duration_ms=20_000)
    parameters = Parameters(
        customers=60, terminals=90, days=45, devices=True, attacks=3, attack=burst
    )
    frame = generate(parameters, rng)
    frame["declined"] = rng.random(len(frame)) < 0.1
    frame["chargeback"] = frame["fraud"] & (rng.random(len(frame)) < 0.5)
    frame.loc[rng.random(len(frame)) < 0.05, ["device", "email"]] = None
    table = read_payments(frame, FeatureSpecification.shipped("payments"))
    assert len(table) > 2_000
    assert len(table.facts) > 0
    assert same(live_history(table, None), features_of(table))


def test_sparkov_history_equals_a_live_replay(rng: np.random.Generator) -> None:
    """Places, categories, plain fields and ties to the second."""
    n = 3_000
    seconds = np.sort(rng.integers(0, 40 * 86_400, n))
    frame = pd.DataFrame(
        {
            "transaction_id": [f"s{i}" for i in range(n)],
            "timestamp": 1_560_000_000 + seconds // 30 * 30,
            "card_id": rng.integers(0, 9, n).astype(str),
            "merchant_id": rng.integers(0, 25, n).astype(str),
            "category": rng.choice(["travel", "grocery_pos"], n),
            "amount": rng.lognormal(3, 1, n).round(2),
            "card_lat": rng.uniform(30, 45, n),
            "card_long": rng.uniform(-120, -70, n),
            "merchant_lat": rng.uniform(30, 45, n),
            "merchant_long": rng.uniform(-120, -70, n),
            "is_fraud": rng.random(n) < 0.05,
        }
    )
    table = read_payments(frame, FeatureSpecification.shipped("sparkov"))
    found = features_of(table)
    assert same(live_history(table, None), found)
    speeds = found[:, table.specification.feature_names.index("card_speed")]
    assert np.isfinite(speeds).sum() > n // 2


def check_handbook(frame: pd.DataFrame, expected: pd.DataFrame) -> tuple[int, int]:
    """Compare with pandas; payments that tie to the second, and how many of those differ."""
    table = read_payments(frame, FeatureSpecification.shipped("handbook"))
    found = features_of(table)
    names = table.specification.feature_names
    values = expected[list(names)].to_numpy()
    close = np.isclose(found, values, rtol=_RELATIVE, atol=1e-12).all(axis=1)
    tied = tied_rows(frame).to_numpy()
    assert close[~tied].all()
    counts = [i for i, name in enumerate(names) if "_count_" in name]
    assert np.array_equal(found[~tied][:, counts], np.round(values[~tied][:, counts]))
    return int(tied.sum()), int((~close).sum())


@pytest.mark.parametrize("seed", range(3))
def test_handbook_features_equal_those_of_pandas(seed: int) -> None:
    parameters = Parameters(customers=150, terminals=300, days=70)
    frame = generate(parameters, np.random.default_rng(seed), "handbook")
    tied, _ = check_handbook(frame, handbook_features(frame))
    assert tied < len(frame) // 100


def test_canary_one_fraud_more_is_seen() -> None:
    parameters = Parameters(customers=60, terminals=90, days=40)
    frame = generate(parameters, np.random.default_rng(1), "handbook")
    legitimate = frame.index[(frame["TX_FRAUD"] == 0) & (frame.index < len(frame) // 2)]
    other = frame.copy()
    other.loc[legitimate[0], "TX_FRAUD"] = 1
    with pytest.raises(AssertionError):
        check_handbook(frame, handbook_features(other))


@pytest.mark.soak
def test_handbook_features_of_the_published_size_equal_those_of_pandas(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """1.75 million payments; prints what both took."""
    frame = generate(Parameters(), np.random.default_rng(1), "handbook")
    began_s = time.perf_counter()
    expected = handbook_features(frame)
    pandas_s = time.perf_counter() - began_s
    tied, differing = check_handbook(frame, expected)
    table = read_payments(frame, FeatureSpecification.shipped("handbook"))
    began_s = time.perf_counter()
    features_of(table)
    ours_s = time.perf_counter() - began_s
    with capsys.disabled():
        print(
            f"\n{len(frame):,} payments, {tied:,} tied to the second, {differing:,} of them differ;"
            f" history {ours_s:.2f} s, pandas {pandas_s:.2f} s"
        )
