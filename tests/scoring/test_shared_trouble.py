"""The shared scorer in trouble: what is missing is said, what is late is waited for no longer."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from freshscore.config.clock import SystemClock
from freshscore.config.errors import (
    AsOfTooOld,
    BadTransaction,
    Closed,
    DeadlineExceeded,
    Unavailable,
)
from freshscore.config.settings import RedisSettings
from freshscore.features.transaction import Transaction
from freshscore.invalidation.control import Control
from freshscore.scoring.leases import LeaseKeeper
from freshscore.scoring.scorer import Scorer
from freshscore.scoring.seats import most_seats
from tests.faults.deployment import wait_until
from tests.laws.law_models import law_model
from tests.laws.law_specifications import Scaled, mixed, shipped
from tests.laws.worlds import DAY_MS, MONDAY_MS, Limits
from tests.scoring.shared_worlds import GivenLease, SharedWorld
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
    assert lost.lag_ms is None
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


def test_what_compaction_cut_at_the_limit_is_degraded_and_what_time_took_is_too_old(
    redis_server: RedisServer, namespace: str, scaled: Scaled
) -> None:
    world = SharedWorld(redis_server.url, namespace, scaled, law_model("walked", scaled, 1))
    since_ms = MONDAY_MS - 400 * DAY_MS
    world.report(AT_MS, since_ms)
    for number in range(40):
        world.observe(payment(number, AT_MS - 60_000 * (40 - number)), only="redis")
    held_ms = scaled.specification.held_ms
    by_time_ms = AT_MS - scaled.horizon_ms - held_ms
    chance = random.Random(1)
    world.compact(0, chance, share=1.0, forget_below_ms=by_time_ms)
    assert world.scorer.score(payment(100), as_of=AT_MS).degraded == ()
    past_ms = AT_MS - scaled.horizon_ms - 1
    with pytest.raises(AsOfTooOld):
        world.scorer.score(payment(101, past_ms), as_of=past_ms)
    cut_ms = AT_MS - 60_000 * 16
    assert cut_ms > by_time_ms
    world.compact(0, chance, share=1.0, forget_below_ms=cut_ms)
    found = world.scorer.score(payment(102), as_of=AT_MS)
    assert found.degraded == ("too many events",)
    assert found.complete_since == cut_ms
    # Time passes over what was cut, and what looks back no further is whole again.
    later_ms = cut_ms + scaled.horizon_ms + held_ms
    world.report(later_ms, since_ms)
    assert world.scorer.score(payment(103, later_ms), as_of=later_ms).degraded == ()
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
        world.scorer.score(payment(3), as_of=AT_MS, deadline_ms=30)
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
        world.scorer.score(payment(3), as_of=AT_MS)
    server.start()
    again = world.scorer.score(payment(2), as_of=AT_MS)
    assert (again.score, again.state_versions) == (expected.score, expected.state_versions)
    world.close()


def test_no_more_scores_at_once_than_connections(world: SharedWorld) -> None:
    """The limit of redis.max_connections: who waits too long is told."""
    seats = world.scorer._seats
    held = [seats.take(0.0) for _ in range(most_seats(world.settings.redis.max_connections))]
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


def test_deadlines_are_kept_while_redis_does_not_answer(
    own_redis: OwnRedis, scaled: Scaled
) -> None:
    """Also by the scores that come after the first, which must connect anew."""
    server = own_redis()
    model = law_model("walked", scaled, 1)
    world = SharedWorld(server.url, "s", scaled, model, clock=SystemClock())
    world.report(AT_MS, 1)
    assert world.scorer.score(payment(1), as_of=AT_MS).score is not None
    clock, elapsed_ms = SystemClock(), []
    os.kill(server.pid, signal.SIGSTOP)
    try:
        for number in range(10):
            started_s = clock.monotonic_s()
            # After three of them its breaker is open, and most are told at once.
            with pytest.raises((DeadlineExceeded, Unavailable)):
                world.scorer.score(payment(2 + number), as_of=AT_MS, deadline_ms=20)
            elapsed_ms.append(1_000 * (clock.monotonic_s() - started_s))
    finally:
        os.kill(server.pid, signal.SIGCONT)
    # The median, for the machine of a test does other things too; it was 1000 ms each.
    assert sorted(elapsed_ms)[5] < 60, elapsed_ms
    assert max(elapsed_ms) < 500, elapsed_ms
    wait_until(lambda: is_whole(world, payment(50)), "Redis is asked again", 5.0)
    world.close()


def is_whole(world: SharedWorld, asked: Transaction) -> bool:
    """Whether a payment is answered, and not degraded."""
    try:
        return not world.scorer.score(asked, as_of=AT_MS).degraded
    except Unavailable:
        return False


@pytest.mark.parametrize(
    ("deadline_ms", "said"),
    [
        (0, "is 0"),
        (-5.0, "is -5"),
        (float("nan"), "is nan"),
        (float("inf"), "is inf"),
        ("20", "not str"),
        (True, "not bool"),
    ],
)
def test_a_deadline_that_is_none_is_refused(
    world: SharedWorld, deadline_ms: Any, said: str
) -> None:
    for scorer in (world.scorer, world.embedded.scorer):
        with pytest.raises(BadTransaction, match=f"deadline_ms .*{said}"):
            scorer.score(payment(1), as_of=AT_MS, deadline_ms=deadline_ms)


@pytest.mark.parametrize("max_connections", [2, 3, 4])
def test_leases_are_renewed_however_many_scores_run_at_once(
    redis_server: RedisServer, namespace: str, scaled: Scaled, max_connections: int
) -> None:
    model = law_model("walked", scaled, 1)
    settings = {"max_connections": max_connections, "timeout_ms": 200}
    world = SharedWorld(
        redis_server.url, namespace, scaled, model, redis_settings=settings, clock=SystemClock()
    )
    world.report(AT_MS, 1)
    scorer = world.scorer
    most = most_seats(max_connections)
    assert 1 <= most < max_connections

    def score(first: int) -> None:
        for number in range(first, first + 20):
            # Who waits too long for a seat is told so, which is not the matter here.
            with contextlib.suppress(Unavailable):
                scorer.score(payment(number), as_of=AT_MS)

    threads = [threading.Thread(target=score, args=(100 * n,)) for n in range(max_connections + 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    # However that went: as many seats as there can be, each with its connections.
    seats = [scorer._seats.take(1.0) for _ in range(most)]
    for seat in seats:
        scorer._exchanges.fetch(seat.desk, world.embedded.row(payment(1)), 1.0)
        assert seat.desk.lines is not None
    control = Control(scorer._nodes, namespace)
    keeper = LeaseKeeper(control, "one", 5.0, 0.01, scorer.carry_out)
    keeper.start()
    first_s = keeper.until_s
    assert first_s > 0.0
    threading.Event().wait(0.3)
    assert keeper.n_missed == 0
    assert keeper.until_s > first_s
    keeper.close()
    for seat in seats:
        scorer._seats.give_back(seat)
    world.close()


def test_a_connection_is_left_whatever_the_settings_allow() -> None:
    assert [most_seats(n) for n in (2, 3, 4, 64)] == [1, 2, 2, 62]
    with pytest.raises(ValidationError, match="max_connections"):
        RedisSettings(max_connections=1)
