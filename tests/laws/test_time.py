"""Law 2: windows are evaluated at `as_of` on every read, so nothing has to happen for an old event
to leave; and `valid_until` is never later than the first instant at which time changes the score.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import pytest

from freshscore.features.specification import (
    Aggregate,
    Condition,
    Entity,
    FeatureSpecification,
    WindowGroup,
)
from freshscore.features.transaction import Transaction
from freshscore.simulations.oracle import PlainOracle
from tests.laws.campaigns import LawBroken, Plan, damaged_campaign
from tests.laws.damage import prolong_memos
from tests.laws.law_models import callable_model, law_model
from tests.laws.law_specifications import Scaled, mixed
from tests.laws.records import different_bits
from tests.laws.traffic import Traffic
from tests.laws.worlds import DAY_MS, HOUR_MS, MINUTE_MS, MONDAY_MS, Limits, World

CARD = {"card": "c", "merchant": "m"}


def counting(
    length: str, delay: str = "0s", *, resolution: float | None = None, current: bool = False
) -> Scaled:
    """One count over one window of the card."""
    mode: Literal["exact", "grid"] = "exact" if resolution is None else "grid"
    specification = FeatureSpecification(
        name="counting",
        currency="EUR",
        entities=(Entity("card", mode=mode, resolution=resolution),),
        windows=(WindowGroup("card", (length,), (Aggregate("count"),), delay, current),),
    )
    return Scaled(specification, 1_000, 250, HOUR_MS)


def pay(name: str, at_ms: int, amount: int = 100) -> Transaction:
    """A payment of the one card."""
    return Transaction(name, MONDAY_MS + at_ms, amount, "EUR", CARD)


@pytest.mark.parametrize("delay_s", [0, 1, 7])
@pytest.mark.parametrize("length_s", [1, 10, 3600])
def test_an_event_is_inside_from_its_delay_until_delay_and_length_have_passed(
    length_s: int, delay_s: int
) -> None:
    """The window is (as_of - delay - length, as_of - delay]: its end counts, its beginning not."""
    scaled = counting(f"{length_s}s", f"{delay_s}s")
    world = World(scaled.specification, callable_model(scaled))
    world.scorer.observe(pay("event", 0))
    enters, leaves = 1000 * delay_s, 1000 * (delay_s + length_s)
    request = pay("request", 0)
    for at_ms, count in (
        (enters - 1, 0),
        (enters, 1),
        (enters + 1, 1),
        (leaves - 1, 1),
        (leaves, 0),
        (leaves + 1, 0),
    ):
        if at_ms >= 0:
            assert world.features(request, MONDAY_MS + at_ms).tolist() == [count], at_ms


@pytest.mark.parametrize("delay_s", [0, 4])
def test_a_grid_window_begins_on_its_line_and_ends_at_the_instant_or_on_a_line(
    delay_s: int,
) -> None:
    """Steps of 2.5 s for a window of 10 s; MONDAY_MS is a line of it."""
    scaled = counting("10s", f"{delay_s}s", resolution=0.25)
    world = World(scaled.specification, callable_model(scaled))
    world.scorer.observe(pay("event", 1_000))
    # Without a delay it enters at once; with one, when a line at or behind it is `delay` ago.
    enters = 1_000 if delay_s == 0 else 2_500 + 1000 * delay_s
    # It leaves when the floor of as_of - delay - length reaches it: at the line behind it.
    leaves = 2_500 + 10_000 + 1000 * delay_s
    for at_ms, count in ((enters - 1, 0), (enters, 1), (leaves - 1, 1), (leaves, 0)):
        assert world.features(pay("request", 0), MONDAY_MS + at_ms).tolist() == [count], at_ms


def test_the_payment_itself_leaves_its_own_window_too() -> None:
    scaled = counting("10s", current=True)
    world = World(scaled.specification, callable_model(scaled))
    request = pay("request", 0)
    result = world.scorer.score(request, as_of=MONDAY_MS)
    assert result.valid_until == MONDAY_MS + 10_000
    assert world.features(request, result.valid_until - 1).tolist() == [1]
    assert world.features(request, result.valid_until).tolist() == [0]


def test_a_fact_counts_from_the_instant_at_which_it_was_known() -> None:
    group = WindowGroup(
        "card", ("1h",), (Aggregate("count", where=Condition(fact="fraud")),), current=False
    )
    specification = replace_facts(counting("1h").specification, group)
    scaled = Scaled(specification, 1_000, 250, HOUR_MS)
    world = World(specification, callable_model(scaled))
    world.scorer.observe(pay("event", 0))
    world.scorer.label("event", known_at=MONDAY_MS + 5_000, fraud=True)
    world.scorer.label("event", known_at=MONDAY_MS + 9_000, fraud=False)
    request = pay("request", 0)
    for at_ms, count in ((4_999, 0), (5_000, 1), (8_999, 1), (9_000, 0)):
        assert world.features(request, MONDAY_MS + at_ms).tolist() == [count], at_ms
    result = world.scorer.score(request, as_of=MONDAY_MS + 1_000)
    assert result.valid_until == MONDAY_MS + 5_000
    result = world.scorer.score(request, as_of=MONDAY_MS + 6_000)
    assert result.valid_until == MONDAY_MS + 9_000


def replace_facts(specification: FeatureSpecification, group: WindowGroup) -> FeatureSpecification:
    """The same entities with a fact and other windows."""
    return FeatureSpecification(
        name="facts",
        currency="EUR",
        entities=specification.entities,
        windows=(group,),
        facts=("fraud",),
    )


@pytest.mark.parametrize("number", range(6))
def test_valid_until_is_the_first_instant_at_which_time_changes_the_features(
    number: int, seed: int
) -> None:
    """Exactly, where neither cap nor steps end it; at each instant at which anything can change."""
    world, traffic, payments = filled_world(seed, "callable", Limits(cap_ms=DAY_MS, max_steps=400))
    for payment in [traffic.new().first for _ in range(4)] + payments[-4:]:
        as_of = max(traffic.instant(payment), world.store.newest_ms)
        result = world.scorer.score(payment, as_of=as_of)
        at_first = world.features(payment, as_of)
        changes = [
            instant
            for instant in instants_of(world, payments, payment)
            if instant > as_of
            and different_bits(
                at_first[np.newaxis], world.features(payment, instant)[np.newaxis]
            ).any()
        ]
        expected = min([*changes, as_of + DAY_MS])
        assert result.valid_until == expected, payment


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("max_steps", [1, 3, 200])
def test_valid_until_is_never_later_than_the_first_other_score(
    max_steps: int, number: int, seed: int
) -> None:
    limits = Limits(cap_ms=3 * MINUTE_MS, max_steps=max_steps)
    world, traffic, payments = filled_world(seed, "walked", limits)
    for payment in [traffic.new().first for _ in range(4)] + payments[-4:]:
        as_of = max(traffic.instant(payment), world.store.newest_ms)
        result = world.scorer.score(payment, as_of=as_of)
        assert as_of < result.valid_until <= as_of + limits.cap_ms
        for instant in instants_of(world, payments, payment):
            if as_of <= instant < result.valid_until:
                assert world.fresh_score(payment, instant) == result.score, (payment, instant)


def filled_world(seed: int, kind: str, limits: Limits) -> tuple[World, Traffic, list[Transaction]]:
    """A world with some payments and facts, some of them known only later."""
    scaled = mixed(np.random.default_rng(seed))
    world = World(
        scaled.specification,
        law_model(kind, scaled, seed),
        replace(limits, horizon_ms=scaled.horizon_ms),
    )
    traffic = Traffic(scaled, random.Random(seed))
    payments = []
    for _ in range(60):
        payment = traffic.new().first
        payments.append(payment)
        world.scorer.observe(payment)
        traffic.newest_ms = max(traffic.newest_ms, payment.time)
        if traffic.chance.random() < 0.4:
            name, value = traffic.fact()
            known_at = payment.time + traffic.chance.randrange(100_000)
            world.scorer.label(
                payment.transaction_id, known_at=known_at, **cast("Any", {name: value})
            )
    return world, traffic, payments


def instants_of(world: World, payments: list[Transaction], request: Transaction) -> list[int]:
    """Every instant at which an event can enter or leave a window, or a fact become known, and
    those beside it, in order."""
    spec = world.specification
    spans = {
        (group.delay_ms + edge, spec.step_ms(group, length))
        for group in spec.windows
        for length in group.lengths_ms
        for edge in (0, length)
    }
    times = {payment.time for payment in [*payments, request]}
    borders = world.known_instants()
    for time in times:
        for ahead, step in spans:
            borders.add((time + (-time % step if step else 0)) + ahead)
            borders.add(time + ahead)
    return sorted({border + beside for border in borders for beside in (-1, 0, 1)})


def test_valid_until_stops_at_its_cap_on_time_and_on_steps() -> None:
    scaled = counting("10s")
    events = [pay(f"e{i}", 100 * i) for i in range(50)]
    for limits, expected in (
        (Limits(cap_ms=0), 0),
        (Limits(cap_ms=1_234, max_steps=1), 1_234),
        # Every event that leaves changes the count: with a callable the first ends it.
        (Limits(cap_ms=DAY_MS, max_steps=400), 5_100),
    ):
        world = World(scaled.specification, callable_model(scaled), limits)
        for event in events:
            world.scorer.observe(event)
        request = pay("request", 4_900)
        result = world.scorer.score(request, as_of=MONDAY_MS + 4_900)
        assert result.valid_until - result.as_of == expected


def test_canary_a_memo_that_is_valid_a_little_too_long_is_found() -> None:
    with pytest.raises(LawBroken):
        damaged_campaign(Plan(3, "mixed", "callable", 1_500), lambda w: prolong_memos(w, 50))


def test_canary_a_valid_until_one_millisecond_late_is_found() -> None:
    scaled = counting("10s", current=True)
    world = World(scaled.specification, callable_model(scaled))
    request = pay("request", 0)
    result = world.scorer.score(request, as_of=MONDAY_MS)
    prolong_memos(world, 1)
    stale = world.scorer.score(request, as_of=result.valid_until)
    assert stale.source == "memo"
    assert stale.score != world.fresh_score(request, stale.as_of)


class BorderCounts(PlainOracle):
    """An oracle whose windows begin a millisecond too early."""

    def _inside(self, group, length_ms, as_of_ms, sight):  # type: ignore[no-untyped-def]  # as in its parent
        return super()._inside(group, length_ms + 1, as_of_ms, sight)


def test_canary_a_window_one_millisecond_too_long_is_found() -> None:
    scaled = counting("10s")
    world = World(scaled.specification, callable_model(scaled))
    wrong = BorderCounts(
        scaled.specification, horizon_ms=HOUR_MS, skew_ms=0, record_key=world.record_key
    )
    right = world.plain_oracle()
    event, request = pay("event", 0), pay("request", 10_000)
    for oracle in (wrong, right):
        oracle.observe(event)
    world.scorer.observe(event)
    found = world.features(request, request.time).tolist()
    assert found == right.features(request, request.time)
    assert found != wrong.features(request, request.time)
