"""One state of two: the states of an entity under two tokens, while a secret is rotated.

Each event is under the key that holds at its own time, whoever writes it, so the two are disjoint.
Where nothing is folded or erased they are joined as bytes, and the reader unites them as it does
any append: what a process wrote under the wrong key, or under both, counts once. Grids are folded
to the higher of their two lines: tiles are sums, which add, of disjoint sets. What was folded of a
state, early or not, is put back into it before both are one.
Cost: a copy, where one of both has no header; else 15 to 25 us for two of 20 to 250 records.
Rule: it is a view for one reader, never written back. Where both have tiles, or one, and something
in them is on the wrong side of the instant, it may be in a tile of the other too, and nothing could
tell: then they are damage, and never half right.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import msgspec

from freshscore.config.errors import DamagedState
from freshscore.features import layout as rec
from freshscore.features import state_layout as s
from freshscore.features.checksums import HEADER_BYTES
from freshscore.features.codec import decode, encode, settled
from freshscore.features.compiled import kernel
from freshscore.features.decoded_state import DecodedState, Stretch
from freshscore.features.memory import BYTES_AT, i64
from freshscore.features.past_events import Past
from freshscore.features.state_layout import StateLayout
from freshscore.features.uniting import add_digest, united

# What no reader takes for a state: none of them has no bytes.
_DAMAGED: Final = b""
_MAGIC: Final = b"fsstate"
# Two words of a header; the first is below 0 where an order erased it (features/codec.py).
_GENERATION_AT: Final = 16
_FOLD_AT: Final = 32
_EARLY_AT: Final = 72
_MODULUS: Final = 2**128
_BEFORE_ALL: Final = -(2**62)


class Side(NamedTuple):
    """The state of an entity under one of its tokens, with buckets of what was folded of it."""

    state: bytes | None
    past: Past


def united_state(
    former: Side, current: Side, layout: StateLayout, *, since_ms: int, own: int | None = None
) -> bytes | None:
    """The bytes of a state with the records of both; bytes that fail every check for damage.

    since_ms: from which event time on they are under the current token. own: the identity of a
    payment that is to be a record, as in `decode`.
    """
    if former.past or current.past:
        return _united_by_records(former, current, layout, since_ms, own)
    one, other = former.state, current.state
    if one is None or other is None:
        return other if one is None else one
    if other.startswith(_MAGIC):
        one, other = other, one
    if other.startswith(_MAGIC) or _is_closed(one):
        return _united_by_records(former, current, layout, since_ms, own)
    # As if the other's records had been appended: whole ones, or both are refused.
    return one + other if len(other) % layout.width == 0 and other else _DAMAGED


def united_decoded(
    former: DecodedState | None, current: DecodedState | None, since_ms: int
) -> DecodedState | None:
    """The same of states that were read with what was folded of them. Raises DamagedState."""
    if former is None or current is None:
        return former or current
    if former.closed_below_ms or current.closed_below_ms:
        _check_apart(former, current, since_ms)
    return _merged(former, current)


def _united_by_records(
    former: Side, current: Side, layout: StateLayout, since_ms: int, own: int | None
) -> bytes | None:
    try:
        read = [
            None if state is None else decode(state, layout, past, own)
            for state, past in (former, current)
        ]
        united = united_decoded(read[0], read[1], since_ms)
    except DamagedState:
        return _DAMAGED
    return None if united is None else encode(united)


def _check_apart(former: DecodedState, current: DecodedState, since_ms: int) -> None:
    """Raise DamagedState unless each has what is of its time, as far as can be seen."""
    early, late = current.records, former.records
    is_apart = former.summarised_below_ms <= since_ms
    if late.n:
        is_apart &= int(late.words[-1, rec.TIME // 8]) >> 16 < since_ms
    if early.n:
        is_apart &= int(early.words[0, rec.TIME // 8]) >> 16 >= since_ms
    if current.tiles.n:
        is_apart &= _line(current.tiles.raw) >= since_ms
    if not is_apart:
        raise DamagedState(
            f"states of entity {former.layout.name!r} have events on the wrong side of {since_ms}"
        )


def _is_closed(state: bytes) -> bool:
    """Whether it has an F or S, or was erased: lines that the other's records know nothing of."""
    if not state.startswith(_MAGIC) or len(state) < HEADER_BYTES:
        return False
    generation, fold_ms, early_ms = (
        struct.unpack_from("<q", state, at)[0] for at in (_GENERATION_AT, _FOLD_AT, _EARLY_AT)
    )
    return bool(generation < 0 or fold_ms or early_ms)


