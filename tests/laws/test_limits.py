"""Law 9: everything has a limit; the `tiny` profile reaches it, and what happens then is defined:
still right, or degraded and said so, or a typed error after which nothing has changed.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from freshscore.config.errors import (
    BadTransaction,
    DeadlineExceeded,
    EventRefused,
    FreshscoreError,
    SettingsError,
    StoreFull,
)
from freshscore.config.loading import load_settings
from freshscore.features.specification import (
    Aggregate,
    Condition,
    Entity,
    FeatureSpecification,
    WindowGroup,
)
from freshscore.features.transaction import MAX_STRING_BYTES, Transaction
from freshscore.scoring.callable_model import CallableModel
from freshscore.scoring.result import Result
from freshscore.scoring.scorer import Scorer
from freshscore.simulations.oracle import PlainOracle
from tests.laws.damage import forget_losses
from tests.laws.law_models import (
    THRESHOLDS,
    booster_model,
    callable_model,
    digest_of_features,
)
from tests.laws.law_specifications import Scaled, shipped
from tests.laws.records import different_bits
from tests.laws.worlds import DAY_MS, HOUR_MS, MONDAY_MS, Limits, World, versions

TINY = load_settings("tiny")
ROOMY = {"store.max_entities": 1_000, "store.max_payments": 1_000, "store.arena_bytes": 1 << 20}
DIGEST = CallableModel(digest_of_features, "digest", [THRESHOLDS])


def tiny(model: Any = DIGEST, **settings: Any) -> Scorer:
    """A scorer with the tiny profile, some of it overridden."""
    return Scorer.open("tiny", settings=settings, model=model)


def pay(number: int, at_ms: int = 0, **entities: str) -> Transaction:
    """A payment of card and merchant 0, unless others are named."""
    named = {"card": "c0", "merchant": "m0"} | entities
    return Transaction(f"t{number}", MONDAY_MS + at_ms, 100 + number, "EUR", named)


def footprint(scorer: Scorer) -> dict[str, object]:
    """What a refused call must leave as it was."""
    # Time moves on with an event that finds no room: else what is full would be so for ever.
    store = {name: n for name, n in scorer.stats()["store"].items() if name != "newest_ms"}
    return {"versions": versions(scorer._store), "store": store}


def check_that_nothing_changes(scorer: Scorer, call: Callable[[], object]) -> FreshscoreError:
    """The call raises and leaves everything as it was, however often it is made."""
    before = footprint(scorer)
    for _ in range(3):
        with pytest.raises(FreshscoreError) as caught:
            call()
        assert footprint(scorer) == before
    return caught.value


def test_more_entities_than_the_limit_are_refused_and_known_ones_go_on() -> None:
    with tiny(**{"store.max_payments": 1_000, "store.arena_bytes": 1 << 20}) as scorer:
        limit = TINY.store.max_entities
        for number in range(limit):
            scorer.observe(pay(number, card=f"c{number}"))
        # The merchant of this one would be new too, and is not added either.
        one_more = pay(99, card="one more", merchant="one more", device="d")
        problem = check_that_nothing_changes(scorer, lambda: scorer.observe(one_more))
        assert isinstance(problem, StoreFull)
        assert "store.max_entities" in str(problem)
        assert "one more" not in str(problem)
        assert scorer.score(one_more).score is not None
        scorer.observe(pay(100, card="c1"))


def test_more_payments_than_the_limit_are_refused_until_old_ones_are_beyond_reach() -> None:
    with tiny(**{"store.max_events_per_entity": 64, "store.arena_bytes": 1 << 20}) as scorer:
        limit = TINY.store.max_payments
        for number in range(limit):
            scorer.observe(pay(number, number, card=f"c{number % 8}"))
        problem = check_that_nothing_changes(scorer, lambda: scorer.observe(pay(limit, 1)))
        assert isinstance(problem, StoreFull)
        assert "store.max_payments" in str(problem)
        # What it knows is repeated and labelled as ever.
        scorer.observe(pay(3, 3, card="c3"))
        scorer.label("t3", fraud=True)
        # Beyond the longest window, its delay and the horizon nobody can ask for them.
        scorer.observe(pay(limit, 60 * DAY_MS))
        assert scorer.stats()["store"]["payments"] == 1
        assert scorer.score(pay(limit + 1, 60 * DAY_MS)).score is not None


def test_payments_that_leave_reach_make_room_for_others() -> None:
    with tiny(**{"store.arena_bytes": 1 << 20}) as scorer:
        for number in range(5 * TINY.store.max_payments):
            scorer.observe(pay(number, number * DAY_MS))
        assert scorer.stats()["store"]["payments"] <= TINY.store.max_payments


def test_a_full_arena_refuses_and_what_leaves_reach_makes_room() -> None:
    with tiny(**{"store.max_entities": 1_000, "store.max_payments": 1_000}) as scorer:
        number = 0
        with pytest.raises(StoreFull, match=r"store\.arena_bytes"):  # noqa: PT012  # until it is full
            while True:
                scorer.observe(pay(number, number, card=f"c{number}", merchant=f"m{number}"))
                number += 1
        one_more = pay(number, number, card=f"c{number}", merchant=f"m{number}", device="d")
        problem = check_that_nothing_changes(scorer, lambda: scorer.observe(one_more))
        assert isinstance(problem, StoreFull)
        for known in (0, number - 1):
            scorer.observe(pay(known, known, card=f"c{known}", merchant=f"m{known}"))
        assert scorer.stats()["feed"]["repeated"] == 2
        # What is beyond reach leaves, though nothing that is new was taken in the meantime.
        for later in range(3):
            scorer.observe(
                pay(1_000 + later, (60 + later) * DAY_MS, card=f"d{later}", merchant="m")
            )
        assert scorer.stats()["store"]["records"] == 2 * 3


def test_an_entity_over_its_limit_of_events_is_degraded_and_never_silently_approximate(
    seed: int,
) -> None:
    """Every answer is what the oracle gives on all events, or says why it is not."""
    spec = FeatureSpecification.shipped("payments")
    with tiny(**ROOMY) as scorer:
        oracle = oracle_of(scorer, spec)
        chance = random.Random(seed)
        answers = []
        for number in range(300):
            payment = pay(number, 20 * HOUR_MS * number // 10, card=f"c{chance.randrange(8)}")
            payment = Transaction(
                payment.transaction_id,
                payment.time,
                payment.amount_minor,
                "EUR",
                {"card": payment.entities["card"], "merchant": f"m{chance.randrange(12)}"},
            )
            result = scorer.score(payment)
            check_that_it_is_right_or_degraded(result, payment, oracle)
            answers.append(bool(result.degraded))
            scorer.observe(payment)
            oracle.observe(payment)
        assert any(answers)
        assert not all(answers[50:])


def check_that_it_is_right_or_degraded(
    result: Result, payment: Transaction, oracle: PlainOracle
) -> None:
    if result.degraded:
        assert result.degraded == ("too many events",)
        assert "store.max_events_per_entity" in result.reason
        return
    expected = digest_of_features(np.array([oracle.features(payment, result.as_of)]))
    assert result.score == expected[0]


def oracle_of(scorer: Scorer, spec: FeatureSpecification) -> PlainOracle:
    """An oracle with the scorer's own key."""
    return PlainOracle(spec, horizon_ms=60_000, skew_ms=2_000, record_key=scorer._store.keys.record)


