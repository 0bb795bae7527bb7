"""The passes of history: windows that move along the events of one entity, as kernels.

A window of an entity's sorted events is two edges; as the instant moves on, events enter at one and
leave at the other, and what is counted of them (features/history_counting.py) follows.

Most entities are plain: each event is later than the one before, and is asked about just before it
joins. They are done in pieces, so that rows of the output stay in the nearest cache from one pass
to the next. Of the others (ties, late arrivals, refused or repeated payments) every event has its
place from the beginning and is seen or not: their steps say which one is asked about, which come
and go, and the edges move both ways.
Cost: in cache, 2 ns a payment for a pass that sums, 10 ns for others, and 1 to 3 ns a column.
"""

from __future__ import annotations

from freshscore.features import history_layout as h
from freshscore.features import history_plan as hp
from freshscore.features import program as p
from freshscore.features.compiled import kernel
from freshscore.features.evaluation import window_end, window_start
from freshscore.features.history_counting import (
    ENTERS,
    HEAD,
    LEAVES,
    LOST,
    ONE,
    TAIL,
    copy_words,
    count_event,
    count_more,
    end_pass,
    look_up,
    put_aggregates,
    turn_fact,
    turn_facts,
)
from freshscore.features.memory import f64, i32, i64, prefetch, put_i64


