"""Reading messages again at their positions in the log.

Rule: a message is found at its offset or it is not: what retention has removed is said to be gone,
and a topic that was made anew is another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from freshscore.config.clock import Clock
from freshscore.config.errors import Unavailable
from freshscore.invalidation.kafka_batches import Fetched
from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.partitions import Partition

_WAIT_MS: Final = 500


@dataclass(frozen=True, slots=True)
class Original:
    """One message at its offset; is_there: whether the log still has it. value: None: without."""

    offset: int
    is_there: bool
    value: bytes | None = None
    arrival_ms: int = 0


class Originals:
    """Reads positions of topics; of one thread, and the reader is its own.

    limit_s: how long nothing may come. Raises Unavailable.
    """

    def __init__(
        self, reader: LogReader, topics: Iterable[str], limit_s: float, clock: Clock
    ) -> None:
        self._reader = reader
        self._limit_s = limit_s
        self._clock = clock
        # Before anything is assigned: from then on the client forgets the other topics.
        places = [(topic, number) for topic in topics for number in reader.partitions(topic)]
        self._first, self._ends = reader.beginnings(places), reader.ends(places)

    def read(self, at: Partition, offsets: Sequence[int]) -> Iterator[Original]:
        """The messages at these offsets, ascending. Raises Unavailable."""
        first, end = self._first.get(at, 0), self._ends.get(at, 0)
        wanted = [offset for offset in offsets if first <= offset < end]
        yield from (Original(one, False) for one in offsets if not first <= one < end)
        self._reader.assign([at])
        while wanted:
            fetched = self._fetched_from(at, wanted[0])
            held = dict(zip(fetched.offsets.tolist(), range(len(fetched)), strict=True))
            passed = [one for one in wanted if one < fetched.next_offset]
            wanted = wanted[len(passed) :]
            for offset in passed:
                if offset in held:
                    yield _original(fetched, held[offset], offset)
                else:
                    # Compacted away, or the retention was quicker.
                    yield Original(offset, False)

    def _fetched_from(self, at: Partition, offset: int) -> Fetched:
        """Messages of which the first is at or behind `offset`, or contains it."""
        self._reader.seek(at, offset)
        begun_s = self._clock.monotonic_s()
        while self._clock.monotonic_s() - begun_s <= self._limit_s:
            for fetched in self._reader.poll(_WAIT_MS):
                if fetched.partition == at and fetched.next_offset > offset:
                    return fetched
        raise Unavailable(
            f"offset {offset} of topic {at[0]} partition {at[1]} did not come within"
            f" {self._limit_s:g} s"
        )


def _original(fetched: Fetched, i: int, offset: int) -> Original:
    is_empty = int(fetched.spans[i, 0]) == 0
    value = None if is_empty else fetched.value(i)
    return Original(offset, True, value, int(fetched.spans[i, 2]))
