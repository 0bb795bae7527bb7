"""Writing to the log: a producer that outlives outages.

kafka-python's hangs for good after a delivery that timed out, so none ever does.
Rule: nothing of kafka-python leaves this module; nothing is taken that cannot be sent.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import kafka
import kafka.errors

from freshscore.config.errors import SettingsError, Unavailable
from freshscore.config.settings import KafkaSettings
from freshscore.invalidation.delivery import Delivered
from freshscore.invalidation.kafka_connecting import connection, translated

# Far above any outage: a producer whose delivery timed out never recovers.
_DELIVERY_MS: Final = 24 * 3_600_000
_LINGER_MS: Final = 2
_BATCH_BYTES: Final = 256 * 1024
# Between two tries to connect.
_AGAIN_S: Final = 2.0


class LogWriter:
    """A producer. Messages may be written twice, or in another order: readers hold sets.

    wait: whether to begin with a connection; else one is made in a thread, for as long as it takes.
    Whoever sends waits for the first try; after it, and until there is one, nothing is taken.
    """

    def __init__(self, settings: KafkaSettings, *, wait: bool = True) -> None:
        self._settings = settings
        self._producer: Any = None
        self._closed = threading.Event()
        self._has_tried = threading.Event()
        self._counting = threading.Lock()
        self._n_failed = 0
        if wait:
            self._producer = _producer(settings)
        else:
            threading.Thread(target=self._connect, name="freshscore-log", daemon=True).start()

    def _connect(self) -> None:
        while not self._closed.is_set():
            try:
                producer = _producer(self._settings)
            except (Unavailable, SettingsError) as problem:
                logging.getLogger("freshscore").warning("%s", problem)
                self._has_tried.set()
                self._closed.wait(_AGAIN_S)
                continue
            self._producer = producer
            self._has_tried.set()
            # The first message to a topic waits for where its partitions are, and may wait long
            # once Kafka is away.
            for topic in _topics(self._settings):
                # RuntimeError: closed meanwhile.
                with suppress(kafka.errors.KafkaError, RuntimeError):
                    producer.partitions_for(topic)
            if self._closed.is_set():
                _close(producer, 0.0)
            return

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        *,
        partition: int | None = None,
        stamp_ms: int | None = None,
        event_ms: int | None = None,
        done: Callable[[Delivered | None], None] | None = None,
    ) -> None:
        """Hand a message over for sending; `done` is called with where it stands, None for never.

        stamp_ms: its CreateTime, for historical topics. event_ms: only a journal asks for it; here
        the broker's stamp decides. Raises Unavailable where the producer can take no more within
        kafka.request_timeout_s.
        """
        producer = self._producer
        if producer is None:
            self._has_tried.wait(self._settings.request_timeout_s)
            producer = self._producer
        if producer is None:
            raise Unavailable(f"Kafka at {self._settings.bootstrap_servers} has not answered yet")
        try:
            sent = producer.send(
                topic, value=value, key=key, partition=partition, timestamp_ms=stamp_ms
            )
        except kafka.errors.KafkaError as problem:
            raise Unavailable(f"Kafka takes no message for topic {topic}: {problem}") from problem

        def failed(_: object) -> None:
            with self._counting:
                self._n_failed += 1
            if done is not None:
                done(None)

        if done is not None:
            told = done
            sent.add_callback(lambda at: told(_delivered(at)))
        sent.add_errback(failed)

    def flush(self, timeout_s: float) -> None:
        """Wait until all that was sent is acknowledged.

        Raises Unavailable after `timeout_s`, and where something was not sent since the last time.
        """
        if self._producer is None:
            return
        try:
            self._producer.flush(timeout=timeout_s)
        except kafka.errors.KafkaError as problem:
            raise Unavailable(f"Kafka did not acknowledge within {timeout_s} s") from problem
        with self._counting:
            failed, self._n_failed = self._n_failed, 0
        if failed:
            raise Unavailable(f"{failed} messages did not reach the log")

    def close(self, timeout_s: float) -> None:
        """Send what is left, for `timeout_s` at most."""
        self._closed.set()
        if self._producer is not None:
            _close(self._producer, timeout_s)


def _close(producer: Any, timeout_s: float) -> None:
    # It raises where something was not sent by then.
    with suppress(kafka.errors.KafkaError):
        producer.close(timeout=timeout_s)


def _producer(settings: KafkaSettings) -> Any:
    with translated(settings):
        return kafka.KafkaProducer(
            **connection(settings),
            acks="all",
            # Idempotence guards an order that nobody needs, and such a producer was seen to hang
            # for good after one timeout.
            enable_idempotence=False,
            delivery_timeout_ms=_DELIVERY_MS,
            linger_ms=_LINGER_MS,
            batch_size=_BATCH_BYTES,
            max_request_size=settings.max_message_bytes + _BATCH_BYTES,
            max_block_ms=round(1000 * settings.request_timeout_s),
            allow_auto_create_topics=False,
            metrics_enabled=False,
        )


def _topics(settings: KafkaSettings) -> tuple[str, ...]:
    return settings.transactions_topic, settings.labels_topic, settings.decisions_topic


def _delivered(at: Any) -> Delivered:
    stamped_by_broker = at.timestamp is not None and at.timestamp >= 0
    return Delivered(
        at.topic, at.partition, at.offset, int(at.timestamp) if stamped_by_broker else -1
    )
