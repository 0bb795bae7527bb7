"""From rows to records grouped by entity: the part of a batch that every reader gets.

    accept   an event counts if its time lies within what its arrival allows; one whose identity was
             seen with another entity, time or amount is a conflict, and counts all the same
    group    an open-addressing table over tokens finds the group of each (row, entity)
    fill     the body: for each group its head and its records, each with its checksum

Groups of states come first in the body, those of the label index behind them.
Cost: 0.1-0.2 us a message of two entities.
Rule: the records are those of features/applying.py, for the same kernels make them. These kernels
work on the buffers of one thread, without the interpreter lock, and never fail.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from freshscore.features import row as r
from freshscore.features import state_layout as s
from freshscore.features.applying import make_event, make_fact
from freshscore.features.checksums import folded_in, put_check, record_fold
from freshscore.features.compiled import kernel
from freshscore.features.memory import (
    i32,
    i64,
    move,
    prefetch,
    put_i32,
    put_i64,
    put_u8,
    put_u64,
    signed,
    u8,
    u64,
)
from freshscore.features.redis_keys import LABEL_BUCKETS
from freshscore.invalidation import append_plan as p

# What came of a message so far.
WAITING: Final = 0  # nobody could read it yet
READ: Final = 1
REFUSED: Final = 2
LOOKUP: Final = 3  # a label whose payment is to be looked up
APPLIED: Final = 4
CONFLICT: Final = 5
LATE: Final = 6
EARLY: Final = 7
OVERSIZED: Final = 8
WRONG_KEY: Final = 9

_MIX: Final = np.uint64(0x9E3779B97F4A7C15)
_ONE: Final = np.uint64(1)
_HALF_DAY_BITS: Final = 20
# Rows and groups between asking memory for a place and looking there.
_AHEAD: Final = 8
_BUCKETS: Final = np.uint64(LABEL_BUCKETS - 1)


@kernel
def _recent_slot(plan: int, identity: np.uint64) -> int:
    return i64(plan + p.RECENT) + 16 * (signed(identity) & i64(plan + p.RECENT_MASK))


@kernel
def _status(plan: int, batch: int, i: int) -> int:
    """What comes of the event in row `i`."""
    row = i64(batch + p.ROWS) + i64(batch + p.ROW_BYTES) * i
    time = i64(row + r.TIME)
    arrival = i64(i64(batch + p.INPUTS) + 24 * i + 16)
    if time < arrival - i64(plan + p.HORIZON):
        return LATE
    if time > arrival + i64(plan + p.SKEW):
        return EARLY
    # What makes two contents of one payment a conflict; not kind, flags, fields or place. Entities
    # by what they are as members, which is the same under any token of a rotation.
    content = folded_in(folded_in(_ONE, u64(row + r.TIME)), u64(row + r.AMOUNT))
    members = row + r.TOKENS + 16 * i64(plan + p.N_ENTITIES)
    for e in range(i64(plan + p.N_ENTITIES)):
        content = folded_in(content, u64(members + 8 * e))
    identity = u64(row)
    slot = _recent_slot(plan, identity)
    if u64(slot) == identity:
        return APPLIED if u64(slot + 8) == content else CONFLICT
    put_u64(slot, identity)
    put_u64(slot + 8, content)
    return APPLIED


@kernel
def _group(batch: int, entity: int, low: np.uint64, high: np.uint64) -> int:
    """Number of the group of a token, found or made."""
    mask = i64(batch + p.HASH_MASK)
    table = i64(batch + p.HASH)
    mixed = (low ^ high ^ np.uint64(entity)) * _MIX
    at = signed(mixed >> np.uint64(20)) & mask
    while True:
        number = i32(table + 4 * at)
        if number == 0:
            break
        group = i64(batch + p.GROUPS) + p.GROUP * (number - 1)
        same = i64(group + p.ENTITY) == entity
        if same and u64(group + p.LOW) == low and u64(group + p.HIGH) == high:
            return number - 1
        at = (at + 1) & mask
    number = i64(batch + p.N_GROUPS)
    put_i64(batch + p.N_GROUPS, number + 1)
    put_i32(table + 4 * at, number + 1)
    group = i64(batch + p.GROUPS) + p.GROUP * number
    put_i64(group + p.ENTITY, entity)
    put_u64(group + p.LOW, low)
    put_u64(group + p.HIGH, high)
    put_i64(group + p.COUNT, 0)
    return number


@kernel
def _n_bits(mask: int) -> int:
    n = 0
    while mask != 0:
        mask &= mask - 1
        n += 1
    return n


@kernel
def _link_row(plan: int, batch: int, i: int) -> None:
    """Count the records of row `i` in the groups of its entities."""
    n_entities = i64(plan + p.N_ENTITIES)
    row = i64(batch + p.ROWS) + i64(batch + p.ROW_BYTES) * i
    links = i64(batch + p.LINKS) + 4 * (n_entities + 1) * i
    n_records = 1
    is_event = i < i64(batch + p.N_TRANSACTIONS)
    if not is_event:
        label = i64(batch + p.LABELS) + p.LABEL * (i - i64(batch + p.N_TRANSACTIONS))
        n_records = _n_bits(i64(label + p.GIVEN))
    for e in range(n_entities):
        low = u64(row + r.TOKENS + 16 * e)
        high = u64(row + r.TOKENS + 16 * e + 8)
        if low == np.uint64(0) and high == np.uint64(0):
            put_i32(links + 4 * e, -1)
            continue
        number = _group(batch, e, low, high)
        put_i32(links + 4 * e, number)
        group = i64(batch + p.GROUPS) + p.GROUP * number
        put_i64(group + p.COUNT, i64(group + p.COUNT) + n_records)
    put_i32(links + 4 * n_entities, -1)
    generation_ms = i64(plan + p.INDEX_GENERATION)
    if is_event and generation_ms > 0:
        arrival = i64(i64(batch + p.INPUTS) + 24 * i + 16)
        bucket = u64(row) & _BUCKETS
        number = _group(batch, n_entities, bucket, np.uint64(arrival // generation_ms))
        put_i32(links + 4 * n_entities, number)
        group = i64(batch + p.GROUPS) + p.GROUP * number
        put_i64(group + p.COUNT, i64(group + p.COUNT) + 1)


@kernel
def group_width(plan: int, entity: int) -> int:
    """Bytes of one record of a group: of an entity's states, or of the label index."""
    n_entities = i64(plan + p.N_ENTITIES)
    if entity == n_entities:
        return 16 + 16 * n_entities
    return i64(i64(plan + p.LAYOUTS + p.LAYOUT * entity) + 8 * s.WIDTH)


