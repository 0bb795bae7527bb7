"""One computation per key at a time, for models that are called and not walked.

The first caller of a key computes; the others wait for it, and then find its score in the cache.
"""

from __future__ import annotations

import threading
from types import TracebackType

from freshscore.config.errors import DeadlineExceeded


class Flights:
    """Keys that are being computed; at most one caller of each is inside `lead`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._landed: dict[bytes, threading.Event] = {}

    def board(self, key: bytes) -> Flight | None:
        """A flight to lead (use it as a context), or None if another caller leads one now."""
        with self._lock:
            if key in self._landed:
                return None
            self._landed[key] = threading.Event()
            return Flight(self, key)

    def wait(self, key: bytes, limit_s: float, left_s: float) -> None:
        """Wait until nobody computes `key`, for what is left of a limit, or DeadlineExceeded."""
        landed = self._landed.get(key)
        if landed is not None and not (left_s > 0.0 and landed.wait(left_s)):
            raise DeadlineExceeded(
                f"the same score is being computed elsewhere; waited {limit_s} s for it"
            )

    def land(self, key: bytes) -> None:
        """Let those who wait for `key` go on."""
        with self._lock:
            self._landed.pop(key).set()


class Flight:
    """A computation that its caller leads, until the context ends."""

    def __init__(self, flights: Flights, key: bytes) -> None:
        self._flights = flights
        self._key = key

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Whatever happened, nobody waits for it any longer."""
        self._flights.land(self._key)
