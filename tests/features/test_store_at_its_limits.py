"""A memory store at its limits: what it refuses, forgets, and does not do to itself."""

from __future__ import annotations

import pytest

from freshscore.config.errors import StoreFull
from tests.features.stored_states import NOON_MS, Ground, Payment, held


@pytest.fixture(scope="module")
def ground() -> Ground:
    return Ground()


def test_a_repetition_of_what_the_limit_on_events_made_it_forget_changes_nothing(
    ground: Ground,
) -> None:
    store = ground.store(max_events_per_entity=32)
    payments = [Payment(n, NOON_MS + 1_000 * n) for n in range(40)]
    for payment in payments:
        assert ground.apply(store, payment) == "accepted"
    token = ground.token(payments[0], 0)
    records, version = held(store, 0, token)
    assert len(records) <= 32
    for payment in payments:
        assert ground.apply(store, payment) == "repeated"
    again, same_version = held(store, 0, token)
    assert same_version == version
    assert set(again[:, 0].tolist()) <= set(records[:, 0].tolist())


def test_the_table_of_payments_stops_growing_at_its_limit(ground: Ground) -> None:
    """Payments that leave reach make room, a few at a time, without more memory each time."""
    store = ground.store(max_payments=1_000, horizon_ms=1_000)
    for number in range(4_000):
        assert ground.apply(store, Payment(number, NOON_MS + 270 * number)) == "accepted"
    # The slots for 1000 payments at seven tenths, 32 bytes each.
    assert store.memory["payments"] <= 2 * 1_000 / 0.7 * 32


def test_more_payments_within_reach_than_the_limit_are_refused(ground: Ground) -> None:
    store = ground.store(max_payments=500)
    for number in range(500):
        ground.apply(store, Payment(number, NOON_MS + number))
    with pytest.raises(StoreFull, match=r"store\.max_payments is 500"):
        ground.apply(store, Payment(1_000, NOON_MS))
    assert store.n_payments == 500
    assert ground.apply(store, Payment(3, NOON_MS + 3)) == "repeated"
