"""What a scorer has counted, as plain numbers: every later report builds on this.

Rates are None where nothing was counted. Quantiles of ages are upper edges of powers of two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from freshscore.features.store import MemoryStore
from freshscore.scoring import cache_layout as c
from freshscore.scoring.latencies import Latencies
from freshscore.scoring.result import CAUSES, SOURCES
from freshscore.scoring.serving import Serving


def counts_of(
    serving: Serving, store: dict[str, Any], feed_counts: dict[str, int], latencies: Latencies
) -> dict[str, Any]:
    """Counts since the scorer was opened, by the names that the documentation gives them."""
    words = serving.tier.statistics
    answers = _named(words, c.BY_SOURCE, SOURCES)
    requests = sum(answers.values())
    saved = requests - answers["computed"]
    return {
        "model_version": serving.version,
        "requests": requests,
        "answers": answers,
        "hit_ratio": saved / requests if requests else None,
        "inference_saved": saved,
        "causes": _named(words, c.BY_CAUSE, CAUSES),
        "absorbed": _named(words, c.ABSORBED, CAUSES),
        "moved": _named(words, c.BY_ENTITY, serving.entity_names),
        "incomplete": int(words[c.INCOMPLETE]),
        "probes": int(words[c.PROBES]),
        "mismatches": int(words[c.MISMATCHES]),
        "age_ms": {
            source: _ages(words, number)
            for number, source in enumerate(SOURCES)
            if source != "computed"
        },
        "latency_us": {
            source: {
                "sampled": latencies.count(number),
                "p50": latencies.quantile_us(number, 0.5),
                "p99": latencies.quantile_us(number, 0.99),
            }
            for number, source in enumerate(SOURCES)
        },
        "feed": dict(sorted(feed_counts.items())),
        "store": store,
        "cache": {
            "scores": serving.tier.n_entries,
            "max_scores": serving.tier.max_entries,
            "evicted": serving.tier.n_evicted,
            "max_bytes": serving.tier.max_bytes,
        },
    }


def store_counts(store: MemoryStore) -> dict[str, Any]:
    """What a memory store holds."""
    return {
        "entities": store.n_entities,
        "payments": store.n_payments,
        "records": store.n_records,
        "newest_ms": store.newest_ms,
        "complete_since_ms": store.complete_since_ms,
        "bytes": store.memory,
    }


def _named(words: NDArray[np.int64], at: int, names: tuple[str, ...]) -> dict[str, int]:
    return {name: int(words[at + i]) for i, name in enumerate(names)}


def _ages(words: NDArray[np.int64], source: int) -> dict[str, int | None]:
    first = c.AGES + c.AGE_BUCKETS * source
    counts = words[first : first + c.AGE_BUCKETS]
    return {name: _quantile(counts, share) for name, share in (("p50", 0.5), ("p99", 0.99))}


def _quantile(counts: NDArray[np.int64], share: float) -> int | None:
    total = int(counts.sum())
    if total == 0:
        return None
    bucket = int(np.searchsorted(np.cumsum(counts), share * total))
    return 0 if bucket == 0 else 2**bucket
