"""How far each partition has got on its way through a consumer, and where it must be read from.

    read        handed to a batch
    applied     every node of Redis has answered that it holds it
    published   told on the invalidation stream; this is what is committed

Where to begin follows from what is durable, never from what a consumer remembers: the lowest of the
committed offset and of each node's marker, since replication and append-only files keep a prefix of
what a node was sent. A node without an epoch holds nothing that counts, so everything that the log
still has is read again, which changes nothing where it is there already. So is everything where
the log begins behind a marker: what lay between is gone from the log, and the node never had it.
Rule: a marker is written only for a partition that has been read without a gap from its begin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

Partition = tuple[str, int]

# What is read again of a partition: all that ever was in it, what came after a cut, or nothing.
WHOLE: Final = "whole"
CUT: Final = "cut"
EMPTY: Final = "empty"


@dataclass(frozen=True, slots=True)
class RebuiltNote:
    """What was read again of one partition, and when its oldest message arrived, ms."""

    kind: str
    first_arrival_ms: int


@dataclass(frozen=True, slots=True)
class NodeMarker:
    """What one node holds of one partition.

    has_epoch: whether the node has kept its data. offset: the next one, None where it has no marker
    of this partition; without an epoch, how far its rebuilding has got.
    """

    has_epoch: bool
    offset: int | None


@dataclass(slots=True)
class Place:
    """Where one partition stands; offsets are those of the next message.

    arrival_ms: the lowest arrival that can still come; 0 before anything is known of it. before_ms:
    that before the messages that were read last.
    rebuilt_at: where a rebuilding has read it again; None: nothing to rebuild. waits_for: while it
    is held, the offsets that partitions of payments must have been applied to.
    """

    read: int
    applied: int
    published: int
    committed: int
    rebuilt_at: int | None
    kind: str
    arrival_ms: int = 0
    before_ms: int = 0
    first_arrival_ms: int | None = None
    end: int = -1
    waits_for: Mapping[Partition, int] = field(default_factory=dict)
    is_held: bool = False
    waits_to: int = 0
    final_below: int = 0

    @classmethod
    def begun(cls, begin: int, first: int, end: int, *, rebuild: bool) -> Place:
        """A partition that is read from `begin` on, and has messages from `first` to `end`."""
        kind = EMPTY if first == end and first == 0 else CUT if first > 0 else WHOLE
        return cls(begin, begin, begin, begin, end if rebuild else None, kind)

    def see(self, first_ms: int, latest_ms: int) -> None:
        """Messages were read, the first and the latest of which arrived then."""
        if self.first_arrival_ms is None:
            self.first_arrival_ms = first_ms
        self.before_ms = self.arrival_ms
        self.arrival_ms = max(self.arrival_ms, latest_ms)

    def reach_end(self, end: int, passed_ms: int) -> None:
        """The partition ended at `end`; if that is applied, all that arrived by `passed_ms` is."""
        self.end = end
        if self.applied >= end:
            self.arrival_ms = max(self.arrival_ms, passed_ms)

    def skip_to(self, offset: int) -> None:
        """Go on at `offset`, up to which there is no message that was not applied and published.

        That it was passed is yet to be published, or followers would find a gap behind it.
        """
        if offset > self.read == self.applied == self.published:
            self.read = self.applied = offset

    @property
    def is_at_end(self) -> bool:
        """Whether all that there was when the end was last asked for is published."""
        return 0 <= self.end <= self.published

    @property
    def is_rebuilt(self) -> bool:
        """Whether everything was read again that there was when the rebuilding began."""
        return self.rebuilt_at is not None and self.applied >= self.rebuilt_at

    def note(self) -> RebuiltNote:
        """What a rebuilding is told of it."""
        if self.first_arrival_ms is None:
            # Of what was cut nothing is left: what is complete begins now.
            return RebuiltNote(self.kind if self.kind == EMPTY else CUT, self.arrival_ms)
        return RebuiltNote(self.kind, self.first_arrival_ms)

    def hold(
        self, offset: int, end: int, waits_for: Mapping[Partition, int], arrival_ms: int
    ) -> None:
        """Read nothing from `offset` on until payments are applied up to what it waits for.

        arrival_ms: the latest of the messages before `offset` that were read last, 0 for none; what
        came behind it is still to come. end: the partition's, asked for before those of the
        payments: what lies before it has then waited too, so that many labels without a payment are
        one wait.
        """
        self.read = offset
        self.arrival_ms = max(self.before_ms, arrival_ms)
        self.waits_to = end
        self.is_held = True
        self.waits_for = waits_for

    def release(self, applied: Mapping[Partition, int]) -> bool:
        """Read on if the payments are applied: what is unknown then stays so."""
        if any(applied[at] < offset for at, offset in self.waits_for.items()):
            return False
        self.is_held = False
        self.waits_for = {}
        self.final_below = max(self.waits_to, self.read + 1)
        return True

    def is_final(self, offset: int) -> bool:
        """Whether the message at `offset` has waited for its payment."""
        return offset < self.final_below


def is_cut_off(marker: NodeMarker, first: int) -> bool:
    """Whether a node lacks messages of a partition that are gone from the log.

    first: the oldest offset that the log still has. A node without an epoch that has applied
    nothing yet takes what there is: that what came before is missing is told when it is whole.
    """
    if marker.offset is None and not marker.has_epoch:
        return False
    return (marker.offset or 0) < first


def begin_of(committed: int | None, markers: Sequence[NodeMarker], first: int) -> tuple[int, bool]:
    """The offset to read a partition from, and whether a node has to be rebuilt.

    first: the oldest offset that the log still has; what lies before it is gone.
    """
    if any(not marker.has_epoch for marker in markers):
        return first, True
    offsets = [marker.offset for marker in markers]
    known = [offset for offset in offsets if offset is not None]
    # Without a commit nobody has said that what was refused up to the markers is set aside.
    if len(known) < len(offsets) or committed is None:
        return first, False
    return max(first, min(committed, *known)), False
