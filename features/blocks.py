"""Sums of blocks: what makes a window over ten thousand records as cheap as one over ten.

The records of a long state are taken in blocks of 32. For each whole block, and each condition that
the entity's windows have, the segment keeps running sums up to the block's end (count, sum, limbs
of squares, facts that hold by now) and the block's own smallest and largest amount, behind the
records. A window is then the difference of two running sums, plus the records at its two edges.

Sums are right up to block BLOCKS_FROM; a change lowers that mark, a reader raises it again.
They hold for an `as_of` at which all facts of the entity are known; before, records are scanned.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from freshscore.features import layout as rec
from freshscore.features import program as p
from freshscore.features import row as r
from freshscore.features import tables as t
from freshscore.features.compiled import kernel
from freshscore.features.evaluation import (
    NEVER,
    close_window,
    count_until,
    facts_of_event,
    next_change,
    note_fact,
    position,
    window_end,
    window_start,
)
from freshscore.features.finishing import NO_LARGEST, NO_SMALLEST, clear_slot
from freshscore.features.memory import i64, put_i64, u64

BLOCK: Final = 32
# Below this many records a plain scan is as fast.
SHORT: Final = 128
# Words of running sums for a block and condition: five sums, then the facts.
SUMS: Final = 5


@kernel
def blocks_bytes(head: int, capacity: int) -> int:
    """Bytes that a segment for `capacity` records has for sums of blocks."""
    if capacity < SHORT:
        return 0
    return (capacity // BLOCK) * 8 * i64(head + t.BLOCK_WORDS)


@kernel
def refresh_blocks(head: int, row: int, at: int) -> None:
    """Say that records from index `at` on have changed."""
    put_i64(row + t.BLOCKS_FROM, min(i64(row + t.BLOCKS_FROM), at // BLOCK))


@kernel
def fill_blocks(head: int, row: int, work: int) -> None:
    """Bring the sums of all whole blocks up to date."""
    n_blocks = i64(row + t.COUNT) // BLOCK
    for block in range(i64(row + t.BLOCKS_FROM), n_blocks):
        _fill_block(head, row, block, work)
    put_i64(row + t.BLOCKS_FROM, n_blocks)


@kernel
def _sums(head: int, row: int) -> int:
    return i64(row + t.RECORDS) + i64(row + t.CAPACITY) * i64(head + t.WIDTH)


@kernel
def _fill_block(head: int, row: int, block: int, work: int) -> None:
    width = i64(head + t.WIDTH)
    conditions = i64(head + t.BLOCK_CONDITIONS)
    n_conditions = i64(head + t.N_BLOCK_CONDITIONS)
    words = i64(head + t.BLOCK_WORDS)
    mine = _sums(head, row) + 8 * words * block
    for word in range(words):
        before = i64(mine + 8 * (word - words)) if block > 0 else 0
        put_i64(mine + 8 * word, before)
    extremes = mine + 8 * (words - 2 * n_conditions)
    for c in range(n_conditions):
        put_i64(extremes + 16 * c, NO_SMALLEST)
        put_i64(extremes + 16 * c + 8, NO_LARGEST)
    per_condition = words // n_conditions - 2
    first = i64(row + t.RECORDS) + width * BLOCK * block
    end = i64(row + t.RECORDS) + width * i64(row + t.COUNT)
    for i in range(BLOCK):
        record = first + width * i
        if (i64(record + rec.TIME) >> 14) & 3 == rec.FACT:
            continue
        facts = facts_so_far(record, end, width, work, 2**62)
        bits = i64(record + rec.CONTENT) & 0xFFFF
        amount = i64(record + rec.CONTENT) >> 16
        for c in range(n_conditions):
            if not meets(i64(conditions + 8 * c), bits, facts):
                continue
            _add(mine + 8 * per_condition * c, per_condition - SUMS, amount, facts)
            edge = extremes + 16 * c
            put_i64(edge, min(i64(edge), amount))
            put_i64(edge + 8, max(i64(edge + 8), amount))


@kernel
def facts_so_far(record: int, end: int, width: int, work: int, as_of: int) -> int:
    """Bits of the facts that hold at `as_of` for the event at `record`; its facts follow it."""
    after = record + width
    if after >= end or not _of_one_event(after, record):
        return i64(record + rec.TIME) & 0xFF
    forget = True
    while after < end and _of_one_event(after, record):
        note_fact(work, after, as_of, forget)
        forget = False
        after += width
    return facts_of_event(work, record)


@kernel
def _of_one_event(left: int, right: int) -> bool:
    same_time = i64(left + rec.TIME) >> 16 == i64(right + rec.TIME) >> 16
    return u64(left) == u64(right) and same_time


@kernel
def meets(condition: int, bits: int, facts: int) -> bool:
    """Whether an event with these condition bits and facts meets the condition."""
    if condition >= p.FACT_CONDITION:
        return (facts >> (condition - p.FACT_CONDITION)) & 1 == 1
    return condition < 0 or (bits >> condition) & 1 == 1


@kernel
def _add(sums: int, n_facts: int, amount: int, facts: int) -> None:
    upper = amount >> 20
    lower = amount & 0xFFFFF
    put_i64(sums, i64(sums) + 1)
    put_i64(sums + 8, i64(sums + 8) + amount)
    put_i64(sums + 16, i64(sums + 16) + upper * upper)
    put_i64(sums + 24, i64(sums + 24) + upper * lower)
    put_i64(sums + 32, i64(sums + 32) + lower * lower)
    for f in range(n_facts):
        put_i64(sums + 40 + 8 * f, i64(sums + 40 + 8 * f) + ((facts >> f) & 1))


@kernel
def _scan(
    head: int,
    row: int,
    first: int,
    last: int,
    own: np.uint64,
    slot: int,
    condition: int,
    n_facts: int,
    as_of: int,
    work: int,
) -> None:
    """Add the events with index `first` to `last` - 1, the own one aside, to a slot."""
    width = i64(head + t.WIDTH)
    records = i64(row + t.RECORDS)
    end = records + width * i64(row + t.COUNT)
    for i in range(first, last):
        record = records + width * i
        if (i64(record + rec.TIME) >> 14) & 3 == rec.FACT or u64(record) == own:
            continue
        facts = 0
        if n_facts > 0:
            facts = facts_so_far(record, end, width, work, as_of)
        if not meets(condition, i64(record + rec.CONTENT) & 0xFFFF, facts):
            continue
        amount = i64(record + rec.CONTENT) >> 16
        _add(slot, 0, amount, 0)
        put_i64(slot + 8 * p.SMALLEST, min(i64(slot + 8 * p.SMALLEST), amount))
        put_i64(slot + 8 * p.LARGEST, max(i64(slot + 8 * p.LARGEST), amount))
        for f in range(n_facts):
            count = slot + 8 * (p.FACT_COUNTS + f)
            put_i64(count, i64(count) + ((facts >> f) & 1))


@kernel
def _sum_blocks(
    head: int, row: int, first: int, last: int, c: int, slot: int, wants_extremes: bool
) -> None:
    """Add whole blocks `first` to `last` - 1 to a slot, for the entity's condition number c."""
    words = i64(head + t.BLOCK_WORDS)
    n_conditions = i64(head + t.N_BLOCK_CONDITIONS)
    per_condition = words // n_conditions - 2
    sums = _sums(head, row)
    upto = sums + 8 * words * (last - 1) + 8 * per_condition * c
    since = sums + 8 * words * (first - 1) + 8 * per_condition * c
    for word in range(per_condition):
        gained = i64(upto + 8 * word)
        if first > 0:
            gained -= i64(since + 8 * word)
        target = slot + 8 * word if word < SUMS else slot + 8 * (p.FACT_COUNTS + word - SUMS)
        put_i64(target, i64(target) + gained)
    if wants_extremes:
        edge = sums + 8 * (words * first + words - 2 * n_conditions + 2 * c)
        smallest = i64(slot + 8 * p.SMALLEST)
        largest = i64(slot + 8 * p.LARGEST)
        for _ in range(first, last):
            smallest = min(smallest, i64(edge))
            largest = max(largest, i64(edge + 8))
            edge += 8 * words
        put_i64(slot + 8 * p.SMALLEST, smallest)
        put_i64(slot + 8 * p.LARGEST, largest)


