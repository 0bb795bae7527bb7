"""When a node that does not answer is no longer asked, and when it is tried again.

    closed     every request asks. `max_failures` of them in a row without an answer: open
    open       nobody asks for a while; then the next request is the trial
    half open  the trial is under way, nobody else asks. It is answered: closed. It is not: open,
               for twice as long, up to `max_open_s`

The while is `open_s` at first and is shortened by up to half by chance, so that many processes do
not come back at once. A trial that is never heard of ends as its time limit does. What began before
the last change of state says nothing of it, so forty requests that fail together are one failure to
an open breaker, and a late answer closes nothing.
An answer is whatever a node replies, an error too: one that answers costs nobody any time.
Failures in a row, not a share of the last hundred: scores ask one node thousands of times a second
or once a minute, and in both cases the third loss in a row is the first that means something.
Rule: pure but for its lock; the caller brings the instant, by a monotonic clock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from freshscore.config.settings import BreakerSettings


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """What a breaker goes by: failures in a row, and how long it is open at first and at most."""

    max_failures: int
    open_s: float
    max_open_s: float

    @classmethod
    def of(cls, settings: BreakerSettings) -> BreakerLimits:
        """Those of the settings."""
        return cls(settings.max_failures, settings.open_ms / 1e3, settings.max_open_ms / 1e3)


class Breaker:
    """The breaker of one node; safe in many threads.

    is_quiet: nothing has failed since the last answer; read without a lock by every score.
    n_opened: how often it went from closed to open. chance: draws numbers from 0 up to 1.
    """

    def __init__(self, limits: BreakerLimits, chance: Callable[[], float]) -> None:
        self._limits = limits
        self._chance = chance
        self._lock = threading.Lock()
        self._n_failures = 0
        self._open_s = 0.0
        # Until when nobody is let through; of a closed one 0.
        self._until_s = 0.0
        # Counts changes of state.
        self._number = 0
        self.is_quiet = True
        self.n_opened = 0

    @property
    def is_closed(self) -> bool:
        """Whether every request may ask."""
        return self._open_s == 0.0

    def admit(self, now_s: float, limit_s: float) -> int | None:
        """Let a request through, with the number to be handed back; None: it must not ask.

        limit_s: how long the request may take, so how long others wait where it is the trial.
        """
        with self._lock:
            if self._open_s == 0.0:
                return self._number
            if now_s < self._until_s:
                return None
            self._number += 1
            self._until_s = now_s + max(limit_s, self._open_s)
            return self._number

    def succeed(self, number: int) -> None:
        """A request that was let through was answered."""
        with self._lock:
            if number != self._number:
                return
            if self._open_s:
                self._number += 1
                self._open_s = self._until_s = 0.0
            self._n_failures = 0
            self.is_quiet = True

    def fail(self, number: int, now_s: float) -> None:
        """It was not."""
        with self._lock:
            if number != self._number:
                return
            self._n_failures += 1
            self.is_quiet = False
            if self._open_s:
                self._open(min(2.0 * self._open_s, self._limits.max_open_s), now_s)
            elif self._n_failures >= self._limits.max_failures:
                self.n_opened += 1
                self._open(self._limits.open_s, now_s)

    def _open(self, open_s: float, now_s: float) -> None:
        self._number += 1
        self._open_s = open_s
        self._until_s = now_s + open_s * (0.5 + 0.5 * self._chance())
