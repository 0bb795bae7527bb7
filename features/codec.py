"""The state codec: the one byte string per entity that a server holds, a log of fixed-size records.

    header (80 bytes), tiles, records     sorted and distinct, written by compaction
    records                               appended blindly: in any order, any number of times

A state that was never compacted has no header: generation 0. Header, in words of 8 bytes:

    0     "fsstate" and the version of this layout, 1 byte
    1     fingerprint of the state's layout (features/state_layout.py)
    2     generation: how often it was compacted; the highest bit: see word 5
    3     nonce: random, given by the caller
    4     F: events below it are all counted, and whole grid steps below it are tiles; 0 for none
    5     the instant before which everything was forgotten; 0 for none; by an order to erase where
          the highest bit of word 2 is set, else by time or by a limit
    6, 7  version: the sum of the digests of all records counted up to here
    8     tiles << 40 | records, behind the header
    9     seal: fold of header, tiles and the folds of those records (features/checksums.py)

Records are those of features/layout.py, each with the upper half of its fold in the low 32 bits of
word 3; the folds begin with the layout's fingerprint. Tiles: features/folding.py.
The version in the header covers what was folded and forgotten as well as what is there, so neither
moves it, and reading it costs a digest only for what was appended since. What was erased is in no
version: nothing may be served that counted it.

Cost: 5-6 ns a record to check, nothing to sort where nothing was appended.
Rule: a state with any damage is DamagedState and never half read. What no bytes can show is an
append that was lost whole at the end: only versions and the writers' markers tell.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshscore.config.errors import DamagedState
from freshscore.features.checksums import (
    HEADER_BYTES,
    WHOLE,
    first_damage,
    put_checks,
    sealed,
)
from freshscore.features.decoded_state import DecodedState, Stretch
from freshscore.features.evaluation import count_until
from freshscore.features.folding import count_without_event, folded, taken_out, tiles_before
from freshscore.features.memory import BYTES_AT
from freshscore.features.state_layout import StateLayout
from freshscore.features.uniting import ascending, united

_MAGIC: Final = b"fsstate"
_LAYOUT_VERSION: Final = 1
_HEADER: Final = struct.Struct("<7sB3Q2q4Q")
_N_TILES_SHIFT: Final = 40
_LOW_64: Final = 2**64 - 1
_ERASED: Final = 2**63


class Compaction(msgspec.Struct, frozen=True):
    """What compaction makes of a state.

    state: its bytes. folded: the events that became sums in it, as records to be appended to what
    is kept of the folded ones; empty where no window reads facts.
    """

    state: bytes
    folded: bytes


def stored(records: NDArray[np.uint64] | NDArray[np.int64], layout: StateLayout) -> bytes:
    """The bytes to append for `records`, [n, words of a record]: each with its checksum."""
    return _with_checks(records.tobytes(), layout)


def encode(state: DecodedState) -> bytes:
    """The bytes of a state, all of it behind a header; raises ValueError for unsorted records."""
    layout = state.layout
    records, tiles = state.records, state.tiles
    if not ascending(records.address, records.n, layout.width):
        raise ValueError(f"records of entity {layout.name!r} are not sorted and distinct")
    fields = (
        *(_MAGIC, _LAYOUT_VERSION, layout.fingerprint),
        *(state.generation | _ERASED * state.is_erased, state.nonce),
        *(state.folded_below_ms, state.forgotten_below_ms),
        *(state.version & _LOW_64, state.version >> 64),
        tiles.n << _N_TILES_SHIFT | records.n,
    )
    front = _HEADER.pack(*fields, 0) + tiles.raw
    checked_records = _with_checks(records.raw, layout)
    seal = sealed(
        id(front) + BYTES_AT, len(front), id(checked_records) + BYTES_AT, records.n, layout.address
    )
    return _HEADER.pack(*fields, int(seal)) + tiles.raw + checked_records


def decode(blob: bytes, layout: StateLayout, past: bytes = b"") -> DecodedState:
    """The state in `blob`, checked and united.

    past: what was folded of it, as `Compaction.folded` handed it out, in any order and any number
    of times, or compacted as a state of its own; with it, late facts of folded events count.
    Raises DamagedState for any damage, and for a state of another layout.
    """
    state = _opened(blob, layout)
    if not (state.folded_below_ms and layout.reads_facts):
        return state
    state = _with_count(state)
    if not past or not state.n_without_event:
        return state
    return _with_past(state, _opened(past, layout))


def compacted(
    blob: bytes,
    layout: StateLayout,
    *,
    nonce: int,
    forget_below_ms: int = 0,
    fold_below_ms: int = 0,
    past: bytes = b"",
) -> Compaction:
    """The state in `blob`, sorted, without repetitions and what is below `forget_below_ms`.

    nonce: 64 random bits. forget_below_ms: no window of a request yet to come begins before it.
    fold_below_ms: F, for a grid entity: no event before it is still to come, only repetitions.
    Both never go back, whatever is given. past: as for `decode`, which says what is raised.
    """
    state = decode(blob, layout, past)
    forget = max(state.forgotten_below_ms, forget_below_ms)
    fold = max(state.folded_below_ms, fold_below_ms) if layout.is_grid else 0
    records, tiles = state.records, state.tiles
    state = msgspec.structs.replace(
        state,
        records=records.without(count_until(records.address, records.n, layout.width, forget - 1)),
        tiles=tiles.without(tiles_before(tiles.address, tiles.n, layout.address, forget)),
        generation=state.generation + 1,
        nonce=nonce,
        folded_below_ms=fold,
        forgotten_below_ms=forget,
        is_erased=state.is_erased and forget == state.forgotten_below_ms,
    )
    if fold == 0:
        return Compaction(encode(state), b"")
    state, gone = _folded(state)
    return Compaction(encode(state), _with_checks(gone.raw, layout) if layout.reads_facts else b"")


def erased(blob: bytes, layout: StateLayout, *, below_ms: int, nonce: int) -> bytes:
    """What is left of the state in `blob` when everything before `below_ms` is erased; b"" is none.

    It has a header, and so remembers the instant: what is appended later and lies before it is
    ignored. Tiles go whole; where one reaches beyond `below_ms`, so does what is erased. Raises
    DamagedState.
    """
    state = decode(blob, layout) if blob else DecodedState(layout, *_nothing(layout))
    line_ms = max(state.forgotten_below_ms, below_ms)
    if state.tiles.n:
        line_ms = max(line_ms, state.folded_below_ms)
    records = state.records
    kept = records.without(count_until(records.address, records.n, layout.width, line_ms - 1))
    return encode(
        msgspec.structs.replace(
            state,
            records=kept,
            tiles=Stretch(layout.tile_width),
            version=decode(_with_checks(kept.raw, layout), layout).version if kept.n else 0,
            generation=state.generation + 1,
            nonce=nonce,
            forgotten_below_ms=line_ms,
            is_erased=True,
        )
    )


def state_version(blob: bytes, layout: StateLayout) -> int:
    """The 128-bit version of the set in `blob`: that of a store which counted the same records."""
    return decode(blob, layout).version


def _opened(blob: bytes, layout: StateLayout) -> DecodedState:
    """The state in `blob`, checked, with what was appended united to it."""
    header, n_tiles, n_compacted = _header(blob, layout)
    front = HEADER_BYTES + layout.tile_width * n_tiles if header.generation else 0
    n, rest = divmod(len(blob) - front, layout.width)
    if rest or n < n_compacted or not blob:
        raise DamagedState(
            f"a state of entity {layout.name!r} has {len(blob)} bytes: {front} of header and tiles"
            f" and {n_compacted} compacted records of {layout.width}, with {rest} left over"
        )
    damage = first_damage(id(blob) + BYTES_AT, front, n_compacted, n, layout.address)
    if damage != WHOLE:
        what = f"record {damage} of {n}" if damage >= 0 else "the header, or what it seals,"
        raise DamagedState(f"a state of entity {layout.name!r} is damaged: {what} fails its check")
    state = msgspec.structs.replace(
        header,
        records=Stretch(layout.width, blob, front, n_compacted),
        tiles=Stretch(layout.tile_width, blob, HEADER_BYTES, n_tiles),
        n_compacted=n_compacted,
        n_appended=n - n_compacted,
    )
    return _with_end(state) if n > n_compacted else state


def _header(blob: bytes, layout: StateLayout) -> tuple[DecodedState, int, int]:
    """What the header says, with its numbers of tiles and records; nothing without one."""
    nothing = _nothing(layout)
    if not blob.startswith(_MAGIC):
        return DecodedState(layout, *nothing), 0, 0
    if len(blob) < HEADER_BYTES:
        raise DamagedState(f"a state of entity {layout.name!r} ends within its header")
    _, version, fingerprint, generation, nonce, fold, forget, low, high, sizes, _ = (
        _HEADER.unpack_from(blob)
    )
    if version != _LAYOUT_VERSION or fingerprint != layout.fingerprint or generation == 0:
        raise DamagedState(
            f"a state of entity {layout.name!r} has layout {version}, {fingerprint:016x},"
            f" generation {generation}; this one is {_LAYOUT_VERSION}, {layout.fingerprint:016x}"
        )
    state = DecodedState(
        *(layout, *nothing, high << 64 | low, generation & ~_ERASED, nonce, fold, forget),
        is_erased=bool(generation & _ERASED),
    )
    return state, sizes >> _N_TILES_SHIFT, sizes & ((1 << _N_TILES_SHIFT) - 1)


def _nothing(layout: StateLayout) -> tuple[Stretch, Stretch]:
    return Stretch(layout.width), Stretch(layout.tile_width)


def _with_end(state: DecodedState) -> DecodedState:
    """The state united with the records that were appended behind its own."""
    records, width = state.records, state.layout.width
    n_end = state.n_appended
    slots = 1 << (2 * n_end).bit_length()
    n_lost = (records.n + n_end + 7) & ~7
    # Zeroed; bytes that nobody else has seen yet are ours to fill.
    scratch = (state.version).to_bytes(16, "little") + bytes(16 * n_end + n_lost + 4 * slots)
    out = bytes((records.n + n_end) * width)
    order = id(scratch) + BYTES_AT + 16
    lost = order + 16 * n_end
    n = united(
        records.address,
        records.n,
        records.address + records.n * width,
        n_end,
        state.layout.address,
        max(state.folded_below_ms, state.forgotten_below_ms),
        state.forgotten_below_ms,
        id(out) + BYTES_AT,
        lost + n_lost,
        slots - 1,
        order,
        lost,
        order - 16,
    )
    return msgspec.structs.replace(
        state,
        records=Stretch(width, out, 0, n),
        version=int.from_bytes(scratch[:16], "little"),
    )


def _with_count(state: DecodedState) -> DecodedState:
    """The state, saying how many payments have facts but no event."""
    n = count_without_event(
        state.records.address, state.records.n, state.layout.width, state.folded_below_ms
    )
    return msgspec.structs.replace(state, n_without_event=n)


def _with_past(state: DecodedState, past: DecodedState) -> DecodedState:
    """The state with those folded events put back that have facts by now."""
    layout, records = state.layout, state.records
    out = bytes((records.n + state.n_without_event) * layout.width)
    # A copy: bytes(x) would be x itself.
    tiles = Stretch(layout.tile_width, bytes(bytearray(state.tiles.raw)), 0, state.tiles.n)
    n = taken_out(
        layout.address,
        records.address,
        records.n,
        past.records.address,
        past.records.n,
        tiles.address,
        tiles.n,
        state.folded_below_ms,
        id(out) + BYTES_AT,
    )
    if n < 0:
        raise DamagedState(
            f"what was folded of a state of entity {layout.name!r} is not in its tiles"
        )
    records = Stretch(layout.width, out, 0, n)
    return _with_count(msgspec.structs.replace(state, records=records, tiles=tiles))


def _folded(state: DecodedState) -> tuple[DecodedState, Stretch]:
    """The state folded below its F, and the events that were."""
    layout, records, tiles = state.layout, state.records, state.tiles
    kept = bytes(records.n * layout.width)
    gone = bytes(records.n * layout.width)
    sums = bytes((records.n + tiles.n) * layout.tile_width)
    sizes = bytes(24)
    folded(
        layout.address,
        records.address,
        records.n,
        tiles.address,
        tiles.n,
        state.folded_below_ms,
        id(kept) + BYTES_AT,
        id(gone) + BYTES_AT,
        id(sums) + BYTES_AT,
        id(sizes) + BYTES_AT,
    )
    n_kept, n_gone, n_tiles = struct.unpack("<3q", sizes)
    state = msgspec.structs.replace(
        state,
        records=Stretch(layout.width, kept, 0, n_kept),
        tiles=Stretch(layout.tile_width, sums, 0, n_tiles),
    )
    return state, Stretch(layout.width, gone, 0, n_gone)


def _with_checks(records: bytes, layout: StateLayout) -> bytes:
    """A copy of records, each with its checksum."""
    out = bytes(bytearray(records))
    put_checks(id(out) + BYTES_AT, len(out) // layout.width, layout.address)
    return out
