"""Finding, placing and forgetting entries of the memory tier (scoring/cache_layout.py)."""

from __future__ import annotations

from typing import Final

import numpy as np

from freshscore.features import row as r
from freshscore.features.compiled import kernel
from freshscore.features.memory import i32, i64, prefetch, put_i32, put_i64, put_u64, signed, u64
from freshscore.scoring import cache_layout as c

_MIX: Final = np.uint64(0x9E3779B97F4A7C15)
NONE: Final = 0
# A way's use: how often (0 to 3) in the upper bits, when (a tick of its bucket's tier) below.
_USES_AT: Final = 29
_WHEN: Final = (1 << _USES_AT) - 1
_MOST_USES: Final = 3


@kernel
def _bucket(tier: int, low: np.uint64) -> int:
    mixed = (low * _MIX) >> np.uint64(20)
    return signed(mixed) & i64(tier + c.BUCKET_MASK)


@kernel
def _tag(high: np.uint64) -> int:
    # As i32 reads it, signed; never 0, which marks a way without an entry.
    tag = signed(high & np.uint64(0xFFFFFFFF)) | 1
    return tag - (1 << 32) if tag >= (1 << 31) else tag


@kernel
def ask_for_entry(tier: int, low: np.uint64) -> None:
    """Ask memory for the marks of the bucket of a payment's identity."""
    prefetch(i64(tier + c.MARKS) + c.MARKS_BYTES * _bucket(tier, low))


@kernel
def find(tier: int, low: np.uint64, high: np.uint64) -> int:
    """Address of the entry of the payment with this identity, or NONE."""
    bucket = _bucket(tier, low)
    marks = i64(tier + c.MARKS) + c.MARKS_BYTES * bucket
    tag = _tag(high)
    for way in range(c.WAYS):
        if i32(marks + 4 * way) == tag:
            entry = i64(tier + c.ENTRIES) + i64(tier + c.ENTRY_BYTES) * (c.WAYS * bucket + way)
            if u64(entry) == low and u64(entry + c.ID_HIGH) == high:
                return entry
    return NONE


@kernel
def is_valid(tier: int, n_entities: int, row: int, entry: int) -> bool:
    """Whether no invalidation of the model, of the row's cohort or of its entities is newer."""
    made = i64(entry + c.GENERATION)
    if made >= i64(tier + c.NEWEST_INVALIDATION):
        return True
    cohort = (i64(row + r.BITS) >> 40) & 0xFF
    if made < i64(tier + c.MODEL_FROM) or made < i64(i64(tier + c.COHORTS) + 8 * cohort):
        return False
    for token in range(row + r.TOKENS, row + r.TOKENS + 16 * n_entities, 16):
        if made < invalidation_of(tier, u64(token), u64(token + 8)):
            return False
    return True


@kernel
def invalidation_of(tier: int, low: np.uint64, high: np.uint64) -> int:
    """The newest invalidation of the entity with this token, or 0."""
    mask = i64(tier + c.INVALIDATED_MASK)
    at = signed(low >> np.uint64(1)) & mask
    while True:
        slot = i64(tier + c.INVALIDATED) + c.TOKEN_SLOT * at
        number = i64(slot + 16)
        if number == 0 or (u64(slot) == low and u64(slot + 8) == high):
            return number
        at = (at + 1) & mask


