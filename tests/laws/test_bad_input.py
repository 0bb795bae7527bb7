"""Bad input at the scorer: a clear typed error or a defined answer each, and no change of state."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from freshscore.config.errors import (
    AsOfTooOld,
    BadFact,
    BadFile,
    BadModel,
    BadTransaction,
    EventRefused,
    FreshscoreError,
    ModelMismatch,
    NoModel,
    UnknownTransaction,
)
from freshscore.features.transaction import EARLIEST_MS, LATEST_MS, Transaction
from freshscore.scoring.callable_model import CallableModel
from freshscore.scoring.model_file import CohortThresholds
from freshscore.scoring.scorer import Scorer
from tests.features.payment_forms import PAYMENT, SPECIFICATION
from tests.features.test_bad_payments import CASES, CASES_OF_SPECIFICATION
from tests.laws.law_models import THRESHOLDS, digest_of_features
from tests.laws.law_specifications import Scaled
from tests.laws.traffic import Traffic, changed
from tests.laws.worlds import DAY_MS, HOUR_MS, MINUTE_MS, MONDAY_MS, Limits, World

SCALED = Scaled(SPECIFICATION, MINUTE_MS, 1_000, HOUR_MS)
MODEL = CallableModel(digest_of_features, "digest", [THRESHOLDS], {"mcc": {"5411": 0}})
NAN, INFINITE = float("nan"), float("inf")
NAMES = {**CASES, **CASES_OF_SPECIFICATION}


@pytest.fixture
def world(seed: int) -> Iterator[World]:
    """A world that has seen payments and facts, and has answered."""
    filled = World(SPECIFICATION, MODEL, Limits(horizon_ms=HOUR_MS))
    traffic = Traffic(SCALED, random.Random(seed))
    for _ in range(40):
        payment = changed(traffic.new().first, fields={"mcc": "5411", "risk": 1.0}, flags={})
        filled.scorer.observe(payment)
        traffic.newest_ms = max(traffic.newest_ms, payment.time)
        filled.scorer.label(payment.transaction_id, fraud=True)
        filled.scorer.score(payment, as_of=max(payment.time, filled.store.newest_ms))
    yield filled
    filled.scorer.close()


def check_that_nothing_changes(
    world: World, call: Callable[[], object], kind: type[FreshscoreError]
) -> FreshscoreError:
    """The call raises this, and everything is as it was: versions, counts, cache."""
    before = world.footprint()
    with pytest.raises(kind) as caught:
        call()
    assert world.footprint() == before
    assert str(caught.value)
    assert not caught.value.retryable
    return caught.value


@pytest.mark.parametrize("case", NAMES)
def test_a_bad_payment_is_refused_by_every_call_and_changes_nothing(
    world: World, case: str
) -> None:
    bad = PAYMENT | NAMES[case][0]
    scorer = world.scorer
    for call in (scorer.score, scorer.observe, scorer.explain):
        check_that_nothing_changes(world, lambda call=call: call(bad), BadTransaction)  # type: ignore[misc]  # bound at once
    before = world.footprint()
    (listed,) = scorer.score_many([bad])
    assert (listed.score, listed.decision, listed.source) == (None, None, None)
    assert listed.error
    assert world.footprint() == before


@pytest.mark.parametrize("missing", ["transaction_id", "time", "amount_minor", "currency"])
def test_a_payment_that_lacks_something_says_what(world: World, missing: str) -> None:
    bad = {name: value for name, value in PAYMENT.items() if name != missing}
    problem = check_that_nothing_changes(world, lambda: world.scorer.score(bad), BadTransaction)
    assert missing in str(problem)


def test_a_payment_with_a_name_that_nothing_reads_says_which(world: World) -> None:
    bad = PAYMENT | {"amout_minor": 1}
    problem = check_that_nothing_changes(world, lambda: world.scorer.score(bad), BadTransaction)
    assert "amout_minor" in str(problem)


@pytest.mark.parametrize("value", [None, 7, "t-1", [PAYMENT], object(), pd.Series([1])])
def test_what_is_no_payment_is_refused(world: World, value: Any) -> None:
    for call in (world.scorer.score, world.scorer.observe):
        check_that_nothing_changes(world, lambda call=call: call(value), BadTransaction)  # type: ignore[misc]  # bound at once


@pytest.mark.parametrize(
    "as_of",
    [
        datetime(2023, 11, 13),
        "2023-11-13",
        1.5,
        True,
        NAN,
        EARLIEST_MS - 1,
        LATEST_MS,
        2**63,
        MONDAY_MS // 1000,
        np.int64(MONDAY_MS),
    ],
)
def test_an_impossible_instant_is_refused(world: World, as_of: Any) -> None:
    payment = Transaction(**PAYMENT)
    for call in (
        lambda: world.scorer.score(payment, as_of=as_of),
        lambda: world.scorer.explain(payment, as_of=as_of),
        lambda: world.scorer.observe(payment, arrival=as_of),
    ):
        check_that_nothing_changes(world, call, BadTransaction)


def test_an_instant_before_the_payment_or_before_what_is_held_is_refused(world: World) -> None:
    newest = world.store.newest_ms
    payment = changed(Transaction(**PAYMENT), time=newest - HOUR_MS - 1)
    for as_of, kind in (
        (payment.time - 1, BadTransaction),
        (newest - HOUR_MS - 1, AsOfTooOld),
        # The payment's own last event lies further back than what is held.
        (newest, AsOfTooOld),
    ):
        check_that_nothing_changes(
            world,
            lambda as_of=as_of: world.scorer.score(payment, as_of=as_of),  # type: ignore[misc]  # bound at once
            kind,
        )
    at_the_edge = changed(payment, time=newest - HOUR_MS)
    assert world.scorer.score(at_the_edge, as_of=newest - HOUR_MS).score is not None


def test_times_are_taken_as_aware_datetimes_too(world: World) -> None:
    newest = world.store.newest_ms
    instant = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=newest)
    payment = changed(Transaction(**PAYMENT), time=instant, transaction_id="aware")
    assert payment.time == newest
    result = world.scorer.score(payment, as_of=instant)
    assert result.as_of == newest
    assert result.score == world.fresh_score(payment, newest)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, BadFact),
        ({"stolen": True}, BadFact),
        ({"fraud": 1}, BadFact),
        ({"fraud": None}, BadFact),
        ({"fraud": True, "declined": "no"}, BadFact),
        ({"fraud": True, "known_at": "now"}, BadFact),
        ({"fraud": True, "known_at": datetime(2023, 11, 13)}, BadFact),
        ({"fraud": True, "known_at": -1}, BadFact),
        ({"fraud": True, "entities": {"card": "c"}}, BadFact),
        ({"fraud": True, "time": MONDAY_MS}, BadFact),
        ({"fraud": True, "time": 7, "entities": {"card": "c"}}, BadFact),
        ({"fraud": True, "time": MONDAY_MS, "entities": {"card": ""}}, BadFact),
        ({"fraud": True, "time": MONDAY_MS, "entities": ["c"]}, BadFact),
        ({"fraud": True, "time": EARLIEST_MS, "entities": {"card": "c"}}, BadFact),
        ({"fraud": True, "transaction_id": "never seen"}, UnknownTransaction),
        ({"fraud": True, "transaction_id": ""}, BadFact),
        ({"fraud": True, "transaction_id": "x" * 257}, BadFact),
        ({"fraud": True, "transaction_id": 7}, BadFact),
    ],
)
def test_a_bad_fact_is_refused_and_changes_nothing(
    world: World, change: dict[str, Any], kind: type[FreshscoreError]
) -> None:
    call = {"transaction_id": "p1", **change}
    check_that_nothing_changes(world, lambda: world.scorer.label(**call), kind)


def test_late_and_early_events_are_refused_and_counted(world: World) -> None:
    payment = changed(Transaction(**PAYMENT), time=world.store.newest_ms, transaction_id="x")
    for arrival in (payment.time + HOUR_MS + 1, payment.time - MINUTE_MS - 1):
        check_that_nothing_changes(
            world,
            lambda arrival=arrival: world.scorer.observe(payment, arrival=arrival),  # type: ignore[misc]  # bound at once
            EventRefused,
        )
    counts = world.scorer.stats()["feed"]
    assert (counts["late"], counts["early"]) == (1, 1)


def test_what_is_beyond_reach_is_counted_and_changes_nothing(world: World) -> None:
    before = world.footprint()
    old = changed(Transaction(**PAYMENT), time=MONDAY_MS - 100 * DAY_MS, transaction_id="old")
    world.scorer.observe(old)
    world.scorer.label("old", time=old.time, entities=old.entities, known_at=old.time, fraud=True)
    assert world.footprint() == before
    counts = world.scorer.stats()["feed"]
    assert (counts["beyond reach"], counts["fact beyond reach"]) == (1, 1)


def test_bad_rows_of_a_batch_have_their_reason_and_the_good_ones_go_on(world: World) -> None:
    newest = world.store.newest_ms
    good = [changed(Transaction(**PAYMENT), transaction_id=f"g{i}", time=newest) for i in range(3)]
    too_old = changed(good[0], transaction_id="old", time=newest - 2 * HOUR_MS)
    rows: list[Any] = [good[0], PAYMENT | {"amount_minor": NAN}, None, good[1], too_old, good[2]]
    listed = world.scorer.score_many(rows)
    assert [result.error is None for result in listed] == [True, False, False, True, False, True]
    assert [result.score for result in listed] == [
        None if result.error else world.fresh_score(good[0], newest) for result in listed
    ]
    frame = frame_of_two(newest)
    answers = world.scorer.score_many(frame)
    assert list(answers.index) == list(frame.index)
    assert answers["error"].notna().tolist() == [False, True, True]
    assert answers["score"].notna().tolist() == [True, False, False]
    assert answers["error"].tolist()[2].startswith("as_of")


def frame_of_two(newest_ms: int) -> pd.DataFrame:
    """A good row, a bad one, and one that is too old."""
    return pd.DataFrame(
        {
            "transaction_id": ["a", "b", "c"],
            "time_ms": [newest_ms, newest_ms, newest_ms - 2 * HOUR_MS],
            "amount_minor": [1, -1, 1],
            "currency": "EUR",
            "card": "c1",
            "merchant": "m1",
            "risk": 0.5,
            "mcc": "5411",
            "channel": "web",
        },
        index=["a", "b", "c"],
    )


def test_frames_that_are_no_payments_are_refused_whole(world: World) -> None:
    frame = frame_of_two(world.store.newest_ms)
    twice = pd.concat([frame, frame[["card"]]], axis=1)
    for bad in (twice, frame.drop(columns="amount_minor"), frame.drop(columns="transaction_id")):
        check_that_nothing_changes(
            world,
            lambda bad=bad: world.scorer.score_many(bad),  # type: ignore[misc]  # bound at once
            BadFile,
        )
    empty = world.scorer.score_many(frame.iloc[:0])
    assert len(empty) == 0
    assert world.scorer.score_many([]) == []


@pytest.mark.parametrize("score", [NAN, INFINITE, -INFINITE])
def test_a_model_without_a_finite_score_is_an_error_and_nothing_is_kept(score: float) -> None:
    model = CallableModel(lambda matrix: np.full(len(matrix), score), "bad", [THRESHOLDS])
    world = World(SPECIFICATION, model)
    payment = Transaction(**PAYMENT)
    for _ in range(3):
        with pytest.raises(BadModel, match="finite"):
            world.scorer.score(payment)
    assert world.scorer.stats()["cache"]["scores"] == 0
    assert world.scorer.stats()["requests"] == 0


def test_a_cohort_of_a_field_that_the_specification_does_not_read_is_refused() -> None:
    """A batch could not see it, and would decide otherwise than single payments are decided."""
    cohorts = [CohortThresholds("home", 0.1, 0.2, "country", "DE"), THRESHOLDS]
    model = CallableModel(digest_of_features, "digest", cohorts)
    with pytest.raises(ModelMismatch, match="'country'"):
        Scorer.open(settings={"store.specification": "handbook"}, model=model)


def test_without_a_model_the_error_names_the_commands_that_make_one(tmp_path: Path) -> None:
    with pytest.raises(NoModel) as caught:
        Scorer.open(settings={"store.path": str(tmp_path)})
    assert "freshscore train" in str(caught.value)
    assert "import" in str(caught.value)


def test_a_damaged_state_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    settings = {"store.path": str(tmp_path), "store.specification": "handbook"}
    model = CallableModel(digest_of_features, "digest", [THRESHOLDS])
    with Scorer.open(settings=settings, model=model) as scorer:
        for number in range(20):
            payment = Transaction(
                f"t{number}", MONDAY_MS, 100, "EUR", {"card": "c", "merchant": f"m{number}"}
            )
            scorer.observe(payment)
    path = tmp_path / "state"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"", flipped(whole, len(whole) // 2)):
        path.write_bytes(damaged)
        with pytest.raises(FreshscoreError, match=r"state|damaged|section|file"):
            Scorer.open(settings=settings, model=model)
        assert path.read_bytes() == damaged
    path.write_bytes(whole)
    with Scorer.open(settings=settings, model=model) as scorer:
        assert scorer.stats()["store"]["payments"] == 20


def flipped(data: bytes, at: int) -> bytes:
    """The bytes with one bit changed."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_canary_a_call_that_changes_something_and_raises_is_found(world: World) -> None:
    def observe_and_raise() -> None:
        world.scorer.observe(changed(Transaction(**PAYMENT), time=world.store.newest_ms))
        raise BadTransaction("too late")

    with pytest.raises(AssertionError):
        check_that_nothing_changes(world, observe_and_raise, BadTransaction)
