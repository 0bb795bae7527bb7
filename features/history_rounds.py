"""One entity of a whole table: all its passes, then the round that writes the other columns.

The last event before a payment is the entry before its own, or, where the entity is not plain, the
nearest one before it that is seen by then. A pair was seen if the last entry with that member lies
within reach; entities that are not plain look for it entry by entry.
"""

from __future__ import annotations

from typing import Final

from freshscore.features import history_layout as h
from freshscore.features import history_plan as hp
from freshscore.features import program as p
from freshscore.features import row as r
from freshscore.features.compiled import kernel
from freshscore.features.history_counting import (
    ONE,
    end_pass,
    put_aggregates,
    put_columns,
    start_pass,
    turn_facts,
)
from freshscore.features.history_passes import plain_pass, see_first, stepped_pass, sum_pass
from freshscore.features.layout import NO_PLACE
from freshscore.features.memory import f64, i32, i64, put_i32, put_i64, u8

_LINE_BYTES: Final = 64


@kernel
def _place(job: int, row: int) -> int:
    locations = i64(job + h.LOCATIONS)
    if locations == 0 or u8(i64(job + h.LOCATED) + row) == 0:
        return NO_PLACE
    east = i32(locations + 8 * row + 4) & 0xFFFFFFFF
    return i32(locations + 8 * row) << 32 | east


@kernel
def _put_row(job: int, entry: int) -> int:
    """Fill the packed row with what a round's columns read; the address of the output's row."""
    packed = i64(job + h.ROW)
    number = i64(entry + h.STATE) & h.ROW_BITS
    put_i64(packed + r.TIME, i64(entry))
    put_i64(packed + r.AMOUNT, i64(entry + h.AMOUNT))
    plan = i64(job + h.PLAN)
    if i64(plan + 8 * hp.HAS_PLACE):
        put_i64(packed + r.PLACE, _place(job, number))
    pairs = i64(plan + 8 * hp.PAIRS)
    for m in range(i64(plan + 8 * hp.N_MEMBERS)):
        if (pairs >> m) & 1:
            entity = i64(plan + 8 * (hp.MEMBER_ENTITIES + m))
            named = 1 if i32(entry + h.MEMBERS + 4 * m) >= 0 else 0
            put_i64(packed + r.TOKENS + 16 * entity, named)
    return i64(job + h.OUT) + i64(job + h.OUT_BYTES) * number


@kernel
def _put_last(job: int, last: int, entry: int) -> None:
    put_i64(last, 1)
    put_i64(last + 8 * p.LAST_AT, i64(entry))
    if i64(i64(job + h.PLAN) + 8 * hp.HAS_PLACE):
        row = i64(entry + h.STATE) & h.ROW_BITS
        put_i64(last + 8 * p.LAST_PLACE, _place(job, row))


