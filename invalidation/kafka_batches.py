"""What a poll of Kafka brings: messages where they lie, in whole record batches.

`PartitionRecords._unpack_records` of kafka-python's fetcher is replaced on the instance by one that
hands out whole batches (invalidation/record_batches.py), and when it fetches is decided here too.
That is kafka-python's inside, so tests hold it fast, and batches of any other kind go the public
way.
Rule: nothing of kafka-python leaves this module: not its classes, not its errors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import kafka.errors
import numpy as np
from kafka.consumer.fetcher import Fetcher
from kafka.future import Future
from numpy.typing import NDArray

from freshscore.features.memory import BYTES_AT, address_of
from freshscore.invalidation.partitions import Partition
from freshscore.invalidation.record_batches import (
    ARRIVAL,
    BATCH,
    LENGTH,
    SPAN,
    no_spans,
    split_batches,
)


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


def read_in_place(consumer: Any) -> None:
    """Make a consumer of kafka-python hand out whole batches."""
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


def fetch_when_asked(consumer: Any, is_behind: Callable[[], bool]) -> None:
    """Make a consumer fetch when it is asked for messages, and ahead only where it is behind.

    kafka-python also fetches behind what it hands out, if that had come before it was asked. A
    broker answers at once, so what was fetched ahead is a turn old when it is handed out, and so it
    would go on for ever. It also gives its network's thread three things to do for each poll, one
    after the other, and waits for each: 0.2 ms and more. Here it is one.
    """
    fetcher, coordinator = consumer._fetcher, consumer._coordinator

    async def fetched(timeout_ms: float) -> bool:
        """Send fetches and wait until one has come; whether there was any to wait for."""
        await fetcher._send_fetches_async()
        waited_for = list(fetcher._fetch_futures)
        if fetcher._reset_task is not None and not fetcher._reset_task.is_done:
            waited_for.append(fetcher._reset_task)
        first = Future()
        for one in waited_for:
            one.add_both(lambda _: first.is_done or first.success(None))
        if waited_for:
            with suppress(kafka.errors.KafkaTimeoutError):
                await fetcher._manager.wait_for(first, timeout_ms)
        return bool(waited_for)

    def fetch_records(
        max_records: int, update_offsets: bool = True, timeout_ms: float = 0.0
    ) -> tuple[dict[Any, list[Any]], bool]:
        records, is_partial = fetcher.fetched_records(max_records, update_offsets=update_offsets)
        is_idle = False
        if not records:
            is_idle = not fetcher._net.run(fetched, timeout_ms)
            records, is_partial = fetcher.fetched_records(
                max_records, update_offsets=update_offsets
            )
        if records and is_behind() and not is_partial:
            fetcher.send_fetches()
        return records, is_idle

    look_for_coordinator = coordinator.ensure_coordinator_ready

    def ensure_coordinator_ready(timeout_ms: float | None = None) -> bool:
        known = coordinator.coordinator_id
        is_there = known is not None and not coordinator._client.is_disconnected(known)
        return is_there or bool(look_for_coordinator(timeout_ms))

    fetcher.fetch_records = fetch_records
    coordinator.ensure_coordinator_ready = ensure_coordinator_ready


def is_fetched(consumer: Any) -> bool:
    """Whether a consumer has something to hand out without a fetch."""
    fetcher = consumer._fetcher
    return bool(fetcher._completed_fetches or fetcher._next_partition_records)


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


def fetched_of(partition: Partition, records: list[Any]) -> Fetched:
    """What a poll brought of one partition: records of kafka-python, or batches in place."""
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