def test_exactly_the_limit_of_events_is_not_over_it_and_the_next_one_is() -> None:
    with tiny(**ROOMY) as scorer:
        limit = TINY.store.max_events_per_entity
        request = pay(99, limit)
        for number in range(limit):
            scorer.observe(pay(number, number, merchant=f"m{number}"))
            assert not scorer.score(request).degraded
        scorer.observe(pay(limit, limit, merchant="another"))
        assert scorer.score(request).degraded == ("too many events",)
        # The merchants have one event each.
        assert not scorer.score(pay(100, limit, card="new")).degraded
        # Once what was lost is beyond every window it is complete again.
        later = MONDAY_MS + 100 * DAY_MS
        assert not scorer.score(pay(101, 100 * DAY_MS), as_of=later).degraded


def test_the_last_event_is_looked_for_from_the_payments_own_time_so_its_loss_is_said() -> None:
    """Scored again later, its windows are complete; what lies before its own time is not."""
    scaled = shipped("payments")
    limits = Limits(max_events_per_entity=8, horizon_ms=100 * DAY_MS)
    world = World(scaled.specification, callable_model(scaled), limits)
    payments = [pay(number, number * 1_000) for number in range(20)]
    for payment in payments:
        world.scorer.observe(payment)
    request = pay(99, 5_000)
    held_ms = scaled.specification.held_ms
    long_after = MONDAY_MS + 20_000 + held_ms
    assert world.scorer.score(request, as_of=long_after).degraded == ("too many events",)


