"""Uniting the records of a stored state: a sorted beginning and an unsorted end become one set.

The end may repeat what is there, in any order. Its events are found by identity, its facts by
(identity, event time, fact, value, sender's instant), in a hash table over the end alone, through
which the beginning is passed once; of two contents the smaller counts, as in applying.py.
Cost, for n + m records: m ln m for sorting the end (next to nothing where it is in order), about
3 ns for each record of the beginning, and one copy.
The version follows by the difference: plus the digests that came, minus those that went.
Rule: the result depends on the set of records only, never on their order or number.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from freshscore.features import layout as rec
from freshscore.features import state_layout as s
from freshscore.features.applying import compare, compare_content, record_digest, same_fact
from freshscore.features.compiled import kernel
from freshscore.features.memory import i32, i64, move, put_i32, put_i64, put_u8, put_u64, u8, u64

_MIX: Final = np.uint64(0x9E3779B97F4A7C15)
_NOTHING: Final = np.uint64(0)
_ONE: Final = np.uint64(1)

# Runs that are sorted by insertion before they are merged.
_RUN: Final = 16


@kernel
def is_fact(record: int) -> bool:
    """Whether a record is a fact."""
    return (i64(record + rec.TIME) >> 14) & 3 == rec.FACT


@kernel
def _same_thing(left: int, right: int) -> bool:
    if is_fact(left):
        return is_fact(right) and same_fact(left, right)
    return not is_fact(right) and u64(left) == u64(right)


@kernel
def _slot_of(record: int, mask: int) -> int:
    key = u64(record)
    if is_fact(record):
        key ^= u64(record + rec.TIME) * _MIX
        key ^= (u64(record + rec.CONTENT) & np.uint64(0xFFFF)) << np.uint64(48)
        key ^= u64(record + rec.CHECK) >> np.uint64(32)
    return int(np.int64((key * _MIX) >> np.uint64(20)) & mask)


@kernel
def _find(record: int, table: int, mask: int, end: int, width: int) -> int:
    """Address of the slot with the same event or fact as `record`, or of the empty one for it."""
    at = _slot_of(record, mask)
    while True:
        held = i32(table + 4 * at)
        if held == 0 or _same_thing(end + (held - 1) * width, record):
            return table + 4 * at
        at = (at + 1) & mask


@kernel
def add_digest(version: int, record: int, layout: int) -> None:
    """Add the digest of a record to the 128 bits at `version`."""
    low, high = record_digest(record, i64(layout + 8 * s.WIDTH), layout + 8 * s.DIGEST_KEY)
    old = u64(version)
    new = old + low
    carry = _ONE if new < old else _NOTHING
    put_u64(version, new)
    put_u64(version + 8, u64(version + 8) + high + carry)


@kernel
def take_digest(version: int, record: int, layout: int) -> None:
    """Subtract the digest of a record from the 128 bits at `version`."""
    low, high = record_digest(record, i64(layout + 8 * s.WIDTH), layout + 8 * s.DIGEST_KEY)
    old = u64(version)
    borrow = _ONE if old < low else _NOTHING
    put_u64(version, old - low)
    put_u64(version + 8, u64(version + 8) - high - borrow)


@kernel
def _distinct_end(
    end: int, n_end: int, width: int, events_from: int, facts_from: int, table: int, mask: int
) -> None:
    """Enter each distinct record of the end that counts in the table, the smaller of two."""
    for i in range(n_end):
        record = end + i * width
        time = i64(record + rec.TIME) >> 16
        if time < (facts_from if is_fact(record) else events_from):
            continue
        slot = _find(record, table, mask, end, width)
        held = i32(slot)
        if held == 0 or compare_content(record, end + (held - 1) * width, width) < 0:
            put_i32(slot, i + 1)


@kernel
def _pass_beginning(
    records: int, n: int, end: int, layout: int, table: int, mask: int, lost: int, version: int
) -> int:
    """Mark in `lost` what a smaller content in the end replaces; how many that are.

    What the end only repeats is marked behind them, at n + its index.
    """
    width = i64(layout + 8 * s.WIDTH)
    n_lost = 0
    for i in range(n):
        record = records + i * width
        slot = _find(record, table, mask, end, width)
        held = i32(slot)
        if held == 0:
            continue
        if compare_content(record, end + (held - 1) * width, width) <= 0:
            # Its slot stays taken, so that what was entered behind it is still found.
            put_u8(lost + n + held - 1, 1)
        else:
            put_u8(lost + i, 1)
            take_digest(version, record, layout)
            n_lost += 1
    return n_lost


@kernel
def _insertion_sorted(order: int, first: int, last: int, width: int) -> None:
    for i in range(first + 1, last):
        record = i64(order + 8 * i)
        j = i
        while j > first and compare(i64(order + 8 * (j - 1)), record, width) > 0:
            put_i64(order + 8 * j, i64(order + 8 * (j - 1)))
            j -= 1
        put_i64(order + 8 * j, record)


@kernel
def _merged(order: int, spare: int, first: int, middle: int, last: int, width: int) -> None:
    if compare(i64(order + 8 * (middle - 1)), i64(order + 8 * middle), width) <= 0:
        return
    move(spare, order + 8 * first, 8 * (middle - first))
    left = 0
    n_left = middle - first
    right = middle
    at = first
    while left < n_left:
        if right < last and compare(i64(order + 8 * right), i64(spare + 8 * left), width) < 0:
            put_i64(order + 8 * at, i64(order + 8 * right))
            right += 1
        else:
            put_i64(order + 8 * at, i64(spare + 8 * left))
            left += 1
        at += 1


@kernel
def sort_records(order: int, spare: int, n: int, width: int) -> None:
    """Sort `n` addresses of records at `order`; `spare` has room for as many."""
    for first in range(0, n, _RUN):
        _insertion_sorted(order, first, min(n, first + _RUN), width)
    size = _RUN
    while size < n:
        for first in range(0, n - size, 2 * size):
            _merged(order, spare, first, first + size, min(n, first + 2 * size), width)
        size *= 2


@kernel
def ascending(records: int, n: int, width: int) -> bool:
    """Whether the records are sorted and distinct."""
    for i in range(1, n):
        if compare(records + (i - 1) * width, records + i * width, width) >= 0:
            return False
    return True


@kernel
def _upper(records: int, first: int, n: int, record: int, width: int) -> int:
    """Index of the first of the sorted records from `first` on that is above `record`."""
    low = first
    high = n
    # Most of an end is younger than the beginning.
    if n > first and compare(records + (n - 1) * width, record, width) < 0:
        return n
    while low < high:
        middle = (low + high) >> 1
        if compare(records + middle * width, record, width) < 0:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def _copied(
    out: int, records: int, first: int, last: int, width: int, lost: int, n_lost: int
) -> int:
    """Copy the records from `first` to `last` that are not lost; the address behind them."""
    if n_lost == 0:
        move(out, records + first * width, (last - first) * width)
        return out + (last - first) * width
    for i in range(first, last):
        if u8(lost + i) == 0:
            move(out, records + i * width, width)
            out += width
    return out


@kernel
def united(
    records: int,
    n: int,
    end: int,
    n_end: int,
    layout: int,
    events_from: int,
    facts_from: int,
    out: int,
    table: int,
    mask: int,
    order: int,
    lost: int,
    version: int,
) -> int:
    """Write the union of `n` sorted, distinct records and `n_end` unsorted ones to `out`; its size.

    events_from, facts_from: what the end says of earlier instants is a repetition.
    table: zeroed int32, more than twice n_end; order: 16 bytes for each of n_end; lost: zeroed
    bytes, n + n_end; version: 128 bits, of the beginning, which become those of the union.
    """
    width = i64(layout + 8 * s.WIDTH)
    _distinct_end(end, n_end, width, events_from, facts_from, table, mask)
    n_lost = _pass_beginning(records, n, end, layout, table, mask, lost, version)
    kept = 0
    for i in range(n_end):
        record = end + i * width
        time = i64(record + rec.TIME) >> 16
        if time < (facts_from if is_fact(record) else events_from) or u8(lost + n + i):
            continue
        if i32(_find(record, table, mask, end, width)) == i + 1:
            put_i64(order + 8 * kept, record)
            add_digest(version, record, layout)
            kept += 1
    sort_records(order, order + 8 * n_end, kept, width)
    at = out
    done = 0
    for i in range(kept):
        record = i64(order + 8 * i)
        upto = _upper(records, done, n, record, width)
        at = _copied(at, records, done, upto, width, lost, n_lost)
        done = upto
        move(at, record, width)
        at += width
    at = _copied(at, records, done, n, width, lost, n_lost)
    return (at - out) // width
