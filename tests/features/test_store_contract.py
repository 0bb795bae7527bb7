"""Every law of stores, on every store: memory, a Redis server, a Redis Cluster of three.

The outcome words are those of memory where a blind append can know them; aggregates and versions
are the same bits everywhere.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freshscore.config.errors import AsOfTooOld, FreshscoreError
from freshscore.features.store_protocol import Store
from tests.features.stored_states import NOON_MS, Fact, Ground, Payment
from tests.features.stores import NUMBERS, STORES, MemoryPlace, Place, RedisPlace, places

CARD, MERCHANT, TERMINAL = 0, 1, 2
Thing = Payment | Fact

# A place outlives the examples of one test; each example takes a fresh one.
shared = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def ground() -> Ground:
    return Ground()


@pytest.fixture(scope="module", params=STORES)
def place(request: pytest.FixtureRequest, ground: Ground) -> Iterator[Place]:
    yield from places(request, ground)


payments = st.builds(
    Payment,
    number=st.integers(0, 7),
    time_ms=st.integers(0, 6).map(lambda s: NOON_MS + 1_000 * s),
    amount_minor=st.sampled_from((0, 1, 250, 2**40)),
    card=st.integers(0, 1),
    merchant=st.integers(0, NUMBERS - 1),
    refund=st.booleans(),
    web=st.booleans(),
    declined=st.booleans(),
    located=st.booleans(),
)


@st.composite
def things(draw: st.DrawFn) -> list[Thing]:
    """Events, among them conflicts, and facts of them."""
    events = draw(st.lists(payments, min_size=1, max_size=12))
    facts = st.builds(
        Fact,
        payment=st.sampled_from(events),
        fact=st.integers(0, 1),
        value=st.booleans(),
        known_at_ms=st.integers(0, 3).map(lambda s: NOON_MS + 20_000 * s),
        after_ms=st.sampled_from((-3, 0, 5_000, 2**33)),
    )
    return [*events, *draw(st.lists(facts, max_size=6))]


def apply(ground: Ground, store: Store, what: Sequence[Thing]) -> None:
    """Apply each."""
    for one in what:
        if isinstance(one, Payment):
            store.observe(ground.row(one))
        else:
            row = ground.row(one.payment)
            store.label(row, one.fact, one.value, one.known_at_ms, one.sender_ms, False)


def seen(ground: Ground, store: Store, requests: Sequence[tuple[Payment, int]]) -> list[object]:
    """Bits of the features, and versions, that a store answers to requests at instants."""
    found: list[object] = []
    for payment, as_of_ms in requests:
        row = ground.row(payment)
        found += [store.features(row, as_of_ms).tobytes(), store.versions(row)]
    return found


def requests_of(what: Sequence[Thing]) -> list[tuple[Payment, int]]:
    """Requests by the payments themselves and by another, at several instants."""
    own = [one if isinstance(one, Payment) else one.payment for one in what][:3]
    other = [Payment(99, NOON_MS + 4_000, 77, card=n % 2, merchant=n) for n in range(NUMBERS)]
    instants = (0, 700, 19_000, 180_000)
    return [(one, one.time_ms + after_ms) for one in (*own, *other) for after_ms in instants]


def in_memory(ground: Ground, what: Sequence[Thing]) -> Store:
    """A memory store to which all was applied once."""
    store = MemoryPlace(ground).open()
    apply(ground, store, what)
    return store


@given(what=things(), data=st.data())
@shared
def test_any_order_repetition_and_number_of_writers_gives_the_bits_of_memory(
    ground: Ground, place: Place, what: list[Thing], data: st.DataObject
) -> None:
    here = place.fresh()
    writers = [here.open(), here.open()]
    again = data.draw(st.lists(st.sampled_from(what), max_size=6))
    for one in data.draw(st.permutations(what + again)):
        apply(ground, data.draw(st.sampled_from(writers)), [one])
        if data.draw(st.integers(0, 5)) == 0:
            here.compact()
    requests = requests_of(what)
    assert seen(ground, here.open(), requests) == seen(ground, in_memory(ground, what), requests)


@given(data=st.data())
@shared
def test_compacting_and_folding_at_any_moment_changes_no_bit(
    ground: Ground, place: Place, data: st.DataObject
) -> None:
    here, plain = place.fresh(), MemoryPlace(ground).open()
    store = here.open()
    now_ms, line_ms = NOON_MS, 0
    events: list[Payment] = []
    for number in range(data.draw(st.integers(5, 30))):
        now_ms += data.draw(st.sampled_from((0, 1, 999, 3_500, 9_000)))
        kind = data.draw(st.sampled_from("eeeffc"))
        if kind == "e" or not events:
            late_ms = 1_000 * data.draw(st.integers(0, 8))
            event = Payment(
                number,
                max(line_ms, now_ms - late_ms),
                data.draw(st.integers(0, 2**40)),
                web=data.draw(st.booleans()),
                declined=data.draw(st.booleans()),
            )
            events.append(event)
            what: Thing = event
        elif kind == "f":
            event = data.draw(st.sampled_from(events))
            known_ms = event.time_ms + 1_000 * data.draw(st.integers(0, 40))
            what = Fact(event, data.draw(st.integers(0, 1)), data.draw(st.booleans()), known_ms)
        else:
            line_ms = max(line_ms, now_ms - data.draw(st.sampled_from((0, 700, 9_000, 30_000))))
            here.compact(fold_below_ms=line_ms)
            what = data.draw(st.sampled_from(events)) if events else Payment(0, now_ms)
        for one in (store, plain):
            apply(ground, one, [what])
    own = Payment(1_000, max(line_ms, now_ms), 55, web=True)
    requests = [(own, own.time_ms + after) for after in (0, 1, 300, 4_000, 15_000, 70_000)]
    assert seen(ground, store, requests) == seen(ground, plain, requests)


def test_of_two_contents_the_smaller_counts_whichever_came_first(
    ground: Ground, place: Place
) -> None:
    contents = [Payment(1, NOON_MS, 900), Payment(1, NOON_MS, 30), Payment(1, NOON_MS + 5, 10)]
    requests = [(Payment(2, NOON_MS + 9, 5), NOON_MS + 9)]
    found = []
    for order in (contents, contents[::-1], [contents[1], contents[0], contents[2]]):
        here = place.fresh()
        apply(ground, here.open(), order)
        found.append(seen(ground, here.open(), requests))
    assert found[0] == found[1] == found[2]
    assert found[0] == seen(ground, in_memory(ground, contents[1:2]), requests)


def test_a_fact_counts_whether_it_came_before_or_after_its_event(
    ground: Ground, place: Place
) -> None:
    event = Payment(1, NOON_MS)
    fact = Fact(event, 0, True, NOON_MS + 1_000)
    won_back = Fact(event, 0, False, NOON_MS + 50_000)
    requests = [(Payment(2, NOON_MS + 10), NOON_MS + ms) for ms in (10, 999, 1_000, 15_000, 55_000)]
    found = []
    orders: list[list[Thing]] = [
        [event, fact, won_back],
        [won_back, fact, event],
        [fact, event, fact, won_back],
    ]
    for order in orders:
        here = place.fresh()
        apply(ground, here.open(), order)
        found.append(seen(ground, here.open(), requests))
    assert found[0] == found[1] == found[2]


def test_a_late_fact_of_a_folded_event_counts(ground: Ground, place: Place) -> None:
    here, plain = place.fresh(), MemoryPlace(ground).open()
    store = here.open()
    events = [Payment(n, NOON_MS + 100 * n, 100 + n) for n in range(20)]
    late = [Fact(events[3], 0, True, NOON_MS + 40_000), Fact(events[5], 1, True, NOON_MS + 41_000)]
    requests = [(Payment(99, NOON_MS + 41_000, 7), NOON_MS + ms) for ms in (41_000, 60_000, 90_000)]
    apply(ground, store, events)
    apply(ground, plain, events)
    here.compact(fold_below_ms=NOON_MS + 30_000)
    for fact in late:
        for one in (store, plain):
            apply(ground, one, [fact])
        assert seen(ground, store, requests) == seen(ground, plain, requests)
        here.compact(fold_below_ms=NOON_MS + 35_000)
        assert seen(ground, store, requests) == seen(ground, plain, requests)


def test_the_own_event_counts_once(ground: Ground, place: Place) -> None:
    here = place.fresh()
    store = here.open()
    others = [Payment(n, NOON_MS + n, 100 * n) for n in range(1, 6)]
    mine = Payment(9, NOON_MS + 3, 777, web=True)
    apply(ground, store, others)
    row = ground.row(mine)
    before = store.features(row, NOON_MS + 500).tobytes()
    apply(ground, store, [mine, mine])
    assert store.features(row, NOON_MS + 500).tobytes() == before


def test_a_new_entity_has_no_version_and_counts_nothing(ground: Ground, place: Place) -> None:
    store, plain = place.fresh().open(), MemoryPlace(ground).open()
    requests = [(Payment(1, NOON_MS), NOON_MS)]
    assert store.versions(ground.row(requests[0][0])) == (None, None, None)
    assert seen(ground, store, requests) == seen(ground, plain, requests)


def test_an_event_beyond_reach_is_refused(ground: Ground, place: Place) -> None:
    store = place.fresh().open()
    assert store.observe(ground.row(Payment(1, NOON_MS))) == "accepted"
    days_31_ms = 31 * 86_400_000
    assert store.observe(ground.row(Payment(2, NOON_MS - days_31_ms))) == "beyond reach"
    old = Fact(Payment(2, NOON_MS - days_31_ms), 0, True, NOON_MS)
    row = ground.row(old.payment)
    assert store.label(row, 0, True, NOON_MS, NOON_MS, False) == "beyond reach"
    assert store.newest_ms == NOON_MS


def test_a_fact_finds_its_payment_by_identity_or_is_unknown(ground: Ground, place: Place) -> None:
    here, plain = place.fresh(), MemoryPlace(ground).open()
    store = here.open()
    event = Payment(1, NOON_MS)
    requests = [(Payment(2, NOON_MS + 10), NOON_MS + 5_000)]
    for one in (store, plain):
        row = ground.row(event)
        assert one.label(row, 0, True, NOON_MS, NOON_MS, True) == "unknown"
        apply(ground, one, [Payment(3, NOON_MS - 7, 5, card=1), event])
        assert one.label(row, 0, True, NOON_MS + 9, NOON_MS + 9, True) == "accepted"
    assert seen(ground, here.open(), requests) == seen(ground, plain, requests)


def test_writers_beside_compactors_lose_nothing(ground: Ground, place: Place, seed: int) -> None:
    here = place.fresh()
    chance = random.Random(seed)
    events = [
        Payment(n, NOON_MS + chance.randrange(60_000), chance.randrange(10**6), merchant=n % 2)
        for n in range(240)
    ]
    errors: list[BaseException] = []

    def guarded(work: Sequence[Payment] | None) -> None:
        try:
            if work is None:
                for _ in range(40):
                    here.compact(fold_below_ms=NOON_MS)
            else:
                apply(ground, here.open(), work)
        except (FreshscoreError, AssertionError) as problem:
            errors.append(problem)

    shares = [events[:160], events[80:], None, None]
    threads = [threading.Thread(target=guarded, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    requests = [(Payment(999, NOON_MS + 61_000, merchant=m), NOON_MS + 61_000) for m in (0, 1)]
    found = seen(ground, here.open(), requests)
    assert found == seen(ground, in_memory(ground, events), requests)


def test_a_request_before_what_was_folded_is_refused_or_answered_right(
    ground: Ground, place: Place
) -> None:
    here = place.fresh()
    apply(ground, here.open(), [Payment(1, NOON_MS)])
    here.compact(fold_below_ms=NOON_MS + 30_000)
    row = ground.row(Payment(2, NOON_MS + 10))
    if isinstance(here, RedisPlace):
        with pytest.raises(AsOfTooOld):
            here.open().features(row, NOON_MS + 10)
    else:
        assert not np.isnan(here.open().features(row, NOON_MS + 10)[0])


def test_canary_a_store_that_lost_one_record_is_found(ground: Ground, place: Place) -> None:
    here = place.fresh()
    events = [Payment(n, NOON_MS + n) for n in range(5)]
    apply(ground, here.open(), events[:-1])
    requests = [(Payment(9, NOON_MS + 10), NOON_MS + 10)]
    assert seen(ground, here.open(), requests) != seen(ground, in_memory(ground, events), requests)