@kernel
def _key_digest(group: int) -> np.uint64:
    mixed = (u64(group + p.LOW) ^ np.uint64(i64(group + p.ENTITY) << 56)) * _MIX
    return mixed ^ u64(group + p.HIGH)


@kernel
def _expiry_slot(plan: int, digest: np.uint64) -> int:
    at = signed(digest * _MIX >> np.uint64(40)) & i64(plan + p.EXPIRIES_MASK)
    return i64(plan + p.EXPIRIES) + 8 * at


@kernel
def _expires(plan: int, batch: int, group: int) -> int:
    """Whether a key's life is to be extended: once in each half day."""
    digest = _key_digest(group)
    mark = (signed(digest) >> _HALF_DAY_BITS << _HALF_DAY_BITS) | i64(batch + p.HALF_DAY)
    slot = _expiry_slot(plan, digest)
    if i64(slot) == mark:
        return 0
    put_i64(slot, mark)
    return 1


@kernel
def _settle_groups(plan: int, batch: int) -> None:
    """Give each group its place in the body: those of states first."""
    index = i64(plan + p.N_ENTITIES)
    at = 0
    n_states = 0
    n_records = 0
    n = i64(batch + p.N_GROUPS)
    for of_index in range(2):
        for g in range(n):
            group = i64(batch + p.GROUPS) + p.GROUP * g
            ahead = i64(batch + p.GROUPS) + p.GROUP * min(g + _AHEAD, n - 1)
            prefetch(_expiry_slot(plan, _key_digest(ahead)))
            if (i64(group + p.ENTITY) == index) != (of_index == 1):
                continue
            put_i64(group + p.BODY_AT, at)
            put_i64(group + p.CURSOR, at + p.GROUP_HEAD)
            put_i64(group + p.EXPIRES, _expires(plan, batch, group))
            count = i64(group + p.COUNT)
            at += p.GROUP_HEAD + count * group_width(plan, i64(group + p.ENTITY))
            if of_index == 0:
                n_states += 1
                n_records += count
        if of_index == 0:
            put_i64(batch + p.STATE_BYTES, at)
    put_i64(batch + p.BODY_BYTES, at)
    put_i64(batch + p.N_STATES, n_states)
    put_i64(batch + p.N_RECORDS, n_records)


