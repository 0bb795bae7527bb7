"""The door to the system clock.

Rule: everything else is told the time; whoever must ask for it is handed a `Clock`.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What tells the time: the system's, or a virtual one in simulations and tests."""

    def now_ms(self) -> int:
        """The wall clock in integer milliseconds UTC since the epoch; it may step back."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary instant; never steps back."""
        ...


class SystemClock:
    """The clock of this machine."""

    __slots__ = ()

    def now_ms(self) -> int:
        """The wall clock in integer milliseconds UTC since the epoch."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Seconds on the clock that never steps back, at the resolution of `perf_counter`."""
        return time.perf_counter()
