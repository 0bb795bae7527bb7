"""Reading near states for scores: the way around the exchange with Redis.

Rule: near states are served only while their follower is in step, and what it says of the log is
read before the states are. What an exchange brings is admitted as it came, once its identifier key
was checked, and before anybody acts on what it contains.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from freshscore.config.clock import Clock
from freshscore.features.near_states import NearStates
from freshscore.scoring.exchanges import Fetched

if TYPE_CHECKING:
    from freshscore.scoring.seats import Seat


class Following(Protocol):
    """Who keeps near states in step (invalidation/following.py).

    progress: summaries of what all near states hold at least. watermark_ms: lowest arrival that may
    still come.
    """

    @property
    def progress(self) -> tuple[bytes, ...]:
        """The summaries."""
        ...

    @property
    def watermark_ms(self) -> int:
        """The instant, ms."""
        ...

    @property
    def counts(self) -> dict[str, Any]:
        """What was counted."""
        ...

    def may_serve(self) -> bool:
        """Whether near states are in step within the bound."""
        ...

    def close(self) -> None:
        """Follow no longer."""
        ...


class NearReading:
    """Near states for the scores of one process; safe in many threads."""

    def __init__(self, near: NearStates, follower: Following, clock: Clock) -> None:
        self.states = near
        self._follower = follower
        self._clock = clock
        # Counts in one step under the interpreter's lock.
        self.next_hit: Callable[[], int] = itertools.count(1).__next__

    @property
    def counts(self) -> dict[str, Any]:
        """What is held and was found, and what was followed."""
        return self.states.counts | self._follower.counts

    def look(self, seat: Seat, row: bytes) -> Fetched | None:
        """What an exchange for `row` would bring, if all of it is near and in step."""
        follower = self._follower
        if not follower.may_serve():
            return None
        progress, watermark_ms = follower.progress, follower.watermark_ms
        room = seat.near_room
        assert room is not None  # seats are made with one where this is
        states = self.states.look(row, room, int(self._clock.monotonic_s()))
        if states is None:
            return None
        return Fetched(states, [], watermark_ms, room.complete_since_ms, 0, progress)

    def draw(self, seat: Seat) -> None:
        """Draw a ticket before an exchange is sent."""
        assert seat.near_room is not None
        self.states.draw(seat.near_room)

    def admit(self, seat: Seat, row: bytes, fetched: Fetched, *, adds: bool) -> None:
        """Hold what the exchange brought of `row`; adds: also of entities not held yet."""
        assert seat.near_room is not None
        self.states.admit(
            row,
            fetched.states,
            seat.near_room,
            summaries=() if fetched.degraded else fetched.progress,
            complete_since_ms=fetched.complete_since_ms,
            now_s=int(self._clock.monotonic_s()),
            adds=adds,
        )

    def close(self) -> None:
        """Serve and follow no longer."""
        self._follower.close()
