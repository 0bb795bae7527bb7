"""Histograms of latency by source, sampled so that most calls pay nothing for them."""

from __future__ import annotations

from typing import Final

# Buckets: four for each power of two of nanoseconds, to 2^40 ns (18 minutes).
_PARTS: Final = 4
_POWERS: Final = 40


class Latencies:
    """Counts of sampled latencies, by source; bucket edges grow by a fifth on average."""

    def __init__(self, n_sources: int) -> None:
        self._counts = [[0] * (_PARTS * (_POWERS + 1)) for _ in range(n_sources)]

    def add(self, source: int, elapsed_ns: int) -> None:
        """Count one latency."""
        self._counts[source][_bucket(elapsed_ns)] += 1

    def count(self, source: int) -> int:
        """How many were sampled."""
        return sum(self._counts[source])

    def quantile_us(self, source: int, share: float) -> float | None:
        """The upper edge, in microseconds, of the bucket with this quantile; None without any."""
        counts = self._counts[source]
        total = sum(counts)
        if total == 0:
            return None
        seen = 0
        for bucket, count in enumerate(counts):
            seen += count
            if seen >= share * total:
                return _upper_edge_ns(bucket) / 1000.0
        return _upper_edge_ns(len(counts) - 1) / 1000.0


def _bucket(elapsed_ns: int) -> int:
    power = min(max(elapsed_ns, 1).bit_length() - 1, _POWERS)
    if power < 2:
        return _PARTS * power
    return _PARTS * power + ((elapsed_ns >> (power - 2)) & (_PARTS - 1))


def _upper_edge_ns(bucket: int) -> float:
    power, part = divmod(bucket, _PARTS)
    return float(2**power) * (1 + (part + 1) / _PARTS)
