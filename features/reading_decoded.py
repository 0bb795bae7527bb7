"""Reading decoded states: the feature vector of one transaction from states that came as bytes.

Records are scanned as those of the memory store are, tiles are added, and the same finishing
function ends it, so the bits are those of a store which holds the same set.
Rule: reading changes no state; a request whose own time is below F of a grid state is refused,
since its own event may lie in a tile, where it cannot be told from the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from freshscore.config.errors import AsOfTooOld
from freshscore.features import program as p
from freshscore.features import row as r
from freshscore.features import state_layout as s
from freshscore.features.compiled import kernel
from freshscore.features.decoded_state import DecodedState
from freshscore.features.evaluation import (
    NEVER,
    mark_absent,
    next_change,
    next_known,
    scan_last,
    scan_span,
    scratch_for,
    window_end,
    window_start,
)
from freshscore.features.finishing import finished
from freshscore.features.folding import tiles_before
from freshscore.features.memory import BYTES_AT, address_of, i64, put_i64, put_u64, u64
from freshscore.features.program import Program

# Words of one entity's part of the table that the kernel reads; the first is the records' address.
_N_RECORDS: Final = 1
_WIDTH: Final = 2
_LAYOUT: Final = 3
_TILES: Final = 4
_N_TILES: Final = 5
_STATE: Final = 6
_MEMBERS: Final = 4
_FIRST_RECORDS: Final = 1_024


class DecodedReader:
    """Evaluates decoded states for one program, with scratch of its own."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._widths = [8 * layout.words for layout in program.entities]
        self._table = np.zeros((max(1, len(program.entities)), _STATE), np.int64)
        self._make_room(_FIRST_RECORDS)

    def features(
        self, states: Sequence[DecodedState | None], row: bytes, as_of_ms: int
    ) -> tuple[NDArray[np.float64], int]:
        """The features of the transaction in `row` at `as_of_ms`, float64[n_columns].

        And the first later instant at which time alone can change a window; NEVER if none can.
        states: for each entity of the program, in order; None for one that has no state, or is
        absent from the transaction. Raises AsOfTooOld.
        """
        own_ms = int.from_bytes(row[r.TIME : r.TIME + 8], "little", signed=True)
        most = max((state.records.n for state in states if state is not None), default=0)
        if most > self._room:
            self._make_room(2 * most)
        for entity, state in enumerate(states):
            if state is None:
                self._table[entity] = (0, 0, self._widths[entity], 0, 0, 0)
            else:
                _check_time(state, own_ms)
                self._table[entity] = _described(state)
        out = bytes(8 * self.program.n_columns)
        code, table, scratch = self._addresses
        change = _read(code, table, id(row) + BYTES_AT, as_of_ms, scratch, id(out) + BYTES_AT)
        return np.frombuffer(out, np.float64), change

    def _make_room(self, n_records: int) -> None:
        """Scratch for states of up to so many records."""
        self._room = n_records
        self._scratch = scratch_for(self.program, _MEMBERS, n_records)
        self._addresses = tuple(
            address_of(x) for x in (self.program.code, self._table, self._scratch)
        )


def _check_time(state: DecodedState, own_ms: int) -> None:
    if own_ms < state.folded_below_ms:
        raise AsOfTooOld(
            f"the payment's time is {own_ms}; entity {state.layout.name!r} is folded below"
            f" {state.folded_below_ms}, and history answers what is older"
        )


def _described(state: DecodedState) -> tuple[int, ...]:
    return (
        state.records.address,
        state.records.n,
        state.layout.width,
        state.layout.address,
        state.tiles.address,
        state.tiles.n,
    )


@kernel
def _is_absent(row: int, entity: int) -> bool:
    token = row + r.TOKENS + 16 * entity
    return i64(token) == 0 and i64(token + 8) == 0


