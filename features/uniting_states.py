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

from typing import Final, NamedTuple

import msgspec

from freshscore.config.errors import DamagedState
from freshscore.features import layout as rec
from freshscore.features import state_layout as s
from freshscore.features.codec import (
    decode,
    encode,
    has_header,
    is_closed,
    settled,
    with_records,
)
from freshscore.features.compiled import kernel
from freshscore.features.decoded_state import DecodedState, Stretch
from freshscore.features.memory import BYTES_AT, i64
from freshscore.features.past_events import Past
from freshscore.features.state_layout import StateLayout
from freshscore.features.uniting import add_digest

# What no reader takes for a state: none of them has no bytes.
_DAMAGED: Final = b""
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
    if has_header(other):
        one, other = other, one
    if has_header(other) or is_closed(one):
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
    right = other.records
    records, version = with_records(one, right, _BEFORE_ALL, _BEFORE_ALL)
    # Zeroed; bytes that nobody else has seen yet are ours to fill.
    counted = bytes(16)
    _sum_digests(right.address, right.n, one.layout.address, id(counted) + BYTES_AT)
    gone = other.version - int.from_bytes(counted, "little")
    return records, (version + gone) % _MODULUS


@kernel
def _sum_digests(records: int, n: int, layout: int, out: int) -> None:
    """Add the digests of the records to the 128 bits at `out`."""
    width = i64(layout + 8 * s.WIDTH)
    for i in range(n):
        add_digest(out, records + i * width, layout)
