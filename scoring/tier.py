"""The memory tier of one model version, and the context that one scoring call reads.

Rule: the arrays made here are the only memory that the scoring kernels write; they are bounded by
`max_bytes` from the start, reserved whole and touched as they fill.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freshscore.features.memory import address_of
from freshscore.features.store import MemoryStore, reserved
from freshscore.scoring import cache_layout as c
from freshscore.scoring.forest import Forest

_MOST_BUCKETS_SHIFT = 27
# Bytes of hints for each entry: two hints in a table that has room for twice the entries.
_HINT_BYTES = 8


@dataclass(frozen=True, slots=True)
class TierLimits:
    """What bounds a tier (from the settings).

    max_bytes: of entries, marks and hints. probe_share: of hits that are computed again.
    cap_ms, max_steps: how far `valid_until` looks ahead.
    """

    max_bytes: int
    probe_share: float
    cap_ms: int
    max_steps: int


class Tier:
    """Cached scores of one model version.

    forest: the booster's image, or None for a model that is no booster; with it and no `walked`,
    scores are keyed on cells but computed elsewhere. thresholds: float64 (cohorts, 2), review and
    decline. hash_key: the 16 bytes that key the feature-aggregate hash.
    """

    def __init__(
        self,
        store: MemoryStore,
        forest: Forest | None,
        *,
        walked: bool,
        thresholds: NDArray[np.float64],
        hash_key: bytes,
        limits: TierLimits,
        seed: int,
    ) -> None:
        n_features = store.program.n_columns
        n_entities = len(store.program.entities)
        self.forest = forest
        self.has_box = walked
        self.n_entities = n_entities
        self.out_bytes = c.out_bytes(n_entities, 0 if walked else n_features)
        size = c.entry_bytes(n_features, n_entities, walked)
        buckets = _buckets(limits.max_bytes, size)
        self.entry_bytes = size
        self.max_entries = c.WAYS * buckets
        self._entries = reserved(self.max_entries * size, "cache.max_bytes", limits.max_bytes)
        self._marks = _aligned(buckets * c.MARKS_BYTES)
        self._hints = np.zeros(max(4, self.max_entries * _HINT_BYTES // 4), np.int32)
        self._thresholds = np.ascontiguousarray(thresholds, np.float64)
        self._key = np.frombuffer(hash_key, np.uint64).copy()
        self._cells = np.zeros(n_features + 32, np.uint16)
        self._features = np.zeros(n_features, np.float64)
        self.statistics = np.zeros(c.STATISTICS_WORDS, np.int64)
        self._walk = _aligned(0 if forest is None else forest.scratch_bytes)
        self._head = np.zeros(c.HEAD_WORDS, np.int64)
        self.address = address_of(self._head)
        hint_buckets = len(self._hints) // 4
        for at, value in (
            (c.ENTRIES, address_of(self._entries)),
            (c.ENTRY_BYTES, size),
            (c.BUCKET_MASK, buckets - 1),
            (c.MARKS, address_of(self._marks)),
            (c.HINTS, address_of(self._hints)),
            (c.HINT_MASK, hint_buckets - 1),
            (c.N_FEATURES, n_features),
            (c.STATE_MARKS, c.BOX + (4 * n_features if walked else 0)),
            (c.RANDOM, seed),
            (c.PROBE_BELOW, int(limits.probe_share * 2**53)),
            (c.CAP_MS, limits.cap_ms),
            (c.MAX_STEPS, limits.max_steps),
            (c.THRESHOLDS, address_of(self._thresholds)),
            (c.CELLS, address_of(self._cells)),
            (c.FEATURES, address_of(self._features)),
            (c.HAS_BOX, int(walked)),
            (c.STATISTICS, address_of(self.statistics)),
            (c.RAW, int(forest is None)),
            (c.FOREST_SCRATCH, address_of(self._walk)),
        ):
            self._head[at // 8] = value
        self._head[c.HASH_KEY // 8 : c.HASH_KEY // 8 + 2] = self._key.view(np.int64)
        self.context = np.zeros(5, np.int64)
        for at, value in (
            (c.STORE, store.address),
            (c.CODE, store.code_at),
            (c.IMAGE, 0 if forest is None else forest.address),
            (c.TIER, self.address),
            (c.SCRATCH, store.scratch_at),
        ):
            self.context[at // 8] = value
        self.context_at = address_of(self.context)

    @property
    def n_entries(self) -> int:
        """Scores held."""
        return int(self._head[c.LIVE // 8])

    @property
    def n_evicted(self) -> int:
        """Scores given up for others."""
        return int(self._head[c.EVICTED // 8])

    @property
    def max_bytes(self) -> int:
        """Bytes that the tier takes when full."""
        return self._entries.nbytes + self._marks.nbytes + self._hints.nbytes


def _buckets(max_bytes: int, entry_bytes: int) -> int:
    """The largest power of two of buckets that stays within `max_bytes`; at least one."""
    a_bucket = c.WAYS * (entry_bytes + _HINT_BYTES) + c.MARKS_BYTES
    buckets = 1
    while 2 * buckets * a_bucket <= max_bytes and buckets < 1 << _MOST_BUCKETS_SHIFT:
        buckets *= 2
    return buckets


def _aligned(n_bytes: int) -> NDArray[np.uint8]:
    """Zeroed bytes that begin on a cache line, kept alive by the array they are a part of."""
    whole = np.zeros(n_bytes + 64, np.uint8)
    start = -address_of(whole) % 64
    return whole[start : start + n_bytes]
