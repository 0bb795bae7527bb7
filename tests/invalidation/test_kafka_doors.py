"""The doors to Kafka, on a real broker: reading in place is reading, and trouble has a name."""

from __future__ import annotations

import gzip
import itertools
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import kafka as client
import pytest
from kafka.errors import KafkaTimeoutError

from freshscore.config.clock import SystemClock
from freshscore.config.errors import SettingsError, Unavailable
from freshscore.config.settings import KafkaSettings
from freshscore.invalidation import kafka_writing
from freshscore.invalidation.delivery import Delivered
from freshscore.invalidation.kafka_admin import LogAdmin
from freshscore.invalidation.kafka_batches import Fetched, is_fetched
from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.kafka_writing import LogWriter
from freshscore.invalidation.partitions import Partition
from tests.servers.kafka_broker import KafkaBroker

_LIMIT_POLLS = 200


@pytest.fixture
def settings(kafka: KafkaBroker) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=kafka.bootstrap, max_poll_records=7)


@pytest.fixture
def topic(kafka: KafkaBroker) -> str:
    name = f"t-{uuid.uuid4().hex}"
    kafka.create_topic(name, partitions=2, settings={"message.timestamp.type": "LogAppendTime"})
    return name


@pytest.fixture
def writer(settings: KafkaSettings) -> Iterator[LogWriter]:
    one = LogWriter(settings)
    yield one
    one.close(5.0)


def _read(reader: LogReader, n: int) -> dict[Partition, list[tuple[int, bytes, int]]]:
    """Offset, value and arrival of the next `n` messages, by partition."""
    found: dict[Partition, list[tuple[int, bytes, int]]] = {}
    count = 0
    for _ in range(_LIMIT_POLLS):
        for one in reader.poll(100):
            count += len(one)
            found.setdefault(one.partition, []).extend(_messages(one))
        if count >= n:
            break
    assert count == n
    return found


def _messages(fetched: Fetched) -> Iterator[tuple[int, bytes, int]]:
    for i, offset in enumerate(fetched.offsets.tolist()):
        yield offset, fetched.value(i), int(fetched.spans[i, 2])


def _reference(kafka: KafkaBroker, topic: str) -> dict[Partition, list[tuple[int, bytes, int]]]:
    """What kafka-python alone reads of a topic."""
    consumer = client.KafkaConsumer(bootstrap_servers=kafka.bootstrap)
    parts = [client.TopicPartition(topic, number) for number in (0, 1)]
    consumer.assign(parts)
    consumer.seek_to_beginning(*parts)
    ends = consumer.end_offsets(parts)
    found: dict[Partition, list[tuple[int, bytes, int]]] = {}
    while any(consumer.position(at) < end for at, end in ends.items()):
        for at, records in consumer.poll(100).items():
            some = [(one.offset, one.value or b"", one.timestamp) for one in records]
            found.setdefault((at.topic, at.partition), []).extend(some)
    consumer.close()
    return found


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_it_reads_what_is_there(
    kafka: KafkaBroker, settings: KafkaSettings, topic: str, in_place: bool, compression: Any
) -> None:
    """Values, offsets and stamps; with keys, headers, tombstones, and batches of other clients."""
    producer = client.KafkaProducer(
        bootstrap_servers=kafka.bootstrap, linger_ms=20, compression_type=compression
    )
    for i in range(300):
        value = None if i % 50 == 7 else gzip.compress(b"%d" % i) * (i % 5)
        headers = [("h", b"x" * (i % 3))] if i % 11 == 0 else None
        producer.send(topic, value, b"key-%d" % i if i % 2 else None, headers, i % 2)
    producer.flush()
    producer.close()
    reader = LogReader(settings, [topic], group=None, in_place=in_place)
    reader.assign([(topic, 0), (topic, 1)])
    assert _read(reader, 300) == _reference(kafka, topic)
    reader.seek((topic, 1), 101)
    again = _read(reader, 49)[topic, 1]
    assert [offset for offset, _, _ in again] == [*range(101, 150)]
    reader.close()


def test_a_group_divides_partitions_and_commits(
    settings: KafkaSettings, topic: str, writer: LogWriter
) -> None:
    """What is committed is where the next member begins; nothing is committed by itself."""
    for i in range(10):
        writer.send(topic, None, b"%d" % i, partition=i % 2)
    writer.flush(10.0)
    group = uuid.uuid4().hex
    reader = LogReader(settings, [topic], group=group)
    found = _read(reader, 10)
    assert reader.assignment == {(topic, 0), (topic, 1)} == set(found)
    assert reader.committed((topic, 0)) is None
    reader.commit({(topic, 0): 3, (topic, 1): 5}, wait=True)
    reader.close()
    again = LogReader(settings, [topic], group=group)
    assert {at: [m[0] for m in some] for at, some in _read(again, 2).items()} == {
        (topic, 0): [3, 4]
    }
    with LogAdmin(settings) as admin:
        assert admin.committed(group) == {(topic, 0): 3, (topic, 1): 5}
    again.close()


