"""Following a real stream: what is near is what Redis holds, through every trouble on the way."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest

from freshscore.config.clock import Clock, SystemClock
from freshscore.config.errors import Unavailable
from freshscore.config.settings import RedisSettings
from freshscore.features.near_states import NearStates
from freshscore.features.packing import Keys, Packer
from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_door import Nodes, command
from freshscore.features.redis_keys import CONTROL, RedisKeys, tag_of
from freshscore.features.redis_progress import Marker, topic_digest
from freshscore.features.redis_scripts import BEGIN, PROGRESS
from freshscore.features.row import TOKENS
from freshscore.features.state_layout import StateLayout, state_fingerprints, state_layout
from freshscore.features.transaction import Transaction
from freshscore.invalidation.append_plan import AppendLimits
from freshscore.invalidation.batches import Batcher, BatchLimits
from freshscore.invalidation.feed import Acceptance
from freshscore.invalidation.following import Follower
from freshscore.invalidation.node_markers import marker_field
from freshscore.invalidation.publishing import Publisher, Range
from freshscore.invalidation.step import Step
from freshscore.invalidation.stream_messages import Covered, decode, encode
from freshscore.simulations.clock import VirtualClock
from tests.invalidation.message_forms import (
    HORIZON_MS,
    NOW_MS,
    SECRET,
    SKEW_MS,
    everything,
    messages,
)
from tests.servers.fixtures import OwnRedis
from tests.servers.redis_servers import RedisCluster, RedisServer

HEARTBEAT_S = 0.2
PROGRAM = everything()
KEYS = Keys(PROGRAM, SECRET)
LAYOUTS: tuple[StateLayout, ...] = tuple(
    state_layout(PROGRAM, KEYS, e) for e in range(len(PROGRAM.entities))
)
PACKER = Packer(PROGRAM, KEYS)
TOPICS = {"payments": "topic id of payments", "labels": "topic id of labels"}
SINCE_MS = NOW_MS - 10**9
LIMIT_S = 30.0


def payment_of(number: int, card: int) -> dict[str, Any]:
    """A payment as a message says it."""
    return {
        "transaction_id": f"t-{number}",
        "time": NOW_MS - 1_000_000 + number,
        "amount_minor": 100 + number,
        "currency": "EUR",
        "entities": {"card": f"c-{card}", "m": f"m-{card % 2}", "shop": f"s-{card % 3}"},
    }


def row_of(card: int) -> bytes:
    """The row that asks for a card's payment."""
    return PACKER.row(Transaction(**payment_of(10**6 + card, card)))


