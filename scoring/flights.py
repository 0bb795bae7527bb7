"""One computation per key at a time, for models that are called and not walked.

The first caller of a key computes; the others wait for it, and then find its score in the cache.
"""

from __future__ import annotations

import threading

from freshscore.config.clock import Clock
from freshscore.config.errors import DeadlineExceeded


class Flights:
    """Keys that are being computed, each with a lock that its one leader holds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._flying: dict[bytes, threading.Lock] = {}

    def ends_s(self, wait_s: float) -> float:
        """When a wait of `wait_s` from now on is over: what `wait` is told, however often."""
        return self._clock.monotonic_s() + wait_s

    def board(self, key: bytes) -> threading.Lock | None:
        """The flight of who leads now and must `land` it; None if another leads this key."""
        flight = threading.Lock()
        flight.acquire()
        return flight if self._flying.setdefault(key, flight) is flight else None

    def wait(self, key: bytes, ends_s: float) -> None:
        """Wait until nobody computes `key`, but not beyond `ends_s`: then DeadlineExceeded."""
        flight = self._flying.get(key)
        if flight is None:
            return
        left_s = ends_s - self._clock.monotonic_s()
        if not (left_s > 0.0 and flight.acquire(timeout=left_s)):
            raise DeadlineExceeded(
                "the same score is being computed elsewhere; waited for as long as deadline_ms or"
                " cache.inflight_wait_s allows"
            )
        # For the next of those who wait.
        flight.release()

    def land(self, key: bytes, flight: threading.Lock) -> None:
        """Let those who wait for `key` go on."""
        del self._flying[key]
        flight.release()
