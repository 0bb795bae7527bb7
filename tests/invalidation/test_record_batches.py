"""Record batches read in place: what kafka-python would have read, and never beyond their end."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from freshscore.features.memory import address_of
from freshscore.invalidation.record_batches import BATCH, DAMAGED, SPAN, split_batches

_MESSAGES = st.lists(
    st.tuples(
        st.one_of(st.none(), st.binary(max_size=200)),  # key
        st.one_of(st.none(), st.binary(max_size=300)),  # value
        st.integers(0, 2**40),  # stamp
        st.lists(st.tuples(st.text(max_size=4), st.binary(max_size=9)), max_size=2),
    ),
    min_size=1,
    max_size=40,
)


def _batch(messages: list[Any], base_offset: int = 0) -> DefaultRecordBatch:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 10**6)
    for number, (key, value, stamp, headers) in enumerate(messages):
        builder.append(number, stamp, key, value, headers)
    raw = bytearray(builder.build())
    raw[0:8] = base_offset.to_bytes(8, "big")
    return DefaultRecordBatch(raw)


def _split(
    batch: DefaultRecordBatch, n: int, body: bytes | None = None
) -> tuple[int, list[tuple[bytes | None, int, int]]]:
    """What the kernel answers, and (value, arrival, offset) of each message that it found."""
    held = np.frombuffer(bytes(batch._buffer) if body is None else body, np.uint8)
    at = batch._pos if body is None else 0
    stamp = batch.max_timestamp if batch.timestamp_type else -1
    table = np.array(
        [
            address_of(held) + at,
            address_of(held) + len(held),
            n,
            batch.base_offset,
            batch.first_timestamp,
            stamp,
        ],
        np.int64,
    )
    assert len(table) == BATCH
    spans, offsets = np.zeros((n, SPAN), np.int64), np.zeros(n, np.int64)
    found = split_batches(address_of(table), 1, address_of(spans), address_of(offsets))
    messages = []
    for (address, length, arrival), offset in zip(spans[: max(0, found)], offsets, strict=False):
        value = ctypes.string_at(int(address), int(length)) if address else None
        messages.append((value, int(arrival), int(offset)))
    return found, messages


@given(_MESSAGES, st.integers(0, 2**40))
def test_it_finds_what_kafka_python_reads(messages: list[Any], base_offset: int) -> None:
    """Values, offsets and stamps, whatever keys and headers stand around them."""
    batch = _batch(messages, base_offset)
    found, split = _split(batch, len(messages))
    assert found == len(messages)
    assert split == [(r.value, r.timestamp, r.offset) for r in _batch(messages, base_offset)]


def test_the_stamp_of_the_broker_counts_for_all() -> None:
    """LogAppendTime is told once for the batch, whatever the producer wrote into each message."""
    batch = _batch([(None, b"a", 5, []), (None, b"b", 9, [])])
    header = bytearray(batch._buffer)
    header[21:23] = (int.from_bytes(header[21:23], "big") | 0x08).to_bytes(2, "big")
    header[35:43] = (777).to_bytes(8, "big")
    _, split = _split(DefaultRecordBatch(header), 2)
    assert [arrival for _, arrival, _ in split] == [777, 777]


@given(_MESSAGES, st.data())
def test_a_damaged_batch_is_never_read_beyond_its_end(messages: list[Any], data: Any) -> None:
    """Cut anywhere or with any byte changed: every message found lies within, or it is refused."""
    batch = _batch(messages)
    body = bytearray(batch._buffer[batch._pos :])
    if data.draw(st.booleans()):
        body = body[: data.draw(st.integers(0, len(body) - 1))]
        assert _split(batch, len(messages), bytes(body))[0] <= DAMAGED
        return
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    held = np.frombuffer(bytes(body), np.uint8)
    table = np.array([address_of(held), address_of(held) + len(held), len(messages), 0, 0, -1])
    spans, offsets = np.zeros((len(messages), SPAN), np.int64), np.zeros(len(messages), np.int64)
    found = split_batches(address_of(table), 1, address_of(spans), address_of(offsets))
    for address, length, _ in spans[: max(found, 0)]:
        if address:
            assert address >= address_of(held)
            assert address + length <= address_of(held) + len(held)


@pytest.mark.parametrize("body", [b"", b"\xff" * 64, b"\x80" * 20, b"\x01" * 30])
def test_nonsense_is_refused(body: bytes) -> None:
    batch = _batch([(None, b"a", 5, [])])
    assert _split(batch, 1, body)[0] <= DAMAGED
