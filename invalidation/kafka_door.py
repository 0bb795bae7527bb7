"""The door to Kafka: reading the log, writing to it, and what an operator asks of it.

The only module that imports kafka-python (with crc32c beside it, which triples its speed). What is
known to go wrong there is handled here: a join that is never applied (also with kafka-python's
inside, the coordinator), a producer that hangs after an outage, waits of half a minute, and one
vague error for every wrong credential.

Reading in place: `PartitionRecords._unpack_records` of the fetcher is replaced on the instance by
one that hands out whole batches (invalidation/record_batches.py). That is kafka-python's inside, so
a test holds it fast, and batches of any other kind go the public way.
Rule: nothing of kafka-python leaves this module: not its classes, not its errors.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Self

import kafka
import kafka.errors
import numpy as np
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.consumer.fetcher import Fetcher
from numpy.typing import NDArray

from freshscore.config.clock import Clock, SystemClock
from freshscore.config.errors import SettingsError, Unavailable
from freshscore.config.settings import KafkaSettings
from freshscore.features.memory import BYTES_AT, address_of
from freshscore.invalidation.record_batches import (
    ARRIVAL,
    BATCH,
    LENGTH,
    SPAN,
    no_spans,
    split_batches,
)

# A wait that ends while a join completes can lose that join for good: longer ones do not.
_JOINING_S: Final = 10.0
# The same for a member that has partitions, so that it can still be stopped, and hear of Redis.
_REJOINING_S: Final = 1.0
# So long without partitions, where others have too few members for all of them, is such a loss.
_STALLED_S: Final = 60.0
# The default, 30 s, is how long clients stay away after an outage of any length.
_RECONNECT_MS: Final = 500
# Far above any outage: a producer whose delivery timed out never recovers.
_DELIVERY_MS: Final = 24 * 3_600_000
_FETCH_BYTES: Final = 1 << 20
# Batches of one poll; those of a busy producer hold hundreds of messages.
_BATCHES: Final = 256
_LINGER_MS: Final = 2
# Between two tries to connect, and how long leaving may take: less than supervisors wait.
_AGAIN_S: Final = 2.0
_LEAVING_MS: Final = 5_000
_METADATA_MS: Final = 5_000
_BATCH_BYTES: Final = 256 * 1024

Partition = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Fetched:
    """Messages of one partition, in the order of their offsets.

    spans: int64 (n, 3), for each the address and length of its value (0 and 0: it has none) and its
    arrival in ms. offsets: int64 (n,). next_offset: of the message behind them. held: what keeps
    the values where they are.
    """

    partition: Partition
    spans: NDArray[np.int64]
    offsets: NDArray[np.int64]
    next_offset: int
    held: object

    def __len__(self) -> int:
        return len(self.offsets)

    def part(self, first: int, last: int) -> Fetched:
        """The messages from `first` to `last` - 1."""
        following = self.next_offset if last >= len(self) else int(self.offsets[last])
        return Fetched(
            self.partition, self.spans[first:last], self.offsets[first:last], following, self.held
        )

    def value(self, i: int) -> bytes:
        """The value of one message, copied."""
        address, length = int(self.spans[i, 0]), int(self.spans[i, LENGTH])
        return ctypes.string_at(address, length) if address else b""


class LogReader:
    """A consumer of topics: with a group, one of its members; without, whatever is assigned."""

    def __init__(
        self,
        settings: KafkaSettings,
        topics: Sequence[str],
        *,
        group: str | None,
        in_place: bool = True,
        clock: Clock | None = None,
    ) -> None:
        self._topics = tuple(topics)
        self._clock = clock or SystemClock()
        self._wait_ms = settings.fetch_wait_ms
        self._most = settings.max_poll_records
        session_ms = round(1000 * settings.session_s)
        with _translated(settings):
            self._consumer = kafka.KafkaConsumer(
                **_connection(settings),
                group_id=group,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                allow_auto_create_topics=False,
                fetch_max_wait_ms=min(max(1, settings.fetch_wait_ms), 10_000),
                fetch_min_bytes=1 if settings.fetch_wait_ms == 0 else _FETCH_BYTES // 16,
                max_partition_fetch_bytes=_FETCH_BYTES,
                max_poll_records=_BATCHES if in_place else self._most,
                session_timeout_ms=session_ms,
                heartbeat_interval_ms=max(100, session_ms // 4),
                metrics_enabled=False,
                # A topic that was made anew is another one: its old offsets mean nothing.
                metadata_max_age_ms=_METADATA_MS,
                # What a producer has taken back was never said.
                isolation_level="read_committed",
            )
            missing = [name for name in topics if not self._consumer.partitions_for_topic(name)]
        if missing:
            self._consumer.close(autocommit=False)
            raise SettingsError(
                f"no topic {', '.join(missing)} at {settings.bootstrap_servers};"
                " make them with: freshscore topics check --create"
            )
        if in_place:
            _read_in_place(self._consumer)
        # How often partitions were given out: each time every position begins anew, and what was
        # paused is not any more.
        self.n_assignments = 0
        if group is not None:
            self._consumer.subscribe(self._topics, listener=_Counting(self))
            # A member whose metadata come after its join joins once more, and until then has read
            # its first batches for nothing.
            with _translated(settings):
                self._consumer.topics()
        self._unassigned_since_s: float | None = None
        self._stalled_s = _STALLED_S
        self._closed = threading.Event()
        # Whether a commit that was not waited for failed: set by `poll`, which learns of it.
        self.has_failed_to_commit = False

    @property
    def assignment(self) -> frozenset[Partition]:
        """The partitions that are this reader's now."""
        if self._closed.is_set():
            return frozenset()
        return frozenset((at.topic, at.partition) for at in self._consumer.assignment())

    def partitions(self, topic: str) -> tuple[int, ...]:
        """All partitions of a topic."""
        with _translated():
            return tuple(sorted(self._consumer.partitions_for_topic(topic) or ()))

    def topic_ids(self) -> dict[str, str]:
        """The ids of the topics that there are, as the last metadata told them; asks nobody."""
        found = ((name, self._consumer._cluster.topic_id(name)) for name in self._topics)
        return {name: str(topic_id) for name, topic_id in found if topic_id is not None}

    def assign(self, partitions: Sequence[Partition]) -> None:
        """Read these partitions, outside of any group."""
        self._consumer.assign([kafka.TopicPartition(*at) for at in partitions])

    def poll(self, wait_ms: int | None = None) -> list[Fetched]:
        """What has come, waiting for it `wait_ms` at most, and longer for a join to complete.

        Raises Unavailable for a damaged batch: it is fetched again.
        """
        if self._closed.is_set():
            return []
        wait_ms = max(1, self._wait_ms if wait_ms is None else wait_ms)
        if not self._consumer.assignment():
            self._watch()
        else:
            self._unassigned_since_s, self._stalled_s = None, _STALLED_S
        try:
            with _translated():
                self._join()
                records = self._consumer.poll(wait_ms)
        except (Unavailable, RuntimeError):
            if not self._closed.is_set():
                raise
            # Closed meanwhile, by another thread.
            return []
        return [_fetched((at.topic, at.partition), found) for at, found in records.items() if found]

    def _join(self) -> None:
        """Let a join that is needed, or under way, complete before the next poll.

        kafka-python forgets one that completes while no poll waits for it, if it came of a change
        of metadata: the member would read on without heartbeats or commits, and others too.
        """
        coordinator = self._consumer._coordinator
        if self._consumer.subscription() and (coordinator.rejoining or coordinator.need_rejoin()):
            coordinator.request_rejoin()
            limit_s = _REJOINING_S if self._consumer.assignment() else _JOINING_S
            coordinator.poll(timeout_ms=round(1000 * limit_s))

    def _watch(self) -> None:
        """Join again where a join was lost: members without partitions that should have some."""
        now_s = self._clock.monotonic_s()
        if self._unassigned_since_s is None:
            self._unassigned_since_s = now_s
        elif now_s - self._unassigned_since_s > self._stalled_s and self._consumer.subscription():
            logging.getLogger("freshscore").warning(
                "no partition assigned for %d s: joining the group again", self._stalled_s
            )
            self._unassigned_since_s = now_s
            # A spare member has none for long, and each join moves everybody's partitions.
            self._stalled_s *= 2
            self._consumer.unsubscribe()
            self._consumer.subscribe(self._topics, listener=_Counting(self))

    def seek(self, partition: Partition, offset: int) -> None:
        """Read on from `offset`."""
        self._consumer.seek(kafka.TopicPartition(*partition), offset)

    def pause(self, partitions: Sequence[Partition]) -> None:
        """Fetch nothing of these for now."""
        self._consumer.pause(*(kafka.TopicPartition(*at) for at in partitions))

    def resume(self, partitions: Sequence[Partition]) -> None:
        """Fetch them again, from their position.

        What had been fetched before the pause is let go: kafka-python 3.0 parks it, does not always
        bring it back, and fetches nothing of a partition for which it has something parked.
        """
        places = [kafka.TopicPartition(*at) for at in partitions]
        for place in places:
            self._consumer._fetcher._paused_partition_records.pop(place, None)
            self._consumer._fetcher._paused_completed_fetches.pop(place, None)
        self._consumer.resume(*places)

    def position(self, partition: Partition) -> int:
        """The offset of the next message that a poll brings."""
        with _translated():
            at = self._consumer.position(kafka.TopicPartition(*partition), timeout_ms=10_000)
        if at is None:
            raise Unavailable(f"Kafka did not tell the position in {_named(partition)} within 10 s")
        return int(at)

    def highwater(self, partition: Partition) -> int | None:
        """The end of the partition as the last fetch told it; None before the first."""
        end = self._consumer.highwater(kafka.TopicPartition(*partition))
        return None if end is None else int(end)

    def committed(self, partition: Partition) -> int | None:
        """The offset that the group committed last, or None."""
        with _translated():
            at = self._consumer.committed(kafka.TopicPartition(*partition), timeout_ms=10_000)
        return None if at is None else int(at)

    def beginnings(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """The first offset that each partition still has."""
        return self._offsets(self._consumer.beginning_offsets, partitions)

    def ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """The offset behind the last message of each partition."""
        return self._offsets(self._consumer.end_offsets, partitions)

    def _offsets(
        self, asked: Callable[[list[Any]], Mapping[Any, int]], partitions: Sequence[Partition]
    ) -> dict[Partition, int]:
        if not partitions:
            return {}
        try:
            with _translated():
                found = asked([kafka.TopicPartition(*at) for at in partitions])
        except KeyError as problem:
            # What kafka-python says where the broker leaves one out: its topic is being deleted.
            raise Unavailable(f"Kafka does not know {_named(problem.args[0])}") from problem
        return {(at.topic, at.partition): int(offset) for at, offset in found.items()}

    def commit(self, positions: Mapping[Partition, int], *, wait: bool = False) -> None:
        """Commit the next offsets to read; `wait`: until the broker has them.

        A commit that fails is no harm: what was not committed is read again, which changes nothing.
        But it is to be repeated, or the group's lag would stand where nothing more comes.
        """
        offsets = {
            kafka.TopicPartition(*at): kafka.OffsetAndMetadata(offset, "", -1)
            for at, offset in positions.items()
        }
        if not offsets:
            return
        try:
            if wait:
                self._consumer.commit(offsets, timeout_ms=5_000)
            else:
                self._consumer.commit_async(offsets, callback=self._note_commit)
        except kafka.errors.KafkaError as problem:
            self._note_commit(offsets, problem)

    def _note_commit(self, _: object, outcome: object) -> None:
        if isinstance(outcome, Exception):
            self.has_failed_to_commit = True
            logging.getLogger("freshscore").info("a commit failed: %s", type(outcome).__name__)

    def close(self) -> None:
        """Leave the group; from another thread it also ends a poll, which then brings nothing."""
        if self._closed.is_set():
            return
        self._closed.set()
        with suppress(kafka.errors.KafkaError):
            self._consumer.close(autocommit=False, timeout_ms=_LEAVING_MS)


class _Counting(kafka.ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Counts assignments. It runs on the network's thread, and so does nothing else."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader

    def on_partitions_assigned(self, assigned: Any) -> None:
        self._reader.n_assignments += 1

    def on_partitions_revoked(self, revoked: Any) -> None:
        """Nothing: what is under way is settled, and changes nothing for whoever comes next."""


def _read_in_place(consumer: Any) -> None:
    """Make a consumer hand out whole batches."""
    fetcher = consumer._fetcher

    class InPlace(Fetcher.PartitionRecords):  # type: ignore[misc]  # kafka-python has no types
        """Yields `_Batch` objects for batches of the current format, else records."""

        def _unpack_records(self, tp: Any, records: Any, *deserializers: Any) -> Iterator[Any]:
            batch = records.next_batch()
            while batch is not None:
                if self.check_crcs and not batch.validate_crc():
                    raise kafka.errors.CorruptRecordError(
                        f"a batch of {tp.topic} {tp.partition} at {batch.base_offset} fails its CRC"
                    )
                if batch.magic != 2:
                    for record in batch:
                        self.next_fetch_offset = record.offset + 1
                        yield record
                else:
                    aborted = self._is_aborted(batch)
                    if not (aborted or batch.is_control_batch) and batch.records_count:
                        self.next_fetch_offset = batch.next_offset
                        yield _Batch(batch, self.fetch_offset)
                    # Also where compaction or a control batch has left offsets without a record.
                    self.next_fetch_offset = batch.next_offset
                    self.leader_epoch = batch.leader_epoch
                batch = records.next_batch()
            self.drain()

        def _is_aborted(self, batch: Any) -> bool:
            """Whether a batch is of a transaction that was aborted, as kafka-python tells it."""
            if not batch.has_producer_id():
                return False
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            return bool(self._is_batch_aborted(batch))

    fetcher.PartitionRecords = InPlace


class _Batch:
    """One record batch, as a consumer's poll hands it out in place of records."""

    __slots__ = ("batch", "count", "fetched_from", "offset")

    def __init__(self, batch: Any, fetched_from: int) -> None:
        batch._maybe_uncompress()
        self.batch = batch
        self.fetched_from = fetched_from
        # What the fetcher asks of a record: whether it lies before the position.
        self.offset = batch.last_offset
        self.count = batch.records_count


def _fetched(partition: Partition, records: list[Any]) -> Fetched:
    if all(one.__class__ is _Batch for one in records):
        in_place = _of_batches(partition, records)
        if in_place is not None:
            return in_place
    return _of_records(partition, [one for found in records for one in _opened(found)])


def _opened(found: Any) -> list[Any]:
    if found.__class__ is not _Batch:
        return [found]
    return [one for one in found.batch if one.offset >= found.fetched_from]


def _of_batches(partition: Partition, found: list[_Batch]) -> Fetched | None:
    """The messages where they lie; None for batches that the kernel cannot read."""
    n = sum(one.count for one in found)
    table = np.empty((len(found), BATCH), np.int64)
    buffers = [np.frombuffer(one.batch._buffer, np.uint8) for one in found]
    for row, one, buffer in zip(table, found, buffers, strict=True):
        batch = one.batch
        address = address_of(buffer)
        stamp = batch.max_timestamp if batch.timestamp_type else -1
        row[:] = (
            address + batch._pos,
            address + len(buffer),
            one.count,
            batch.base_offset,
            batch.first_timestamp,
            stamp,
        )
    spans, offsets = np.empty((n, SPAN), np.int64), np.empty(n, np.int64)
    done = split_batches(address_of(table), len(found), address_of(spans), address_of(offsets))
    if done != n:
        return None
    # A broker sends whole batches: the first may begin before what was asked for.
    early = int(np.searchsorted(offsets, found[0].fetched_from))
    next_offset = found[-1].batch.next_offset
    return Fetched(partition, spans[early:], offsets[early:], next_offset, buffers)


def _of_records(partition: Partition, records: list[Any]) -> Fetched:
    if not records:
        return Fetched(partition, no_spans(), np.zeros(0, np.int64), 0, None)
    n = len(records)
    values = [record.value for record in records]
    spans = np.empty((n, SPAN), np.int64)
    addresses = (0 if value is None else id(value) + BYTES_AT for value in values)
    spans[:, 0] = np.fromiter(addresses, np.int64, n)
    spans[:, LENGTH] = np.fromiter((len(value or b"") for value in values), np.int64, n)
    spans[:, ARRIVAL] = np.fromiter((record.timestamp for record in records), np.int64, n)
    offsets = np.fromiter((record.offset for record in records), np.int64, n)
    return Fetched(partition, spans, offsets, int(offsets[-1]) + 1, values)


@dataclass(frozen=True, slots=True)
class Delivered:
    """Where a message came to stand in the log. arrival_ms: its stamp; -1 where that is ours."""

    topic: str
    partition: int
    offset: int
    arrival_ms: int


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
            if self._closed.is_set():
                producer.close(timeout=0)
            return

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        *,
        partition: int | None = None,
        stamp_ms: int | None = None,
        done: Callable[[Delivered | None], None] | None = None,
    ) -> None:
        """Hand a message over for sending; `done` is called with where it stands, None for never.

        stamp_ms: its CreateTime, for historical topics. Raises Unavailable where the producer can
        take no more within kafka.request_timeout_s.
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
            with suppress(kafka.errors.KafkaError):
                self._producer.close(timeout=timeout_s)


def _producer(settings: KafkaSettings) -> Any:
    with _translated(settings):
        return kafka.KafkaProducer(
            **_connection(settings),
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


def _delivered(at: Any) -> Delivered:
    stamped_by_broker = at.timestamp is not None and at.timestamp >= 0
    return Delivered(
        at.topic, at.partition, at.offset, int(at.timestamp) if stamped_by_broker else -1
    )


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it is. topic_id: names it for ever, unlike its name."""

    name: str
    topic_id: str
    n_partitions: int
    replication: int
    options: Mapping[str, str]


class LogAdmin:
    """What topics there are, and how far groups have read."""

    def __init__(self, settings: KafkaSettings) -> None:
        with _translated(settings):
            self._admin = kafka.KafkaAdminClient(**_connection(settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def topics(self, names: Sequence[str]) -> dict[str, Topic]:
        """Those of the topics that there are."""
        with _translated():
            present = [name for name in names if name in set(self._admin.list_topics())]
            if not present:
                return {}
            described = self._admin.describe_topics(present)
            resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in present]
            options = self._admin.describe_configs(resources, config_filter="all")
        of_topics = options[ConfigResourceType.TOPIC.name.lower()]
        return {one["name"]: _topic(one, of_topics[one["name"]]) for one in described}

    def make(self, topics: Mapping[str, Mapping[str, str]], partitions: int, copies: int) -> None:
        """Make topics: name -> options."""
        new = [
            NewTopic(name, num_partitions=partitions, replication_factor=copies, topic_configs=own)
            for name, own in topics.items()
        ]
        with _translated():
            self._admin.create_topics(new)
            self._admin.wait_for_topics([*topics])

    def delete(self, names: Sequence[str]) -> None:
        """Delete topics."""
        with _translated():
            self._admin.delete_topics([*names])

    def committed(self, group: str) -> dict[Partition, int]:
        """The offsets that a group has committed."""
        with _translated():
            found = self._admin.list_group_offsets(group)
        return {
            (at.topic, at.partition): int(one.offset)
            for at, one in found.get(group, {}).items()
            if one.offset >= 0
        }

    def close(self) -> None:
        """Let go of the connection."""
        self._admin.close()


def _topic(described: Any, options: Any) -> Topic:
    partitions = described["partitions"]
    return Topic(
        described["name"],
        str(described["topic_id"]),
        len(partitions),
        min((len(one["replica_nodes"]) for one in partitions), default=0),
        {key: str(one["value"]) for key, one in options.items()},
    )


def _connection(settings: KafkaSettings) -> dict[str, Any]:
    """What every client is told about the connection."""
    told: dict[str, Any] = {
        "bootstrap_servers": [one.strip() for one in settings.bootstrap_servers.split(",")],
        "client_id": "freshscore",
        "security_protocol": settings.security_protocol,
        "reconnect_backoff_max_ms": _RECONNECT_MS,
        "request_timeout_ms": round(1000 * settings.request_timeout_s),
        "bootstrap_timeout_ms": round(1000 * settings.request_timeout_s),
    }
    if settings.ca_file is not None:
        told["ssl_cafile"] = str(settings.ca_file)
    if settings.certificate_file is not None:
        told["ssl_certfile"] = told["ssl_keyfile"] = str(settings.certificate_file)
    if settings.security_protocol.startswith("SASL"):
        password = settings.password
        told["sasl_mechanism"] = settings.sasl_mechanism
        told["sasl_plain_username"] = settings.username
        told["sasl_plain_password"] = None if password is None else password.get_secret_value()
    return told


@contextmanager
def _translated(settings: KafkaSettings | None = None) -> Iterator[None]:
    """kafka-python's errors become freshscore's; with `settings`, while connecting."""
    try:
        yield
    except kafka.errors.AuthorizationError as problem:
        raise SettingsError(f"Kafka refuses this user: {problem}") from problem
    except kafka.errors.KafkaError as problem:
        if settings is None:
            raise Unavailable(f"Kafka: {type(problem).__name__}: {problem}") from problem
        raise Unavailable(
            f"Kafka at {settings.bootstrap_servers} does not answer within"
            f" {settings.request_timeout_s} s over {settings.security_protocol}: it is down, or the"
            " password, the certificate authority or the client certificate is not what it wants,"
            f" which all look the same from here ({type(problem).__name__})"
        ) from problem


def _named(partition: Partition) -> str:
    return f"topic {partition[0]} partition {partition[1]}"
