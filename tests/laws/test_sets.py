"""Law 3: a state is a set. Accepted events and facts, in any order, any number of times, give the
same states: same versions, same features; and whether an event is accepted is a function of its
message alone.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from freshscore.config.errors import EventRefused
from freshscore.features.transaction import Transaction
from freshscore.simulations.oracle_columns import is_accepted
from tests.laws.law_models import callable_model
from tests.laws.law_specifications import Scaled, mixed, shipped
from tests.laws.messages import Event, Message, apply, random_messages, shuffled
from tests.laws.plain_versions import plain_versions
from tests.laws.records import different_bits
from tests.laws.traffic import Traffic, changed
from tests.laws.worlds import MINUTE_MS, MONDAY_MS, Limits, World, versions


def specification_of(name: str, seed: int) -> Scaled:
    """By name, or a random one."""
    return mixed(np.random.default_rng(seed)) if name == "mixed" else shipped(name)


def world_of(scaled: Scaled) -> World:
    """An empty world."""
    return World(scaled.specification, callable_model(scaled), Limits(horizon_ms=scaled.horizon_ms))


def requests_of(messages: list[Message], scaled: Scaled) -> list[tuple[Transaction, int]]:
    """What is asked of every world, all after the last event: payments that it knows, and new."""
    times = [message.payment.time for message in messages]
    newest = max(times)
    payments = [message.payment for message in messages[::7]]
    unknown = [changed(payment, transaction_id=f"new {i}") for i, payment in enumerate(payments)]
    return [
        (payment, newest + ahead)
        for payment in [*payments, *unknown]
        for ahead in (0, scaled.lattice_ms, 40 * scaled.gap_ms)
    ]


def features_of(world: World, requests: list[tuple[Transaction, int]]) -> np.ndarray:
    """All their vectors."""
    return np.array([world.features(payment, as_of) for payment, as_of in requests])


@pytest.mark.parametrize("name", ["mixed", "payments", "handbook", "sparkov"])
def test_any_order_and_any_repetition_give_the_same_versions_and_features(
    name: str, seed: int
) -> None:
    scaled = specification_of(name, seed)
    messages = random_messages(scaled, seed)
    requests = requests_of(messages, scaled)
    chance = random.Random(seed)
    first = world_of(scaled)
    apply(first, messages)
    expected, expected_versions = features_of(first, requests), versions(first.store)
    for _ in range(6):
        world = world_of(scaled)
        apply(world, shuffled(messages, chance))
        assert versions(world.store) == expected_versions
        assert not different_bits(features_of(world, requests), expected).any()
        assert world.store.n_payments == first.store.n_payments
        assert world.store.n_records == first.store.n_records
        # And once more, all of it, into the same world.
        apply(world, shuffled(messages, chance))
        assert versions(world.store) == expected_versions


def test_versions_are_the_sums_of_keyed_digests_of_what_counts(seed: int) -> None:
    scaled = mixed(np.random.default_rng(seed))
    messages = [
        replace(message, payment=changed(message.payment, flags={}))
        for message in random_messages(scaled, seed, n_payments=40, in_conflict=False)
    ]
    world = world_of(scaled)
    oracle = world.plain_oracle()
    apply(world, messages)
    for message in messages:
        payment = message.payment
        if isinstance(message, Event):
            oracle.observe(payment)
            continue
        instants = (message.sender_ms, message.known_at_ms, payment.time)
        oracle.label(payment.transaction_id, message.name, message.value, *instants)
    expected = plain_versions(world, oracle)
    assert len(expected) > 10
    assert sorted(version_numbers(world)) == sorted(expected.values())


def version_numbers(world: World) -> list[int]:
    """The versions of all states, 128 bits each."""
    return [int.from_bytes(version, "little") for version in versions(world.store).values()]


@pytest.mark.parametrize("n_events", [63, 64, 65, 127, 128, 129, 300])
def test_long_states_read_through_block_sums_do_not_depend_on_order(
    n_events: int, seed: int
) -> None:
    """Facts that come to an event at a border of blocks, before and after it was summed."""
    scaled = mixed(np.random.default_rng(4))
    traffic = Traffic(scaled, random.Random(seed), n_cards=1, n_merchants=1)
    payments = []
    for i in range(n_events):
        payment = changed(traffic.new().first, time=MONDAY_MS + 250 * i)
        payments.append(payment)
    world, oracle = world_of(scaled), world_of(scaled).plain_oracle()
    for payment in payments:
        world.scorer.observe(payment)
        oracle.observe(payment)
    requests = [(payments[-1], payments[-1].time), (payments[0], payments[-1].time + 1_000)]
    before = features_of(world, requests)
    plain = [oracle.features(*request, world.model.codes) for request in requests]
    assert not different_bits(before, np.array(plain)).any()
    for number in {0, 62, 63, 64, 127, n_events - 1} & set(range(n_events)):
        payment = payments[number]
        for name in scaled.specification.facts:
            world.scorer.label(
                payment.transaction_id, known_at=payment.time, **cast("Any", {name: True})
            )
            at = payment.time
            oracle.label(payment.transaction_id, name, True, at, at, payment.time)
            plain = [oracle.features(*request, world.model.codes) for request in requests]
            assert not different_bits(features_of(world, requests), np.array(plain)).any()


def test_a_fact_belongs_to_the_event_with_its_own_time() -> None:
    """Not to one of the same id at another time, also where they stand side by side."""
    scaled = shipped("payments")
    world = world_of(scaled)
    payment = Traffic(scaled, random.Random(1)).new().first
    payment = changed(payment, entities={"card": "c", "device": "d"}, flags={})
    world.scorer.observe(payment)
    request = changed(payment, transaction_id="request", time=payment.time + 2_000)
    before = world.features(request, request.time)
    later = payment.time + 1_000
    world.scorer.label(
        payment.transaction_id,
        known_at=later,
        entities=payment.entities,
        time=later,
        declined=True,
    )
    assert not different_bits(world.features(request, request.time)[None], before[None]).any()


def test_whether_an_event_is_accepted_depends_on_its_message_alone(seed: int) -> None:
    scaled = mixed(np.random.default_rng(seed))
    chance = random.Random(seed)
    traffic = Traffic(scaled, chance)
    empty, busy = world_of(scaled), world_of(scaled)
    apply(busy, random_messages(scaled, seed))
    horizon, skew = scaled.horizon_ms, MINUTE_MS
    outcomes = set()
    for _ in range(300):
        payment = traffic.new().first
        edge = chance.choice((horizon, -skew))
        arrival = payment.time + edge + chance.choice((-1, 0, 1, 1_000, -1_000))
        expected = bool(
            is_accepted(np.array([payment.time]), np.array([arrival]), horizon, skew)[0]
        )
        taken = [is_taken(world, payment, arrival) for world in (empty, busy, empty)]
        assert taken == [expected] * 3
        outcomes.add(expected)
    assert outcomes == {True, False}


def is_taken(world: World, payment: Transaction, arrival: int) -> bool:
    """Whether the feed takes it; what is refused changes nothing."""
    before = world.footprint()
    try:
        world.scorer.observe(payment, arrival=arrival)
    except EventRefused:
        assert world.footprint() == before
        return False
    return True


def test_observing_and_labelling_again_changes_nothing_at_the_limit_on_events() -> None:
    """Nothing is forgotten for the sake of a record that is there already."""
    scaled = shipped("handbook")
    world = World(scaled.specification, callable_model(scaled), Limits(max_events_per_entity=12))
    payments = [
        Transaction(f"t{i}", MONDAY_MS + 1_000 * i, 100, "EUR", {"card": "c", "merchant": "m"})
        for i in range(6)
    ]
    for _ in range(3):
        for payment in payments:
            world.scorer.observe(payment)
            world.scorer.label(payment.transaction_id, known_at=MONDAY_MS + 10_000, fraud=True)
    assert world.store.n_records == 2 * 12
    assert not world.scorer.score(payments[0], as_of=MONDAY_MS + 20_000).degraded
    assert world.scorer.stats()["feed"]["repeated"] == 12


def test_canary_a_state_that_counts_a_repetition_twice_is_found(seed: int) -> None:
    """One repetition under another identity: what a store without identities would do."""
    scaled = mixed(np.random.default_rng(seed))
    messages = random_messages(scaled, seed)
    first, other = world_of(scaled), world_of(scaled)
    apply(first, messages)
    event = next(message for message in messages if isinstance(message, Event))
    again = replace(event, payment=changed(event.payment, transaction_id="twice"))
    apply(other, [*messages, again])
    assert versions(other.store) != versions(first.store)
    requests = requests_of(messages, scaled)
    assert different_bits(features_of(other, requests), features_of(first, requests)).any()


def test_canary_a_store_that_keeps_the_last_of_two_contents_is_found(seed: int) -> None:
    """Applied in two orders, with the first content dropped as such a store would."""
    scaled = mixed(np.random.default_rng(seed))
    payment = Traffic(scaled, random.Random(seed)).new().first
    other = changed(payment, amount_minor=(payment.amount_minor + 1) % 2**40, kind="refund")
    found = []
    for last in (payment, other):
        world = world_of(scaled)
        apply(world, [Event(last)])
        found.append(versions(world.store))
    assert found[0] != found[1]
