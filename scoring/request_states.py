"""What an exchange with Redis leaves in a seat: states that are checked, mended, and united.

What is missing of them is said (bits of features/tables.py), and what is pending here is counted
with them (scoring/pending.py), so that the seat holds what the answer is about.
Rule: a seat has drawn its ticket before its exchange is sent. Nothing waits beyond the request's
own limit.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from freshscore.config.clock import Clock
from freshscore.config.errors import DamagedState, Unavailable
from freshscore.features import tables as t
from freshscore.scoring.exchanges import Exchanges, Fetched, tokens_of

if TYPE_CHECKING:
    from freshscore.scoring.key_checking import KeyCheck
    from freshscore.scoring.pending import PendingEvents
    from freshscore.scoring.remote_lookup import RemoteLookup
    from freshscore.scoring.seats import Seat


class RequestStates:
    """The way from exchanges into seats, for many threads.

    remote: brings candidate scores too, or None. limit_s: of one exchange.
    """

    def __init__(
        self,
        exchanges: Exchanges,
        remote: RemoteLookup | None,
        pending: PendingEvents,
        key_check: KeyCheck,
        clock: Clock,
        limit_s: float,
    ) -> None:
        self._exchanges = exchanges
        self._remote = remote
        self._pending = pending
        self._key_check = key_check
        self._clock = clock
        self.limit_s = limit_s
        # Counts in one step under the interpreter's lock.
        self.next_exchange: Callable[[], int] = itertools.count(1).__next__
        self.n_exchanges = 0
        self.watermark_ms = 0
        self._counting = threading.Lock()
        self._n = dict.fromkeys(("mended", "damaged"), 0)

    @property
    def counts(self) -> dict[str, int]:
        """How many states were read again with what was folded of them, and how many damaged."""
        with self._counting:
            return dict(self._n)

    def left_s(self, ends_s: float | None) -> float:
        """What an exchange may take that must end at `ends_s`. Raises Unavailable for nothing."""
        if ends_s is None:
            return self.limit_s
        left_s = ends_s - self._clock.monotonic_s()
        if left_s <= 0.0:
            raise Unavailable("no time is left to ask Redis")
        return min(self.limit_s, left_s)

    def fetch_all(self, seat: Seat, rows: Sequence[bytes]) -> list[Fetched]:
        """States of several rows, and candidates for their scores, in one exchange."""
        seat.ticket = self._pending.ticket()
        remote = self._remote
        if remote is None:
            fetched = self._exchanges.fetch_all(seat.desk, rows, self.limit_s)
        else:
            fetched = remote.fetch_all(self._exchanges, seat.desk, rows, self.limit_s)
        self.n_exchanges = self.next_exchange()
        return fetched

    def take(
        self, seat: Seat, row: bytes, fetched: Fetched, ends_s: float | None = None
    ) -> tuple[bytes, ...]:
        """Put what was fetched, and what is pending, into the seat; identities of the latter.

        ends_s: when the request is over. Raises Unavailable, WrongSecret.
        """
        if fetched.progress is not self._key_check.known:
            self._key_check.check(seat.desk, fetched, self.left_s(ends_s))
        pending: tuple[bytes, ...] = ()
        states = fetched.states
        if self._pending.is_any:
            tokens = tokens_of(row, len(states))
            if self._pending.concerns(tokens):
                states, pending = self._pending.united(tokens, states, seat.ticket)
        if not seat.store.take(
            row, states, fetched.watermark_ms, fetched.complete_since_ms, fetched.degraded
        ):
            self._mend(seat, row, states, fetched, ends_s)
        self.watermark_ms = fetched.watermark_ms
        return pending

    def _mend(
        self,
        seat: Seat,
        row: bytes,
        states: list[bytes | None],
        fetched: Fetched,
        ends_s: float | None,
    ) -> None:
        """Count late facts of folded events, with what was folded; count damaged states."""
        store = seat.store
        late, damaged = store.late, store.damaged
        degraded = fetched.degraded
        tokens = tokens_of(row, len(states))
        for entity in late:
            past = self._exchanges.past(seat.desk, entity, tokens[entity], self.left_s(ends_s))
            if past:
                try:
                    states[entity] = store.with_past(entity, past)
                except DamagedState:
                    degraded |= t.STATE_DAMAGED
        if late:
            store.take(row, states, fetched.watermark_ms, fetched.complete_since_ms, degraded)
            self._count("mended", len(late))
        if damaged:
            self._count("damaged", len(damaged))

    def _count(self, what: str, n: int) -> None:
        with self._counting:
            self._n[what] += n
