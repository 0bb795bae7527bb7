"""History against the plain oracle and against a live replay, bit for bit, on random streams."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshscore.features.history import Acceptance, history_features
from freshscore.features.program import compiled
from freshscore.features.specification import Feature, FeatureSpecification
from freshscore.features.table import PaymentTable
from tests.features.history_streams import (
    ACCEPTANCE,
    CATEGORIES,
    FACTS,
    START_MS,
    Floats,
    Stream,
    keys_of,
    live_history,
    oracle_history,
    random_specification,
    random_stream,
    same,
    with_time,
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


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 30), trouble=st.sampled_from((0.0, 0.2, 0.8)))
def test_history_equals_the_oracle_for_every_function(seed: int, n: int, trouble: float) -> None:
    """Every aggregate, condition and feature; ties, late arrivals, repeated ids, facts."""
    check_oracle(EVERYTHING, random_stream(np.random.default_rng(seed), n, trouble))


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 30), trouble=st.sampled_from((0.0, 0.2, 0.8)))
def test_history_equals_the_oracle_for_any_specification(seed: int, n: int, trouble: float) -> None:
    rng = np.random.default_rng(seed)
    spec = random_specification(rng)
    check_oracle(spec, random_stream(rng, n, trouble))


@settings(max_examples=60)
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


def test_flags_and_facts_of_one_event_unite(rng: np.random.Generator) -> None:
    """A fact that was sent at the event's own time is a copy of its flag, known from then on."""
    for _ in range(20):
        stream = random_stream(rng, 12)
        facts = [
            replace(
                fact,
                sender_ms=stream.transactions[fact.row].time,
                known_at_ms=stream.transactions[fact.row].time + int(rng.integers(0, 4)) * 1_000,
            )
            for fact in stream.facts
        ]
        check_oracle(EVERYTHING, replace(stream, facts=facts))


def test_plain_entities_longer_than_a_piece_equal_a_live_replay(rng: np.random.Generator) -> None:
    """No ties, nothing late, facts that come, go and come again while windows move on."""
    stream = random_stream(rng, 600, trouble=0.0)
    times_ms = np.sort(rng.choice(120_000, 600, replace=False)) + START_MS
    moved = [
        with_time(transaction, int(time_ms))
        for transaction, time_ms in zip(stream.transactions, times_ms, strict=True)
    ]
    facts = [
        replace(
            fact,
            sender_ms=moved[fact.row].time + 1 + fact.row % 5_000,
            known_at_ms=moved[fact.row].time + 1 + fact.row % 5_000,
        )
        for fact in stream.facts
    ]
    table = Stream(moved, times_ms.tolist(), facts).table(EVERYTHING)
    for acceptance in (None, ACCEPTANCE):
        expected = live_history(table, acceptance)
        assert same(expected, features_of(table, "known", acceptance))
        assert same(expected, features_of(table, "true", acceptance))


def test_refused_payments_have_features_and_count_for_no_other(rng: np.random.Generator) -> None:
    table = random_stream(rng, 60, trouble=0.5).table(EVERYTHING)
    found = features_of(table, "known", Acceptance(horizon_ms=-(2**50), skew_ms=-(2**50)))
    counts = [i for i, name in enumerate(EVERYTHING.feature_names) if "count_10s" in name]
    assert np.nanmax(found[:, counts]) == 1.0


def test_out_is_written_row_by_row_whatever_lies_between(rng: np.random.Generator) -> None:
    table = random_stream(rng, 40).table(EVERYTHING)
    program = compiled(EVERYTHING)
    wide = np.full((40, program.n_columns + 3), 7.0)
    found = history_features(
        table, program, keys_of(program), categories=CATEGORIES, out=wide[:, 1:-2]
    )
    assert found.base is wide
    assert same(np.ascontiguousarray(found), features_of(table, "known", None))
    assert (wide[:, 0] == 7.0).all()
    assert (wide[:, -2:] == 7.0).all()


@pytest.mark.parametrize(
    "out",
    [
        np.empty((2, 2)),
        np.empty((3, 100), np.float32),
        np.empty((200, 200)).T[:3],
        np.empty((3, 400))[:, ::2],
    ],
)
def test_an_output_of_another_form_is_refused(out: Floats, rng: np.random.Generator) -> None:
    table = random_stream(rng, 3).table(EVERYTHING)
    program = compiled(EVERYTHING)
    cut = out[:, : program.n_columns] if out.shape[0] == 3 else out
    with pytest.raises(ValueError, match="out is"):
        history_features(table, program, keys_of(program), out=cut)


def test_a_table_of_another_specification_is_refused(rng: np.random.Generator) -> None:
    table = random_stream(rng, 3).table(EVERYTHING)
    program = compiled(FeatureSpecification.shipped("handbook"))
    with pytest.raises(ValueError, match="handbook"):
        history_features(table, program, keys_of(program))


def test_a_table_without_payments_gives_a_matrix_without_rows(rng: np.random.Generator) -> None:
    table = random_stream(rng, 3).table(EVERYTHING)
    empty = table.take(np.zeros(0, np.int64))
    assert features_of(empty).shape == (0, len(EVERYTHING.columns))


def test_plain_fields_alone_need_no_entity(rng: np.random.Generator) -> None:
    spec = FeatureSpecification(
        name="plain",
        currency="EUR",
        features=(Feature("amount", "amount"), Feature("risk", "field", of="risk")),
        facts=FACTS,
    )
    table = random_stream(rng, 20).table(spec)
    found = features_of(table)
    assert np.array_equal(found[:, 0], table.amount_minor / 100)
    assert np.array_equal(found[:, 1], table.numbers["risk"], equal_nan=True)


@pytest.mark.parametrize("mode", MODES)
def test_canary_a_fact_that_nobody_knew_is_seen(
    mode: Literal["known", "true"], rng: np.random.Generator
) -> None:
    stream = random_stream(rng, 40)
    table = stream.table(EVERYTHING)
    other = replace(stream, facts=[replace(fact, value=not fact.value) for fact in stream.facts])
    expected = oracle_history(EVERYTHING, other, mode)[table.row]
    assert not same(expected, features_of(table, mode))


@pytest.mark.soak
def test_history_equals_both_on_many_streams(rng: np.random.Generator) -> None:
    """2,000 streams of up to 400 payments: about 400,000 payments, each scored three ways."""
    for _ in range(2_000):
        spec = EVERYTHING if rng.random() < 0.3 else random_specification(rng)
        small = rng.random() < 0.5
        stream = random_stream(
            rng, int(rng.integers(1, 40 if small else 400)), float(rng.choice([0, 0.1, 0.3, 0.9]))
        )
        table = stream.table(spec)
        assert same(live_history(table, ACCEPTANCE), features_of(table))
        if small:
            check_oracle(spec, stream)
