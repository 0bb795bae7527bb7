"""The consumer: from the log into the states, again and again, until it is told to stop.

One turn: poll, parse and build the next batch; read what the nodes answered to the last one; send
this one. So the nodes work while messages are parsed. Behind its appends each node is sent its
markers; once all nodes have answered, the batch is published on the invalidation stream, and what
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
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple, NoReturn

import numpy as np

from freshscore.config.clock import Clock
from freshscore.config.errors import DamagedState, StoreFull, Unavailable
from freshscore.config.settings import Settings
from freshscore.features.redis_compaction import Compactor
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_keys import CONTROL
from freshscore.features.redis_lines import MOVED_WORDS, Lines, Reply, errors_in
from freshscore.invalidation.batches import Batch, Batcher, Found, Messages, Refusal
from freshscore.invalidation.dead_letters import (
    DeadLetter,
    DeadLetters,
    digest_of,
)
from freshscore.invalidation.folding_lines import FoldingLines
from freshscore.invalidation.kafka_door import Fetched, LogReader
from freshscore.invalidation.label_lookups import LabelLookups
from freshscore.invalidation.message_reading import FAR
from freshscore.invalidation.messages import MALFORMED, UNKNOWN_TRANSACTION
from freshscore.invalidation.node_markers import NodeMarkers
from freshscore.invalidation.partitions import Partition, Place, begin_of
from freshscore.invalidation.publishing import Publisher, Range

# Waits after trouble with a server: doubled each time, up to the last.
_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 2.0
# A poll that brought so much is followed by another before its replies are read.
_MUCH: Final = 1_000
# States that wait for compaction, and how many of them one heartbeat takes.
_MOST_CANDIDATES: Final = 65_536
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
    folding: FoldingLines
    topic_ids: Mapping[str, str]
    digest_key: bytes
    clock: Clock


class _Sent(NamedTuple):
    """A batch that is under way, and what holds once it is answered.

    upto: partition -> next offset and lowest arrival still to come. ranges: what it covers.
    n_numbers: for each node how many whole numbers it answers before its markers. publishes: the
    batch whose publication went with it.
    """

    batch: Batch
    upto: dict[Partition, tuple[int, int]]
    ranges: tuple[Range, ...]
    n_numbers: list[int]
    publishes: _Sent | None


class _Lost(Exception):
    """A node has lost its data: it is rebuilt from the log."""


class Consumer:
    """Applies the partitions that its reader is given to the states in Redis.

    Not for more than one thread, `stop` apart.
    """

    def __init__(self, settings: Settings, parts: ConsumerParts) -> None:
        self._settings = settings
        self._parts = parts
        self._clock = parts.clock
        self._places: dict[Partition, Place] = {}
        self._topic_ids = dict(parts.topic_ids)
        self._sent: _Sent | None = None
        self._unpublished: _Sent | None = None
        self._borrowed: Lines | None = None
        self._candidates: dict[tuple[int, bytes], None] = {}
        self._stopping = threading.Event()
        self._committed_s = self._beat_s = self._clock.monotonic_s()
        self._n_troubles = self._n_assignments = 0
        # Outcome -> messages; what is read again counts again.
        self.counts: dict[str, int] = {}

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
            self._settle()
            self._commit(wait=True)
        except (Unavailable, DamagedState, StoreFull, _Lost) as problem:
            logging.getLogger("freshscore").warning("not committed at the end: %s", problem)
        self._give_back_lines()
        self._parts.reader.close()

    def turn(self, wait_ms: int | None = None) -> int:
        """One turn; how many messages it brought."""
        try:
            fetched = self._poll(wait_ms)
            n = sum(len(one) for one in fetched)
            for parts in _batches(fetched, self._settings.kafka.max_poll_records):
                self._apply([one for one in parts if not self._places[one.partition].is_held])
            if n < _MUCH:
                self._settle()
            self._beat_if_due()
            self._commit_if_due()
        except (Unavailable, DamagedState, StoreFull, _Lost) as problem:
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
        fetched = self._parts.reader.poll(0 if self._sent is not None else wait_ms)
        self._notice_assignments()
        assigned = self._parts.reader.assignment
        for gone in self._places.keys() - assigned:
            del self._places[gone]
        new = sorted(assigned - self._places.keys())
        begun = [one for one in fetched if one.partition in self._places and len(one)]
        if new:
            self._settle()
            self._open(new)
        return begun

    def _notice_assignments(self) -> None:
        """Forget all places if partitions were given out, or a topic was deleted and made anew.

        Then those that stay are read from another position too, and none is held; or their offsets
        mean other messages.
        """
        parts = self._parts
        topic_ids = self._topic_ids | parts.reader.topic_ids()
        n_assignments = parts.reader.n_assignments
        if (n_assignments, topic_ids) == (self._n_assignments, self._topic_ids):
            return
        self._settle()
        self._places.clear()
        n_partitions = [len(parts.reader.partitions(name)) for name in topic_ids]
        if not all(n_partitions):
            # Markers of the others alone would tell that everything is applied.
            raise Unavailable(f"of the topics {', '.join(topic_ids)} one is not there")
        parts.markers.follow(topic_ids, sum(n_partitions))
        parts.publisher.follow(topic_ids)
        self._n_assignments, self._topic_ids = n_assignments, topic_ids

    def _open(self, partitions: Sequence[Partition]) -> None:
        """Begin with partitions, each where what is durable of it ends."""
        parts = self._parts
        lines = self._lines()
        if not any(place.rebuilt_at is not None for place in self._places.values()):
            parts.markers.begin_rebuilding(lines)
        markers = parts.markers.read(lines, partitions)
        first = parts.reader.beginnings(partitions)
        ends = parts.reader.ends(partitions)
        for at in partitions:
            begin, rebuild = begin_of(parts.reader.committed(at), markers[at], first[at])
            # A log that has lost its end goes on where it ends now.
            begin = min(begin, ends[at])
            place = Place.begun(begin, first[at], ends[at], rebuild=rebuild)
            self._places[at] = place
            parts.reader.seek(at, begin)
            parts.reader.resume([at])

    # Into the states

    def _apply(self, parts: list[Fetched]) -> None:
        """Send the batch of these messages; the one before is settled by then."""
        transactions, labels = self._by_topic(parts)
        batch = self._parts.batcher.build(
            _messages(transactions), _messages(labels), self._clock.now_ms()
        )
        for outcome, count in batch.counts.items():
            self.counts[outcome] = self.counts.get(outcome, 0) + count
        for refusal in batch.refused:
            self._set_aside(labels if refusal.is_label else transactions, refusal)
        upto, ranges = self._upto(parts)
        waiting = {_place_of(labels, one.index)[0].partition for one in batch.lookups}
        at_once = tuple(one for one in ranges if one.partition not in waiting)
        self._send(batch, {at: to for at, to in upto.items() if at not in waiting}, at_once)
        if batch.lookups:
            self._settle()
            later = tuple(one for one in ranges if one.partition in waiting)
            self._look_up(batch, labels, {at: upto[at] for at in waiting}, later)

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

    def _send(
        self, batch: Batch, upto: dict[Partition, tuple[int, int]], ranges: tuple[Range, ...]
    ) -> None:
        """Send a batch, its markers behind it, and the publication of the batch before."""
        self._read_replies()
        parts = self._parts
        publishes, self._unpublished = self._unpublished, None
        n_numbers = [*batch.n_replies]
        for node in range(parts.nodes.n):
            batch.add_command(node, parts.markers.progress_command(node, upto))
        if publishes is not None:
            batch.add_command(self._control_node, self._publication(publishes))
        self._sent = _Sent(batch, upto, ranges, n_numbers, publishes)
        self._lines().send(batch.requests)

    def _read_replies(self) -> None:
        """Wait for what the nodes answer to the batch that is under way."""
        sent = self._sent
        if sent is None:
            return
        n_others = [n - k for n, k in zip(sent.batch.n_replies, sent.n_numbers, strict=True)]
        answers = self._lines().read_numbers(sent.n_numbers, n_others)
        words = frozenset[str]().union(*(errors_in([*one.odd, *one.others]) for one in answers))
        if words:
            self._check(words)
        for one in answers:
            self._check_marked(one.others[0])
        self._sent = None
        for at, (offset, _) in sent.upto.items():
            if at in self._places:
                self._places[at].applied = offset
        if sent.publishes is not None:
            self._published(sent.publishes)
        self._unpublished = sent
        for node, one in enumerate(answers):
            for candidate in sent.batch.compaction_candidates(node, one.numbers.data):
                if len(self._candidates) < _MOST_CANDIDATES:
                    self._candidates[candidate] = None

    def _check(self, words: frozenset[str]) -> NoReturn:
        """Raise for errors among replies."""
        if words & MOVED_WORDS:
            self._parts.nodes.refresh()
        raise Unavailable(f"Redis refused a write: {', '.join(sorted(words))}")

    def _check_marked(self, reply: Reply) -> None:
        """Raise where a node refused its markers, for it has no epoch, and was thought to have."""
        if reply == 0 and not self._parts.markers.is_rebuilding:
            raise _Lost("a node of Redis has lost its data: it is rebuilt from the log")

    # On to the followers, and back to the log

    def _publication(self, sent: _Sent) -> bytes:
        batch, now_ms = sent.batch, self._clock.now_ms()
        return self._parts.publisher.command(sent.ranges, now_ms, batch.n_groups, batch.body)

    def _published(self, sent: _Sent) -> None:
        for at, (offset, _) in sent.upto.items():
            if at in self._places:
                self._places[at].published = offset

    def _settle(self) -> None:
        """Have everything answered and published that was sent."""
        self._read_replies()
        sent, self._unpublished = self._unpublished, None
        if sent is not None:
            self._tell(self._publication(sent))
            self._published(sent)

    def _tell(self, publication: bytes) -> None:
        requests: list[bytes | None] = [None] * self._parts.nodes.n
        requests[self._control_node] = publication
        n_replies = [int(request is not None) for request in requests]
        replies = self._exchanged(requests, n_replies)
        words = errors_in(replies[self._control_node])
        if words:
            self._check(words)

    def _exchanged(
        self, requests: Sequence[bytes | None], n_replies: Sequence[int]
    ) -> list[list[Reply]]:
        """Send and read on connections that are as they were: a lost one may mean a lost second.

        A node that comes back without its last writes closes the connection and says nothing else;
        on a new one its markers would be moved over the gap.
        """
        lines = self._lines()
        lines.send(requests)
        return lines.read(n_replies)

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

    # Set aside

    def _set_aside(self, parts: Sequence[Fetched], refusal: Refusal) -> None:
        fetched, i = _place_of(parts, refusal.index)
        topic, partition = fetched.partition
        payload = fetched.value(i)
        self._parts.letters.put(
            DeadLetter(
                topic=topic,
                topic_id=self._topic_ids[topic],
                partition=partition,
                offset=int(fetched.offsets[i]),
                arrival_ms=int(fetched.spans[i, 2]),
                reason=refusal.reason,
                detail=refusal.detail,
                length=len(payload),
                digest=digest_of(payload, self._parts.digest_key),
            )
        )

    def _look_up(
        self,
        batch: Batch,
        labels: Sequence[Fetched],
        upto: dict[Partition, tuple[int, int]],
        ranges: Sequence[Range],
    ) -> None:
        """Apply the labels that bring no payment, where the index knows theirs.

        One that it does not know yet holds its partition, until all payments that were in the log
        when it was read are applied; if it is unknown then, it is set aside.
        """
        found: list[Found] = []
        missing: dict[Partition, int] = {}
        places = [_place_of(labels, one.index) for one in batch.lookups]
        arrivals_ms = [int(fetched.spans[i, 2]) for fetched, i in places]
        looked_up = self._parts.lookups.find(batch.lookups, arrivals_ms)
        for (fetched, i), (lookup, known) in zip(places, looked_up, strict=True):
            offset = int(fetched.offsets[i])
            if known is not None:
                found.append(known)
            elif self._places[fetched.partition].is_final(offset):
                detail = "the payment of this fact is not in the label index"
                refusal = Refusal(True, lookup.index, UNKNOWN_TRANSACTION, detail)
                self._set_aside(labels, refusal)
                self.counts[refusal.reason] = self.counts.get(refusal.reason, 0) + 1
            else:
                missing.setdefault(fetched.partition, offset)
        for at, offset in missing.items():
            self._hold(at, offset)
            upto[at] = (offset, upto[at][1])
        nothing = _messages([])
        again = self._parts.batcher.build(nothing, nothing, self._clock.now_ms(), found)
        for one in again.far:
            refusal = Refusal(True, one.lookup.index, MALFORMED, FAR)
            self._set_aside(labels, refusal)
            self.counts[MALFORMED] = self.counts.get(MALFORMED, 0) + 1
        covered = tuple(one._replace(end=upto[one.partition][0]) for one in ranges)
        self._send(again, upto, covered)
        self._settle()

    def _hold(self, at: Partition, offset: int) -> None:
        """Read nothing of a partition of labels from `offset` on, until the payments are in."""
        topic = self._settings.kafka.transactions_topic
        payments = [(topic, number) for number in self._parts.reader.partitions(topic)]
        # Asked before the payments' ends: up to here all labels wait for the same payments.
        end = self._parts.reader.ends([at])[at]
        self._places[at].hold(offset, end, self._parts.reader.ends(payments))
        self._parts.reader.pause([at])
        self._parts.reader.seek(at, offset)

    def _release_held(self) -> None:
        held = {at: place for at, place in self._places.items() if place.is_held}
        if not held:
            return
        wanted = sorted({payment for place in held.values() for payment in place.waits_for})
        applied = self._parts.markers.lowest_offsets(self._lines(), wanted)
        for at, place in held.items():
            if place.release(applied):
                self._parts.reader.resume([at])

    # Heartbeats

    def _beat_if_due(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._beat_s < self._settings.redis.heartbeat_s or not self._places:
            return
        self._beat_s = now_s
        self._settle()
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
                place.skip_to(self._parts.reader.position(at))
            place.reach_end(end, passed_ms)
        self._note_rebuilt(at_ms)
        self._mark()
        self._release_held()
        self._compact()

    def _note_rebuilt(self, now_ms: int) -> None:
        markers = self._parts.markers
        if not markers.is_rebuilding:
            return
        notes = {at: place.note() for at, place in self._places.items() if place.is_rebuilt}
        applied = {at: place.applied for at, place in self._places.items()}
        if not markers.note_rebuilt(self._lines(), applied, notes, now_ms):
            raise _Lost("a node of Redis has lost its data again while it was rebuilt")
        for place in self._places.values() if not self._parts.markers.is_rebuilding else ():
            place.rebuilt_at = None

    def _mark(self) -> None:
        """Write markers and tell the followers, also where nothing came."""
        parts = self._parts
        upto = {at: (place.applied, place.arrival_ms) for at, place in self._places.items()}
        requests = [parts.markers.progress_command(node, upto) for node in range(parts.nodes.n)]
        replies = self._exchanged(requests, [1] * len(requests))
        for some in replies:
            words = errors_in(some)
            if words:
                self._check(words)
            self._check_marked(some[0])
        ranges = tuple(Range(at, to, to, arrival) for at, (to, arrival) in upto.items())
        self._tell(parts.publisher.command(ranges, self._clock.now_ms()))

    def _compact(self) -> None:
        """Compact some of the states that have doubled, unless there is much to read."""
        if not self._candidates or not self.is_caught_up:
            return
        some = [*self._candidates][:_COMPACTED_AT_ONCE]
        lines = self._parts.folding.lines()
        self._parts.compactor.compact(
            some, forget_below_ms=lines.forget_below_ms, fold_below_ms=lines.fold_below_ms
        )
        for candidate in some:
            del self._candidates[candidate]

    # Trouble

    def _begin_again(self, problem: Exception) -> None:
        """Forget what was not answered, wait, and begin where what is durable ends."""
        self._n_troubles += 1
        if self._n_troubles & (self._n_troubles - 1) == 0:
            logging.getLogger("freshscore").warning("%s", problem)
        self._sent = self._unpublished = None
        self._places.clear()
        self._parts.batcher.forget_expiries()
        self._give_back_lines()
        wait_s = _FIRST_WAIT_S * 2.0 ** min(self._n_troubles - 1, 10)
        self._stopping.wait(min(wait_s, _LONGEST_WAIT_S))

    def _lines(self) -> Lines:
        if self._borrowed is None:
            nodes = self._parts.nodes
            self._borrowed = nodes.borrow()
            self._parts.batcher.node_of_slot = nodes.node_of_slot
            self._control_node = nodes.node_of(CONTROL.encode())
        return self._borrowed

    def _give_back_lines(self) -> None:
        if self._borrowed is not None:
            self._parts.nodes.give_back(self._borrowed)
            self._borrowed = None


def _batches(fetched: Sequence[Fetched], most: int) -> Iterator[list[Fetched]]:
    """The messages in runs of at most `most`."""
    run: list[Fetched] = []
    room = most
    for one in fetched:
        first = 0
        while first < len(one):
            part = one.part(first, min(len(one), first + room))
            run.append(part)
            first += len(part)
            room -= len(part)
            if room == 0:
                yield run
                run, room = [], most
    if run:
        yield run


def _messages(parts: Sequence[Fetched]) -> Messages:
    if not parts:
        return Messages(np.zeros((0, 3), np.int64), None)
    return Messages(np.concatenate([one.spans for one in parts]), [one.held for one in parts])


def _place_of(parts: Sequence[Fetched], index: int) -> tuple[Fetched, int]:
    """Of the parts that were put behind each other, that with message `index`, and where in it."""
    begins = [0]
    for one in parts:
        begins.append(begins[-1] + len(one))
    number = bisect_right(begins, index) - 1
    return parts[number], index - begins[number]
