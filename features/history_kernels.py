"""The passes of history: windows that move along the events of one entity, as kernels.

A window of an entity's sorted events is two edges; as the instant moves on, events enter at one and
leave at the other, and integer accumulators follow: the words of a slot of features/program.py, so
that the one finishing function (features/finishing.py) gives the bits that a store would.
Extremes are kept with how often they occur, and looked up anew only when the last such event has
left: amortised one look an event. Distinct members are counted in a table by their numbers.

Most entities are plain: each event is later than the one before, and is asked about just before it
joins. They are done in pieces, so that rows of the output stay in the nearest cache from one pass
to the next. Of the others (ties, late arrivals, refused or repeated payments) every event has its
place from the beginning and is seen or not: their steps say which one is asked about, which come
and go, and the edges move both ways.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from freshscore.features import history_layout as h
from freshscore.features import history_plan as hp
from freshscore.features import program as p
from freshscore.features.compiled import kernel
from freshscore.features.evaluation import window_end, window_start
from freshscore.features.finishing import (
    NO_LARGEST,
    NO_SMALLEST,
    aggregate,
    clear_slot,
    feature,
)
from freshscore.features.memory import f64, i32, i64, put_f64, put_i32, put_i64

# Words of a slot that history uses otherwise than a store: where the last event stands and whether
# it has left, how often the extremes occur, where the edges stand.
_LAST_ENTRY: Final = 8 * p.LAST_TIME
_LAST_IS_GONE: Final = 8 * p.LAST_IDENTITY
_SMALLEST_TIMES: Final = 8 * p.OWN_MEMBER_SEEN
_LARGEST_TIMES: Final = 8 * (p.OWN_MEMBER_SEEN + 1)
_HEAD: Final = 8 * (p.OWN_MEMBER_SEEN + 2)
_TAIL: Final = 8 * (p.OWN_MEMBER_SEEN + 3)
_LOOKED_UP: Final = p.WANT_EXTREMES | p.WANT_LAST
# Signs of counting, typed: for a plain 1 as an argument numba would compile a kernel once more.
_IN: Final[Any] = np.int64(1)
_OUT: Final[Any] = np.int64(-1)
ONE: Final[Any] = np.int64(1)

# What the kernels are given: words at these bytes.
PLAN: Final = 0
CODE: Final = 8
ENTRIES: Final = 16
WIDTH: Final = 24
STARTS: Final = 32
N_CODES: Final = 40
IRREGULAR: Final = 48
STEPS: Final = 56
CHANGES: Final = 64
N_CHANGES: Final = 72
OUT: Final = 80
OUT_BYTES: Final = 88  # of one row of the output
SLOTS: Final = 96  # scratch: accumulators of the whole program
ROW: Final = 104  # scratch: one packed row
LOCATIONS: Final = 112  # int32 (n, 2), or no address
LOCATED: Final = 120  # uint8 (n,)
TABLES: Final = 128  # address: for each pass 4 addresses of int32 counts by member number, zero
SEEN_AT: Final = 136  # four words: addresses of the last entry + 1 by member number, int32, zero
SCALE_BITS: Final = 168
PIECE_SLOTS: Final = 176  # scratch: twice PIECE slots
TARGETS: Final = 184  # scratch: PIECE words
JOB_WORDS: Final = 24

# Payments of an entity that all passes do before the next ones: what they write of the output, at
# 256 bytes a row, and their slots stay in the nearest cache.
PIECE: Final = 32


@kernel
def put_columns(code: int, columns: int, slots: int, row: int, out: int) -> None:
    """Write a list of columns (history_plan) to the row of the output at `out`."""
    column = columns + 8
    for _ in range(i64(columns)):
        value = feature(code, code + i64(column + 8), slots, row, out)
        put_f64(out + i64(column), value)
        column += 8 * hp.COLUMN_WORDS


@kernel
def put_aggregates(columns: int, slots: int, scale: float, targets: int, n: int) -> None:
    """Write a list of a pass's columns for n payments, whose slots lie one behind the other.

    targets: addresses of their rows of the output.
    """
    column = columns + 8
    for _ in range(i64(columns)):
        at = i64(column)
        operation = i64(column + 8)
        operand = i64(column + 16)
        declared = i64(column + 24)
        empty = f64(column + 32)
        for i in range(n):
            slot = slots + 8 * p.SLOT * i
            value = aggregate(operation, slot, operand, declared, empty, scale)
            put_f64(i64(targets + 8 * i) + at, value)
        column += 8 * hp.AGGREGATE_WORDS


@kernel
def _copy_words(slot: int, target: int, words: int) -> None:
    """Copy a list of words (history_plan) from one slot to another."""
    for at in range(words + 8, words + 8 + 8 * i64(words), 8):
        put_i64(target + i64(at), i64(slot + i64(at)))


@kernel
def _count(slot: int, entry: int, state: int, sign: int, pass_: int, tables: int) -> None:
    """Add (sign 1) or take away (-1) an event in the given state."""
    put_i64(slot, i64(slot) + sign)
    put_i64(slot + 8 * p.SUM, i64(slot + 8 * p.SUM) + sign * i64(entry + h.AMOUNT))
    _count_more(slot, entry, state, sign, pass_, tables)


@kernel
def _count_more(slot: int, entry: int, state: int, sign: int, pass_: int, tables: int) -> None:
    """What a pass counts of an event beside its number and amount."""
    amount = i64(entry + h.AMOUNT)
    wants = i64(pass_ + 8 * hp.PASS_WANTS)
    if wants & p.WANT_DISTINCT:
        _count_members(slot, entry, sign, i64(pass_ + 8 * hp.PASS_MEMBERS), tables)
    if wants & p.WANT_SQUARES:
        upper = amount >> 20
        lower = amount & 0xFFFFF
        put_i64(slot + 8 * p.SQUARES_LOW, i64(slot + 8 * p.SQUARES_LOW) + sign * lower * lower)
        if upper != 0:
            high = slot + 8 * p.SQUARES_HIGH
            middle = slot + 8 * p.SQUARES_MIDDLE
            put_i64(high, i64(high) + sign * upper * upper)
            put_i64(middle, i64(middle) + sign * upper * lower)
    if wants & p.WANT_FACTS:
        facts = (state >> h.FACT_BIT) & i64(pass_ + 8 * hp.PASS_FACTS) & 0xFF
        _count_facts(slot, facts, sign)
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
    distinct = slot + 8 * p.DISTINCT
    member = entry + h.MEMBERS
    while members != 0:
        number = i32(member)
        if members & 1 and number >= 0:
            times = i64(tables) + 4 * number
            before = i32(times)
            put_i32(times, before + sign)
            # 0 before it came, 1 before it went: then there is one more or one less of them.
            changed = 1 if 2 * before + sign == 1 else 0
            put_i64(distinct, i64(distinct) + sign * changed)
        members >>= 1
        member += 4
        tables += 8
        distinct += 8


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
def _look_up(slot: int, wants: int, mask: int, head: int, tail: int, width: int) -> None:
    """Find the extremes and the last event anew, where those that stood there have left."""
    if i64(slot) == 0:
        put_i64(slot + 8 * p.SMALLEST, NO_SMALLEST)
        put_i64(slot + 8 * p.LARGEST, NO_LARGEST)
        put_i64(slot + _LAST_ENTRY, 0)
        return
    if wants & p.WANT_EXTREMES and (
        i64(slot + _SMALLEST_TIMES) == 0 or i64(slot + _LARGEST_TIMES) == 0
    ):
        put_i64(slot + 8 * p.SMALLEST, NO_SMALLEST)
        put_i64(slot + 8 * p.LARGEST, NO_LARGEST)
        for entry in range(head, tail, width):
            if i64(entry + h.STATE) & mask == mask:
                _count_extremes(slot, i64(entry + h.AMOUNT), _IN)
    if wants & p.WANT_LAST and i64(slot + _LAST_IS_GONE):
        entry = tail - width
        while i64(entry + h.STATE) & mask != mask:
            entry -= width
        put_i64(slot + _LAST_ENTRY, entry)
        put_i64(slot + _LAST_IS_GONE, 0)
        put_i64(slot + 8 * p.LAST_AMOUNT, i64(entry + h.AMOUNT))


@kernel
def start_pass(slot: int, first: int) -> None:
    """Make a pass's accumulators those of a window at the entry `first` without events."""
    clear_slot(slot)
    put_i64(slot + _LAST_ENTRY, 0)
    put_i64(slot + _HEAD, first)
    put_i64(slot + _TAIL, first)


