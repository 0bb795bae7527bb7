"""What a consumer has sent to the nodes of Redis, and what their answers make true.

One batch is under way at a time, its markers behind it. Where there is one node its publication
goes behind those, for a node works in the order of what it is sent; where there are several it goes
with the next batch, or in an exchange of its own, once all of them have answered. Connections are
kept for as long as all goes well: a node that comes back without its last writes closes them and
says nothing else, and on a new one its markers would be moved over the gap.
Rule: a batch counts as applied when every node has answered, as published when the stream has; who
reads of it on the stream finds it in Redis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from freshscore.config.clock import Clock
from freshscore.config.errors import Unavailable
from freshscore.features.redis_door import Nodes, Topology
from freshscore.features.redis_keys import CONTROL
from freshscore.features.redis_lines import MOVED_WORDS, Lines, Reply, ReplyError, errors_in
from freshscore.features.redis_reading import Wanted
from freshscore.invalidation.batches import Batch, Batcher
from freshscore.invalidation.node_markers import DataLost, NodeMarkers, refusal_of
from freshscore.invalidation.partitions import Partition, Place
from freshscore.invalidation.publishing import Publisher, Range
from freshscore.invalidation.stream_messages import replaced_group

# States that wait for compaction.
_MOST_CANDIDATES: Final = 65_536


class _Sent(NamedTuple):
    """A batch that is under way, and what holds once it is answered.

    upto: partition -> next offset and lowest arrival still to come. ranges: what it covers.
    n_numbers: for each node how many whole numbers it answers before its markers. is_told: whether
    its publication went with it. publishes: the batch before, if its publication went with it.
    """

    batch: Batch
    upto: Mapping[Partition, tuple[int, int]]
    ranges: tuple[Range, ...]
    n_numbers: list[int]
    is_told: bool
    publishes: _Sent | None


class UnderWay:
    """The writes of one consumer; of its thread, and `places` are its own, moved on here.

    All methods raise Unavailable, StoreFull, DataLost where a node has lost its data, and
    SettingsError where Redis refuses a command to its user.
    """

    def __init__(
        self,
        nodes: Nodes,
        batcher: Batcher,
        markers: NodeMarkers,
        publisher: Publisher,
        clock: Clock,
        places: Mapping[Partition, Place],
    ) -> None:
        self._nodes = nodes
        self._batcher = batcher
        self._markers = markers
        self._publisher = publisher
        self._clock = clock
        self._places = places
        self._sent: _Sent | None = None
        self._unpublished: _Sent | None = None
        self._borrowed: Lines | None = None
        self._topology: Topology = nodes.topology
        # States that have doubled: entity number and token.
        self.candidates: dict[Wanted, None] = {}

    @property
    def is_told(self) -> bool:
        """Whether all that was sent is published, or will be without anything more."""
        return self._unpublished is None and (self._sent is None or self._sent.is_told)

    def lines(self) -> Lines:
        """The connections, one to each node."""
        if self._borrowed is None:
            self._topology = self._nodes.topology
            self._borrowed = self._nodes.borrow()
            self._batcher.node_of_slot = self._topology.node_of_slot
        if self._nodes.topology is not self._topology:
            # Batches and markers are made for nodes by number: they are made again for the others.
            raise Unavailable("the nodes of Redis have moved")
        return self._borrowed

    def send(
        self, batch: Batch, upto: Mapping[Partition, tuple[int, int]], ranges: tuple[Range, ...]
    ) -> None:
        """Send a batch, its markers behind it, and the publication that may go with them.

        upto: how far it brings each partition, next offset and lowest arrival still to come, ms.
        """
        self._read_replies()
        lines = self.lines()
        publishes, self._unpublished = self._unpublished, None
        n_numbers = [*batch.n_replies]
        for node in range(lines.n):
            batch.add_command(node, self._markers.progress_command(node, upto))
        self._sent = _Sent(batch, upto, ranges, n_numbers, lines.n == 1, publishes)
        for one in (publishes, self._sent if self._sent.is_told else None):
            if one is not None:
                batch.add_command(self._control_node, self._publication(one))
        lines.send(batch.requests)

    def settle(self) -> None:
        """Have everything answered and published that was sent."""
        self._read_replies()
        sent, self._unpublished = self._unpublished, None
        if sent is not None:
            self._tell(self._publication(sent))
            self._published(sent)

    def mark(self) -> None:
        """Write markers and tell the followers, also where nothing came; all else is settled.

        What was passed without a message, as where a transaction ended, is covered by it.
        """
        upto = {at: (place.applied, place.arrival_ms) for at, place in self._places.items()}
        nodes = range(self.lines().n)
        requests = [self._markers.progress_command(node, upto) for node in nodes]
        for some in self._exchanged(requests, [1] * len(requests)):
            self._check(some)
            self._check_marked(some[0])
        ranges = tuple(
            Range(at, self._places[at].published, *reached) for at, reached in upto.items()
        )
        self._tell(self._publisher.command(ranges, self._clock.now_ms()))
        for at, (offset, _) in upto.items():
            self._places[at].published = offset

    def tell_replaced(self, states: Sequence[Wanted]) -> None:
        """Tell the followers that these states are others now, not by what was appended."""
        body = b"".join(replaced_group(*state) for state in states)
        self._tell(self._publisher.command((), self._clock.now_ms(), len(states), body))

    def forget(self) -> None:
        """Let go of what was not answered, and of the connections."""
        self._sent = self._unpublished = None
        self._batcher.forget_expiries()
        self.give_back()

    def give_back(self) -> None:
        """Let go of the connections."""
        if self._borrowed is not None:
            self._nodes.give_back(self._borrowed)
            self._borrowed = None

    def _read_replies(self) -> None:
        """Wait for what the nodes answer to the batch that is under way."""
        sent = self._sent
        if sent is None:
            return
        n_others = [n - k for n, k in zip(sent.batch.n_replies, sent.n_numbers, strict=True)]
        answers = self.lines().read_numbers(sent.n_numbers, n_others)
        self._check([reply for one in answers for reply in (*one.odd, *one.others)])
        for one in answers:
            self._check_marked(one.others[0])
        self._sent = None
        for at, (offset, _) in sent.upto.items():
            if at in self._places:
                self._places[at].applied = offset
        if sent.publishes is not None:
            self._published(sent.publishes)
        if sent.is_told:
            self._published(sent)
        else:
            self._unpublished = sent
        for node, one in enumerate(answers):
            for candidate in sent.batch.compaction_candidates(node, one.numbers.data):
                if len(self.candidates) < _MOST_CANDIDATES:
                    self.candidates[candidate] = None

    def _check(self, replies: Sequence[Reply]) -> None:
        """Raise for errors among replies."""
        words = errors_in(replies)
        if not words:
            return
        if words & MOVED_WORDS:
            self._nodes.refresh()
        if "NOSCRIPT" in words and self._borrowed is not None:
            # A new connection loads them; on this one they would be missing for ever.
            self._borrowed.close()
        raise refusal_of([one for one in replies if type(one) is ReplyError])

    def _check_marked(self, reply: Reply) -> None:
        """Raise where a node refused its markers, for it has no epoch, and was thought to have."""
        if reply == 0 and not self._markers.is_rebuilding:
            raise DataLost("a node of Redis has lost its data: it is rebuilt from the log")

    def _publication(self, sent: _Sent) -> bytes:
        batch, now_ms = sent.batch, self._clock.now_ms()
        return self._publisher.command(sent.ranges, now_ms, batch.n_groups, batch.body)

    def _published(self, sent: _Sent) -> None:
        for at, (offset, _) in sent.upto.items():
            if at in self._places:
                self._places[at].published = offset

    def _tell(self, publication: bytes) -> None:
        requests: list[bytes | None] = [None] * self.lines().n
        requests[self._control_node] = publication
        n_replies = [int(request is not None) for request in requests]
        self._check(self._exchanged(requests, n_replies)[self._control_node])

    def _exchanged(
        self, requests: Sequence[bytes | None], n_replies: Sequence[int]
    ) -> list[list[Reply]]:
        """Send and read on connections that are as they were."""
        lines = self.lines()
        lines.send(requests)
        return lines.read(n_replies)

    @property
    def _control_node(self) -> int:
        return self._topology.node_of(CONTROL.encode())
