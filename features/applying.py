"""Applying events and facts to the states of their entities: the one way in which a state changes.

A state is a set (law 3): what is there already changes nothing, order does not matter, and of two
contents under one identity the smaller counts. Each change moves the entity's version by the digest
of the record that came or went.
Rule: a call that cannot finish (a table or the arena is full) says so before anything has changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from freshscore.features import arena as a
from freshscore.features import layout as rec
from freshscore.features import row as r
from freshscore.features import tables as t
from freshscore.features.blocks import BLOCK, SHORT, blocks_bytes, refresh_blocks
from freshscore.features.compiled import kernel
from freshscore.features.evaluation import count_until, position
from freshscore.features.memory import (
    i32,
    i64,
    move,
    prefetch,
    put_i32,
    put_i64,
    put_u64,
    u64,
)
from freshscore.features.siphash import sip_absorbed, sip_finished, sip_started

if TYPE_CHECKING:
    Hash = tuple[np.uint64, np.uint64]

# What applying an event or fact came to.
ACCEPTED: Final = 0
REPEATED: Final = 1
CONFLICT: Final = 2
BEYOND_REACH: Final = 3
UNKNOWN: Final = 4
# What must be made larger before it can be applied; entity e's table is FULL_ENTITIES - e.
FULL_PAYMENTS: Final = -1
FULL_ARENA: Final = -2
CLOSED: Final = -3
FULL_ENTITIES: Final = -10

# Entities whose old records are dropped with each event applied, so that idle ones shrink too.
SWEEP_EVERY: Final = 8
# And so many where the arena is full.
SWEEP_WHEN_FULL: Final = 1024
# Rows of a batch between one step of asking memory and the next: about one trip to it.
_AHEAD: Final = 4
# More than there are outcomes, so that one number carries a place and an outcome.
_OUTCOMES: Final = 64

_CHECK_FREE: Final = np.uint64(0xFFFFFFFF00000000)


@kernel
def record_digest(record: int, width: int, key: int) -> Hash:
    """The digest of a record, its checksum's place aside."""
    lanes = sip_started(u64(key), u64(key + 8))
    for at in range(record, record + width, 8):
        word = u64(at)
        if at == record + rec.CHECK:
            word &= _CHECK_FREE
        lanes = sip_absorbed(lanes, word)
    return sip_finished(lanes, np.uint64(0), width)


@kernel
def add_to_version(row: int, low: np.uint64, high: np.uint64) -> None:
    """Add a digest to the version in an entity's row, modulo 2^128."""
    old = u64(row + t.VERSION)
    new = old + low
    carry = np.uint64(1) if new < old else np.uint64(0)
    put_u64(row + t.VERSION, new)
    put_u64(row + t.VERSION + 8, u64(row + t.VERSION + 8) + high + carry)


@kernel
def take_from_version(row: int, low: np.uint64, high: np.uint64) -> None:
    """Subtract a digest from the version in an entity's row, modulo 2^128."""
    old = u64(row + t.VERSION)
    borrow = np.uint64(1) if old < low else np.uint64(0)
    put_u64(row + t.VERSION, old - low)
    put_u64(row + t.VERSION + 8, u64(row + t.VERSION + 8) - high - borrow)


@kernel
def make_event(store: int, entity: int, row: int, record: int) -> None:
    """Write the record that the transaction in `row` is in the states of `entity`."""
    head = t.entity_head(store, entity)
    bits = i64(row + r.BITS)
    put_u64(record, u64(row))
    put_i64(
        record + rec.TIME,
        (i64(row + r.TIME) << 16) | (rec.EVENT << 14) | (bits & 0xFFFF),
    )
    put_i64(record + rec.CONTENT, (i64(row + r.AMOUNT) << 16) | ((bits >> 16) & 0xFFFF))
    put_i64(record + rec.CHECK, 0)
    n_entities = i64(store + t.N_ENTITIES)
    identities = row + r.TOKENS + 16 * n_entities
    members = i64(store + t.MEMBERS) + 32 * entity
    for m in range(i64(head + t.N_MEMBERS)):
        put_u64(record + rec.MEMBERS + 8 * m, u64(identities + 8 * i64(members + 8 * m)))
    if i64(head + t.PLACE_AT) > 0:
        put_i64(record + i64(head + t.PLACE_AT), i64(row + r.PLACE))


