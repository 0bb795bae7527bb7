"""The memory tier of one model version, and the context that one scoring call reads.

Rule: the arrays made here are the only memory that the scoring kernels write; they are bounded by
`max_bytes` from the start, reserved whole and touched as they fill.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from freshscore.features.memory import address_of
from freshscore.features.program import Program
from freshscore.features.store import reserved
from freshscore.scoring import cache_layout as c
from freshscore.scoring.forest import Forest

_MOST_BUCKETS_SHIFT = 27
# Bytes of hints for each entry: two hints in a table that has room for twice the entries.
_HINT_BYTES = 8
_TOKEN: Final = struct.Struct("<2q").unpack


class ReadableStore(Protocol):
    """What scoring reads of a store: the addresses of its head, its program and its scratch."""

    @property
    def program(self) -> Program:
        """The compiled specification."""
        ...

    @property
    def address(self) -> int:
        """Of the head (features/tables.py)."""
        ...

    @property
    def code_at(self) -> int:
        """Of the program's array."""
        ...

    @property
    def scratch_at(self) -> int:
        """Of one reader's scratch (features/reading_states.py)."""
        ...


@dataclass(frozen=True, slots=True)
class TierLimits:
    """What bounds a tier (from the settings).

    max_bytes: of entries, marks and hints. probe_share: of hits that are computed again.
    cap_ms, max_steps: how far `valid_until` looks ahead. max_invalidated: entities that are
    invalidated one by one before all that is older is.
    """

    max_bytes: int
    probe_share: float
    cap_ms: int
    max_steps: int
    max_invalidated: int = 1_024


class Tier:
    """Cached scores of one model version.

    forest: the booster's image, or None for a model that is no booster; with it and no `walked`,
    scores are keyed on cells but computed elsewhere. thresholds: float64 (cohorts, 2), review and
    decline. hash_key: the 16 bytes that key the feature-aggregate hash.
    """

    def __init__(
        self,
        store: ReadableStore,
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
        self._cohorts = np.zeros(c.N_COHORTS, np.int64)
        self._max_invalidated = limits.max_invalidated
        self._invalidated = np.zeros((_slots_for(limits.max_invalidated), 3), np.int64)
        self._n_invalidated = 0
        self._invalidating = threading.Lock()
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
            (c.COHORTS, address_of(self._cohorts)),
            (c.INVALIDATED, address_of(self._invalidated)),
            (c.INVALIDATED_MASK, len(self._invalidated) - 1),
        ):
            self._head[at // 8] = value
        self._head[c.HASH_KEY // 8 : c.HASH_KEY // 8 + 2] = self._key.view(np.int64)
        self.context = self.context_of(store)
        self.context_at = address_of(self.context)

    def context_of(self, store: ReadableStore) -> NDArray[np.int64]:
        """What one scoring call is told, int64, for states of `store`: any with the same program.

        Several contexts may share the tier; one call at a time holds the interpreter lock.
        """
        context = np.zeros(c.CONTEXT_WORDS, np.int64)
        for at, value in (
            (c.STORE, store.address),
            (c.CODE, store.code_at),
            (c.IMAGE, 0 if self.forest is None else self.forest.address),
            (c.TIER, self.address),
            (c.SCRATCH, store.scratch_at),
        ):
            context[at // 8] = value
        return context

    def invalidate(
        self,
        *,
        generation: int | None = None,
        model: bool = False,
        cohort: int | None = None,
        token: bytes | None = None,
    ) -> int:
        """Serve nothing more that was computed for this up to now; the invalidation's number.

        One of: model, all; cohort, its number among the model's; token, the 16 bytes of an
        entity's. generation: a number that is larger than all before it; by default the next one.
        """
        if (model, cohort is not None, token is not None).count(True) != 1:
            raise ValueError("one of model, cohort and token says what is invalidated")
        with self._invalidating:
            number = self.generation + 1 if generation is None else generation
            # What is computed from now on carries it, before anything older is refused.
            self._raise(c.NOW, number)
            if cohort is not None:
                self._cohorts[cohort] = max(int(self._cohorts[cohort]), number)
            elif token is None or not self._note(token, number):
                self._raise(c.MODEL_FROM, number)
            self._raise(c.NEWEST_INVALIDATION, number)
        return number

    @property
    def generation(self) -> int:
        """The number of the newest invalidation that is known; 0 before the first."""
        return int(self._head[c.NOW // 8])

    @property
    def n_invalidated(self) -> int:
        """Entities that are invalidated one by one."""
        return self._n_invalidated

    def _raise(self, at: int, number: int) -> None:
        self._head[at // 8] = max(int(self._head[at // 8]), number)

    def _note(self, token: bytes, number: int) -> bool:
        """Enter an entity's invalidation; False at the limit on their number."""
        low, high = _TOKEN(token)
        mask = len(self._invalidated) - 1
        at = (low & (2**64 - 1)) >> 1 & mask
        while True:
            held = self._invalidated[at]
            if held[2] == 0:
                break
            if held[0] == low and held[1] == high:
                held[2] = max(int(held[2]), number)
                return True
            at = (at + 1) & mask
        if self._n_invalidated >= self._max_invalidated:
            return False
        self._n_invalidated += 1
        # Its number last: a reader that comes between finds the slot empty.
        held[0], held[1] = low, high
        held[2] = number
        return True

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


def _slots_for(n: int) -> int:
    """A power of two of slots that `n` tokens fill by half at most."""
    return 2 << max(1, n).bit_length()


def _aligned(n_bytes: int) -> NDArray[np.uint8]:
    """Zeroed bytes that begin on a cache line, kept alive by the array they are a part of."""
    whole = np.zeros(n_bytes + 64, np.uint8)
    start = -address_of(whole) % 64
    return whole[start : start + n_bytes]
