"""Past payments and facts from files into the shared states, while the stream runs.

Up to the cut-over, the instant from which the log is the source, the files are; what they have from
then on is left to the log. Nothing is folded meanwhile (invalidation/holding.py), and what is
folded already is refused, and said. Files go the way of messages: the same records, appended in
batches, told on the invalidation stream; so the end of it needs no pause, and doing it twice
changes nothing.
Cost: 4-6 us an event of two entities, most of it in Redis; 15-18 where each is of a new entity.
Rule: states are said to be complete since the files' begin only if nothing was refused, and if the
files reach the cut-over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from freshscore.config.clock import Clock
from freshscore.features import row as r
from freshscore.features.layout import SENDER_LIMIT_MS
from freshscore.features.packing import Packer
from freshscore.features.redis_store import RedisStore
from freshscore.features.table import FactTable, PaymentTable
from freshscore.features.table_rows import rows_of
from freshscore.invalidation import append_plan as p
from freshscore.invalidation.batch_sending import BatchSender
from freshscore.invalidation.completeness import Completeness
from freshscore.invalidation.holding import Hold
from freshscore.invalidation.past_states import TouchedStates, refuse_folded
from freshscore.invalidation.row_batches import RowBatcher

# Events of one batch: many of one entity become one append. Redis takes it in pieces of 16 KB, and
# answers others in between.
_ROWS_AT_ONCE: Final = 32_768

Rows = NDArray[np.uint64]


class BackfillParts(NamedTuple):
    """What a backfill is made of; each is its own from then on.

    reaches_to_ms: events before it are in no window any more.
    """

    store: RedisStore
    packer: Packer
    batcher: RowBatcher
    sender: BatchSender
    completeness: Completeness
    hold: Hold
    reaches_to_ms: int
    clock: Clock


class Ended(NamedTuple):
    """What a backfill came to.

    refused: entity -> states that were folded above their events. complete_since_ms: since when the
    states are complete now; was_complete_since_ms: before, the cut-over. n_states: that got events.
    """

    refused: dict[str, int]
    was_complete_since_ms: int
    complete_since_ms: int
    n_states: int


class SharedBackfill:
    """Loads tables, then ends; of one thread, inside its hold."""

    def __init__(self, parts: BackfillParts) -> None:
        self._parts = parts
        self.cut_over_ms = parts.completeness.since_ms
        self._spans_ms: list[tuple[int, int]] = []
        self._touched: list[TouchedStates] = []
        self._refused: Counter[str] = Counter()

    def load(self, table: PaymentTable) -> dict[str, int]:
        """Append all payments of a table, and its facts; outcome -> how many.

        The table is taken to be all that happened between its first and its last payment. Raises
        Unavailable, StoreFull; then it may be in part of the states, and loading it again is right.
        """
        parts = self._parts
        parts.hold.renew()
        is_past = table.time_ms < self.cut_over_ms
        is_reached = table.time_ms >= parts.reaches_to_ms
        kept = np.flatnonzero(is_past & is_reached)
        counts = Counter(
            {
                "left to the log": int(np.count_nonzero(~is_past)),
                "beyond reach": int(np.count_nonzero(is_past & ~is_reached)),
            }
        )
        rows = np.ascontiguousarray(rows_of(table, parts.packer)[kept])
        touched, refused = refuse_folded(parts.store, rows)
        self._touched += touched
        self._refused.update(refused)
        now_ms = parts.clock.now_ms()
        arrivals_ms = np.minimum(table.arrival_ms[kept], now_ms)
        for first, last in _chunks(len(rows)):
            parts.hold.renew()
            batch = parts.batcher.build_events(
                rows[first:last], arrivals_ms[first:last], parts.clock.now_ms()
            )
            counts.update(batch.counts)
            parts.sender.send(batch)
        counts.update(self._load_facts(table.facts.of(kept, len(table)), rows))
        parts.sender.settle()
        if len(kept):
            self._spans_ms.append((int(table.time_ms[kept].min()), int(table.time_ms.max())))
        return {outcome: count for outcome, count in counts.items() if count}

    def _load_facts(self, facts: FactTable, rows: Rows) -> Counter[str]:
        times_ms = np.ascontiguousarray(rows[facts.row, r.TIME // 8]).view(np.int64)
        near = np.flatnonzero(np.abs(facts.sender_ms - times_ms) < SENDER_LIMIT_MS)
        said = np.zeros((len(near), p.LABEL // 8), np.int64)
        bits = np.left_shift(1, facts.name[near].astype(np.int64))
        said[:, p.GIVEN // 8] = bits
        said[:, p.VALUES // 8] = np.where(facts.value[near], bits, 0)
        said[:, p.KNOWN // 8] = facts.known_at_ms[near]
        said[:, p.SENDER // 8] = facts.sender_ms[near]
        about = facts.row[near]
        for first, last in _chunks(len(near)):
            self._parts.hold.renew()
            batch = self._parts.batcher.build_facts(
                rows[about[first:last]], said[first:last], self._parts.clock.now_ms()
            )
            self._parts.sender.send(batch)
        return Counter({"fact accepted": len(near), "fact refused": len(facts) - len(near)})

    def end(self) -> Ended:
        """Look at all states once more, and move the begin of what is complete. Raises Unavailable.

        Compaction that had begun before the hold may have folded a state meanwhile: then its events
        are refused, as if they had come later.
        """
        n_states = 0
        for states in self._touched:
            n_states += len(states.tokens)
            n_folded = int(np.count_nonzero(states.lines(self._parts.store) > states.oldest_ms))
            if n_folded:
                self._refused[self._parts.store.program.entities[states.entity].name] += n_folded
        since_ms = self.cut_over_ms
        if not self._refused:
            since_ms = self._parts.completeness.reach_back(self._spans_ms)
        return Ended(dict(self._refused), self.cut_over_ms, since_ms, n_states)


def _chunks(n: int) -> Iterator[tuple[int, int]]:
    for first in range(0, n, _ROWS_AT_ONCE):
        yield first, min(n, first + _ROWS_AT_ONCE)