@kernel
def compare(left: int, right: int, width: int) -> int:
    """Order of two records in a state: below 0, 0 (the same) or above 0."""
    time_left = i64(left + rec.TIME) >> 16
    time_right = i64(right + rec.TIME) >> 16
    if time_left != time_right:
        return -1 if time_left < time_right else 1
    if u64(left) != u64(right):
        return -1 if u64(left) < u64(right) else 1
    type_left = (i64(left + rec.TIME) >> 14) & 3
    type_right = (i64(right + rec.TIME) >> 14) & 3
    if type_left != type_right:
        return -1 if type_left < type_right else 1
    return compare_content(left, right, width)


@kernel
def compare_content(left: int, right: int, width: int) -> int:
    """Order of two contents of one identity: time, amount, kind, conditions, flags, the rest."""
    one = i64(left + rec.TIME) >> 16
    other = i64(right + rec.TIME) >> 16
    if one == other:
        one = i64(left + rec.CONTENT) >> 16
        other = i64(right + rec.CONTENT) >> 16
    if one == other:
        one = (i64(left + rec.TIME) >> 8) & 0xFF
        other = (i64(right + rec.TIME) >> 8) & 0xFF
    if one == other:
        one = i64(left + rec.CONTENT) & 0xFFFF
        other = i64(right + rec.CONTENT) & 0xFFFF
    if one == other:
        one = i64(left + rec.TIME) & 0xFF
        other = i64(right + rec.TIME) & 0xFF
    if one != other:
        return -1 if one < other else 1
    for at in range(rec.CHECK, width, 8):
        mine = u64(left + at)
        theirs = u64(right + at)
        if at == rec.CHECK:
            mine &= _CHECK_FREE
            theirs &= _CHECK_FREE
        if mine != theirs:
            return -1 if mine < theirs else 1
    return 0


@kernel
def _segment_bytes(head: int, capacity: int) -> int:
    return a.SEGMENT_HEAD + capacity * i64(head + t.WIDTH) + blocks_bytes(head, capacity)


@kernel
def _capacity(n: int) -> int:
    # An eighth of slack, at least two records; whole blocks where there are sums of blocks.
    wanted = n + max(2, n >> 3)
    return wanted if wanted < SHORT else (wanted + BLOCK - 1) // BLOCK * BLOCK


@kernel
def drop_before(store: int, head: int, entity_row: int, line: int) -> int:
    """Drop the records of an entity before `line`; how many they were. The version stays."""
    n = i64(entity_row + t.COUNT)
    if n == 0:
        return 0
    records = i64(entity_row + t.RECORDS)
    width = i64(head + t.WIDTH)
    gone = count_until(records, n, width, line - 1)
    if gone > 0:
        move(records, records + gone * width, (n - gone) * width)
        put_i64(entity_row + t.COUNT, n - gone)
        put_i64(entity_row + t.FORGOTTEN, max(i64(entity_row + t.FORGOTTEN), line))
        put_i64(store + t.N_RECORDS, i64(store + t.N_RECORDS) - gone)
        put_i64(store + t.RECORD_BYTES_LIVE, i64(store + t.RECORD_BYTES_LIVE) - gone * width)
        refresh_blocks(head, entity_row, 0)
    return gone


@kernel
def _clean(store: int, size: int) -> None:
    """Clean regions until a segment of `size` bytes fits or too little is waste."""
    arena = i64(store + t.ARENA)
    for _ in range(4):
        if not a.cleaning_is_due(arena, size):
            return
        region = a.dirtiest(arena)
        if region == a.NO_ROOM or not a.open_region(arena):
            return
        segment = a.next_segment(arena, region, 0)
        while segment != 0:
            after = segment + i64(segment + 8)
            _resettle(store, segment)
            segment = a.next_segment(arena, region, after)


@kernel
def _resettle(store: int, segment: int) -> None:
    owner = i64(segment)
    head = t.entity_head(store, owner >> 32)
    row = t.entity_row(head, owner & 0xFFFFFFFF)
    drop_before(store, head, row, t.forget_line(store))
    _resize(store, head, row, owner, _capacity(i64(row + t.COUNT)))