@kernel(nogil=True)
def group_rows(plan: int, batch: int) -> int:
    """Accept what was read, group it, and say how large the body will be, in bytes."""
    statuses = i64(batch + p.STATUSES)
    put_i64(batch + p.N_GROUPS, 0)
    for at in range(0, 4 * (i64(batch + p.HASH_MASK) + 1), 8):
        put_i64(i64(batch + p.HASH) + at, 0)
    n = i64(batch + p.N_ROWS)
    for i in range(n):
        ahead = i64(batch + p.ROWS) + i64(batch + p.ROW_BYTES) * min(i + _AHEAD, n - 1)
        prefetch(_recent_slot(plan, u64(ahead)))
        if u8(statuses + i) != READ:
            continue
        status = APPLIED
        if i < i64(batch + p.N_TRANSACTIONS):
            status = _status(plan, batch, i)
        put_u8(statuses + i, status)
        if status in (APPLIED, CONFLICT):
            _link_row(plan, batch, i)
    _settle_groups(plan, batch)
    return i64(batch + p.BODY_BYTES)


@kernel
def _put_record(plan: int, batch: int, number: int, width: int) -> None:
    """Move the record that was made into its group."""
    group = i64(batch + p.GROUPS) + p.GROUP * number
    cursor = i64(group + p.CURSOR)
    move(i64(batch + p.BODY) + cursor, i64(plan + p.RECORD), width)
    put_i64(group + p.CURSOR, cursor + width)


@kernel
def _put_facts(plan: int, batch: int, row: int, label: int, entity: int, number: int) -> None:
    """Put one record for each fact that a label gives into a group."""
    layout = i64(plan + p.LAYOUTS + p.LAYOUT * entity)
    width = i64(layout + 8 * s.WIDTH)
    record = i64(plan + p.RECORD)
    for fact in range(8):
        if (i64(label + p.GIVEN) >> fact) & 1 == 0:
            continue
        make_fact(
            record,
            width,
            u64(row),
            i64(row + r.TIME),
            fact,
            (i64(label + p.VALUES) >> fact) & 1,
            i64(label + p.KNOWN),
            i64(label + p.SENDER),
        )
        put_check(record, record_fold(record, width, u64(layout + 8 * s.SEED)))
        _put_record(plan, batch, number, width)


@kernel
def _put_row(plan: int, batch: int, i: int) -> None:
    """Put the records of row `i` into the groups of its entities."""
    n_entities = i64(plan + p.N_ENTITIES)
    row = i64(batch + p.ROWS) + i64(batch + p.ROW_BYTES) * i
    links = i64(batch + p.LINKS) + 4 * (n_entities + 1) * i
    label = i64(batch + p.LABELS) + p.LABEL * (i - i64(batch + p.N_TRANSACTIONS))
    is_event = i < i64(batch + p.N_TRANSACTIONS)
    record = i64(plan + p.RECORD)
    for e in range(n_entities):
        number = i32(links + 4 * e)
        if number < 0:
            continue
        if not is_event:
            _put_facts(plan, batch, row, label, e, number)
            continue
        layout = i64(plan + p.LAYOUTS + p.LAYOUT * e)
        width = i64(layout + 8 * s.WIDTH)
        make_event(i64(plan + p.RECORDS_HEAD), e, row, record)
        put_check(record, record_fold(record, width, u64(layout + 8 * s.SEED)))
        _put_record(plan, batch, number, width)
    number = i32(links + 4 * n_entities)
    if number >= 0:
        put_u64(record, u64(row))
        put_i64(record + 8, i64(row + r.TIME))
        move(record + 16, row + r.TOKENS, 16 * n_entities)
        _put_record(plan, batch, number, 16 + 16 * n_entities)


@kernel(nogil=True)
def fill_body(plan: int, batch: int) -> int:
    """Write the body, for which there is room by now."""
    for g in range(i64(batch + p.N_GROUPS)):
        group = i64(batch + p.GROUPS) + p.GROUP * g
        at = i64(batch + p.BODY) + i64(group + p.BODY_AT)
        put_i64(at, (i64(group + p.ENTITY) << 32) | i64(group + p.COUNT))
        put_u64(at + 8, u64(group + p.LOW))
        put_u64(at + 16, u64(group + p.HIGH))
    statuses = i64(batch + p.STATUSES)
    for i in range(i64(batch + p.N_ROWS)):
        status = u8(statuses + i)
        if status in (APPLIED, CONFLICT):
            _put_row(plan, batch, i)
    return 0
