"""Folding a grid entity: whole steps below an instant F become sums, and no value changes.

Lines. A window of delay d, length W and step s begins and ends on multiples of s, and for every
`as_of` from F on none of them lies before b = floor(F - d - W). So for each window the multiples of
its s from its b on can still matter, and no other instant can. The events after one such line (of
any window) up to the next are in the same windows for ever: they are one tile, named by the line
that it ends at. As F moves on, the lines of short windows fall away and old tiles melt together, so
a state has about 1 / resolution tiles for each window, however many events it has.
Layout of a tile, in words: its line (ms); then for each condition of the entity's windows: count,
sum, the three limbs of squares where a std is wanted, a count for each fact where facts are read.
Cost: one pass over tiles and records; reading adds every tile once for each window that holds it.

What is folded: an event below F, unless the entity's windows read facts and it has one. Flags known
with the event are known at F and count in the tile. Facts stay as they are: their identity is
needed until their event has left every window.
Early: events from F on may be folded too, up to an instant S, for readers whose `as_of` is not
before S: then a window that has no delay holds all events of the tile that its end lies in, however
far that tile's line lies ahead. Repetitions of them may still come.
What is folded is handed out where that has to be known again (features/past_events.py): a fact that
comes after its event was folded, and a request for a payment that is in a tile, need the event's
content to be taken out again.
Source: tiles of several lengths, as in Airbnb's Chronon; here they follow from the windows' lines.
Rule: folding and taking out are exact, since grids have sums only: everything can be subtracted.
"""

from __future__ import annotations

from typing import Final

from freshscore.features import layout as rec
from freshscore.features import state_layout as s
from freshscore.features.blocks import meets
from freshscore.features.compiled import kernel
from freshscore.features.evaluation import window_start
from freshscore.features.memory import i64, move, put_i64, u64
from freshscore.features.uniting import is_fact

NO_LINE: Final = 2**62


@kernel
def _windows(layout: int) -> int:
    return layout + 8 * (s.CONDITIONS + i64(layout + 8 * s.N_CONDITIONS))


@kernel
def line_of(layout: int, time: int, fold_below: int) -> int:
    """The line at which the tile with events of `time` ends, for readers from `fold_below` on."""
    window = _windows(layout)
    nearest = NO_LINE
    for _ in range(i64(layout + 8 * s.N_WINDOWS)):
        step = i64(window + 16)
        first = window_start(fold_below, i64(window), step, i64(window + 8))
        line = (time + step - 1) // step * step
        nearest = min(nearest, max(line, first))
        window += 8 * s.WINDOW
    return nearest


@kernel
def reached_from(layout: int, fold_below: int) -> int:
    """The instant after which a window of a reader from `fold_below` on can begin."""
    window = _windows(layout)
    nearest = NO_LINE
    for _ in range(i64(layout + 8 * s.N_WINDOWS)):
        first = window_start(fold_below, i64(window), i64(window + 16), i64(window + 8))
        nearest = min(nearest, first)
        window += 8 * s.WINDOW
    return nearest


@kernel
def _put_event(layout: int, tile: int, record: int, sign: int) -> int:
    """Add an event to a tile (sign 1) or take it out (-1); the smallest count that was met."""
    amount = i64(record + rec.CONTENT) >> 16
    bits = i64(record + rec.CONTENT) & 0xFFFF
    facts = i64(record + rec.TIME) & 0xFF
    sums = tile + 8
    conditions = layout + 8 * s.CONDITIONS
    least = NO_LINE
    for c in range(i64(layout + 8 * s.N_CONDITIONS)):
        if meets(i64(conditions + 8 * c), bits, facts):
            least = min(least, _put_amount(layout, sums, amount, facts, sign))
        sums += 8 * i64(layout + 8 * s.CONDITION_WORDS)
    return least


@kernel
def _put_amount(layout: int, sums: int, amount: int, facts: int, sign: int) -> int:
    put_i64(sums, i64(sums) + sign)
    put_i64(sums + 8, i64(sums + 8) + sign * amount)
    at = sums + 16
    if i64(layout + 8 * s.HAS_SQUARES):
        upper = amount >> 20
        lower = amount & 0xFFFFF
        put_i64(at, i64(at) + sign * upper * upper)
        put_i64(at + 8, i64(at + 8) + sign * upper * lower)
        put_i64(at + 16, i64(at + 16) + sign * lower * lower)
        at += 24
    for f in range(i64(layout + 8 * s.N_FACTS)):
        put_i64(at + 8 * f, i64(at + 8 * f) + sign * ((facts >> f) & 1))
    return i64(sums)


@kernel
def _open_tile(layout: int, tiles: int, n: int, line: int) -> int:
    """How many tiles there are once the last one ends at `line`."""
    size = 8 * i64(layout + 8 * s.TILE_WORDS)
    if n > 0 and i64(tiles + (n - 1) * size) == line:
        return n
    for at in range(tiles + n * size, tiles + (n + 1) * size, 8):
        put_i64(at, 0)
    put_i64(tiles + n * size, line)
    return n + 1