def test_a_writer_tells_where_a_message_stands(
    settings: KafkaSettings, topic: str, writer: LogWriter
) -> None:
    told: list[Delivered | None] = []
    writer.send(topic, b"k", b"v", partition=1, done=told.append)
    writer.flush(10.0)
    (at,) = told
    assert at is not None
    assert (at.topic, at.partition, at.offset) == (topic, 1, 0)
    assert at.arrival_ms > 1_500_000_000_000


def test_a_part_of_what_was_fetched_knows_what_follows(
    settings: KafkaSettings, topic: str, writer: LogWriter
) -> None:
    """Batches are made of parts: the end of each is the begin of the next."""
    for i in range(9):
        writer.send(topic, None, b"%d" % i, partition=0)
    writer.flush(10.0)
    reader = LogReader(settings, [topic], group=None)
    reader.assign([(topic, 0)])
    fetched: list[Fetched] = []
    while sum(map(len, fetched)) < 9:
        fetched += reader.poll(100)
    parts = [one.part(i, i + 1) for one in fetched for i in range(len(one))]
    assert [one.value(0) for one in parts] == [b"%d" % i for i in range(9)]
    assert [one.next_offset for one in parts] == [*range(1, 10)]
    assert all(
        int(after.offsets[0]) == before.next_offset for before, after in itertools.pairwise(parts)
    )
    reader.close()


def test_an_absent_topic_and_an_absent_broker_are_said(settings: KafkaSettings) -> None:
    with pytest.raises(SettingsError, match="no topic none-of-these"):
        LogReader(settings, ["none-of-these"], group="g")
    away = KafkaSettings(bootstrap_servers="127.0.0.1:1", request_timeout_s=1.0)
    with pytest.raises(
        Unavailable, match=r"\(kafka\.bootstrap_servers\) does not answer within 1\.0 s"
    ):
        LogWriter(away)


def test_a_session_that_the_brokers_refuse_is_said(kafka: KafkaBroker, topic: str) -> None:
    """With the setting, its value and their limits; trying again would change nothing."""
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap, session_s=0.5)
    reader = LogReader(settings, [topic], group=uuid.uuid4().hex)
    limits = r"from 1 s \(group\.min\.session\.timeout\.ms\) to 1800 s"
    with pytest.raises(SettingsError, match=rf"kafka\.session_s = 0\.5: .* {limits}"):
        reader.poll(100)
    reader.close()


def test_closing_from_another_thread_ends_a_poll(settings: KafkaSettings, topic: str) -> None:
    """So a consumer that waits for partitions stops at once when it is told to."""
    reader = LogReader(settings, [topic], group=uuid.uuid4().hex)
    closing = threading.Timer(0.2, reader.close)
    closing.start()
    for _ in range(_LIMIT_POLLS):
        if not closing.is_alive():
            break
        reader.poll(50)
    closing.join()


@pytest.mark.parametrize("wait", [True, False])
def test_whatever_is_asked_of_a_reader_that_another_thread_has_closed_is_unavailable(
    settings: KafkaSettings, topic: str, wait: bool
) -> None:
    reader = LogReader(settings, [topic], group=f"g-{topic}")
    while len(reader.assignment) < 2:
        reader.poll(100)
    at = (topic, 0)
    reader.close()
    asked: list[Callable[[], object]] = [
        lambda: reader.seek(at, 0),
        lambda: reader.pause([at]),
        lambda: reader.resume([at]),
        lambda: reader.position(at),
        lambda: reader.committed(at),
        lambda: reader.beginnings([at]),
        lambda: reader.ends([at]),
    ]
    for ask in asked:
        with pytest.raises(Unavailable):
            ask()
    reader.commit({at: 0}, wait=wait)
    assert reader.has_failed_to_commit
    assert reader.poll(100) == []
    assert not reader.assignment


