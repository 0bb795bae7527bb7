"""The limits of a journal, as the settings give them.

Rule: a journal never takes what the log could only refuse, and never more than it may hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from freshscore.config.settings import Settings

# Small enough that what is acknowledged leaves the disk soon, large enough that files are few.
_SEGMENTS: Final = 64
_LEAST_SEGMENT_BYTES: Final = 4 * 1024
_MOST_SEGMENT_BYTES: Final = 1024**2


@dataclass(frozen=True, slots=True)
class JournalLimits:
    """The limits of a journal.

    max_bytes: on the disk, with what was taken over. fsync_s: what a power cut may take; 0: nothing
    that was appended. most_age_ms: how old an event that waits may be. most_told: how many that
    wait are told where they stand. in_flight_bytes: handed to the client and not acknowledged.
    send_per_s: messages that are sent beside those that come.
    """

    max_bytes: int
    fsync_s: float
    most_age_ms: int
    most_told: int
    in_flight_bytes: int
    send_per_s: int

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Those of the settings; all that may be pending are told, and as many labels."""
        journal = settings.journal
        return cls(
            max_bytes=journal.max_bytes,
            fsync_s=journal.fsync_s,
            most_age_ms=round(1000 * (settings.store.horizon_s - journal.margin_s)),
            most_told=2 * settings.redis.max_pending_events,
            in_flight_bytes=journal.in_flight_bytes,
            send_per_s=journal.send_per_s,
        )

    @property
    def segment_bytes(self) -> int:
        """From which size on a segment is closed."""
        fits = self.max_bytes // _SEGMENTS
        return min(max(fits, _LEAST_SEGMENT_BYTES), _MOST_SEGMENT_BYTES)
