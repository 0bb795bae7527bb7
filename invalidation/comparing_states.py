"""Whether a stored state is the one that the log gives: the same records, sums and version.

The log's records are brought into the same form first (folded and forgotten up to the same
instants), so that what is compared are values, never the way to them. What happened before the log
began, or came with a backfill, is left out of both.
Rule: "equal" is said of what was compared; what could not be is said to be so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np

from freshscore.config.errors import DamagedState
from freshscore.features import layout as rec
from freshscore.features.codec import compacted, decode, settled
from freshscore.features.decoded_state import DecodedState
from freshscore.features.folding import line_of
from freshscore.features.past_events import Past
from freshscore.features.state_layout import StateLayout

EQUAL: Final = "equal"
# Events of it came while it was compared, so neither set is the one to compare with.
MOVING: Final = "moving"
DAMAGED: Final = "damaged"
MISSING: Final = "records of the log are missing"
EXTRA: Final = "records that the log does not have"
TILES: Final = "sums of what was folded differ"
VERSION: Final = "versions differ"
AGGREGATES: Final = "aggregates differ"

_NEVER: Final = 2**62


class Compared(NamedTuple):
    """What came of one state: a word of the above, and the numbers of records on either side."""

    verdict: str
    n_stored: int
    n_of_log: int


class Stored(NamedTuple):
    """What Redis holds of one state: its bytes, and what they ask of what was folded."""

    layout: StateLayout
    blob: bytes
    past: Past


class FromLog(NamedTuple):
    """The records of the log which a state must hold, and which it may hold.

    Before erased_below_ms everything must be erased, before may_be_erased_below_ms it may be.
    """

    must: bytes
    may: bytes
    erased_below_ms: int = 0
    may_be_erased_below_ms: int = 0


class Bounds(NamedTuple):
    """log_from_ms: what is from then on is in the log, 0: everything. held_from_ms: what was before
    then may have been forgotten, state and all.
    """

    log_from_ms: int
    held_from_ms: int


# The aggregates of a state, at an instant that is the same for all.
Evaluated = Callable[[DecodedState | None], Mapping[str, float]]


def compared(held: Stored, log: FromLog, bounds: Bounds, evaluated: Evaluated) -> Compared:
    """Compare what Redis holds with what the log gives."""
    layout = held.layout
    try:
        stored = settled(decode(held.blob, layout, held.past)) if held.blob else None
    except DamagedState:
        return Compared(DAMAGED, 0, len(log.must) // layout.width)
    log = _without_erased(log, stored, layout)
    must = _like(stored, log.must, layout)
    may = _like(stored, log.must + log.may, layout) if log.may else must
    line_ms = 0
    if bounds.log_from_ms or _oldest(log, layout) < bounds.held_from_ms:
        line_ms = max(bounds.log_from_ms, bounds.held_from_ms)
    numbers = len(_records(stored, line_ms)), len(_records(must, line_ms))
    for verdict in _differences(stored, must, may, line_ms):
        return Compared(verdict, *numbers)
    if line_ms == 0:
        same = next((one for one in (must, may) if _is_same(stored, one)), stored)
        if same is stored and stored is not None:
            return Compared(MOVING if log.may else VERSION, *numbers)
        if not _equal(evaluated(stored), evaluated(same)):
            return Compared(AGGREGATES, *numbers)
    return Compared(EQUAL, *numbers)


def _without_erased(log: FromLog, stored: DecodedState | None, layout: StateLayout) -> FromLog:
    """The records that were not ordered to be erased, as far as `stored` has carried it out."""
    line_ms = log.erased_below_ms
    if stored is not None and stored.forgotten_below_ms >= log.may_be_erased_below_ms:
        line_ms = max(line_ms, log.may_be_erased_below_ms)
    if not line_ms:
        return log
    return FromLog(_from(log.must, line_ms, layout), _from(log.may, line_ms, layout))


def _from(records: bytes, line_ms: int, layout: StateLayout) -> bytes:
    words = np.frombuffer(records, np.int64).reshape(-1, layout.width // 8)
    return words[words[:, rec.TIME // 8] >> 16 >= line_ms].tobytes()


def _oldest(log: FromLog, layout: StateLayout) -> int:
    """The time of the oldest event of the log's records, ms."""
    words = np.frombuffer(log.must + log.may, np.int64).reshape(-1, layout.width // 8)
    return int(words[:, rec.TIME // 8].min() >> 16) if len(words) else _NEVER


def _equal(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    left, right = np.array([*one.values()]), np.array([*other.values()])
    return bool(np.array_equal(left, right, equal_nan=True))


def _like(stored: DecodedState | None, records: bytes, layout: StateLayout) -> DecodedState | None:
    """The state of these records, folded and forgotten as the stored one is."""
    if not records:
        return None
    if stored is None or not stored.generation:
        return decode(records, layout)
    made = compacted(
        records,
        layout,
        nonce=0,
        forget_below_ms=stored.forgotten_below_ms,
        fold_below_ms=stored.folded_below_ms,
        summarise_below_ms=stored.summarised_below_ms,
    )
    return decode(made.state, layout)


def _differences(
    stored: DecodedState | None,
    must: DecodedState | None,
    may: DecodedState | None,
    line_ms: int,
) -> Iterator[str]:
    held, least, most = (_records(one, line_ms) for one in (stored, must, may))
    if least - held:
        yield MISSING
    if held - most:
        yield EXTRA
    # What is folded lies so far back that all of it was applied.
    if _tiles(stored, line_ms) != _tiles(must, line_ms):
        yield TILES


def _is_same(one: DecodedState | None, other: DecodedState | None) -> bool:
    return (0 if one is None else one.version) == (0 if other is None else other.version)


def _records(state: DecodedState | None, line_ms: int) -> frozenset[bytes]:
    """The records of events from `line_ms` on."""
    if state is None:
        return frozenset()
    width, raw = state.layout.width, state.records.raw
    words = np.frombuffer(raw, np.int64).reshape(-1, width // 8)
    first = int(np.searchsorted(words[:, rec.TIME // 8] >> 16, line_ms))
    return frozenset(raw[at : at + width] for at in range(first * width, len(raw), width))


def _tiles(state: DecodedState | None, line_ms: int) -> list[bytes]:
    """The sums of what happened from `line_ms` on; a tile that it lies in is left out.

    Empty ones too: a tile whose events were all taken out again is there until the next compaction,
    and says what its absence says.
    """
    if state is None or not state.tiles.n:
        return []
    whole_from_ms = 0
    if line_ms:
        whole_from_ms = int(line_of(state.layout.address, line_ms, state.folded_below_ms))
    width, raw = state.tiles.width, state.tiles.raw
    tiles = [raw[at : at + width] for at in range(0, len(raw), width)]
    return [
        one for one in tiles if int.from_bytes(one[:8], "little") > whole_from_ms and any(one[8:])
    ]
