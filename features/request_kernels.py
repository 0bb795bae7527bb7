"""Presenting the states that one request fetched as a store, and asking for them.

A request store has one row for each entity, and a hash table of two slots in which that row's token
is always met; records lie in the fetched bytes themselves, or, where something was appended behind
them, united in the store's buffer; so all that reads the memory store reads these states too.
Asking: the commands of one request are templates in which only the hash tag changes.

Cost: checking 5-6 ns a record, uniting as features/uniting.py says, one look at each record.
Rule: nothing of an earlier request is left, and nothing is read of a state that fails its check.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from freshscore.features import layout as rec
from freshscore.features import row as r
from freshscore.features import state_layout as s
from freshscore.features import tables as t
from freshscore.features.checksums import HEADER_BYTES, WHOLE, first_damage
from freshscore.features.compiled import kernel
from freshscore.features.folding import without_event
from freshscore.features.memory import i64, move, put_i32, put_i64, put_u8, put_u64, signed, u8, u64
from freshscore.features.past_events import BUCKETS
from freshscore.features.uniting import is_fact, united

# Words of the head that only a request store has, in bytes.
BUFFER: Final = 168  # address of room for united records
BUFFER_BYTES: Final = 176
NEEDED: Final = 184  # bytes of it that the last request needs
LATE: Final = 192  # bits: entities with facts of folded events, to be decoded with their past
DAMAGED: Final = 200  # bits: entities whose bytes fail their check
SCANNED: Final = 208  # records of one state that scans have scratch for
MOST: Final = 216  # of an exact one, in the last request
LATENESS: Final = 224  # ms by which an event may be late: the horizon
HELD_FROM: Final = 240  # what windows and times before it need is never at hand

# What taking states comes to.
TAKEN: Final = 0
INCOMPLETE: Final = 1  # LATE or DAMAGED says of what
NO_ROOM: Final = -1

# Tables of one state, in bytes.
TILES_AT: Final = 0
N_TILES: Final = 8
LAYOUT: Final = 16

# The first word of a header: "fsstate" and the version of its layout (features/codec.py).
_MAGIC: Final = int.from_bytes(b"fsstate", "little")
_MAGIC_BITS: Final = (1 << 56) - 1
_LAYOUT_VERSION: Final = 2
_N_TILES_SHIFT: Final = 40
_EARLY_AT: Final = 72
_BROKEN: Final = -1
_NOT_ANY_MORE: Final = 2**62

# One template, in words: address, bytes, where the tag goes, the entity that it asks for; and where
# the tag goes once more, and the name of the bucket of the row's own identity; 0: nowhere.
TEMPLATE_WORDS: Final = 6
WRITTEN_SHIFT: Final = 32
_TAG_BYTES: Final = 22


@kernel
def _front(blob: int, length: int, layout: int) -> int:
    """Bytes of header and tiles, 0 without one; _BROKEN where the bytes are no whole state."""
    width = i64(layout + 8 * s.WIDTH)
    if length == 0:
        return _BROKEN
    if length < 8 or i64(blob) & _MAGIC_BITS != _MAGIC:
        return 0 if length % width == 0 else _BROKEN
    if length < HEADER_BYTES or i64(blob) >> 56 != _LAYOUT_VERSION:
        return _BROKEN
    if u64(blob + 8) != u64(layout + 8 * s.SEED) or i64(blob + 16) == 0:
        return _BROKEN
    sizes = u64(blob + 64)
    n_tiles = signed(sizes >> np.uint64(_N_TILES_SHIFT))
    n_compacted = signed(sizes & np.uint64((1 << _N_TILES_SHIFT) - 1))
    front = HEADER_BYTES + 8 * i64(layout + 8 * s.TILE_WORDS) * n_tiles
    rest = length - front
    if rest < 0 or rest % width != 0 or rest // width < n_compacted:
        return _BROKEN
    return front


@kernel
def _compacted(blob: int, front: int) -> int:
    """How many records stand sorted behind a header."""
    return i64(blob + 64) & ((1 << _N_TILES_SHIFT) - 1) if front > 0 else 0


@kernel
def _slots(n_end: int) -> int:
    slots = 2
    while slots <= 2 * n_end:
        slots *= 2
    return slots


@kernel
def _work_bytes(n: int, n_end: int) -> int:
    """Room for uniting, behind the united records."""
    return 16 * n_end + ((n + n_end + 7) & ~7) + 4 * _slots(n_end)


@kernel
def _room(blob: int, length: int, layout: int) -> int:
    """Bytes of the buffer that a state needs."""
    front = _front(blob, length, layout)
    if front == _BROKEN:
        return 0
    width = i64(layout + 8 * s.WIDTH)
    n = _compacted(blob, front)
    n_end = (length - front) // width - n
    return (n + n_end) * width + _work_bytes(n, n_end) if n_end > 0 else 0


@kernel
def _clear_row(head: int, row: int, token: int) -> None:
    """An entity without records that is found by the token at `token`."""
    for at in range(0, t.ENTITY_ROW, 8):
        put_i64(row + at, 0)
    low = u64(token)
    put_u64(row, low)
    put_u64(row + 8, u64(token + 8))
    put_i64(i64(head + t.HASH), 0)
    put_i32(t.hash_slot(head, low), 1)
    put_i64(i64(head + t.TILES) + N_TILES, 0)


@kernel
def _unite(blob: int, front: int, n: int, n_end: int, head: int, row: int, at: int) -> None:
    """Unite what stands behind a header with what was appended to it, into the buffer at `at`."""
    layout = i64(i64(head + t.TILES) + LAYOUT)
    width = i64(head + t.WIDTH)
    records = blob + front
    order = at + (n + n_end) * width
    lost = order + 16 * n_end
    table = lost + ((n + n_end + 7) & ~7)
    slots = _slots(n_end)
    for word in range(lost, table + 4 * slots, 8):
        put_i64(word, 0)
    fold = i64(blob + 32) if front > 0 else 0
    forget = i64(blob + 40) if front > 0 else 0
    early = i64(blob + _EARLY_AT) if front > 0 else 0
    n_united = united(
        records,
        n,
        records + n * width,
        n_end,
        layout,
        max(fold, forget, early),
        forget,
        at,
        table,
        slots - 1,
        order,
        lost,
        row + t.VERSION,
    )
    put_i64(row + t.RECORDS, at)
    put_i64(row + t.COUNT, n_united)


@kernel
def _open(blob: int, length: int, head: int, row: int, at: int) -> int:
    """Fill an entity's row from its bytes; where the buffer is free from then on, or _BROKEN."""
    layout = i64(i64(head + t.TILES) + LAYOUT)
    front = _front(blob, length, layout)
    if front == _BROKEN:
        return _BROKEN
    width = i64(head + t.WIDTH)
    n = _compacted(blob, front)
    n_end = (length - front) // width - n
    if first_damage(blob, front, n, n + n_end, layout) != WHOLE:
        return _BROKEN
    if front > 0:
        move(row + t.VERSION, blob + 48, 16)
        put_i64(row + t.FORGOTTEN, i64(blob + 40))
        tiles = i64(head + t.TILES)
        put_i64(tiles, blob + HEADER_BYTES)
        put_i64(tiles + N_TILES, i64(blob + 64) >> _N_TILES_SHIFT)
    if n_end == 0:
        put_i64(row + t.RECORDS, blob + front)
        put_i64(row + t.COUNT, n)
        return at
    _unite(blob, front, n, n_end, head, row, at)
    return at + (n + n_end) * width


