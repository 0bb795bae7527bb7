"""Who may go on under which note: the order of a rotation, and every way to get it wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from freshscore.config.errors import WrongSecret
from freshscore.invalidation.identifier_keys import IdentifierKeys, KeyNote

LEASE_MS, SKEW_MS, KEPT_MS = 5_000, 700, 1_000_000
SINCE_MS = 2_000_000
END_MS = SINCE_MS + KEPT_MS
OLD = IdentifierKeys("aaaaaaaa", "aaaaaaaa", None, None, KEPT_MS, LEASE_MS, SKEW_MS)
BOTH = replace(OLD, key_id="bbbbbbbb", since_ms=SINCE_MS, former_id="aaaaaaaa")
NEW = replace(BOTH, former_id=None)
OTHER = replace(OLD, key_id="cccccccc", record_id="cccccccc")
OTHER_NEXT = replace(BOTH, key_id="dddddddd")
AFTER_NEXT = replace(BOTH, key_id="eeeeeeee", former_id="bbbbbbbb", since_ms=END_MS + 100_000)
NOTED_OLD, NOTED_NEW = KeyNote("aaaaaaaa"), KeyNote("bbbbbbbb")
ROTATING = KeyNote("bbbbbbbb", "aaaaaaaa", SINCE_MS)
BEFORE_MS = SINCE_MS - 100_000


@pytest.mark.parametrize(
    ("own", "note", "now_ms", "wanted"),
    [
        (OLD, None, BEFORE_MS, NOTED_OLD),
        (OLD, NOTED_OLD, BEFORE_MS, NOTED_OLD),
        # Who has both announces, two leases and the skew before it begins at the latest.
        (BOTH, NOTED_OLD, BEFORE_MS, ROTATING),
        (BOTH, NOTED_OLD, SINCE_MS - 2 * LEASE_MS - SKEW_MS, ROTATING),
        # Until a lease and the skew before that, those that are still to be restarted go on.
        (OLD, ROTATING, SINCE_MS - LEASE_MS - SKEW_MS - 1, ROTATING),
        (BOTH, ROTATING, BEFORE_MS, ROTATING),
        (BOTH, ROTATING, END_MS - 1, ROTATING),
        # A server that lost the note gets it again.
        (BOTH, None, SINCE_MS + 1, ROTATING),
        (BOTH, ROTATING, END_MS, NOTED_NEW),
        (BOTH, NOTED_NEW, END_MS, NOTED_NEW),
        (NEW, ROTATING, END_MS, NOTED_NEW),
        (NEW, NOTED_NEW, END_MS, NOTED_NEW),
        (NEW, None, END_MS, NOTED_NEW),
        (
            AFTER_NEXT,
            NOTED_NEW,
            END_MS,
            KeyNote("eeeeeeee", "bbbbbbbb", END_MS + 100_000),
        ),
        (
            AFTER_NEXT,
            ROTATING,
            END_MS,
            KeyNote("eeeeeeee", "bbbbbbbb", END_MS + 100_000),
        ),
    ],
)
def test_what_is_allowed_and_noted(
    own: IdentifierKeys, note: KeyNote | None, now_ms: int, wanted: KeyNote
) -> None:
    assert own.judged(note, now_ms) == wanted
    assert KeyNote.of(wanted.text) == wanted


@pytest.mark.parametrize(
    ("own", "note", "now_ms", "said"),
    [
        (OTHER, NOTED_OLD, BEFORE_MS, "under identifier key aaaaaaaa"),
        (OTHER, ROTATING, BEFORE_MS, "under identifier key bbbbbbbb"),
        (
            OLD,
            ROTATING,
            SINCE_MS - LEASE_MS - SKEW_MS,
            "a rotation has begun that this process does not",
        ),
        (OLD, ROTATING, END_MS, "a rotation has begun that this process does not"),
        (OLD, NOTED_NEW, END_MS, "under identifier key bbbbbbbb"),
        (BOTH, NOTED_OLD, SINCE_MS - 2 * LEASE_MS - SKEW_MS + 1, "was not announced before"),
        (BOTH, NOTED_OLD, END_MS, "was not announced before.*restored from a backup"),
        (NEW, NOTED_NEW, END_MS - 1, "FRESHSCORE_FORMER_SECRET is needed until then"),
        (NEW, ROTATING, SINCE_MS, "FRESHSCORE_FORMER_SECRET is needed until then"),
        (NEW, None, BEFORE_MS, "FRESHSCORE_FORMER_SECRET is needed until then"),
        (NEW, NOTED_OLD, END_MS, "under identifier key aaaaaaaa"),
        (OTHER_NEXT, ROTATING, BEFORE_MS, "under identifier key bbbbbbbb"),
        (AFTER_NEXT, ROTATING, END_MS - 1, "cannot be announced: that to bbbbbbbb lasts"),
    ],
)
def test_what_is_refused(own: IdentifierKeys, note: KeyNote | None, now_ms: int, said: str) -> None:
    with pytest.raises(WrongSecret, match=said):
        own.judged(note, now_ms)


def test_nodes_note_the_keys_that_never_rotate() -> None:
    for own in (OLD, BOTH, NEW):
        own.check_node(None)
        own.check_node("aaaaaaaa")
        with pytest.raises(WrongSecret, match="key bbbbbbbb"):
            own.check_node("bbbbbbbb")


def test_a_note_of_another_version_is_refused() -> None:
    for text in (b"a b", b"a b c", b"a b 1 2"):
        with pytest.raises(WrongSecret, match="another version"):
            KeyNote.of(text)
