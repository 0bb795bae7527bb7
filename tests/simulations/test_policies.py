"""Policies of re-use, each told the same touches."""

from __future__ import annotations

from freshscore.simulations.policies import (
    TTL_MS,
    AsServed,
    Comparison,
    Keyed,
    NoCache,
    Touch,
    compared,
    foresight,
)

WINDOW_MS = 1_800_000


def touch(at_ms: int, score: float = 0.5, **other: object) -> Touch:
    given = {
        "at_ms": at_ms,
        "payment": 1,
        "card": 1,
        "again": at_ms > 0,
        "raw": 1,
        "cell": 1,
        "score": score,
        "bits": hash(score),
        "review": 0.6,
        "decline": 0.9,
        "served": None,
    }
    return Touch(**{**given, **other})  # type: ignore[arg-type]  # by name


def counted(policy: object, *touches: Touch) -> tuple[int, int, int]:
    """Hits, stale ones and flipped ones of one policy."""
    comparison = Comparison(foresight(WINDOW_MS), [policy])  # type: ignore[list-item]  # a Policy
    for one in touches:
        comparison.record(one)
    comparison.finished()
    stats = comparison.stats()[1]
    return stats.hits, stats.stale, stats.flipped


def test_foresight_knows_a_score_for_its_card_and_for_the_window_since_it_was_last_seen() -> None:
    policy = foresight(WINDOW_MS)
    assert policy.record(touch(0)) is None
    assert policy.record(touch(1, card=2)) is None
    assert policy.record(touch(2, score=0.7)) is None
    assert policy.record(touch(WINDOW_MS)) == 0.5
    assert policy.record(touch(2 * WINDOW_MS)) == 0.5
    assert policy.record(touch(3 * WINDOW_MS + 1)) is None
    # Another payment of the card will do.
    assert policy.record(touch(3 * WINDOW_MS + 2, payment=9)) == 0.5


def test_a_ttl_counts_from_the_computation_and_serves_whatever_has_become_of_the_score() -> None:
    ttl = Keyed("TTL", lambda one: one.payment, TTL_MS, renewed=False)
    first, moved = touch(0), touch(1_000, score=0.55)
    flipped, late = touch(TTL_MS, score=0.95), touch(TTL_MS + 1, score=0.95)
    assert counted(ttl, first, moved, flipped, late) == (2, 2, 1)


def test_keys_serve_whoevers_score_it_was() -> None:
    cells = next(policy for policy in compared(WINDOW_MS) if policy.name == "cells alone")
    assert counted(cells, touch(0), touch(1, card=2, payment=2), touch(2, cell=5)) == (1, 0, 0)


def test_the_scorer_is_counted_by_what_it_served() -> None:
    assert counted(AsServed(), touch(0), touch(1, served=0.5), touch(2, served=0.4)) == (2, 1, 0)


def test_no_cache_serves_nothing() -> None:
    assert counted(NoCache(), touch(0), touch(1)) == (0, 0, 0)


def test_hits_within_the_bound_are_told_from_others() -> None:
    comparison = Comparison(foresight(WINDOW_MS), [AsServed()])
    touches = [
        touch(0),
        touch(1, served=0.5),
        touch(2, card=2, again=False, served=0.5),
        touch(3, card=2, served=None),
        touch(4, card=2, again=False, served=0.5),
    ]
    for one in touches:
        comparison.record(one)
    bound, own = comparison.stats()
    assert list(comparison.in_bound) == [False, True, False, True, True]
    assert (bound.hits, bound.hits_again, bound.in_bound) == (3, 2, 3)
    assert (own.hits, own.hits_again, own.in_bound, own.in_bound_again) == (3, 1, 2, 1)


def test_what_is_too_old_is_forgotten() -> None:
    policy = Keyed("cells", lambda one: one.cell, WINDOW_MS, renewed=True)
    for cell in range(1_000):
        policy.record(touch(cell * WINDOW_MS // 10, cell=cell))
    assert len(policy._known) <= 11
