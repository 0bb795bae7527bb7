"""Bringing back what was refused, once the cause is mended: from the log, at the same positions.

A letter's message goes the way of every message, with the arrival that it always had: what the
settings, the column map or the decode callable now make of it decides. Applied, a second letter
says that it was brought back; refused again, it stays as it is, under the reason that it has now.
Rule: what would not count is not called applied: an event below what its states have folded stays
set aside. A conflict was applied when it came, and is never sent again. Memory has a limit: so many
messages and bytes at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Final, NamedTuple

import msgspec

from freshscore.config.clock import Clock
from freshscore.features.record_making import RecordMaker, time_of
from freshscore.features.redis_reading import Wanted
from freshscore.features.redis_store import RedisStore
from freshscore.invalidation.batch import Batch, Found
from freshscore.invalidation.batch_sending import BatchSender
from freshscore.invalidation.batches import Batcher, Messages
from freshscore.invalidation.dead_letters import (
    DeadLetter,
    DeadLetters,
    digest_of,
)
from freshscore.invalidation.holding import Hold
from freshscore.invalidation.label_lookups import LabelLookups
from freshscore.invalidation.message_reading import FAR, MessageReader
from freshscore.invalidation.messages import (
    CONFLICT,
    MALFORMED,
    UNKNOWN_TRANSACTION,
    MessageRefused,
)
from freshscore.invalidation.originals import Original, Originals
from freshscore.invalidation.state_lines import lines_of

# What came of a letter, beside "still refused: REASON".
BROUGHT_BACK: Final = "brought back"
APPLIED_BEFORE: Final = "conflict: applied when it came"
IN_CONFLICT: Final = "applied, in conflict with another content"
REMOVED: Final = "removed by the retention of its topic"
OTHER_TOPIC: Final = "of a topic that was made anew since"
OTHER_DIGEST: Final = "its digest is of another secret, or of another message"
FOLDED: Final = "below what its states have folded or forgotten"
# What may stay as it is without anything being wrong.
SETTLED: Final = frozenset({BROUGHT_BACK, APPLIED_BEFORE, IN_CONFLICT})

_MOST_BYTES: Final = 16 << 20


class ResendParts(NamedTuple):
    """What a resend is made of; each is its own from then on.

    topic_ids: name -> id of the topics that are read. digest_key: of the digests in letters.
    """

    originals: Originals
    batcher: Batcher
    reader: MessageReader
    sender: BatchSender
    store: RedisStore
    lookups: LabelLookups
    letters: DeadLetters
    hold: Hold
    topic_ids: Mapping[str, str]
    labels_topic: str
    digest_key: bytes
    clock: Clock


class _Waiting(NamedTuple):
    """A letter with its message."""

    letter: DeadLetter
    original: Original


class Resending:
    """Sends letters again, and counts what came of them."""

    def __init__(self, parts: ResendParts) -> None:
        self._parts = parts
        self._maker: RecordMaker = parts.store.maker
        self.outcomes: Counter[str] = Counter()

    def resend(self, letters: Sequence[DeadLetter]) -> None:
        """Send these again. Raises Unavailable, StoreFull; what was brought back until then is."""
        waiting: list[_Waiting] = []
        n_bytes = 0
        for one in self._found(letters):
            waiting.append(one)
            n_bytes += len(one.original.value or b"")
            if len(waiting) >= self._parts.batcher.limits.max_messages or n_bytes >= _MOST_BYTES:
                self._send(waiting)
                waiting, n_bytes = [], 0
        self._send(waiting)

    def _found(self, letters: Sequence[DeadLetter]) -> Iterator[_Waiting]:
        """The letters whose messages are there."""
        resendable = []
        for letter in letters:
            if letter.reason == CONFLICT:
                self.outcomes[APPLIED_BEFORE] += 1
            elif self._parts.topic_ids.get(letter.topic) != letter.topic_id:
                self.outcomes[OTHER_TOPIC] += 1
            else:
                resendable.append(letter)
        # Payments first, for labels look for them.
        labels_topic = self._parts.labels_topic
        resendable.sort(key=lambda one: (one.topic == labels_topic, one.partition, one.offset))
        for at, some in groupby(resendable, key=lambda one: (one.topic, one.partition)):
            by_offset = {letter.offset: letter for letter in some}
            for original in self._parts.originals.read(at, [*by_offset]):
                letter = by_offset[original.offset]
                if not original.is_there:
                    self.outcomes[REMOVED] += 1
                elif digest_of(original.value or b"", self._parts.digest_key) != letter.digest:
                    self.outcomes[OTHER_DIGEST] += 1
                else:
                    yield _Waiting(letter, original)

    def _send(self, waiting: Sequence[_Waiting]) -> None:
        """Send some messages through the batcher, and write what came of each."""
        if not waiting:
            return
        parts = self._parts
        parts.hold.renew()
        touched = {id(one.letter): self._touched(one) for one in waiting}
        folded = self._below_lines(touched)
        rest = [one for one in waiting if id(one.letter) not in folded]
        payments = [one for one in rest if not self._is_label(one)]
        labels = [one for one in rest if self._is_label(one)]
        refused = self._applied(payments, labels)
        # What compaction began before the hold may have folded meanwhile.
        folded |= self._below_lines(touched)
        self._write(waiting, refused, folded)

    def _is_label(self, one: _Waiting) -> bool:
        return one.letter.topic == self._parts.labels_topic

    def _touched(self, one: _Waiting) -> tuple[int, list[Wanted]]:
        """When a payment was made, and the states that it is to go into; none of a label."""
        if self._is_label(one):
            return 0, []
        try:
            row = self._parts.reader.transaction(one.original.value)
        except MessageRefused:
            return 0, []
        tokens = enumerate(self._maker.tokens(row))
        return time_of(row), [(e, token) for e, token in tokens if token is not None]

    def _below_lines(self, touched: Mapping[int, tuple[int, list[Wanted]]]) -> set[int]:
        """Which of them lie below the line of one of their states."""
        wanted = [one for _, states in touched.values() for one in states]
        lines = iter(lines_of(self._parts.store, wanted).tolist())
        return {
            which
            for which, (time_ms, states) in touched.items()
            if time_ms < max(islice(lines, len(states)), default=0)
        }

    def _applied(
        self, payments: Sequence[_Waiting], labels: Sequence[_Waiting]
    ) -> dict[int, tuple[str, str]]:
        """Apply them; by letter the reason and detail of each that is refused."""
        parts = self._parts
        batch = parts.batcher.build(_messages(payments), _messages(labels), parts.clock.now_ms())
        refused = self._refused(batch, payments, labels)
        parts.sender.send(batch)
        parts.sender.settle()
        arrivals_ms = [labels[one.index].original.arrival_ms for one in batch.lookups]
        found: list[Found] = []
        for lookup, known in parts.lookups.find(batch.lookups, arrivals_ms):
            if known is None:
                detail = "the payment of this fact is not in the label index"
                refused[id(labels[lookup.index].letter)] = UNKNOWN_TRANSACTION, detail
            else:
                found.append(known)
        if found:
            nothing = Messages.of([], [])
            second = parts.batcher.build(nothing, nothing, parts.clock.now_ms(), found)
            for far in second.far:
                refused[id(labels[far.lookup.index].letter)] = MALFORMED, FAR
            parts.sender.send(second)
            parts.sender.settle()
        return refused

    def _refused(
        self, batch: Batch, payments: Sequence[_Waiting], labels: Sequence[_Waiting]
    ) -> dict[int, tuple[str, str]]:
        return {
            id((labels if one.is_label else payments)[one.index].letter): (one.reason, one.detail)
            for one in batch.refused
        }

    def _write(
        self,
        waiting: Sequence[_Waiting],
        refused: Mapping[int, tuple[str, str]],
        folded: set[int],
    ) -> None:
        put: Callable[[DeadLetter], None] = self._parts.letters.put
        for one in waiting:
            letter = one.letter
            if id(letter) in folded:
                self.outcomes[FOLDED] += 1
            elif id(letter) not in refused:
                self.outcomes[BROUGHT_BACK] += 1
                put(msgspec.structs.replace(letter, brought_back=True))
            else:
                reason, detail = refused[id(letter)]
                is_applied = reason == CONFLICT
                self.outcomes[IN_CONFLICT if is_applied else f"still refused: {reason}"] += 1
                if reason != letter.reason:
                    put(msgspec.structs.replace(letter, reason=reason, detail=detail))
        self._parts.letters.settle()


def _messages(waiting: Sequence[_Waiting]) -> Messages:
    return Messages.of(
        [one.original.value for one in waiting], [one.original.arrival_ms for one in waiting]
    )
