"""One computation per key at a time, for models that are called and not walked.

The first caller of a key computes; the others wait for it, and then find its score in the cache.
"""

from __future__ import annotations

import threading

from freshscore.config.errors import DeadlineExceeded


class Flights:
    """Keys that are being computed, each with a lock that its one leader holds."""

    def __init__(self) -> None:
        self._flying: dict[bytes, threading.Lock] = {}

    def board(self, key: bytes) -> threading.Lock | None:
        """The flight of who leads now and must `land` it; None if another leads this key."""
        flight = threading.Lock()
        flight.acquire()
        return flight if self._flying.setdefault(key, flight) is flight else None

    def wait(self, key: bytes, limit_s: float, left_s: float) -> None:
        """Wait until nobody computes `key`, for what is left of a limit, or DeadlineExceeded."""
        flight = self._flying.get(key)
        if flight is None:
            return
        if not (left_s > 0.0 and flight.acquire(timeout=left_s)):
            raise DeadlineExceeded(
                f"the same score is being computed elsewhere; waited {limit_s} s for it"
            )
        # For the next of those who wait.
        flight.release()

    def land(self, key: bytes, flight: threading.Lock) -> None:
        """Let those who wait for `key` go on."""
        del self._flying[key]
        flight.release()
