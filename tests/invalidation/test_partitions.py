"""Where partitions are read from, and what may be said of how far they are."""

from __future__ import annotations

import pytest

from freshscore.invalidation.partitions import (
    CUT,
    EMPTY,
    WHOLE,
    NodeMarker,
    Place,
    begin_of,
    is_cut_off,
)

_HAS, _LOST = True, False


@pytest.mark.parametrize(
    ("committed", "markers", "first", "begin"),
    [
        # What is durable everywhere is passed over; the lowest of all counts.
        (90, [(_HAS, 95), (_HAS, 93)], 0, 90),
        (99, [(_HAS, 95), (_HAS, 93)], 0, 93),
        # A group that never committed has vouched for nothing, dead letters included.
        (None, [(_HAS, 95), (_HAS, 93)], 2, 2),
        # Offsets that were reset to the beginning are followed, though markers are further.
        (0, [(_HAS, 95)], 0, 0),
        # A node that has never seen the partition gets all that the log still has.
        (90, [(_HAS, 95), (_HAS, None)], 12, 12),
        # Behind the commit retention may have removed what all nodes hold.
        (5, [(_HAS, 17)], 12, 12),
    ],
)
def test_a_partition_begins_at_the_lowest_of_what_is_durable(
    committed: int | None, markers: list[tuple[bool, int | None]], first: int, begin: int
) -> None:
    assert begin_of(committed, [NodeMarker(*one) for one in markers], first) == (begin, False)


@pytest.mark.parametrize(
    ("has_epoch", "offset", "first", "cut_off"),
    [
        (_HAS, 12, 12, False),
        (_HAS, 11, 12, True),
        # A partition that came when no consumer ran, and was cut before one did.
        (_HAS, None, 1, True),
        (_HAS, None, 0, False),
        # A rebuilding takes what there is, and must not be overtaken once it has begun.
        (_LOST, None, 12, False),
        (_LOST, 12, 12, False),
        (_LOST, 11, 12, True),
    ],
)
def test_a_node_is_cut_off_where_the_log_begins_behind_its_marker(
    has_epoch: bool, offset: int | None, first: int, cut_off: bool
) -> None:
    assert is_cut_off(NodeMarker(has_epoch, offset), first) is cut_off


def test_a_node_that_lost_its_data_is_rebuilt_from_all_that_there_is() -> None:
    """Whatever other nodes hold, and whatever was committed."""
    markers = [NodeMarker(_HAS, 95), NodeMarker(_LOST, None)]
    assert begin_of(90, markers, 3) == (3, True)


def test_what_a_rebuilding_is_told_of_a_partition() -> None:
    """Whole where its first message is still there, cut where not, empty where there never was."""
    whole = Place.begun(0, 0, 10, rebuild=True)
    cut = Place.begun(4, 4, 10, rebuild=True)
    for place in (whole, cut):
        assert not place.is_rebuilt
        place.see(1_000, 1_500)
        place.applied = 10
        assert place.is_rebuilt
    empty = Place.begun(0, 0, 0, rebuild=True)
    all_gone = Place.begun(7, 7, 7, rebuild=True)
    for place in (empty, all_gone):
        place.reach_end(place.applied, 2_000)
        assert place.is_rebuilt
    notes = [place.note() for place in (whole, cut, empty, all_gone)]
    assert [(one.kind, one.first_arrival_ms) for one in notes] == [
        (WHOLE, 1_000),
        (CUT, 1_000),
        (EMPTY, 2_000),
        (CUT, 2_000),
    ]


def test_arrivals_move_on_only_with_what_is_known() -> None:
    """A partition that is not read to its end says nothing of the clock."""
    place = Place.begun(0, 0, 5, rebuild=False)
    place.see(1_000, 1_200)
    place.reach_end(5, 9_000)
    assert place.arrival_ms == 1_200
    place.applied = 5
    place.reach_end(5, 9_000)
    assert place.arrival_ms == 9_000
    place.reach_end(5, 8_000)
    assert place.arrival_ms == 9_000


def test_what_is_behind_a_held_label_is_still_to_come() -> None:
    place = Place.begun(0, 0, 5, rebuild=False)
    place.see(100, 200)
    place.see(300, 900)
    place.hold(3, 5, {}, 400)
    assert place.arrival_ms == 400
    place.see(500, 900)
    place.hold(3, 5, {}, 0)
    assert place.arrival_ms == 400


def test_a_held_label_is_final_once_all_payments_are_in() -> None:
    """It waits for what the log held when it was read, and so have the labels behind it by then."""
    payments = {("transactions", 0): 10, ("transactions", 1): 20}
    place = Place.begun(0, 0, 9, rebuild=False)
    place.hold(3, 5, payments, 0)
    assert place.is_held
    assert not place.release({("transactions", 0): 10, ("transactions", 1): 19})
    assert not place.is_final(3)
    assert place.release(payments)
    assert (place.is_held, place.read) == (False, 3)
    assert [place.is_final(offset) for offset in (3, 4, 5)] == [True, True, False]