@kernel
def _range(
    head: int,
    row: int,
    first: int,
    last: int,
    own_at: int,
    own: np.uint64,
    slot: int,
    c: int,
    condition: int,
    n_facts: int,
    wants_extremes: bool,
    as_of: int,
    work: int,
) -> None:
    """Add the events with index `first` to `last` - 1 to a slot, by blocks where they are whole.

    own_at: index of the own event's record, or -1; the block that it is in is scanned.
    """
    low = (first + BLOCK - 1) // BLOCK
    high = min(last // BLOCK, i64(row + t.BLOCKS_FROM))
    if low >= high:
        _scan(head, row, first, last, own, slot, condition, n_facts, as_of, work)
        return
    _scan(head, row, first, low * BLOCK, own, slot, condition, n_facts, as_of, work)
    own_block = own_at // BLOCK if own_at >= 0 else -1
    if low <= own_block < high:
        if low < own_block:
            _sum_blocks(head, row, low, own_block, c, slot, wants_extremes)
        start = own_block * BLOCK
        _scan(head, row, start, start + BLOCK, own, slot, condition, n_facts, as_of, work)
        low = own_block + 1
    if low < high:
        _sum_blocks(head, row, low, high, c, slot, wants_extremes)
    _scan(head, row, high * BLOCK, last, own, slot, condition, n_facts, as_of, work)


@kernel
def condition_number(head: int, condition: int) -> int:
    """Which of the entity's block conditions this is."""
    conditions = i64(head + t.BLOCK_CONDITIONS)
    for c in range(i64(head + t.N_BLOCK_CONDITIONS)):
        if i64(conditions + 8 * c) == condition:
            return c
    return -1


@kernel
def usable(span: int, row: int, as_of: int) -> bool:
    """Whether a span of this entity can be read through block sums at `as_of`."""
    wants = i64(span + 8 * p.SPAN_WANTS)
    if i64(row + t.COUNT) < SHORT or wants & (p.WANT_DISTINCT | p.WANT_LAST):
        return False
    return wants & p.WANT_FACTS == 0 or i64(row + t.MAX_KNOWN) <= as_of


@kernel
def sum_span(
    span: int,
    head: int,
    entity_row: int,
    row: int,
    members: int,
    as_of: int,
    slots: int,
    changes: int,
    work: int,
) -> None:
    """Fill the slots of one span, as `scan_span` does, through block sums."""
    fill_blocks(head, entity_row, work)
    delay = i64(span + 8 * p.SPAN_DELAY)
    n_conditions = i64(span + 8 * p.SPAN_N_CONDITIONS)
    wants = i64(span + 8 * p.SPAN_WANTS)
    n_facts = i64(span + 8 * p.SPAN_FACTS) if wants & p.WANT_FACTS else 0
    conditions = span + 8 * p.SPAN_FIXED
    window = conditions + 8 * n_conditions
    records = i64(entity_row + t.RECORDS)
    n = i64(entity_row + t.COUNT)
    width = i64(head + t.WIDTH)
    own = u64(row)
    own_time = i64(row + r.TIME)
    own_at = position(records, n, width, own_time, own)
    if own_at == n or u64(records + width * own_at) != own:
        own_at = -1
    # Windows come by length, so most end where the last did, and begin before it.
    last_end = last_start = as_of + 1
    last = first = n
    for k in range(i64(span + 8 * p.SPAN_N_WINDOWS)):
        step = i64(window + 8)
        end = window_end(as_of, delay, step)
        start = window_start(as_of, delay, step, i64(window))
        if end != last_end:
            last = count_until(records, n, width, end)
        first = count_until(records, first if start <= last_start else n, width, start)
        last_end, last_start = end, start
        for c in range(n_conditions):
            slot = work + 8 * p.SLOT * c
            clear_slot(slot)
            condition = i64(conditions + 8 * c)
            number = condition_number(head, condition)
            _range(
                head,
                entity_row,
                first,
                last,
                own_at,
                own,
                slot,
                number,
                condition,
                n_facts,
                wants & p.WANT_EXTREMES != 0,
                as_of,
                work,
            )
        close_window(
            conditions,
            n_conditions,
            window,
            own_time > start and own_time <= end,
            i64(span + 8 * p.SPAN_MEMBERS),
            row,
            members,
            work,
            slots,
        )
        oldest = i64(records + width * first + rec.TIME) >> 16 if first < last else NEVER
        beyond = i64(records + width * last + rec.TIME) >> 16 if last < n else NEVER
        change = next_change(oldest, beyond, own_time, as_of, delay, step, i64(window))
        put_i64(changes + 8 * k, change)
        window += 16 + 16 * n_conditions
