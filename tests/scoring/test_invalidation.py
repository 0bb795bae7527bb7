"""Invalidating cached scores: nothing older is served, whatever it was cached for."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from freshscore.config.settings import Settings
from freshscore.features.row import TOKENS
from freshscore.features.transaction import Transaction
from freshscore.scoring.explanation import explained
from freshscore.scoring.scorer import tier_limits
from freshscore.scoring.tier import Tier, TierLimits
from tests.laws.law_models import KINDS, cohorts_of, law_model
from tests.laws.law_specifications import Scaled, mixed, shipped
from tests.laws.worlds import DAY_MS, MONDAY_MS, Limits, World

AT_MS = MONDAY_MS + 30 * DAY_MS


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest) -> World:
    scaled = shipped("payments")
    world = World(scaled.specification, law_model(request.param, scaled, 1))
    for number in range(20):
        world.scorer.observe(payment(1_000 + number, -1_000 * number))
    return world


def payment(number: int, after_ms: int = 0, channel: str = "app") -> Transaction:
    return Transaction(
        f"p-{number}",
        AT_MS + after_ms,
        # Far apart, so that no two share a cell of the callable.
        100 + 977 * number,
        "EUR",
        {"card": f"c-{number % 5}", "merchant": f"m-{number % 3}"},
        fields={"channel": channel, "category": channel},
    )


def token(world: World, one: Transaction, entity: int = 0) -> bytes:
    at = TOKENS + 16 * entity
    return world.row(one)[at : at + 16]


def source(world: World, one: Transaction) -> str | None:
    return world.scorer.score(one, as_of=AT_MS).source


def test_an_entitys_scores_are_computed_anew_and_no_others(world: World) -> None:
    mine, other = payment(0), payment(1)
    for one in (mine, other):
        source(world, one)
        assert source(world, one) == "memo"
    before = world.scorer.score(mine, as_of=AT_MS)
    assert world.serving.tier.invalidate(token=token(world, mine)) == 1
    assert source(world, other) == "memo"
    found = world.scorer.score(mine, as_of=AT_MS)
    assert found.source == "computed" or (found.source == "cell" and found.score == before.score)
    assert found.cause == "not to be served"
    assert found.score == before.score
    assert source(world, mine) == "memo"
    # By its merchant as well as by its card.
    world.serving.tier.invalidate(token=token(world, mine, entity=1))
    assert source(world, mine) != "memo"
    assert world.scorer.stats()["causes"]["not to be served"] == 2


def test_a_models_scores_are_all_computed_anew(world: World) -> None:
    rows = [payment(number) for number in range(30)]
    for one in rows:
        source(world, one)
    world.serving.tier.invalidate(model=True)
    calls = [source(world, one) for one in rows]
    assert "memo" not in calls
    assert calls[0] == "computed"
    assert [source(world, one) for one in rows] == ["memo"] * 30


def test_a_cohorts_scores_are_computed_anew_and_no_others() -> None:
    scaled = next(one for one in map(_mixed, range(100)) if len(cohorts_of(one)) == 2)
    world = World(scaled.specification, law_model("callable", scaled, 1))
    web, app = payment(0, channel="web"), payment(1)
    for one in (web, app):
        source(world, one)
    assert [one.name for one in world.model.cohorts] == ["web"]
    world.serving.tier.invalidate(cohort=0)
    assert source(world, app) == "memo"
    assert source(world, web) == "computed"
    # The last cohort is of all who meet no condition.
    world.serving.tier.invalidate(cohort=1)
    assert source(world, web) == "memo"
    assert source(world, app) == "computed"


def _mixed(number: int) -> Scaled:
    return mixed(np.random.default_rng(number))


def test_a_number_that_was_known_before_changes_nothing_newer(world: World) -> None:
    tier = world.serving.tier
    tier.invalidate(generation=7, model=True)
    one = payment(0)
    source(world, one)
    assert source(world, one) == "memo"
    tier.invalidate(generation=5, model=True)
    tier.invalidate(generation=6, token=token(world, one))
    assert source(world, one) == "memo"
    assert tier.generation == 7


def test_beyond_the_limit_on_entities_everything_older_ends() -> None:
    scaled = shipped("payments")
    world = World(scaled.specification, law_model("walked", scaled, 1), Limits())
    limits = tier_limits(Settings.model_validate({"cache": {"max_invalidated": 2}}))
    assert isinstance(limits, TierLimits)
    model = world.model
    tier = Tier(
        world.store,
        model.forest,
        walked=True,
        thresholds=model.cohort_thresholds,
        hash_key=scaled.specification.fingerprint,
        limits=limits,
        seed=1,
    )
    world.serving.tier = tier
    world.serving.context_at = tier.context_at
    one = payment(0)
    source(world, one)
    chance = random.Random(1)
    for _ in range(2):
        tier.invalidate(token=chance.randbytes(16))
        assert source(world, one) == "memo"
    assert tier.n_invalidated == 2
    tier.invalidate(token=chance.randbytes(16))
    assert tier.n_invalidated == 2
    assert source(world, one) == "computed"
    assert source(world, one) == "memo"


def test_one_thing_is_invalidated_at_a_time(world: World) -> None:
    for wrong in ({}, {"model": True, "cohort": 1}, {"cohort": 0, "token": bytes(16)}):
        given: Any = wrong
        with pytest.raises(ValueError, match="one of"):
            world.serving.tier.invalidate(**given)


def test_an_explanation_says_why_it_was_computed(world: World) -> None:
    one = payment(0)
    source(world, one)
    world.serving.tier.invalidate(model=True)
    result = world.scorer.score(one, as_of=AT_MS)
    vector = world.features(one, AT_MS)
    said = explained(world.model, world.specification, vector, result)
    assert "invalidated" in said.served
