"""The memory of near states: a ring of places, and a table that finds them by token.

    place   64 bytes of words as named below, then room for the bytes of one state
    ring    places one behind the other; new ones at its tail, room is made at its head
    table   open addressing by token; a slot is a generation << 40 | the place's offset in the block
    notes   by token, direct-mapped: the number of the last step that brought records for it

At the head a place that was given up costs nothing; one that was asked for since it was last met,
or is met while the block has room enough, moves to the tail; the others are evicted. So what was
asked for once does not displace what is asked for often, states of all sizes share all the memory,
and no step does more than a bounded number of moves.
Rejected: slabs by size class; states grow through the classes for ever, so that slabs would have
to be taken from one class for another.
Rule: every kernel that uses it holds the interpreter lock, so each is one step for all threads.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from freshscore.features.compiled import kernel
from freshscore.features.memory import i64, move, put_i64, put_u64, signed, u64

# Words of the head, in bytes.
N_ENTITIES: Final = 0
WIDTHS: Final = 8  # address: of each entity the bytes of a record
BLOCK: Final = 16  # address
BLOCK_BYTES: Final = 24
TABLE: Final = 32  # address
TABLE_MASK: Final = 40
NOTES: Final = 48  # address
NOTES_MASK: Final = 56
GENERATION: Final = 64  # slots of others are empty
TAIL: Final = 72  # bytes that ever went into the ring
HEAD: Final = 80  # bytes that ever left it
LIVE: Final = 88  # bytes of places in use
STEP: Final = 96  # number of the last step of `apply`, or flush
REFUSED_BEFORE: Final = 104  # what was asked for before this step is not admitted
IS_OPEN: Final = 112  # whether anything is admitted
KNOWN: Final = 120  # address of what the follower knows of each partition, KNOWN_ROW bytes each
N_KNOWN: Final = 128
MOST_PLACE: Final = 136  # bytes of the largest place
MOST_AGE: Final = 144  # seconds
GROWTH: Final = 152  # bytes by which every state may grow
HELD: Final = 160
HITS: Final = 168
MISSES: Final = 176
EVICTED: Final = 184
DROPPED: Final = 192
NOT_ADMITTED: Final = 200
ADMITTED: Final = 208
APPENDED: Final = 216  # groups
MOVED: Final = 224
FLUSHES: Final = 232
KNOWN_NUMBER: Final = 240  # of the table at KNOWN, which is another one now and then
HEAD_BYTES: Final = 248

# Words of a place, in bytes.
SIZE: Final = 0
OWNER: Final = 8  # entity + 1 << 8 | how often it was asked for, up to MOST_USES; 0: given up
TOKEN: Final = 16
LENGTH: Final = 32  # bytes of the state; NO_STATE: known to have none
WHOLE: Final = 40  # its length when it was admitted
SINCE: Final = 48  # since when its node is complete, ms
AT: Final = 56  # when it was admitted, s
PLACE_HEAD: Final = 64

NO_STATE: Final = -1

# A slot: generation << OFFSET_BITS | offset.
OFFSET_BITS: Final = 40
OFFSET: Final = (1 << OFFSET_BITS) - 1
USES: Final = 0xFF
MOST_USES: Final = 3
# Sizes are whole cache lines, so that what pads the end of the block has room for its words too.
_LINE: Final = 64
LEAST_PLACE: Final = 192
# What one call may meet at the head: 64 evictions are 10-20 us; moves are counted by their bytes.
_MOST_MET: Final = 64
_MOST_MOVED: Final = 16_384
# Above this share of live bytes places are evicted rather than moved: at 7/8 one byte in eight that
# is passed comes free.
_FULL: Final = 7
_FULL_OF: Final = 8


@kernel
def home(near: int, low: np.uint64) -> int:
    """The slot at which the search for a token begins."""
    return signed(low >> np.uint64(1)) & i64(near + TABLE_MASK)


@kernel
def note_of(near: int, high: np.uint64) -> int:
    """Address of the note on a token: by its other half, so that neighbours do not share both."""
    return i64(near + NOTES) + 8 * (signed(high >> np.uint64(1)) & i64(near + NOTES_MASK))


@kernel
def sought(near: int, low: np.uint64, high: np.uint64) -> int:
    """Address of the slot of a token, or of the empty one where it would be."""
    table, mask = i64(near + TABLE), i64(near + TABLE_MASK)
    block, generation = i64(near + BLOCK), i64(near + GENERATION)
    at = home(near, low)
    while True:
        slot = table + 8 * at
        word = i64(slot)
        if word >> OFFSET_BITS != generation:
            return slot
        place = block + (word & OFFSET)
        if u64(place + TOKEN) == low and u64(place + TOKEN + 8) == high:
            return slot
        at = (at + 1) & mask


@kernel
def placed(near: int, slot: int) -> int:
    """The place of a slot, 0 for an empty one."""
    word = i64(slot)
    return (
        i64(near + BLOCK) + (word & OFFSET) if word >> OFFSET_BITS == i64(near + GENERATION) else 0
    )


@kernel
def _point(near: int, slot: int, place: int) -> None:
    """Let a slot be that of a place."""
    put_i64(slot, i64(near + GENERATION) << OFFSET_BITS | (place - i64(near + BLOCK)))


@kernel
def _empty(near: int, slot: int) -> None:
    """Empty a slot, and move those behind it to where they are still found."""
    table, mask = i64(near + TABLE), i64(near + TABLE_MASK)
    block, generation = i64(near + BLOCK), i64(near + GENERATION)
    hole = (slot - table) >> 3
    at = hole
    while True:
        at = (at + 1) & mask
        word = i64(table + 8 * at)
        if word >> OFFSET_BITS != generation:
            break
        first = home(near, u64(block + (word & OFFSET) + TOKEN))
        if (at - first) & mask >= (at - hole) & mask:
            put_i64(table + 8 * hole, word)
            hole = at
    put_i64(table + 8 * hole, 0)


@kernel
def count(near: int, what: int, n: int) -> None:
    put_i64(near + what, i64(near + what) + n)


@kernel
def give_up(near: int, slot: int, place: int) -> None:
    """Forget the state of a place, which is passed when the head comes there."""
    _empty(near, slot)
    put_i64(place + OWNER, 0)
    count(near, LIVE, -i64(place + SIZE))
    count(near, HELD, -1)


@kernel
def drop_place(near: int, slot: int, place: int) -> None:
    """Forget a state that can no longer be served."""
    give_up(near, slot, place)
    count(near, DROPPED, 1)


@kernel
def _start(near: int, size: int) -> int:
    """Where in the ring a place of `size` would begin, -1 where there is no room for it."""
    tail, block_bytes = i64(near + TAIL), i64(near + BLOCK_BYTES)
    at = tail % block_bytes
    start = tail if at + size <= block_bytes else tail + block_bytes - at
    return start if start + size - i64(near + HEAD) <= block_bytes else -1


@kernel
def _take_room(near: int, start: int, size: int) -> int:
    """The place that begins at `start`, where _start said there is room; padding before it."""
    block, block_bytes, tail = i64(near + BLOCK), i64(near + BLOCK_BYTES), i64(near + TAIL)
    if start != tail:
        padding = block + tail % block_bytes
        put_i64(padding + SIZE, start - tail)
        put_i64(padding + OWNER, 0)
    put_i64(near + TAIL, start + size)
    count(near, LIVE, size)
    return block + start % block_bytes


@kernel
def _pass_head(near: int, may_move: bool) -> int:
    """Free, move or evict the place at the head; bytes that were moved."""
    head, block_bytes = i64(near + HEAD), i64(near + BLOCK_BYTES)
    place = i64(near + BLOCK) + head % block_bytes
    size, owner = i64(place + SIZE), i64(place + OWNER)
    put_i64(near + HEAD, head + size)
    if owner == 0:
        return 0
    slot = sought(near, u64(place + TOKEN), u64(place + TOKEN + 8))
    put_i64(near + LIVE, i64(near + LIVE) - size)
    uses = owner & USES
    start = -1
    if may_move and (uses > 0 or _FULL_OF * i64(near + LIVE) < _FULL * block_bytes):
        start = _start(near, size)
    if start < 0:
        _empty(near, slot)
        count(near, HELD, -1)
        count(near, EVICTED, 1)
        return 0
    # Before the padding is written, which may lie where the place lay.
    moved = i64(near + BLOCK) + start % block_bytes
    move(moved, place, size)
    _take_room(near, start, size)
    put_i64(moved + OWNER, owner - 1 if uses > 0 else owner)
    _point(near, slot, moved)
    count(near, MOVED, 1)
    return size


@kernel
def _room_for(near: int, size: int) -> int:
    """Where a place of `size` may begin, after making room; -1 where that would take too long."""
    if size > i64(near + MOST_PLACE):
        return -1
    moved = 0
    for _ in range(_MOST_MET):
        start = _start(near, size)
        if start >= 0:
            return start
        moved += _pass_head(near, moved < _MOST_MOVED)
    return -1


@kernel
def _size_for(length: int, width: int) -> int:
    """Bytes of a place for a state: a quarter more than it has, and two records at least."""
    size = PLACE_HEAD + length + max(length >> 2, 2 * width)
    return max(LEAST_PLACE, (size + _LINE - 1) & ~(_LINE - 1))


@kernel
def add(near: int, entity: int, low: np.uint64, high: np.uint64, blob: int, length: int) -> int:
    """A place with the state at `blob` for an entity that is not held; 0 where there is no room."""
    width = i64(i64(near + WIDTHS) + 8 * entity)
    size = _size_for(max(length, 0), width)
    start = _room_for(near, size)
    if start < 0:
        return 0
    place = _take_room(near, start, size)
    put_i64(place + SIZE, size)
    put_i64(place + OWNER, entity + 1 << 8)
    put_u64(place + TOKEN, low)
    put_u64(place + TOKEN + 8, high)
    # Making room has moved slots.
    _point(near, _sought_empty(near, low), place)
    count(near, HELD, 1)
    fill(place, blob, length)
    return place


@kernel
def _sought_empty(near: int, low: np.uint64) -> int:
    """Address of the slot for a token that is not in the table."""
    table, mask = i64(near + TABLE), i64(near + TABLE_MASK)
    generation = i64(near + GENERATION)
    at = home(near, low)
    while i64(table + 8 * at) >> OFFSET_BITS == generation:
        at = (at + 1) & mask
    return table + 8 * at


@kernel
def fill(place: int, blob: int, length: int) -> None:
    """Put a state into a place that has room for it; length NO_STATE for none."""
    if length > 0:
        move(place + PLACE_HEAD, blob, length)
    put_i64(place + LENGTH, length)
    put_i64(place + WHOLE, max(length, 0))


@kernel
def larger(near: int, place: int, length: int) -> int:
    """A larger place with the same state; 0 where it is not held any more."""
    low, high = u64(place + TOKEN), u64(place + TOKEN + 8)
    width = i64(i64(near + WIDTHS) + 8 * ((i64(place + OWNER) >> 8) - 1))
    size = _size_for(length, width)
    start = _room_for(near, size)
    # Making room may have moved or evicted the state itself.
    slot = sought(near, low, high)
    place = placed(near, slot)
    if place == 0:
        return 0
    if start < 0:
        drop_place(near, slot, place)
        return 0
    made = _take_room(near, start, size)
    move(made, place, PLACE_HEAD + max(i64(place + LENGTH), 0))
    put_i64(made + SIZE, size)
    put_i64(place + OWNER, 0)
    count(near, LIVE, -i64(place + SIZE))
    _point(near, slot, made)
    return made