@dataclass
class World:
    """What a consumer does to Redis, step by step, and a scorer with a follower."""

    url: str
    namespace: str
    clock: Clock
    cluster: bool = False
    partitions: list[tuple[str, int]] = field(
        default_factory=lambda: [("payments", 0), ("labels", 0)]
    )

    def __post_init__(self) -> None:
        settings = RedisSettings(
            url=self.url,
            namespace=self.namespace,
            cluster=self.cluster,
            timeout_ms=500,
            max_connections=8,
        )
        self.nodes = Nodes.open(settings)
        self.names = RedisKeys(self.namespace, state_fingerprints(PROGRAM))
        self.batcher = Batcher(
            PROGRAM,
            KEYS,
            Acceptance(HORIZON_MS, SKEW_MS),
            AppendLimits(self.namespace, 1_000_000, 0, 4),
            BatchLimits(2_000, 100_000),
            self.nodes.node_of_slot,
        )
        self.publisher = self.another_publisher(b"sender 1")
        # A sender's messages go out in the order of their numbers.
        self._sending = threading.Lock()
        self.applied = dict.fromkeys(self.partitions, 0)
        self.n_payments = 0
        self.near = NearStates(LAYOUTS, 1 << 20)
        self.room = self.near.room()
        self.follower = Follower(
            self.nodes, self.names, LAYOUTS, self.near, HEARTBEAT_S, clock=self.clock
        )

    def another_publisher(self, sender: bytes) -> Publisher:
        """One more sender."""
        return Publisher(self.nodes.settings, LAYOUTS, TOPICS, sender)

    def close(self) -> None:
        """End it."""
        self.follower.close()
        self.nodes.close()

    # What consumers do

    def ask(self, *parts: bytes) -> Any:
        """The reply to one command on the invalidation stream."""
        return self.send(command(*parts))

    def send(self, made: bytes) -> Any:
        """The same, of bytes."""
        return replies_to(self.nodes, [(CONTROL.encode(), made)])[0]

    def begin_node(self) -> None:
        """Give the node its epoch, as one that has read everything."""
        given = (KEYS.key_id, str(SINCE_MS), str(len(self.partitions)), ",".join(TOPICS.values()))
        for tag in self.nodes.tags:
            asked = (f"{random.getrandbits(63):016x}", *given)
            assert self._run(BEGIN.digest, tag, [one.encode() for one in asked]) == 1
        self.mark()

    def mark(self) -> None:
        """Write the markers of all partitions."""
        given = [b"%d" % len(self.partitions), ",".join(TOPICS.values()).encode()]
        for (topic, number), offset in self.applied.items():
            given.append(marker_field(TOPICS[topic], number).encode())
            given += [b"%d" % offset, b"%d" % NOW_MS]
        for tag in self.nodes.tags:
            assert self._run(PROGRESS.digest, tag, given) == 1

    def _run(self, digest: bytes, tag: str, given: list[bytes]) -> Any:
        keys = (self.names.markers(tag), self.names.progress(tag))
        made = command(b"EVALSHA", digest, b"2", *keys, *given)
        return replies_to(self.nodes, [(tag.encode(), made)])[0]

    def forget_nodes(self) -> None:
        """Take what the nodes say of themselves, as a loss of their data does."""
        for tag in self.nodes.tags:
            for key in (self.names.markers(tag), self.names.progress(tag)):
                replies_to(self.nodes, [(tag.encode(), command(b"DEL", key))])

    def write(
        self, cards: list[int], *, publishes: bool = True, covers: bool = True
    ) -> Callable[[], None]:
        """One batch of payments of these cards; what publishes it, if that was not done."""
        values = []
        for card in cards:
            self.n_payments += 1
            values.append(json.dumps(payment_of(self.n_payments, card)).encode())
        batch = self.batcher.build(messages(values), messages([]), NOW_MS)
        assert batch.counts == {"applied": len(values)}
        with self.nodes.lines() as lines:
            lines.exchange(batch.requests, batch.n_replies)
        ranges: list[Range] = []
        with self._sending:
            if covers:
                at = self.partitions[0]
                begin = self.applied[at]
                self.applied[at] = begin + len(values)
                ranges.append(Range(at, begin, begin + len(values), NOW_MS + self.n_payments))
                self.mark()
            made = self.publisher.command(ranges, NOW_MS, batch.n_groups, bytes(batch.body))
            if publishes:
                self.send(made)

        def publish() -> None:
            self.send(made)

        return publish

    def beat(self, *, only: int | None = None, arrival_ms: int = NOW_MS) -> None:
        """A heartbeat for all partitions, or one, which have passed `arrival_ms`."""
        told = self.partitions if only is None else self.partitions[only : only + 1]
        with self._sending:
            ranges = [Range(at, self.applied[at], self.applied[at], arrival_ms) for at in told]
            self.send(self.publisher.command(ranges, NOW_MS))

    # What a scorer does

    def score(self, card: int) -> list[bytes | None]:
        """The states of a card's payment: near if they may be served and are held, or fetched."""
        row = row_of(card)
        if self.follower.may_serve():
            found = self.near.look(row, self.room, int(self.clock.monotonic_s()))
            if found is not None:
                return found
        self.near.draw(self.room)
        summaries, states = self.fetched(row)
        self.admit(row, summaries, states)
        return states

    def admit(self, row: bytes, summaries: list[bytes | None], states: list[bytes | None]) -> None:
        """Hold what an exchange brought, as far as that is right."""
        known = [one for one in summaries if one is not None]
        self.near.admit(
            row,
            states,
            self.room,
            summaries=known if len(known) == len(summaries) else (),
            complete_since_ms=SINCE_MS,
            now_s=int(self.clock.monotonic_s()),
        )

    def fetched(self, row: bytes) -> tuple[list[bytes | None], list[bytes | None]]:
        """The summaries of all nodes, and behind them the states of a row."""
        tags = self.nodes.tags
        asked = [(tag.encode(), command(b"GET", self.names.progress(tag))) for tag in tags]
        for entity, layout in enumerate(LAYOUTS):
            token = row[TOKENS + 16 * entity :][:16]
            key = self.names.state(token, layout.fingerprint)
            asked.append((tag_of(token), command(b"GET", key)))
        replies = replies_to(self.nodes, asked)
        return replies[: len(tags)], replies[len(tags) :]

    def near_states(self, card: int) -> list[bytes | None] | None:
        """What is near and may be served."""
        if not self.follower.may_serve():
            return None
        return self.near.look(row_of(card), self.room, int(self.clock.monotonic_s()))

    def in_redis(self, card: int) -> list[bytes | None]:
        """What Redis holds."""
        return self.fetched(row_of(card))[1]

    def turns(self, n: int = 1) -> None:
        """So many turns of the follower; troubles are for its thread."""
        for _ in range(n):
            self.follower.turn()

    def until_in_step(self) -> None:
        """Beats and turns until near states may be served, as they must be after a few."""
        for _ in range(8):
            self.turns_with_beat()
            if self.follower.may_serve():
                return
        raise AssertionError(self.follower.counts)

    def turns_with_beat(self) -> None:
        """A heartbeat while the follower waits for it, and a turn behind it."""
        beat = threading.Timer(0.02, self.beat)
        beat.start()
        self.turns(2)
        beat.join()
        self.turns()


