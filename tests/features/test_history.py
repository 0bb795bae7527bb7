"""History against the plain oracle and against a live replay, bit for bit, on random streams."""

from __future__ import annotations

from typing import Literal

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from freshscore.features.history import Acceptance, history_features
from freshscore.features.program import compiled
from freshscore.features.specification import FeatureSpecification
from freshscore.features.table import PaymentTable
from tests.features.history_streams import (
    ACCEPTANCE,
    CATEGORIES,
    Floats,
    Stream,
    keys_of,
    live_history,
    oracle_history,
    random_specification,
    random_stream,
    same,
)
from tests.simulations.stories import everything

EVERYTHING = everything()
MODES: tuple[Literal["known", "true"], ...] = ("known", "true")


def features_of(
    table: PaymentTable,
    mode: Literal["known", "true"] = "known",
    acceptance: Acceptance | None = ACCEPTANCE,
) -> Floats:
    """The history of a table, by its rows."""
    program = compiled(table.specification)
    return history_features(
        table,
        program,
        keys_of(program),
        mode=mode,
        acceptance=acceptance,
        categories=CATEGORIES,
    )


def differences(spec: FeatureSpecification, one: Floats, other: Floats) -> list[tuple[int, str]]:
    """(row, column) where two matrices differ."""
    equal = (one == other) | (np.isnan(one) & np.isnan(other))
    return [(int(row), spec.feature_names[column]) for row, column in np.argwhere(~equal)]


def check_oracle(spec: FeatureSpecification, stream: Stream) -> None:
    """Both modes equal the oracle's."""
    table = stream.table(spec)
    for mode in MODES:
        expected = oracle_history(spec, stream, mode)[table.row]
        found = features_of(table, mode)
        assert same(expected, found), (mode, differences(spec, expected, found))


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 30), trouble=st.sampled_from((0.0, 0.2, 0.8)))
def test_history_equals_the_oracle_for_every_function(seed: int, n: int, trouble: float) -> None:
    """Every aggregate, condition and feature; ties, late arrivals, repeated ids, facts."""
    check_oracle(EVERYTHING, random_stream(np.random.default_rng(seed), n, trouble))


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 30), trouble=st.sampled_from((0.0, 0.2, 0.8)))
def test_history_equals_the_oracle_for_any_specification(seed: int, n: int, trouble: float) -> None:
    rng = np.random.default_rng(seed)
    spec = random_specification(rng)
    check_oracle(spec, random_stream(rng, n, trouble))


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 150),
    trouble=st.sampled_from((0.0, 0.1, 0.5, 0.9)),
)
def test_known_history_equals_a_live_replay_for_any_specification(
    seed: int, n: int, trouble: float
) -> None:
    rng = np.random.default_rng(seed)
    spec = EVERYTHING if rng.random() < 0.2 else random_specification(rng)
    table = random_stream(rng, n, trouble).table(spec)
    expected = live_history(table, ACCEPTANCE)
    found = features_of(table)
    assert same(expected, found), differences(spec, expected, found)
