"""Reading a store: the feature vector of one transaction at one instant.

Rule: reading changes no aggregate. The states of a transaction's entities are found first, and
asked from memory together, since waiting for memory is most of what a read costs.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from freshscore.features import program as p
from freshscore.features import row as r
from freshscore.features import tables as t
from freshscore.features.applying import record_digest
from freshscore.features.blocks import SHORT, sum_span, usable
from freshscore.features.compiled import kernel
from freshscore.features.evaluation import (
    NEVER,
    mark_absent,
    next_known,
    position,
    scan_last,
    scan_span,
)
from freshscore.features.finishing import finished
from freshscore.features.memory import i64, prefetch, put_i64, put_u64, u64
from freshscore.features.reading_tiles import add_tiles

# Scratch of one reader, in words: number and row of each entity, the members of one, how often the
# accumulators were filled, then those (slots and lasts), then the work of scans.
NUMBERS: Final = 0
ROWS: Final = 8
MEMBERS: Final = 16
FILLED: Final = 24
ACCUMULATORS: Final = 25
# Bytes of one state that are asked from memory before they are read: beyond them, reading is
# regular enough for the processor to ask by itself.
_MOST_ASKED: Final = 4096


@kernel
def find_states(store: int, row: int, scratch: int) -> None:
    """Find the rows of the transaction's entities (0: absent or new).

    A number of -2 is an absent entity, -1 one without a state.
    """
    for e in range(i64(store + t.N_ENTITIES)):
        token = row + r.TOKENS + 16 * e
        low = u64(token)
        high = u64(token + 8)
        number = -2
        address = 0
        if low != np.uint64(0) or high != np.uint64(0):
            head = t.entity_head(store, e)
            number = t.find_entity(head, low, high)
            if number >= 0:
                address = t.entity_row(head, number)
        put_i64(scratch + 8 * (NUMBERS + e), number)
        put_i64(scratch + 8 * (ROWS + e), address)


@kernel
def ask_for_states(store: int, scratch: int) -> None:
    """Ask memory for the records of the states that `find_states` found."""
    for e in range(i64(store + t.N_ENTITIES)):
        row = i64(scratch + 8 * (ROWS + e))
        if row != 0:
            records = i64(row + t.RECORDS)
            width = i64(t.entity_head(store, e) + t.WIDTH)
            length = min(i64(row + t.COUNT) * width, _MOST_ASKED)
            for at in range(records, records + length, 64):
                prefetch(at)


@kernel
def has_long_state(store: int, scratch: int) -> bool:
    """Whether one of the states that `find_states` found is long enough to be read by blocks."""
    for e in range(i64(store + t.N_ENTITIES)):
        row = i64(scratch + 8 * (ROWS + e))
        if row != 0 and i64(row + t.COUNT) >= SHORT:
            return True
    return False


@kernel
def states_version(store: int, scratch: int) -> tuple[np.uint64, np.uint64]:
    """The sum of the versions of the states that `find_states` found, modulo 2^128."""
    low = np.uint64(0)
    high = np.uint64(0)
    for e in range(i64(store + t.N_ENTITIES)):
        row = i64(scratch + 8 * (ROWS + e))
        if row != 0:
            added = low + u64(row + t.VERSION)
            carry = np.uint64(1) if added < low else np.uint64(0)
            low = added
            high += u64(row + t.VERSION + 8) + carry
    return low, high


@kernel
def own_records(store: int, row: int, scratch: int) -> tuple[np.uint64, np.uint64]:
    """The sum of the digests of the transaction's own records in its entities' states."""
    low = np.uint64(0)
    high = np.uint64(0)
    entry = t.find_payment(store, u64(row))
    known = i64(entry + t.PAYMENT_TIME)
    for e in range(i64(store + t.N_ENTITIES)):
        state = i64(scratch + 8 * (ROWS + e))
        if state == 0:
            continue
        head = t.entity_head(store, e)
        width = i64(head + t.WIDTH)
        n = i64(state + t.COUNT)
        records = i64(state + t.RECORDS)
        first = 0
        if known & t.IN_CONFLICT == 0:
            # Without a conflict all its records lie at one time, and facts alone carry it too.
            time = known >> 16 if known != 0 else i64(row + r.TIME)
            first = position(records, n, width, time, u64(row))
        for i in range(first, n):
            record = records + width * i
            if u64(record) != u64(row):
                if known & t.IN_CONFLICT == 0:
                    break
                continue
            one, other = record_digest(record, width, i64(store + t.RECORD_KEY) + 16 * e)
            added = low + one
            carry = np.uint64(1) if added < low else np.uint64(0)
            low = added
            high += other + carry
    return low, high


@kernel
def gather_members(store: int, row: int, entity: int, scratch: int) -> None:
    """Put the transaction's identities as the members of an entity's records into MEMBERS."""
    n_entities = i64(store + t.N_ENTITIES)
    identities = row + r.TOKENS + 16 * n_entities
    members = i64(store + t.MEMBERS) + 32 * entity
    for m in range(i64(t.entity_head(store, entity) + t.N_MEMBERS)):
        identity = u64(identities + 8 * i64(members + 8 * m))
        put_u64(scratch + 8 * (MEMBERS + m), identity)


@kernel
def changes_of(code: int, scratch: int) -> int:
    """Address of the next change of each window, behind the accumulators."""
    words = i64(code + 8 * p.N_SLOTS) * p.SLOT + i64(code + 8 * p.N_LASTS) * p.LAST
    return scratch + 8 * (ACCUMULATORS + words)


@kernel
def accumulate_span(store: int, code: int, span: int, row: int, as_of: int, scratch: int) -> None:
    """Fill the slots of one span for the transaction in `row`."""
    slots = scratch + 8 * ACCUMULATORS
    entity = i64(span + 8 * p.SPAN_ENTITY)
    number = i64(scratch + 8 * (NUMBERS + entity))
    all_changes = changes_of(code, scratch)
    changes = all_changes + 8 * i64(span + 8 * p.SPAN_FIRST_WINDOW)
    n_windows = i64(span + 8 * p.SPAN_N_WINDOWS)
    if number == -2:
        mark_absent(span, slots)
        for k in range(n_windows):
            put_i64(changes + 8 * k, NEVER)
        return
    work = all_changes + 8 * i64(code + 8 * p.N_WINDOWS)
    state = i64(scratch + 8 * (ROWS + entity))
    members = scratch + 8 * MEMBERS
    gather_members(store, row, entity, scratch)
    head = t.entity_head(store, entity)
    if state != 0 and _has_sums(span, state, as_of) and not _own_is_elsewhere(store, row):
        sum_span(span, head, state, row, members, as_of, slots, changes, work)
        return
    n = i64(state + t.COUNT) if state != 0 else 0
    records = i64(state + t.RECORDS) if state != 0 else 0
    width = i64(head + t.WIDTH)
    scan_span(span, records, n, width, row, members, as_of, slots, changes, work)
    wants = i64(span + 8 * p.SPAN_WANTS)
    if wants & p.WANT_FACTS and n > 0 and i64(state + t.MAX_KNOWN) > as_of:
        known = next_known(records, n, width, as_of)
        for k in range(n_windows):
            put_i64(changes + 8 * k, min(i64(changes + 8 * k), known))
    tiles = i64(head + t.TILES)
    if tiles != 0 and i64(tiles + 8) > 0:
        layout = i64(tiles + 16)
        add_tiles(span, layout, i64(tiles), i64(tiles + 8), as_of, slots, changes)


@kernel
def _has_sums(span: int, state: int, as_of: int) -> bool:
    # A state that was fetched for one request has no room behind its records, so no sums.
    return bool(usable(span, state, as_of) and i64(state + t.CAPACITY) > 0)


@kernel
def _own_is_elsewhere(store: int, row: int) -> bool:
    # Only a conflict, or a request with another time than its event, has records at two times.
    known = i64(t.find_payment(store, u64(row)) + t.PAYMENT_TIME)
    return known != 0 and (known & t.IN_CONFLICT != 0 or known >> 16 != i64(row + r.TIME))


@kernel
def accumulate(store: int, code: int, row: int, as_of: int, scratch: int) -> None:
    """Fill all accumulators for the transaction in `row`, after `find_states`."""
    put_i64(scratch + 8 * FILLED, i64(scratch + 8 * FILLED) + 1)
    span = code + 8 * i64(code + 8 * p.SPANS_AT)
    for _ in range(i64(code + 8 * p.N_SPANS)):
        accumulate_span(store, code, span, row, as_of, scratch)
        span += 8 * i64(span + 8 * p.SPAN_NEXT)
    last = scratch + 8 * (ACCUMULATORS + i64(code + 8 * p.N_SLOTS) * p.SLOT)
    described = code + 8 * i64(code + 8 * p.LASTS_AT)
    for _ in range(i64(code + 8 * p.N_LASTS)):
        _accumulate_last(store, code, described, row, last, scratch)
        last += 8 * p.LAST
        described += 32


@kernel
def _accumulate_last(
    store: int, code: int, described: int, row: int, last: int, scratch: int
) -> None:
    entity = i64(described)
    number = i64(scratch + 8 * (NUMBERS + entity))
    if number == -2:
        put_i64(last, p.ABSENT)
        return
    gather_members(store, row, entity, scratch)
    state = i64(scratch + 8 * (ROWS + entity))
    n = i64(state + t.COUNT) if state != 0 else 0
    records = i64(state + t.RECORDS) if state != 0 else 0
    width = i64(t.entity_head(store, entity) + t.WIDTH)
    scan_last(
        last,
        i64(described + 8),
        i64(described + 16),
        records,
        n,
        width,
        row,
        scratch + 8 * MEMBERS,
        i64(code + 8 * p.REACH_MS),
    )


@kernel
def read_features(store: int, code: int, row: int, as_of: int, scratch: int, out: int) -> None:
    """Write the feature vector of the transaction in `row` at `as_of` to `out`, float64."""
    find_states(store, row, scratch)
    ask_for_states(store, scratch)
    accumulate(store, code, row, as_of, scratch)
    finished(code, scratch + 8 * ACCUMULATORS, row, out)
