"""How far a follower of the invalidation stream is in step: pure bookkeeping, told the time.

Of each partition it keeps up to which offset messages have covered it, the lowest arrival that is
still to come, and when it was last heard. A message that begins beyond what is covered shows a gap:
a batch that was applied and never published, or a message that was lost. A sender's numbers show
the same for batches that cover no offsets, those of backfills.
Partitions are those that the nodes' summaries name. One that appears later is covered from offset 0
on, so that nothing of it can be missed; it is out of step until it is heard.
Rule: an instant at which something was heard is never later than the instant at which it was sent.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from freshscore.features.redis_progress import Marker
from freshscore.invalidation.stream_messages import Covered, StreamMessage

# Topic digest, partition, offset, arrival: the words of a marker.
_DIGEST: Final = 0
_PARTITION: Final = 1
_OFFSET: Final = 2
_ARRIVAL: Final = 3
_WORDS: Final = 4
# Covered up to nowhere: whatever comes first is taken.
_ANY: Final = -1
_NEVER_S: Final = float("-inf")
# Senders whose numbers are remembered; a consumer that begins anew is another one.
_MOST_SENDERS: Final = 256


class Step:
    """What is known of each partition; of one thread.

    known: int64[n, 4], a marker's words for each partition, in the order of the summaries. It is
    kept up to date in place, until `expect` replaces it.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Know nothing: what is heard first of each partition is taken as it comes."""
        self.known: NDArray[np.int64] = np.zeros((0, _WORDS), np.int64)
        self._heard_s = np.zeros(0)
        self._numbers: dict[tuple[int, int], int] = {}
        self._senders: OrderedDict[bytes, int] = OrderedDict()
        self._is_first = True

    def expect(self, markers: Sequence[Marker]) -> bool:
        """From now on these are all partitions; whether they have changed.

        Of the first ones the arrivals hold until they are heard, for states are fetched after that.
        """
        names = [(_word(one.topic), one.partition) for one in markers]
        if names == list(self._numbers):
            return False
        known = np.zeros((len(names), _WORDS), np.int64)
        heard_s = np.full(len(names), _NEVER_S)
        for number, name in enumerate(names):
            before = self._numbers.get(name)
            if before is None:
                known[number] = (*name, *self._begin_of(markers[number]))
            else:
                known[number] = self.known[before]
                heard_s[number] = self._heard_s[before]
        self.known, self._heard_s = known, heard_s
        self._numbers = {name: number for number, name in enumerate(names)}
        self._is_first = False
        return True

    def _begin_of(self, marker: Marker) -> tuple[int, int]:
        """Offset and arrival from which a partition is followed."""
        return (_ANY, marker.arrival_ms) if self._is_first else (0, 0)

    @property
    def is_whole(self) -> bool:
        """Whether all partitions are known, and each was heard."""
        return bool(len(self._heard_s)) and self.oldest_heard_s > _NEVER_S

    @property
    def oldest_heard_s(self) -> float:
        """When the partition was heard that was silent for longest; -inf for one never heard."""
        return float(self._heard_s.min()) if len(self._heard_s) else _NEVER_S

    @property
    def watermark_ms(self) -> int:
        """The lowest arrival that may still come, of all partitions; 0 where that is not known."""
        return int(self.known[:, _ARRIVAL].min()) if self.is_whole else 0

    def shows_gap(self, message: StreamMessage) -> bool:
        """Whether something was published, or should have been, before `message`, and not heard."""
        expected = self._senders.get(message.sender)
        if expected is not None and message.sequence > expected:
            return True
        return any(self._is_beyond(one) for one in message.covered)

    def hear(self, message: StreamMessage, heard_s: float) -> None:
        """Take a message that was applied; heard_s: before it was sent, on the monotonic clock."""
        following = max(message.sequence + 1, self._senders.pop(message.sender, 0))
        self._senders[message.sender] = following
        if len(self._senders) > _MOST_SENDERS:
            self._senders.popitem(last=False)
        for one in message.covered:
            number = self._number(one)
            if number is not None:
                words = self.known[number]
                if words[_OFFSET] == _ANY:
                    # What nodes said of it until now they may have lost since.
                    words[_ARRIVAL] = one.arrival_ms
                words[_OFFSET] = max(int(words[_OFFSET]), one.to_offset)
                words[_ARRIVAL] = max(int(words[_ARRIVAL]), one.arrival_ms)
                self._heard_s[number] = max(self._heard_s[number], heard_s)

    def _is_beyond(self, one: Covered) -> bool:
        number = self._number(one)
        if number is None:
            return False
        offset = int(self.known[number, _OFFSET])
        return offset != _ANY and one.from_offset > offset

    def _number(self, one: Covered) -> int | None:
        return self._numbers.get((_word(one.topic), one.partition))


def _word(topic: bytes) -> int:
    return int.from_bytes(topic, "little", signed=True)