@pytest.mark.parametrize("in_place", [True, False])
def test_what_a_producer_took_back_is_not_read(
    kafka: KafkaBroker, settings: KafkaSettings, topic: str, in_place: bool
) -> None:
    """Of transactions the committed ones count; and a partition that ends in a mark has an end."""
    producer = client.KafkaProducer(
        bootstrap_servers=kafka.bootstrap, transactional_id=uuid.uuid4().hex, acks="all"
    )
    producer.init_transactions()
    for number, commits in enumerate([False, True, False, True, False]):
        producer.begin_transaction()
        for i in range(3):
            producer.send(topic, b"%d %d" % (number, i), partition=0)
        producer.flush()
        if commits:
            producer.commit_transaction()
        else:
            producer.abort_transaction()
    producer.close()
    reader = LogReader(settings, [topic], group=None, in_place=in_place)
    reader.assign([(topic, 0)])
    found = _read(reader, 6)[topic, 0]
    assert [value for _, value, _ in found] == [b"%d %d" % (n, i) for n in (1, 3) for i in range(3)]
    for _ in range(_LIMIT_POLLS):
        if reader.position((topic, 0)) == reader.ends([(topic, 0)])[topic, 0]:
            break
        assert reader.poll(100) == []
    assert reader.position((topic, 0)) == reader.ends([(topic, 0)])[topic, 0] == 20
    reader.close()


@pytest.mark.parametrize("is_behind", [False, True])
def test_a_reader_fetches_ahead_only_where_it_is_behind(
    settings: KafkaSettings, topic: str, writer: LogWriter, is_behind: bool
) -> None:
    """Else what it hands out would be as old as its turn before, for ever."""
    reader = LogReader(settings, [topic], group=None)
    reader.assign([(topic, 0)])
    fetcher = reader._consumer._fetcher
    for n_before in range(3):
        # A poll that gave up leaves its fetch behind, which brings what comes then.
        _wait_until(lambda: reader.poll(1) == [] and fetcher.in_flight_fetches())
        writer.send(topic, None, b"message", partition=0)
        writer.flush(10.0)
        _wait_until(lambda: is_fetched(reader._consumer))
        reader._is_behind = is_behind
        (found,) = reader.poll(100)
        assert found.offsets.tolist() == [n_before]
        assert fetcher.in_flight_fetches() == is_behind
    reader.close()


def test_fetches_begin_apart_while_messages_come(
    kafka: KafkaBroker, topic: str, writer: LogWriter
) -> None:
    """By kafka.fetch_apart_ms; the first after a pause comes at once."""
    apart = KafkaSettings(bootstrap_servers=kafka.bootstrap, fetch_apart_ms=300)
    reader = LogReader(apart, [topic], group=None)
    reader.assign([(topic, 0), (topic, 1)])
    clock = SystemClock()
    reader.poll(1)
    began_s = clock.monotonic_s()
    for _ in range(3):
        writer.send(topic, None, b"message", partition=0)
        writer.flush(10.0)
        _read(reader, 1)
    assert clock.monotonic_s() - began_s >= 2 * 0.3
    reader.close()


def _wait_until(holds: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(_LIMIT_POLLS):
        if holds():
            return
        waiting.wait(0.02)
    raise AssertionError("it did not come to hold")


class _Unsent:
    """A client that is asked about topics until it is closed, and cannot send what it holds."""

    def __init__(self) -> None:
        self.asked, self.go_on = threading.Event(), threading.Event()
        self.n_closed = 0

    def partitions_for(self, topic: str) -> None:
        self.asked.set()
        self.go_on.wait(10.0)

    def close(self, timeout: float) -> None:
        self.n_closed += 1
        raise KafkaTimeoutError("Timeout waiting for future")


def test_a_writer_that_is_closed_while_it_connects_ends_quietly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = _Unsent()
    loud: list[object] = []
    monkeypatch.setattr(kafka_writing, "_producer", lambda settings: client)
    monkeypatch.setattr(threading, "excepthook", loud.append)
    writer = LogWriter(KafkaSettings(), wait=False)
    assert client.asked.wait(10.0)
    writer.close(0.0)
    client.go_on.set()
    for thread in threading.enumerate():
        if thread.name == "freshscore-log":
            thread.join(10.0)
    assert client.n_closed == 2
    assert not loud


def test_a_writer_that_does_not_wait_takes_nothing_until_it_is_connected(
    kafka: KafkaBroker, topic: str
) -> None:
    """So a scorer opens while Kafka is away; where it is there, the first message waits for it."""
    away = LogWriter(
        KafkaSettings(bootstrap_servers="127.0.0.1:1", request_timeout_s=1.0), wait=False
    )
    with pytest.raises(Unavailable, match="has not answered yet"):
        away.send(topic, None, b"lost")
    away.flush(0.1)
    away.close(0.1)
    there = LogWriter(KafkaSettings(bootstrap_servers=kafka.bootstrap), wait=False)
    told: list[Delivered | None] = []
    there.send(topic, None, b"kept", done=told.append)
    there.flush(10.0)
    assert told[0] is not None
    there.close(5.0)