@kernel
def _resize(store: int, head: int, row: int, owner: int, capacity: int) -> bool:
    """Give an entity a segment for `capacity` records; False if there is no room."""
    arena = i64(store + t.ARENA)
    old = i64(row + t.RECORDS)
    size = _segment_bytes(head, capacity)
    if old == 0:
        segment = a.take(arena, owner, size)
    else:
        used = i64(row + t.COUNT) * i64(head + t.WIDTH)
        segment = a.copied(arena, old - a.SEGMENT_HEAD, size, used)
    if segment == a.NO_ROOM:
        return False
    put_i64(row + t.RECORDS, segment + a.SEGMENT_HEAD)
    put_i64(row + t.CAPACITY, capacity)
    refresh_blocks(head, row, 0)
    return True


@kernel
def _most(head: int, row: int) -> int:
    """How many records an entity can have without a larger segment or forgetting."""
    return min(i64(row + t.CAPACITY), i64(head + t.MAX_EVENTS))


@kernel
def _make_place(store: int, entity: int, number: int) -> bool:
    """See that an entity can take one more record; False if the arena is full."""
    head = t.entity_head(store, entity)
    row = t.entity_row(head, number)
    n = i64(row + t.COUNT)
    if n < _most(head, row):
        return True
    gone = drop_before(store, head, row, t.forget_line(store))
    if gone >= max(1, n >> 3) or n - gone >= i64(head + t.MAX_EVENTS):
        # At its limit an entity forgets, but only for a record that is really inserted.
        return True
    capacity = _capacity(n - gone + 1)
    _clean(store, _segment_bytes(head, capacity))
    return _resize(store, head, row, entity << 32 | number, capacity)


@kernel
def _forget_oldest(store: int, head: int, row: int) -> None:
    """Over its hard limit an entity forgets its oldest sixteenth, and says so in LOST."""
    width = i64(head + t.WIDTH)
    n = i64(row + t.COUNT)
    boundary = i64(row + t.RECORDS) + max(1, n >> 4) * width
    line = (i64(boundary - width + rec.TIME) >> 16) + 1
    drop_before(store, head, row, line)
    put_i64(row + t.LOST, line)


@kernel
def _first_of_payment(row: int, at: int, width: int) -> int:
    """Index of the first record of the payment that the one at `at` is of.

    A fact changes what its event counts for, which may stand in the block before.
    """
    records = i64(row + t.RECORDS)
    first = at
    while first > 0 and u64(records + (first - 1) * width) == u64(records + at * width):
        first -= 1
    return first


@kernel
def insert_at(store: int, head: int, row: int, at: int, record: int) -> None:
    """Put a record into an entity's state at index `at`; there is a place for it."""
    width = i64(head + t.WIDTH)
    n = i64(row + t.COUNT)
    spot = i64(row + t.RECORDS) + at * width
    if at < n:
        move(spot + width, spot, (n - at) * width)
    move(spot, record, width)
    put_i64(row + t.COUNT, n + 1)
    put_i64(store + t.N_RECORDS, i64(store + t.N_RECORDS) + 1)
    put_i64(store + t.RECORD_BYTES_LIVE, i64(store + t.RECORD_BYTES_LIVE) + width)
    refresh_blocks(head, row, _first_of_payment(row, at, width))


@kernel
def remove_at(store: int, head: int, row: int, at: int) -> None:
    """Take the record at index `at` out of an entity's state."""
    width = i64(head + t.WIDTH)
    n = i64(row + t.COUNT)
    first = _first_of_payment(row, at, width)
    spot = i64(row + t.RECORDS) + at * width
    move(spot, spot + width, (n - at - 1) * width)
    put_i64(row + t.COUNT, n - 1)
    put_i64(store + t.N_RECORDS, i64(store + t.N_RECORDS) - 1)
    put_i64(store + t.RECORD_BYTES_LIVE, i64(store + t.RECORD_BYTES_LIVE) - width)
    refresh_blocks(head, row, first)


