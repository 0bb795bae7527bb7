"""What a pass of history counts: accumulators that events enter and leave, as kernels.

They are the words of a slot of features/program.py, so that the one finishing function
(features/finishing.py) gives the bits that a store would.
Extremes are kept with how often they occur, and looked up anew only when the last such event has
left: amortised one look an event. Distinct members are counted in a table by their numbers.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from freshscore.features import history_layout as h
from freshscore.features import history_plan as hp
from freshscore.features import program as p
from freshscore.features.compiled import kernel
from freshscore.features.finishing import (
    NO_LARGEST,
    NO_SMALLEST,
    aggregate,
    clear_slot,
    feature,
)
from freshscore.features.memory import f64, i32, i64, put_f64, put_i32, put_i64

# Words of a slot that history uses otherwise than a store: where the last event stands, what has to
# be looked up anew, how often the extremes occur, where the edges of the window stand.
LAST_ENTRY: Final = 8 * p.LAST_TIME
LOST: Final = 8 * p.LAST_IDENTITY
SMALLEST_TIMES: Final = 8 * p.OWN_MEMBER_SEEN
LARGEST_TIMES: Final = 8 * (p.OWN_MEMBER_SEEN + 1)
HEAD: Final = 8 * (p.OWN_MEMBER_SEEN + 2)
TAIL: Final = 8 * (p.OWN_MEMBER_SEEN + 3)
# Signs of counting, and one, as numpy's: for a plain 1 numba would compile a kernel once more.
ENTERS: Final[int] = np.int64(1)  # type: ignore[assignment]  # kernels take it as an int
LEAVES: Final[int] = np.int64(-1)  # type: ignore[assignment]  # the same
ONE: Final[int] = np.int64(1)  # type: ignore[assignment]  # the same


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
def copy_words(slot: int, target: int, words: int) -> None:
    """Copy a list of words (history_plan) from one slot to another."""
    for at in range(words + 8, words + 8 + 8 * i64(words), 8):
        put_i64(target + i64(at), i64(slot + i64(at)))


@kernel
def count_event(slot: int, entry: int, state: int, sign: int, pass_: int, tables: int) -> None:
    """Add (sign 1) or take away (-1) an event in the given state."""
    put_i64(slot, i64(slot) + sign)
    put_i64(slot + 8 * p.SUM, i64(slot + 8 * p.SUM) + sign * i64(entry + h.AMOUNT))
    count_more(slot, entry, state, sign, pass_, tables)


@kernel(forceinline=True)
def count_more(slot: int, entry: int, state: int, sign: int, pass_: int, tables: int) -> None:
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
        _count_last(slot, entry, amount, sign)


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
        times = i64(slot + SMALLEST_TIMES) + sign if amount == smallest else 1
        put_i64(slot + 8 * p.SMALLEST, amount)
        put_i64(slot + SMALLEST_TIMES, times)
        if times == 0:
            put_i64(slot + LOST, i64(slot + LOST) | p.WANT_EXTREMES)
    largest = i64(slot + 8 * p.LARGEST)
    if amount >= largest:
        times = i64(slot + LARGEST_TIMES) + sign if amount == largest else 1
        put_i64(slot + 8 * p.LARGEST, amount)
        put_i64(slot + LARGEST_TIMES, times)
        if times == 0:
            put_i64(slot + LOST, i64(slot + LOST) | p.WANT_EXTREMES)


@kernel
def _count_last(slot: int, entry: int, amount: int, sign: int) -> None:
    last = i64(slot + LAST_ENTRY)
    if sign < 0:
        if entry == last:
            put_i64(slot + LOST, i64(slot + LOST) | p.WANT_LAST)
    elif entry >= last:
        put_i64(slot + LAST_ENTRY, entry)
        put_i64(slot + LOST, i64(slot + LOST) & ~p.WANT_LAST)
        put_i64(slot + 8 * p.LAST_AMOUNT, amount)


@kernel
def look_up(slot: int, mask: int, head: int, tail: int, width: int) -> None:
    """Find anew what was lost: the extremes, the last event."""
    lost = i64(slot + LOST)
    put_i64(slot + LOST, 0)
    if lost & p.WANT_EXTREMES:
        put_i64(slot + 8 * p.SMALLEST, NO_SMALLEST)
        put_i64(slot + 8 * p.LARGEST, NO_LARGEST)
        for entry in range(head, tail, width):
            if i64(entry + h.STATE) & mask == mask:
                _count_extremes(slot, i64(entry + h.AMOUNT), ENTERS)
    if lost & p.WANT_LAST:
        put_i64(slot + LAST_ENTRY, 0)
        entry = tail - width
        while entry >= head and i64(entry + h.STATE) & mask != mask:
            entry -= width
        if entry >= head:
            _count_last(slot, entry, i64(entry + h.AMOUNT), ENTERS)


@kernel
def start_pass(slot: int, first: int) -> None:
    """Make a pass's accumulators those of a window at the entry `first` without events."""
    clear_slot(slot)
    put_i64(slot + LAST_ENTRY, 0)
    put_i64(slot + HEAD, first)
    put_i64(slot + TAIL, first)


@kernel
def end_pass(slot: int, pass_: int, tables: int, mask: int, width: int) -> None:
    """Empty the tables of members."""
    if i64(pass_ + 8 * hp.PASS_WANTS) & p.WANT_DISTINCT:
        for entry in range(i64(slot + HEAD), i64(slot + TAIL), width):
            if i64(entry + h.STATE) & mask == mask:
                members = i64(pass_ + 8 * hp.PASS_MEMBERS)
                _count_members(slot, entry, LEAVES, members, tables)


@kernel
def turn_facts(entries: int, width: int, changes: int, changes_end: int) -> None:
    """Turn facts of events, which is the same as turning them back."""
    for change in range(changes, changes_end, h.CHANGE_BYTES):
        entry = entries + width * i64(change)
        put_i64(entry + h.STATE, i64(entry + h.STATE) ^ i64(change + 16))


@kernel
def turn_fact(
    change: int, entries: int, width: int, mask: int, slot: int, pass_: int, tables: int
) -> None:
    """Turn one fact of one event, and count it accordingly; the slot says where the edges are."""
    entry = entries + width * i64(change)
    bit = i64(change + 16)
    before = i64(entry + h.STATE)
    after = before ^ bit
    put_i64(entry + h.STATE, after)
    if entry < i64(slot + HEAD) or entry >= i64(slot + TAIL):
        return
    counted = before & mask == mask
    counts = after & mask == mask
    if counted and counts:
        if bit & i64(pass_ + 8 * hp.PASS_FACTS) << h.FACT_BIT:
            _count_facts(slot, (bit >> h.FACT_BIT) & 0xFF, ENTERS if after & bit else LEAVES)
    elif counted:
        count_event(slot, entry, before, LEAVES, pass_, tables)
    elif counts:
        count_event(slot, entry, after, ENTERS, pass_, tables)
