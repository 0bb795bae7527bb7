"""Reading near states for scores: the way around the exchange with Redis.

One look in some hundreds is answered by an exchange although all was near, and what that brings is
compared: how often near states were behind Redis is the share of their answers to which a cause of
staleness of their own applies, `propagation`.
Rule: near states are served only while their follower is in step, and what it says of the log is
read before the states are. What an exchange brings is admitted as it came, once its identifier key
was checked, and before anybody acts on what it contains.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from freshscore.config.clock import Clock
from freshscore.features.near_states import NearStates
from freshscore.scoring.exchanges import Fetched

if TYPE_CHECKING:
    from freshscore.scoring.seats import Seat

# One look in so many is probed: an exchange is some ten looks, so far fewer than one in a hundred,
# which p99 would show; a prime, which no period of traffic fits.
_PROBED: Final = 499


_LONG_AGO_S: Final = 1e9


class Following(Protocol):
    """Who keeps near states in step (invalidation/following.py).

    progress: summaries of what all near states hold at least. watermark_ms: lowest arrival that may
    still come. in_step_s: when they were last known to be in step, on the monotonic clock.
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
    def in_step_s(self) -> float:
        """The instant."""
        ...

    @property
    def counts(self) -> dict[str, Any]:
        """What was counted."""
        ...

    @property
    def limit_ms(self) -> int:
        """How far behind Redis near states may be while they are served."""
        ...

    def may_serve(self) -> bool:
        """Whether near states are in step within the bound."""
        ...

    def close(self) -> None:
        """Follow no longer."""
        ...


class NearReading:
    """Near states for the scores of one process; safe in many threads.

    probed: one look in so many is compared with what an exchange brings.
    """

    def __init__(
        self, near: NearStates, follower: Following, clock: Clock, *, probed: int = _PROBED
    ) -> None:
        self.states = near
        self._follower = follower
        self._clock = clock
        self._probed = probed
        self._next_found: Callable[[], int] = itertools.count(1).__next__
        self._counting = threading.Lock()
        self._n_probes = self._n_behind = 0
        # Counts in one step under the interpreter's lock.
        self.next_hit: Callable[[], int] = itertools.count(1).__next__

    @property
    def counts(self) -> dict[str, Any]:
        """What is held and was found, what was followed, and how often it was behind Redis."""
        with self._counting:
            probes, behind = self._n_probes, self._n_behind
        propagation = {
            "probes": probes,
            "behind": behind,
            "share": behind / probes if probes else None,
            "limit_ms": self._follower.limit_ms,
        }
        return {**self.states.counts, **self._follower.counts, "propagation": propagation}

    def look(self, seat: Seat, row: bytes) -> Fetched | None:
        """What an exchange for `row` would bring, if all of it is near and in step."""
        return self.held(seat, row) if self._follower.may_serve() else None

    @property
    def age_ms(self) -> int:
        """How long ago all near states were known to be in step."""
        age_s = max(0.0, self._clock.monotonic_s() - self._follower.in_step_s)
        return round(1_000 * min(age_s, _LONG_AGO_S))

    def held(self, seat: Seat, row: bytes) -> Fetched | None:
        """The same, in step or not: what was known `age_ms` ago is in it."""
        follower = self._follower
        progress, watermark_ms = follower.progress, follower.watermark_ms
        room = seat.near_room
        assert room is not None  # seats are made with one where this is
        states = self.states.look(row, room, int(self._clock.monotonic_s()))
        if states is None:
            return None
        if self._next_found() % self._probed == 0:
            room.probed = row, states
            return None
        return Fetched(states, [], watermark_ms, room.complete_since_ms, 0, progress)

    def draw(self, seat: Seat) -> None:
        """Draw a ticket before an exchange is sent."""
        assert seat.near_room is not None
        self.states.draw(seat.near_room)

    def admit(self, seat: Seat, row: bytes, fetched: Fetched, *, adds: bool) -> None:
        """Hold what the exchange brought of `row`; adds: also of entities not held yet."""
        room = seat.near_room
        assert room is not None
        if room.probed is not None:
            self._compare(seat, row, room.probed, fetched)
            room.probed = None
        self.states.admit(
            row,
            fetched.states,
            room,
            summaries=() if fetched.degraded else fetched.progress,
            complete_since_ms=fetched.complete_since_ms,
            now_s=int(self._clock.monotonic_s()),
            adds=adds,
        )

    def _compare(
        self, seat: Seat, row: bytes, probed: tuple[bytes, list[bytes | None]], fetched: Fetched
    ) -> None:
        """Count whether what was near of `row` is the set that the exchange brought."""
        asked, near = probed
        if asked is not row or fetched.degraded:
            # The exchange of that look failed, or a node of this one has lost its states.
            return
        is_behind = near != fetched.states and _versions(seat, row, near) != _versions(
            seat, row, fetched.states
        )
        with self._counting:
            self._n_probes += 1
            self._n_behind += is_behind

    def close(self) -> None:
        """Serve and follow no longer."""
        self._follower.close()


def _versions(seat: Seat, row: bytes, states: Sequence[bytes | None]) -> list[int]:
    """Of each state of a row; the seat holds them until it is given others."""
    seat.store.take(row, states)
    return [seat.store.version(entity) for entity in range(len(states))]
