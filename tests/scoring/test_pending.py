"""Read your own writes: what was observed before a score counts in it, whoever saw it since."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from freshscore.features.transaction import Transaction
from freshscore.scoring.exchanges import Desk, Fetched
from freshscore.scoring.pending import PendingEvents
from freshscore.scoring.seats import NO_TICKET
from freshscore.simulations.clock import VirtualClock
from tests.laws.law_models import law_model
from tests.laws.law_specifications import shipped
from tests.laws.worlds import DAY_MS, MONDAY_MS
from tests.scoring.shared_worlds import HeldWriter, SharedWorld
from tests.servers.redis_servers import RedisServer

AT_MS = MONDAY_MS + 30 * DAY_MS
TOKENS = [bytes([number]) * 16 for number in range(2)]
RECORD = struct.Struct("<QQ")


class Exchange:
    """One exchange under way: what was observed before it began, and what it read."""

    def __init__(self, ticket: int, before: set[bytes]) -> None:
        self.ticket = ticket
        self.before = before
        self.states: list[bytes | None] | None = None


class Interleaving:
    """Exchanges, events and their ways to Redis in any order; all steps are the test's own."""

    def __init__(self, seed: int, oldest_ticket: Callable[[], int] | None = None) -> None:
        self.chance = random.Random(seed)
        self.under_way: list[Exchange] = []
        self.pending = PendingEvents(
            10_000, 60.0, VirtualClock(MONDAY_MS), oldest_ticket or self.oldest_ticket
        )
        self.observed: set[bytes] = set()
        self.flying: list[tuple[bytes, bytes]] = []
        self.redis: dict[bytes, bytes] = {}

    def oldest_ticket(self) -> int:
        return min((one.ticket for one in self.under_way), default=NO_TICKET)

    def observe(self) -> None:
        record = RECORD.pack(len(self.observed) + 1, self.chance.getrandbits(64))
        self.pending.add(dict.fromkeys(TOKENS, record))
        self.observed.add(record)
        self.flying += [(token, record) for token in TOKENS]

    def land(self) -> None:
        if self.flying:
            token, record = self.flying.pop(self.chance.randrange(min(3, len(self.flying))))
            self.redis[token] = self.redis.get(token, b"") + record

    def begin(self) -> None:
        if len(self.under_way) < 6:
            self.under_way.append(Exchange(self.pending.ticket(), set(self.observed)))

    def read(self) -> None:
        if self.under_way:
            one = self.chance.choice(self.under_way)
            if one.states is None:
                one.states = [self.redis.get(token) for token in TOKENS]

    def end(self) -> None:
        ready = [one for one in self.under_way if one.states is not None]
        if not ready:
            return
        one = self.chance.choice(ready)
        assert one.states is not None
        shown: list[set[bytes]] = [records_in(state) for state in one.states]
        found: list[bytes | None] = [*one.states]
        identities: tuple[bytes, ...] = ()
        if self.pending.is_any and self.pending.concerns(TOKENS):
            found, identities = self.pending.united(TOKENS, one.states, one.ticket)
        counted = [records_in(state) for state in found]
        for records in counted:
            assert one.before <= records
        added = {
            record[:8] for some, old in zip(counted, shown, strict=True) for record in some - old
        }
        assert added == {*identities}
        # What is counted once stands there once.
        assert [len(state or b"") for state in found] == [16 * len(some) for some in counted]
        self.under_way.remove(one)

    def run(self, n_steps: int) -> None:
        steps = [self.observe, self.land, self.land, self.begin, self.read, self.end, self.end]
        for _ in range(n_steps):
            self.chance.choice(steps)()

    def settle(self) -> None:
        """All comes back, and all exchanges end; then one more looks."""
        while self.flying:
            self.land()
        for _ in range(3):
            self.begin()
            for step in (self.read, self.end):
                for _ in range(200):
                    step()


def records_in(state: bytes | None) -> set[bytes]:
    held = state or b""
    return {held[at : at + RECORD.size] for at in range(0, len(held), RECORD.size)}