@kernel
def end_pass(slot: int, pass_: int, tables: int, mask: int, width: int) -> None:
    """Empty the tables of members."""
    if i64(pass_ + 8 * hp.PASS_WANTS) & p.WANT_DISTINCT:
        for entry in range(i64(slot + _HEAD), i64(slot + _TAIL), width):
            if i64(entry + h.STATE) & mask == mask:
                members = i64(pass_ + 8 * hp.PASS_MEMBERS)
                _count_members(slot, entry, _OUT, members, tables)


@kernel
def turn_facts(entries: int, width: int, changes: int, changes_end: int) -> None:
    """Turn facts of events, which is the same as turning them back."""
    for change in range(changes, changes_end, h.CHANGE_BYTES):
        entry = entries + width * i64(change)
        put_i64(entry + h.STATE, i64(entry + h.STATE) ^ i64(change + 16))


@kernel
def _turn_fact(
    change: int, entries: int, width: int, mask: int, slot: int, pass_: int, tables: int
) -> None:
    """Turn one fact of one event, and count it accordingly; the slot says where the edges are."""
    entry = entries + width * i64(change)
    bit = i64(change + 16)
    before = i64(entry + h.STATE)
    after = before ^ bit
    put_i64(entry + h.STATE, after)
    if entry < i64(slot + _HEAD) or entry >= i64(slot + _TAIL):
        return
    counted = before & mask == mask
    counts = after & mask == mask
    if counted and counts:
        if bit & i64(pass_ + 8 * hp.PASS_FACTS) << h.FACT_BIT:
            _count_facts(slot, (bit >> h.FACT_BIT) & 0xFF, _IN if after & bit else _OUT)
    elif counted:
        _count(slot, entry, before, _OUT, pass_, tables)
    elif counts:
        _count(slot, entry, after, _IN, pass_, tables)


