"""What a shadow has seen and answered, as plain numbers.

Rule: shares are None where nothing was counted; no identifier comes here.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from freshscore.scoring.latencies import Latencies
from freshscore.scoring.result import Result

_NS_OF_MS = 1_000_000


class ShadowCounts:
    """Counts since the shadow began; a message that is read again counts again."""

    def __init__(self) -> None:
        self.n_messages = 0
        self.n_published = 0
        self._refused: Counter[str] = Counter()
        self._decisions: Counter[str] = Counter()
        self._sources: Counter[str] = Counter()
        self._causes: Counter[str] = Counter()
        self._n_degraded = 0
        self._latencies = Latencies(1)
        self._lags = Latencies(1)

    def refuse(self, reason: str) -> None:
        """Count a message that has no answer."""
        self._refused[reason] += 1

    def answer(self, result: Result) -> None:
        """Count an answer."""
        self._decisions[result.decision or "none"] += 1
        self._sources[result.source or "none"] += 1
        if result.degraded:
            self._n_degraded += 1
            self._causes.update(result.degraded)
        lag_ms = result.lag_ms
        if lag_ms is not None:
            self._lags.add(0, _NS_OF_MS * lag_ms)

    def time(self, elapsed_s: float) -> None:
        """Count how long one score took that was asked for alone, as a service asks."""
        self._latencies.add(0, round(1e9 * elapsed_s))

    def figures(self) -> dict[str, Any]:
        """By the names that docs/statistics.md gives them."""
        n = sum(self._decisions.values())
        return {
            "messages": self.n_messages,
            "scored": n,
            "published": self.n_published,
            "refused": dict(sorted(self._refused.items())),
            "decisions": _with_shares(self._decisions, n),
            "sources": _with_shares(self._sources, n),
            "degraded": {"count": self._n_degraded, "share": self._n_degraded / n if n else None},
            "degraded_causes": dict(sorted(self._causes.items())),
            "latency_us": {
                "timed": self._latencies.count(0),
                **{name: self._latencies.quantile_us(0, at) for name, at in _QUANTILES.items()},
            },
            "lag_ms": {name: _ms(self._lags.quantile_us(0, at)) for name, at in _QUANTILES.items()},
        }


_QUANTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}


def _ms(quantile_us: float | None) -> float | None:
    return None if quantile_us is None else quantile_us / 1_000.0


def _with_shares(counts: Counter[str], n: int) -> dict[str, dict[str, float]]:
    return {name: {"count": count, "share": count / n} for name, count in sorted(counts.items())}