@kernel
def sum_pass(
    job: int,
    pass_: int,
    slot: int,
    first: int,
    end: int,
    targets: int,
    next_targets: int,
    line: int,
) -> None:
    """As `plain_pass`, for windows up to now of which count and sum alone are read."""
    width = i64(job + h.WIDTH)
    length = i64(pass_ + 8 * hp.PASS_LENGTH)
    step = i64(pass_ + 8 * hp.PASS_STEP)
    bare_slot = i64(job + h.PIECE_SLOTS)
    own_slot = bare_slot + 8 * p.SLOT * h.PIECE
    head = i64(slot + HEAD)
    count = i64(slot)
    total = i64(slot + 8 * p.SUM)
    asked = next_targets
    for own in range(first, end, width):
        prefetch(i64(asked) + line)
        asked += 8
        start = window_start(i64(own), 0, step, length)
        while i64(head) <= start:
            count -= 1
            total -= i64(head + h.AMOUNT)
            head += width
        put_i64(bare_slot, count)
        put_i64(bare_slot + 8 * p.SUM, total)
        bare_slot += 8 * p.SLOT
        count += 1
        total += i64(own + h.AMOUNT)
        put_i64(own_slot, count)
        put_i64(own_slot + 8 * p.SUM, total)
        own_slot += 8 * p.SLOT
    put_i64(slot, count)
    put_i64(slot + 8 * p.SUM, total)
    put_i64(slot + HEAD, head)
    _put_piece(job, pass_, targets, (end - first) // width)


@kernel
def _put_piece(job: int, pass_: int, targets: int, n: int) -> None:
    """Write the columns of a pass for the n payments of a piece."""
    slots = i64(job + h.PIECE_SLOTS)
    scale = f64(job + h.SCALE_BITS)
    put_aggregates(pass_ + 8 * hp.PASS_COLUMNS, slots, scale, targets, n)
    with_own = pass_ + i64(pass_ + 8 * hp.PASS_WITH_OWN)
    put_aggregates(with_own, slots + 8 * p.SLOT * h.PIECE, scale, targets, n)


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
    targets: int,
    next_targets: int,
    line: int,
) -> None:
    """Go on with a pass over the entries `first` to `end`, at most h.PIECE, of a plain entity.

    changes: of its events' facts from here on, in order of time; turned back at the end.
    targets: where their rows of the output are, and next_targets those of the next piece, of which
    each pass asks for one line, `line` bytes in: all at once they would be waited for.
    """
    width = i64(job + h.WIDTH)
    delay = i64(pass_ + 8 * hp.PASS_DELAY)
    length = i64(pass_ + 8 * hp.PASS_LENGTH)
    step = i64(pass_ + 8 * hp.PASS_STEP)
    mask = i64(pass_ + 8 * hp.PASS_MASK)
    wants = i64(pass_ + 8 * hp.PASS_WANTS)
    copied = pass_ + i64(pass_ + 8 * hp.PASS_COPIED)
    bare_slot = i64(job + h.PIECE_SLOTS)
    own_slot = bare_slot + 8 * p.SLOT * h.PIECE
    wants_bare = wants != 0 and i64(pass_ + 8 * hp.PASS_COLUMNS) != 0
    wants_own = wants != 0 and i64(pass_ + i64(pass_ + 8 * hp.PASS_WITH_OWN)) != 0
    head = i64(slot + HEAD)
    tail = i64(slot + TAIL)
    count = i64(slot)
    total = i64(slot + 8 * p.SUM)
    # Counting facts takes a call only where there is one.
    more = wants & ~p.WANT_FACTS
    facts = i64(pass_ + 8 * hp.PASS_FACTS) << h.FACT_BIT
    change = changes
    asked = next_targets
    for own in range(first, end, width):
        time = i64(own)
        prefetch(i64(asked) + line)
        asked += 8
        if change < changes_end and i64(change + 8) <= time:
            put_i64(slot, count)
            put_i64(slot + 8 * p.SUM, total)
            put_i64(slot + HEAD, head)
            put_i64(slot + TAIL, tail)
            while change < changes_end and i64(change + 8) <= time:
                turn_fact(change, i64(job + h.ENTRIES), width, mask, slot, pass_, tables)
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
                        count_more(slot, tail, i64(tail + h.STATE), ENTERS, pass_, tables)
                tail += width
        start = window_start(time, delay, step, length)
        while head < tail and i64(head) <= start:
            if i64(head + h.STATE) & mask == mask:
                count -= 1
                total -= i64(head + h.AMOUNT)
                if more or i64(head + h.STATE) & facts:
                    count_more(slot, head, i64(head + h.STATE), LEAVES, pass_, tables)
            head += width
        if i64(slot + LOST):
            look_up(slot, mask, head, tail, width)
        put_i64(bare_slot, count)
        put_i64(bare_slot + 8 * p.SUM, total)
        if wants_bare:
            copy_words(slot, bare_slot, copied)
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
                count_more(slot, own, bare, ENTERS, pass_, tables)
        put_i64(own_slot, count)
        put_i64(own_slot + 8 * p.SUM, total)
        if wants_own:
            copy_words(slot, own_slot, copied)
        own_slot += 8 * p.SLOT
        if delay == 0 and state != bare:
            # In its own features a payment has no facts; from here on it has.
            put_i64(slot, count)
            put_i64(slot + 8 * p.SUM, total)
            if joins:
                count_event(slot, own, bare, LEAVES, pass_, tables)
            if state & mask == mask:
                count_event(slot, own, state, ENTERS, pass_, tables)
            count = i64(slot)
            total = i64(slot + 8 * p.SUM)
    put_i64(slot, count)
    put_i64(slot + 8 * p.SUM, total)
    put_i64(slot + HEAD, head)
    put_i64(slot + TAIL, tail)
    turn_facts(i64(job + h.ENTRIES), width, changes, change)
    _put_piece(job, pass_, targets, (end - first) // width)


@kernel
def _show(entry: int, sign: int, mask: int, slot: int, pass_: int, tables: int) -> None:
    """Let an event be seen, or not any more; the slot says where the edges are."""
    state = i64(entry + h.STATE)
    put_i64(entry + h.STATE, state ^ h.SEEN)
    state |= h.SEEN
    inside = entry >= i64(slot + HEAD) and entry < i64(slot + TAIL)
    if inside and state & mask == mask:
        count_event(slot, entry, state, sign, pass_, tables)


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
    head = i64(slot + HEAD)
    tail = i64(slot + TAIL)
    while True:
        # One event at a time, so that one place counts: in at either edge, then out.
        if head > first and i64(head - width) > start:
            head -= width
            entry, sign = head, ENTERS
        elif tail < end and i64(tail) <= last_time:
            entry, sign = tail, ENTERS
            tail += width
        elif tail > first and i64(tail - width) > last_time:
            tail -= width
            entry, sign = tail, LEAVES
        elif head < tail and i64(head) <= start:
            entry, sign = head, LEAVES
            head += width
        else:
            break
        if i64(entry + h.STATE) & mask == mask:
            count_event(slot, entry, i64(entry + h.STATE), sign, pass_, tables)
    put_i64(slot + HEAD, head)
    put_i64(slot + TAIL, tail)


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
    width = i64(job + h.WIDTH)
    entries = i64(job + h.ENTRIES)
    scale = f64(job + h.SCALE_BITS)
    delay = i64(pass_ + 8 * hp.PASS_DELAY)
    length = i64(pass_ + 8 * hp.PASS_LENGTH)
    step = i64(pass_ + 8 * hp.PASS_STEP)
    mask = i64(pass_ + 8 * hp.PASS_MASK) | h.SEEN
    arrivals = i64(job + h.ARRIVALS)
    see_first(first, end, width)
    change = changes
    for at in range(steps, steps + h.STEP_BYTES * ((end - first) // width), h.STEP_BYTES):
        own = first + width * i32(at)
        aside = i32(at + 4)
        time = i64(own)
        # Facts are messages: before a payment that is early there were those that arrived by then.
        known_by = time
        if arrivals != 0:
            known_by = min(time, i64(arrivals + 8 * (i64(own + h.STATE) & h.ROW_BITS)))
        if aside >= 0:
            _show(first + width * aside, LEAVES, mask, slot, pass_, tables)
        while change < changes_end and i64(change + 8) <= known_by:
            turn_fact(change, entries, width, mask, slot, pass_, tables)
            change += h.CHANGE_BYTES
        while change > changes and i64(change - h.CHANGE_BYTES + 8) > known_by:
            change -= h.CHANGE_BYTES
            turn_fact(change, entries, width, mask, slot, pass_, tables)
        start = window_start(time, delay, step, length)
        last_time = window_end(time, delay, step)
        _move_edges(slot, first, end, start, last_time, width, mask, pass_, tables)
        if i64(slot + LOST):
            look_up(slot, mask, i64(slot + HEAD), i64(slot + TAIL), width)
        state = i64(own + h.STATE)
        target = i64(job + h.OUT) + i64(job + h.OUT_BYTES) * (state & h.ROW_BITS)
        put_i64(i64(job + h.TARGETS), target)
        put_aggregates(pass_ + 8 * hp.PASS_COLUMNS, slot, scale, i64(job + h.TARGETS), ONE)
        bare = (state & ~h.ALL_FACTS) | h.SEEN
        inside = delay == 0 and bare & mask == mask
        if inside:
            count_event(slot, own, bare, ENTERS, pass_, tables)
        with_own = pass_ + i64(pass_ + 8 * hp.PASS_WITH_OWN)
        put_aggregates(with_own, slot, scale, i64(job + h.TARGETS), ONE)
        if inside:
            count_event(slot, own, bare, LEAVES, pass_, tables)
        if aside >= 0:
            _show(first + width * aside, ENTERS, mask, slot, pass_, tables)
        if i32(at + 12) >= 0:
            _show(first + width * i32(at + 12), LEAVES, mask, slot, pass_, tables)
        if i32(at + 8) >= 0:
            _show(first + width * i32(at + 8), ENTERS, mask, slot, pass_, tables)
    end_pass(slot, pass_, tables, mask, width)
    turn_facts(entries, width, changes, change)
