"""Comparing a stored state with the log's: other values are found, another way to them is not."""

from __future__ import annotations

from freshscore.features.codec import compacted, decode, stored
from freshscore.features.decoded_state import DecodedState
from freshscore.features.past_events import by_bucket
from freshscore.invalidation.comparing_states import (
    EQUAL,
    MISSING,
    TILES,
    Bounds,
    Compared,
    FromLog,
    Stored,
    compared,
)
from tests.features.stored_states import NOON_MS, Fact, Ground, Payment

MERCHANT = 1
FOLDED_MS = NOON_MS + 60_000
PAYMENTS = [Payment(number, NOON_MS + 4_000 * number) for number in range(8)]


def nothing(state: DecodedState | None) -> dict[str, float]:
    return {}


def records(ground: Ground, *what: Payment | Fact) -> bytes:
    layout = ground.layouts[MERCHANT]
    return b"".join(stored(ground.record(one, MERCHANT), layout) for one in what)


def verdict(ground: Ground, held: list[Payment | Fact], log: list[Payment | Fact]) -> Compared:
    """Of a state whose payments are folded, and of what came to it since, against the log."""
    layout = ground.layouts[MERCHANT]
    folded = compacted(
        records(ground, *(one for one in held if isinstance(one, Payment))),
        layout,
        nonce=1,
        fold_below_ms=FOLDED_MS,
    )
    since = records(ground, *(one for one in held if isinstance(one, Fact)))
    blob = folded.state + since
    # What the promises below are about: a step that has nothing in it any more.
    past = by_bucket(folded.folded, layout)
    tiles = decode(blob, layout, past).tiles
    raw = [tiles.raw[at : at + tiles.width] for at in range(0, len(tiles.raw), tiles.width)]
    assert any(not any(one[8:]) for one in raw) == bool(since)
    return compared(
        Stored(layout, blob, past),
        FromLog(records(ground, *log), b""),
        Bounds(0, 0),
        nothing,
    )


def test_a_step_that_late_facts_have_emptied_is_no_difference() -> None:
    """Its tile stays, with nothing in it, until the next compaction drops it."""
    ground = Ground()
    facts = [Fact(one, 0, True, NOON_MS + 100_000) for one in PAYMENTS[-2:]]
    held: list[Payment | Fact] = [*PAYMENTS, *facts]
    assert verdict(ground, held, held).verdict == EQUAL


def test_other_sums_are_a_difference() -> None:
    """With emptied steps, and without; and a fact that is missing."""
    ground = Ground()
    facts = [Fact(one, 0, True, NOON_MS + 100_000) for one in PAYMENTS[-2:]]
    assert verdict(ground, [*PAYMENTS[1:], *facts], [*PAYMENTS, *facts]).verdict == TILES
    assert verdict(ground, [*PAYMENTS[1:]], [*PAYMENTS]).verdict == TILES
    more = Fact(PAYMENTS[0], 0, True, NOON_MS + 100_000)
    assert verdict(ground, [*PAYMENTS, *facts], [*PAYMENTS, *facts, more]).verdict == MISSING
