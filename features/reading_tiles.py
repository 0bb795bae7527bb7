"""Adding the tiles of a folded state to windows that were filled from its records.

Tiles hold what windows of the entity count, by condition (features/folding.py), so adding them
gives the very sums that their events would have given.
Rule: no tile is partly inside a window; the lines at which tiles end see to that, and that nobody
is answered for an instant before what is folded.
"""

from __future__ import annotations

from freshscore.features import program as p
from freshscore.features import state_layout as s
from freshscore.features.compiled import kernel
from freshscore.features.evaluation import NEVER, next_change, window_end, window_start
from freshscore.features.folding import tiles_before
from freshscore.features.memory import i64, put_i64


@kernel
def _condition_number(layout: int, condition: int) -> int:
    conditions = layout + 8 * s.CONDITIONS
    for c in range(i64(layout + 8 * s.N_CONDITIONS)):
        if i64(conditions + 8 * c) == condition:
            return c
    return -1


@kernel
def add_tiles(
    span: int, layout: int, tiles: int, n_tiles: int, as_of: int, slots: int, changes: int
) -> None:
    """Add the tiles to the slots of one span, which were filled from the records.

    changes: the next change of each window by time alone; the tiles may bring it nearer.
    """
    size = 8 * i64(layout + 8 * s.TILE_WORDS)
    delay = i64(span + 8 * p.SPAN_DELAY)
    n_conditions = i64(span + 8 * p.SPAN_N_CONDITIONS)
    window = span + 8 * (p.SPAN_FIXED + n_conditions)
    for k in range(i64(span + 8 * p.SPAN_N_WINDOWS)):
        step = i64(window + 8)
        end = window_end(as_of, delay, step)
        start = window_start(as_of, delay, step, i64(window))
        first = tiles_before(tiles, n_tiles, layout, start + 1)
        # All that is folded happened before `as_of`, wherever the line of the last tile lies.
        last = n_tiles if delay == 0 else tiles_before(tiles, n_tiles, layout, end + 1)
        for tile in range(tiles + first * size, tiles + last * size, size):
            _add_tile(span, layout, tile, window, slots)
        oldest = i64(tiles + first * size) if first < last else NEVER
        newcomer = i64(tiles + last * size) if last < n_tiles else NEVER
        change = next_change(oldest, newcomer, NEVER, as_of, delay, step, i64(window))
        put_i64(changes + 8 * k, min(i64(changes + 8 * k), change))
        window += 16 + 16 * n_conditions


@kernel
def _add_tile(span: int, layout: int, tile: int, window: int, slots: int) -> None:
    for c in range(i64(span + 8 * p.SPAN_N_CONDITIONS)):
        number = _condition_number(layout, i64(span + 8 * (p.SPAN_FIXED + c)))
        sums = tile + 8 + 8 * number * i64(layout + 8 * s.CONDITION_WORDS)
        for current in range(2):
            slot = i64(window + 16 + 8 * (2 * c + current))
            if slot >= 0:
                _add_sums(layout, sums, slots + 8 * p.SLOT * slot)


@kernel
def _add_sums(layout: int, sums: int, slot: int) -> None:
    put_i64(slot, i64(slot) + i64(sums))
    put_i64(slot + 8 * p.SUM, i64(slot + 8 * p.SUM) + i64(sums + 8))
    at = sums + 16
    if i64(layout + 8 * s.HAS_SQUARES):
        for word in range(3):
            target = slot + 8 * (p.SQUARES_HIGH + word)
            put_i64(target, i64(target) + i64(at + 8 * word))
        at += 24
    for f in range(i64(layout + 8 * s.N_FACTS)):
        target = slot + 8 * (p.FACT_COUNTS + f)
        put_i64(target, i64(target) + i64(at + 8 * f))
