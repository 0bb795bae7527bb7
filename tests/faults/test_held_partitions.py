"""A partition that was held is read on, whatever had been fetched of it before."""

from __future__ import annotations

from kafka import KafkaProducer

from freshscore.config.settings import KafkaSettings
from freshscore.invalidation.kafka_reading import LogReader
from tests.servers.kafka_broker import KafkaBroker

# More than one poll brings: a poll takes 256 batches, and each message is one here.
_MANY = 600
_POLLS = 40


def test_a_partition_is_read_again_after_a_pause(kafka: KafkaBroker, namespace: str) -> None:
    """Paused with half of a fetch handed out, set back to its begin, and resumed."""
    kafka.create_topic(namespace, partitions=2)
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap, batch_size=0, linger_ms=0)
    for partition in (0, 1):
        for number in range(_MANY):
            producer.send(namespace, b"%d" % number, partition=partition)
    producer.flush(timeout=20)
    producer.close()
    reader = LogReader(KafkaSettings(bootstrap_servers=kafka.bootstrap), [namespace], group=None)
    both = [(namespace, 0), (namespace, 1)]
    reader.assign(both)
    for at in both:
        reader.seek(at, 0)
    held, other = _first_of(reader), 0
    reader.pause([held])
    reader.seek(held, 0)
    for _ in range(_POLLS):
        fetched = reader.poll(100)
        assert held not in [one.partition for one in fetched]
        other = max([other, *(one.next_offset for one in fetched)])
        if other == _MANY:
            break
    assert other == _MANY
    reader.resume([held])
    offset = 0
    for _ in range(_POLLS):
        for one in reader.poll(100):
            assert one.partition == held
            assert one.offsets[0] <= offset
            offset = one.next_offset
        if offset == _MANY:
            break
    assert offset == _MANY
    reader.close()


def _first_of(reader: LogReader) -> tuple[str, int]:
    """Poll until a partition has handed out some, but not all."""
    for _ in range(_POLLS):
        for one in reader.poll(200):
            if one.next_offset < _MANY:
                return one.partition
    raise AssertionError("nothing came in part")
