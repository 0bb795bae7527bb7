"""The virtual clock."""

from __future__ import annotations

import pytest

from freshscore.simulations.clock import VirtualClock


def test_it_shows_what_it_was_moved_to_on_both_faces() -> None:
    clock = VirtualClock(1_500)
    assert (clock.now_ms(), clock.monotonic_s()) == (1_500, 1.5)
    clock.move_to(1_500)
    clock.move_to(2_000)
    assert (clock.now_ms(), clock.monotonic_s()) == (2_000, 2.0)


def test_it_never_goes_back() -> None:
    clock = VirtualClock(2_000)
    with pytest.raises(ValueError, match="1999"):
        clock.move_to(1_999)
    assert clock.now_ms() == 2_000
