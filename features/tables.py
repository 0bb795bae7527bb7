"""The tables of a store: entities by token, payments by identity; and the head that finds them.

Head of a store, int64 words at one address:

    0 ..             common words, as the constants below name them
    ENTITY + 24 * e  words of entity e: its table, its hash, its record width, its limits, its tiles

An entity's row has ENTITY_ROW bytes: token, version (128-bit sum of record digests), the segment
with its records, counts, and up to when it has forgotten. Payments: identity, time << 16 | flags,
and the number of each of its entities (int32, -1 absent).
Rule: a table never moves while a kernel runs; a kernel that finds one full says which, before it
has changed anything, and Python makes it larger.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from freshscore.features.compiled import kernel
from freshscore.features.memory import i32, i64, put_i32, put_i64, put_u64, signed, u64

# Common words of the head, in bytes.
N_ENTITIES: Final = 0
NEWEST: Final = 8
HORIZON: Final = 16
HELD: Final = 24
PAYMENTS: Final = 32
PAYMENT_MASK: Final = 40
PAYMENT_COUNT: Final = 48
PAYMENT_LIMIT: Final = 56
PAYMENT_BYTES: Final = 64
ARENA: Final = 72
N_RECORDS: Final = 80
CONFLICTS: Final = 88
MEMBERS: Final = 96  # address of the program's member table
SWEEP_ENTITY: Final = 104
SWEEP_NUMBER: Final = 112
RECORD_KEY: Final = 120  # address of the digest keys, 16 bytes for each entity
STAGED: Final = 128  # address of one record being made
RECORD_BYTES_LIVE: Final = 136
# Since when all events that happened were offered to this store; UNKNOWN before the first.
COMPLETE_SINCE: Final = 144
UNKNOWN: Final = 2**62
# Whether nothing more is applied: what is being saved must not change.
SEALED: Final = 152
# Bits of what is missing of the states of a request: 0 in a memory store, whose states are all
# there. Words behind it are a request store's own (features/request_kernels.py).
DEGRADED: Final = 160
STATE_LOST: Final = 2
STATE_DAMAGED: Final = 4

# Nothing can be answered for an instant before this: later events are sums already. 0: none are.
SUMMARISED: Final = 232

ENTITY: Final = 32 * 8
ENTITY_HEAD: Final = 24 * 8
# Words of one entity's part of the head, in bytes.
ROWS: Final = 0
ROW_COUNT: Final = 8
ROW_LIMIT: Final = 16
HASH: Final = 24
HASH_MASK: Final = 32
WIDTH: Final = 40
N_MEMBERS: Final = 48
PLACE_AT: Final = 56
MAX_EVENTS: Final = 64
HASH_LIMIT: Final = 72
BLOCK_WORDS: Final = 80
BLOCK_CONDITIONS: Final = 88  # address of the conditions that block sums keep
N_BLOCK_CONDITIONS: Final = 96
BLOCK_WANTS: Final = 104
# Address of where the tiles of the entity's one state lie, how many, and its layout; 0 in a memory
# store, which folds nothing.
TILES: Final = 112

# One entity's row, in bytes.
ENTITY_ROW: Final = 96
TOKEN: Final = 0
VERSION: Final = 16
RECORDS: Final = 32
COUNT: Final = 40
CAPACITY: Final = 48
FORGOTTEN: Final = 56  # records before this instant are no longer there
MAX_KNOWN: Final = 64  # the latest instant at which a fact became known
# FORGOTTEN, where the limit on events made it forget; below 0 where an order did; else 0.
LOST: Final = 72
N_FACTS: Final = 80
BLOCKS_FROM: Final = 88  # block sums are right for blocks before this one

# One payment's entry, in bytes.
PAYMENT_TIME: Final = 8
PAYMENT_NUMBERS: Final = 16
# Its flags: facts lie in its states; it was seen with two contents.
HAS_FACTS: Final = 1
IN_CONFLICT: Final = 2

NOT_FOUND: Final = -1

_MIX: Final = np.uint64(0x9E3779B97F4A7C15)


@kernel
def entity_head(store: int, entity: int) -> int:
    """Address of the head's part for entity number `entity`."""
    return store + ENTITY + ENTITY_HEAD * entity


@kernel
def entity_row(head: int, number: int) -> int:
    """Address of the row of one entity."""
    return i64(head + ROWS) + ENTITY_ROW * number


@kernel
def hash_slot(head: int, low: np.uint64) -> int:
    """Address of the first place in the hash table for a token."""
    return i64(head + HASH) + 4 * (signed(low >> np.uint64(1)) & i64(head + HASH_MASK))


@kernel
def payment_slot(store: int, identity: np.uint64) -> int:
    """Address of the first place in the table for a payment."""
    at = signed((identity * _MIX) >> np.uint64(1)) & i64(store + PAYMENT_MASK)
    return i64(store + PAYMENTS) + i64(store + PAYMENT_BYTES) * at


