"""A scorer made of its parts, with a secret that the oracles know too.

What is known beside the public face: the key of identities, what members are hashed of, and the
memory of store and cache, which canaries damage.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from freshscore.config.secret import Secret
from freshscore.config.settings import Settings
from freshscore.features import layout as rec
from freshscore.features import tables
from freshscore.features.packing import Keys
from freshscore.features.program import compiled
from freshscore.features.specification import FeatureSpecification
from freshscore.features.store import MemoryStore, StoreLimits
from freshscore.features.transaction import Transaction
from freshscore.invalidation.embedded import EmbeddedState
from freshscore.invalidation.feed import Acceptance, Feed
from freshscore.scoring.scorer import Scorer
from freshscore.scoring.serving import ServableModel, Serving
from freshscore.scoring.tier import TierLimits
from freshscore.simulations.oracle import PlainOracle

SECRET = Secret(b"laws" * 8, "these tests")
CURRENCY = "EUR"
MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
# 2023-11-13, a Monday, 00:00 UTC: a line of every grid of seconds, minutes, hours or days.
MONDAY_MS = 1_699_833_600_000


@dataclass(frozen=True)
class Limits:
    """What bounds a world; the defaults are out of the way."""

    horizon_ms: int = 10 * MINUTE_MS
    skew_ms: int = MINUTE_MS
    max_entities: int = 20_000
    max_payments: int = 200_000
    max_events_per_entity: int = 8_192
    arena_bytes: int = 1 << 25
    cache_bytes: int = 1 << 21
    probe_share: float = 0.0
    cap_ms: int = HOUR_MS
    max_steps: int = 16
    inflight_wait_s: float = 5.0


class World:
    """One store and a scorer on it."""

    def __init__(
        self,
        specification: FeatureSpecification,
        model: ServableModel,
        limits: Limits | None = None,
        *,
        secret: Secret = SECRET,
        store: MemoryStore | None = None,
    ) -> None:
        self.specification = specification
        self.model = model
        self.limits = limits or Limits()
        self.store = store or new_store(specification, self.limits, secret)
        cache = TierLimits(
            self.limits.cache_bytes,
            self.limits.probe_share,
            self.limits.cap_ms,
            self.limits.max_steps,
        )
        self.serving = Serving(self.store, model, cache, seed=7)
        acceptance = Acceptance(self.limits.horizon_ms, self.limits.skew_ms)
        self.feed = Feed(self.store, self.serving.packer, acceptance)
        self.scorer = Scorer(
            Settings.model_validate({"cache": {"inflight_wait_s": self.limits.inflight_wait_s}}),
            EmbeddedState(self.store, acceptance),
            self.feed,
            self.serving,
        )

    @property
    def record_key(self) -> bytes:
        """The key of identities."""
        return self.store.keys.record

    def row(self, transaction: Transaction) -> bytes:
        """What the kernels read of a transaction."""
        return self.serving.packer.row(transaction)

    def features(self, transaction: Transaction, as_of_ms: int) -> NDArray[np.float64]:
        """The store's own vector, past the cache."""
        return self.store.features(self.row(transaction), as_of_ms)

    def fresh_score(self, transaction: Transaction, as_of_ms: int) -> float:
        """What the model gives for the store's own vector."""
        vector = self.features(transaction, as_of_ms)
        return float(self.model.predict(vector[np.newaxis])[0])

    def known_instants(self) -> set[int]:
        """Every instant at which a fact of any state became or becomes known."""
        found: set[int] = set()
        for words in records_of(self.store):
            facts = words[(words[:, rec.TIME // 8] >> 14) & 3 == rec.FACT]
            found |= set((facts[:, rec.CONTENT // 8] >> 16).tolist())
        return found

    def plain_oracle(self) -> PlainOracle:
        """An oracle that has seen nothing yet, with this world's keys and acceptance."""
        return PlainOracle(
            self.specification,
            horizon_ms=self.limits.horizon_ms,
            skew_ms=self.limits.skew_ms,
            record_key=self.record_key,
        )

    def footprint(self) -> dict[str, object]:
        """Everything that a refused call must leave as it was; versions of all states included."""
        counts = self.scorer.stats()
        return {
            "versions": versions(self.store),
            "store": counts["store"],
            "answers": counts["answers"],
            "cache": counts["cache"],
        }


def new_store(
    specification: FeatureSpecification, limits: Limits, secret: Secret = SECRET
) -> MemoryStore:
    """An empty store."""
    program = compiled(specification)
    return MemoryStore(
        program,
        Keys(program, secret),
        StoreLimits(
            max_entities=limits.max_entities,
            max_payments=limits.max_payments,
            max_events_per_entity=limits.max_events_per_entity,
            horizon_ms=limits.horizon_ms,
            arena_bytes=limits.arena_bytes,
        ),
    )


def records_of(store: MemoryStore) -> Iterator[NDArray[np.int64]]:
    """The records of every state, int64 (n, words of a record): views, so canaries may write."""
    for entity, layout in enumerate(store.program.entities):
        for row in entity_rows(store, entity):
            n, at = int(row[tables.COUNT // 8]), int(row[tables.RECORDS // 8])
            if n:
                held = (ctypes.c_int64 * (n * layout.words)).from_address(at)
                yield np.ctypeslib.as_array(held).reshape(n, layout.words)


def entity_rows(store: MemoryStore, entity: int) -> NDArray[np.int64]:
    """The rows of one kind of entity, int64 (n, words of a row): views, so canaries may write."""
    n = int(store.head[(tables.ENTITY + tables.ENTITY_HEAD * entity + tables.ROW_COUNT) // 8])
    words = tables.ENTITY_ROW // 8
    return store._rows[entity][: n * words].reshape(n, words)


def versions(store: MemoryStore) -> Mapping[tuple[int, bytes], bytes]:
    """(kind of entity, token) -> version, of every state that has one."""
    found = {}
    for entity in range(len(store.program.entities)):
        for row in entity_rows(store, entity):
            version = row[2:4].tobytes()
            if version != bytes(16):
                found[entity, row[:2].tobytes()] = version
    return found
