"""The rows of a table whose states are in Redis: fetched some at a time, scored one by one.

Rule: what is kept of the rows is bounded, so a row whose turn comes again is fetched again. A score
that another process computed is looked for before the model is called. A row whose states cannot be
had is answered from what is known here (scoring/known_answers.py), or by itself has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from freshscore.config.errors import Unavailable
from freshscore.features.row import TIME
from freshscore.scoring import cache_layout as c
from freshscore.scoring.exchanges import Fetched, tokens_of
from freshscore.scoring.known_answers import KnownAnswers
from freshscore.scoring.leases import CacheRight
from freshscore.scoring.request_states import PARTLY, RequestStates
from freshscore.scoring.result import UNAVAILABLE
from freshscore.scoring.seats import Seat
from freshscore.scoring.serving import Serving

if TYPE_CHECKING:
    from freshscore.scoring.remote_lookup import RemoteLookup

# Rows of one exchange: their states fit into what a socket and a cache take.
ROWS_AT_ONCE: Final = 128


class TableStates:
    """States for the rows of one table, in one seat (scoring/batch.py asks).

    now_ms: the instant at which rows are scored for which none is given. problem: why a row had no
    answer, if one had none.
    """

    def __init__(
        self,
        serving: Serving,
        seat: Seat,
        states: RequestStates,
        remote: RemoteLookup | None,
        right: CacheRight,
        known: KnownAnswers,
        now_ms: int,
    ) -> None:
        self._serving = serving
        self._seat = seat
        self._states = states
        self._remote = remote
        self._right = right
        self._known = known
        self._now_ms = now_ms
        # What is invalidated from here on makes a score of this table too old for others.
        self._generation = right.generation()
        self._first = 0
        self._fetched: list[Fetched] = []
        self.context_at = seat.context_at
        self.problem: Unavailable | None = None

    def instant(self, row: NDArray[np.uint64], as_of_ms: int) -> int:
        """When the row that was taken is scored: at `as_of_ms`, or now.

        That is never before its own time, or before what its states have folded.
        """
        return as_of_ms or max(
            self._now_ms, int(row[TIME // 8]), self._seat.store.summarised_below_ms
        )

    def take(
        self, rows: NDArray[np.uint64], number: int, as_of_ms: int, out: NDArray[np.uint8]
    ) -> int | None:
        """Put the states of row `number` into the seat; else the row's status, and its answer."""
        # Kept, for the seat points into it.
        self._row: bytes = rows[number].tobytes()
        fetched: Fetched | None = None
        try:
            fetched = self._fetched_of(rows, number)
            if not fetched.missing:
                self._of_row = fetched
                self._states.take(self._seat, self._row, fetched)
                self._seat.set_out(self._right.is_cache_off())
                return None
            self._states.check_key(self._seat, fetched, None)
            problem = Unavailable(PARTLY)
        except Unavailable as caught:
            problem, fetched = caught, None
        at_ms = as_of_ms or max(self._now_ms, int(rows[number][TIME // 8]))
        is_now = as_of_ms == 0
        answer = self._known.answer(
            self._serving, self._row, at_ms, self._seat, fetched, is_now=is_now
        )
        if answer is None:
            self._known.note_unanswered()
            self.problem = problem
            return UNAVAILABLE
        if answer.out:
            out[:] = np.frombuffer(answer.out, np.uint8)
        return answer.status

    def _fetched_of(self, rows: NDArray[np.uint64], number: int) -> Fetched:
        if not self._first <= number < self._first + len(self._fetched):
            some = [row.tobytes() for row in rows[number : number + ROWS_AT_ONCE]]
            self._fetched = self._states.fetch_all(self._seat, some)
            self._first = number
        return self._fetched[number - self._first]

    def is_found(self, out: NDArray[np.uint8]) -> bool:
        """Whether another process has computed the score of the row that was taken; fills `out`."""
        remote = self._remote
        if remote is None or self._right.is_cache_off():
            return False
        told = remote.answered(
            self.context_at,
            self._serving,
            self._row,
            out.tobytes(),
            self._of_row,
            self._right.generation(),
        )
        if told[c.OUT_MODE] != c.FOUND:
            return False
        out[:] = np.frombuffer(told, np.uint8)
        return True

    def computed(self, out: NDArray[np.uint8]) -> None:
        """Keep the score in `out`, of the row that was taken, for other processes."""
        if self._remote is not None:
            token = tokens_of(self._row, 1)[0]
            self._remote.offer_of_many(token, out.tobytes(), self._generation)
