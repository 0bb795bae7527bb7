"""Shaped traffic: what each part of a shape does, in what order, the same for the same seed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshscore.config.errors import BadFile, SettingsError
from freshscore.simulations.generator import Parameters, generate
from freshscore.simulations.generator_attacks import BurstShape
from freshscore.simulations.shapes import (
    DAY_MS,
    MINUTE_MS,
    PRESETS,
    SECOND_MS,
    Delay,
    Rescore,
    Shape,
    Stage,
    TouchKind,
    confirmed_fraud_delays,
    preset,
)
from freshscore.simulations.shaping import Touches, Traffic, shaped
from freshscore.simulations.shaping_payments import PaymentColumns, with_new_payments

RESCORES = (TouchKind.CLIENT_RETRY, TouchKind.GATEWAY_RETRY, TouchKind.REVIEW)
COLUMNS = ("at_ms", "kind", "row", "stage", "amount_minor")


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    parameters = Parameters(customers=400, terminals=800, days=30, devices=True)
    return generate(parameters, np.random.default_rng(4))


@pytest.fixture(scope="module")
def payments(frame: pd.DataFrame) -> PaymentColumns:
    return columns_of(frame)


def columns_of(frame: pd.DataFrame) -> PaymentColumns:
    return PaymentColumns(
        time_ms=frame.time_ms.to_numpy(),
        amount_minor=frame.amount_minor.to_numpy(),
        fraud=frame.fraud.to_numpy(),
    )


def few(*times_ms: int) -> PaymentColumns:
    return PaymentColumns(
        time_ms=np.array(times_ms, dtype=np.int64),
        amount_minor=np.arange(len(times_ms)) + 100,
        fraud=np.ones(len(times_ms), dtype=np.bool_),
    )


def traffic(payments: PaymentColumns, shape: Shape, seed: int = 1, **options: Any) -> Traffic:
    return shaped(payments, shape, np.random.default_rng(seed), **options)


def only(touches: Touches, *kinds: TouchKind) -> Touches:
    chosen = np.isin(touches.kind, kinds)
    return Touches(**{name: getattr(touches, name)[chosen] for name in COLUMNS})


def rows_of(touches: Touches) -> list[tuple[int, ...]]:
    return list(zip(*(getattr(touches, name).tolist() for name in COLUMNS), strict=True))


def all_times_ms(payments: PaymentColumns, shaped_traffic: Traffic) -> np.ndarray:
    return np.concatenate([payments.time_ms, shaped_traffic.added.time_ms])


def near(share: float, wanted: float, size: int) -> bool:
    """Within four sampling errors of a share."""
    return abs(share - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / size)


# Every part at once, with delays so short that touches of neighbours fall on one instant.
CROWDED = Shape(
    "crowded",
    rescored_share=0.5,
    rescores=(1, 3),
    rescore_delays=(Rescore(1.0, 0, 3, TouchKind.REVIEW),),
    declined_share=0.5,
    retried_share=0.5,
    retries=(1, 2),
    retry_delays=(Delay(1.0, 0, 3),),
    declined_known_ms=1,
    event_lag_ms=1,
    event_jitter_ms=2,
    late_share=0.2,
    late_ms=(0, 5),
    duplicate_share=0.3,
    duplicate_ms=(0, 2),
    stages=(Stage("one"), Stage("two", after_ms=(0, 2)), Stage("three", 0.5, (0, 2))),
    observed_stage=1,
    bursts=2,
    burst=BurstShape(duration_ms=10, rate_per_s=500),
    label_delays=(Delay(1.0, 0, 3),),
)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=30), st.integers(0, 2**32))
def test_the_order_is_by_instant_then_facts_then_row_then_kind(times: list[int], seed: int) -> None:
    touches = traffic(few(*sorted(times)), CROWDED, seed).touches

    def place(touch: tuple[int, ...]) -> tuple[int, ...]:
        at_ms, kind, row = touch[:3]
        is_fact = kind >= TouchKind.DECLINED_FACT
        return (at_ms, 0, kind, row) if is_fact else (at_ms, 1, row, kind)

    rows = rows_of(touches)
    assert [place(row) for row in rows] == sorted(place(row) for row in rows)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=30), st.integers(0, 2**32))
def test_every_payment_is_scored_first_and_observed(times: list[int], seed: int) -> None:
    """Exactly one first score, at its own time; an event or two, never before that score."""
    payments = few(*sorted(times))
    made = traffic(payments, CROWDED, seed)
    everyone = list(range(len(payments) + len(made.added)))
    first = only(made.touches, TouchKind.FIRST)
    assert sorted(first.row.tolist()) == everyone
    assert (first.at_ms == all_times_ms(payments, made)[first.row]).all()
    events = np.bincount(only(made.touches, TouchKind.OBSERVE).row, minlength=len(everyone))
    assert set(events.tolist()) <= {1, 2}
    scored = set()
    for at_ms, kind, row, *_ in rows_of(made.touches):
        if kind == TouchKind.FIRST:
            scored.add(row)
        elif kind < TouchKind.DECLINED_FACT:
            assert row in scored, (at_ms, kind)


@pytest.mark.parametrize("name", PRESETS)
def test_the_seed_decides(name: str, payments: PaymentColumns) -> None:
    once, again = traffic(payments, preset(name)), traffic(payments, preset(name))
    for column in COLUMNS:
        assert np.array_equal(getattr(once.touches, column), getattr(again.touches, column))
    if name != "none":
        other = traffic(payments, preset(name), seed=2)
        assert rows_of(once.touches) != rows_of(other.touches)


def test_one_score_and_one_event_without_a_shape(payments: PaymentColumns) -> None:
    made = traffic(payments, preset("none", event_lag_ms=50))
    scores, events = only(made.touches, TouchKind.FIRST), only(made.touches, TouchKind.OBSERVE)
    facts = only(made.touches, TouchKind.FRAUD_FACT)
    assert len(made.touches) == 2 * len(payments) + len(facts)
    assert np.array_equal(scores.row, np.arange(len(payments)))
    assert np.array_equal(events.at_ms, payments.time_ms[events.row] + 50)
    assert np.array_equal(scores.amount_minor, payments.amount_minor)


def test_reuse_scores_as_often_and_as_late_as_assumed(payments: PaymentColumns) -> None:
    made = traffic(payments, preset("reuse"))
    everyone = len(payments) + len(made.added)
    again = only(made.touches, *RESCORES)
    times = np.bincount(again.row, minlength=everyone)
    assert near(float(np.mean(times > 0)), 0.35, everyone)
    for count in (1, 2, 3):
        assert near(float(np.mean(times[times > 0] == count)), 1 / 3, int((times > 0).sum()))
    assert times.max() == 3
    delay_ms = again.at_ms - all_times_ms(payments, made)[again.row]
    limits = {
        TouchKind.CLIENT_RETRY: (0.5, 200, 5 * SECOND_MS),
        TouchKind.GATEWAY_RETRY: (0.3, 5 * SECOND_MS, MINUTE_MS),
        TouchKind.REVIEW: (0.2, MINUTE_MS, 30 * MINUTE_MS),
    }
    for kind, (share, low_ms, high_ms) in limits.items():
        of_kind = delay_ms[again.kind == kind]
        assert near(len(of_kind) / len(again), share, len(again))
        assert low_ms <= of_kind.min() < low_ms + 0.05 * (high_ms - low_ms)
        assert high_ms - 0.05 * (high_ms - low_ms) < of_kind.max() <= high_ms


def test_reuse_tries_a_twentieth_again_as_new_payments(payments: PaymentColumns) -> None:
    made = traffic(payments, preset("reuse"))
    added = made.added
    retried = ~added.in_burst
    assert near(float(retried.sum() / len(payments)), 0.05, len(payments))
    assert (added.number[retried] == 1).all()
    source = added.source_row[retried]
    assert len(np.unique(source)) == len(source)
    delay_ms = added.time_ms[retried] - payments.time_ms[source]
    assert delay_ms.min() >= 2 * SECOND_MS
    assert delay_ms.max() <= 30 * MINUTE_MS
    assert np.array_equal(added.amount_minor[retried], payments.amount_minor[source])
    assert np.array_equal(added.fraud[retried], payments.fraud[source])
    assert not added.new_card[retried].any()
    assert (np.diff(added.time_ms) >= 0).all()


@pytest.mark.parametrize("event_lag_ms", [50, 1_000, 10_000])
def test_the_own_event_follows_after_the_lag(payments: PaymentColumns, event_lag_ms: int) -> None:
    made = traffic(payments, preset("reuse", event_lag_ms))
    events = only(made.touches, TouchKind.OBSERVE)
    lag_ms = events.at_ms - all_times_ms(payments, made)[events.row]
    assert (lag_ms == event_lag_ms).all()


def test_bursts_come_at_the_published_rate(payments: PaymentColumns) -> None:
    shape = preset("burst")
    added = traffic(payments, shape).added
    for number in range(20):
        attempts = np.flatnonzero(added.in_burst & (added.number == number))
        assert abs(len(attempts) - 23 * 60) < 5 * math.sqrt(23 * 60)
        times_ms = added.time_ms[attempts]
        assert times_ms.max() - times_ms.min() < MINUTE_MS
        assert times_ms.min() >= payments.time_ms[0]
        assert added.fraud[attempts].all()
        assert near(float(added.new_card[attempts].mean()), 0.9, len(attempts))
        merchants = np.bincount(added.merchant_row[attempts])
        assert merchants.max() > 0.9 * len(attempts)


def test_several_attempts_follow_each_other(payments: PaymentColumns) -> None:
    shape = Shape(
        "tries",
        declined_share=0.1,
        retried_share=0.9,
        retries=(1, 4),
        retry_delays=(Delay(1.0, 10, 20),),
    )
    added = traffic(payments, shape).added
    source, number, time_ms = added.source_row, added.number, added.time_ms
    order = np.lexsort((number, source))
    previous = dict.fromkeys(source.tolist(), 0)
    for row in order:
        assert number[row] == previous[source[row]] + 1
        previous[source[row]] += 1
        waited_ms = time_ms[row] - payments.time_ms[source[row]]
        assert 10 * number[row] <= waited_ms <= 20 * number[row]
    assert set(previous.values()) == {1, 2, 3, 4}


def test_events_are_delivered_twice_late_and_out_of_order(payments: PaymentColumns) -> None:
    shape = Shape(
        "rough",
        event_lag_ms=100,
        event_jitter_ms=400 * SECOND_MS,
        late_share=0.05,
        late_ms=(3_600_000, 7_200_000),
        duplicate_share=0.1,
        duplicate_ms=(0, 5_000),
    )
    events = only(traffic(payments, shape).touches, TouchKind.OBSERVE)
    lag_ms = events.at_ms - payments.time_ms[events.row]
    first = np.unique(events.row, return_index=True)[1]
    late = lag_ms[first] >= 3_600_000
    assert near(float(late.mean()), 0.05, len(payments))
    assert lag_ms[first][late].max() <= 7_200_000
    assert lag_ms[first][~late].min() >= 100
    assert lag_ms[first][~late].max() <= 100 + 400 * SECOND_MS
    assert (np.diff(events.row[np.sort(first)]) < 0).mean() > 0.1
    twice = np.bincount(events.row) == 2
    assert near(float(twice.mean()), 0.1, len(payments))
    second = np.setdiff1d(np.arange(len(events)), first)
    between_ms = events.at_ms[second] - events.at_ms[first][events.row[second]]
    assert between_ms.min() >= 0
    assert between_ms.max() <= 5_000


def test_stages_add_and_change_fields(payments: PaymentColumns) -> None:
    """Three scores; the device is known from the second on, the capture may change the amount."""
    shape = preset("stages")
    touches = traffic(payments, shape).touches
    assert [shape.hidden(stage) for stage in range(3)] == [("device",), (), ()]
    later = only(touches, TouchKind.STAGE)
    for stage, share in ((1, 1.0), (2, 0.9)):
        reached = later.row[later.stage == stage]
        assert len(np.unique(reached)) == len(reached)
        assert abs(len(reached) / len(payments) - share) < 0.01
    capture = later.stage == 2
    own = payments.amount_minor[later.row]
    assert (later.amount_minor[~capture] == own[~capture]).all()
    changed = later.amount_minor[capture] != own[capture]
    assert 0.08 < changed.mean() < 0.11
    assert (later.amount_minor[capture] <= np.ceil(1.2 * own[capture])).all()
    assert (later.amount_minor[capture] >= np.floor(0.5 * own[capture])).all()


def test_the_event_has_the_content_of_the_file(payments: PaymentColumns) -> None:
    """It follows the authorisation, with the amount that the file has."""
    touches = traffic(payments, preset("stages", event_lag_ms=7)).touches
    events = only(touches, TouchKind.OBSERVE)
    authorised = only(touches, TouchKind.STAGE)
    at_ms = dict(
        zip(
            authorised.row[authorised.stage == 1].tolist(),
            authorised.at_ms[authorised.stage == 1].tolist(),
            strict=True,
        )
    )
    assert all(at_ms[row] + 7 == at for row, at in zip(events.row, events.at_ms, strict=True))
    assert (events.stage == 1).all()
    assert np.array_equal(events.amount_minor, payments.amount_minor[events.row])


def stages_of_rescores(touches: Touches) -> set[int]:
    """The stages at which payments are scored again, each checked against what went before it."""
    content: dict[int, tuple[int, int]] = {}
    seen = set()
    for _, kind, row, stage, amount_minor in rows_of(touches):
        if kind in (TouchKind.FIRST, TouchKind.STAGE):
            content[row] = (stage, amount_minor)
        elif kind == TouchKind.REVIEW:
            assert (stage, amount_minor) == content[row]
            seen.add(stage)
    return seen


def test_a_rescore_has_the_content_of_the_stage_reached_by_then(payments: PaymentColumns) -> None:
    shape = dataclasses.replace(
        preset("stages"),
        rescored_share=0.5,
        rescores=(1, 3),
        rescore_delays=(Rescore(1.0, 0, 3 * MINUTE_MS, TouchKind.REVIEW),),
    )
    assert stages_of_rescores(traffic(payments, shape).touches) == {0, 1, 2}


def test_a_stage_at_the_instant_of_a_rescore_comes_before_it() -> None:
    assert stages_of_rescores(traffic(few(*range(300)), CROWDED).touches) == {0, 1, 2}


def test_labels_come_seven_days_later_unless_told_otherwise(payments: PaymentColumns) -> None:
    facts = only(traffic(payments, preset("none")).touches, TouchKind.FRAUD_FACT)
    assert np.array_equal(np.sort(facts.row), np.flatnonzero(payments.fraud))
    assert np.array_equal(facts.at_ms, payments.time_ms[facts.row] + 7 * DAY_MS)


def test_labels_can_come_as_chargebacks_do() -> None:
    frauds = few(*range(20_000))
    shape = dataclasses.replace(preset("none"), label_delays=confirmed_fraud_delays())
    facts = only(traffic(frauds, shape).touches, TouchKind.FRAUD_FACT)
    days = (facts.at_ms - facts.row) / DAY_MS
    assert near(float(np.mean(days <= 7)), 0.6, len(facts))
    assert near(float(np.mean((days >= 30) & (days < 90))), 0.35, len(facts))
    assert near(float(np.mean(days >= 90)), 0.05, len(facts))
    assert days.max() > 120


def test_declines_can_become_known(payments: PaymentColumns) -> None:
    shape = dataclasses.replace(preset("reuse"), declined_known_ms=300)
    made = traffic(payments, shape)
    facts = only(made.touches, TouchKind.DECLINED_FACT)
    assert near(len(facts) / len(payments), 0.0625, len(payments))
    assert np.array_equal(facts.at_ms, payments.time_ms[facts.row] + 300)
    retried = made.added.source_row[~made.added.in_burst]
    assert np.isin(retried, facts.row).all()


def test_history_is_neither_scored_nor_observed(payments: PaymentColumns) -> None:
    """Rows before the first scored one give facts alone, and no payment is added to them."""
    first_row = len(payments) // 2
    made = traffic(payments, preset("reuse"), first_scored_row=first_row)
    facts = only(made.touches, TouchKind.FRAUD_FACT)
    others = made.touches.row[made.touches.kind < TouchKind.DECLINED_FACT]
    assert others.min() == first_row
    assert np.isin(np.flatnonzero(payments.fraud), facts.row).all()
    assert made.added.source_row.min() >= first_row
    assert made.added.time_ms.min() >= payments.time_ms[first_row]


def test_a_part_that_changes_leaves_the_others(payments: PaymentColumns) -> None:
    plain = preset("reuse")
    before = traffic(payments, plain).touches
    changes: list[tuple[dict[str, Any], tuple[TouchKind, ...]]] = [
        ({"duplicate_share": 0.5}, (TouchKind.FIRST, *RESCORES, TouchKind.FRAUD_FACT)),
        ({"event_lag_ms": 10_000}, (TouchKind.FIRST, *RESCORES, TouchKind.FRAUD_FACT)),
        ({"rescored_share": 0.1}, (TouchKind.FIRST, TouchKind.OBSERVE, TouchKind.FRAUD_FACT)),
        ({"label_delays": confirmed_fraud_delays()}, (TouchKind.FIRST, TouchKind.OBSERVE)),
    ]
    for change, kept in changes:
        after = traffic(payments, dataclasses.replace(plain, **change)).touches
        assert rows_of(only(after, *kept)) == rows_of(only(before, *kept))


def test_an_empty_table_gives_no_traffic() -> None:
    made = traffic(few(), preset("burst"))
    assert len(made.touches) == len(made.added) == 0


def test_a_table_out_of_order_is_refused() -> None:
    with pytest.raises(BadFile, match="time order"):
        few(2, 1)
    with pytest.raises(ValueError, match="lengths"):
        PaymentColumns(np.zeros(2, np.int64), np.zeros(1, np.int64), np.zeros(2, np.bool_))


def test_new_payments_become_rows_of_the_table(frame: pd.DataFrame) -> None:
    made = traffic(columns_of(frame), preset("burst"))
    table = with_new_payments(frame, made.added)
    pd.testing.assert_frame_equal(table.iloc[: len(frame)], frame)
    new = table.iloc[len(frame) :].reset_index(drop=True)
    assert table.transaction_id.is_unique
    assert np.array_equal(new.time_ms, made.added.time_ms)
    assert np.array_equal(new.amount_minor, made.added.amount_minor)
    assert (new.amount == new.amount_minor / 100).all()
    assert np.array_equal(new.fraud, made.added.fraud)
    retries = new[~made.added.in_burst]
    source = frame.iloc[made.added.source_row[~made.added.in_burst]]
    for name in ("card", "merchant", "device", "ip", "email", "amount", "fraud_scenario"):
        assert retries[name].tolist() == source[name].tolist()
    assert retries.transaction_id.tolist() == [f"{name}~retry1" for name in source.transaction_id]


def test_attempts_of_a_burst_share_one_thing(frame: pd.DataFrame) -> None:
    added = traffic(columns_of(frame), preset("burst")).added
    new = with_new_payments(frame, added).iloc[len(frame) :].reset_index(drop=True)
    cards, merchants = set(frame.card), set(frame.merchant)
    for number in range(20):
        burst = new[added.in_burst & (added.number == number)]
        shared = ("device", "ip", "email")[number % 3]
        assert burst[shared].nunique() == 1
        for name in {"device", "ip", "email"} - {shared}:
            assert burst[name].nunique() == len(burst)
        assert (burst.fraud_scenario == 4).all()
        unknown = np.array([card not in cards for card in burst.card])
        assert np.array_equal(unknown, added.new_card[burst.index])
        assert burst.card[unknown].is_unique
        assert merchants.issuperset(burst.merchant)


def test_tables_with_few_columns_and_other_currencies_are_completed() -> None:
    frame = pd.DataFrame(
        {
            "transaction_id": ["a", "b", "c"],
            "time_ms": [0, 1_000, 2_000],
            "amount": [100.0, 0.1, 0.001],
            "amount_minor": [100, 10, 1],
            "currency": ["JPY", "EUR", "KWD"],
            "account": ["x", "y", "x"],
            "shop": ["s", "t", "t"],
            "category": ["food", "fuel", "food"],
        }
    )
    payments = PaymentColumns(
        time_ms=frame.time_ms.to_numpy(),
        amount_minor=frame.amount_minor.to_numpy(),
        fraud=np.zeros(3, dtype=np.bool_),
    )
    shape = Shape(
        "all", declined_share=1.0, retried_share=1.0, retry_delays=(Delay(1.0, 5_000, 5_000),)
    )
    added = traffic(payments, shape).added
    table = with_new_payments(frame, added, card="account", merchant="shop")
    assert table.transaction_id.tolist() == ["a", "b", "c", "a~retry1", "b~retry1", "c~retry1"]
    assert table.amount.tolist() == [100.0, 0.1, 0.001] * 2
    assert table.category.tolist() == ["food", "fuel", "food"] * 2
    assert table.time_ms.tolist() == [0, 1_000, 2_000, 5_000, 6_000, 7_000]
    assert list(table.columns) == list(frame.columns)


def test_ids_that_are_taken_are_refused(frame: pd.DataFrame) -> None:
    added = traffic(columns_of(frame), preset("reuse")).added
    once = with_new_payments(frame, added)
    with pytest.raises(BadFile, match="transaction ids"):
        with_new_payments(once, added)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rescored_share", 1.1),
        ("duplicate_share", -0.1),
        ("late_ms", (5, 4)),
        ("event_lag_ms", -1),
        ("bursts", -1),
        ("observed_stage", 1),
        ("label_delays", (Delay(0.5, 0, 1),)),
        ("stages", (Stage("captured", share=0.5),)),
    ],
)
def test_impossible_shapes_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match="captured" if name == "stages" else name):
        Shape("wrong", **{name: value})


def test_impossible_parts_are_refused() -> None:
    with pytest.raises(SettingsError, match="low_ms"):
        Delay(1.0, 2, 1)
    with pytest.raises(SettingsError, match="amount_factor"):
        Stage("capture", amount_factor=(1.0, 0.5))
    with pytest.raises(SettingsError, match="rescore_delays"):
        Shape("wrong", rescored_share=0.5)
    with pytest.raises(SettingsError, match="burst, none, reuse, stages"):
        preset("storm")