@kernel
def _insert(store: int, entity: int, number: int, record: int) -> bool:
    """Insert one record that is not there; whether facts of its payment are."""
    head = t.entity_head(store, entity)
    row = t.entity_row(head, number)
    width = i64(head + t.WIDTH)
    if i64(row + t.COUNT) >= _most(head, row):
        _forget_oldest(store, head, row)
    n = i64(row + t.COUNT)
    records = i64(row + t.RECORDS)
    at = n
    if n > 0 and compare(records + (n - 1) * width, record, width) > 0:
        at = position(records, n, width, i64(record + rec.TIME) >> 16, u64(record))
        while at < n and compare(records + at * width, record, width) < 0:
            at += 1
    waiting = at < n and u64(records + at * width) == u64(record)
    low, high = record_digest(record, width, i64(store + t.RECORD_KEY) + 16 * entity)
    insert_at(store, head, row, at, record)
    add_to_version(row, low, high)
    return waiting


@kernel
def _take_back(store: int, row: int, entry: int, last: int) -> None:
    """Take out the entities up to `last` that were added for a row which cannot be applied."""
    for e in range(last + 1):
        number = i32(entry + 4 * e)
        head = t.entity_head(store, e)
        # A state without records whose version says that it never had any was added just now.
        if number == t.NOT_FOUND or number != i64(head + t.ROW_COUNT) - 1:
            continue
        state = t.entity_row(head, number)
        if i64(state + t.COUNT) > 0 or i64(state + t.VERSION) != 0:
            continue
        if i64(state + t.RECORDS) != 0:
            a.release(i64(store + t.ARENA), i64(state + t.RECORDS) - a.SEGMENT_HEAD)
        t.take_out_last(head)


@kernel
def _numbers(store: int, row: int, entry: int) -> int:
    """Find or make the entities of a row, with a place each; below 0 if something is full."""
    for e in range(i64(store + t.N_ENTITIES)):
        token = row + r.TOKENS + 16 * e
        low = u64(token)
        high = u64(token + 8)
        if low == np.uint64(0) and high == np.uint64(0):
            put_i32(entry + 4 * e, t.NOT_FOUND)
            continue
        head = t.entity_head(store, e)
        number = t.find_entity(head, low, high)
        outcome = 0
        if number == t.NOT_FOUND:
            if i64(head + t.ROW_COUNT) < min(i64(head + t.ROW_LIMIT), i64(head + t.HASH_LIMIT)):
                number = t.add_entity(head, low, high)
            else:
                outcome = FULL_ENTITIES - e
        if outcome == 0 and not _make_place(store, e, number):
            outcome = FULL_ARENA
        put_i32(entry + 4 * e, number)
        if outcome != 0:
            _take_back(store, row, entry, e)
            return outcome
    return 0


@kernel
def _sweep(store: int, n: int) -> None:
    """Drop what is beyond reach from the next `n` entities, in a circle."""
    line = t.forget_line(store)
    for _ in range(n):
        entity = i64(store + t.SWEEP_ENTITY)
        number = i64(store + t.SWEEP_NUMBER)
        head = t.entity_head(store, entity)
        if number >= i64(head + t.ROW_COUNT):
            entity = (entity + 1) % i64(store + t.N_ENTITIES)
            put_i64(store + t.SWEEP_ENTITY, entity)
            put_i64(store + t.SWEEP_NUMBER, 0)
            continue
        put_i64(store + t.SWEEP_NUMBER, number + 1)
        row = t.entity_row(head, number)
        n_records = i64(row + t.COUNT)
        if n_records == 0:
            continue
        oldest = i64(i64(row + t.RECORDS) + rec.TIME) >> 16
        if oldest < line:
            drop_before(store, head, row, line)
            kept = i64(row + t.COUNT)
            if kept == 0:
                # Without a new segment, so that a full arena can empty itself.
                a.release(i64(store + t.ARENA), i64(row + t.RECORDS) - a.SEGMENT_HEAD)
                put_i64(row + t.RECORDS, 0)
                put_i64(row + t.CAPACITY, 0)
            elif kept < n_records - (n_records >> 2):
                _resize(store, head, row, entity << 32 | number, _capacity(kept))


