"""The passes of history: windows that move along the events of one entity, as kernels.

A window of an entity's sorted events is two edges; as the instant moves on, events enter at one and
leave at the other, and integer accumulators follow: the words of a slot of features/program.py, so
that the one finishing function (features/finishing.py) gives the bits that a store would.
Extremes are kept with how often they occur, and looked up anew only when the last such event has
left: amortised one look an event. Distinct members are counted in a table by their numbers.

Most entities are plain: each event is later than the one before, and is asked about just before it
joins. Of the others (ties, late arrivals, refused or repeated payments) every event has its place
from the beginning and is seen or not: their steps say which one is asked about, which come and go,
and the edges move both ways.

Rule: all that a pass changes in entries and tables it takes back at its end.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from freshscore.features import history_layout as h
from freshscore.features import history_plan as hp
from freshscore.features import program as p
from freshscore.features import row as r
from freshscore.features.compiled import kernel
from freshscore.features.evaluation import window_end, window_start
from freshscore.features.finishing import NO_LARGEST, NO_SMALLEST, clear_slot, feature
from freshscore.features.layout import NO_PLACE
from freshscore.features.memory import (
    f64,
    i32,
    i64,
    prefetch,
    put_f64,
    put_i32,
    put_i64,
    u8,
)

# Words of a slot that have no use here are used for how often the extremes occur; where the last
# event stands, and whether that has left, lie in the words of its time and identity.
_SMALLEST_TIMES: Final = 8 * p.OWN_MEMBER_SEEN
_LARGEST_TIMES: Final = 8 * (p.OWN_MEMBER_SEEN + 1)
_LAST_ENTRY: Final = 8 * p.LAST_TIME
_LAST_IS_GONE: Final = 8 * p.LAST_IDENTITY
_LOOKED_UP: Final = p.WANT_EXTREMES | p.WANT_LAST

# What the kernels are given, in bytes: one word each.
PLAN: Final = 0
CODE: Final = 8
ENTRIES: Final = 16
STARTS: Final = 24
N_CODES: Final = 32
IRREGULAR: Final = 40
STEPS: Final = 48
CHANGES: Final = 56
N_CHANGES: Final = 64
OUT: Final = 72
OUT_BYTES: Final = 80  # of one row of the output
SLOTS: Final = 88  # scratch: accumulators of the whole program
ROW: Final = 96  # scratch: one packed row
LOCATIONS: Final = 104  # int32 (n, 2), or no address
LOCATED: Final = 112  # uint8 (n,)
TABLES: Final = 120  # four words: int32 counts by member number, zero
SEEN_AT: Final = 152  # four words: the last entry + 1 by member number, int32, zero
JOB_WORDS: Final = 23


@kernel
def put_columns(code: int, columns: int, slots: int, row: int, out: int) -> None:
    """Write the columns of a list (history_plan) to the row of the output at `out`."""
    column = columns + 8
    for _ in range(i64(columns)):
        value = feature(code, code + i64(column + 8), slots + i64(column + 16), row, out)
        put_f64(out + 8 * i64(column), value)
        column += 8 * hp.COLUMN_WORDS


@kernel
def _count(slot: int, entry: int, state: int, sign: int, pass_: int, tables: int) -> None:
    """Add (sign 1) or take away (-1) an event in the given state."""
    amount = i64(entry + h.AMOUNT)
    put_i64(slot, i64(slot) + sign)
    put_i64(slot + 8 * p.SUM, i64(slot + 8 * p.SUM) + sign * amount)
    wants = i64(pass_ + 8 * hp.PASS_WANTS)
    if wants == 0:
        return
    if wants & p.WANT_SQUARES:
        upper = amount >> 20
        lower = amount & 0xFFFFF
        put_i64(slot + 8 * p.SQUARES_HIGH, i64(slot + 8 * p.SQUARES_HIGH) + sign * upper * upper)
        put_i64(
            slot + 8 * p.SQUARES_MIDDLE, i64(slot + 8 * p.SQUARES_MIDDLE) + sign * upper * lower
        )
        put_i64(slot + 8 * p.SQUARES_LOW, i64(slot + 8 * p.SQUARES_LOW) + sign * lower * lower)
    if wants & p.WANT_FACTS:
        facts = (state >> h.FACT_BIT) & i64(pass_ + 8 * hp.PASS_FACTS) & 0xFF
        _count_facts(slot, facts, sign)
    if wants & p.WANT_DISTINCT:
        _count_members(slot, entry, sign, i64(pass_ + 8 * hp.PASS_MEMBERS), tables)
    if wants & p.WANT_EXTREMES:
        _count_extremes(slot, amount, sign)
    if wants & p.WANT_LAST:
        if sign < 0:
            if entry == i64(slot + _LAST_ENTRY):
                put_i64(slot + _LAST_IS_GONE, 1)
        elif entry >= i64(slot + _LAST_ENTRY):
            put_i64(slot + _LAST_ENTRY, entry)
            put_i64(slot + _LAST_IS_GONE, 0)
            put_i64(slot + 8 * p.LAST_AMOUNT, amount)


@kernel
def _count_facts(slot: int, facts: int, sign: int) -> None:
    count = slot + 8 * p.FACT_COUNTS
    while facts != 0:
        if facts & 1:
            put_i64(count, i64(count) + sign)
        facts >>= 1
        count += 8


@kernel
def _count_members(slot: int, entry: int, sign: int, members: int, tables: int) -> None:
    for m in range(4):
        if (members >> m) & 1 == 0:
            continue
        number = i32(entry + h.MEMBERS + 4 * m)
        if number < 0:
            continue
        times = i64(tables + 8 * m) + 4 * number
        before = i32(times)
        put_i32(times, before + sign)
        distinct = slot + 8 * (p.DISTINCT + m)
        if sign > 0 and before == 0:
            put_i64(distinct, i64(distinct) + 1)
        elif sign < 0 and before == 1:
            put_i64(distinct, i64(distinct) - 1)


@kernel
def _count_extremes(slot: int, amount: int, sign: int) -> None:
    smallest = i64(slot + 8 * p.SMALLEST)
    if amount <= smallest:
        times = i64(slot + _SMALLEST_TIMES) + sign if amount == smallest else 1
        put_i64(slot + 8 * p.SMALLEST, amount)
        put_i64(slot + _SMALLEST_TIMES, times)
    largest = i64(slot + 8 * p.LARGEST)
    if amount >= largest:
        times = i64(slot + _LARGEST_TIMES) + sign if amount == largest else 1
        put_i64(slot + 8 * p.LARGEST, amount)
        put_i64(slot + _LARGEST_TIMES, times)


@kernel
def _look_up(slot: int, pass_: int, mask: int, head: int, tail: int, width: int) -> None:
    """Find the extremes and the last event anew, where those that stood there have left."""
    if i64(slot) == 0:
        put_i64(slot + 8 * p.SMALLEST, NO_SMALLEST)
        put_i64(slot + 8 * p.LARGEST, NO_LARGEST)
        put_i64(slot + _SMALLEST_TIMES, 0)
        put_i64(slot + _LARGEST_TIMES, 0)
        put_i64(slot + _LAST_ENTRY, 0)
        put_i64(slot + _LAST_IS_GONE, 0)
        return
    wants = i64(pass_ + 8 * hp.PASS_WANTS)
    if wants & p.WANT_EXTREMES and (
        i64(slot + _SMALLEST_TIMES) == 0 or i64(slot + _LARGEST_TIMES) == 0
    ):
        put_i64(slot + 8 * p.SMALLEST, NO_SMALLEST)
        put_i64(slot + 8 * p.LARGEST, NO_LARGEST)
        for entry in range(head, tail, width):
            if i64(entry + h.STATE) & mask == mask:
                _count_extremes(slot, i64(entry + h.AMOUNT), 1)
    if wants & p.WANT_LAST and i64(slot + _LAST_IS_GONE):
        entry = tail - width
        while i64(entry + h.STATE) & mask != mask:
            entry -= width
        put_i64(slot + _LAST_ENTRY, entry)
        put_i64(slot + _LAST_IS_GONE, 0)
        put_i64(slot + 8 * p.LAST_AMOUNT, i64(entry + h.AMOUNT))


@kernel
def _turn_fact(
    change: int, entries: int, width: int, head: int, tail: int, mask: int, slot: int, pass_: int,
    tables: int,
) -> None:
    """Turn one fact of one event, which is the same as turning it back."""
    entry = entries + width * i64(change)
    bit = i64(change + 16)
    before = i64(entry + h.STATE)
    after = before ^ bit
    put_i64(entry + h.STATE, after)
    if entry < head or entry >= tail:
        return
    counted = before & mask == mask
    counts = after & mask == mask
    if counted and counts:
        if bit & i64(pass_ + 8 * hp.PASS_FACTS) << h.FACT_BIT:
            _count_facts(slot, (bit >> h.FACT_BIT) & 0xFF, 1 if after & bit else -1)
    elif counted:
        _count(slot, entry, before, -1, pass_, tables)
    elif counts:
        _count(slot, entry, after, 1, pass_, tables)


@kernel
def _take_back(
    change: int, changes: int, entries: int, width: int, head: int, tail: int, mask: int,
    slot: int, pass_: int, tables: int,
) -> None:
    """Take back the changes of facts that a pass has made, and empty the tables of members."""
    if i64(pass_ + 8 * hp.PASS_WANTS) & p.WANT_DISTINCT:
        for entry in range(head, tail, width):
            if i64(entry + h.STATE) & mask == mask:
                _count(slot, entry, i64(entry + h.STATE), -1, pass_, tables)
    while change > changes:
        change -= h.CHANGE_BYTES
        entry = entries + width * i64(change)
        put_i64(entry + h.STATE, i64(entry + h.STATE) ^ i64(change + 16))


@kernel
def plain_pass(
    job: int, pass_: int, first: int, end: int, changes: int, changes_end: int
) -> None:
    """One pass over the entries `first` to `end` of a plain entity.

    changes: of its events' facts, in order of time; none where no fact matters to the pass.
    """
    width = i64(i64(job + PLAN) + 8 * hp.ENTRY_BYTES)
    code = i64(job + CODE)
    slot = i64(job + SLOTS)
    row = i64(job + ROW)
    out = i64(job + OUT)
    out_bytes = i64(job + OUT_BYTES)
    entries = i64(job + ENTRIES)
    tables = job + TABLES
    delay = i64(pass_ + 8 * hp.PASS_DELAY)
    length = i64(pass_ + 8 * hp.PASS_LENGTH)
    step = i64(pass_ + 8 * hp.PASS_STEP)
    mask = i64(pass_ + 8 * hp.PASS_MASK)
    looked_up = i64(pass_ + 8 * hp.PASS_WANTS) & _LOOKED_UP != 0
    without = pass_ + 8 * hp.PASS_COLUMNS
    with_own = without + 8 * (1 + hp.COLUMN_WORDS * i64(without))
    clear_slot(slot)
    put_i64(slot + _LAST_ENTRY, 0)
    head = first
    tail = first
    change = changes
    for own in range(first, end, width):
        time = i64(own)
        while change < changes_end and i64(change + 8) <= time:
            _turn_fact(change, entries, width, head, tail, mask, slot, pass_, tables)
            change += h.CHANGE_BYTES
        if delay > 0:
            last_time = window_end(time, delay, step)
            while i64(tail) <= last_time:
                if i64(tail + h.STATE) & mask == mask:
                    _count(slot, tail, i64(tail + h.STATE), 1, pass_, tables)
                tail += width
        start = window_start(time, delay, step, length)
        while head < tail and i64(head) <= start:
            if i64(head + h.STATE) & mask == mask:
                _count(slot, head, i64(head + h.STATE), -1, pass_, tables)
            head += width
        if looked_up:
            _look_up(slot, pass_, mask, head, tail, width)
        state = i64(own + h.STATE)
        target = out + out_bytes * (state & h.ROW_BITS)
        put_columns(code, without, slot, row, target)
        if delay == 0:
            bare = state & ~h.ALL_FACTS
            if bare & mask == mask:
                _count(slot, own, bare, 1, pass_, tables)
            put_columns(code, with_own, slot, row, target)
            if state != bare:
                if bare & mask == mask:
                    _count(slot, own, bare, -1, pass_, tables)
                if state & mask == mask:
                    _count(slot, own, state, 1, pass_, tables)
            tail += width
        else:
            put_columns(code, with_own, slot, row, target)
    _take_back(change, changes, entries, width, head, tail, mask, slot, pass_, tables)


@kernel
def _show(
    entry: int, shown: bool, head: int, tail: int, mask: int, slot: int, pass_: int, tables: int
) -> None:
    """Let an event be seen or not from here on."""
    state = i64(entry + h.STATE)
    put_i64(entry + h.STATE, state ^ h.SEEN)
    state |= h.SEEN
    if entry >= head and entry < tail and state & mask == mask:
        _count(slot, entry, state, 1 if shown else -1, pass_, tables)


@kernel
def stepped_pass(
    job: int, pass_: int, first: int, end: int, changes: int, changes_end: int, steps: int
) -> None:
    """One pass over the entries `first` to `end` of an entity that is not plain, by its steps."""
    width = i64(i64(job + PLAN) + 8 * hp.ENTRY_BYTES)
    code = i64(job + CODE)
    slot = i64(job + SLOTS)
    entries = i64(job + ENTRIES)
    tables = job + TABLES
    delay = i64(pass_ + 8 * hp.PASS_DELAY)
    length = i64(pass_ + 8 * hp.PASS_LENGTH)
    step = i64(pass_ + 8 * hp.PASS_STEP)
    mask = i64(pass_ + 8 * hp.PASS_MASK) | h.SEEN
    without = pass_ + 8 * hp.PASS_COLUMNS
    with_own = without + 8 * (1 + hp.COLUMN_WORDS * i64(without))
    clear_slot(slot)
    put_i64(slot + _LAST_ENTRY, 0)
    for entry in range(first, end, width):
        state = i64(entry + h.STATE)
        put_i64(entry + h.STATE, state | h.SEEN if state & h.SEEN_FIRST else state & ~h.SEEN)
    head = first
    tail = first
    change = changes
    for at in range(steps, steps + h.STEP_BYTES * ((end - first) // width), h.STEP_BYTES):
        own = first + width * i32(at)
        aside = i32(at + 4)
        time = i64(own)
        if aside >= 0:
            _show(first + width * aside, False, head, tail, mask, slot, pass_, tables)
        while change < changes_end and i64(change + 8) <= time:
            _turn_fact(change, entries, width, head, tail, mask, slot, pass_, tables)
            change += h.CHANGE_BYTES
        while change > changes and i64(change - h.CHANGE_BYTES + 8) > time:
            change -= h.CHANGE_BYTES
            _turn_fact(change, entries, width, head, tail, mask, slot, pass_, tables)
        last_time = window_end(time, delay, step)
        start = window_start(time, delay, step, length)
        while head > first and i64(head - width) > start:
            head -= width
            if i64(head + h.STATE) & mask == mask:
                _count(slot, head, i64(head + h.STATE), 1, pass_, tables)
        while tail < end and i64(tail) <= last_time:
            if i64(tail + h.STATE) & mask == mask:
                _count(slot, tail, i64(tail + h.STATE), 1, pass_, tables)
            tail += width
        while tail > first and i64(tail - width) > last_time:
            tail -= width
            if i64(tail + h.STATE) & mask == mask:
                _count(slot, tail, i64(tail + h.STATE), -1, pass_, tables)
        while head < tail and i64(head) <= start:
            if i64(head + h.STATE) & mask == mask:
                _count(slot, head, i64(head + h.STATE), -1, pass_, tables)
            head += width
        _look_up(slot, pass_, mask, head, tail, width)
        state = i64(own + h.STATE)
        target = i64(job + OUT) + i64(job + OUT_BYTES) * (state & h.ROW_BITS)
        put_columns(code, without, slot, i64(job + ROW), target)
        bare = (state & ~h.ALL_FACTS) | h.SEEN
        inside = delay == 0 and bare & mask == mask
        if inside:
            _count(slot, own, bare, 1, pass_, tables)
        put_columns(code, with_own, slot, i64(job + ROW), target)
        if inside:
            _count(slot, own, bare, -1, pass_, tables)
        if aside >= 0:
            _show(first + width * aside, True, head, tail, mask, slot, pass_, tables)
        goes = i32(at + 12)
        if goes >= 0:
            _show(first + width * goes, False, head, tail, mask, slot, pass_, tables)
        comes = i32(at + 8)
        if comes >= 0:
            _show(first + width * comes, True, head, tail, mask, slot, pass_, tables)
    _take_back(change, changes, entries, width, head, tail, mask, slot, pass_, tables)