def _merged(one: DecodedState, other: DecodedState) -> DecodedState:
    """Both as one state, folded below the higher F, forgotten below the higher line.

    What is folded early in one of both alone stays a record in what comes of the other.
    """
    records, version = _union(one, other)
    fold_ms = max(one.folded_below_ms, other.folded_below_ms)
    early_ms = max(one.summarised_below_ms, other.summarised_below_ms)
    state = msgspec.structs.replace(
        one,
        records=records,
        tiles=_by_line(one.tiles, other.tiles),
        version=version,
        generation=max(one.generation, other.generation),
        folded_below_ms=fold_ms,
        summarised_below_ms=0,
        forgotten_below_ms=max(one.forgotten_below_ms, other.forgotten_below_ms),
        deferred=b"",
        is_erased=max(one, other, key=lambda state: state.forgotten_below_ms).is_erased,
    )
    early_ms = early_ms if early_ms > fold_ms else 0
    return msgspec.structs.replace(settled(state), summarised_below_ms=early_ms)


def _by_line(one: Stretch, other: Stretch) -> Stretch:
    """The tiles of both, in the order of the lines that they end at."""
    each = sorted((tile for of in (one, other) for tile in _tiles(of)), key=_line)
    return Stretch(one.width, b"".join(each), 0, len(each))


def _tiles(of: Stretch) -> list[bytes]:
    return [of.raw[of.width * i :][: of.width] for i in range(of.n)]


def _line(tile: bytes) -> int:
    return int.from_bytes(tile[:8], "little", signed=True)


def _union(one: DecodedState, other: DecodedState) -> tuple[Stretch, int]:
    """The records of both, sorted and distinct, and the version of the whole.

    What the other has folded and forgotten is in its version, and in none of its records.
    """
    layout, left, right = one.layout, one.records, other.records
    slots = 1 << (2 * right.n + 1).bit_length()
    n_lost = (left.n + right.n + 7) & ~7
    # Zeroed; bytes that nobody else has seen yet are ours to fill.
    scratch = one.version.to_bytes(16, "little") + bytes(16 * right.n + n_lost + 4 * slots + 16)
    out = bytes((left.n + right.n) * layout.width)
    order = id(scratch) + BYTES_AT + 16
    lost = order + 16 * right.n
    n = united(
        left.address,
        left.n,
        right.address,
        right.n,
        layout.address,
        *(_BEFORE_ALL, _BEFORE_ALL),
        id(out) + BYTES_AT,
        lost + n_lost,
        slots - 1,
        order,
        lost,
        order - 16,
    )
    counted = len(scratch) - 16
    _sum_digests(right.address, right.n, layout.address, id(scratch) + BYTES_AT + counted)
    known = int.from_bytes(scratch[:16], "little")
    gone = other.version - int.from_bytes(scratch[counted:], "little")
    return Stretch(layout.width, out, 0, n), (known + gone) % _MODULUS


@kernel
def _sum_digests(records: int, n: int, layout: int, out: int) -> None:
    """Add the digests of the records to the 128 bits at `out`."""
    width = i64(layout + 8 * s.WIDTH)
    for i in range(n):
        add_digest(out, records + i * width, layout)
