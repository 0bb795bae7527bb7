"""The virtual clock: in a simulation it is as late as the simulation says.

Rule: it never steps back, and nothing here asks the system.
"""

from __future__ import annotations


class VirtualClock:
    """A clock that stands still until it is moved; one reading for the wall and for durations."""

    __slots__ = ("_now_ms",)

    def __init__(self, now_ms: int = 0) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        """Milliseconds UTC since the epoch."""
        return self._now_ms

    def monotonic_s(self) -> float:
        """Seconds on the same clock."""
        return self._now_ms / 1000.0

    def move_to(self, now_ms: int) -> None:
        """Let it be `now_ms`; raises ValueError for an instant that has passed."""
        if now_ms < self._now_ms:
            raise ValueError(f"the clock shows {self._now_ms} ms and cannot go back to {now_ms}")
        self._now_ms = now_ms
