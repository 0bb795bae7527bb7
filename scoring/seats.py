"""Seats: what one request needs for itself while it is scored, so that many threads can.

Rule: a seat belongs to one request at a time, and keeps its connections. There are fewer seats than
connections, so that leases are renewed and scores kept however many requests are under way.
"""

from __future__ import annotations

import threading
from typing import Final

from freshscore.config.errors import Unavailable
from freshscore.features.memory import address_of
from freshscore.features.near_states import NearRoom, NearStates
from freshscore.features.request_store import RequestStore
from freshscore.scoring import cache_layout as c
from freshscore.scoring.exchanges import Desk, Exchanges
from freshscore.scoring.tier import Tier

_CACHE_OFF: Final = c.CACHE_OFF // 8
_SCRATCH: Final = c.SCRATCH // 8
# The keeper of the lease, and one for scores to be kept or a command.
_MOST_RESERVED: Final = 2
# Above every ticket: of a seat for which no exchange is under way.
NO_TICKET: Final = 2**62


class Seat:
    """The states of one request, the context that scores on them, room for its commands.

    ticket: that of its exchange, drawn before this is sent (scoring/pending.py), until the seat is
    given back. near_room: for near states, where there are any; is_near: whether the states in it
    came from there.
    """

    __slots__ = (
        *("_is_off", "context", "context_at", "desk", "is_near", "near_room", "store", "ticket"),
    )

    def __init__(self, store: RequestStore, tier: Tier, desk: Desk) -> None:
        self.store = store
        self.desk = desk
        self.ticket = NO_TICKET
        self.context = tier.context_of(store)
        self.context_at = address_of(self.context)
        self._is_off = False
        self.near_room: NearRoom | None = None
        self.is_near = False

    def set_out(self, is_off: bool) -> None:
        """Before scoring: whether nothing may be served from the cache, and where the scratch is.

        The scratch moves when a state is larger than all before it.
        """
        if is_off is not self._is_off:
            self.context[_CACHE_OFF] = is_off
            self._is_off = is_off
        if self.store.has_grown:
            self.context[_SCRATCH] = self.store.scratch_at
            self.store.has_grown = False


def most_seats(max_connections: int) -> int:
    """How many of at least two connections scores may hold; the rest is for who works beside."""
    return max_connections - min(_MOST_RESERVED, max_connections // 2)


class Seats:
    """As many seats as were ever needed at once, `most` at the most."""

    def __init__(self, like: RequestStore, tier: Tier, exchanges: Exchanges, most: int) -> None:
        self._like = like
        self._tier = tier
        self._exchanges = exchanges
        self._most = most
        # Whose room each seat made from now on has.
        self.near: NearStates | None = None
        # Appending and popping are single steps under the interpreter's lock, so that whoever
        # finds a free seat pays for nothing else.
        self._free: list[Seat] = []
        self._made: list[Seat] = []
        self._changed = threading.Condition()
        self._n_made = 0
        self._n_waiting = 0

    def take(self, limit_s: float) -> Seat:
        """A seat, to be given back. Raises Unavailable where none is free within `limit_s`."""
        try:
            return self._free.pop()
        except IndexError:
            return self._another(limit_s)

    def give_back(self, seat: Seat) -> None:
        """End the use of a seat."""
        # Before another request can have it.
        seat.ticket = NO_TICKET
        self._free.append(seat)
        # Whoever waits has said so before it looked at the free ones for the last time.
        if self._n_waiting:
            with self._changed:
                self._changed.notify()

    def oldest_ticket(self) -> int:
        """The lowest ticket of the exchanges that are under way; NO_TICKET where there is none."""
        return min([seat.ticket for seat in self._made], default=NO_TICKET)

    def close(self) -> None:
        """Give the connections of all free seats back."""
        while self._free:
            self._free.pop().desk.leave(self._exchanges.nodes)

    def _another(self, limit_s: float) -> Seat:
        with self._changed:
            if self._n_made < self._most:
                self._n_made += 1
            else:
                return self._awaited(limit_s)
        try:
            like = self._like
            store = RequestStore(like.program, like.keys, like.limits)
            seat = Seat(store, self._tier, self._exchanges.desk())
            if self.near is not None:
                seat.near_room = self.near.room()
            self._made.append(seat)
            return seat
        except BaseException:
            with self._changed:
                self._n_made -= 1
            raise

    def _awaited(self, limit_s: float) -> Seat:
        found: list[Seat] = []

        def is_free() -> bool:
            try:
                found.append(self._free.pop())
            except IndexError:
                return False
            return True

        self._n_waiting += 1
        try:
            self._changed.wait_for(is_free, max(0.0, limit_s))
        finally:
            self._n_waiting -= 1
        if not found:
            raise Unavailable(
                f"{self._most} scores are under way (redis.max_connections less a reserve), and"
                f" none ended within {limit_s * 1_000:.0f} ms"
            )
        return found[0]
