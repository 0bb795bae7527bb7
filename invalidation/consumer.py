"""The consumer: from the log into the states, again and again, until it is told to stop.

One turn: poll, parse and build the next batch; read what the nodes answered to the last one; send
this one. So the nodes work while messages are fetched and parsed. Behind its appends each node is
sent its markers; where all nodes hold a batch it is published on the invalidation stream, and what
is published is committed every half second.

Whatever goes wrong between two steps, the same messages are read again, from the lowest of what is
durable: states are sets, so that changes nothing (law 3). There is therefore one answer to every
trouble with Redis: forget what was sent and not answered, wait a little, begin at the markers.
Limits: a batch has at most kafka.max_poll_records messages, and one batch is under way; while Redis
does not answer nothing is polled, and the broker keeps what comes.
Rule: nothing is committed that was not published, nothing published that a node has not answered,
and no refused message is passed before its dead letter is in the log.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from freshscore.config.clock import Clock
from freshscore.config.errors import DamagedState, StoreFull, Unavailable
from freshscore.config.settings import Settings
from freshscore.features.redis_compaction import Compactor
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_erasing import Eraser
from freshscore.invalidation.batches import Batcher, Erasure
from freshscore.invalidation.beginnings import Beginnings
from freshscore.invalidation.dead_letters import DeadLetters
from freshscore.invalidation.fetched_runs import messages_of, place_of, runs_of
from freshscore.invalidation.folding_lines import FoldingLines
from freshscore.invalidation.kafka_batches import Fetched
from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.label_lookups import LabelLookups
from freshscore.invalidation.messages import WRONG_KEY
from freshscore.invalidation.node_markers import DataLost, NodeMarkers
from freshscore.invalidation.outcomes import Outcomes
from freshscore.invalidation.partitions import Partition, Place
from freshscore.invalidation.publishing import Publisher, Range
from freshscore.invalidation.under_way import UnderWay
from freshscore.invalidation.waiting_labels import WaitingLabels

# Waits after trouble with a server: doubled each time, up to the last.
_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 2.0
# After every rotation that is announced has begun.
_AFTER_ALL_MS: Final = 2**62
# What a poll that brought so much has yet to tell goes with the next one.
_MUCH: Final = 1_000
# How many of the states that wait for compaction one heartbeat takes.
_COMPACTED_AT_ONCE: Final = 256


class ConsumerParts(NamedTuple):
    """What a consumer is made of; each is its own from then on.

    topic_ids: name -> id of transactions and labels. digest_key: of the digests in dead letters.
    """

    reader: LogReader
    nodes: Nodes
    batcher: Batcher
    letters: DeadLetters
    markers: NodeMarkers
    publisher: Publisher
    lookups: LabelLookups
    compactor: Compactor
    eraser: Eraser
    folding: FoldingLines
    topic_ids: Mapping[str, str]
    digest_key: bytes
    clock: Clock
    # Raises WrongSecret where Redis notes other identifier keys than those here, as of an instant
    # (ms); None for states that nobody else reads.
    check_keys: Callable[[int], None] | None = None


class Consumer:
    """Applies the partitions that its reader is given to the states in Redis.

    Not for more than one thread, `stop` apart.
    """

    def __init__(self, settings: Settings, parts: ConsumerParts) -> None:
        self._settings = settings
        self._parts = parts
        self._clock = parts.clock
        self._places: dict[Partition, Place] = {}
        self._outcomes = Outcomes(parts.letters, parts.topic_ids, parts.digest_key)
        self._under_way = UnderWay(
            parts.nodes, parts.batcher, parts.markers, parts.publisher, parts.clock, self._places
        )
        self._beginnings = Beginnings(parts.reader, parts.markers, self._under_way, self._places)
        self._waiting = WaitingLabels(
            parts.reader,
            parts.batcher,
            parts.lookups,
            parts.markers,
            self._under_way,
            self._outcomes,
            self._places,
            parts.clock,
            settings.kafka.transactions_topic,
        )
        self._stopping = threading.Event()
        self._committed_s = self._beat_s = self._clock.monotonic_s()
        self._n_troubles = self._n_assignments = 0

    @property
    def counts(self) -> Mapping[str, int]:
        """Outcome -> messages; what is read again counts again."""
        return self._outcomes.counts

    def run(self) -> None:
        """Work until `stop`, then settle what is under way and leave the group.

        Raises what no waiting mends: WrongSecret, SettingsError.
        """
        try:
            while not self._stopping.is_set():
                self.turn()
        finally:
            self.close()

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Let `run` end after its turn; from any thread."""
        self._stopping.set()
        # A poll that waits for partitions would wait for seconds.
        if not self._places:
            self._parts.reader.close()

    def close(self) -> None:
        """Settle what is under way, commit, and leave."""
        try:
            self._under_way.settle()
            self._commit(wait=True)
        except (Unavailable, DamagedState, StoreFull, DataLost) as problem:
            logging.getLogger("freshscore").warning("not committed at the end: %s", problem)
        self._under_way.give_back()
        self._parts.reader.close()

    def turn(self, wait_ms: int | None = None) -> int:
        """One turn; how many messages it brought."""
        try:
            fetched = self._poll(wait_ms)
            n = sum(len(one) for one in fetched)
            for parts in runs_of(fetched, self._settings.kafka.max_poll_records):
                self._apply([one for one in parts if not self._places[one.partition].is_held])
            if n == 0 or (n < _MUCH and not self._under_way.is_told):
                self._under_way.settle()
            self._beat_if_due()
            self._commit_if_due()
        except (Unavailable, DamagedState, StoreFull, DataLost) as problem:
            self._begin_again(problem)
            return 0
        self._n_troubles = 0
        return n

    @property
    def is_caught_up(self) -> bool:
        """Whether all that its partitions held at the last heartbeat is applied and published.

        And every node has its epoch.
        """
        places = self._places.values()
        return (
            bool(places)
            and not self._parts.markers.is_rebuilding
            and all(place.is_at_end for place in places)
        )

    # From the log

    def _poll(self, wait_ms: int | None) -> list[Fetched]:
        """What came of the partitions that were begun with before this poll."""
        fetched = self._parts.reader.poll(wait_ms if self._under_way.is_told else 0)
        self._notice_assignments()
        assigned = self._parts.reader.assignment
        for gone in self._places.keys() - assigned:
            del self._places[gone]
        new = sorted(assigned - self._places.keys())
        begun = [one for one in fetched if one.partition in self._places and len(one)]
        self._beginnings.check_no_gap(begun)
        if new:
            self._under_way.settle()
            self._beginnings.open(new)
        return begun

    def _notice_assignments(self) -> None:
        """Forget all places if partitions were given out, or a topic was deleted and made anew.

        Then those that stay are read from another position too, and none is held; or their offsets
        mean other messages.
        """
        parts = self._parts
        topic_ids = self._outcomes.topic_ids | parts.reader.topic_ids()
        n_assignments = parts.reader.n_assignments
        if (n_assignments, topic_ids) == (self._n_assignments, self._outcomes.topic_ids):
            return
        self._under_way.settle()
        self._places.clear()
        n_partitions = [len(parts.reader.partitions(name)) for name in topic_ids]
        if not all(n_partitions):
            # Markers of the others alone would tell that everything is applied.
            raise Unavailable(f"of the topics {', '.join(topic_ids)} one is not there")
        parts.markers.follow(topic_ids, sum(n_partitions))
        parts.publisher.follow(topic_ids)
        self._n_assignments, self._outcomes.topic_ids = n_assignments, topic_ids

    # Into the states

    def _apply(self, parts: list[Fetched]) -> None:
        """Send the batch of these messages; the one before is settled by then."""
        transactions, labels = self._by_topic(parts)
        batch = self._parts.batcher.build(
            messages_of(transactions), messages_of(labels), self._clock.now_ms()
        )
        for outcome, count in batch.counts.items():
            self._outcomes.count(outcome, count)
        if any(refusal.reason == WRONG_KEY for refusal in batch.refused):
            # Under a key that was announced, and that this process does not have: no dead letter.
            self._check_keys(_AFTER_ALL_MS)
        for refusal in batch.refused:
            self._outcomes.set_aside(labels if refusal.is_label else transactions, refusal)
        for erasure in batch.erasures:
            self._erase(erasure)
        upto, ranges = self._upto(parts)
        waiting = {place_of(labels, one.index)[0].partition for one in batch.lookups}
        at_once = tuple(one for one in ranges if one.partition not in waiting)
        known = {at: to for at, to in upto.items() if at not in waiting}
        self._under_way.send(batch, known, at_once)
        if batch.lookups:
            self._under_way.settle()
            later = tuple(one for one in ranges if one.partition in waiting)
            self._waiting.look_up(batch, labels, {at: upto[at] for at in waiting}, later)

    def _erase(self, erasure: Erasure) -> None:
        """Erase states now: in whatever order with appends, the same is left."""
        for state in erasure.states:
            self._parts.eraser.erase(state, erasure.below_ms)
        self._under_way.tell_replaced(erasure.states)

    def _by_topic(self, parts: Sequence[Fetched]) -> tuple[list[Fetched], list[Fetched]]:
        labels_topic = self._settings.kafka.labels_topic
        labels = [one for one in parts if one.partition[0] == labels_topic]
        return [one for one in parts if one.partition[0] != labels_topic], labels

    def _upto(
        self, parts: Sequence[Fetched]
    ) -> tuple[dict[Partition, tuple[int, int]], tuple[Range, ...]]:
        """How far these messages bring each partition, and what they cover."""
        upto: dict[Partition, tuple[int, int]] = {}
        ranges = []
        for one in parts:
            place = self._places[one.partition]
            place.see(int(one.spans[0, 2]), int(one.spans[:, 2].max()))
            begin, place.read = place.read, one.next_offset
            upto[one.partition] = (one.next_offset, place.arrival_ms)
            ranges.append(Range(one.partition, begin, one.next_offset, place.arrival_ms))
        return upto, tuple(ranges)

    # Back to the log

    def _commit_if_due(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._committed_s >= self._settings.kafka.commit_every_s:
            self._committed_s = now_s
            self._commit(wait=False)

    def _commit(self, *, wait: bool) -> None:
        self._parts.letters.settle()
        reader = self._parts.reader
        # At the end all of it: what nobody waited for may be lost with the connection.
        everything = wait or reader.has_failed_to_commit
        reader.has_failed_to_commit = False
        moved = {
            at: place.published
            for at, place in self._places.items()
            if everything or place.published != place.committed
        }
        reader.commit(moved, wait=wait)
        for at, offset in moved.items():
            self._places[at].committed = offset

    # Heartbeats

    def _beat_if_due(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._beat_s < self._settings.redis.heartbeat_s or not self._places:
            return
        self._beat_s = now_s
        self._check_keys(self._clock.now_ms())
        self._under_way.settle()
        # Of two clocks the earlier: one that was wrong for a moment would be believed for ever.
        at_ms = min(self._clock.now_ms(), self._parts.folding.now_ms())
        ends = self._parts.reader.ends([*self._places])
        passed_ms = at_ms - self._settings.kafka.clock_error_ms
        if self._settings.kafka.historical:
            # History has no clock: what ends has passed what the other partitions have come to.
            passed_ms = max(place.arrival_ms for place in self._places.values())
        for at, end in ends.items():
            place = self._places[at]
            if end < place.applied:
                raise Unavailable(f"topic {at[0]} partition {at[1]} is shorter than it was")
            if place.applied < end and not place.is_held:
                # What stands there may be no message: the end of a transaction, or a gap.
                self._beginnings.skip_gap(at)
            place.reach_end(end, passed_ms)
        self._note_rebuilt(at_ms)
        self._under_way.mark()
        self._waiting.release()
        self._compact()

    def _check_keys(self, at_ms: int) -> None:
        if self._parts.check_keys is not None:
            self._parts.check_keys(at_ms)

    def _note_rebuilt(self, now_ms: int) -> None:
        markers = self._parts.markers
        if not markers.is_rebuilding:
            return
        notes = {at: place.note() for at, place in self._places.items() if place.is_rebuilt}
        applied = {at: place.applied for at, place in self._places.items()}
        if not markers.note_rebuilt(self._under_way.lines(), applied, notes, now_ms):
            raise DataLost("a node of Redis has lost its data again while it was rebuilt")
        for place in self._places.values() if not self._parts.markers.is_rebuilding else ():
            place.rebuilt_at = None

    def _compact(self) -> None:
        """Compact some of the states that have doubled, unless there is much to read."""
        candidates = self._under_way.candidates
        if not candidates or not self.is_caught_up:
            return
        some = [*candidates][:_COMPACTED_AT_ONCE]
        lines = self._parts.folding.lines()
        self._parts.compactor.compact(
            some,
            forget_below_ms=lines.forget_below_ms,
            fold_below_ms=lines.fold_below_ms,
            now_ms=lines.now_ms,
        )
        for candidate in some:
            del candidates[candidate]

    # Trouble

    def _begin_again(self, problem: Exception) -> None:
        """Forget what was not answered, wait, and begin where what is durable ends."""
        self._n_troubles += 1
        if self._n_troubles & (self._n_troubles - 1) == 0 and not self.is_stopping:
            logging.getLogger("freshscore").warning("%s", problem)
        self._under_way.forget()
        self._places.clear()
        wait_s = _FIRST_WAIT_S * 2.0 ** min(self._n_troubles - 1, 10)
        self._stopping.wait(min(wait_s, _LONGEST_WAIT_S))