@kernel
def has_facts(records: int, n: int, width: int, i: int) -> bool:
    """Whether facts of the event at index `i` follow it."""
    if i + 1 >= n:
        return False
    record = records + i * width
    after = record + width
    return (
        is_fact(after)
        and u64(after) == u64(record)
        and i64(after + rec.TIME) >> 16 == i64(record + rec.TIME) >> 16
    )


@kernel
def _is_folded(layout: int, records: int, n: int, i: int, below: int) -> bool:
    width = i64(layout + 8 * s.WIDTH)
    record = records + i * width
    if i64(record + rec.TIME) >> 16 >= below or is_fact(record):
        return False
    return not (i64(layout + 8 * s.READS_FACTS) and has_facts(records, n, width, i))


@kernel
def folded(
    layout: int,
    records: int,
    n: int,
    tiles: int,
    n_tiles: int,
    fold_below: int,
    below: int,
    kept: int,
    gone: int,
    out: int,
    sizes: int,
) -> None:
    """Fold sorted records and tiles for readers from `fold_below` on, and events up to `below`.

    below: not before fold_below. kept, gone: room for n records each: those that stay, and the
    events that were folded. out: room for n + n_tiles tiles. sizes: 3 words: how many records were
    kept, how many are gone, how many tiles there are.
    """
    width = i64(layout + 8 * s.WIDTH)
    size = 8 * i64(layout + 8 * s.TILE_WORDS)
    from_line = reached_from(layout, fold_below)
    n_kept = 0
    n_gone = 0
    n_out = 0
    old = 0
    for i in range(n):
        record = records + i * width
        if not _is_folded(layout, records, n, i, below):
            move(kept + n_kept * width, record, width)
            n_kept += 1
            continue
        line = line_of(layout, i64(record + rec.TIME) >> 16, fold_below)
        while old < n_tiles and line_of(layout, i64(tiles + old * size), fold_below) <= line:
            n_out = _melt(layout, tiles + old * size, fold_below, from_line, out, n_out)
            old += 1
        if line > from_line:
            n_out = _open_tile(layout, out, n_out, line)
            _put_event(layout, out + (n_out - 1) * size, record, 1)
        move(gone + n_gone * width, record, width)
        n_gone += 1
    while old < n_tiles:
        n_out = _melt(layout, tiles + old * size, fold_below, from_line, out, n_out)
        old += 1
    put_i64(sizes, n_kept)
    put_i64(sizes + 8, n_gone)
    put_i64(sizes + 16, n_out)


@kernel
def _melt(layout: int, tile: int, fold_below: int, from_line: int, out: int, n_out: int) -> int:
    """Add an old tile to the new ones, unless no window can reach it; how many those are then."""
    line = line_of(layout, i64(tile), fold_below)
    size = 8 * i64(layout + 8 * s.TILE_WORDS)
    if line <= from_line or _is_empty(tile, size):
        return n_out
    n_out = _open_tile(layout, out, n_out, line)
    target = out + (n_out - 1) * size
    for at in range(8, size, 8):
        put_i64(target + at, i64(target + at) + i64(tile + at))
    return n_out


@kernel
def _is_empty(tile: int, size: int) -> bool:
    # All that was in it may have been taken out again.
    bits = 0
    for at in range(tile + 8, tile + size, 8):
        bits |= i64(at)
    return bits == 0


@kernel
def tiles_before(tiles: int, n: int, layout: int, line: int) -> int:
    """How many of the sorted tiles end before the instant `line`."""
    size = 8 * i64(layout + 8 * s.TILE_WORDS)
    for i in range(n):
        if i64(tiles + i * size) >= line:
            return i
    return n


@kernel
def without_event(records: int, n: int, width: int, before: int, out: int) -> int:
    """How many payments have facts before the instant `before`, and no event beside them.

    out: room for n words, which become the index of the first fact of each; or 0.
    """
    found = 0
    last = -1
    for i in range(n):
        record = records + i * width
        if i64(record + rec.TIME) >> 16 >= before:
            break
        if is_fact(record) and not (last >= 0 and _same_payment(records + last * width, record)):
            if out != 0:
                put_i64(out + 8 * found, i)
            found += 1
        last = i
    return found


@kernel
def _same_payment(left: int, right: int) -> bool:
    return u64(left) == u64(right) and i64(left + rec.TIME) >> 16 == i64(right + rec.TIME) >> 16


@kernel
def are_taken_out(
    layout: int, events: int, n: int, tiles: int, n_tiles: int, fold_below: int
) -> bool:
    """Take `n` folded events out of their tiles; False if a tile has not what is to be taken."""
    width = i64(layout + 8 * s.WIDTH)
    size = 8 * i64(layout + 8 * s.TILE_WORDS)
    from_line = reached_from(layout, fold_below)
    for event in range(events, events + n * width, width):
        line = line_of(layout, i64(event + rec.TIME) >> 16, fold_below)
        if line <= from_line:
            continue
        tile = tiles + tiles_before(tiles, n_tiles, layout, line) * size
        if tile == tiles + n_tiles * size or i64(tile) != line:
            return False
        if _put_event(layout, tile, event, -1) < 0:
            return False
    return True