@kernel
def plain_pass(
    job: int,
    pass_: int,
    slot: int,
    tables: int,
    first: int,
    end: int,
    changes: int,
    changes_end: int,
) -> None:
    """Go on with a pass over the entries `first` to `end`, at most PIECE, of a plain entity.

    changes: of its events' facts from here on, in order of time; turned back at the end.
    """
    width = i64(job + WIDTH)
    delay = i64(pass_ + 8 * hp.PASS_DELAY)
    length = i64(pass_ + 8 * hp.PASS_LENGTH)
    step = i64(pass_ + 8 * hp.PASS_STEP)
    mask = i64(pass_ + 8 * hp.PASS_MASK)
    wants = i64(pass_ + 8 * hp.PASS_WANTS)
    without = pass_ + 8 * hp.PASS_COLUMNS
    with_own = pass_ + i64(pass_ + 8 * hp.PASS_WITH_OWN)
    copied = pass_ + i64(pass_ + 8 * hp.PASS_COPIED)
    bare_slots = i64(job + PIECE_SLOTS)
    own_slots = bare_slots + 8 * p.SLOT * PIECE
    bare_slot = bare_slots if i64(without) else 0
    own_slot = own_slots
    head = i64(slot + _HEAD)
    tail = i64(slot + _TAIL)
    count = i64(slot)
    total = i64(slot + 8 * p.SUM)
    # Counting facts takes a call only where there is one.
    more = wants & ~p.WANT_FACTS
    facts = i64(pass_ + 8 * hp.PASS_FACTS) << h.FACT_BIT
    change = changes
    for own in range(first, end, width):
        time = i64(own)
        if change < changes_end and i64(change + 8) <= time:
            put_i64(slot, count)
            put_i64(slot + 8 * p.SUM, total)
            put_i64(slot + _HEAD, head)
            put_i64(slot + _TAIL, tail)
            while change < changes_end and i64(change + 8) <= time:
                _turn_fact(change, i64(job + ENTRIES), width, mask, slot, pass_, tables)
                change += h.CHANGE_BYTES
            count = i64(slot)
            total = i64(slot + 8 * p.SUM)
        if delay > 0:
            last_time = window_end(time, delay, step)
            while i64(tail) <= last_time:
                if i64(tail + h.STATE) & mask == mask:
                    count += 1
                    total += i64(tail + h.AMOUNT)
                    if more or i64(tail + h.STATE) & facts:
                        _count_more(slot, tail, i64(tail + h.STATE), _IN, pass_, tables)
                tail += width
        start = window_start(time, delay, step, length)
        while head < tail and i64(head) <= start:
            if i64(head + h.STATE) & mask == mask:
                count -= 1
                total -= i64(head + h.AMOUNT)
                if more or i64(head + h.STATE) & facts:
                    _count_more(slot, head, i64(head + h.STATE), _OUT, pass_, tables)
            head += width
        if wants & _LOOKED_UP:
            put_i64(slot, count)
            _look_up(slot, wants, mask, head, tail, width)
        if bare_slot:
            put_i64(bare_slot, count)
            put_i64(bare_slot + 8 * p.SUM, total)
            if wants:
                _copy_words(slot, bare_slot, copied)
            bare_slot += 8 * p.SLOT
        state = i64(own + h.STATE)
        bare = state & ~h.ALL_FACTS
        joins = delay == 0 and bare & mask == mask
        if delay == 0:
            tail += width
        if joins:
            count += 1
            total += i64(own + h.AMOUNT)
            if more:
                _count_more(slot, own, bare, _IN, pass_, tables)
        put_i64(own_slot, count)
        put_i64(own_slot + 8 * p.SUM, total)
        if wants:
            _copy_words(slot, own_slot, copied)
        own_slot += 8 * p.SLOT
        if delay == 0 and state != bare:
            # In its own features a payment has no facts; from here on it has.
            put_i64(slot, count)
            put_i64(slot + 8 * p.SUM, total)
            if joins:
                _count(slot, own, bare, _OUT, pass_, tables)
            if state & mask == mask:
                _count(slot, own, state, _IN, pass_, tables)
            count = i64(slot)
            total = i64(slot + 8 * p.SUM)
    put_i64(slot, count)
    put_i64(slot + 8 * p.SUM, total)
    put_i64(slot + _HEAD, head)
    put_i64(slot + _TAIL, tail)
    turn_facts(i64(job + ENTRIES), width, changes, change)
    n = (end - first) // width
    scale = f64(job + SCALE_BITS)
    put_aggregates(without, bare_slots, scale, i64(job + TARGETS), n)
    put_aggregates(with_own, own_slots, scale, i64(job + TARGETS), n)