def sets_of(states: list[bytes | None]) -> list[set[bytes]]:
    """The records of each state, as a set."""
    return [
        {(state or b"")[at : at + layout.width] for at in range(0, len(state or b""), layout.width)}
        for state, layout in zip(states, LAYOUTS, strict=True)
    ]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(1_000_000)


@pytest.fixture
def world(redis_server: RedisServer, namespace: str, clock: VirtualClock) -> Iterator[World]:
    made = World(redis_server.url, namespace, clock)
    yield made
    made.close()


@pytest.fixture
def cluster_world(
    redis_cluster: RedisCluster, namespace: str, clock: VirtualClock
) -> Iterator[World]:
    made = World(redis_cluster.url, namespace, clock, cluster=True)
    yield made
    made.close()


def test_states_of_all_nodes_of_a_cluster_are_near(cluster_world: World) -> None:
    """The stream is on one of them; one that has lost its data ends what is near, for a time."""
    world = cluster_world
    assert world.nodes.n == 3
    world.begin_node()
    world.until_in_step()
    for card in range(6):
        world.score(card)
    world.write([*range(6)])
    world.turns(2)
    for card in range(6):
        assert world.near_states(card) == world.in_redis(card)
    assert world.follower.counts["gaps"] == 0
    tag = world.nodes.tags[1]
    replies_to(world.nodes, [(tag.encode(), command(b"DEL", world.names.progress(tag)))])
    assert isinstance(world.clock, VirtualClock)
    world.clock.move_to(world.clock.now_ms() + 60)
    world.turns()
    world.score(1)
    assert world.near_states(1) is None
    world.mark()
    world.clock.move_to(world.clock.now_ms() + 60)
    world.turns()
    world.score(1)
    assert world.near_states(1) == world.in_redis(1)