def test_a_full_cache_gives_up_scores_and_every_answer_is_right(seed: int) -> None:
    scaled = shipped("payments")
    model = booster_model(scaled, seed)
    with tiny(model, **ROOMY, **{"store.max_events_per_entity": 1_000}) as scorer:
        oracle = oracle_of(scorer, scaled.specification)
        payments = [pay(n, 50 * n, card=f"c{n % 30}", merchant=f"m{n % 40}") for n in range(300)]
        for payment in payments:
            for again in (payment, payments[payments.index(payment) // 2], payment):
                as_of = max(again.time, scorer._store.newest_ms)
                result = scorer.score(again, as_of=as_of)
                vector = np.array([oracle.features(again, as_of)])
                assert result.score == model.predict(vector)[0]
            if payments.index(payment) % 5 == 0:
                scorer.observe(payment)
                oracle.observe(payment)
        counts = scorer.stats()
        assert counts["cache"]["evicted"] > 100
        assert counts["cache"]["scores"] <= counts["cache"]["max_scores"]
        assert counts["cache"]["max_bytes"] <= TINY.cache.max_bytes
        assert counts["probes"] > 20
        assert counts["mismatches"] == 0


def test_what_is_used_again_outlives_a_scan_of_the_cache() -> None:
    """Payments that are scored once push out each other, not those that come back."""
    with tiny(**ROOMY) as scorer:
        hot = [pay(number) for number in range(6)]
        hits = 0
        for number in range(600):
            scorer.score(pay(1_000 + number))
            again = hot[number % len(hot)]
            hits += scorer.score(again).source == "memo"
        assert hits > 400


@pytest.mark.parametrize("kind", ["walked", "callable"])
def test_valid_until_ends_at_its_cap(kind: str, seed: int) -> None:
    scaled = shipped("payments")
    model = booster_model(scaled, seed) if kind == "walked" else DIGEST
    cap_ms = 1_000 * TINY.cache.valid_until_cap_s
    with tiny(model, **ROOMY) as scorer:
        result = scorer.score(pay(0))
        assert result.valid_until == result.as_of + cap_ms
        # Two steps: the third change of a window ends it, whatever the score does.
        for number in range(1, 6):
            scorer.observe(pay(number, 3_600_000 * -1 + 100 * number))
        result = scorer.score(pay(0), as_of=MONDAY_MS)
        assert MONDAY_MS < result.valid_until < MONDAY_MS + cap_ms


@pytest.mark.parametrize(
    ("setting", "value"),
    [("store.arena_bytes", 2**40), ("cache.max_bytes", 2**40), ("store.max_entities", 2**30)],
)
def test_memory_that_is_not_there_is_an_error_that_names_the_setting(
    setting: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A machine of any size: from a gigabyte on, nothing can be reserved.
    empty = np.empty

    def small(shape: Any, *more: Any) -> Any:
        if np.prod(shape) > 2**27:
            raise MemoryError
        return empty(shape, *more)

    monkeypatch.setattr(np, "empty", small)
    settings = {"store.arena_bytes": 1 << 24, "store.max_entities": 1_000, setting: value}
    with pytest.raises(SettingsError, match=f"{setting} is {value}.*cannot reserve"):
        Scorer.open(settings=settings, model=DIGEST)


class Slow:
    """A model that waits until it is let go; counts its calls."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.may_go_on = threading.Event()
        self.calls = 0

    def __call__(self, matrix: Any) -> Any:
        """Scores, after the wait."""
        self.calls += 1
        self.called.set()
        assert self.may_go_on.wait(60)
        return digest_of_features(matrix)


def test_a_wait_for_the_same_score_ends_at_its_limit() -> None:
    slow = Slow()
    # A probe would call the model once more.
    settings = ROOMY | {"cache.probe_share": 0.0}
    with tiny(CallableModel(slow, "slow", [THRESHOLDS]), **settings) as scorer:
        first: list[Result] = []
        thread = threading.Thread(target=lambda: first.append(scorer.score(pay(0))))
        thread.start()
        assert slow.called.wait(60)
        for deadline_ms in (None, 0.01, 1.0):
            with pytest.raises(DeadlineExceeded, match="waited") as caught:
                scorer.score(pay(0), deadline_ms=deadline_ms)
            assert caught.value.retryable
        slow.may_go_on.set()
        thread.join(60)
        assert slow.calls == 1
        assert scorer.score(pay(0)).score == first[0].score
        assert slow.calls == 1


def test_a_string_of_the_limit_is_taken_and_a_longer_one_is_not() -> None:
    with tiny() as scorer:
        at_limit, beyond = "x" * MAX_STRING_BYTES, "é" * (MAX_STRING_BYTES // 2) + "x"
        scorer.observe(pay(1, card=at_limit))
        problem = check_that_nothing_changes(scorer, lambda: scorer.observe(pay(2, card=beyond)))
        assert isinstance(problem, BadTransaction)
        assert str(MAX_STRING_BYTES) in str(problem)


@pytest.mark.parametrize(
    ("late_ms", "is_taken"),
    [(60_000, True), (60_001, False), (-2_000, True), (-2_001, False)],
)
def test_an_event_at_the_horizon_or_the_skew_is_taken_and_beyond_it_is_not(
    late_ms: int, is_taken: bool
) -> None:
    with tiny() as scorer:
        event = pay(1)
        arrival = event.time + late_ms
        if is_taken:
            scorer.observe(event, arrival=arrival)
            assert scorer.stats()["store"]["payments"] == 1
            return
        problem = check_that_nothing_changes(scorer, lambda: scorer.observe(event, arrival=arrival))
        assert isinstance(problem, EventRefused)


@pytest.mark.parametrize("n_members", [1, 4])
def test_distinct_members_are_counted_up_to_the_limit_of_events(n_members: int) -> None:
    """Every event with members of its own, under several conditions: the worst that can be."""
    members = ("merchant", "device", "ip", "email")[:n_members]
    conditions = [None, *(Condition(kind=kind) for kind in ("authorisation", "refund", "payout"))]
    aggregates = tuple(
        Aggregate("distinct", of=of, where=where, name=f"d{i}_{of}")
        for i, where in enumerate(conditions)
        for of in members
    )
    specification = FeatureSpecification(
        name="distinct",
        currency="EUR",
        entities=(Entity("card"), *(Entity(name) for name in members)),
        windows=(WindowGroup("card", ("1d",), aggregates, current=False),),
    )
    limit = 6_000
    scaled = Scaled(specification, 1, 1, HOUR_MS)
    world = World(specification, callable_model(scaled), Limits(max_events_per_entity=limit))
    for number in range(limit):
        own = {name: f"{name}{number}" for name in members}
        world.scorer.observe(pay(number, number, **own))
    found = world.features(pay(limit, limit), MONDAY_MS + limit)
    expected = [
        limit if where is None or where.kind == "authorisation" else 0
        for where in conditions
        for _ in members
    ]
    assert found.tolist() == expected


def test_canary_a_state_that_hides_what_it_lost_is_found(seed: int) -> None:
    scaled = shipped("payments")
    world = World(scaled.specification, callable_model(scaled), Limits(max_events_per_entity=8))
    oracle = world.plain_oracle()
    for number in range(20):
        payment = pay(number, 1_000 * number)
        world.scorer.observe(payment)
        oracle.observe(payment)
    forget_losses(world)
    request = pay(99, 20_000)
    result = world.scorer.score(request)
    with pytest.raises(AssertionError):
        check_that_it_is_right_or_degraded(result, request, oracle)
    vector = np.array([oracle.features(request, result.as_of)])
    assert different_bits(world.features(request, result.as_of)[None], vector).any()


def test_canary_a_limit_that_leaves_something_behind_is_found() -> None:
    """The check itself: a call that raises, and has changed something."""
    with tiny(**ROOMY) as scorer:

        def observe_and_raise() -> None:
            scorer.observe(pay(scorer.stats()["store"]["payments"]))
            raise StoreFull("too late")

        with pytest.raises(AssertionError):
            check_that_nothing_changes(scorer, observe_and_raise)
