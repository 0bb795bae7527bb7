"""The state codec: the one byte string per entity that a server holds, a log of fixed-size records.

    header (88 bytes), tiles, records     sorted and distinct, written by compaction
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
    9     S: events below it are folded too, though repetitions of them may come; 0 for none
    10    seal: fold of header, tiles and the folds of those records (features/checksums.py)

Records are those of features/layout.py, each with the upper half of its fold in the low 32 bits of
word 3; the folds begin with the layout's fingerprint. Tiles: features/folding.py.
The version in the header covers what was folded and forgotten as well as what is there, so neither
moves it, and reading it costs a digest only for what was appended since. What was erased is in no
version: nothing may be served that counted it.
Of what is appended, an event below F is a repetition. One from F on and below S may be one: readers
pass it over until compaction has asked what was folded (features/past_events.py), and then it is
dropped, or a record like others.

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
from freshscore.features import layout as rec
from freshscore.features.checksums import (
    HEADER_BYTES,
    WHOLE,
    first_damage,
    put_checks,
    sealed,
)
from freshscore.features.decoded_state import DecodedState, Stretch
from freshscore.features.evaluation import count_until
from freshscore.features.folding import (
    are_taken_out,
    folded,
    tiles_before,
    without_event,
)
from freshscore.features.memory import BYTES_AT
from freshscore.features.past_events import Past, buckets_of
from freshscore.features.state_layout import StateLayout
from freshscore.features.uniting import ascending, united

_MAGIC: Final = b"fsstate"
_LAYOUT_VERSION: Final = 2
_HEADER: Final = struct.Struct("<7sB3Q2q3QqQ")
_N_TILES_SHIFT: Final = 40
_LOW_64: Final = 2**64 - 1
_ERASED: Final = 2**63
_NEVER: Final = 2**62


class Compaction(msgspec.Struct, frozen=True):
    """What compaction makes of a state.

    state: its bytes. folded: the events that became sums in it and can still be asked for, as
    records to be kept beside it before it is swapped in. folded_below_ms: its F.
    """

    state: bytes
    folded: bytes
    folded_below_ms: int


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
        state.summarised_below_ms,
    )
    front = _HEADER.pack(*fields, 0) + tiles.raw
    checked_records = _with_checks(records.raw, layout)
    seal = sealed(
        id(front) + BYTES_AT, len(front), id(checked_records) + BYTES_AT, records.n, layout.address
    )
    return _HEADER.pack(*fields, int(seal)) + tiles.raw + checked_records


def decode(
    blob: bytes, layout: StateLayout, past: Past | None = None, own: int | None = None
) -> DecodedState:
    """The state in `blob`, checked and united.

    past: buckets of what was folded of it, read in one step with it, or after it for compaction;
    with those that `buckets_of_state` names, all that was appended counts. own: the identity of a
    payment, 64 bits, that is to be a record again if its bucket is given.
    Raises DamagedState for any damage, and for a state of another layout.
    """
    state = _opened(blob, layout)
    if not state.closed_below_ms:
        return state
    if past and state.deferred:
        state = _with_deferred(state, past, np.empty(0, np.int64))
    return _with_past(_with_count(state), past or {}, own)


def is_closed(blob: bytes) -> bool:
    """Whether a state has an F or S, or was erased: lines that records behind it keep to."""
    if not has_header(blob) or len(blob) < HEADER_BYTES:
        return False
    _, _, _, generation, _, fold, _, _, _, _, early, _ = _HEADER.unpack_from(blob)
    return bool(generation & _ERASED or fold or early)


def has_header(blob: bytes) -> bool:
    """Whether a state was compacted or erased since it began; else it is records alone."""
    return blob.startswith(_MAGIC)


def buckets_of_state(state: DecodedState) -> frozenset[int]:
    """The buckets that say what deferred events are, and what facts alone are about."""
    deferred = np.frombuffer(state.deferred, np.int64)[:: state.layout.width // 8]
    return buckets_of_facts(state) | frozenset(buckets_of(deferred).tolist())


def buckets_of_facts(state: DecodedState) -> frozenset[int]:
    """The buckets that say what facts without an event are about."""
    if not state.n_without_event:
        return frozenset()
    identities = state.records.words[_without_event(state), 0]
    return frozenset(buckets_of(identities).tolist())


def compacted(
    blob: bytes,
    layout: StateLayout,
    *,
    nonce: int,
    forget_below_ms: int = 0,
    fold_below_ms: int = 0,
    summarise_below_ms: int = 0,
    past: Past | None = None,
) -> Compaction:
    """The state in `blob`, sorted, without repetitions and what is below `forget_below_ms`.

    nonce: 64 random bits. forget_below_ms: no window of a request yet to come begins before it.
    fold_below_ms: F, for a grid entity: no event before it is still to come, only repetitions.
    summarise_below_ms: S, for a grid entity: no request yet to come is for an instant before it.
    None goes back, whatever is given. past: as for `decode`, which says what is raised; what it
    does not answer stays appended.
    """
    state = _opened(blob, layout)
    if state.closed_below_ms:
        state = _with_past(_with_count(state), past or {}, None)
    fold_ms = min(fold_below_ms, _oldest_unanswered(state, past or {}))
    before = state.records
    state = _within_lines(state, forget_below_ms, fold_ms, summarise_below_ms)
    state = msgspec.structs.replace(state, generation=state.generation + 1, nonce=nonce)
    gone = Stretch(layout.width)
    if state.closed_below_ms:
        state, gone = _folded(state)
    if state.deferred:
        # What is new among it is no tile's before it has been a record: then a bucket that names
        # it never names what nobody counts. What was a record until now is not new.
        forgotten = _events_of(before.words[: before.n - state.records.n])
        counted = np.concatenate([gone.words[:, 0], forgotten[:, 0]])
        state = _with_deferred(state, past or {}, counted)
    kept = _with_checks(_still_asked_for(gone, state), layout)
    return Compaction(encode(state) + state.deferred, kept, state.folded_below_ms)


def settled(state: DecodedState) -> DecodedState:
    """The state with all in tiles that its lines allow: equal for equal sets and lines."""
    return _folded(state)[0] if state.closed_below_ms else state


def erased(blob: bytes, layout: StateLayout, *, below_ms: int, nonce: int) -> bytes:
    """What is left of the state in `blob` when everything before `below_ms` is erased; b"" is none.

    It has a header, and so remembers the instant: what is appended later and lies before it is
    ignored. Tiles go whole; where one reaches beyond `below_ms`, so does what is erased. Raises
    DamagedState.
    """
    state = _opened(blob, layout) if blob else DecodedState(layout, *_nothing(layout))
    line_ms = max(state.forgotten_below_ms, below_ms)
    if state.tiles.n:
        line_ms = max(line_ms, state.closed_below_ms)
    records = state.records
    if state.deferred:
        # No tile is left from the line on, so that none has what is appended there.
        end = Stretch(layout.width, state.deferred, 0, len(state.deferred) // layout.width)
        records, _ = with_records(state, end, line_ms, state.forgotten_below_ms)
    kept = records.without(count_until(records.address, records.n, layout.width, line_ms - 1))
    return encode(
        msgspec.structs.replace(
            state,
            records=kept,
            tiles=Stretch(layout.tile_width),
            version=decode(_with_checks(kept.raw, layout), layout).version if kept.n else 0,
            generation=state.generation + 1,
            nonce=nonce,
            summarised_below_ms=0,
            forgotten_below_ms=line_ms,
            is_erased=True,
            deferred=b"",
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


def _within_lines(state: DecodedState, forget: int, fold: int, summarise: int) -> DecodedState:
    """The state with its lines moved on, without what lies before the first of them."""
    layout, records, tiles = state.layout, state.records, state.tiles
    forget = max(state.forgotten_below_ms, forget)
    fold = max(state.folded_below_ms, fold) if layout.is_grid else 0
    summarise = max(state.summarised_below_ms, summarise) if layout.is_grid else 0
    return msgspec.structs.replace(
        state,
        records=records.without(count_until(records.address, records.n, layout.width, forget - 1)),
        tiles=tiles.without(tiles_before(tiles.address, tiles.n, layout.address, forget)),
        folded_below_ms=fold,
        summarised_below_ms=summarise if summarise > fold else 0,
        forgotten_below_ms=forget,
        is_erased=state.is_erased and forget == state.forgotten_below_ms,
    )


def _oldest_unanswered(state: DecodedState, past: Past) -> int:
    """The time of the oldest deferred event of a bucket that is not in `past`.

    F stays before it: below F it would be taken for a repetition.
    """
    words = np.frombuffer(state.deferred, np.int64).reshape(-1, state.layout.width // 8)
    left = words[~np.isin(buckets_of(words[:, 0]), [*past])]
    return int((left[:, rec.TIME // 8] >> 16).min(initial=_NEVER))


def _still_asked_for(gone: Stretch, state: DecodedState) -> bytes:
    """Of folded events those of which a late fact, or a repetition, may still come."""
    if state.layout.reads_facts:
        return gone.raw
    first = count_until(gone.address, gone.n, gone.width, state.folded_below_ms - 1)
    return gone.without(first).raw


def _header(blob: bytes, layout: StateLayout) -> tuple[DecodedState, int, int]:
    """What the header says, with its numbers of tiles and records; nothing without one."""
    nothing = _nothing(layout)
    if not has_header(blob):
        return DecodedState(layout, *nothing), 0, 0
    if len(blob) < HEADER_BYTES:
        raise DamagedState(f"a state of entity {layout.name!r} ends within its header")
    _, version, fingerprint, generation, nonce, fold, forget, low, high, sizes, early, _ = (
        _HEADER.unpack_from(blob)
    )
    if version != _LAYOUT_VERSION or fingerprint != layout.fingerprint or generation == 0:
        raise DamagedState(
            f"a state of entity {layout.name!r} has layout {version}, {fingerprint:016x},"
            f" generation {generation}; this one is {_LAYOUT_VERSION}, {layout.fingerprint:016x}"
        )
    state = DecodedState(
        *(layout, *nothing, high << 64 | low, generation & ~_ERASED, nonce, fold, early, forget),
        is_erased=bool(generation & _ERASED),
    )
    return state, sizes >> _N_TILES_SHIFT, sizes & ((1 << _N_TILES_SHIFT) - 1)


def _nothing(layout: StateLayout) -> tuple[Stretch, Stretch]:
    return Stretch(layout.width), Stretch(layout.tile_width)


def _with_end(state: DecodedState) -> DecodedState:
    """The state united with the records that were appended behind its own."""
    layout, width = state.layout, state.layout.width
    at = state.records.offset + state.records.n * width
    end = Stretch(width, state.records.held, at, state.n_appended)
    lowest_ms = max(state.folded_below_ms, state.forgotten_below_ms)
    if state.summarised_below_ms:
        times = end.words[:, rec.TIME // 8]
        is_late = (times >> 14 & 3 == rec.EVENT) & (times >> 16 < state.summarised_below_ms)
        late = end.words[is_late & (times >> 16 >= lowest_ms)]
        state = msgspec.structs.replace(state, deferred=late.tobytes())
        end = _stretch(end.words[~is_late], layout)
    records, version = with_records(state, end, lowest_ms, state.forgotten_below_ms)
    return msgspec.structs.replace(state, records=records, version=version)


def with_records(
    state: DecodedState, end: Stretch, events_from_ms: int, facts_from_ms: int
) -> tuple[Stretch, int]:
    """The records of `state` united with others, in any order; and the version with them.

    What the others say of instants before the two is left out.
    """
    records, layout, width = state.records, state.layout, state.layout.width
    slots = 1 << (2 * end.n).bit_length()
    n_lost = (records.n + end.n + 7) & ~7
    # Zeroed; bytes that nobody else has seen yet are ours to fill.
    scratch = state.version.to_bytes(16, "little") + bytes(16 * end.n + n_lost + 4 * slots)
    out = bytes((records.n + end.n) * width)
    order = id(scratch) + BYTES_AT + 16
    lost = order + 16 * end.n
    n = united(
        records.address,
        records.n,
        end.address,
        end.n,
        layout.address,
        events_from_ms,
        facts_from_ms,
        id(out) + BYTES_AT,
        lost + n_lost,
        slots - 1,
        order,
        lost,
        order - 16,
    )
    return Stretch(width, out, 0, n), int.from_bytes(scratch[:16], "little")


def _stretch(words: NDArray[np.int64], layout: StateLayout) -> Stretch:
    return Stretch(layout.width, words.tobytes(), 0, len(words))


def _events_of(words: NDArray[np.int64]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = words[words[:, rec.TIME // 8] >> 14 & 3 == rec.EVENT]
    return found


def _with_deferred(state: DecodedState, past: Past, counted: NDArray[np.int64]) -> DecodedState:
    """The state with those deferred events that no bucket of `past` has; the others are gone.

    Those of other buckets stay deferred. counted: identities of events that have just been folded
    or forgotten, which no bucket has.
    """
    layout = state.layout
    words = np.frombuffer(state.deferred, np.int64).reshape(-1, layout.width // 8)
    is_asked = np.isin(buckets_of(words[:, 0]), [*past])
    known = np.concatenate([_past_events(past, layout)[:, 0], counted])
    new = _stretch(words[is_asked & ~np.isin(words[:, 0], known)], layout)
    records, version = with_records(state, new, 0, state.forgotten_below_ms)
    left = words[~is_asked].tobytes()
    return msgspec.structs.replace(state, records=records, version=version, deferred=left)


def _past_events(past: Past, layout: StateLayout) -> NDArray[np.int64]:
    """The records of these buckets, int64[n, words of a record]."""
    found = [_opened(held, layout).records.words for held in past.values() if held]
    return np.concatenate(found) if found else np.empty((0, layout.width // 8), np.int64)


def _with_count(state: DecodedState) -> DecodedState:
    """The state, saying how many payments have facts that count and no event."""
    if not state.layout.reads_facts:
        return state
    records, layout = state.records, state.layout
    n = without_event(records.address, records.n, layout.width, state.closed_below_ms, 0)
    return msgspec.structs.replace(state, n_without_event=n)


def _without_event(state: DecodedState) -> NDArray[np.int64]:
    """Where facts without an event begin, for each payment that has such."""
    records = state.records
    out = bytes(8 * state.n_without_event)
    before_ms, at = state.closed_below_ms, id(out) + BYTES_AT
    without_event(records.address, records.n, state.layout.width, before_ms, at)
    return np.frombuffer(out, np.int64)


def _with_past(state: DecodedState, past: Past, own: int | None) -> DecodedState:
    """The state with those folded events put back that have facts by now, or are `own`."""
    if not past or (own is None and not state.n_without_event):
        return state
    layout = state.layout
    events = _past_events(past, layout)
    words = state.records.words
    is_wanted = np.zeros(len(events), np.bool_)
    if state.n_without_event:
        # A fact is about the event with its identity and time: a conflict has another time.
        alone = words[_without_event(state)]
        is_wanted = np.isin(_payments(events), _payments(alone))
    if own is not None and not _has_event(words, own):
        is_wanted |= events.view(np.uint64)[:, 0] == own
    is_folded = events[:, rec.TIME // 8] >> 16 < state.closed_below_ms
    back = _stretch(events[is_wanted & is_folded], layout)
    if not back.n:
        return state
    # A copy: bytes(x) would be x itself.
    tiles = Stretch(layout.tile_width, bytes(bytearray(state.tiles.raw)), 0, state.tiles.n)
    fold_ms = state.folded_below_ms
    if not are_taken_out(layout.address, back.address, back.n, tiles.address, tiles.n, fold_ms):
        raise DamagedState(
            f"what was folded of a state of entity {layout.name!r} is not in its tiles"
        )
    records, _ = with_records(state, back, 0, state.forgotten_below_ms)
    return _with_count(msgspec.structs.replace(state, records=records, tiles=tiles))


def _payments(records: NDArray[np.int64]) -> NDArray[np.void]:
    """A value for each record that is equal for records of one identity and time."""
    pairs = np.stack([records[:, 0], records[:, rec.TIME // 8] >> 16], 1)
    return np.ascontiguousarray(pairs).view([("", np.int64)] * 2)[:, 0]


def _has_event(words: NDArray[np.int64], identity: int) -> bool:
    is_event = words[:, rec.TIME // 8] >> 14 & 3 == rec.EVENT
    return bool(np.any(is_event & (words.view(np.uint64)[:, 0] == identity)))


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
        state.closed_below_ms,
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