def test_entities_stay_near_after_their_own_payments(world: World) -> None:
    """What is appended in Redis is appended here, byte for byte."""
    world.begin_node()
    world.write([1, 2, 3])
    assert not world.follower.may_serve()
    world.until_in_step()
    for card in (1, 2, 4):
        assert world.near_states(card) is None
        assert world.score(card) == world.in_redis(card) == world.near_states(card)
    for _ in range(5):
        world.write([1, 2, 4, 1])
    world.turns(2)
    for card in (1, 2, 4):
        assert world.near_states(card) == world.in_redis(card)
    assert world.room.complete_since_ms == SINCE_MS
    counts = world.follower.counts
    assert (counts["gaps"], counts["damaged"], counts["restarts"]) == (0, 0, 0)
    assert counts["groups"] > 10


def test_progress_says_what_near_states_hold(world: World) -> None:
    """In the form of a node's summary: offsets as published, and the lowest arrival to come."""
    world.begin_node()
    world.until_in_step()
    world.write([1, 2])
    world.turns(2)
    (summary,) = world.follower.progress
    ((of_node,), _) = world.fetched(row_of(1))
    assert of_node is not None
    assert summary[:8] == of_node[:8]
    assert summary[16:32] == of_node[16:32]
    table = np.frombuffer(summary[32:], np.int64).reshape(-1, 4)
    assert (
        table[:, :3].tolist()
        == np.frombuffer(of_node[32:], np.int64).reshape(-1, 4)[:, :3].tolist()
    )
    assert world.follower.watermark_ms == NOW_MS
    assert {int(one) for one in table[:, 0]} == {
        int.from_bytes(topic_digest(topic_id), "little", signed=True)
        for topic_id in TOPICS.values()
    }


def test_a_batch_that_was_never_published_is_a_gap(world: World) -> None:
    """Its consumer died behind the append; the next message tells, and everything is flushed."""
    world.begin_node()
    world.until_in_step()
    world.score(1)
    world.write([1], publishes=False)
    world.publisher = world.another_publisher(b"sender 2")
    world.write([2])
    world.turns(2)
    assert world.follower.counts["gaps"] == 1
    assert world.near_states(1) is None
    assert world.score(1) == world.in_redis(1) == world.near_states(1)


def test_a_backfill_whose_message_is_lost_is_a_gap(world: World) -> None:
    """It covers no offsets; its sender's numbers tell."""
    world.begin_node()
    world.until_in_step()
    world.publisher = world.another_publisher(b"backfill")
    world.write([1], covers=False)
    world.score(1)
    world.write([1], covers=False, publishes=False)
    world.turns(2)
    world.write([2], covers=False)
    world.turns(2)
    assert world.follower.counts["gaps"] == 1
    assert world.near_states(1) is None


def test_what_is_read_again_is_no_gap_and_repetitions_count_once(world: World) -> None:
    """Another consumer begins at an offset that is covered already."""
    world.begin_node()
    world.until_in_step()
    world.score(1)
    again = world.write([1, 2])
    again()
    world.publisher = world.another_publisher(b"sender 2")
    world.write([1])
    world.turns(3)
    assert world.follower.counts["gaps"] == 0
    near = world.near_states(1)
    assert near is not None
    assert sets_of(near) == sets_of(world.in_redis(1))


@pytest.mark.parametrize("is_protected", [True, False])
def test_messages_that_are_lost_or_in_another_order_leave_nothing_old(
    world: World, monkeypatch: pytest.MonkeyPatch, is_protected: bool
) -> None:
    """The later one shows the gap, at once; what comes after it is a repetition. And a canary."""
    if not is_protected:
        monkeypatch.setattr(Step, "shows_gap", lambda *_: False)
    world.begin_node()
    world.until_in_step()
    world.score(1)
    earlier = world.write([1], publishes=False)
    later = world.write([1, 2], publishes=False)
    later()
    world.turns(2)
    served = sets_of(world.score(1))
    assert (served == sets_of(world.in_redis(1))) == is_protected
    assert world.follower.counts["gaps"] == is_protected
    for publish in (earlier, later, earlier):
        publish()
    world.turns(2)
    near = world.near_states(1)
    assert near is not None
    assert sets_of(near) == sets_of(world.in_redis(1))


