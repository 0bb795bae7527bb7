"""A cluster changes under consumers and readers: slots move, a primary dies and loses appends.

Beside the campaigns' stream flow payments of a few cards of their own, and a reader asks for these
cards again and again, as a scorer does. What it was given is held against the log in the end.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

from freshscore.config.clock import SystemClock
from freshscore.config.errors import Unavailable
from freshscore.config.settings import RedisSettings
from freshscore.features import row as r
from freshscore.features.codec import decode
from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_door import Nodes, command
from freshscore.features.redis_keys import RedisKeys, slot_of, tag_of
from freshscore.features.redis_progress import Progress, progress_of, topic_digest
from freshscore.features.state_layout import state_fingerprints, state_layout
from freshscore.features.transaction import Transaction
from freshscore.scoring.exchanges import Exchanges
from tests.faults.campaigns import Lane
from tests.faults.conftest import Deploy
from tests.faults.deployment import Deployment, pause, wait_until
from tests.features.moving_slots import assign_slot, move_slot, owner_of
from tests.servers.fixtures import OwnCluster
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.redis_servers import RedisCluster, RedisServer

N_CARDS = 24
CARD = 0


class Read(NamedTuple):
    """One answer: the number of the card, how many events, what the node said of itself.

    acknowledged: how many of the card's payments were applied before it was asked for.
    """

    card: int
    n: int
    progress: Progress
    acknowledged: int


class Cards:
    """The cards that are read, the payments that are sent to them, and the reader."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.own: Deployment = lane.deployment
        self.names = [f"{lane.stream.mark}-read-card-{number}" for number in range(N_CARDS)]
        self.layout = state_layout(self.own.program, self.own.keys, CARD)
        self.rows = [self.own.packer.row(self._payment(name, "none")) for name in self.names]
        self._n_sent = [0] * N_CARDS
        self.acknowledged = [0] * N_CARDS
        self.reads: list[Read] = []
        self.n_degraded = self.n_unavailable = 0
        self._ended = threading.Event()

    def slot(self, card: int) -> int:
        """The slot of a card's state."""
        at = r.TOKENS + 16 * CARD
        return slot_of(tag_of(self.rows[card][at : at + 16]))

    def held_by(self, server: RedisServer, card: int) -> int:
        """How many bytes of a card's state a server has, also as a replica."""
        at = r.TOKENS + 16 * CARD
        key = self._keys.state(self.rows[card][at : at + 16], self.layout.fingerprint)
        client: Any
        with server.client() as client:
            client.execute_command("READONLY")
            return int(client.strlen(key))

    def _payment(self, name: str, number: str) -> Transaction:
        return Transaction.of(self._said(name, number))

    def _said(self, name: str, number: str) -> dict[str, Any]:
        return {
            "transaction_id": f"{name}-{number}",
            "time": self.lane.clock.now_ms(),
            "amount_minor": 100,
            "currency": "EUR",
            "entities": {"card": name},
        }

    def flow(self) -> None:
        """Send the campaign's stream a little, and a payment to each card."""
        self.lane.flow()
        messages: list[tuple[str, bytes | None]] = []
        for card, name in enumerate(self.names):
            said = self._said(name, str(self._n_sent[card]))
            messages.append((self.own.transactions, json.dumps(said).encode()))
            self._n_sent[card] += 1
        self.lane.sender.send_all(messages)

    def flow_for(self, wait_s: float) -> None:
        """Send again and again, and note what is acknowledged."""
        end_s = self.lane.clock.monotonic_s() + wait_s
        while self.lane.clock.monotonic_s() < end_s:
            self.flow()
            self.note_acknowledged()
            pause(0.02)

    def note_acknowledged(self) -> None:
        """If all is committed that there is, so are the cards' payments."""
        sent, ends, held = [*self._n_sent], self.own.ends(), self.own.committed()
        if all(held.get(at, 0) >= end for at, end in ends.items() if end):
            self.acknowledged = sent

    def wait_until_whole(self, nodes: Nodes, limit_s: float = 60.0) -> None:
        """Until every node has its epoch, and holds all that there is."""
        self.own.wait_until_done(limit_s)
        ends = {at: end for at, end in self.own.ends().items() if end}
        ids = self.own.topic_ids()
        names = self._keys

        def is_whole() -> bool:
            try:
                nodes.refresh()
                asked = [(t.encode(), command(b"GET", names.progress(t))) for t in nodes.tags]
                said = replies_to(nodes, asked)
            except Unavailable:
                return False
            if None in said:
                return False
            for summary in map(progress_of, said):
                held = {(one.topic, one.partition): one.offset for one in summary.markers}
                for (topic, number), end in ends.items():
                    if held.get((topic_digest(ids[topic]), number), 0) < end:
                        return False
            return True

        wait_until(is_whole, "every node holds all that there is", limit_s)
        self.note_acknowledged()

    @contextmanager
    def nodes(self) -> Iterator[Nodes]:
        """The nodes as a process of its own sees them."""
        settings = RedisSettings(
            url=self.own.redis.url, namespace=self.own.name, cluster=True, timeout_ms=500
        )
        with closing(Nodes.open(settings, SystemClock())) as nodes:
            yield nodes

    @property
    def _keys(self) -> RedisKeys:
        return RedisKeys(self.own.name, state_fingerprints(self.own.program))

    @contextmanager
    def being_read(self) -> Iterator[None]:
        """A thread reads the cards' states while the context lasts."""
        self._ended.clear()
        reader = threading.Thread(target=self._read)
        reader.start()
        try:
            yield
        finally:
            self._ended.set()
            reader.join(30)
            assert not reader.is_alive()

    def _read(self) -> None:
        layouts = [
            state_layout(self.own.program, self.own.keys, entity)
            for entity in range(len(self.own.program.entities))
        ]
        chance = random.Random(1)
        with self.nodes() as nodes:
            exchanges = Exchanges(nodes, self._keys, layouts)
            desk = exchanges.desk()
            while not self._ended.is_set():
                card = chance.randrange(N_CARDS)
                acknowledged = self.acknowledged[card]
                try:
                    found = exchanges.fetch_all(desk, (self.rows[card],), 0.5)[0]
                except Unavailable:
                    self.n_unavailable += 1
                    pause(0.005)
                    continue
                if found.degraded:
                    self.n_degraded += 1
                    continue
                blob = found.states[CARD]
                n = decode(blob, self.layout).records.n if blob is not None else 0
                self.reads.append(Read(card, n, progress_of(found.progress[0]), acknowledged))
            desk.leave(nodes)

    def check_reads(self) -> None:
        """No state that was served missed a payment that its node's markers cover."""
        ids = {topic_digest(one): topic for topic, one in self.own.topic_ids().items()}
        at: list[list[tuple[int, int]]] = [[] for _ in self.names]
        numbers = {name: number for number, name in enumerate(self.names)}
        for message in self.own.read(self.own.transactions):
            card = numbers.get(_card_of(message.value))
            if card is not None:
                at[card].append((message.at.partition, message.at.offset))
        for read in self.reads:
            markers = {
                one.partition: one.offset
                for one in read.progress.markers
                if ids[one.topic] == self.own.transactions
            }
            covered = sum(offset < markers.get(number, 0) for number, offset in at[read.card])
            assert read.n >= covered, f"{read.n} events of {covered} that the markers cover"


