"""Batches of rows that are there already: what a backfill makes of a file, instead of messages.

Rule: the records are those that a consumer would append for the same payments and arrivals, since
the same kernels make them.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from freshscore.invalidation import append_kernels as k
from freshscore.invalidation import append_plan as p
from freshscore.invalidation.batch import Batch
from freshscore.invalidation.batches import Batcher

# Outcomes of events, by status.
_OUTCOMES: Final = {
    k.APPLIED: "accepted",
    k.CONFLICT: "conflict",
    k.LATE: "late",
    k.EARLY: "early",
}


class RowBatcher(Batcher):
    """Makes batches of rows; of one thread, and its buffers are re-used as a batcher's are."""

    def build_events(
        self, rows: NDArray[np.uint64], arrivals_ms: NDArray[np.int64], now_ms: int
    ) -> Batch:
        """The batch of the events in `rows`, (n, words of a row), which arrived then."""
        return self._built(rows, arrivals_ms, np.zeros((0, p.LABEL // 8), np.int64), now_ms)

    def build_facts(self, rows: NDArray[np.uint64], said: NDArray[np.int64], now_ms: int) -> Batch:
        """The batch of facts of the payments in `rows`; said: (n, words of a label)."""
        return self._built(rows, np.zeros(0, np.int64), said, now_ms)

    def _built(
        self,
        rows: NDArray[np.uint64],
        arrivals_ms: NDArray[np.int64],
        said: NDArray[np.int64],
        now_ms: int,
    ) -> Batch:
        n, n_events = len(rows), len(arrivals_ms)
        inputs = np.zeros((n, 3), np.int64)
        inputs[:n_events, 2] = arrivals_ms
        buffers = self._turns[0]
        self._turns.append(self._turns.pop(0))
        words = self._words(n_events, inputs, said, now_ms)
        # What lies behind a row's hashes no state keeps.
        self._rows[:n] = rows[:, : self._row_words]
        self._statuses[:n] = k.READ
        self._fill(words, buffers)
        batch = Batch(self._plan, self._append, words, buffers)
        statuses = np.bincount(self._statuses[:n_events], minlength=max(_OUTCOMES) + 1).tolist()
        batch.counts = {name: statuses[at] for at, name in _OUTCOMES.items() if statuses[at]}
        batch.route(self.node_of_slot)
        return batch