@kernel
def _gather_members(code: int, row: int, entity: int, members: int) -> None:
    """Put the transaction's identities as the members of an entity's records into `members`."""
    identities = row + r.TOKENS + 16 * i64(code + 8 * p.N_ENTITIES)
    numbers = code + 8 * (i64(code + 8 * p.MEMBERS_AT) + 4 * entity)
    for m in range(4):
        number = i64(numbers + 8 * m)
        put_u64(members + 8 * m, u64(identities + 8 * number) if number >= 0 else np.uint64(0))


@kernel
def _read(code: int, table: int, row: int, as_of: int, scratch: int, out: int) -> int:
    slots = scratch + 8 * _MEMBERS
    last = slots + 8 * i64(code + 8 * p.N_SLOTS) * p.SLOT
    changes = last + 8 * i64(code + 8 * p.N_LASTS) * p.LAST
    span = code + 8 * i64(code + 8 * p.SPANS_AT)
    for _ in range(i64(code + 8 * p.N_SPANS)):
        _read_span(code, span, table, row, as_of, scratch, slots, changes)
        span += 8 * i64(span + 8 * p.SPAN_NEXT)
    described = code + 8 * i64(code + 8 * p.LASTS_AT)
    for _ in range(i64(code + 8 * p.N_LASTS)):
        _read_last(code, described, table, row, scratch, last)
        last += 8 * p.LAST
        described += 32
    finished(code, slots, row, out)
    change = NEVER
    for k in range(i64(code + 8 * p.N_WINDOWS)):
        change = min(change, i64(changes + 8 * k))
    return change


@kernel
def _read_span(
    code: int, span: int, table: int, row: int, as_of: int, members: int, slots: int, changes: int
) -> None:
    entity = i64(span + 8 * p.SPAN_ENTITY)
    work = changes + 8 * i64(code + 8 * p.N_WINDOWS)
    mine = changes + 8 * i64(span + 8 * p.SPAN_FIRST_WINDOW)
    n_windows = i64(span + 8 * p.SPAN_N_WINDOWS)
    if _is_absent(row, entity):
        mark_absent(span, slots)
        for k in range(n_windows):
            put_i64(mine + 8 * k, NEVER)
        return
    _gather_members(code, row, entity, members)
    state = table + 8 * _STATE * entity
    records = i64(state)
    n = i64(state + 8 * _N_RECORDS)
    width = i64(state + 8 * _WIDTH)
    scan_span(span, records, n, width, row, members, as_of, slots, mine, work)
    if i64(span + 8 * p.SPAN_WANTS) & p.WANT_FACTS:
        known = next_known(records, n, width, as_of)
        for k in range(n_windows):
            put_i64(mine + 8 * k, min(i64(mine + 8 * k), known))
    n_tiles = i64(state + 8 * _N_TILES)
    if n_tiles > 0:
        layout = i64(state + 8 * _LAYOUT)
        _add_tiles(span, layout, i64(state + 8 * _TILES), n_tiles, as_of, slots, mine)


@kernel
def _read_last(code: int, described: int, table: int, row: int, members: int, last: int) -> None:
    entity = i64(described)
    if _is_absent(row, entity):
        put_i64(last, p.ABSENT)
        return
    _gather_members(code, row, entity, members)
    state = table + 8 * _STATE * entity
    scan_last(
        last,
        i64(described + 8),
        i64(described + 16),
        i64(state),
        i64(state + 8 * _N_RECORDS),
        i64(state + 8 * _WIDTH),
        row,
        members,
        i64(code + 8 * p.REACH_MS),
    )


@kernel
def _condition_number(layout: int, condition: int) -> int:
    conditions = layout + 8 * s.CONDITIONS
    for c in range(i64(layout + 8 * s.N_CONDITIONS)):
        if i64(conditions + 8 * c) == condition:
            return c
    return -1


@kernel
def _add_tiles(
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
        last = tiles_before(tiles, n_tiles, layout, end + 1)
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