@kernel
def _limit(head: int, row: int) -> None:
    """Keep the newest records up to the limit on events, and say so in LOST."""
    beyond = i64(row + t.COUNT) - i64(head + t.MAX_EVENTS)
    if beyond > 0:
        records = i64(row + t.RECORDS) + beyond * i64(head + t.WIDTH)
        line = (i64(records - i64(head + t.WIDTH) + rec.TIME) >> 16) + 1
        put_i64(row + t.RECORDS, records)
        put_i64(row + t.COUNT, i64(row + t.COUNT) - beyond)
        put_i64(row + t.LOST, line)


@kernel
def _describe(head: int, row: int, own: np.uint64, own_time: int) -> int:
    """Count the facts of a state; flags of the own payment, 0 where the state has no record of it.

    HAS_FACTS says that its records must be looked for, for an event may be in one state and not
    yet in another.
    """
    width = i64(head + t.WIDTH)
    records = i64(row + t.RECORDS)
    n_facts = 0
    newest_known = 0
    flags = 0
    for record in range(records, records + i64(row + t.COUNT) * width, width):
        if is_fact(record):
            n_facts += 1
            newest_known = max(newest_known, i64(record + rec.CONTENT) >> 16)
        if u64(record) == own:
            flags |= t.HAS_FACTS
            if i64(record + rec.TIME) >> 16 != own_time:
                flags |= t.IN_CONFLICT
    put_i64(row + t.N_FACTS, n_facts)
    put_i64(row + t.MAX_KNOWN, newest_known)
    return flags