@kernel
def use(tier: int, entry: int) -> None:
    """Note that an entry was used again."""
    place = (entry - i64(tier + c.ENTRIES)) // i64(tier + c.ENTRY_BYTES)
    mark = i64(tier + c.MARKS) + c.MARKS_BYTES * (place // c.WAYS) + 32 + 4 * (place % c.WAYS)
    state = i32(mark)
    if (state >> _USES_AT) & 3 < _MOST_USES:
        put_i32(mark, state + (1 << _USES_AT))


@kernel
def _victim(marks: int, now: int) -> int:
    """The way to give up: an empty one, else the oldest of those not used again."""
    unused = 0
    oldest = -1
    age = -1
    for way in range(c.WAYS):
        if i32(marks + 4 * way) == 0:
            return way
        state = i32(marks + 32 + 4 * way)
        if (state >> _USES_AT) & 3 == 0:
            unused += 1
            since = (now - state) & _WHEN
            if since > age:
                age = since
                oldest = way
    if unused < 2:
        for way in range(c.WAYS):
            state = i32(marks + 32 + 4 * way)
            if (state >> _USES_AT) & 3 > 0:
                put_i32(marks + 32 + 4 * way, state - (1 << _USES_AT))
    if oldest < 0:
        return _least_recent(marks, now)
    return oldest


@kernel
def _least_recent(marks: int, now: int) -> int:
    best = 0
    age = -1
    for way in range(c.WAYS):
        since = (now - i32(marks + 32 + 4 * way)) & _WHEN
        if since > age:
            age = since
            best = way
    return best


@kernel
def place(tier: int, low: np.uint64, high: np.uint64) -> int:
    """An entry for the payment with this identity, in the place of another if need be."""
    bucket = _bucket(tier, low)
    marks = i64(tier + c.MARKS) + c.MARKS_BYTES * bucket
    now = i64(tier + c.TICK) + 1
    put_i64(tier + c.TICK, now)
    way = _victim(marks, now)
    if i32(marks + 4 * way) == 0:
        put_i64(tier + c.LIVE, i64(tier + c.LIVE) + 1)
    else:
        put_i64(tier + c.EVICTED, i64(tier + c.EVICTED) + 1)
    put_i32(marks + 4 * way, _tag(high))
    put_i32(marks + 32 + 4 * way, now & _WHEN)
    entry = i64(tier + c.ENTRIES) + i64(tier + c.ENTRY_BYTES) * (c.WAYS * bucket + way)
    put_u64(entry, low)
    put_u64(entry + c.ID_HIGH, high)
    put_u64(entry + c.HASH_LOW, np.uint64(0))
    put_u64(entry + c.HASH_HIGH, np.uint64(0))
    return entry


@kernel
def find_cell(tier: int, low: np.uint64, high: np.uint64) -> int:
    """Address of an entry whose score was computed on the cell with this hash, or NONE."""
    hints = i64(tier + c.HINTS) + 16 * (signed(low >> np.uint64(1)) & i64(tier + c.HINT_MASK))
    for way in range(4):
        hint = i32(hints + 4 * way)
        if hint == 0:
            continue
        entry = i64(tier + c.ENTRIES) + i64(tier + c.ENTRY_BYTES) * (hint - 1)
        if u64(entry + c.HASH_LOW) == low and u64(entry + c.HASH_HIGH) == high:
            return entry
    return NONE


@kernel
def hint_cell(tier: int, low: np.uint64, high: np.uint64, entry: int) -> None:
    """Let the cell with this hash be found at `entry`."""
    hints = i64(tier + c.HINTS) + 16 * (signed(low >> np.uint64(1)) & i64(tier + c.HINT_MASK))
    target = hints + 4 * (signed(high) & 3)
    for way in range(4):
        hint = i32(hints + 4 * way)
        if hint == 0:
            target = hints + 4 * way
            break
        held = i64(tier + c.ENTRIES) + i64(tier + c.ENTRY_BYTES) * (hint - 1)
        if u64(held + c.HASH_LOW) == low and u64(held + c.HASH_HIGH) == high:
            target = hints + 4 * way
            break
    number = (entry - i64(tier + c.ENTRIES)) // i64(tier + c.ENTRY_BYTES)
    put_i32(target, number + 1)


@kernel
def random_bits(tier: int) -> np.uint64:
    """64 bits of the tier's own sequence (splitmix64: Steele, Lea, Flood 2014)."""
    state = u64(tier + c.RANDOM) + _MIX
    put_u64(tier + c.RANDOM, state)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
