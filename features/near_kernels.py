"""The steps on near states: what is admitted, asked for, appended and forgotten.

Each is one step for all threads, and short: 0.1-0.3 us a state, mostly waits for memory; a flush is
one word. features/near_states.py says why what is held is never less than it should be.
Rule: what may not be admitted is not held afterwards; nothing is appended to what is not held.
"""

from __future__ import annotations

from typing import Final

from freshscore.features import near_ring as g
from freshscore.features import row as r
from freshscore.features.compiled import kernel
from freshscore.features.memory import i64, move, prefetch, put_i64, u64
from freshscore.features.request_kernels import is_summarised

# What `look` answers where the room is too small; else bits of the entities that are missing.
NO_ROOM: Final = -1
# A ticket, in bytes: the last step, the number of the table of what is known, its offsets then.
DRAWN_STEP: Final = 0
DRAWN_NUMBER: Final = 8
DRAWN_OFFSETS: Final = 16
# Topic digest, partition, offset, arrival: as a marker in features/redis_progress.py.
KNOWN_ROW: Final = 32
_OFFSET_AT: Final = 16
_SUMMARY_HEAD: Final = 32
_N_MARKERS: Final = 24

LAST_GENERATION: Final = 1 << 20
_AHEAD: Final = 8


@kernel
def _is_absent(token: int) -> bool:
    return i64(token) == 0 and i64(token + 8) == 0


@kernel
def draw(near: int, ticket: int, most: int) -> int:
    """Write a ticket, which has room for `most` offsets; how many it needs room for."""
    n = i64(near + g.N_KNOWN)
    if n > most:
        return n
    put_i64(ticket + DRAWN_STEP, i64(near + g.STEP))
    put_i64(ticket + DRAWN_NUMBER, i64(near + g.KNOWN_NUMBER))
    for i in range(n):
        offset = i64(i64(near + g.KNOWN) + KNOWN_ROW * i + _OFFSET_AT)
        put_i64(ticket + DRAWN_OFFSETS + 8 * i, offset)
    return n


@kernel
def admit(
    near: int, row: int, fetched: int, ticket: int, complete_since: int, now_s: int, options: int
) -> int:
    """Hold what an exchange brought of the entities of `row`; how many of them.

    fetched: for each entity address and length of its state, length -1 where it has none. ticket:
    drawn before the exchange was sent. options: bit 0, it vouches for what the follower knows; bit
    1, states that are not held are added. What may not be admitted is not held afterwards.
    """
    may_admit = options & 1 != 0 and i64(near + g.IS_OPEN) != 0
    step = i64(ticket + DRAWN_STEP)
    may_admit = may_admit and step >= i64(near + g.REFUSED_BEFORE)
    n_kept = 0
    for e in range(i64(near + g.N_ENTITIES)):
        token = row + r.TOKENS + 16 * e
        if _is_absent(token):
            continue
        low, high = u64(token), u64(token + 8)
        blob, length = i64(fetched + 16 * e), i64(fetched + 16 * e + 8)
        slot = g.sought(near, low, high)
        place = g.placed(near, slot)
        # Of what is folded early the request's own payment must be asked for each time.
        is_asked = is_summarised(blob, length)
        if not may_admit or is_asked or i64(g.note_of(near, high)) > step:
            g.count(near, g.NOT_ADMITTED, 1)
            if place != 0:
                g.drop_place(near, slot, place)
            continue
        if place != 0 and g.PLACE_HEAD + length <= i64(place + g.SIZE):
            g.fill(place, blob, length)
        elif place != 0 or options & 2 != 0:
            if place != 0:
                g.give_up(near, slot, place)
            place = g.add(near, e, low, high, blob, length)
            if place == 0:
                g.count(near, g.NOT_ADMITTED, 1)
        if place != 0:
            put_i64(place + g.SINCE, complete_since)
            put_i64(place + g.AT, now_s)
            g.count(near, g.ADMITTED, 1)
            n_kept += 1
    return n_kept


@kernel
def drop(near: int, row: int) -> None:
    """Forget the states of the entities of `row`."""
    for e in range(i64(near + g.N_ENTITIES)):
        token = row + r.TOKENS + 16 * e
        if not _is_absent(token):
            slot = g.sought(near, u64(token), u64(token + 8))
            place = g.placed(near, slot)
            if place != 0:
                g.drop_place(near, slot, place)


@kernel
def look(near: int, row: int, room: int, room_bytes: int, out: int, now_s: int) -> int:
    """Copy the states of all entities of `row` into `room`, if all are held.

    0; bits of the entities that are not held; or NO_ROOM. out: for each entity where its state
    begins in the room and its length, NO_STATE where it is absent or has none; then since when all
    are complete, ms; then the bytes of room that are needed.
    """
    n = i64(near + g.N_ENTITIES)
    table = i64(near + g.TABLE)
    for e in range(n):
        prefetch(table + 8 * g.home(near, u64(row + r.TOKENS + 16 * e)))
    missing, needed, since = 0, 0, 0
    for e in range(n):
        token = row + r.TOKENS + 16 * e
        put_i64(out + 16 * e, 0)
        put_i64(out + 16 * e + 8, g.NO_STATE)
        if _is_absent(token):
            continue
        slot = g.sought(near, u64(token), u64(token + 8))
        place = g.placed(near, slot)
        if place != 0 and now_s - i64(place + g.AT) > i64(near + g.MOST_AGE):
            g.drop_place(near, slot, place)
            place = 0
        if place == 0:
            missing |= 1 << e
            continue
        # Which place, until it is copied.
        put_i64(out + 16 * e, place)
        put_i64(out + 16 * e + 8, i64(place + g.LENGTH))
        needed += max(i64(place + g.LENGTH), 0)
        since = max(since, i64(place + g.SINCE))
        owner = i64(place + g.OWNER)
        if owner & g.USES < g.MOST_USES:
            put_i64(place + g.OWNER, owner + 1)
    put_i64(out + 16 * n, since)
    put_i64(out + 16 * n + 8, needed)
    if missing != 0:
        g.count(near, g.MISSES, 1)
        return missing
    if needed > room_bytes:
        return NO_ROOM
    at = 0
    for e in range(n):
        place, length = i64(out + 16 * e), i64(out + 16 * e + 8)
        put_i64(out + 16 * e, at)
        if length > 0:
            move(room + at, place + g.PLACE_HEAD, length)
            at += length
    g.count(near, g.HITS, 1)
    return 0


