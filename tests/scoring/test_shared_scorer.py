"""The shared scorer answers, bit for bit, what an embedded one answers that was told the same."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from freshscore.scoring.result import Result
from tests.laws.law_models import law_model
from tests.laws.law_specifications import Scaled, mixed, shipped
from tests.laws.worlds import Limits
from tests.scoring.shared_worlds import SharedWorld
from tests.servers.redis_servers import RedisServer

SPECIFICATIONS = ("mixed", "mixed again", "payments", "handbook", "sparkov")


@pytest.fixture
def scaled(request: pytest.FixtureRequest, seed: int) -> Scaled:
    name = getattr(request, "param", "mixed")
    return mixed(np.random.default_rng(seed)) if name.startswith("mixed") else shipped(name)


@pytest.fixture
def world(redis_server: RedisServer, namespace: str, scaled: Scaled, seed: int) -> Iterator[Any]:
    world = SharedWorld(
        redis_server.url, namespace, scaled, law_model("walked", scaled, seed), small(scaled)
    )
    yield world
    world.close()


def small(scaled: Scaled) -> Limits:
    return Limits(horizon_ms=scaled.horizon_ms, cache_bytes=1 << 16)


def same(one: Result, other: Result) -> None:
    """Two answers agree in all but the watermark, which is another thing embedded."""
    for name in ("score", "decision", "source", "as_of", "valid_until", "cause", "age_ms"):
        assert getattr(one, name) == getattr(other, name), name
    assert struct.pack("<d", one.score or 0.0) == struct.pack("<d", other.score or 0.0)
    assert one.state_versions == other.state_versions
    assert one.feature_hash == other.feature_hash
    assert one.degraded == other.degraded == ()
    assert one.complete_since == other.complete_since


def run(world: SharedWorld, steps: int, chance: random.Random, *, compacts: bool) -> int:
    """Random steps; every answer is compared. How many there were."""
    traffic = world.traffic
    answers, horizon_ms = 0, world.limits.horizon_ms
    for _ in range(steps):
        draw = chance.random()
        old = traffic.again() if draw >= 0.3 else None
        if old is None:
            paid = traffic.new()
            payment = paid.first
            if chance.random() < 0.7 and payment.time >= traffic.newest_ms - horizon_ms:
                paid.is_observed = True
                world.observe(payment)
                traffic.newest_ms = max(traffic.newest_ms, payment.time)
        elif draw < 0.6:
            payment = old.contents[-1]
        elif draw < 0.75 and old.is_observed:
            world.observe(old.first)
            continue
        elif draw < 0.85 and old.is_observed:
            fact = chance.randrange(len(world.program.specification.facts) or 1)
            if world.program.specification.facts:
                known_ms = old.first.time + chance.randrange(60_000)
                world.label(old.first, fact, chance.random() < 0.7, known_ms)
            continue
        else:
            if compacts and chance.random() < 0.2:
                world.compact(traffic.newest_ms - horizon_ms, chance)
            continue
        store = world.embedded.store
        world.report(store.newest_ms, store.complete_since_ms or 0)
        as_of = max(traffic.instant(payment), store.newest_ms)
        if payment.time < store.newest_ms - horizon_ms:
            continue
        expected = world.embedded.scorer.score(payment, as_of=as_of)
        same(world.scorer.score(payment, as_of=as_of), expected)
        answers += 1
    return answers


@pytest.mark.parametrize("scaled", SPECIFICATIONS, indirect=True)
def test_every_answer_is_the_embedded_ones_as_records_are_appended(
    world: SharedWorld, seed: int
) -> None:
    assert run(world, 400, random.Random(seed), compacts=False) > 100
    answers = world.scorer.stats()["answers"]
    assert answers["memo"] > 0
    assert answers == world.embedded.scorer.stats()["answers"]


@pytest.mark.parametrize("scaled", SPECIFICATIONS, indirect=True)
def test_compacting_and_folding_change_no_answer(world: SharedWorld, seed: int) -> None:
    assert run(world, 400, random.Random(seed), compacts=True) > 100


def test_late_facts_of_folded_events_count(redis_server: RedisServer, namespace: str) -> None:
    """Their content comes from beside the state, in a second exchange."""
    mended = 0
    for number in range(6):
        scaled = mixed(np.random.default_rng(number))
        model = law_model("walked", scaled, number)
        limits = Limits(horizon_ms=2_000, cache_bytes=1 << 16)
        world = SharedWorld(redis_server.url, f"{namespace}-{number}", scaled, model, limits)
        run(world, 500, random.Random(number), compacts=True)
        mended += world.scorer.stats()["store"]["mended"]
        world.close()
    assert mended > 0


def test_a_record_that_is_missing_in_redis_shows(world: SharedWorld, seed: int) -> None:
    """A canary: the comparison can fail."""
    run(world, 100, random.Random(seed), compacts=False)
    asked = world.traffic.new().first
    as_of = max(asked.time, world.embedded.store.newest_ms)
    for entity, token in enumerate(world.records.tokens(world.embedded.row(asked))):
        if token is not None:
            world.client.delete(world.state_key(entity, token))
    with pytest.raises(AssertionError):
        same(
            world.scorer.score(asked, as_of=as_of), world.embedded.scorer.score(asked, as_of=as_of)
        )