@kernel
def _show(entry: int, sign: int, mask: int, slot: int, pass_: int, tables: int) -> None:
    """Let an event be seen, or no longer be seen, from here on."""
    state = i64(entry + h.STATE)
    put_i64(entry + h.STATE, state ^ h.SEEN)
    state |= h.SEEN
    inside = entry >= i64(slot + _HEAD) and entry < i64(slot + _TAIL)
    if inside and state & mask == mask:
        _count(slot, entry, state, sign, pass_, tables)


@kernel
def _move_edges(
    slot: int,
    first: int,
    end: int,
    start: int,
    last_time: int,
    width: int,
    mask: int,
    pass_: int,
    tables: int,
) -> None:
    """Move the edges, in either direction, to what lies after `start` and up to `last_time`."""
    head = i64(slot + _HEAD)
    tail = i64(slot + _TAIL)
    while True:
        # One event at a time, so that one place counts: in at either edge, then out.
        if head > first and i64(head - width) > start:
            head -= width
            entry, sign = head, _IN
        elif tail < end and i64(tail) <= last_time:
            entry, sign = tail, _IN
            tail += width
        elif tail > first and i64(tail - width) > last_time:
            tail -= width
            entry, sign = tail, _OUT
        elif head < tail and i64(head) <= start:
            entry, sign = head, _OUT
            head += width
        else:
            break
        if i64(entry + h.STATE) & mask == mask:
            _count(slot, entry, i64(entry + h.STATE), sign, pass_, tables)
    put_i64(slot + _HEAD, head)
    put_i64(slot + _TAIL, tail)


