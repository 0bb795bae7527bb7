"""Evaluating one entity's records at one instant: windows and the last event, by scanning.

Records lie sorted by (time, identity, type); a scan goes backwards from the end of the windows, so
that windows that end together share it: each window copies the running accumulators where it
begins. Facts stand behind their event, so they are met first and decide what it counts for.

Cost: about 2-3 ns a record. Longer states are read through block sums (features/blocks.py).
Rule: nothing here changes a record; all that is written goes to the caller's scratch.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from freshscore.features import layout as rec
from freshscore.features import program as p
from freshscore.features import row as r
from freshscore.features.compiled import kernel
from freshscore.features.finishing import NO_LAST, add_current, clear_slot
from freshscore.features.memory import i64, move, put_i64, put_u64, signed, u64

# Scratch behind the accumulators, in words: first running accumulators for each condition of a
# span, then what is known of one event's facts, the table in which distinct members are found.
MAX_SPAN_CONDITIONS: Final = 25
FACT_STATE: Final = MAX_SPAN_CONDITIONS * p.SLOT
FACT_KNOWN: Final = FACT_STATE
FACT_SENDER: Final = FACT_STATE + 8
FACT_VALUE: Final = FACT_STATE + 16
STAMP: Final = FACT_STATE + 24
TABLE_BITS: Final = FACT_STATE + 25
TABLE: Final = FACT_STATE + 32
MAX_EVENTS_LIMIT: Final = 32768

# An instant that does not come.
NEVER: Final = 2**62

_MIX: Final = np.uint64(0x9E3779B97F4A7C15)


def table_bits(program: p.Program, n_records: int) -> int:
    """Bits of the number of slots in which scans of so many records find distinct members.

    Each record is looked up for every condition and member of a span; at most half of the slots
    are taken, so that probes stay short.
    """
    return max(1, 2 * n_records * program.n_distinct - 1).bit_length()


def scratch_for(program: p.Program, n_before: int, n_records: int) -> NDArray[np.int64]:
    """Scratch of one reader: `n_before` words, the accumulators, the work of scans."""
    bits = table_bits(program, n_records)
    work = n_before + program.scratch_words
    scratch = np.zeros(work + TABLE + (2 << bits), np.int64)
    scratch[work + TABLE_BITS] = bits
    return scratch


@kernel
def count_until(records: int, n: int, width: int, time: int) -> int:
    """How many of the records have an event time of at most `time`."""
    if n == 0 or (i64(records + (n - 1) * width + rec.TIME) >> 16) <= time:
        return n
    low = 0
    high = n - 1
    while low < high:
        middle = (low + high) >> 1
        if (i64(records + middle * width + rec.TIME) >> 16) <= time:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def position(records: int, n: int, width: int, time: int, identity: np.uint64) -> int:
    """Index of the first record that is not before (time, identity)."""
    low = 0
    high = n
    while low < high:
        middle = (low + high) >> 1
        record = records + middle * width
        at = i64(record + rec.TIME) >> 16
        if at < time or (at == time and u64(record) < identity):
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def note_fact(work: int, record: int, as_of: int, forget: bool) -> None:
    """Remember a fact of the event that follows in the scan, if known by `as_of` and the latest."""
    if forget:
        put_i64(work + 8 * FACT_VALUE, 0)
        for f in range(8):
            put_i64(work + 8 * (FACT_KNOWN + f), -1)
    content = i64(record + rec.CONTENT)
    known = content >> 16
    if known > as_of:
        return
    number = (content >> 4) & 7
    value = content & 1
    sender = (((content >> 8) & 0xFF) << 32) | ((i64(record + rec.CHECK) >> 32) & 0xFFFFFFFF)
    # 40 bits, signed, relative to the event's time, which is the same for all of them.
    sender = (sender << 24) >> 24
    best = i64(work + 8 * (FACT_KNOWN + number))
    best_sender = i64(work + 8 * (FACT_SENDER + number))
    held = (i64(work + 8 * FACT_VALUE) >> number) & 1
    later = known > best or (
        known == best and (sender > best_sender or (sender == best_sender and value > held))
    )
    if later:
        put_i64(work + 8 * (FACT_KNOWN + number), known)
        put_i64(work + 8 * (FACT_SENDER + number), sender)
        values = i64(work + 8 * FACT_VALUE)
        put_i64(work + 8 * FACT_VALUE, (values & ~(1 << number)) | (value << number))


@kernel
def facts_of_event(work: int, record: int) -> int:
    """Bits of the facts that hold for the event at `record`, whose facts were just noted.

    Flags known with the event count as facts with known-at and sender at its own time.
    """
    bits = i64(record + rec.TIME) & 0xFF
    time = i64(record + rec.TIME) >> 16
    for f in range(8):
        known = i64(work + 8 * (FACT_KNOWN + f))
        if known < 0:
            continue
        sender = i64(work + 8 * (FACT_SENDER + f))
        flagged = (bits >> f) & 1
        # An inline flag has known-at = sender's instant = the event's time; ties go to true.
        if flagged and (known < time or (known == time and sender <= 0)):
            continue
        value = (i64(work + 8 * FACT_VALUE) >> f) & 1
        bits = (bits & ~(1 << f)) | (value << f)
    return bits


@kernel
def _first_sight(work: int, member: np.uint64, salt: int) -> bool:
    """Whether `member` was not met before in this scan, under this condition; now it was."""
    key = member ^ (np.uint64(salt) * _MIX)
    stamp = i64(work + 8 * STAMP)
    bits = i64(work + 8 * TABLE_BITS)
    at = signed((key * _MIX) >> np.uint64(64 - bits))
    while True:
        slot = work + 8 * (TABLE + 2 * at)
        if i64(slot + 8) != stamp:
            put_u64(slot, key)
            put_i64(slot + 8, stamp)
            return True
        if u64(slot) == key:
            return False
        at = (at + 1) & ((1 << bits) - 1)


@kernel
def _count_event(
    slot: int, record: int, wants: int, facts: int, n_members: int, row: int, work: int, salt: int
) -> None:
    amount = i64(record + rec.CONTENT) >> 16
    put_i64(slot, i64(slot) + 1)
    put_i64(slot + 8 * p.SUM, i64(slot + 8 * p.SUM) + amount)
    if wants & p.WANT_SQUARES:
        upper = amount >> 20
        lower = amount & 0xFFFFF
        put_i64(slot + 8 * p.SQUARES_HIGH, i64(slot + 8 * p.SQUARES_HIGH) + upper * upper)
        put_i64(slot + 8 * p.SQUARES_MIDDLE, i64(slot + 8 * p.SQUARES_MIDDLE) + upper * lower)
        put_i64(slot + 8 * p.SQUARES_LOW, i64(slot + 8 * p.SQUARES_LOW) + lower * lower)
    if wants & p.WANT_EXTREMES:
        put_i64(slot + 8 * p.SMALLEST, min(i64(slot + 8 * p.SMALLEST), amount))
        put_i64(slot + 8 * p.LARGEST, max(i64(slot + 8 * p.LARGEST), amount))
    if wants & p.WANT_LAST and i64(slot + 8 * p.LAST_TIME) == NO_LAST:
        put_i64(slot + 8 * p.LAST_AMOUNT, amount)
        put_i64(slot + 8 * p.LAST_TIME, i64(record + rec.TIME) >> 16)
        put_u64(slot + 8 * p.LAST_IDENTITY, u64(record))
    if wants & p.WANT_FACTS and facts != 0:
        for f in range(8):
            count = slot + 8 * (p.FACT_COUNTS + f)
            put_i64(count, i64(count) + ((facts >> f) & 1))
    if wants & p.WANT_DISTINCT:
        _count_members(slot, record, n_members, row, work, salt)


@kernel
def _count_members(slot: int, record: int, n_members: int, row: int, work: int, salt: int) -> None:
    for m in range(n_members):
        member = u64(record + rec.MEMBERS + 8 * m)
        if member == np.uint64(0):
            continue
        if _first_sight(work, member, salt * 4 + m):
            put_i64(slot + 8 * (p.DISTINCT + m), i64(slot + 8 * (p.DISTINCT + m)) + 1)
        if member == u64(row + 8 * m):
            put_i64(slot + 8 * (p.OWN_MEMBER_SEEN + m), 1)


@kernel
def _start_scan(work: int, n_conditions: int) -> None:
    for c in range(n_conditions):
        clear_slot(work + 8 * p.SLOT * c)
    put_i64(work + 8 * STAMP, i64(work + 8 * STAMP) + 1)


@kernel
def close_window(
    conditions: int,
    n_conditions: int,
    window: int,
    inside: bool,
    n_members: int,
    row: int,
    members: int,
    running: int,
    slots: int,
) -> None:
    """Copy the running accumulators to the slots of one window, with the current transaction."""
    for c in range(n_conditions):
        for current in range(2):
            number = i64(window + 16 + 8 * (2 * c + current))
            if number < 0:
                continue
            slot = slots + 8 * p.SLOT * number
            move(slot, running + 8 * p.SLOT * c, 8 * p.SLOT)
            if current and inside:
                condition = i64(conditions + 8 * c)
                add_current(slot, condition, row)
                if condition < p.FACT_CONDITION:
                    _add_current_members(slot, condition, n_members, row, members)


@kernel
def _add_current_members(slot: int, condition: int, n_members: int, row: int, members: int) -> None:
    if condition >= 0 and ((i64(row + r.BITS) >> (16 + condition)) & 1) == 0:
        return
    for m in range(n_members):
        if u64(members + 8 * m) == np.uint64(0):
            continue
        unseen = 1 - i64(slot + 8 * (p.OWN_MEMBER_SEEN + m))
        put_i64(slot + 8 * (p.DISTINCT + m), i64(slot + 8 * (p.DISTINCT + m)) + unseen)


@kernel
def mark_absent(span: int, slots: int) -> None:
    """Make every slot of a span say that the transaction has no such entity."""
    n_conditions = i64(span + 8 * p.SPAN_N_CONDITIONS)
    window = span + 8 * (p.SPAN_FIXED + n_conditions)
    for _ in range(i64(span + 8 * p.SPAN_N_WINDOWS)):
        for k in range(2 * n_conditions):
            number = i64(window + 16 + 8 * k)
            if number >= 0:
                put_i64(slots + 8 * p.SLOT * number, p.ABSENT)
        window += 16 + 16 * n_conditions


@kernel
def window_end(as_of: int, delay: int, step: int) -> int:
    """The last instant of a window: `as_of - delay`, on a grid with a delay its grid line."""
    end = as_of - delay
    if step > 0 and delay > 0:
        end -= end % step
    return end


@kernel
def window_start(as_of: int, delay: int, step: int, length: int) -> int:
    """The instant before a window begins; on a grid a grid line."""
    start = as_of - delay - length
    if step > 0:
        start -= start % step
    return start


@kernel
def next_change(
    oldest: int, newcomer: int, own_time: int, as_of: int, delay: int, step: int, length: int
) -> int:
    """The first instant after `as_of` at which time alone can change a window, or NEVER.

    oldest: event time of the first record inside; newcomer: of the first one behind its end; NEVER
    where there is none. own_time: of the transaction, which may enter and leave as well.
    """
    change = NEVER
    for time in (oldest, own_time):
        if time != NEVER:
            leaves = time + (step - time % step) % step if step > 0 else time
            if leaves + delay + length > as_of:
                change = min(change, leaves + delay + length)
    for time in (newcomer, own_time):
        if time != NEVER:
            enters = time + (step - time % step) % step if step > 0 and delay > 0 else time
            if enters + delay > as_of:
                change = min(change, enters + delay)
    return change


@kernel
def next_known(records: int, n: int, width: int, as_of: int) -> int:
    """The first instant after `as_of` at which a fact among the records becomes known, or NEVER."""
    change = NEVER
    for record in range(records, records + n * width, width):
        if (i64(record + rec.TIME) >> 14) & 3 == rec.FACT:
            known = i64(record + rec.CONTENT) >> 16
            if as_of < known < change:
                change = known
    return change


@kernel
def scan_span(
    span: int,
    records: int,
    n: int,
    width: int,
    row: int,
    members: int,
    as_of: int,
    slots: int,
    changes: int,
    work: int,
) -> None:
    """Fill the slots of one span from `n` records of `width` bytes.

    members: addresses of the row's own member identities, in the entity's order.
    changes: where the next change of each window by time alone goes (facts aside).
    """
    delay = i64(span + 8 * p.SPAN_DELAY)
    is_grid = i64(span + 8 * p.SPAN_IS_GRID) != 0
    n_conditions = i64(span + 8 * p.SPAN_N_CONDITIONS)
    wants = i64(span + 8 * p.SPAN_WANTS)
    n_members = i64(span + 8 * p.SPAN_MEMBERS)
    conditions = span + 8 * p.SPAN_FIXED
    window = conditions + 8 * n_conditions
    own = u64(row)
    own_time = i64(row + r.TIME)
    plain = (
        n_conditions == 1
        and i64(conditions) == p.NO_CONDITION
        and wants & (p.WANT_FACTS | p.WANT_DISTINCT | p.WANT_LAST) == 0
    )
    at = records
    beyond = NEVER
    # Facts belong to the event with their identity and time: a conflict has other times.
    fact_owner = np.uint64(0)
    fact_time = 0
    has_facts = False
    for k in range(i64(span + 8 * p.SPAN_N_WINDOWS)):
        step = i64(window + 8)
        end = window_end(as_of, delay, step)
        start = window_start(as_of, delay, step, i64(window))
        if k == 0 or is_grid:
            _start_scan(work, n_conditions)
            at = records + width * count_until(records, n, width, end)
            beyond = i64(at + rec.TIME) >> 16 if at < records + n * width else NEVER
            has_facts = False
        if plain:
            at = _scan_plain(work, at, records, width, start, own)
        else:
            while at > records:
                record = at - width
                stamp = i64(record + rec.TIME)
                if (stamp >> 16) <= start:
                    break
                at = record
                identity = u64(record)
                if identity == own:
                    continue
                if (stamp >> 14) & 3 == rec.FACT:
                    if wants & p.WANT_FACTS:
                        goes_on = has_facts and fact_owner == identity and fact_time == stamp >> 16
                        note_fact(work, record, as_of, not goes_on)
                        fact_owner = identity
                        fact_time = stamp >> 16
                        has_facts = True
                    continue
                facts = stamp & 0xFF
                if has_facts:
                    if fact_owner == identity and fact_time == stamp >> 16:
                        facts = facts_of_event(work, record)
                    has_facts = False
                bits = i64(record + rec.CONTENT) & 0xFFFF
                for c in range(n_conditions):
                    condition = i64(conditions + 8 * c)
                    if condition >= p.FACT_CONDITION:
                        if (facts >> (condition - p.FACT_CONDITION)) & 1 == 0:
                            continue
                    elif condition >= 0 and (bits >> condition) & 1 == 0:
                        continue
                    slot = work + 8 * p.SLOT * c
                    _count_event(slot, record, wants, facts, n_members, members, work, c)
        inside = own_time > start and own_time <= end
        close_window(conditions, n_conditions, window, inside, n_members, row, members, work, slots)
        # The scan stopped at the oldest record inside, or where none is.
        oldest = NEVER
        if at < records + n * width and (i64(at + rec.TIME) >> 16) > start:
            oldest = i64(at + rec.TIME) >> 16
        change = next_change(oldest, beyond, own_time, as_of, delay, step, i64(window))
        put_i64(changes + 8 * k, change)
        window += 16 + 16 * n_conditions


@kernel
def _scan_plain(work: int, at: int, records: int, width: int, start: int, own: np.uint64) -> int:
    """Go on with a scan that counts amounts only; the address where it stopped."""
    count = i64(work)
    total = i64(work + 8 * p.SUM)
    high = i64(work + 8 * p.SQUARES_HIGH)
    middle = i64(work + 8 * p.SQUARES_MIDDLE)
    low = i64(work + 8 * p.SQUARES_LOW)
    smallest = i64(work + 8 * p.SMALLEST)
    largest = i64(work + 8 * p.LARGEST)
    while at > records:
        record = at - width
        stamp = i64(record + rec.TIME)
        if (stamp >> 16) <= start:
            break
        at = record
        if (stamp >> 14) & 3 == rec.FACT or u64(record) == own:
            continue
        amount = i64(record + rec.CONTENT) >> 16
        upper = amount >> 20
        lower = amount & 0xFFFFF
        count += 1
        total += amount
        high += upper * upper
        middle += upper * lower
        low += lower * lower
        smallest = min(smallest, amount)
        largest = max(largest, amount)
    put_i64(work, count)
    put_i64(work + 8 * p.SUM, total)
    put_i64(work + 8 * p.SQUARES_HIGH, high)
    put_i64(work + 8 * p.SQUARES_MIDDLE, middle)
    put_i64(work + 8 * p.SQUARES_LOW, low)
    put_i64(work + 8 * p.SMALLEST, smallest)
    put_i64(work + 8 * p.LARGEST, largest)
    return at


@kernel
def scan_last(
    last: int,
    n_members: int,
    place_at: int,
    records: int,
    n: int,
    width: int,
    row: int,
    members: int,
    reach: int,
) -> None:
    """Find the last event before the transaction's own (time, identity), and the pairs seen."""
    own = u64(row)
    time = i64(row + r.TIME)
    put_i64(last, 0)
    wanted = 0
    for m in range(n_members):
        put_i64(last + 8 * (p.LAST_PAIR + m), 0)
        wanted += 1
    at = records + width * position(records, n, width, time, own)
    while at > records:
        record = at - width
        stamp = i64(record + rec.TIME)
        if (stamp >> 16) <= time - reach:
            break
        at = record
        if (stamp >> 14) & 3 == rec.FACT or u64(record) == own:
            continue
        if i64(last) == 0:
            put_i64(last, 1)
            put_i64(last + 8 * p.LAST_AT, stamp >> 16)
            spot = i64(record + place_at) if place_at > 0 else rec.NO_PLACE
            put_i64(last + 8 * p.LAST_PLACE, spot)
        for m in range(n_members):
            seen = last + 8 * (p.LAST_PAIR + m)
            if i64(seen) == 0 and u64(record + rec.MEMBERS + 8 * m) == u64(members + 8 * m):
                put_i64(seen, 1)
                wanted -= 1
        if wanted == 0:
            break
