"""The records that the log gives to some states: what a consumer would have appended to them.

One pass over the payments, then one over the labels, so that a label finds its payment whatever
partition it is in; everything that is not of these states is dropped at once.
Rule: messages are read and accepted as a consumer does it, by the same batcher; what is set aside
in the dead letters is left out here too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from freshscore.config.clock import Clock
from freshscore.config.errors import Unavailable
from freshscore.features.layout import EVENT, TIME
from freshscore.features.redis_reading import Wanted
from freshscore.features.state_layout import StateLayout
from freshscore.invalidation.batch import Batch, Found, Lookup
from freshscore.invalidation.batches import Batcher, Messages
from freshscore.invalidation.kafka_batches import Fetched
from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.partitions import Partition
from freshscore.invalidation.stream_messages import StreamMessage, decode, encode

if TYPE_CHECKING:
    from freshscore.invalidation.set_aside import SetAside

_WAIT_MS: Final = 500
_NOBODY: Final = bytes(8)
_LOW_64: Final = 2**64 - 1


class Stretch(NamedTuple):
    """What is read of a partition: from `first`, up to the marker, and on to `end`."""

    at: Partition
    first: int
    marker: int
    end: int


class LogBatches:
    """The batches that a consumer would make of stretches of the log; of one thread.

    refused: what is set aside of the log. limit_s: how long nothing may come.
    Afterwards `first_arrivals_ms` says when the first message of each partition arrived.
    """

    def __init__(
        self,
        reader: LogReader,
        batcher: Batcher,
        refused: SetAside,
        limit_s: float,
        clock: Clock,
    ) -> None:
        self._reader = reader
        self._batcher = batcher
        self._refused = refused
        self._limit_s = limit_s
        self._clock = clock
        self.first_arrivals_ms: dict[Partition, int] = {}
        self.n_messages = 0

    def of(self, stretch: Stretch, is_labels: bool) -> Iterator[tuple[Batch, bool]]:
        """The batches of a stretch, each with whether it lies before the marker.

        Labels that came too early for their payments are told as if they lay behind it.
        Raises Unavailable.
        """
        for fetched in self._fetched(stretch):
            behind = int(np.searchsorted(fetched.offsets, stretch.marker))
            end = int(np.searchsorted(fetched.offsets, stretch.end))
            before = fetched.part(0, behind)
            for batch in self._batches(before, self._accepted(before), is_labels):
                yield batch, True
            for batch in self._batches(before, self._too_early(before), is_labels):
                yield batch, False
            after = fetched.part(behind, end)
            for batch in self._batches(after, self._accepted(after), is_labels):
                yield batch, False

    def of_labels(self, found: Sequence[Found]) -> Batch:
        """The batch of labels whose payments were looked up."""
        nothing = Messages.of([], [])
        return self._batcher.build(nothing, nothing, self._clock.now_ms(), found)

    def _fetched(self, stretch: Stretch) -> Iterator[Fetched]:
        """The messages of a stretch, and perhaps some behind it."""
        if stretch.first >= stretch.end:
            return
        self._reader.assign([stretch.at])
        self._reader.seek(stretch.at, stretch.first)
        read, heard_s = stretch.first, self._clock.monotonic_s()
        while read < stretch.end:
            for fetched in self._reader.poll(_WAIT_MS):
                if not len(fetched):
                    continue
                heard_s, read = self._clock.monotonic_s(), fetched.next_offset
                self.first_arrivals_ms.setdefault(stretch.at, int(fetched.spans[0, 2]))
                yield fetched
            if self._clock.monotonic_s() - heard_s > self._limit_s:
                raise Unavailable(
                    f"nothing came of topic {stretch.at[0]} partition {stretch.at[1]} for"
                    f" {self._limit_s:g} s"
                )

    def _accepted(self, fetched: Fetched) -> NDArray[np.int64]:
        """The spans of the messages that were not refused; all are counted."""
        self.n_messages += len(fetched)
        gone = self._refused.offsets.get(fetched.partition)
        return fetched.spans if gone is None else fetched.spans[~np.isin(fetched.offsets, gone)]

    def _too_early(self, fetched: Fetched) -> NDArray[np.int64]:
        early = self._refused.too_early.get(fetched.partition)
        return (
            fetched.spans[:0] if early is None else fetched.spans[np.isin(fetched.offsets, early)]
        )

    def _batches(
        self, fetched: Fetched, spans: NDArray[np.int64], is_labels: bool
    ) -> Iterator[Batch]:
        most, nothing = self._batcher.limits.max_messages, Messages.of([], [])
        for first in range(0, len(spans), most):
            messages = Messages(np.ascontiguousarray(spans[first : first + most]), fetched.held)
            pair = (nothing, messages) if is_labels else (messages, nothing)
            yield self._batcher.build(*pair, self._clock.now_ms())


class LogRecords:
    """The records that the log gives to the states in `wanted`.

    applied: the stored records of each state from before the markers. more: those from behind them.
    erased_below_ms, erased_later_ms: state -> before when everything was ordered to be erased, by a
    message before the markers, or behind them.
    """

    def __init__(
        self, batches: LogBatches, layouts: Sequence[StateLayout], wanted: Sequence[Wanted]
    ) -> None:
        self._batches = batches
        self._layouts = layouts
        self.applied: dict[Wanted, bytearray] = {one: bytearray() for one in wanted}
        self.more: dict[Wanted, bytearray] = {one: bytearray() for one in wanted}
        self.erased_below_ms: dict[Wanted, int] = {}
        self.erased_later_ms: dict[Wanted, int] = {}
        lows = [int.from_bytes(token[:8], "little", signed=True) for _, token in wanted]
        self._lows = np.array(lows, np.int64)
        # Identity -> time, and of each entity the token where it is wanted, else zeros.
        self._payments: dict[int, tuple[int, bytearray]] = {}

    def read(self, stretches: Sequence[Stretch], labels_topic: str) -> None:
        """Read them all, labels last. Raises Unavailable."""
        for stretch in sorted(stretches, key=lambda one: one.at[0] == labels_topic):
            for batch, is_applied in self._batches.of(stretch, stretch.at[0] == labels_topic):
                into = self.applied if is_applied else self.more
                self._keep(batch, into)
                lines = self.erased_below_ms if is_applied else self.erased_later_ms
                for one in batch.erasures:
                    lines |= {at: max(lines.get(at, 0), one.below_ms) for at in one.states}
                found = [one for one in map(self._looked_up, batch.lookups) if one is not None]
                if found:
                    self._keep(self._batches.of_labels(found), into)

    def _keep(self, batch: Batch, into: dict[Wanted, bytearray]) -> None:
        entry = _groups(batch, self._layouts)
        for at in np.flatnonzero(np.isin(entry.groups[:, 1], self._lows)).tolist():
            entity, _, _, count, begin = entry.groups[at].tolist()
            one = entity, entry.token(at)
            if one in into:
                width = self._layouts[entity].width
                records = entry.data[begin : begin + count * width]
                into[one] += records
                self._note(one, np.frombuffer(records, np.int64).reshape(count, width // 8))

    def _note(self, one: Wanted, records: NDArray[np.int64]) -> None:
        """Note whose payments these are, for labels that bring only an id."""
        entity, token = one
        events = records[records[:, TIME // 8] >> 14 & 3 == EVENT]
        for identity, time in events[:, :2].tolist():
            room = bytearray(16 * len(self._layouts))
            _, tokens = self._payments.setdefault(identity & _LOW_64, (time >> 16, room))
            tokens[16 * entity : 16 * entity + 16] = token

    def _looked_up(self, lookup: Lookup) -> Found | None:
        known = self._payments.get(lookup.identity)
        return None if known is None else Found(lookup, known[0], bytes(known[1]))


def named_in(
    batches: LogBatches, layouts: Sequence[StateLayout], stretches: Sequence[Stretch]
) -> Iterator[Wanted]:
    """The states that payments in these stretches go into. Raises Unavailable."""
    for stretch in stretches:
        for batch, _ in batches.of(stretch, is_labels=False):
            entry = _groups(batch, layouts)
            for at, entity in enumerate(entry.groups[:, 0].tolist()):
                yield entity, entry.token(at)


def _groups(batch: Batch, layouts: Sequence[StateLayout]) -> StreamMessage:
    """The groups of a batch, as a follower of the invalidation stream gets them."""
    return decode(encode(layouts, _NOBODY, 0, 0, (), batch.n_groups, batch.body), layouts)
