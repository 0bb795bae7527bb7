"""One run of something that reads a topic of payments: a bare loop, or our consumer, timed.

A run begins when the reader has its partitions, and ends when what was asked for is read, for ours:
acknowledged by Redis and told on the invalidation stream.
Rule: what is read twice counts once, so a run that began again is slower, not faster.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Final

from kafka import KafkaConsumer, TopicPartition

from freshscore.config.settings import Settings
from freshscore.invalidation.assembling import open_consumer
from freshscore.invalidation.consumer import Consumer
from freshscore.invalidation.kafka_reading import LogReader
from tests.bench.consumer_topics import N_PARTITIONS, Log

# What the Java client does too; kafka-python's own default is slower.
_BARE_RECORDS: Final = 5_000
_POLL_MS: Final = 100
_LIMIT_S: Final = 300.0


def settings_of(bootstrap: str, redis_url: str, log: Log, **more: Any) -> Settings:
    """A consumer's settings, with a consumer group of its own. more: `GROUP__NAME=value`."""
    groups: dict[str, dict[str, Any]] = {
        "store": {"backend": "redis", "specification": "handbook"},
        "kafka": {
            "bootstrap_servers": bootstrap,
            "transactions_topic": log.name,
            "labels_topic": log.labels,
            "historical": True,
            "group": uuid.uuid4().hex,
        },
        # On a busy machine a server may be away for a second, which is not what is measured.
        "redis": {"url": redis_url, "timeout_ms": 10_000, "label_index_days": 0},
    }
    for name, value in more.items():
        group, _, key = name.partition("__")
        groups[group][key] = value
    return Settings.model_validate(groups)


def bare(bootstrap: str, log: Log, n: int) -> float:
    """Messages a second of a loop that polls `n` of them and does nothing."""
    consumer: Any = KafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=None,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_poll_records=_BARE_RECORDS,
    )
    consumer.assign([TopicPartition(log.name, number) for number in range(N_PARTITIONS)])
    done, began_s = 0, 0.0
    while done < n:
        records = consumer.poll(_POLL_MS)
        began_s = began_s or perf_counter()
        done += sum(map(len, records.values()))
    elapsed_s = perf_counter() - began_s
    consumer.close()
    return done / elapsed_s


@contextmanager
def opened(settings: Settings, *, in_place: bool = True) -> Iterator[Consumer]:
    """A consumer that has its partitions."""
    consumer = open_consumer(settings)
    try:
        if not in_place:
            consumer = _reading_publicly(consumer, settings)
        while not consumer._places:
            consumer.turn()
        yield consumer
    finally:
        consumer.close()


def _reading_publicly(consumer: Consumer, settings: Settings) -> Consumer:
    """One of the same parts that reads through public calls of kafka-python alone."""
    consumer._parts.reader.close()
    kafka = settings.kafka
    topics = [kafka.transactions_topic, kafka.labels_topic]
    # The first reader was never polled, so the group has no other member.
    reader = LogReader(kafka, topics, group=kafka.group, in_place=False)
    return Consumer(settings, consumer._parts._replace(reader=reader))


def seconds_for(consumer: Consumer, n: int) -> tuple[float, int]:
    """How long it takes for `n` messages or some more, and how many those are."""
    began_s = perf_counter()
    while _applied(consumer) < n:
        consumer.turn(wait_ms=_POLL_MS)
        assert perf_counter() - began_s < _LIMIT_S, f"{_applied(consumer)} of {n} messages"
    consumer._under_way.settle()
    return perf_counter() - began_s, _applied(consumer)


def consumed(settings: Settings, n: int, *, in_place: bool = True) -> float:
    """Messages a second, from the log to acknowledged by Redis and told on the stream."""
    with opened(settings, in_place=in_place) as consumer:
        elapsed_s, done = seconds_for(consumer, n)
        return done / elapsed_s


def _applied(consumer: Consumer) -> int:
    """Messages that Redis has acknowledged, each counted once."""
    return sum(place.applied for place in consumer._places.values())