@kernel
def apply_event(store: int, row: int, numbers: int) -> int:
    """Apply the event in `row`; ACCEPTED, REPEATED, CONFLICT, BEYOND_REACH or what is full.

    numbers: scratch of 4 bytes for each entity, rounded up to whole words.
    Where something is full no state changes, but time moves on: else what is full would be so for
    ever, since only time makes room.
    """
    time = i64(row + r.TIME)
    if time < t.forget_line(store):
        return BEYOND_REACH
    if time > i64(store + t.NEWEST):
        put_i64(store + t.NEWEST, time)
        if i64(store + t.COMPLETE_SINCE) == t.UNKNOWN:
            put_i64(store + t.COMPLETE_SINCE, time)
    entry = t.find_payment(store, u64(row))
    known = i64(entry + t.PAYMENT_TIME) != 0
    if not known and i64(store + t.PAYMENT_COUNT) >= i64(store + t.PAYMENT_LIMIT):
        return FULL_PAYMENTS
    outcome = _numbers(store, row, numbers)
    if outcome == FULL_ARENA:
        _sweep(store, SWEEP_WHEN_FULL)
        outcome = _numbers(store, row, numbers)
    if outcome != 0:
        return outcome
    if known:
        return _apply_again(store, row, numbers, entry)
    flags = 0
    record = i64(store + t.STAGED)
    for e in range(i64(store + t.N_ENTITIES)):
        number = i32(numbers + 4 * e)
        if number != t.NOT_FOUND:
            make_event(store, e, row, record)
            if _insert(store, e, number, record):
                flags |= t.HAS_FACTS
    put_u64(entry, u64(row))
    put_i64(entry + t.PAYMENT_TIME, (time << 16) | flags)
    for at in range(0, i64(store + t.PAYMENT_BYTES) - t.PAYMENT_NUMBERS, 8):
        put_i64(entry + t.PAYMENT_NUMBERS + at, i64(numbers + at))
    count = i64(store + t.PAYMENT_COUNT) + 1
    put_i64(store + t.PAYMENT_COUNT, count)
    if count % SWEEP_EVERY == 0:
        _sweep(store, 1)
    return ACCEPTED


@kernel
def find_event(records: int, n: int, width: int, time: int, identity: np.uint64) -> int:
    """Index of the event of `identity`, looked for at `time` first and then everywhere; or -1."""
    at = position(records, n, width, time, identity)
    if at < n and _is_event(records + at * width, identity):
        return at
    for i in range(n):
        if _is_event(records + i * width, identity):
            return i
    return -1


@kernel
def _is_event(record: int, identity: np.uint64) -> bool:
    return u64(record) == identity and (i64(record + rec.TIME) >> 14) & 3 == rec.EVENT


@kernel
def _apply_again(store: int, row: int, numbers: int, entry: int) -> int:
    """Apply an event whose identity is known: nothing, or a conflict; the smaller content wins."""
    outcome = REPEATED
    record = i64(store + t.STAGED)
    for e in range(i64(store + t.N_ENTITIES)):
        number = i32(numbers + 4 * e)
        if number == t.NOT_FOUND:
            if i32(entry + t.PAYMENT_NUMBERS + 4 * e) != t.NOT_FOUND:
                outcome = CONFLICT
            continue
        head = t.entity_head(store, e)
        entity_row = t.entity_row(head, number)
        width = i64(head + t.WIDTH)
        make_event(store, e, row, record)
        n = i64(entity_row + t.COUNT)
        records = i64(entity_row + t.RECORDS)
        at = find_event(records, n, width, i64(row + r.TIME), u64(row))
        if at < 0:
            # Below what the entity has forgotten it is a repetition, and in the version already.
            if i64(row + r.TIME) >= i64(entity_row + t.FORGOTTEN):
                outcome = CONFLICT
                _insert(store, e, number, record)
            continue
        order = compare_content(record, records + at * width, width)
        if order == 0:
            continue
        outcome = CONFLICT
        if order < 0:
            key = i64(store + t.RECORD_KEY) + 16 * e
            low, high = record_digest(records + at * width, width, key)
            take_from_version(entity_row, low, high)
            remove_at(store, head, entity_row, at)
            _insert(store, e, number, record)
    if outcome == CONFLICT:
        put_i64(store + t.CONFLICTS, i64(store + t.CONFLICTS) + 1)
        put_i64(entry + t.PAYMENT_TIME, i64(entry + t.PAYMENT_TIME) | t.IN_CONFLICT)
    return outcome


