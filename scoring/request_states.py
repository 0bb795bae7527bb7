"""What an exchange with Redis leaves in a seat: states that are checked, mended, and united.

What is missing of them is said (bits of features/tables.py), and what is pending here is counted
with them (scoring/pending.py), so that the seat holds what the answer is about.
States may be near (scoring/near_reading.py): then there is no exchange, and all else is the same.
Rule: a seat has drawn its tickets before its exchange is sent. Nothing waits beyond the request's
own limit.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from freshscore.config.clock import Clock
from freshscore.config.errors import DamagedState, Unavailable
from freshscore.features import tables as t
from freshscore.features.past_events import Past, bucket_of_identity
from freshscore.scoring.exchange_limit import TIMED
from freshscore.scoring.exchanges import FOR_EXCHANGE, Desk, Exchanges, Fetched

if TYPE_CHECKING:
    from freshscore.scoring.key_checking import KeyCheck
    from freshscore.scoring.near_reading import NearReading
    from freshscore.scoring.node_health import NodeHealth
    from freshscore.scoring.pending import PendingEvents
    from freshscore.scoring.remote_lookup import RemoteLookup
    from freshscore.scoring.seats import Seat

PARTLY: Final = "a node of Redis with a state of this payment does not answer"
_STEPS: Final = 1_024
# How often what was folded is asked for while a state goes on asking for more of it.
_MOST_LOOKS: Final = 4


class RequestStates:
    """The way from exchanges into seats, for many threads.

    remote: brings candidate scores too, or None. near: looked into first, or None; a model that is
    called wants the candidates of an exchange. health: of the nodes, with the limit of an exchange.
    limit_s: of making a connection.
    """

    def __init__(
        self,
        exchanges: Exchanges,
        remote: RemoteLookup | None,
        pending: PendingEvents,
        key_check: KeyCheck,
        clock: Clock,
        health: NodeHealth,
        limit_s: float,
    ) -> None:
        self._exchanges = exchanges
        self._remote = remote
        self._pending = pending
        self._key_check = key_check
        self._clock = clock
        self._limit = health.limit
        self.limit_s = limit_s
        self.near: NearReading | None = None
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

    def wait_s(self, ends_s: float | None) -> float:
        """What may be waited for a seat by a request that must end at `ends_s`."""
        return self._within(self._limit.limit_s, ends_s)

    def left_s(self, desk: Desk, ends_s: float | None) -> float:
        """What an exchange may take that must end at `ends_s`. Raises Unavailable for nothing."""
        lines = desk.lines
        is_connected = lines is not None and lines.is_connected
        return self._within(self._limit.limit_s if is_connected else self.limit_s, ends_s)

    def _within(self, limit_s: float, ends_s: float | None) -> float:
        if ends_s is None:
            return limit_s
        left_s = FOR_EXCHANGE * (ends_s - self._clock.monotonic_s())
        if left_s <= 0.0:
            raise Unavailable("no time is left to ask Redis")
        if left_s >= limit_s:
            return limit_s
        # In steps, for a socket must be told of each other limit.
        return int(left_s * _STEPS) / _STEPS or left_s

    def fetch(self, seat: Seat, row: bytes, ends_s: float | None) -> tuple[Fetched, int]:
        """States of one row, near or in one exchange; the number of such ones until now.

        ends_s: when the request is over. What some nodes have may be missing. Raises Unavailable.
        """
        seat.ticket = self._pending.ticket()
        near = self.near
        if near is not None:
            found = near.look(seat, row)
            if found is not None:
                seat.is_near = True
                return found, near.next_hit()
            near.draw(seat)
        seat.is_near = False
        limit_s = self.left_s(seat.desk, ends_s)
        seat.desk.ends_s = ends_s
        started_s = self._clock.monotonic_s()
        remote = self._remote
        try:
            if remote is None:
                fetched = self._exchanges.fetch(seat.desk, row, limit_s)
            else:
                fetched = remote.fetch(self._exchanges, seat.desk, row, limit_s)
        except Unavailable:
            self._note_lost(started_s, limit_s)
            raise
        self.n_exchanges = number = self.next_exchange()
        if fetched.missing:
            self._note_lost(started_s, limit_s)
        elif number % TIMED == 0 and limit_s == self._limit.limit_s:
            self._limit.took(self._clock.monotonic_s() - started_s)
        return fetched, number

    def fetch_all(self, seat: Seat, rows: Sequence[bytes]) -> list[Fetched]:
        """States of several rows, and candidates for their scores, in one exchange."""
        seat.ticket = self._pending.ticket()
        if self.near is not None:
            self.near.draw(seat)
        seat.is_near = False
        remote = self._remote
        limit_s = self.limit_s
        seat.desk.ends_s = None
        if remote is None:
            fetched = self._exchanges.fetch_all(seat.desk, rows, limit_s)
        else:
            fetched = remote.fetch_all(self._exchanges, seat.desk, rows, limit_s)
        self.n_exchanges = self.next_exchange()
        return fetched

    def draw(self, seat: Seat) -> None:
        """Draw the ticket of a request that asks nobody."""
        seat.ticket = self._pending.ticket()

    def _note_lost(self, started_s: float, limit_s: float) -> None:
        """An exchange brought less than it was sent for: was it the limit that ended it?"""
        took_s = self._clock.monotonic_s() - started_s
        if limit_s == self._limit.limit_s and took_s >= limit_s:
            self._limit.gave_up(limit_s)

    def check_key(self, seat: Seat, fetched: Fetched, ends_s: float | None) -> None:
        """Raise WrongSecret where what was fetched is of another secret; Unavailable."""
        if fetched.progress is not self._key_check.known:
            self._key_check.check(seat.desk, fetched, self.left_s(seat.desk, ends_s))

    def take(
        self,
        seat: Seat,
        row: bytes,
        fetched: Fetched,
        ends_s: float | None = None,
        *,
        is_one: bool = False,
    ) -> tuple[bytes, ...]:
        """Put what was fetched, and what is pending, into the seat; identities of the latter.

        ends_s: when the request is over. is_one: of a single payment, whose entities are worth
        keeping near. Raises Unavailable, also where something of it is missing; WrongSecret.
        """
        near = self.near
        if fetched.missing:
            raise Unavailable(PARTLY)
        if not seat.is_near:
            self.check_key(seat, fetched, ends_s)
            if near is not None:
                near.admit(seat, row, fetched, adds=is_one)
        states, past, pending = self.united(seat, row, fetched.states, fetched.past)
        if not seat.store.take(
            row,
            states,
            fetched.watermark_ms,
            fetched.complete_since_ms,
            fetched.degraded,
            past,
        ):
            pending = self._mend(seat, row, fetched, pending, ends_s)
        self.watermark_ms = fetched.watermark_ms
        return pending

    @property
    def n_states(self) -> int:
        """How many states an exchange asks for: one of each entity, two during a rotation."""
        return self._exchanges.n_states

    def united(
        self,
        seat: Seat,
        row: bytes,
        states: list[bytes | None],
        past: Sequence[bytes | None],
    ) -> tuple[list[bytes | None], Sequence[bytes | None], tuple[bytes, ...]]:
        """A state of each entity of `row`, with what is pending, as the seat takes it.

        past: the bucket that was read with each state; which of them are still to be looked at
        comes back. And the identities of what is pending.
        """
        states, pending = self._with_pending(seat, row, states)
        exchanges = self._exchanges
        if not exchanges.is_of_both:
            return states, past, pending
        return exchanges.united(row, states, exchanges.own_past(row, past)), (), pending

    def _with_pending(
        self, seat: Seat, row: bytes, states: list[bytes | None]
    ) -> tuple[list[bytes | None], tuple[bytes, ...]]:
        """States with what is pending of the entities of `row`, and the identities of that."""
        if self._pending.is_any:
            tokens = self._exchanges.tokens(row)
            if self._pending.concerns(tokens):
                return self._pending.united(tokens, states, seat.ticket)
        return states, ()

    def _mend(
        self,
        seat: Seat,
        row: bytes,
        fetched: Fetched,
        pending: tuple[bytes, ...],
        ends_s: float | None,
    ) -> tuple[bytes, ...]:
        """Count late facts, and the payment itself, with what was folded; count damaged states.

        Identities of what is pending then.
        """
        store = seat.store
        late, damaged = store.late, store.damaged
        degraded = fetched.degraded
        if late:
            read = list(fetched.states)
            past = {
                number: self._read_whole(seat, row, number, read, fetched, ends_s)
                for entity in late
                for number in self._exchanges.numbers(entity)
            }
            states, pending = self._with_pending(seat, row, read)
            if self._exchanges.is_of_both:
                states = self._exchanges.united(row, states, self._pasts(row, fetched, past))
                past = {}
            for entity, found in past.items():
                state = states[entity]
                try:
                    states[entity] = state and store.with_past(row, entity, state, found)
                except DamagedState:
                    degraded |= t.STATE_DAMAGED
            store.take(row, states, fetched.watermark_ms, fetched.complete_since_ms, degraded)
            self._count("mended", len(late))
        if damaged:
            self._count("damaged", len(damaged))
            if self.near is not None:
                self.near.states.drop(row)
        return pending

    def _pasts(self, row: bytes, fetched: Fetched, whole: Mapping[int, Past]) -> list[Past]:
        """Of each state what was folded of it, as far as it was read."""
        owns = self._exchanges.own_past(row, fetched.past)
        return [whole.get(number, own) for number, own in enumerate(owns)]

    def _read_whole(
        self,
        seat: Seat,
        row: bytes,
        number: int,
        read: list[bytes | None],
        fetched: Fetched,
        ends_s: float | None,
    ) -> Past:
        """What was folded of a state, as far as it asks; `read` has that state then."""
        own = fetched.past[number] if fetched.past else None
        entity = number % len(seat.store.layouts)
        past = {} if own is None else {bucket_of_identity(int.from_bytes(row[:8], "little")): own}
        for _ in range(_MOST_LOOKS):
            state = self._with_pending(seat, row, read)[0][number]
            try:
                buckets = seat.store.buckets(row, entity, state) if state else frozenset()
            except DamagedState:
                return past
            if buckets <= past.keys():
                return past
            asked = sorted(buckets | past.keys())
            left_s = self.left_s(seat.desk, ends_s)
            read[number], held = self._exchanges.past(seat.desk, number, row, asked, left_s)
            past = dict(zip(asked, held, strict=True))
        raise Unavailable("a state changes faster than what was folded of it is read")

    def _count(self, what: str, n: int) -> None:
        with self._counting:
            self._n[what] += n