def test_a_score_counts_what_was_observed_before_it_in_every_interleaving(seed: int) -> None:
    for number in range(40):
        world = Interleaving(seed + number)
        world.run(400)
        world.settle()
        assert len(world.pending) == 0
        assert world.under_way == []
        # Nothing is kept for exchanges that have ended.
        assert not world.pending.concerns(TOKENS)
        assert not world.pending.is_any
        assert world.pending.counts["seen"] == len(world.observed)


def test_without_tickets_the_interleavings_find_a_lost_event(seed: int) -> None:
    """The canary: forgetting a record at its first sighting is what this guards against."""

    def some() -> None:
        for number in range(40):
            Interleaving(seed + number, lambda: NO_TICKET).run(400)

    with pytest.raises(AssertionError):
        some()


def test_what_is_kept_for_an_exchange_that_does_not_end_is_bounded() -> None:
    pending = PendingEvents(8, 60.0, VirtualClock(MONDAY_MS), lambda: 0)
    state = b""
    for number in range(100):
        record = RECORD.pack(number + 1, number)
        pending.add({TOKENS[0]: record})
        state += record
        [found], identities = pending.united(TOKENS[:1], [state], pending.ticket())
        assert (found, identities) == (state, ())
        assert len(pending._leaving) <= 8
    assert pending.counts["seen"] == 100


@pytest.fixture
def world(redis_server: RedisServer, namespace: str) -> Iterator[SharedWorld]:
    scaled = shipped("handbook")
    model = law_model("walked", scaled, 1)
    world = SharedWorld(redis_server.url, namespace, scaled, model, writer=HeldWriter())
    world.clock.move_to(AT_MS)
    world.report(AT_MS, MONDAY_MS - 400 * DAY_MS)
    yield world
    world.close()


def payment(number: int) -> Transaction:
    entities = {"card": "c-1", "merchant": "m-1", "terminal": "t-1"}
    return Transaction(f"p-{number}", AT_MS - 1_000 + number, 100 + number, "EUR", entities)


@pytest.mark.parametrize("how", ["alone", "list", "vector"])
def test_states_that_were_read_before_another_thread_saw_the_event(
    world: SharedWorld, how: str
) -> None:
    """One exchange has read; then the event lands, and another score sees it; then it answers."""
    scorer, own, asked = world.scorer, payment(1), payment(100)
    scorer.observe(own)
    world.observe(own, only="embedded")
    exchanges = scorer._exchanges
    fetch, fetch_all = exchanges.fetch, exchanges.fetch_all
    others: list[Any] = []

    def meanwhile() -> None:
        if others:
            return
        others.append(None)
        world.observe(own, only="redis")
        other = threading.Thread(target=lambda: others.append(scorer.score(asked, as_of=AT_MS)))
        other.start()
        other.join(20)
        # It has seen the event, which is pending no more.
        assert others[1].pending == 0
        assert scorer.stats()["store"]["pending"] == 0

    def fetched(desk: Desk, row: bytes, limit_s: float) -> Fetched:
        found = fetch(desk, row, limit_s)
        meanwhile()
        return found

    def all_fetched(desk: Desk, rows: Any, limit_s: float) -> list[Fetched]:
        found = fetch_all(desk, rows, limit_s)
        meanwhile()
        return found

    # Each looks at Redis once before the other score, and answers after it.
    scorer.score(payment(50), as_of=AT_MS)
    exchanges.fetch, exchanges.fetch_all = fetched, all_fetched  # type: ignore[method-assign]  # the test's own order of steps
    if how == "vector":
        row = world.embedded.row(asked)
        expected_vector = world.embedded.store.features(row, AT_MS)
        assert scorer._vector(row, AT_MS).tolist() == expected_vector.tolist()
        assert len(others) == 2
        return
    expected = world.embedded.scorer.score(asked, as_of=AT_MS)
    if how == "list":
        [found] = scorer.score_many([asked], as_of=AT_MS)
    else:
        found = scorer.score(asked, as_of=AT_MS)
    assert len(others) == 2
    assert found.state_versions == expected.state_versions
    assert found.score == expected.score
    assert found.pending == 1
    assert scorer.score(asked, as_of=AT_MS).pending == 0
    assert not scorer._pending.concerns([bytes(16)])
    assert not scorer._pending.is_any
