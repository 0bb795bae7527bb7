"""Grids that are folded early answer as a store that folds nothing: no payment counts twice.

Each protection has its canary: without it, an answer differs.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from freshscore.config.errors import AsOfTooOld
from freshscore.config.secret import Secret
from freshscore.features import codec
from freshscore.features.codec import decode
from freshscore.features.decoded_state import DecodedState
from freshscore.features.packing import Keys, Packer
from freshscore.features.past_events import Past
from freshscore.features.specification import FeatureSpecification
from freshscore.features.transaction import Transaction
from freshscore.scoring import request_states
from freshscore.scoring.exchanges import Exchanges
from tests.laws.law_models import law_model
from tests.laws.law_specifications import Scaled
from tests.laws.worlds import MONDAY_MS, SECRET, Limits
from tests.scoring.shared_worlds import SharedWorld
from tests.servers.redis_servers import RedisServer

SPECIFICATION = """
name = "early"
currency = "EUR"
facts = ["fraud"]
features = [{ name = "amount", function = "amount" }]

[[entities]]
name = "card"

[[entities]]
name = "merchant"
mode = "grid"
resolution = 0.1

[[entities]]
name = "terminal"
mode = "grid"
resolution = 0.25

[[windows]]
entity = "card"
lengths = ["1m"]
aggregates = [{ function = "count" }]

[[windows]]
entity = "merchant"
lengths = ["10s", "1m"]
aggregates = [{ function = "count" }, { function = "std" }]

[[windows]]
entity = "merchant"
lengths = ["1m"]
delay = "20s"
current = false
aggregates = [{ function = "share", of = "fraud" }]

[[windows]]
entity = "terminal"
lengths = ["8s", "2m"]
aggregates = [{ function = "sum" }]
"""
HORIZON_MS = 60_000
NOON_MS = MONDAY_MS + 43_200_000
SINCE_MS = NOON_MS + 70_001


def world_of(url: str, namespace: str, seed: int, secret: Secret) -> SharedWorld:
    scaled = Scaled(FeatureSpecification.from_toml(SPECIFICATION), 1_000, 1_000, HORIZON_MS)
    limits = Limits(horizon_ms=HORIZON_MS, cache_bytes=1 << 16)
    model = law_model("walked", scaled, seed)
    return SharedWorld(url, namespace, scaled, model, limits, secret=secret)


@pytest.fixture
def world(redis_server: RedisServer, namespace: str, seed: int) -> Iterator[SharedWorld]:
    made = world_of(redis_server.url, namespace, seed, SECRET)
    yield made
    made.close()


@pytest.fixture
def rotating(redis_server: RedisServer, namespace: str, seed: int) -> Iterator[SharedWorld]:
    """Another secret begins to hold in the first half of a story."""
    made = world_of(redis_server.url, namespace, seed, SECRET.successor(SINCE_MS))
    yield made
    made.close()


class Story:
    """Payments of two merchants, some late, some repeated, some scored again; facts of them."""

    def __init__(self, world: SharedWorld, seed: int) -> None:
        self.world = world
        self.model = world.model
        self.chance = random.Random(seed)
        self.now_ms = self.early_ms = NOON_MS
        self.told: list[Transaction] = []
        self.n_late = self.n_again = 0

    def run(self, steps: int) -> None:
        """Random steps, and an answer after each that must be the embedded one's."""
        for number in range(steps):
            self.now_ms += self.chance.choice((0, 10, 300, 900, 2_000))
            draw = self.chance.random()
            if draw < 0.55 or not self.told:
                self.tell(self.payment(number))
            elif draw < 0.65:
                self.tell(self.chance.choice(self.told))
            elif draw < 0.75:
                of = self.chance.choice(self.told)
                known_ms = of.time + self.chance.randrange(30_000)
                self.world.label(of, 0, self.chance.random() < 0.7, known_ms)
            elif draw < 0.9:
                self.fold()
            self.ask(number)

    def payment(self, number: int) -> Transaction:
        """A new one, of now or late."""
        late_ms = self.chance.choice((0, 0, 0, 500, 5_000, 30_000))
        entities = {
            "card": f"c{self.chance.randrange(3)}",
            "merchant": f"m{self.chance.randrange(2)}",
            "terminal": f"m{self.chance.randrange(2)}",
        }
        time_ms = max(self.fold_ms, self.now_ms - late_ms)
        return Transaction(f"t{number}", time_ms, self.chance.randrange(10**6), "EUR", entities)

    @property
    def fold_ms(self) -> int:
        """F: nothing new is older."""
        return self.now_ms - HORIZON_MS

    def tell(self, payment: Transaction) -> None:
        """Count a payment; a late one from the next compaction on, which is now."""
        self.told.append(payment)
        self.world.observe(payment)
        if payment.time < self.early_ms:
            self.n_late += 1
            self.world.compact(self.fold_ms, self.chance, share=1.0)

    def fold(self) -> None:
        """Fold some states early, up to about now."""
        self.early_ms = max(self.early_ms, self.now_ms - self.chance.choice((0, 100, 3_000)))
        self.world.compact(self.fold_ms, self.chance, share=0.7, early_below_ms=self.early_ms)

    def ask(self, number: int) -> None:
        """The answer to a new payment, or to one that was told, in a tile or not."""
        asked = self.payment(10_000 + number)
        if self.told and self.chance.random() < 0.6:
            asked = self.chance.choice(self.told[-30:])
            self.n_again += 1
        if asked.time < self.fold_ms:
            return
        store = self.world.embedded.store
        self.world.report(store.newest_ms, store.complete_since_ms or 0)
        as_of = max(asked.time, self.now_ms, store.newest_ms)
        expected = self.world.embedded.scorer.score(asked, as_of=as_of)
        found = self.world.scorer.score(asked, as_of=as_of)
        for name in ("decision", "as_of", "state_versions", "degraded", "complete_since"):
            assert getattr(found, name) == getattr(expected, name), name
        assert struct.pack("<d", found.score or 0.0) == struct.pack("<d", expected.score or 0.0)
        row = self.world.embedded.row(asked)
        vector = self.world.scorer._vector(self.world.packed(asked), as_of)
        assert vector.tobytes() == store.features(row, as_of).tobytes()
        # Never too late, however many steps of time alone were looked at.
        last = store.features(row, (found.valid_until or as_of + 1) - 1)
        assert self.model.predict(last.reshape(1, -1))[0] == found.score


