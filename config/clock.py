"""The door to the system clock.

Rule: everything else is told the time; whoever must ask for it is handed a `Clock`.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MS: Final = 253_402_300_799_999


class Clock(Protocol):
    """What tells the time: the system's, or a virtual one in simulations and tests."""

    def now_ms(self) -> int:
        """The wall clock in integer milliseconds UTC since the epoch; it may step back."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary instant; never steps back."""
        ...


def readable(time_ms: int) -> str:
    """An instant for people to read, in UTC: 2026-03-01 12:00:00.000 UTC."""
    if not 0 <= time_ms <= _LAST_MS:
        return f"{time_ms} ms"  # no calendar has it
    moment = _EPOCH + timedelta(milliseconds=time_ms)
    return f"{moment.replace(tzinfo=None).isoformat(' ', 'milliseconds')} UTC"


class SystemClock:
    """The clock of this machine."""

    __slots__ = ()

    def now_ms(self) -> int:
        """The wall clock in integer milliseconds UTC since the epoch."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Seconds on the clock that never steps back, at the resolution of `perf_counter`."""
        return time.perf_counter()