def test_a_partition_may_be_idle_for_as_long_as_its_heartbeats_come(world: World) -> None:
    """Beside one with traffic: states stay near all the time, and the watermark goes on."""
    assert isinstance(world.clock, VirtualClock)
    world.begin_node()
    world.until_in_step()
    world.score(1)
    for number in range(30):
        world.clock.move_to(world.clock.now_ms() + round(1_000 * HEARTBEAT_S))
        world.write([2])
        world.beat(only=1, arrival_ms=NOW_MS + number)
        world.turns(2)
        assert world.follower.watermark_ms == NOW_MS + number
        assert world.near_states(1) == world.in_redis(1)
    assert world.follower.counts["restarts"] == world.follower.counts["gaps"] == 0


def test_without_its_bound_a_follower_serves_what_is_old(world: World) -> None:
    """A canary: the silence of one that was paused, and nobody to notice."""
    world.begin_node()
    world.until_in_step()
    world.score(1)
    world.follower.until_s = float("inf")
    assert isinstance(world.clock, VirtualClock)
    world.clock.move_to(world.clock.now_ms() + 60_000)
    world.write([1])
    near = world.near_states(1)
    assert near is not None
    assert sets_of(near) != sets_of(world.in_redis(1))


def test_a_message_that_comes_during_the_exchange_is_not_missed(world: World) -> None:
    """Asked before an append, admitted behind its message: refused."""
    world.begin_node()
    world.until_in_step()
    row = row_of(1)
    world.near.draw(world.room)
    summaries, states = world.fetched(row)
    world.write([1])
    world.turns(2)
    world.admit(row, summaries, states)
    assert world.near_states(1) is None


def test_entries_that_were_trimmed_before_they_were_read_are_missed(world: World) -> None:
    """Also where what is left of the stream shows no gap in offsets or numbers."""
    world.begin_node()
    world.until_in_step()
    world.score(1)
    own, world.publisher = world.publisher, world.another_publisher(b"backfill")
    world.write([1], covers=False)
    world.publisher = own
    world.beat()
    world.ask(b"XTRIM", world.names.control("stream"), b"MAXLEN", b"1")
    assert isinstance(world.clock, VirtualClock)
    world.clock.move_to(world.clock.now_ms() + 60)
    world.turns()
    assert world.follower.counts["restarts"] == 1
    assert world.near_states(1) is None
    world.until_in_step()
    assert world.score(1) == world.in_redis(1) == world.near_states(1)


def test_a_stream_that_is_deleted_and_made_anew_is_found(world: World) -> None:
    """What was published in between is not missed."""
    world.begin_node()
    world.until_in_step()
    world.score(1)
    own, world.publisher = world.publisher, world.another_publisher(b"backfill")
    world.write([1], covers=False)
    world.publisher = own
    world.ask(b"DEL", world.names.control("stream"))
    world.beat()
    assert isinstance(world.clock, VirtualClock)
    world.clock.move_to(world.clock.now_ms() + 60)
    world.turns()
    assert world.follower.counts["restarts"] == 1
    assert world.near_states(1) is None
    world.until_in_step()


def test_a_silent_partition_suspends_near_states_and_keeps_them(world: World) -> None:
    """Beyond the bound nothing is served; when it is heard again everything is still there."""
    world.begin_node()
    world.until_in_step()
    world.score(1)
    assert isinstance(world.clock, VirtualClock)
    for _ in range(20):
        world.clock.move_to(world.clock.now_ms() + 50)
        world.beat(only=0)
        world.turns()
    assert not world.follower.may_serve()
    assert world.near.counts["held"] > 0
    world.until_in_step()
    assert world.follower.counts["restarts"] == 0
    assert world.near_states(1) == world.in_redis(1)


