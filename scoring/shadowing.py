"""The shadow: scores every payment of a topic beside the service that decides on it.

It is a group of readers of its own. Each payment is scored with the production scorer at the
instant at which it is read, and the decision goes to the log, marked with the message that it
answers. A payment's own event may be applied by then: it counts once all the same (law 8).
Offsets are committed once the decisions before them are acknowledged, so after any trouble some
messages are answered again, and both answers name the same message.
Of what a poll brings the first payment is scored alone and timed, as a service would ask for it;
the others are scored some at a time, with one exchange for all.
Limits: kafka.max_poll_records messages at a time, kafka.max_unsent_decisions without an answer of
the log; beyond that nothing is read until there is one. While a server is away nothing is lost and
nothing skipped: the shadow is behind, and says so.
Rule: nothing here is in a payment's path; nothing is observed, no state, score or lease is written.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

from freshscore.config.clock import Clock
from freshscore.config.errors import AsOfTooOld, BadTransaction, DeadlineExceeded, Unavailable
from freshscore.config.settings import KafkaSettings
from freshscore.features.transaction import Transaction
from freshscore.invalidation import messages as m
from freshscore.invalidation.delivery import Delivered
from freshscore.invalidation.fetched_runs import runs_of
from freshscore.invalidation.kafka_batches import Fetched
from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.message_reading import MessageReader
from freshscore.invalidation.messages import MessageRefused
from freshscore.invalidation.partitions import Partition
from freshscore.scoring.decisions import as_shadow
from freshscore.scoring.result import Result
from freshscore.scoring.shadow_counts import ShadowCounts
from freshscore.scoring.shared_scorer import SharedScorer

# One wait for the log's answers, so that being told to stop is noticed.
_ANSWER_S: Final = 0.5
# How long the end may wait for them.
_CLOSING_S: Final = 5.0
# Waits after trouble with a server: doubled each time, up to the last.
_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 2.0
_SET_ASIDE: Final = "set aside by the scorer"


class DecisionWriter(Protocol):
    """What takes decisions to the log (invalidation/kafka_writing.py)."""

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        *,
        done: Callable[[Delivered | None], None] | None = None,
    ) -> None:
        """Hand over a message; `done` is called with where it stands, None for never."""
        ...

    def flush(self, timeout_s: float) -> None:
        """Wait until all is acknowledged. Raises Unavailable."""
        ...

    def close(self, timeout_s: float) -> None:
        """Send what is left, for `timeout_s` at most."""
        ...


class SentDecisions:
    """Decisions on their way: how many the log has not answered, and whether it lost one."""

    def __init__(self, writer: DecisionWriter, topic: str) -> None:
        self._writer = writer
        self._topic = topic
        self._counting = threading.Lock()
        self.n_open = 0
        self.n_published = 0
        self.has_failed = False

    def send(self, record: bytes) -> None:
        """Hand over one. Raises Unavailable."""
        with self._counting:
            self.n_open += 1
        try:
            self._writer.send(self._topic, None, record, done=self._answered)
        except BaseException:
            with self._counting:
                self.n_open -= 1
            raise

    def wait(self, limit_s: float) -> bool:
        """Whether all are answered within `limit_s`."""
        with suppress(Unavailable):
            self._writer.flush(limit_s)
        return self.n_open == 0

    def close(self, limit_s: float) -> None:
        """Send what is left, for `limit_s` at most."""
        self._writer.close(limit_s)

    def _answered(self, at: Delivered | None) -> None:
        with self._counting:
            self.n_open -= 1
            self.n_published += at is not None
            self.has_failed |= at is None


class ShadowParts(NamedTuple):
    """What a shadow is made of; each is its own from then on.

    records: where the scorer puts the records of its decisions.
    """

    reader: LogReader
    messages: MessageReader
    scorer: SharedScorer
    records: deque[bytes]
    sent: SentDecisions
    clock: Clock


class Shadow:
    """Answers the partitions that its reader is given. Not for more than one thread, `stop` apart.

    A partition of which the group has committed nothing begins at its end: what came before is for
    `freshscore replay`.
    """

    def __init__(self, settings: KafkaSettings, parts: ShadowParts) -> None:
        self._settings = settings
        self._parts = parts
        self._clock = parts.clock
        # Of each partition the next offset to read.
        self._places: dict[Partition, int] = {}
        self._n_assignments = self._n_troubles = 0
        self._committed_s = self._clock.monotonic_s()
        self._newest_ms = 0
        # Messages of its partitions that are not read yet, as the last fetch told.
        self.n_behind = 0
        self._stopping = threading.Event()
        self.counts = ShadowCounts()

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping.is_set()

    @property
    def n_partitions(self) -> int:
        """How many partitions are read here."""
        return len(self._places)

    @property
    def behind_s(self) -> float:
        """How long ago the newest message that was read arrived; 0 where all are read."""
        if not self.n_behind:
            return 0.0
        return max(0.0, (self._clock.now_ms() - self._newest_ms) / 1_000.0)

    def stop(self) -> None:
        """Let the work end after its turn; from any thread."""
        self._stopping.set()
        # A poll that waits for partitions would wait for seconds.
        if not self._places:
            self._parts.reader.close()

    def close(self) -> None:
        """Wait for the log's answers, commit, and leave."""
        parts = self._parts
        try:
            if parts.sent.wait(_CLOSING_S):
                self._commit(wait=True)
        except Unavailable as problem:
            logging.getLogger("freshscore").warning("not committed at the end: %s", problem)
        parts.reader.close()
        parts.sent.close(_CLOSING_S)
        parts.scorer.close()
        self.counts.n_published = parts.sent.n_published

    def turn(self, wait_ms: int | None = None) -> int:
        """Read, score, publish; how many messages it brought."""
        try:
            if not self._settle_if_due():
                return 0
            found = self._poll(wait_ms)
            for run in runs_of(found, self._most_at_once):
                if not self._has_room(sum(map(len, run))):
                    return 0
                for fetched in run:
                    self._answer(fetched)
        except Unavailable as problem:
            self._begin_again(problem)
            return 0
        self._n_troubles = 0
        ends = {at: self._parts.reader.highwater(at) or 0 for at in self._places}
        self.n_behind = sum(max(0, ends[at] - read) for at, read in self._places.items())
        return sum(map(len, found))

    @property
    def _most_at_once(self) -> int:
        return min(self._settings.max_poll_records, self._settings.max_unsent_decisions)

    # From the log

    def _poll(self, wait_ms: int | None) -> list[Fetched]:
        """What came of the partitions that were begun with before this poll."""
        reader = self._parts.reader
        fetched = reader.poll(wait_ms)
        if reader.n_assignments != self._n_assignments:
            # Every position begins anew.
            self._places.clear()
            self._n_assignments = reader.n_assignments
        assigned = reader.assignment
        for gone in self._places.keys() - assigned:
            del self._places[gone]
        begun = [one for one in fetched if one.partition in self._places and len(one)]
        new = sorted(assigned - self._places.keys())
        if new:
            self._begin(new)
        return begun

    def _begin(self, partitions: Sequence[Partition]) -> None:
        reader = self._parts.reader
        ends = reader.ends(partitions)
        first = {}
        for at in partitions:
            committed = reader.committed(at)
            if committed is None:
                first[at] = ends[at]
            self._places[at] = ends[at] if committed is None else min(committed, ends[at])
            reader.seek(at, self._places[at])
        # So that what comes while nobody reads is read later.
        reader.commit(first)

    # Into decisions

    def _answer(self, fetched: Fetched) -> None:
        """Score the messages, and send what was decided of each."""
        parts, partition = self._parts, fetched.partition[1]
        # After trouble some of an answer's predecessors may be left.
        parts.records.clear()
        payments, offsets = self._read(fetched)
        for result, offset in zip(self._scored(payments), offsets, strict=True):
            if result is None or result.error is not None:
                self.counts.refuse(_SET_ASIDE)
                continue
            self.counts.answer(result)
            parts.sent.send(as_shadow(parts.records.popleft(), partition, offset))
        self.counts.n_messages += len(fetched)
        self._places[fetched.partition] = fetched.next_offset
        self._newest_ms = int(fetched.spans[-1, 2])

    def _read(self, fetched: Fetched) -> tuple[list[Transaction], list[int]]:
        """The payments in the messages, and where each stands; what cannot be read is counted."""
        parts, most = self._parts, self._settings.max_message_bytes
        packer = parts.scorer.packer
        payments, offsets = [], []
        for i, offset in enumerate(fetched.offsets.tolist()):
            value = fetched.value(i)
            try:
                if len(value) > most:
                    raise MessageRefused(m.OVERSIZED, f"{len(value)} bytes")
                payments.append(parts.messages.payment(value or None, packer))
            except MessageRefused as refused:
                # The consumers write its dead letter.
                self.counts.refuse(refused.reason)
            else:
                offsets.append(offset)
        return payments, offsets

    def _scored(self, payments: list[Transaction]) -> list[Result | None]:
        """The answer to each; None where there can be none. Raises Unavailable."""
        if not payments:
            return []
        scorer = self._parts.scorer
        started_s = self._clock.monotonic_s()
        try:
            first = scorer.score(payments[0])
        except (BadTransaction, AsOfTooOld, DeadlineExceeded):
            first = None
        else:
            self.counts.time(self._clock.monotonic_s() - started_s)
        return [first, *scorer.score_many(payments[1:])]

    # Back to the log

    def _has_room(self, n: int) -> bool:
        """Wait until the log has answered enough for `n` decisions more; False if told to stop."""
        sent = self._parts.sent
        while sent.n_open + n > self._settings.max_unsent_decisions:
            if self.is_stopping:
                return False
            sent.wait(_ANSWER_S)
        return True

    def _settle_if_due(self) -> bool:
        """Now and then: commit, once the log has answered; False while it has not."""
        now_s = self._clock.monotonic_s()
        if now_s - self._committed_s < self._settings.commit_every_s:
            return True
        if not self._parts.sent.wait(_ANSWER_S):
            return False
        self._committed_s = now_s
        self._commit(wait=False)
        return True

    def _commit(self, *, wait: bool) -> None:
        """Commit what is answered: all that was read. Raises Unavailable where a decision is lost.

        What was committed before is committed again: a commit may be lost.
        """
        sent = self._parts.sent
        self.counts.n_published = sent.n_published
        if sent.has_failed:
            sent.has_failed = False
            raise Unavailable("decisions did not reach the log; they are made again")
        self._parts.reader.commit(self._places, wait=wait)

    # Trouble

    def _begin_again(self, problem: Exception) -> None:
        """Wait, and begin at what is committed."""
        self._n_troubles += 1
        if self._n_troubles & (self._n_troubles - 1) == 0 and not self.is_stopping:
            logging.getLogger("freshscore").warning("%s", problem)
        self._places.clear()
        wait_s = _FIRST_WAIT_S * 2.0 ** min(self._n_troubles - 1, 10)
        self._stopping.wait(min(wait_s, _LONGEST_WAIT_S))
