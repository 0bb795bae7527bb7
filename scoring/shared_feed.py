"""Observing and labelling where events flow through Kafka: messages out, and what is pending.

The log decides on acceptance, by the stamp that its broker gives; the acknowledgement brings that
stamp, so an event that will be refused is no longer counted here either. While Kafka is away what
was observed waits in the journal, if there is one, and counts here all the time.
Rule: identifiers leave as keyed hashes only; nothing is pending that was not handed to the log.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import datetime

from freshscore.config.clock import Clock
from freshscore.config.errors import BadFact, BadTransaction, SettingsError
from freshscore.config.settings import KafkaSettings
from freshscore.features.packing import Packer
from freshscore.features.record_making import RecordMaker, time_of
from freshscore.features.redis_keys import tag_of
from freshscore.features.transaction import Transaction
from freshscore.invalidation.delivery import Delivered, Writer
from freshscore.invalidation.feed import Acceptance, check_distance, checked_label, known_ms_of
from freshscore.invalidation.messages import encode_label, encode_transaction
from freshscore.scoring.pending import PendingEvent, PendingEvents


class SharedFeed:
    """Hands events and facts to the log, and keeps them pending until Redis shows them.

    writer: None where the settings say that the payments flow from elsewhere.
    """

    def __init__(
        self,
        writer: Writer | None,
        settings: KafkaSettings,
        packer: Packer,
        acceptance: Acceptance,
        pending: PendingEvents,
        clock: Clock,
    ) -> None:
        self._writer = writer
        self._settings = settings
        self._packer = packer
        self._acceptance = acceptance
        self._pending = pending
        self._clock = clock
        self._records = RecordMaker(packer.program, packer.keys)
        self._counts: dict[str, int] = {}
        self._counting = threading.Lock()

    @property
    def counts(self) -> dict[str, int]:
        """What was handed over, and what became of it so far."""
        with self._counting:
            return dict(self._counts)

    def observe(self, transaction: Transaction, row: bytes, has_arrival: bool) -> None:
        """Send the event in `row`.

        Raises SettingsError, BadTransaction, and, where it is not taken, Unavailable, Backpressure.
        """
        writer = self._checked_writer()
        if has_arrival:
            raise BadTransaction(
                "arrival is the stamp that the log gives in a shared deployment; leave it out"
            )
        packer = self._packer
        time_ms = time_of(row)
        key_id = packer.keys.key_id_at(time_ms)
        value = encode_transaction(packer.program, key_id, transaction, row)
        if len(value) > self._settings.max_message_bytes:
            raise BadTransaction(self._too_long(value))
        records = self._by_token(row, lambda entity: self._records.event(row, entity))
        event = self._pending.add(records)

        def done(at: Delivered | None) -> None:
            self._acknowledged(event, time_ms, at)

        try:
            topic = self._settings.transactions_topic
            writer.send(topic, self._key(row), value, event_ms=time_ms, done=done)
        except BaseException:
            self._pending.give_up(event, "not sent")
            self._count("not sent")
            raise
        self._count("sent")

    def label(
        self,
        transaction_id: str,
        flags: Mapping[str, bool],
        known_at: datetime | int | None,
        entities: Mapping[str, str] | None,
        time: datetime | int | None,
    ) -> None:
        """Send facts of one payment. Raises SettingsError, BadFact, Unavailable, Backpressure."""
        writer = self._checked_writer()
        packer = self._packer
        numbers, row = checked_label(packer, transaction_id, flags, entities, time)
        sent_ms = self._clock.now_ms()
        known_ms = None if known_at is None else known_ms_of(known_at)
        looked_up = entities is None
        if not looked_up:
            check_distance(sent_ms, time_of(row))
        try:
            value = encode_label(
                packer.program,
                packer.keys.key_id_at(time_of(row)),
                row,
                flags,
                sent_ms,
                known_ms,
                looked_up=looked_up,
            )
        except BadTransaction as problem:
            raise BadFact(str(problem)) from None
        if len(value) > self._settings.max_message_bytes:
            raise BadFact(self._too_long(value))

        def done(at: Delivered | None) -> None:
            # Only now is it known since when the facts are: not before they arrived.
            if at is None:
                self._count("fact not sent", len(flags))
            elif not looked_up and at.arrival_ms >= 0:
                known = max(sent_ms, known_ms or sent_ms, at.arrival_ms)
                for name, value in flags.items():
                    fact = self._pending.add(self._fact(row, numbers[name], value, known, sent_ms))
                    self._pending.acknowledged(fact)

        try:
            writer.send(self._settings.labels_topic, self._key(row), value, done=done)
        except BaseException:
            self._count("fact not sent", len(flags))
            raise
        self._count("fact sent", len(flags))

    def flush(self, timeout_s: float) -> None:
        """Wait until the log has acknowledged everything. Raises Unavailable."""
        if self._writer is not None:
            self._writer.flush(timeout_s)

    def close(self, timeout_s: float) -> None:
        """Send what is left, for `timeout_s` at most."""
        if self._writer is not None:
            self._writer.close(timeout_s)

    def _checked_writer(self) -> Writer:
        if self._writer is None:
            raise SettingsError(
                "kafka.produce is false: payments and labels reach the topics from elsewhere, and"
                " this scorer only scores"
            )
        return self._writer

    def _too_long(self, value: bytes) -> str:
        # Consumers would set it aside; a broker that refuses it would be asked again and again.
        return (
            f"its message has {len(value)} bytes; kafka.max_message_bytes is"
            f" {self._settings.max_message_bytes}"
        )

    def _acknowledged(self, event: PendingEvent, time_ms: int, at: Delivered | None) -> None:
        limits = self._acceptance
        if at is None:
            self._pending.give_up(event, "not sent")
            self._count("not sent")
        elif at.arrival_ms >= 0 and not (
            at.arrival_ms - limits.horizon_ms <= time_ms <= at.arrival_ms + limits.skew_ms
        ):
            self._pending.give_up(event, "refused")
            self._count("late" if time_ms < at.arrival_ms else "early")
        else:
            self._pending.acknowledged(event)

    def _fact(
        self, row: bytes, fact: int, value: bool, known_ms: int, sent_ms: int
    ) -> dict[bytes, bytes]:
        """The record of a fact, by the token of each of its payment's entities."""

        def of(entity: int) -> bytes:
            return self._records.fact(
                row,
                entity,
                time_ms=time_of(row),
                fact=fact,
                value=value,
                known_at_ms=known_ms,
                sender_ms=sent_ms,
            )

        return self._by_token(row, of)

    def _by_token(self, row: bytes, record: Callable[[int], bytes]) -> dict[bytes, bytes]:
        return {
            token: record(entity)
            for entity, token in enumerate(self._records.tokens(row))
            if token is not None
        }

    def _key(self, row: bytes) -> bytes | None:
        """What messages of one payment are partitioned by: the token of its first entity."""
        return next((tag_of(token) for token in self._records.tokens(row) if token), None)

    def _count(self, outcome: str, count: int = 1) -> None:
        with self._counting:
            self._counts[outcome] = self._counts.get(outcome, 0) + count