def test_a_scorer_that_was_paused_serves_nothing_until_it_has_read(world: World) -> None:
    """The bound has passed by its own clock, whatever its thread did not notice."""
    world.begin_node()
    world.until_in_step()
    world.score(1)
    assert isinstance(world.clock, VirtualClock)
    world.clock.move_to(world.clock.now_ms() + 60_000)
    world.write([1])
    assert world.near_states(1) is None
    world.turns(2)
    # What came meanwhile was sent nobody knows when.
    assert world.near_states(1) is None
    world.until_in_step()
    assert world.score(1) == world.in_redis(1) == world.near_states(1)


def test_old_messages_of_a_dead_partition_do_not_make_it_heard(world: World) -> None:
    """A backlog that is read now was sent long ago."""
    world.begin_node()
    world.until_in_step()
    assert isinstance(world.clock, VirtualClock)
    world.beat(only=1)
    world.clock.move_to(world.clock.now_ms() + 550)
    world.beat(only=0)
    world.turns(2)
    world.clock.move_to(world.clock.now_ms() + 100)
    world.beat(only=0)
    world.turns(2)
    assert not world.follower.may_serve()


def test_damage_flushes_and_other_layouts_do_not(world: World) -> None:
    """A message of another specification is about other states."""
    world.begin_node()
    world.until_in_step()
    world.score(1)
    others = Publisher(world.nodes.settings, LAYOUTS[:1], TOPICS, b"stranger")
    ranges = [Range(at, 10**6, 10**6, NOW_MS) for at in world.partitions]
    world.send(others.command(ranges, NOW_MS))
    world.turns(2)
    assert world.near_states(1) == world.in_redis(1)
    stream = world.names.control("stream")
    world.ask(b"XADD", stream, b"*", b"m", b"fsinval\x01" + bytes(100))
    world.ask(b"XADD", stream, b"*", b"m", b"no message")
    world.turns(2)
    counts = world.follower.counts
    assert (counts["other layouts"], counts["damaged"]) == (2, 1)
    assert world.near_states(1) is None


def test_a_partition_that_is_new_is_waited_for(world: World) -> None:
    """Out of step until it is heard; what it did not publish of its beginning is a gap."""
    world.begin_node()
    world.until_in_step()
    world.score(1)
    world.partitions.append(("payments", 1))
    world.applied["payments", 1] = 7
    world.mark()
    assert isinstance(world.clock, VirtualClock)
    world.clock.move_to(world.clock.now_ms() + 60)
    world.beat(only=0)
    world.turns(2)
    assert not world.follower.may_serve()
    world.until_in_step()
    assert world.follower.counts["gaps"] == 1


def test_a_node_that_begins_anew_flushes(world: World) -> None:
    """It has lost its data and was rebuilt; states under its former epoch are not served."""
    world.begin_node()
    world.until_in_step()
    world.score(1)
    world.forget_nodes()
    assert isinstance(world.clock, VirtualClock)
    world.clock.move_to(world.clock.now_ms() + 60)
    world.turns()
    assert world.near_states(1) is None
    # Without an epoch nothing is admitted.
    world.score(1)
    assert world.near_states(1) is None
    world.begin_node()
    world.until_in_step()
    assert world.score(1) == world.in_redis(1) == world.near_states(1)


@pytest.mark.parametrize("keeps_data", [False, True])
def test_a_restart_of_redis_leaves_no_old_state_in_use(
    own_redis: OwnRedis, namespace: str, keeps_data: bool
) -> None:
    """With its data or without: near is what Redis holds, and comes back by itself."""
    server = own_redis(appendonly=keeps_data, settings=["appendfsync always"])
    clock = SystemClock()
    world = World(server.url, namespace, clock)
    world.follower.start()
    beating = threading.Event()

    def beat() -> None:
        while not beating.wait(HEARTBEAT_S / 2):
            try:
                world.beat()
            except Unavailable:
                continue

    thread = threading.Thread(target=beat)
    try:
        world.begin_node()
        thread.start()
        _wait_until(world.follower.may_serve)
        world.write([1, 2])
        _wait_until(lambda: world.score(1) == world.near_states(1) == world.in_redis(1))
        server.kill()
        server.start()
        if not keeps_data:
            _wait_until(lambda: _is_done(world.begin_node))
        _wait_until(lambda: _is_done(lambda: world.write([2, 3])))
        _wait_until(world.follower.may_serve)
        for card in (1, 2, 3):
            _wait_until(partial(_is_near_again, world, card))
    finally:
        beating.set()
        thread.join()
        world.close()