@kernel
def _append(near: int, slot: int, place: int, records: int, n_bytes: int) -> None:
    """Append records to a state that is held; drop one that has grown too much, or has no room."""
    length, whole = max(i64(place + g.LENGTH), 0), i64(place + g.WHOLE)
    grown = length + n_bytes
    # Compaction halves a state that has doubled; it is fetched anew then.
    if grown - whole > max(whole, i64(near + g.GROWTH)):
        g.drop_place(near, slot, place)
        return
    if g.PLACE_HEAD + grown > i64(place + g.SIZE):
        place = g.larger(near, place, grown)
        if place == 0:
            return
    move(place + g.PLACE_HEAD + length, records, n_bytes)
    put_i64(place + g.LENGTH, grown)
    g.count(near, g.APPENDED, 1)


@kernel
def apply(near: int, data: int, groups: int, first: int, last: int) -> None:
    """Append the groups `first` to `last` of a message to what is held; note them all.

    groups: five words each, as invalidation/stream_messages.py has them; data: where the message
    begins. A group without records: the state was replaced, and what is held of it is too old.
    """
    put_i64(near + g.STEP, i64(near + g.STEP) + 1)
    step = i64(near + g.STEP)
    table, block = i64(near + g.TABLE), i64(near + g.BLOCK)
    generation = i64(near + g.GENERATION)
    for i in range(first, last):
        group = groups + 40 * i
        # In two stages: a slot, and when it is there the place that it names.
        if i + _AHEAD < last:
            ahead = group + 40 * _AHEAD
            prefetch(table + 8 * g.home(near, u64(ahead + 8)))
            prefetch(g.note_of(near, u64(ahead + 16)))
        if i + _AHEAD // 2 < last:
            word = i64(table + 8 * g.home(near, u64(group + 20 * _AHEAD + 8)))
            if word >> g.OFFSET_BITS == generation:
                prefetch(block + (word & g.OFFSET))
        entity, n = i64(group), i64(group + 24)
        low, high = u64(group + 8), u64(group + 16)
        put_i64(g.note_of(near, high), step)
        slot = g.sought(near, low, high)
        place = g.placed(near, slot)
        if place != 0 and n == 0:
            g.drop_place(near, slot, place)
        elif place != 0:
            width = i64(i64(near + g.WIDTHS) + 8 * entity)
            _append(near, slot, place, data + i64(group + 32), n * width)


@kernel
def flush(near: int, is_open: int) -> None:
    """Forget everything, and admit nothing that was asked for before; whether to admit from now."""
    put_i64(near + g.STEP, i64(near + g.STEP) + 1)
    put_i64(near + g.REFUSED_BEFORE, i64(near + g.STEP))
    put_i64(near + g.IS_OPEN, is_open)
    g.count(near, g.DROPPED, i64(near + g.HELD))
    g.count(near, g.FLUSHES, 1)
    for at in (g.TAIL, g.HEAD, g.LIVE, g.HELD):
        put_i64(near + at, 0)
    put_i64(near + g.GENERATION, i64(near + g.GENERATION) + 1)
    if i64(near + g.GENERATION) == LAST_GENERATION:
        # A slot of a former generation must never be one of this generation.
        for at in range(i64(near + g.TABLE_MASK) + 1):
            put_i64(i64(near + g.TABLE) + 8 * at, 0)
        put_i64(near + g.GENERATION, 1)


@kernel
def vouches(near: int, summary: int, n_bytes: int, ticket: int) -> int:
    """Whether a node's summary says that it holds all that was known when `ticket` was drawn.

    A node that has lost what followers were told of, in a failover, does not.
    """
    n = i64(near + g.N_KNOWN)
    if n == 0 or i64(ticket + DRAWN_NUMBER) != i64(near + g.KNOWN_NUMBER):
        return 0
    if n_bytes != _SUMMARY_HEAD + KNOWN_ROW * n:
        return 0
    if i64(summary) == 0 or i64(summary + _N_MARKERS) != n:
        return 0
    known = i64(near + g.KNOWN)
    marker = summary + _SUMMARY_HEAD
    for i in range(n):
        at = KNOWN_ROW * i
        if i64(marker + at) != i64(known + at) or i64(marker + at + 8) != i64(known + at + 8):
            return 0
        if i64(marker + at + _OFFSET_AT) < i64(ticket + DRAWN_OFFSETS + 8 * i):
            return 0
    return 1