@kernel
def find_entity(head: int, low: np.uint64, high: np.uint64) -> int:
    """The number of the entity with this token, or NOT_FOUND."""
    mask = i64(head + HASH_MASK)
    table = i64(head + HASH)
    at = signed(low >> np.uint64(1)) & mask
    while True:
        number = i32(table + 4 * at)
        if number == 0:
            return NOT_FOUND
        row = entity_row(head, number - 1)
        if u64(row) == low and u64(row + 8) == high:
            return number - 1
        at = (at + 1) & mask


@kernel
def hash_entity(head: int, number: int) -> None:
    """Enter the entity `number`, whose row has its token, in the hash table."""
    mask = i64(head + HASH_MASK)
    table = i64(head + HASH)
    at = signed(u64(entity_row(head, number)) >> np.uint64(1)) & mask
    while i32(table + 4 * at) != 0:
        at = (at + 1) & mask
    put_i32(table + 4 * at, number + 1)


@kernel
def add_entity(head: int, low: np.uint64, high: np.uint64) -> int:
    """A new entity, without records; the caller has checked that there is room."""
    number = i64(head + ROW_COUNT)
    put_i64(head + ROW_COUNT, number + 1)
    row = entity_row(head, number)
    for at in range(0, ENTITY_ROW, 8):
        put_i64(row + at, 0)
    put_u64(row, low)
    put_u64(row + 8, high)
    hash_entity(head, number)
    return number


@kernel
def take_out_last(head: int) -> None:
    """Take out the entity that was added last, while nothing was added behind it."""
    number = i64(head + ROW_COUNT) - 1
    mask = i64(head + HASH_MASK)
    table = i64(head + HASH)
    at = signed(u64(entity_row(head, number)) >> np.uint64(1)) & mask
    while i32(table + 4 * at) != number + 1:
        at = (at + 1) & mask
    # Nothing was entered since, so no other search passes here.
    put_i32(table + 4 * at, 0)
    put_i64(head + ROW_COUNT, number)


@kernel
def find_payment(store: int, identity: np.uint64) -> int:
    """Address of the payment's entry, or of the empty one where it would be."""
    mask = i64(store + PAYMENT_MASK)
    table = i64(store + PAYMENTS)
    size = i64(store + PAYMENT_BYTES)
    at = signed((identity * _MIX) >> np.uint64(1)) & mask
    while True:
        entry = table + size * at
        if i64(entry + PAYMENT_TIME) == 0 or u64(entry) == identity:
            return entry
        at = (at + 1) & mask


@kernel
def forget_line(store: int) -> int:
    """Events before this instant are beyond what any window can reach from what is accepted."""
    return i64(store + NEWEST) - i64(store + HELD) - i64(store + HORIZON)


@kernel
def rehash_payments(store: int, old: int, n_old: int) -> int:
    """Enter the payments of an old table that are not beyond reach; how many they are."""
    size = i64(store + PAYMENT_BYTES)
    line = forget_line(store)
    kept = 0
    for i in range(n_old):
        entry = old + size * i
        time = i64(entry + PAYMENT_TIME) >> 16
        if time == 0 or time < line:
            continue
        target = find_payment(store, u64(entry))
        for at in range(0, size, 8):
            put_i64(target + at, i64(entry + at))
        kept += 1
    put_i64(store + PAYMENT_COUNT, kept)
    return kept


@kernel
def replace_payments(store: int, old: int, table: int, slots: int, limit: int) -> bool:
    """Move what is within reach from the table at `old` to the empty one at `table`, and use that.

    One step for all threads; False, with nothing done, if another thread has replaced it before,
    or the store is sealed.
    """
    if i64(store + PAYMENTS) != old or i64(store + SEALED) != 0:
        return False
    n_old = i64(store + PAYMENT_MASK) + 1
    put_i64(store + PAYMENTS, table)
    put_i64(store + PAYMENT_MASK, slots - 1)
    put_i64(store + PAYMENT_LIMIT, limit)
    rehash_payments(store, old, n_old)
    return True


@kernel
def replace_hash(head: int, old: int, table: int, slots: int, limit: int) -> bool:
    """Enter all entities in the empty hash table at `table`, and use that; as replace_payments."""
    if i64(head + HASH) != old:
        return False
    put_i64(head + HASH, table)
    put_i64(head + HASH_MASK, slots - 1)
    put_i64(head + HASH_LIMIT, limit)
    rehash_entities(head)
    return True


@kernel
def rehash_entities(head: int) -> None:
    """Fill an empty hash table from the rows."""
    for number in range(i64(head + ROW_COUNT)):
        hash_entity(head, number)