def _is_near_again(world: World, card: int) -> bool:
    """Whether a card is near, and as Redis has it: what it held before, if that is gone, is not."""
    states = sets_of(world.in_redis(card))
    world.score(card)
    near = world.near_states(card)
    return near is not None and sets_of(near) == states


def _is_done(do: Callable[[], object]) -> bool:
    try:
        do()
    except Unavailable:
        return False
    return True


def _wait_until(holds: Callable[[], bool]) -> None:
    clock, never = SystemClock(), threading.Event()
    end_s = clock.monotonic_s() + LIMIT_S
    while not holds():
        assert clock.monotonic_s() < end_s, "it did not come to hold"
        never.wait(0.01)


@pytest.mark.parametrize("seed", range(3))
def test_in_a_random_run_nothing_old_is_ever_served(
    world: World, clock: VirtualClock, seed: int
) -> None:
    """Appends, publications, crashes, trims, silences: what is served holds what was published."""
    print("seed", seed)
    chance = random.Random(seed)
    world.begin_node()
    world.until_in_step()
    waiting: Callable[[], None] | None = None
    told: dict[int, list[set[bytes]]] = {}
    n_near = 0
    for _ in range(150):
        clock.move_to(clock.now_ms() + chance.randrange(60))
        what = chance.choice(["write", "write", "score", "score", "score", "crash", "turn", "trim"])
        if what == "write":
            if waiting is not None:
                waiting()
            waiting = world.write([chance.randrange(6) for _ in range(3)], publishes=False)
        elif what == "crash" and chance.random() < 0.3:
            waiting = None
            world.publisher = world.another_publisher(chance.randbytes(8))
        elif what == "trim" and chance.random() < 0.3:
            world.ask(b"XTRIM", world.names.control("stream"), b"MAXLEN", b"3")
        elif what == "turn":
            if waiting is not None:
                waiting()
                waiting = None
            world.beat()
            world.turns(2)
            # Everything that was published is followed: what is served now is not older.
            told = {card: sets_of(world.in_redis(card)) for card in range(6)}
            if not world.follower.may_serve():
                world.until_in_step()
        else:
            card = chance.randrange(6)
            near = world.near_states(card)
            n_near += near is not None
            served = sets_of(world.score(card))
            now = sets_of(world.in_redis(card))
            assert all(mine <= theirs for mine, theirs in zip(served, now, strict=True))
            if card in told:
                assert all(due <= mine for due, mine in zip(told[card], served, strict=True))
    assert n_near > 5


def test_what_nodes_said_before_a_failover_is_not_believed_of_what_is_heard_after_it() -> None:
    """A node told of an arrival, lost it, and the first message is of older ones."""
    topic, step = bytes(8), Step()
    step.expect([Marker(topic, 0, 150, 2_000)])
    heard = encode(LAYOUTS, bytes(8), 0, 0, [Covered(topic, 0, 110, 116, 1_500)])
    step.hear(decode(heard, LAYOUTS), 1.0)
    # At offset 116 there may stand what arrived at 1,500.
    assert step.known[0].tolist()[2:] == [116, 1_500]
    later = encode(LAYOUTS, bytes(8), 1, 0, [Covered(topic, 0, 116, 120, 1_700)])
    step.hear(decode(later, LAYOUTS), 2.0)
    assert step.watermark_ms == 1_700