def _card_of(value: bytes | None) -> str:
    try:
        return str(json.loads(value or b"")["entities"]["card"])
    except (ValueError, KeyError, TypeError):
        return ""


def test_slots_move_under_consumers_and_readers(
    deploy: Deploy, kafka: KafkaBroker, own_cluster: OwnCluster, seed: int
) -> None:
    """No answer misses what was acknowledged, or it is degraded; in the end all is there."""
    cluster = own_cluster()
    lane = Lane(deploy(kafka, cluster), random.Random(seed))
    cards = Cards(lane)
    cards.own.begin(2)
    cards.flow_for(0.5)
    with cards.nodes() as nodes:
        cards.wait_until_whole(nodes)
        with cards.being_read():
            cards.flow_for(0.5)
            for _ in range(4):
                for _ in range(3):
                    slot = cards.slot(lane.chance.randrange(N_CARDS))
                    target = lane.chance.choice(_others(cluster, slot))
                    lane.seen.kills["keys moved"] += move_slot(cluster, slot, target, cards.flow)
                    lane.seen.kills["slots moved"] += 1
                cards.flow_for(0.3)
                cards.wait_until_whole(nodes)
                cards.flow_for(0.3)
        cards.wait_until_whole(nodes)
    _finish(cards, "slots moved", seed)
    assert all(read.n >= read.acknowledged for read in cards.reads)
    assert cards.n_degraded > 0