@kernel
def make_fact(
    record: int,
    width: int,
    identity: np.uint64,
    time: int,
    fact: int,
    value: int,
    known: int,
    sender: int,
) -> None:
    """Write the record of one fact."""
    for at in range(0, width, 8):
        put_i64(record + at, 0)
    ago = sender - time
    put_u64(record, identity)
    put_i64(record + rec.TIME, (time << 16) | (rec.FACT << 14))
    put_i64(
        record + rec.CONTENT,
        (known << 16) | (((ago >> 32) & 0xFF) << 8) | (fact << 4) | value,
    )
    put_i64(record + rec.CHECK, (ago & 0xFFFFFFFF) << 32)


@kernel
def same_fact(left: int, right: int) -> bool:
    """Whether two facts are copies of one: same event, fact, value and sender's instant."""
    return (
        u64(left) == u64(right)
        and i64(left + rec.TIME) == i64(right + rec.TIME)
        and i64(left + rec.CONTENT) & 0xFFFF == i64(right + rec.CONTENT) & 0xFFFF
        and i64(left + rec.CHECK) >> 32 == i64(right + rec.CHECK) >> 32
    )


@kernel
def _insert_fact(store: int, entity: int, number: int, record: int) -> int:
    head = t.entity_head(store, entity)
    row = t.entity_row(head, number)
    width = i64(head + t.WIDTH)
    n = i64(row + t.COUNT)
    records = i64(row + t.RECORDS)
    time = i64(record + rec.TIME) >> 16
    at = position(records, n, width, time, u64(record))
    while at < n and u64(records + at * width) == u64(record):
        held = records + at * width
        if i64(held + rec.TIME) >> 16 != time:
            break
        if same_fact(held, record):
            if i64(held + rec.CONTENT) >> 16 <= i64(record + rec.CONTENT) >> 16:
                return REPEATED
            key = i64(store + t.RECORD_KEY) + 16 * entity
            low, high = record_digest(held, width, key)
            take_from_version(row, low, high)
            remove_at(store, head, row, at)
            _insert(store, entity, number, record)
            return ACCEPTED
        at += 1
    _insert(store, entity, number, record)
    put_i64(row + t.N_FACTS, i64(row + t.N_FACTS) + 1)
    put_i64(row + t.MAX_KNOWN, max(i64(row + t.MAX_KNOWN), i64(record + rec.CONTENT) >> 16))
    return ACCEPTED


@kernel
def apply_fact(
    store: int,
    row: int,
    fact: int,
    value: int,
    known: int,
    sender: int,
    looked_up: bool,
    numbers: int,
) -> int:
    """Apply a fact of the payment in `row`, which has only its identity if `looked_up`.

    UNKNOWN if it has to be looked up and is not there.
    """
    entry = t.find_payment(store, u64(row))
    entry_time = i64(entry + t.PAYMENT_TIME)
    if looked_up:
        if entry_time == 0:
            return UNKNOWN
        time = entry_time >> 16
    else:
        time = i64(row + r.TIME)
    if time < t.forget_line(store):
        return BEYOND_REACH
    n_entities = i64(store + t.N_ENTITIES)
    if looked_up:
        for at in range(0, i64(store + t.PAYMENT_BYTES) - t.PAYMENT_NUMBERS, 8):
            put_i64(numbers + at, i64(entry + t.PAYMENT_NUMBERS + at))
        for e in range(n_entities):
            number = i32(numbers + 4 * e)
            if number != t.NOT_FOUND and not _make_place(store, e, number):
                return FULL_ARENA
    else:
        outcome = _numbers(store, row, numbers)
        if outcome != 0:
            return outcome
    result = REPEATED
    record = i64(store + t.STAGED)
    for e in range(n_entities):
        number = i32(numbers + 4 * e)
        if number == t.NOT_FOUND:
            continue
        width = i64(t.entity_head(store, e) + t.WIDTH)
        make_fact(record, width, u64(row), time, fact, value, known, sender)
        if _insert_fact(store, e, number, record) == ACCEPTED:
            result = ACCEPTED
    if entry_time != 0:
        put_i64(entry + t.PAYMENT_TIME, entry_time | t.HAS_FACTS)
    return result


