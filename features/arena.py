"""The arena: one block of memory, reserved whole and touched as it fills, for all segments.

A segment holds one entity's records. The arena is cut into regions; new segments go to the end of
the current region, and a segment that has grown leaves its old place behind. When a new region is
wanted and a tenth of the used memory is such waste, the region with the most of it is cleaned: its
live segments move to the new region, and it is free again. So memory stays within a tenth of what
is live, at a cost of a few bytes moved for each byte freed; nothing is ever scattered.
Source: Rumble, Kejriwal, Ousterhout, "Log-structured memory for DRAM-based storage" (2014).

A segment begins with two words: its owner (entity << 32 | number, or FREE), its bytes.
A segment larger than half a region gets a run of whole regions, and is never moved by cleaning.
Rule: only `reserve` may return NO_ROOM, and it does so before anything was changed.
"""

from __future__ import annotations

from typing import Final

from freshscore.features.compiled import kernel
from freshscore.features.memory import i64, move, put_i64

# The arena's head, in bytes from its address.
BASE: Final = 0
REGION_BYTES: Final = 8
N_REGIONS: Final = 16
STATES: Final = 24  # address: live bytes of each region, or REGION_FREE
CURRENT: Final = 32
BUMP: Final = 40
LIVE: Final = 48  # bytes of live segments
USED: Final = 56  # regions that are not free
ARENA_HEAD_WORDS: Final = 8

REGION_FREE: Final = -1
# A region of a run, which one large segment has alone: cleaning must never walk it.
REGION_OF_RUN: Final = -2
FREE: Final = -1
SEGMENT_HEAD: Final = 16

NO_ROOM: Final = -1


@kernel
def _free_run(arena: int, n: int) -> int:
    """The first of `n` neighbouring free regions, or NO_ROOM."""
    states = i64(arena + STATES)
    run = 0
    for region in range(i64(arena + N_REGIONS)):
        run = run + 1 if i64(states + 8 * region) == REGION_FREE else 0
        if run == n:
            return region - n + 1
    return NO_ROOM


@kernel
def _region_of(arena: int, address: int) -> int:
    return (address - i64(arena + BASE)) // i64(arena + REGION_BYTES)


@kernel
def release(arena: int, segment: int) -> None:
    """Give a segment's bytes back."""
    size = i64(segment + 8)
    put_i64(segment, FREE)
    put_i64(arena + LIVE, i64(arena + LIVE) - size)
    states = i64(arena + STATES)
    region = _region_of(arena, segment)
    state = states + 8 * region
    region_bytes = i64(arena + REGION_BYTES)
    if size > region_bytes // 2:
        for inner in range((size + region_bytes - 1) // region_bytes):
            put_i64(state + 8 * inner, REGION_FREE)
            put_i64(arena + USED, i64(arena + USED) - 1)
        return
    put_i64(state, i64(state) - size)
    if i64(state) == 0 and region != i64(arena + CURRENT):
        put_i64(state, REGION_FREE)
        put_i64(arena + USED, i64(arena + USED) - 1)


@kernel
def _large(arena: int, size: int) -> int:
    region_bytes = i64(arena + REGION_BYTES)
    n = (size + region_bytes - 1) // region_bytes
    first = _free_run(arena, n)
    if first == NO_ROOM:
        return NO_ROOM
    states = i64(arena + STATES)
    for region in range(first, first + n):
        put_i64(states + 8 * region, REGION_OF_RUN)
    put_i64(arena + USED, i64(arena + USED) + n)
    return i64(arena + BASE) + first * region_bytes


@kernel
def _fits(arena: int, size: int) -> bool:
    region_bytes = i64(arena + REGION_BYTES)
    current = i64(arena + CURRENT)
    end = i64(arena + BASE) + (current + 1) * region_bytes
    return current >= 0 and i64(arena + BUMP) + size <= end


@kernel
def take(arena: int, owner: int, size: int) -> int:
    """A segment of `size` bytes (a multiple of 8, head included) for `owner`, or NO_ROOM.

    Never moves another segment; `cleaning_is_due` and `dirtiest` say when that should happen.
    """
    region_bytes = i64(arena + REGION_BYTES)
    states = i64(arena + STATES)
    if size > region_bytes // 2:
        segment = _large(arena, size)
        if segment == NO_ROOM:
            return NO_ROOM
    else:
        if not _fits(arena, size) and not open_region(arena):
            return NO_ROOM
        segment = i64(arena + BUMP)
        put_i64(arena + BUMP, segment + size)
        state = states + 8 * i64(arena + CURRENT)
        put_i64(state, i64(state) + size)
    put_i64(segment, owner)
    put_i64(segment + 8, size)
    put_i64(arena + LIVE, i64(arena + LIVE) + size)
    return segment


@kernel
def open_region(arena: int) -> bool:
    """Make a free region the current one; False if there is none."""
    region = _free_run(arena, 1)
    if region == NO_ROOM:
        return False
    states = i64(arena + STATES)
    old = i64(arena + CURRENT)
    if old >= 0:
        # The end of a region that nothing fits into: a free segment, so that it can be walked.
        _close(arena, old)
        if i64(states + 8 * old) == 0:
            put_i64(states + 8 * old, REGION_FREE)
            put_i64(arena + USED, i64(arena + USED) - 1)
    put_i64(states + 8 * region, 0)
    put_i64(arena + CURRENT, region)
    put_i64(arena + BUMP, i64(arena + BASE) + region * i64(arena + REGION_BYTES))
    put_i64(arena + USED, i64(arena + USED) + 1)
    return True


@kernel
def _close(arena: int, region: int) -> None:
    bump = i64(arena + BUMP)
    end = i64(arena + BASE) + (region + 1) * i64(arena + REGION_BYTES)
    if bump + SEGMENT_HEAD <= end:
        put_i64(bump, FREE)
        put_i64(bump + 8, end - bump)
    elif bump < end:
        put_i64(bump, FREE)


@kernel
def cleaning_is_due(arena: int, size: int) -> bool:
    """Whether a segment of `size` bytes would open a region while a tenth of the arena is waste."""
    if _fits(arena, size):
        return False
    used = i64(arena + USED) * i64(arena + REGION_BYTES)
    return used - i64(arena + LIVE) > used // 10


@kernel
def dirtiest(arena: int) -> int:
    """The closed region with the fewest live bytes, if a tenth of it is waste; or NO_ROOM."""
    states = i64(arena + STATES)
    region_bytes = i64(arena + REGION_BYTES)
    best = NO_ROOM
    least = region_bytes - region_bytes // 10
    current = i64(arena + CURRENT)
    for region in range(i64(arena + N_REGIONS)):
        live = i64(states + 8 * region)
        if live >= 0 and live < least and region != current:
            best = region
            least = live
    return best


@kernel
def next_segment(arena: int, region: int, segment: int) -> int:
    """The first live segment of `region` at or after `segment` (0: from the beginning), or 0."""
    region_bytes = i64(arena + REGION_BYTES)
    start = i64(arena + BASE) + region * region_bytes
    end = start + region_bytes
    at = start if segment == 0 else segment
    while at + SEGMENT_HEAD <= end:
        if i64(at) != FREE:
            return at
        at += i64(at + 8)
    return 0


@kernel
def copied(arena: int, segment: int, size: int, used: int) -> int:
    """A new segment of `size` bytes with the first `used` bytes of an old one, or NO_ROOM.

    The old one is released.
    """
    target = take(arena, i64(segment), size)
    if target == NO_ROOM:
        return NO_ROOM
    move(target + SEGMENT_HEAD, segment + SEGMENT_HEAD, used)
    release(arena, segment)
    return target
