"""What this process knows of the nodes of Redis: which answer, and how soon.

Each node has a breaker (scoring/breaker.py), so a node that is away costs nobody its time limit but
the one who tries it. All exchanges share one limit (scoring/exchange_limit.py).
While no breaker has anything to tell, a score pays for reading one attribute.
Rule: of scores alone. Consumers, leases and followers wait by themselves, and behind no answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from freshscore.config.clock import Clock
from freshscore.config.errors import Unavailable
from freshscore.config.settings import Settings
from freshscore.features.redis_lines import Address, Lines, Reply, Request
from freshscore.scoring.breaker import Breaker, BreakerLimits
from freshscore.scoring.exchange_limit import ExchangeLimit


class NodeHealth:
    """The breakers of all nodes, and the limit of an exchange; safe in many threads."""

    def __init__(self, settings: Settings, clock: Clock, chance: Callable[[], float]) -> None:
        redis = settings.redis
        self._limits = BreakerLimits.of(settings.breaker)
        self._clock = clock
        self._chance = chance
        self._breakers: dict[Address, Breaker] = {}
        self.limit = ExchangeLimit(redis.least_timeout_ms / 1e3, redis.timeout_ms / 1e3)
        # Read by every score.
        self.is_quiet = True
        self._n_failed = 0
        self._n_barred = 0

    @property
    def counts(self) -> dict[str, Any]:
        """What was counted since the beginning, and how things stand now."""
        breakers = [*self._breakers.values()]
        return {
            "limit_ms": 1e3 * self.limit.limit_s,
            "failed": self._n_failed,
            "not_asked": self._n_barred,
            "opened": sum(one.n_opened for one in breakers),
            "open": sum(not one.is_closed for one in breakers),
        }

    def failed(self, address: Address) -> None:
        """The exchange with a node that had no trouble until now brought nothing."""
        breaker = self._breaker(address)
        number = breaker.admit(self._clock.monotonic_s(), 0.0)
        if number is not None:
            self._fail(breaker, number)

    def exchange(
        self,
        lines: Lines,
        addresses: Sequence[Address],
        requests: Sequence[Request | None],
        n_replies: Sequence[int],
        limit_s: float,
        awake: threading.Lock | None = None,
    ) -> list[list[Reply] | Unavailable]:
        """The replies of each node that may be asked, or why there are none; of others []."""
        now_s = self._clock.monotonic_s()
        found: list[list[Reply] | Unavailable] = [[] for _ in requests]
        asked: dict[int, tuple[Breaker, int]] = {}
        for node, request in enumerate(requests):
            if request is None:
                continue
            breaker = self._breaker(addresses[node])
            number = breaker.admit(now_s, limit_s)
            if number is None:
                self._n_barred += 1
                found[node] = Unavailable(
                    f"Redis at {addresses[node][0]}:{addresses[node][1]} did not answer, and is not"
                    " asked for a while (breaker.open_ms)"
                )
            else:
                asked[node] = breaker, number
        if asked:
            sent = [one if node in asked else None for node, one in enumerate(requests)]
            n_asked = [n if node in asked else 0 for node, n in enumerate(n_replies)]
            told = lines.attempt(sent, n_asked, limit_s, awake)
            for node, (breaker, number) in asked.items():
                found[node] = told[node]
                if isinstance(told[node], Unavailable):
                    self._fail(breaker, number)
                else:
                    breaker.succeed(number)
        # Nodes that moved away are of no interest.
        known = {address: self._breaker(address) for address in addresses}
        self._breakers = known
        self.is_quiet = all(one.is_quiet for one in known.values())
        return found

    def _fail(self, breaker: Breaker, number: int) -> None:
        self._n_failed += 1
        breaker.fail(number, self._clock.monotonic_s())
        # From here on every exchange is watched.
        self.is_quiet = False

    def _breaker(self, address: Address) -> Breaker:
        breaker = self._breakers.get(address)
        if breaker is None:
            breaker = self._breakers.setdefault(address, Breaker(self._limits, self._chance))
        return breaker