def test_no_answer_changes_however_early_states_are_folded(world: SharedWorld, seed: int) -> None:
    story = Story(world, seed)
    story.run(400)
    assert story.n_late > 10
    assert story.n_again > 50
    stats = world.scorer.stats()
    assert stats["store"]["mended"] > 10
    assert stats["answers"]["memo"] > 0


def test_no_answer_changes_while_the_secret_is_rotated_too(
    rotating: SharedWorld, seed: int
) -> None:
    """Both states of a grid are folded early, and what is in either counts once."""
    story = Story(rotating, seed)
    story.run(400)
    assert story.n_late > 10
    assert story.n_again > 50
    assert rotating.scorer.stats()["store"]["mended"] > 10
    n_summarised = [
        decode(rotating.state_of(entity, token), layout).summarised_below_ms > 0
        for entity, token in sorted(rotating.written)
        if (layout := rotating.records.layouts[entity]).is_grid
    ]
    assert sum(n_summarised) > 2


def test_canary_a_payment_in_the_sums_of_one_of_two_states_counts_twice(
    rotating: SharedWorld, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Exchanges, "own_past", lambda *_: [])
    with pytest.raises(AssertionError):
        Story(rotating, seed).run(400)


def test_what_is_in_the_wrong_state_of_a_grid_is_said(rotating: SharedWorld) -> None:
    """A process that did not know of the rotation: the same event may be in sums of the other."""
    entities = {"card": "c", "merchant": "m", "terminal": "m"}
    payment = Transaction("t1", SINCE_MS + 1_000, 100, "EUR", entities)
    former = Packer(rotating.program, Keys(rotating.program, SECRET))
    rotating.observe(payment)
    late = former.row(Transaction("t1", payment.time, 100, "EUR", entities))
    for entity, token in enumerate(rotating.records.tokens(late)):
        assert token is not None
        rotating.append(entity, token, rotating.records.event(late, entity))
    asked = Transaction("t2", SINCE_MS + 2_000, 100, "EUR", entities)
    rotating.report(asked.time, 1)
    expected = rotating.embedded.scorer.score(asked, as_of=asked.time)
    found = rotating.scorer.score(asked, as_of=asked.time)
    assert (found.score, found.degraded) == (expected.score, ())
    rotating.compact(
        payment.time - 500, random.Random(1), share=1.0, early_below_ms=payment.time + 1
    )
    assert "state damaged" in rotating.scorer.score(asked, as_of=asked.time).degraded


def test_canary_repetitions_count_where_nobody_looks_for_them(
    world: SharedWorld, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = codec._past_events
    asked = codec._with_deferred

    def blind(state: DecodedState, past: Past, counted: NDArray[np.int64]) -> DecodedState:
        with monkeypatch.context() as patched:
            patched.setattr(codec, "_past_events", lambda _, layout: events({}, layout))
            return asked(state, past, counted)

    monkeypatch.setattr(codec, "_with_deferred", blind)
    with pytest.raises(AssertionError):
        Story(world, seed).run(400)


def test_canary_a_payment_counts_twice_where_its_own_copy_stays_in_the_sums(
    world: SharedWorld, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freshscore.features.request_store.RequestStore._holding", lambda *_: 0)
    with pytest.raises(AssertionError):
        Story(world, seed).run(400)


def test_an_instant_before_what_is_folded_is_refused_and_now_is_never_before_it(
    world: SharedWorld,
) -> None:
    """The scorer's clock is behind that of whoever sent the payments."""
    story = Story(world, 1)
    payment = Transaction("t1", NOON_MS, 100, "EUR", {"card": "c", "merchant": "m"})
    for number in range(5):
        world.observe(Transaction(f"x{number}", NOON_MS + number, 5, "EUR", payment.entities))
    early_ms = NOON_MS + 3
    world.compact(0, story.chance, share=1.0, early_below_ms=early_ms)
    world.report(NOON_MS, 1)
    with pytest.raises(AsOfTooOld, match=r"redis\.grid_records"):
        world.scorer.score(payment, as_of=early_ms - 1)
    assert world.scorer.score(payment, as_of=early_ms).as_of == early_ms
    assert world.clock.now_ms() < NOON_MS
    assert world.scorer.score(payment).as_of == early_ms
    assert [one.as_of for one in world.scorer.score_many([payment])] == [early_ms]


def test_a_state_that_changes_with_each_look_is_given_up(
    world: SharedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of looks is bounded."""
    monkeypatch.setattr(request_states, "_MOST_LOOKS", 0)
    story = Story(world, 1)
    payment = Transaction("t1", NOON_MS, 100, "EUR", {"card": "c", "merchant": "m"})
    world.observe(payment)
    world.compact(0, story.chance, share=1.0, early_below_ms=NOON_MS + 1)
    world.report(NOON_MS, 1)
    with pytest.raises(ConnectionError, match="faster than"):
        world.scorer.score(payment, as_of=NOON_MS + 1)
