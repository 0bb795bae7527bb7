"""A scorer under another secret is told so, whenever and under whatever states were begun."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pandas as pd
import pytest

from freshscore.config.errors import WrongSecret
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.transaction import Transaction
from freshscore.invalidation.deployment import check_key, claim_key
from freshscore.invalidation.identifier_keys import IdentifierKeys
from freshscore.scoring.shared_scorer import SharedScorer
from tests.laws.law_models import law_model
from tests.laws.law_specifications import Scaled, shipped
from tests.laws.worlds import DAY_MS, MONDAY_MS
from tests.scoring.shared_worlds import EPOCH, SharedWorld
from tests.servers.redis_servers import RedisCluster, RedisServer

AT_MS = MONDAY_MS + 30 * DAY_MS
OTHER = "0123456789abcdef"
OF_ANOTHER = IdentifierKeys(OTHER, OTHER, None, None, kept_ms=DAY_MS, lease_ms=5_000, skew_ms=0)


def payment(number: int) -> Transaction:
    entities = {"card": f"c-{number}", "merchant": "m-1", "terminal": "t-1"}
    return Transaction(f"p-{number}", AT_MS, 100 + number, "EUR", entities)


@pytest.fixture
def scaled() -> Scaled:
    return shipped("handbook")


@pytest.fixture
def world(redis_server: RedisServer, namespace: str, scaled: Scaled) -> Iterator[SharedWorld]:
    world = SharedWorld(redis_server.url, namespace, scaled, law_model("walked", scaled, 1))
    world.clock.move_to(AT_MS)
    yield world
    world.close()


def begin(world: SharedWorld, key_id: str, epoch: bytes) -> None:
    """Give every node an epoch under an identifier key, as the last note of a rebuilding does."""
    for tag in world.nodes.tags:
        world.client.hset(world.names.markers(tag), "key_id", key_id)
    world.report(AT_MS, 1, epoch)


def lose(world: SharedWorld) -> None:
    for tag in world.nodes.tags:
        world.client.delete(world.names.progress(tag), world.names.markers(tag))


def test_states_that_are_begun_after_a_scorer_was_opened_are_checked(world: SharedWorld) -> None:
    lose(world)
    assert world.scorer.score(payment(1), as_of=AT_MS).degraded == ("state lost",)
    begin(world, OTHER, EPOCH)
    for _ in range(2):
        with pytest.raises(WrongSecret, match=f"key {OTHER}; the secret here has key"):
            world.scorer.score(payment(1), as_of=AT_MS)
    with pytest.raises(WrongSecret):
        world.scorer.score_many([payment(1)], as_of=AT_MS)
    columns = {"card": "c", "merchant": "m", "terminal": "t", "currency": "EUR"}
    frame = pd.DataFrame(
        [{"transaction_id": "p", "time": AT_MS, "amount_minor": 1, **columns}],
    )
    with pytest.raises(WrongSecret):
        world.scorer.score_many(frame, as_of=AT_MS)
    # Whoever begins anew under this secret is read again.
    begin(world, world.keys.key_id, b"a second")
    assert world.scorer.score(payment(1), as_of=AT_MS).degraded == ()
    begin(world, OTHER, b"a third!")
    with pytest.raises(WrongSecret):
        world.scorer.score(payment(1), as_of=AT_MS)


def test_states_of_another_specification_tell_the_secret_too(world: SharedWorld) -> None:
    """Under this one no node has an epoch, and never will."""
    lose(world)
    assert world.scorer.score(payment(1), as_of=AT_MS).degraded == ("state lost",)
    other = RedisKeys(world.settings.redis.namespace, (1, 2, 3))
    claim_key(world.nodes, other, OF_ANOTHER, AT_MS)
    # Asked again after a heartbeat, not by every score.
    assert world.scorer.score(payment(2), as_of=AT_MS).degraded == ("state lost",)
    world.clock.move_to(AT_MS + round(1_000 * world.settings.redis.heartbeat_s) + 1)
    with pytest.raises(WrongSecret, match=OTHER):
        world.scorer.score(payment(3), as_of=AT_MS)
    own = IdentifierKeys.of(world.settings, world.program, world.keys)
    with pytest.raises(WrongSecret, match=OTHER):
        check_key(world.nodes, world.names, own, AT_MS)
    with pytest.raises(WrongSecret, match=OTHER):
        claim_key(world.nodes, world.names, own, AT_MS)
    claim_key(world.nodes, other, OF_ANOTHER, AT_MS)


def test_what_was_checked_costs_no_exchange(
    world: SharedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(world, world.keys.key_id, EPOCH)
    seats = world.scorer._seats
    seat = seats.take(1.0)
    seats.give_back(seat)
    world.scorer.score(payment(1), as_of=AT_MS)
    assert seat.desk.lines is not None
    asked: list[int] = []
    exchange = seat.desk.lines.exchange

    def counted(requests: object, n_replies: list[int], *others: object) -> object:
        asked.append(sum(n_replies))
        return exchange(requests, n_replies, *others)  # type: ignore[arg-type]  # handed through

    monkeypatch.setattr(type(seat.desk.lines), "exchange", lambda _, *given: counted(*given))
    n_states = len(world.program.entities)
    for number in range(5):
        # Progress goes on, and the epoch stays.
        world.report(AT_MS + number, 1)
        world.scorer.score(payment(number), as_of=AT_MS)
    assert asked == [1 + n_states] * 5
    world.report(AT_MS, 1, b"a second")
    world.scorer.score(payment(1), as_of=AT_MS)
    # The key of the node, and of the deployment.
    assert asked[5:] == [1 + n_states, 2]


def test_each_node_of_a_cluster_is_checked(
    redis_cluster: RedisCluster, namespace: str, scaled: Scaled
) -> None:
    model = law_model("walked", scaled, 1)
    world = SharedWorld(redis_cluster.url, namespace, scaled, model, cluster=True)
    scorer: SharedScorer = world.scorer
    begin(world, world.keys.key_id, EPOCH)
    for number in range(20):
        assert scorer.score(payment(number), as_of=AT_MS).degraded == ()
    tag = world.nodes.tags[-1]
    world.client.hset(world.names.markers(tag), "key_id", OTHER)
    summary = b"a second" + struct.pack("<3q", AT_MS, 1, 0)
    world.client.set(world.names.progress(tag), summary)
    with pytest.raises(WrongSecret):
        scorer.score_many([payment(number) for number in range(20)], as_of=AT_MS)
    world.close()