@kernel
def _put_payment(store: int, row: int, flags: int) -> None:
    """Make the row's payment the one that is known, with these flags; 0: none is."""
    table = i64(store + t.PAYMENTS)
    for at in range(0, 2 * i64(store + t.PAYMENT_BYTES), 8):
        put_i64(table + at, 0)
    if flags != 0:
        entry = t.payment_slot(store, u64(row))
        put_u64(entry, u64(row))
        put_i64(entry + t.PAYMENT_TIME, i64(row + r.TIME) << 16 | flags)


@kernel
def take_states(
    store: int, row: int, fetched: int, watermark: int, complete_since: int, degraded: int
) -> int:
    """Make the store at `store` hold the fetched states of the entities of `row`, and no others.

    fetched: for each entity two words, the address and the length of its bytes; length -1 where it
    is absent or has none. watermark, complete_since: ms; degraded: bits of tables.py.
    TAKEN; INCOMPLETE; or NO_ROOM, with NEEDED and MOST, and the store not to be read.
    """
    needed = 0
    n_entities = i64(store + t.N_ENTITIES)
    for e in range(n_entities):
        length = i64(fetched + 16 * e + 8)
        if length >= 0:
            layout = i64(i64(t.entity_head(store, e) + t.TILES) + LAYOUT)
            needed += _room(i64(fetched + 16 * e), length, layout)
    put_i64(store + NEEDED, needed)
    if needed > i64(store + BUFFER_BYTES):
        return NO_ROOM
    at = i64(store + BUFFER)
    late = 0
    damaged = 0
    flags = 0
    most = 0
    summarised = 0
    held_from = i64(store + HELD_FROM)
    own_time = i64(row + r.TIME)
    for e in range(n_entities):
        head = t.entity_head(store, e)
        state = i64(head + t.ROWS)
        _clear_row(head, state, row + r.TOKENS + 16 * e)
        blob = i64(fetched + 16 * e)
        length = i64(fetched + 16 * e + 8)
        if length < 0:
            continue
        behind = _open(blob, length, head, state, at)
        if behind == _BROKEN:
            damaged |= 1 << e
            continue
        at = behind
        layout = i64(i64(head + t.TILES) + LAYOUT)
        forgotten = i64(state + t.FORGOTTEN)
        if _front(blob, length, layout) > 0 and i64(blob + 16) < 0:
            put_i64(state + t.LOST, -forgotten)
        elif forgotten > watermark - i64(store + LATENESS) - i64(store + t.HELD):
            # Time alone cannot have made it forget so much: it had too many events.
            put_i64(state + t.LOST, forgotten)
        elif forgotten > 0:
            held_from = max(held_from, forgotten + i64(store + t.HELD))
        if _front(blob, length, layout) > 0:
            folded_below = i64(blob + 32)
            if own_time < folded_below:
                held_from = _NOT_ANY_MORE
            summarised = max(summarised, i64(blob + _EARLY_AT))
            closed_below = max(folded_below, i64(blob + _EARLY_AT))
            if closed_below > 0 and i64(layout + 8 * s.READS_FACTS):
                records, n = i64(state + t.RECORDS), i64(state + t.COUNT)
                if without_event(records, n, i64(head + t.WIDTH), closed_below, 0) > 0:
                    late |= 1 << e
        _limit(head, state)
        flags |= _describe(head, state, u64(row), own_time)
        if i64(layout + 8 * s.IS_GRID) == 0:
            most = max(most, i64(state + t.COUNT))
    put_i64(store + MOST, most)
    if most > i64(store + SCANNED):
        return NO_ROOM
    _put_payment(store, row, flags)
    put_i64(store + LATE, late)
    put_i64(store + DAMAGED, damaged)
    put_i64(store + t.DEGRADED, degraded | (t.STATE_DAMAGED if damaged else 0))
    put_i64(store + t.NEWEST, watermark)
    put_i64(store + t.HORIZON, watermark - held_from)
    put_i64(store + t.COMPLETE_SINCE, complete_since)
    put_i64(store + t.SUMMARISED, summarised)
    return TAKEN if late | damaged == 0 else INCOMPLETE


