"""The lease of one scorer: until when it may serve what it cached, and what it was told to give up.

A thread renews the lease in Redis. What an operator invalidates comes with the answer and is
carried out before the lease is longer; so an invalidation has reached everybody who serves from a
cache once every lease was renewed or has ended.
Rule: a lease lasts from before it was asked for, by the monotonic clock of this process; where
Redis does not answer it ends by itself, and scores are computed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol
from zlib import crc32

from freshscore.config.clock import Clock, SystemClock
from freshscore.config.errors import StoreFull, Unavailable
from freshscore.invalidation.control import Control, Invalidation

# The number of no invalidation: who has seen nothing is told to give up everything.
_NOTHING_SEEN = -1


def _phase(scorer: str) -> float:
    """Where in a heartbeat a scorer renews, from 0 to 1: those that start together part here."""
    return crc32(scorer.encode()) / 2**32


class Lease(Protocol):
    """Until when, on the monotonic clock, cached scores may be served.

    seen: the number of the newest invalidation that was carried out here.
    """

    @property
    def until_s(self) -> float:
        """The end."""
        ...

    @property
    def seen(self) -> int:
        """The number."""
        ...

    def close(self) -> None:
        """Give it back."""
        ...


class CacheRight:
    """What a lease allows now; None is for where nobody invalidates, and allows all."""

    def __init__(self, lease: Lease | None, clock: Clock) -> None:
        self.lease = lease
        self._clock = clock

    def is_cache_off(self) -> bool:
        """Whether nothing may be served that is not computed now."""
        lease = self.lease
        return lease is not None and self._clock.monotonic_s() >= lease.until_s

    def generation(self) -> int:
        """The newest invalidation that is known here."""
        lease = self.lease
        return 0 if lease is None else lease.seen

    def close(self) -> None:
        """Give the lease back."""
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.close()


class LeaseKeeper:
    """Renews the lease of `scorer` every `heartbeat_s`, until it is closed.

    carry_out: gives up the cached scores that were invalidated. watch: looks at what else a scorer
    must know within a lease. Both are called in the keeper's thread.
    """

    def __init__(
        self,
        control: Control,
        scorer: str,
        lease_s: float,
        heartbeat_s: float,
        carry_out: Callable[[Sequence[Invalidation]], None],
        clock: Clock | None = None,
        watch: Callable[[], None] | None = None,
    ) -> None:
        self._control = control
        self._scorer = scorer
        self.first_s = heartbeat_s * _phase(scorer)
        self._lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        self._carry_out = carry_out
        self._watch = watch
        self._clock = clock or SystemClock()
        self.seen = _NOTHING_SEEN
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="freshscore-lease", daemon=True)
        # Read by every score: a float is replaced in one piece.
        self.until_s = 0.0
        self.n_missed = 0

    def start(self) -> None:
        """Take the lease, if Redis answers, and keep it from then on."""
        self._renew()
        self._thread.start()

    def close(self) -> None:
        """Give the lease back."""
        self._stopping.set()
        self._thread.join(self._lease_s)
        self.until_s = 0.0
        # Where Redis does not answer, it ends by itself.
        with contextlib.suppress(Unavailable, StoreFull):
            self._control.release(self._scorer)

    def _run(self) -> None:
        wait_s = self.first_s
        while not self._stopping.wait(wait_s):
            self._renew()
            wait_s = self._heartbeat_s

    def _renew(self) -> None:
        asked_s = self._clock.monotonic_s()
        told = True
        try:
            if self._watch is not None:
                self._watch()
            while told:
                # Again at once where something was told, so that nobody waits for a heartbeat.
                asked_s = self._clock.monotonic_s()
                renewal = self._control.renew(self._scorer, round(1000 * self._lease_s), self.seen)
                told = bool(renewal.told)
                if told:
                    self._carry_out(renewal.told)
                self.seen = renewal.generation
        except (Unavailable, StoreFull) as problem:
            # Where the memory is full no lease can be written; there may be room again.
            self.n_missed += 1
            if self.n_missed & (self.n_missed - 1) == 0:
                logging.getLogger("freshscore").warning(
                    "the lease was not renewed (%d times so far): %s", self.n_missed, problem
                )
            return
        self.until_s = asked_s + self._lease_s