@kernel
def ask_for_tables(store: int, row: int) -> None:
    """Ask memory for the places of a row's payment and entities in their tables."""
    prefetch(t.payment_slot(store, u64(row)))
    for e in range(i64(store + t.N_ENTITIES)):
        prefetch(t.hash_slot(t.entity_head(store, e), u64(row + r.TOKENS + 16 * e)))


@kernel
def ask_for_rows(store: int, row: int) -> None:
    """Ask memory for the rows of a row's entities, whose hash slots are at hand by now."""
    for e in range(i64(store + t.N_ENTITIES)):
        head = t.entity_head(store, e)
        number = i32(t.hash_slot(head, u64(row + r.TOKENS + 16 * e)))
        if number > 0:
            prefetch(t.entity_row(head, number - 1))
            prefetch(t.entity_row(head, number - 1) + t.ENTITY_ROW - 8)


@kernel
def ask_for_records(store: int, row: int) -> None:
    """Ask memory for the ends of the states of a row's entities, whose rows are at hand by now."""
    for e in range(i64(store + t.N_ENTITIES)):
        head = t.entity_head(store, e)
        number = i32(t.hash_slot(head, u64(row + r.TOKENS + 16 * e)))
        if number > 0:
            entity = t.entity_row(head, number - 1)
            end = i64(entity + t.RECORDS) + i64(entity + t.COUNT) * i64(head + t.WIDTH)
            prefetch(end - 8)
            prefetch(end + i64(head + t.WIDTH) - 8)


@kernel
def apply_events(
    store: int, rows: int, row_bytes: int, first: int, n: int, outcomes: int, numbers: int
) -> int:
    """Apply the events in rows `first` to `n` - 1, counting each outcome at `outcomes`.

    Stops where something is full. Both where it stopped and the last outcome: see `stopped`.
    """
    if i64(store + t.SEALED) != 0:
        return first * _OUTCOMES + CLOSED + _OUTCOMES // 2
    outcome = ACCEPTED
    for i in range(first, n):
        ask_for_tables(store, rows + row_bytes * min(i + 3 * _AHEAD, n - 1))
        ask_for_rows(store, rows + row_bytes * min(i + 2 * _AHEAD, n - 1))
        ask_for_records(store, rows + row_bytes * min(i + _AHEAD, n - 1))
        outcome = apply_event(store, rows + row_bytes * i, numbers)
        if outcome < 0:
            return i * _OUTCOMES + outcome + _OUTCOMES // 2
        put_i64(outcomes + 8 * outcome, i64(outcomes + 8 * outcome) + 1)
    return n * _OUTCOMES + outcome + _OUTCOMES // 2


def answer_of(row: int, outcome: int) -> int:
    """What `apply_events` or `apply_facts` answers that stopped at `row`."""
    return row * _OUTCOMES + outcome + _OUTCOMES // 2


def stopped(answer: int) -> tuple[int, int]:
    """Where `apply_events` or `apply_facts` stopped, and the last outcome."""
    row, outcome = divmod(answer, _OUTCOMES)
    return row, outcome - _OUTCOMES // 2


@kernel
def apply_facts(
    store: int,
    rows: int,
    row_bytes: int,
    facts: int,
    first: int,
    n: int,
    outcomes: int,
    numbers: int,
) -> int:
    """Apply facts, five words each (fact, value, known at, sender, looked up), of payments.

    Answers as `apply_events` does.
    """
    if i64(store + t.SEALED) != 0:
        return first * _OUTCOMES + CLOSED + _OUTCOMES // 2
    outcome = ACCEPTED
    for i in range(first, n):
        fact = facts + 40 * i
        outcome = apply_fact(
            store,
            rows + row_bytes * i,
            i64(fact),
            i64(fact + 8),
            i64(fact + 16),
            i64(fact + 24),
            i64(fact + 32) != 0,
            numbers,
        )
        if outcome < 0:
            return i * _OUTCOMES + outcome + _OUTCOMES // 2
        put_i64(outcomes + 8 * outcome, i64(outcomes + 8 * outcome) + 1)
    return n * _OUTCOMES + outcome + _OUTCOMES // 2
