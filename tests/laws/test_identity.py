"""Law 8: a payment counts once. Its features are those of the set without it, plus the request."""

from __future__ import annotations

import random
import struct
from typing import Any, cast

import numpy as np
import pytest

from freshscore.features.packing import Packer
from freshscore.features.transaction import Transaction
from tests.laws.law_models import KINDS, callable_model, law_model
from tests.laws.law_specifications import Scaled, mixed, shipped
from tests.laws.records import different_bits
from tests.laws.traffic import Traffic, changed
from tests.laws.worlds import Limits, World

SPECIFICATIONS = ("mixed", "payments", "handbook", "sparkov")


def specification_of(name: str, seed: int) -> Scaled:
    """By name, or a random one."""
    return mixed(np.random.default_rng(seed)) if name == "mixed" else shipped(name)


def filled(name: str, kind: str, seed: int) -> tuple[World, Traffic]:
    """A world with a hundred payments."""
    scaled = specification_of(name, seed)
    model = law_model(kind, scaled, seed)
    world = World(scaled.specification, model, Limits(horizon_ms=scaled.horizon_ms))
    traffic = Traffic(scaled, random.Random(seed))
    for _ in range(100):
        payment = traffic.new().first
        world.scorer.observe(payment)
        traffic.newest_ms = max(traffic.newest_ms, payment.time)
    return world, traffic


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SPECIFICATIONS)
def test_the_score_before_and_after_the_own_event_is_one_and_the_second_is_a_memo(
    name: str, kind: str, seed: int
) -> None:
    world, traffic = filled(name, kind, seed)
    for _ in range(30):
        payment = traffic.new().first
        check_that_it_counts_once(world, payment, traffic.instant(payment))


def check_that_it_counts_once(world: World, payment: Transaction, as_of_ms: int) -> None:
    """Score it, observe it, score it, label it, score it: one score, one vector, and memos."""
    as_of = max(as_of_ms, world.store.newest_ms)
    before = world.scorer.score(payment, as_of=as_of)
    features = world.features(payment, as_of)
    world.scorer.observe(payment)
    after = world.scorer.score(payment, as_of=as_of)
    assert (after.score, after.source) == (before.score, "memo")
    assert not different_bits(features[None], world.features(payment, as_of)[None]).any()
    # A repetition of it, and facts of it, move its states but nothing of its own.
    world.scorer.observe(changed(payment))
    for fact in world.specification.facts:
        world.scorer.label(
            payment.transaction_id, known_at=payment.time, **cast("Any", {fact: True})
        )
    again = world.scorer.score(payment, as_of=as_of)
    assert (again.score, again.source) == (before.score, "memo")
    assert not different_bits(features[None], world.features(payment, as_of)[None]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_fact_that_waits_for_its_event_is_no_other_event(kind: str, seed: int) -> None:
    """It comes before its payment was observed, with entities and time."""
    world, traffic = filled("mixed", kind, seed)
    for _ in range(20):
        payment = traffic.new().first
        as_of = max(traffic.instant(payment), world.store.newest_ms)
        before = world.scorer.score(payment, as_of=as_of)
        for fact in world.specification.facts:
            world.scorer.label(
                payment.transaction_id,
                known_at=payment.time,
                entities=payment.entities,
                time=payment.time,
                **cast("Any", {fact: True}),
            )
        waiting = world.scorer.score(payment, as_of=as_of)
        world.scorer.observe(payment)
        after = world.scorer.score(payment, as_of=as_of)
        assert before.score == waiting.score == after.score
        assert "computed" not in (waiting.source, after.source)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("observed", [False, True])
def test_one_id_with_a_hundred_amounts_has_a_hundred_scores_of_its_own(
    kind: str, observed: bool, seed: int
) -> None:
    """Each is right, and none is the memo of another."""
    world, traffic = filled("payments", kind, seed)
    payment = changed(
        traffic.new().first, kind="authorisation", currency="EUR", base_amount_minor=None
    )
    if observed:
        world.scorer.observe(payment)
    as_of = max(payment.time, world.store.newest_ms)
    amounts = [1 + (37 * i * i) % 100_003 for i in range(100)]
    assert len(set(amounts)) == 100
    for amount in amounts:
        request = changed(payment, amount_minor=amount)
        result = world.scorer.score(request, as_of=as_of)
        assert result.source != "memo"
        assert result.score == world.fresh_score(request, as_of)
        assert world.scorer.score(request, as_of=as_of).source == "memo"
    if kind == "callable":
        scores = {
            world.fresh_score(changed(payment, amount_minor=amount), as_of) for amount in amounts
        }
        assert len(scores) == 100


def test_the_request_stands_for_its_stored_copy_at_its_own_time(seed: int) -> None:
    """Whatever the copy in the state says: another amount, time, kind or merchant."""
    world, traffic = filled("mixed", "callable", seed)
    for _ in range(20):
        payment = traffic.new().first
        as_of = max(traffic.instant(payment), world.store.newest_ms) + 10_000
        requests = [payment] + [traffic.other_content(traffic.recent[-1]) for _ in range(3)]
        before = [world.features(request, as_of) for request in requests]
        world.scorer.observe(payment)
        after = [world.features(request, as_of) for request in requests]
        assert not different_bits(np.array(before), np.array(after)).any()


class TwoIdentities(Packer):
    """Every request under an identity that nobody has: what scores payments twice would do."""

    n = 0

    def row(self, transaction: Transaction) -> bytes:
        """The row of the transaction, but for its identity."""
        TwoIdentities.n += 1
        row = super().row(changed(transaction))
        return struct.pack("<2Q", TwoIdentities.n, 1) + row[16:]


def test_canary_a_payment_that_counts_from_the_state_and_from_the_request_is_found(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("freshscore.scoring.serving.Packer", TwoIdentities)
    scaled = shipped("payments")
    world = World(scaled.specification, callable_model(scaled))
    payment = changed(Traffic(scaled, random.Random(seed)).new().first, entities={"card": "c"})
    with pytest.raises(AssertionError):
        check_that_it_counts_once(world, payment, payment.time)