@kernel
def _letter(value: int) -> int:
    """A letter of base64url."""
    if value < 26:
        return 65 + value
    if value < 52:
        return 71 + value
    if value < 62:
        return value - 4
    return 45 if value == 62 else 95


@kernel
def put_tag(token: int, out: int) -> None:
    """Write the 22 letters of the 16 bytes at `token`."""
    bits = 0
    held = 0
    at = out
    for i in range(16):
        held = (held << 8 | u8(token + i)) & 0xFFFF
        bits += 8
        while bits >= 6:
            bits -= 6
            put_u8(at, _letter(held >> bits & 63))
            at += 1
    put_u8(at, _letter(held << (6 - bits) & 63))


@kernel
def put_bucket_name(identity: int, out: int) -> None:
    """Write the letters that name the bucket of the 64-bit identity at `identity`."""
    bucket = i64(identity) & (BUCKETS - 1)
    put_u8(out, _letter(bucket >> 12))
    put_u8(out + 1, _letter(bucket >> 6 & 63))
    put_u8(out + 2, _letter(bucket & 63))


@kernel
def is_summarised(blob: int, length: int) -> bool:
    """Whether events are folded early in the state at `blob`: its own payment may be in a tile."""
    if length < HEADER_BYTES or i64(blob) & _MAGIC_BITS != _MAGIC:
        return False
    return i64(blob + _EARLY_AT) > 0


@kernel
def slot_of_tag(tag: int) -> int:
    """The slot of the 22 letters at `tag`: CRC-16/XMODEM, as Redis Cluster says."""
    crc = 0
    for at in range(tag, tag + _TAG_BYTES):
        crc ^= u8(at) << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021) & 0xFFFF if crc & 0x8000 else crc << 1
    return crc & 0x3FFF


@kernel
def put_commands(row: int, templates: int, n: int, out: int, slots: int) -> int:
    """Write the commands for the entities that `row` has, one behind the other.

    Their bytes << WRITTEN_SHIFT, and a bit for each that was written. templates: as the constants
    above say. slots: room for n words, which become the slot of each command, or -1 where its
    entity is absent; 0 where slots are of no interest.
    """
    at = out
    written = 0
    for i in range(n):
        template = templates + 8 * TEMPLATE_WORDS * i
        token = row + r.TOKENS + 16 * i64(template + 24)
        is_absent = i64(token) == 0 and i64(token + 8) == 0
        slot = -1
        if not is_absent:
            length = i64(template + 8)
            move(at, i64(template), length)
            put_tag(token, at + i64(template + 16))
            if i64(template + 32) != 0:
                move(at + i64(template + 32), at + i64(template + 16), _TAG_BYTES)
                put_bucket_name(row, at + i64(template + 40))
            if slots != 0:
                slot = slot_of_tag(at + i64(template + 16))
            at += length
            written |= 1 << i
        if slots != 0:
            put_i64(slots + 8 * i, slot)
    return (at - out) << WRITTEN_SHIFT | written
