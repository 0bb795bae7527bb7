"""Reading decoded states: the feature vector of one transaction from states that came as bytes.

Records are scanned as those of the memory store are, tiles are added, and the same finishing
function ends it, so the bits are those of a store which holds the same set.
Rule: reading changes no state; a request whose own time is below F of a grid state is refused,
since its own event may lie in a tile, where it cannot be told from the others; so is one for an
instant before S, for a tile may hold what came later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from freshscore.config.errors import AsOfTooOld
from freshscore.features import program as p
from freshscore.features import row as r
from freshscore.features.compiled import kernel
from freshscore.features.decoded_state import DecodedState
from freshscore.features.evaluation import (
    NEVER,
    mark_absent,
    next_known,
    scan_last,
    scan_span,
    scratch_for,
)
from freshscore.features.finishing import finished
from freshscore.features.memory import BYTES_AT, address_of, i64, put_i64, put_u64, u64
from freshscore.features.program import Program
from freshscore.features.reading_tiles import add_tiles

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
                _check_time(state, own_ms, as_of_ms)
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


def _check_time(state: DecodedState, own_ms: int, as_of_ms: int) -> None:
    if own_ms < state.folded_below_ms:
        raise AsOfTooOld(
            f"the payment's time is {own_ms}; entity {state.layout.name!r} is folded below"
            f" {state.folded_below_ms}, and history answers what is older"
        )
    if as_of_ms < state.summarised_below_ms:
        raise AsOfTooOld(
            f"as_of is {as_of_ms}; entity {state.layout.name!r} has so many events that those below"
            f" {state.summarised_below_ms} are sums by now, and history answers what is older"
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
        add_tiles(span, layout, i64(state + 8 * _TILES), n_tiles, as_of, slots, mine)


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