@kernel
def _put_pairs(job: int, last: int, own: int, first: int, oldest: int) -> None:
    """Which pairs a plain entity has had after `oldest`; and remember those of `own`."""
    plan = i64(job + h.PLAN)
    width = i64(job + h.WIDTH)
    entries = i64(job + h.ENTRIES)
    for m in range(i64(plan + 8 * hp.N_MEMBERS)):
        if (i64(plan + 8 * hp.PAIRS) >> m) & 1 == 0:
            continue
        number = i32(own + h.MEMBERS + 4 * m)
        if number < 0:
            continue
        at = i64(job + h.SEEN_AT + 8 * m) + 4 * number
        before = entries + width * (i32(at) - 1)
        seen = before >= first and i64(before) > oldest
        put_i64(last + 8 * (p.LAST_PAIR + m), 1 if seen else 0)
        put_i32(at, (own - entries) // width + 1)


@kernel
def _plain_round(job: int, group: int, first: int, end: int) -> None:
    """The round of the entries `first` to `end` of the plain entity whose first is `group`."""
    plan = i64(job + h.PLAN)
    width = i64(job + h.WIDTH)
    columns = plan + i64(plan + 8 * hp.ROUND_AT)
    at = i64(plan + 8 * hp.LAST)
    last = i64(job + h.SLOTS) + at
    if i64(columns) == 0:
        return
    for own in range(first, end, width):
        out = _put_row(job, own)
        if at >= 0:
            oldest = i64(own) - i64(plan + 8 * hp.REACH_MS)
            put_i64(last, 0)
            if own > group and i64(own - width) > oldest:
                _put_last(job, last, own - width)
            _put_pairs(job, last, own, group, oldest)
        put_columns(i64(job + h.CODE), columns, i64(job + h.SLOTS), i64(job + h.ROW), out)


@kernel
def _find_last(job: int, last: int, own: int, first: int, oldest: int) -> None:
    """Look back from `own` for the last event that is seen, and for pairs."""
    plan = i64(job + h.PLAN)
    width = i64(job + h.WIDTH)
    wanted = i64(plan + 8 * hp.PAIRS)
    n_members = i64(plan + 8 * hp.N_MEMBERS)
    put_i64(last, 0)
    for m in range(n_members):
        put_i64(last + 8 * (p.LAST_PAIR + m), 0)
    entry = own - width
    while entry >= first and i64(entry) > oldest:
        if i64(entry + h.STATE) & h.SEEN:
            if i64(last) == 0:
                _put_last(job, last, entry)
            for m in range(n_members):
                if (wanted >> m) & 1 and i32(entry + h.MEMBERS + 4 * m) == i32(
                    own + h.MEMBERS + 4 * m
                ):
                    put_i64(last + 8 * (p.LAST_PAIR + m), 1)
                    wanted &= ~(1 << m)
            if wanted == 0:
                return
        entry -= width


@kernel
def _turn_seen(first: int, number: int, width: int) -> None:
    """Let an event that was not seen be seen, or the other way round; -1 is none."""
    if number >= 0:
        entry = first + width * number
        put_i64(entry + h.STATE, i64(entry + h.STATE) ^ h.SEEN)


@kernel
def _stepped_round(job: int, first: int, end: int, steps: int) -> None:
    plan = i64(job + h.PLAN)
    width = i64(job + h.WIDTH)
    columns = plan + i64(plan + 8 * hp.ROUND_AT)
    at = i64(plan + 8 * hp.LAST)
    last = i64(job + h.SLOTS) + at
    see_first(first, end, width)
    for step in range(steps, steps + h.STEP_BYTES * ((end - first) // width), h.STEP_BYTES):
        own = first + width * i32(step)
        aside = i32(step + 4)
        _turn_seen(first, aside, width)
        out = _put_row(job, own)
        if at >= 0:
            _find_last(job, last, own, first, i64(own) - i64(plan + 8 * hp.REACH_MS))
        put_columns(i64(job + h.CODE), columns, i64(job + h.SLOTS), i64(job + h.ROW), out)
        _turn_seen(first, aside, width)
        _turn_seen(first, i32(step + 12), width)
        _turn_seen(first, i32(step + 8), width)


@kernel
def _absent(job: int, first: int, end: int) -> None:
    """Columns of the payments that have no such entity."""
    plan = i64(job + h.PLAN)
    slots = i64(job + h.SLOTS)
    at = i64(plan + 8 * hp.LAST)
    put_i64(slots, p.ABSENT)
    if at >= 0:
        put_i64(slots + at, p.ABSENT)
    for own in range(first, end, i64(job + h.WIDTH)):
        out = _put_row(job, own)
        pass_ = plan + 8 * hp.PLAN_HEAD
        for _ in range(i64(plan + 8 * hp.N_PASSES)):
            scale = f64(job + h.SCALE_BITS)
            targets = i64(job + h.TARGETS)
            put_i64(targets, out)
            put_aggregates(pass_ + 8 * hp.PASS_COLUMNS, slots, scale, targets, ONE)
            with_own = pass_ + i64(pass_ + 8 * hp.PASS_WITH_OWN)
            put_aggregates(with_own, slots, scale, targets, ONE)
            pass_ += i64(pass_ + 8 * hp.PASS_NEXT)
        columns = plan + i64(plan + 8 * hp.ROUND_AT)
        put_columns(i64(job + h.CODE), columns, slots, i64(job + h.ROW), out)


@kernel
def _put_targets(job: int, targets: int, first: int, end: int) -> None:
    """Note where in the output the rows of the entries `first` to `end` are."""
    for entry in range(first, end, i64(job + h.WIDTH)):
        row = i64(entry + h.STATE) & h.ROW_BITS
        put_i64(targets, i64(job + h.OUT) + i64(job + h.OUT_BYTES) * row)
        targets += 8


@kernel(nogil=True)
def do_plain(job: int) -> None:
    """Write all columns of one entity's plan, for the rows of those that are plain."""
    plan = i64(job + h.PLAN)
    width = i64(job + h.WIDTH)
    entries = i64(job + h.ENTRIES)
    starts = i64(job + h.STARTS)
    slots = i64(job + h.SLOTS)
    n_passes = i64(plan + 8 * hp.N_PASSES)
    targets = i64(job + h.TARGETS)
    next_targets = targets + 8 * h.PIECE
    all_end = entries + width * i32(starts + 4 * i64(job + h.N_CODES))
    changes_end = i64(job + h.CHANGES)
    last_change = changes_end + h.CHANGE_BYTES * i64(job + h.N_CHANGES)
    for code in range(i64(job + h.N_CODES)):
        first = entries + width * i32(starts + 4 * code)
        end = entries + width * i32(starts + 4 * code + 4)
        changes = changes_end
        changes_end = changes_of(changes, last_change, entries, width, end)
        if first == end or u8(i64(job + h.IRREGULAR) + code) != 0:
            continue
        for i in range(n_passes):
            start_pass(slots + 8 * p.SLOT * i, first)
        _put_targets(job, next_targets, first, min(end, first + h.PIECE * width))
        for piece in range(first, end, h.PIECE * width):
            piece_end = min(end, piece + h.PIECE * width)
            targets, next_targets = next_targets, targets
            # The next piece may be of the next entity, which is as well.
            _put_targets(job, next_targets, piece_end, min(all_end, piece_end + h.PIECE * width))
            line = i64(plan + 8 * hp.FIRST_BYTE)
            pass_ = plan + 8 * hp.PLAN_HEAD
            for i in range(n_passes):
                upto = changes_end if i64(pass_ + 8 * hp.PASS_READS_FACTS) else changes
                tables = i64(job + h.TABLES) + 32 * i
                slot = slots + 8 * p.SLOT * i
                if i64(pass_ + 8 * hp.PASS_IS_SUM):
                    sum_pass(job, pass_, slot, piece, piece_end, targets, next_targets, line)
                else:
                    plain_pass(
                        job,
                        pass_,
                        slot,
                        tables,
                        piece,
                        piece_end,
                        changes,
                        upto,
                        targets,
                        next_targets,
                        line,
                    )
                line = min(line + _LINE_BYTES, i64(plan + 8 * hp.END_BYTE) - 1)
                pass_ += i64(pass_ + 8 * hp.PASS_NEXT)
            _plain_round(job, first, piece, piece_end)
            upto = changes
            while upto < changes_end and i64(upto + 8) <= i64(piece_end - width):
                upto += h.CHANGE_BYTES
            turn_facts(entries, width, changes, upto)
            changes = upto
        pass_ = plan + 8 * hp.PLAN_HEAD
        for i in range(n_passes):
            tables = i64(job + h.TABLES) + 32 * i
            mask = i64(pass_ + 8 * hp.PASS_MASK)
            end_pass(slots + 8 * p.SLOT * i, pass_, tables, mask, width)
            pass_ += i64(pass_ + 8 * hp.PASS_NEXT)


@kernel
def changes_of(changes: int, last_change: int, entries: int, width: int, end: int) -> int:
    """Where the changes of the entity end whose entries end at `end`."""
    while changes < last_change and entries + width * i64(changes) < end:
        changes += h.CHANGE_BYTES
    return changes


@kernel(nogil=True)
def do_others(job: int) -> None:
    """Write all columns of one entity's plan, for the rows of all others, absent ones included."""
    plan = i64(job + h.PLAN)
    width = i64(job + h.WIDTH)
    entries = i64(job + h.ENTRIES)
    starts = i64(job + h.STARTS)
    slot = i64(job + h.SLOTS)
    steps = i64(job + h.STEPS)
    n_codes = i64(job + h.N_CODES)
    changes_end = i64(job + h.CHANGES)
    last_change = changes_end + h.CHANGE_BYTES * i64(job + h.N_CHANGES)
    for code in range(n_codes):
        first = entries + width * i32(starts + 4 * code)
        end = entries + width * i32(starts + 4 * code + 4)
        changes = changes_end
        changes_end = changes_of(changes, last_change, entries, width, end)
        if u8(i64(job + h.IRREGULAR) + code) == 0:
            continue
        pass_ = plan + 8 * hp.PLAN_HEAD
        for i in range(i64(plan + 8 * hp.N_PASSES)):
            upto = changes_end if i64(pass_ + 8 * hp.PASS_READS_FACTS) else changes
            tables = i64(job + h.TABLES) + 32 * i
            start_pass(slot, first)
            stepped_pass(job, pass_, slot, tables, first, end, changes, upto, steps)
            pass_ += i64(pass_ + 8 * hp.PASS_NEXT)
        _stepped_round(job, first, end, steps)
        steps += h.STEP_BYTES * ((end - first) // width)
    first = entries + width * i32(starts + 4 * n_codes)
    _absent(job, first, entries + width * i32(starts + 4 * n_codes + 4))


@kernel(nogil=True)
def do_rest(
    code: int,
    columns: int,
    n: int,
    times: int,
    amounts: int,
    values: int,
    n_values: int,
    slots: int,
    packed: int,
    out: int,
    out_bytes: int,
) -> None:
    """Write the columns that read plain fields or nothing of any entity, row by row.

    values: address of the addresses of the numbers' and categories' columns, float64 (n,).
    """
    numbers = packed + r.TOKENS + 24 * i64(code + 8 * p.N_ENTITIES)
    for row in range(n):
        put_i64(packed + r.TIME, i64(times + 8 * row))
        put_i64(packed + r.AMOUNT, i64(amounts + 8 * row))
        for v in range(n_values):
            put_i64(numbers + 8 * v, i64(i64(values + 8 * v) + 8 * row))
        put_columns(code, columns, slots, packed, out + out_bytes * row)
