"""How long an exchange with Redis may take, from how long exchanges took: the adaptive deadline.

    limit = 4 x the 99.9th percentile of the last 4,000 to 8,000 exchanges,
            at least redis.least_timeout_ms, at most redis.timeout_ms

An exchange that was given up counts as one that took its limit, so the limit rises where Redis has
become slow, and no Redis is given up for good that answers within redis.timeout_ms.
The percentile is the upper edge of a power of two, so the limit seldom moves; that spares sockets,
which would have to be told each time. One exchange in `TIMED` is timed; while there are fewer than
`_LEAST` of them the limit is redis.timeout_ms. Making a connection is not timed and has the whole
redis.timeout_ms, for it takes a hundred times as long as an exchange.

A high percentile times a factor is what LogDevice does (there: the 99.99th, twice). Rejected: mean
and deviation as TCP has them (RFC 6298), for of a thousand exchanges that take 50 us and one that
takes 5 ms they make 0.1 ms, which the next such one exceeds; a second request while the first is
late (hedging), for the states are in one place, and a slow server would be asked twice as often.
Rule: not a promise but a guess; what the caller's deadline leaves goes before it.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Final

# One exchange in so many is timed: a power of two.
TIMED: Final = 8
_SHARE: Final = 0.999
_FACTOR: Final = 4.0
# A weight of `TIMED` for each timed exchange, 1 for each that was given up, for all those count.
_LEAST: Final = 64 * TIMED
_MOST: Final = 8_192
_EVERY: Final = 32
# Powers of two of microseconds, to a minute.
_BUCKETS: Final = 27


class ExchangeLimit:
    """The limit of one process; for many threads, of which one may overwrite what another counts.

    limit_s: what an exchange over a connection that is there may take.
    """

    def __init__(self, least_s: float, most_s: float) -> None:
        self._least_s = min(least_s, most_s)
        self._most_s = most_s
        self._weights = [0] * _BUCKETS
        self._n_until = _EVERY
        self.limit_s = most_s

    def took(self, elapsed_s: float) -> None:
        """One of the timed exchanges took so long."""
        self._weights[_bucket(elapsed_s)] += TIMED
        self._n_until -= 1
        if self._n_until <= 0:
            self._decide()

    def gave_up(self, limit_s: float) -> None:
        """An exchange was not over after `limit_s`."""
        self._weights[_bucket(limit_s)] += 1
        self._decide()

    def _decide(self) -> None:
        self._n_until = _EVERY
        # A copy, for another thread may count meanwhile.
        weights = [*self._weights]
        if sum(weights) >= _MOST:
            # The older an exchange, the less it weighs.
            self._weights = weights = [weight // 2 for weight in weights]
        total = sum(weights)
        if total < _LEAST:
            self.limit_s = self._most_s
            return
        seen = enumerate(accumulate(weights))
        bucket = next(bucket for bucket, sum_ in seen if sum_ >= _SHARE * total)
        self.limit_s = min(max(self._least_s, _FACTOR * 2.0**bucket * 1e-6), self._most_s)


def _bucket(elapsed_s: float) -> int:
    return min(int(elapsed_s * 1e6).bit_length(), _BUCKETS - 1)
