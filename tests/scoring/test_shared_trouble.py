"""The shared scorer in trouble: what is missing is said, what is late is waited for no longer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from freshscore.config.clock import SystemClock
from freshscore.config.errors import AsOfTooOld, Closed, DeadlineExceeded, Unavailable
from freshscore.features.transaction import Transaction
from freshscore.scoring.scorer import Scorer
from tests.laws.law_models import law_model
from tests.laws.law_specifications import Scaled, mixed, shipped
from tests.laws.worlds import DAY_MS, MONDAY_MS, Limits
from tests.scoring.shared_worlds import SharedWorld
from tests.servers.fixtures import OwnRedis
from tests.servers.redis_servers import RedisServer

AT_MS = MONDAY_MS + 30 * DAY_MS


def payment(number: int, time_ms: int = AT_MS, card: str = "c-1") -> Transaction:
    entities = {"card": card, "merchant": "m-1", "terminal": "t-1"}
    return Transaction(f"p-{number}", time_ms, 100 + number, "EUR", entities)


@pytest.fixture
def scaled() -> Scaled:
    return shipped("handbook")


@pytest.fixture
def world(redis_server: RedisServer, namespace: str, scaled: Scaled) -> Iterator[SharedWorld]:
    world = SharedWorld(redis_server.url, namespace, scaled, law_model("walked", scaled, 1))
    world.report(AT_MS, MONDAY_MS - 400 * DAY_MS)
    for number in range(20):
        world.observe(payment(number, AT_MS - 60_000 * (20 - number)))
    yield world
    world.close()


def test_a_node_without_epoch_makes_answers_degraded_until_it_has_one(world: SharedWorld) -> None:
    asked = payment(100)
    whole = world.scorer.score(asked, as_of=AT_MS)
    assert whole.degraded == ()
    assert whole.watermark == AT_MS
    assert whole.lag_ms == 0
    key = world.names.progress("0")
    summary: Any = world.client.get(key)
    world.client.delete(key)
    lost = world.scorer.score(asked, as_of=AT_MS)
    assert lost.degraded == ("state lost",)
    assert "rebuilt" in lost.reason
    assert lost.watermark == 0
    # What was answered meanwhile is no memo of a time when all is there.
    other = payment(101)
    assert world.scorer.score(other, as_of=AT_MS).degraded == ("state lost",)
    world.client.set(key, summary)
    for one in (asked, other):
        again = world.scorer.score(one, as_of=AT_MS)
        assert again.degraded == ()
    assert world.scorer.score(asked, as_of=AT_MS).score == whole.score
    assert world.scorer.score(other, as_of=AT_MS).source == "memo"


@pytest.mark.parametrize("place", [0, 9, 20, 33, 100])
def test_a_damaged_state_is_left_out_and_the_answer_says_so(world: SharedWorld, place: int) -> None:
    asked = payment(100)
    row = world.embedded.row(asked)
    token = world.records.tokens(row)[0]
    assert token is not None
    key = world.state_key(0, token)
    state: Any = world.client.get(key)
    world.client.setrange(key, place, bytes([state[place] ^ 0x20]))
    found = world.scorer.score(asked, as_of=AT_MS)
    assert found.degraded == ("state damaged",)
    assert set(found.state_versions[world.program.entities[0].name]) == {"0"}
    assert world.scorer.stats()["store"]["damaged"] == 1
    world.client.set(key, state[:-3])
    assert world.scorer.score(asked, as_of=AT_MS).degraded == ("state damaged",)
    world.client.set(key, b"")
    assert world.scorer.score(asked, as_of=AT_MS).degraded == ("state damaged",)
    world.client.set(key, state)
    mended = world.scorer.score(asked, as_of=AT_MS)
    assert mended.degraded == ()
    assert mended.score == world.embedded.scorer.score(asked, as_of=AT_MS).score


def test_a_value_of_another_kind_is_an_error_and_never_a_new_entity(world: SharedWorld) -> None:
    asked = payment(100)
    token = world.records.tokens(world.embedded.row(asked))[0]
    assert token is not None
    key = world.state_key(0, token)
    world.client.delete(key)
    world.client.rpush(key, b"no state")
    with pytest.raises(Unavailable, match="WRONGTYPE"):
        world.scorer.score(asked, as_of=AT_MS)
    world.client.delete(key)
    assert world.scorer.score(asked, as_of=AT_MS).degraded == ()


def test_an_entity_beyond_its_limit_is_degraded(
    redis_server: RedisServer, namespace: str, scaled: Scaled
) -> None:
    limits = Limits(horizon_ms=scaled.horizon_ms, max_events_per_entity=16)
    world = SharedWorld(redis_server.url, namespace, scaled, law_model("walked", scaled, 1), limits)
    world.report(AT_MS, MONDAY_MS - 400 * DAY_MS)
    for number in range(40):
        world.observe(payment(number, AT_MS - 60_000 * (40 - number)), only="redis")
    found = world.scorer.score(payment(100), as_of=AT_MS)
    assert found.degraded == ("too many events",)
    # The answer is right for what it looks back at: the newest sixteen.
    assert found.complete_since == AT_MS - 60_000 * 17 + 1
    world.close()


def test_a_large_state_makes_its_own_room(world: SharedWorld) -> None:
    """Beyond the first room for records, for uniting, and for looking members up."""
    for number in range(200, 2_200):
        world.observe(payment(number, AT_MS - 1_000 * number, "c-9"))
    asked = payment(5_000, AT_MS, "c-9")
    expected = world.embedded.scorer.score(asked, as_of=AT_MS)
    found = world.scorer.score(asked, as_of=AT_MS)
    assert (found.score, found.state_versions) == (expected.score, expected.state_versions)


def test_a_payment_older_than_what_is_folded_is_refused(
    redis_server: RedisServer, namespace: str, seed: int
) -> None:
    import random

    scaled = mixed(np.random.default_rng(seed))
    world = SharedWorld(redis_server.url, namespace, scaled, law_model("walked", scaled, seed))
    asked = world.traffic.new().first
    row = world.observe(asked)
    grid = [layout.is_grid for layout in world.records.layouts].index(True)
    if world.records.tokens(row)[grid] is None:
        pytest.fail("the traffic always has a merchant")
    world.compact(asked.time + 60_000, random.Random(1), share=1.0)
    with pytest.raises(AsOfTooOld, match="folded"):
        world.scorer.score(asked, as_of=asked.time + 120_000)
    [result] = world.scorer.score_many([asked], as_of=asked.time + 120_000)
    assert result.score is None
    assert "folded" in (result.error or "")
    world.close()


def test_a_deadline_ends_the_wait_for_redis(own_redis: OwnRedis, scaled: Scaled) -> None:
    server = own_redis()
    model = law_model("walked", scaled, 1)
    world = SharedWorld(server.url, "d", scaled, model, clock=SystemClock())
    world.report(AT_MS, 1)
    asked = payment(1)
    assert world.scorer.score(asked, as_of=AT_MS, deadline_ms=10_000).score is not None
    with server.client() as client:
        client.execute_command("CLIENT", "PAUSE", "400", "ALL")
    with pytest.raises(DeadlineExceeded, match="deadline_ms"):
        world.scorer.score(asked, as_of=AT_MS, deadline_ms=30)
    assert world.scorer.stats()["store"]["unavailable"] == 1
    # The line that was left half read is not read on.
    assert world.scorer.score(payment(2), as_of=AT_MS).transaction_id == "p-2"
    world.close()


def test_without_redis_it_is_unavailable_and_then_goes_on(
    own_redis: OwnRedis, scaled: Scaled
) -> None:
    # Otherwise a write may wait behind a sync, and be lost with the process.
    server = own_redis(appendonly=True, settings=["appendfsync always"])
    world = SharedWorld(server.url, "u", scaled, law_model("walked", scaled, 1))
    world.report(AT_MS, 1)
    world.observe(payment(1, AT_MS - 1_000))
    expected = world.scorer.score(payment(2), as_of=AT_MS)
    server.kill()
    with pytest.raises(Unavailable):
        world.scorer.score(payment(2), as_of=AT_MS)
    server.start()
    again = world.scorer.score(payment(2), as_of=AT_MS)
    assert (again.score, again.state_versions) == (expected.score, expected.state_versions)
    world.close()


def test_no_more_scores_at_once_than_connections(world: SharedWorld) -> None:
    """The limit of redis.max_connections: who waits too long is told."""
    seats = world.scorer._seats
    held = [seats.take(0.0) for _ in range(world.settings.redis.max_connections)]
    with pytest.raises(Unavailable, match="max_connections"):
        world.scorer.score(payment(1), as_of=AT_MS, deadline_ms=1_000_000)
    answered: list[Any] = []
    waiting = threading.Thread(
        target=lambda: answered.append(world.scorer.score(payment(1), as_of=AT_MS))
    )
    waiting.start()
    for seat in held:
        seats.give_back(seat)
    waiting.join(20)
    assert answered[0].score is not None


def test_after_closing_nothing_is_answered(world: SharedWorld) -> None:
    world.scorer.close()
    world.scorer.close()
    with pytest.raises(Closed):
        world.scorer.score(payment(1), as_of=AT_MS)


@dataclass
class GivenLease:
    """A lease that ends when the test says so."""

    until_s: float = float("inf")
    seen: int = 0

    def close(self) -> None:
        """Nothing is held."""


def test_without_a_lease_everything_is_computed(
    redis_server: RedisServer, namespace: str, scaled: Scaled
) -> None:
    lease = GivenLease()
    model = law_model("walked", scaled, 1)
    world = SharedWorld(redis_server.url, namespace, scaled, model, lease=lease)
    world.report(AT_MS, 1)
    asked = payment(1)
    sources = [world.scorer.score(asked, as_of=AT_MS).source for _ in range(2)]
    assert sources == ["computed", "memo"]
    assert world.scorer.stats()["cache"]["may_serve"] is True
    lease.until_s = float("-inf")
    found = [world.scorer.score(asked, as_of=AT_MS) for _ in range(2)]
    assert [one.source for one in found] == ["computed", "computed"]
    assert found[0].cause == "not to be served"
    assert world.scorer.score(payment(2), as_of=AT_MS).source == "computed"
    assert world.scorer.stats()["cache"]["may_serve"] is False
    lease.until_s = float("inf")
    assert world.scorer.score(asked, as_of=AT_MS).source == "memo"
    world.close()


def test_a_shared_scorer_without_a_secret_that_others_have_is_refused(
    redis_server: RedisServer,
) -> None:
    from freshscore.config.errors import SettingsError

    with pytest.raises(SettingsError, match="FRESHSCORE_SECRET"):
        Scorer.open(
            "shared",
            settings={"redis.url": redis_server.url, "store.specification": "handbook"},
            model=lambda rows: rows[:, 0] * 0.0,
        )
