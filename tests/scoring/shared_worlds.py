"""A shared scorer beside an embedded one that is told the same: what tests compare.

States are appended to a real Redis as a consumer appends them, record by record.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import redis

from freshscore.config.clock import Clock
from freshscore.config.secret import Secret
from freshscore.config.settings import Settings
from freshscore.features import layout as rec
from freshscore.features.codec import buckets_of_state, compacted, decode
from freshscore.features.packing import Keys, Packer
from freshscore.features.past_events import by_bucket
from freshscore.features.program import compiled
from freshscore.features.record_making import RecordMaker, time_of
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.state_layout import state_fingerprints
from freshscore.features.transaction import Transaction
from freshscore.invalidation.delivery import Delivered
from freshscore.scoring.leases import Lease
from freshscore.scoring.serving import ServableModel
from freshscore.scoring.shared_scorer import SharedScorer
from freshscore.simulations.clock import VirtualClock
from tests.features.stores import client_of
from tests.laws.law_specifications import Scaled
from tests.laws.traffic import Traffic
from tests.laws.worlds import MONDAY_MS, SECRET, Limits, World

EPOCH = b"an epoch"


@dataclass
class HeldWriter:
    """Takes messages, and acknowledges them when the test says so; decisions at once."""

    sent: list[tuple[str, bytes | None, bytes]] = field(default_factory=list)
    waiting: list[Callable[[Delivered | None], None]] = field(default_factory=list)

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        *,
        event_ms: int | None = None,
        done: Callable[[Delivered | None], None] | None = None,
    ) -> None:
        self.sent.append((topic, key, value))
        if done is None:
            return
        if topic == "decisions":
            done(Delivered(topic, 0, 0, -1))
        else:
            self.waiting.append(done)

    def acknowledge(self, arrival_ms: int | None) -> None:
        """Tell all senders where their messages stand; None: that they were lost."""
        waiting, self.waiting = self.waiting, []
        for done in waiting:
            done(None if arrival_ms is None else Delivered("", 0, 0, arrival_ms))

    def flush(self, timeout_s: float) -> None:
        """Everything is handed over at once."""

    def close(self, timeout_s: float) -> None:
        """Nothing is left."""


@dataclass
class GivenLease:
    """A lease that ends when the test says so."""

    until_s: float = float("inf")
    seen: int = 0

    def close(self) -> None:
        """Nothing is held."""


class SharedWorld:
    """A shared scorer on a real Redis, and the embedded world that is told the same.

    Time stands still on `clock`, unless a test moves it, or gives another. `secret` is that of what
    is shared: a successor of the embedded world's during a rotation. groups: settings of other
    groups.
    """

    def __init__(
        self,
        url: str,
        namespace: str,
        scaled: Scaled,
        model: ServableModel,
        limits: Limits | None = None,
        *,
        cluster: bool = False,
        writer: HeldWriter | None = None,
        lease: Lease | None = None,
        redis_settings: dict[str, Any] | None = None,
        kafka_settings: dict[str, Any] | None = None,
        clock: Clock | None = None,
        secret: Secret = SECRET,
        **groups: dict[str, Any],
    ) -> None:
        self.model = model
        self.limits = limits or Limits(horizon_ms=scaled.horizon_ms)
        self.embedded = World(scaled.specification, model, self.limits)
        self.program = compiled(scaled.specification)
        self.keys = Keys(self.program, secret)
        self.packer = Packer(self.program, self.keys, model.codes, model.cohorts)
        self.names = RedisKeys(namespace, state_fingerprints(self.program))
        self.settings = self._settings(
            url, namespace, cluster, redis_settings, {"kafka": kafka_settings or {}, **groups}
        )
        self.nodes = Nodes.open(self.settings.redis)
        self.clock = VirtualClock(MONDAY_MS)
        self._clock = clock or self.clock
        self._scorers: list[SharedScorer] = []
        self.scorer = self.another(model, writer, lease)
        self.records = RecordMaker(self.program, self.keys)
        self.traffic = Traffic(scaled, random.Random(7))
        self.written: set[tuple[int, bytes]] = set()
        self.former: set[tuple[int, bytes]] = set()
        self.report(0, 0)

    def another(
        self,
        model: ServableModel,
        writer: HeldWriter | None = None,
        lease: Lease | None = None,
    ) -> SharedScorer:
        """One more scorer on the same states, as another process has it."""
        scorer = SharedScorer(
            self.settings,
            Nodes.open(self.settings.redis),
            model,
            self.program,
            self.keys,
            writer=writer,
            lease=lease,
            clock=self._clock,
            seed=7,
        )
        self._scorers.append(scorer)
        return scorer

    def _settings(
        self,
        url: str,
        namespace: str,
        cluster: bool,
        redis_settings: dict[str, Any] | None,
        groups: dict[str, dict[str, Any]],
    ) -> Settings:
        limits = self.limits
        return Settings.model_validate(
            {
                "store": {
                    "backend": "redis",
                    "horizon_s": limits.horizon_ms // 1000,
                    "skew_s": limits.skew_ms // 1000,
                    "max_events_per_entity": limits.max_events_per_entity,
                },
                "cache": {
                    "max_bytes": limits.cache_bytes,
                    "probe_share": limits.probe_share,
                    "valid_until_cap_s": limits.cap_ms // 1000,
                    "valid_until_max_steps": limits.max_steps,
                },
                "redis": {
                    "url": url,
                    "namespace": namespace,
                    "cluster": cluster,
                    **(redis_settings or {}),
                },
                **groups,
            }
        )

    @cached_property
    def client(self) -> redis.Redis:
        """The library's own client."""
        client: redis.Redis = client_of(self.nodes)
        return client

    def report(self, watermark_ms: int, complete_since_ms: int, epoch: bytes = EPOCH) -> None:
        """Say how far the nodes have got."""
        summary = epoch + struct.pack("<3q", watermark_ms, complete_since_ms, 0)
        for tag in self.nodes.tags:
            self.client.set(self.names.progress(tag), summary)

    def observe(self, payment: Transaction, *, only: str = "both") -> bytes:
        """Count a payment, in Redis, embedded, or in both; its row."""
        if only != "redis" and self._is_beyond(payment):
            return self.embedded.row(payment)
        row = self.packed(payment)
        if only != "embedded":
            for entity, token in enumerate(self.records.tokens(row)):
                if token is not None:
                    self.append(entity, token, self.records.event(row, entity))
        return row

    def packed(self, payment: Transaction) -> bytes:
        """The row of a payment under the keys of what is shared."""
        return self.packer.row(payment)

    def _is_beyond(self, payment: Transaction) -> bool:
        return self.embedded.store.observe(self.embedded.row(payment)) == "beyond reach"

    def label(self, payment: Transaction, fact: int, value: bool, known_ms: int) -> None:
        """Say a fact of a payment, in both, unless its event is beyond reach."""
        row = self.embedded.row(payment)
        sent_ms = payment.time
        if self.embedded.store.label(row, fact, value, known_ms, sent_ms, False) == "beyond reach":
            return
        row = self.packed(payment)
        for entity, token in enumerate(self.records.tokens(row)):
            if token is not None:
                record = self.records.fact(
                    row,
                    entity,
                    time_ms=time_of(row),
                    fact=fact,
                    value=value,
                    known_at_ms=known_ms,
                    sender_ms=sent_ms,
                )
                self.append(entity, token, record)

    def append(self, entity: int, token: bytes, record: bytes) -> None:
        """Append a record to a state."""
        self.written.add((entity, token))
        if int.from_bytes(record[rec.TIME : rec.TIME + 8], "little") >> 16 < self.keys.since_ms:
            self.former.add((entity, token))
        self.client.append(self.state_key(entity, token), record)

    def state_of(self, entity: int, token: bytes) -> bytes:
        """The bytes of a state."""
        held: Any = self.client.get(self.state_key(entity, token))
        return bytes(held)

    def state_key(self, entity: int, token: bytes) -> bytes:
        """The key of a state."""
        return self.names.state(token, self.records.layouts[entity].fingerprint)

    def compact(
        self,
        fold_below_ms: int,
        chance: random.Random,
        share: float = 0.5,
        forget_below_ms: int = 0,
        early_below_ms: int = 0,
    ) -> None:
        """Compact some states as the consumer does, keeping what was folded."""
        for entity, token in sorted(self.written):
            if chance.random() >= share:
                continue
            layout = self.records.layouts[entity]
            key = self.state_key(entity, token)
            state: Any = self.client.get(key)
            early_ms = early_below_ms
            if self.keys.former is not None and (entity, token) in self.former:
                # A compactor takes the time of a record for it.
                early_ms = min(early_ms, self.keys.since_ms)
            past: dict[int, Any] = {
                bucket: self.client.get(self.names.past(token, layout.fingerprint, bucket)) or b""
                for bucket in buckets_of_state(decode(state, layout))
            }
            found = compacted(
                state,
                layout,
                nonce=chance.getrandbits(64),
                forget_below_ms=forget_below_ms,
                fold_below_ms=fold_below_ms,
                summarise_below_ms=early_ms,
                past=past,
            )
            for bucket, records in by_bucket(found.folded, layout).items():
                name = self.names.past(token, layout.fingerprint, bucket)
                self.client.append(name, records)
            self.client.set(key, found.state)

    def close(self) -> None:
        """Close all scorers."""
        for scorer in self._scorers:
            scorer.close()
        self.nodes.close()
        self.embedded.scorer.close()
