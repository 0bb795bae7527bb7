"""Grouping payments by entity, as kernels: a stable counting sort that writes entries.

Cost: two passes over the codes and one over the columns, about 15 ns a payment and entity.
Rule: within an entity the order of the table is kept; an entity whose events do not come strictly
one after the other, or where one is marked, is reported, and put in order by the caller.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from freshscore.features import history_layout as h
from freshscore.features.compiled import kernel
from freshscore.features.memory import (
    i32,
    i64,
    prefetch,
    put_i32,
    put_i64,
    put_u8,
    u8,
    u16,
    u64,
)

# Addresses of the columns of the table, in the order in which `scatter` is given them.
COLUMN_TIME: Final = 0
COLUMN_AMOUNT: Final = 8
COLUMN_CONDITIONS: Final = 16
COLUMN_FACTS: Final = 24
COLUMN_MARKED: Final = 32  # uint8, not 0 where an entity's events need a closer look; or no address
COLUMN_MEMBERS: Final = 40
N_COLUMNS: Final = 9

_MIX: Final = np.uint64(0x9E3779B97F4A7C15)
# How far ahead the table of keys is asked from memory.
_AHEAD: Final = 16


@kernel(nogil=True)
def first_equal(keys: int, stride: int, n: int, table: int, bits: int, first: int) -> int:
    """For each of n keys (u64, every `stride` bytes) the place of its first equal, int32.

    table: int32, 2^bits > n of them, zero. Returns how many places are not the first.
    """
    shift = np.uint64(64 - bits)
    mask = (1 << bits) - 1
    repeated = 0
    for i in range(n):
        if i + _AHEAD < n:
            ahead = u64(keys + stride * (i + _AHEAD)) * _MIX >> shift
            prefetch(table + 4 * np.int64(ahead))
        key = u64(keys + stride * i)
        at = np.int64(key * _MIX >> shift)
        while True:
            found = i32(table + 4 * at) - 1
            if found < 0:
                put_i32(table + 4 * at, i + 1)
                put_i32(first + 4 * i, i)
                break
            if u64(keys + stride * found) == key:
                put_i32(first + 4 * i, found)
                repeated += 1
                break
            at = (at + 1) & mask
    return repeated


@kernel(nogil=True)
def starts_of(codes: int, n: int, n_codes: int, starts: int) -> None:
    """Where the entries of each code begin: int32, n_codes + 2 of them, zero before.

    Absent codes (-1) come behind the last.
    """
    for i in range(n):
        code = i32(codes + 4 * i)
        at = starts + 4 * ((code if code >= 0 else n_codes) + 1)
        put_i32(at, i32(at) + 1)
    for code in range(n_codes + 1):
        at = starts + 4 * code
        put_i32(at + 4, i32(at) + i32(at + 4))


@kernel
def write_entry(entry: int, columns: int, row: int, n_members: int) -> None:
    """Write the entry of one row of the table."""
    put_i64(entry + h.TIME, i64(i64(columns + COLUMN_TIME) + 8 * row))
    put_i64(entry + h.AMOUNT, i64(i64(columns + COLUMN_AMOUNT) + 8 * row))
    conditions = u16(i64(columns + COLUMN_CONDITIONS) + 2 * row)
    facts = u8(i64(columns + COLUMN_FACTS) + row)
    state = row | conditions << h.CONDITION_BIT | facts << h.FACT_BIT
    put_i64(entry + h.STATE, state)
    for m in range(n_members):
        code = i32(i64(columns + COLUMN_MEMBERS + 8 * m) + 4 * row)
        put_i32(entry + h.MEMBERS + 4 * m, code)


@kernel(nogil=True)
def scatter(
    codes: int,
    n: int,
    n_codes: int,
    starts: int,
    ends: int,
    columns: int,
    entries: int,
    width: int,
    n_members: int,
    irregular: int,
    positions: int,
) -> None:
    """Write the entries of all rows, grouped by code.

    ends: a copy of `starts`, which becomes where each code's entries end. irregular: uint8 for
    each code, set where its times do not ascend strictly or a row is marked. positions: int32, the
    number of each row's entry, or no address.
    """
    marked = i64(columns + COLUMN_MARKED)
    for row in range(n):
        code = i32(codes + 4 * row)
        code = code if code >= 0 else n_codes
        number = i32(ends + 4 * code)
        put_i32(ends + 4 * code, number + 1)
        entry = entries + width * number
        write_entry(entry, columns, row, n_members)
        if number > i32(starts + 4 * code) and i64(entry) <= i64(entry - width):
            put_u8(irregular + code, 1)
        if marked != 0 and u8(marked + row) != 0:
            put_u8(irregular + code, 1)
        if positions != 0:
            put_i32(positions + 4 * row, number)


@kernel(nogil=True)
def rewrite(
    places: int, rows: int, n: int, columns: int, entries: int, width: int, n_members: int
) -> None:
    """Write the entries of `rows` (int64) at other places (int64, numbers of entries)."""
    for i in range(n):
        entry = entries + width * i64(places + 8 * i)
        write_entry(entry, columns, i64(rows + 8 * i), n_members)