def test_slots_of_a_lost_node_are_given_to_others_empty(
    deploy: Deploy, kafka: KafkaBroker, own_cluster: OwnCluster, seed: int
) -> None:
    """No card of theirs is taken for a new one, and their states come back from the log."""
    cluster = own_cluster()
    lane = Lane(deploy(kafka, cluster), random.Random(seed))
    cards = Cards(lane)
    cards.own.begin()
    cards.flow_for(0.5)
    with cards.nodes() as nodes:
        cards.wait_until_whole(nodes)
        with cards.being_read():
            cards.flow_for(0.3)
            for card in range(0, N_CARDS, 5):
                slot = cards.slot(card)
                assign_slot(cluster, slot, lane.chance.choice(_others(cluster, slot)))
                lane.seen.kills["slots emptied"] += 1
            cards.flow_for(0.5)
            cards.wait_until_whole(nodes)
            cards.flow_for(0.3)
        cards.wait_until_whole(nodes)
    _finish(cards, "slots emptied", seed)
    assert all(read.n >= read.acknowledged for read in cards.reads)
    assert cards.n_degraded > 0


def test_a_replica_that_lacks_acknowledged_appends_takes_over(
    deploy: Deploy, kafka: KafkaBroker, own_cluster: OwnCluster, seed: int
) -> None:
    """Its markers lack them too: they are read again, by consumers that nobody restarts."""
    cluster = own_cluster(replicas=1)
    lane = Lane(deploy(kafka, cluster), random.Random(seed))
    cards = Cards(lane)
    cards.own.begin(2)
    cards.flow_for(0.5)
    # Not the first: its address is the one that everybody is given.
    node = lane.chance.choice((1, 2))
    primary, replica = cluster.nodes[node], cluster.nodes[3 + node]
    card = next(one for one in range(N_CARDS) if owner_of(cluster, cards.slot(one)) is primary)
    with cards.nodes() as nodes:
        cards.wait_until_whole(nodes)
        with cards.being_read():
            _cut_off(replica)
            kept = cards.acknowledged[card]
            cards.flow_for(0.5)
            cards.wait_until_whole(nodes)
            assert cards.acknowledged[card] > kept
            assert cards.held_by(replica, card) < cards.held_by(primary, card)
            primary.kill()
            lane.seen.kills["primaries killed"] += 1
            replica.wait_until(replica.is_primary, 30.0)
            cards.flow_for(0.5)
            cards.wait_until_whole(nodes)
    _finish(cards, "a primary killed", seed)
    # Nothing was rebuilt: what the replica had is a prefix, and its markers say which.
    assert cards.n_degraded == 0


def _cut_off(replica: RedisServer) -> None:
    """Let a replica follow its primary no longer, while both live."""
    with replica.client() as client:
        client.config_set("masteruser", "nobody")
        client.config_set("masterauth", "nothing")
        client.execute_command("CLIENT", "KILL", "TYPE", "master")


def _others(cluster: RedisCluster, slot: int) -> list[RedisServer]:
    owner = owner_of(cluster, slot)
    return [one for one in cluster.primaries if one is not owner]


def _finish(cards: Cards, what: str, seed: int) -> None:
    """Everything that holds in the end, and of every answer."""
    lane = cards.lane
    lane.sender.close()
    lane.check()
    assert not any("Traceback" in one.log.read_text() for one in cards.own.processes)
    cards.own.stop_all()
    cards.check_reads()
    behind = sum(read.n < read.acknowledged for read in cards.reads)
    print(
        f"{what}, seed {seed}: {lane.seen}; {len(cards.reads)} reads served, {behind} of them"
        f" behind, {cards.n_degraded} degraded, {cards.n_unavailable} not answered"
    )
    assert cards.reads
