"""Kafka's record batches, read where they lie: addresses of messages instead of an object for each.

kafka-python builds a Python object for every record, which takes 5 to 8 us: most of what consuming
costs. A fetched batch of the current format holds its records one behind the other, so a kernel
finds their values in place: address, length and arrival of each.
Source: the record batch format of Kafka's protocol guide ("magic" 2); varints are zigzag, as in
Protocol Buffers.

Rule: what a length in the batch says is checked against where the batch ends before it is
followed; what does not fit makes the batch damaged, as a failed CRC does.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from freshscore.features.compiled import kernel
from freshscore.features.memory import i64, put_i64, u8

# One message, in words: where its value lies (0 and 0: it has none), and when it arrived, ms.
ADDRESS: Final = 0
LENGTH: Final = 1
ARRIVAL: Final = 2
SPAN: Final = 3

# One batch in the table that the kernel reads, in words: where its records lie and end, how many
# they are, offset and stamp that theirs are told from, and the stamp of all of them or -1.
RECORDS: Final = 0
END: Final = 1
COUNT: Final = 2
BASE_OFFSET: Final = 3
BASE_STAMP: Final = 4
ONE_STAMP: Final = 5
BATCH: Final = 6

DAMAGED: Final = -1
_LONGEST: Final = 63  # bits that a varint carries at most


@kernel(inline="always")
def _varint(at: int, end: int) -> tuple[int, int]:
    """The zigzag number at `at`, and the address behind it; DAMAGED where it does not end."""
    bits = 0
    shift = 0
    while at < end and shift <= _LONGEST:
        byte = u8(at)
        at += 1
        bits |= (byte & 0x7F) << shift
        if byte < 0x80:
            # A logical shift to the right: numba's int64 would drag the sign along.
            return ((bits >> 1) & 0x7FFFFFFFFFFFFFFF) ^ -(bits & 1), at
        shift += 7
    return 0, DAMAGED


@kernel
def split_batches(table: int, n: int, spans: int, offsets: int) -> int:
    """Find the messages of `n` batches: spans (3 words each) and offsets; how many they are.

    DAMAGED - i where batch i is not what it says.
    """
    found = 0
    for i in range(n):
        batch = table + 8 * BATCH * i
        at = i64(batch + 8 * RECORDS)
        end = i64(batch + 8 * END)
        for _ in range(i64(batch + 8 * COUNT)):
            length, at = _varint(at, end)
            if at == DAMAGED or length < 0 or length > end - at:
                return DAMAGED - i
            after = at + length
            # One byte of attributes, which nothing uses.
            stamp, at = _varint(at + 1, after)
            if at == DAMAGED:
                return DAMAGED - i
            offset, at = _varint(at, after)
            if at == DAMAGED:
                return DAMAGED - i
            key, at = _varint(at, after)
            if at == DAMAGED or key > after - at:
                return DAMAGED - i
            value, at = _varint(at + max(key, 0), after)
            if at == DAMAGED or value > after - at:
                return DAMAGED - i
            one_stamp = i64(batch + 8 * ONE_STAMP)
            arrival = one_stamp if one_stamp >= 0 else i64(batch + 8 * BASE_STAMP) + stamp
            span = spans + 8 * SPAN * found
            put_i64(span, at if value >= 0 else 0)
            put_i64(span + 8 * LENGTH, max(value, 0))
            put_i64(span + 8 * ARRIVAL, arrival)
            put_i64(offsets + 8 * found, i64(batch + 8 * BASE_OFFSET) + offset)
            found += 1
            at = after
        if at != end:
            return DAMAGED - i
    return found


def no_spans() -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """The spans of no message."""
    return np.zeros((0, SPAN), np.int64)