@kernel
def see_first(first: int, end: int, width: int) -> None:
    """Let those events be seen that are there from the beginning."""
    for entry in range(first, end, width):
        state = i64(entry + h.STATE)
        put_i64(entry + h.STATE, state | h.SEEN if state & h.SEEN_FIRST else state & ~h.SEEN)


@kernel
def stepped_pass(
    job: int,
    pass_: int,
    slot: int,
    tables: int,
    first: int,
    end: int,
    changes: int,
    changes_end: int,
    steps: int,
) -> None:
    """One pass over the entries `first` to `end` of an entity that is not plain, by its steps."""
    width = i64(job + WIDTH)
    entries = i64(job + ENTRIES)
    scale = f64(job + SCALE_BITS)
    delay = i64(pass_ + 8 * hp.PASS_DELAY)
    length = i64(pass_ + 8 * hp.PASS_LENGTH)
    step = i64(pass_ + 8 * hp.PASS_STEP)
    mask = i64(pass_ + 8 * hp.PASS_MASK) | h.SEEN
    see_first(first, end, width)
    change = changes
    for at in range(steps, steps + h.STEP_BYTES * ((end - first) // width), h.STEP_BYTES):
        own = first + width * i32(at)
        aside = i32(at + 4)
        time = i64(own)
        if aside >= 0:
            _show(first + width * aside, _OUT, mask, slot, pass_, tables)
        while change < changes_end and i64(change + 8) <= time:
            _turn_fact(change, entries, width, mask, slot, pass_, tables)
            change += h.CHANGE_BYTES
        while change > changes and i64(change - h.CHANGE_BYTES + 8) > time:
            change -= h.CHANGE_BYTES
            _turn_fact(change, entries, width, mask, slot, pass_, tables)
        start = window_start(time, delay, step, length)
        last_time = window_end(time, delay, step)
        _move_edges(slot, first, end, start, last_time, width, mask, pass_, tables)
        wants = i64(pass_ + 8 * hp.PASS_WANTS)
        _look_up(slot, wants, mask, i64(slot + _HEAD), i64(slot + _TAIL), width)
        state = i64(own + h.STATE)
        target = i64(job + OUT) + i64(job + OUT_BYTES) * (state & h.ROW_BITS)
        put_i64(i64(job + TARGETS), target)
        put_aggregates(pass_ + 8 * hp.PASS_COLUMNS, slot, scale, i64(job + TARGETS), ONE)
        bare = (state & ~h.ALL_FACTS) | h.SEEN
        inside = delay == 0 and bare & mask == mask
        if inside:
            _count(slot, own, bare, _IN, pass_, tables)
        with_own = pass_ + i64(pass_ + 8 * hp.PASS_WITH_OWN)
        put_aggregates(with_own, slot, scale, i64(job + TARGETS), ONE)
        if inside:
            _count(slot, own, bare, _OUT, pass_, tables)
        if aside >= 0:
            _show(first + width * aside, _IN, mask, slot, pass_, tables)
        if i32(at + 12) >= 0:
            _show(first + width * i32(at + 12), _OUT, mask, slot, pass_, tables)
        if i32(at + 8) >= 0:
            _show(first + width * i32(at + 8), _IN, mask, slot, pass_, tables)
    end_pass(slot, pass_, tables, mask, width)
    turn_facts(entries, width, changes, change)
