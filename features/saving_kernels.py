"""The kernels of features/saving.py: tables and records of a store to plain bytes, and back.

A saved row has ROW_BYTES: token, version, then the words below; what depends on where records lie
in memory is left out. Records and payments are as they are in memory.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from freshscore.features import arena as a
from freshscore.features import tables as t
from freshscore.features.blocks import BLOCK, SHORT, blocks_bytes
from freshscore.features.compiled import kernel
from freshscore.features.memory import i64, move, put_i64, u64

ROW_BYTES: Final = 72
_COUNT: Final = 32
_FORGOTTEN: Final = 40
_MAX_KNOWN: Final = 48
_LOST: Final = 56
_N_FACTS: Final = 64

# Why rows do not fit.
NO_ROOM: Final = -1
TOO_MANY: Final = -2


@kernel
def versions_sum(head: int) -> np.uint64:
    """The sum of the versions of all rows, which one changed record changes."""
    total = np.uint64(0)
    for number in range(i64(head + t.ROW_COUNT)):
        row = t.entity_row(head, number)
        total += u64(row + t.VERSION) ^ u64(row + t.VERSION + 8)
    return total


@kernel
def sizes(head: int) -> tuple[int, int]:
    """How many rows and records there are of an entity."""
    n_rows = i64(head + t.ROW_COUNT)
    n = 0
    for number in range(n_rows):
        n += i64(t.entity_row(head, number) + t.COUNT)
    return n_rows, n


@kernel
def rows_out(head: int, first: int, n: int, out: int) -> None:
    """Write `n` rows from number `first` on to `out`."""
    for i in range(n):
        row = t.entity_row(head, first + i)
        saved = out + ROW_BYTES * i
        move(saved, row + t.TOKEN, 32)
        put_i64(saved + _COUNT, i64(row + t.COUNT))
        put_i64(saved + _FORGOTTEN, i64(row + t.FORGOTTEN))
        put_i64(saved + _MAX_KNOWN, i64(row + t.MAX_KNOWN))
        put_i64(saved + _LOST, i64(row + t.LOST))
        put_i64(saved + _N_FACTS, i64(row + t.N_FACTS))


@kernel
def rows_in(store: int, entity: int, source: int, n: int) -> int:
    """Add `n` saved rows, with places for their records; 0, NO_ROOM or TOO_MANY."""
    head = t.entity_head(store, entity)
    for i in range(n):
        saved = source + ROW_BYTES * i
        count = i64(saved + _COUNT)
        if count > i64(head + t.MAX_EVENTS):
            return TOO_MANY
        number = t.add_entity(head, u64(saved), u64(saved + 8))
        row = t.entity_row(head, number)
        move(row + t.TOKEN, saved, 32)
        put_i64(row + t.FORGOTTEN, i64(saved + _FORGOTTEN))
        put_i64(row + t.MAX_KNOWN, i64(saved + _MAX_KNOWN))
        put_i64(row + t.LOST, i64(saved + _LOST))
        put_i64(row + t.N_FACTS, i64(saved + _N_FACTS))
        if count > 0:
            segment = _segment(store, head, entity << 32 | number, count)
            if segment == a.NO_ROOM:
                return NO_ROOM
            put_i64(row + t.RECORDS, segment + a.SEGMENT_HEAD)
            put_i64(row + t.CAPACITY, _capacity(count))
            put_i64(row + t.COUNT, count)
    return 0


@kernel
def _capacity(count: int) -> int:
    # No slack: most entities of a store never grow again. Whole blocks where there are sums.
    return count if count < SHORT else (count + BLOCK - 1) // BLOCK * BLOCK


@kernel
def _segment(store: int, head: int, owner: int, count: int) -> int:
    capacity = _capacity(count)
    size = a.SEGMENT_HEAD + capacity * i64(head + t.WIDTH) + blocks_bytes(head, capacity)
    return a.take(i64(store + t.ARENA), owner, size)


@kernel
def move_records(head: int, cursor: int, buffer: int, room: int, outward: bool) -> int:
    """Copy records between the rows and `buffer`, from `cursor` on; the bytes that were copied.

    cursor: the number of the next row and the index of its next record, which move on.
    """
    width = i64(head + t.WIDTH)
    number = i64(cursor)
    index = i64(cursor + 8)
    done = 0
    while number < i64(head + t.ROW_COUNT):
        row = t.entity_row(head, number)
        count = i64(row + t.COUNT)
        n = min(count - index, (room - done) // width)
        records = i64(row + t.RECORDS) + index * width
        if outward:
            move(buffer + done, records, n * width)
        else:
            move(records, buffer + done, n * width)
        done += n * width
        index += n
        if index < count:
            break
        number += 1
        index = 0
    put_i64(cursor, number)
    put_i64(cursor + 8, index)
    return done


@kernel
def payments_out(store: int, cursor: int, out: int, room: int) -> int:
    """Write payments to `out`, from slot `cursor` of their table on; the bytes of them."""
    size = i64(store + t.PAYMENT_BYTES)
    table = i64(store + t.PAYMENTS)
    slot = i64(cursor)
    done = 0
    while slot <= i64(store + t.PAYMENT_MASK) and done + size <= room:
        entry = table + size * slot
        if i64(entry + t.PAYMENT_TIME) != 0:
            move(out + done, entry, size)
            done += size
        slot += 1
    put_i64(cursor, slot)
    return done


@kernel
def payments_in(store: int, source: int, n: int) -> None:
    """Enter `n` saved payments; there is room for them."""
    size = i64(store + t.PAYMENT_BYTES)
    for i in range(n):
        saved = source + size * i
        move(t.find_payment(store, u64(saved)), saved, size)
    put_i64(store + t.PAYMENT_COUNT, i64(store + t.PAYMENT_COUNT) + n)


@kernel
def forget_until(head: int, line: int) -> None:
    """Say of every row that what lies before `line` is no longer there."""
    for number in range(i64(head + t.ROW_COUNT)):
        row = t.entity_row(head, number)
        put_i64(row + t.FORGOTTEN, max(i64(row + t.FORGOTTEN), line))
