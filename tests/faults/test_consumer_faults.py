"""Consumers are killed, join and leave: aggregates and the account come out the same."""

from __future__ import annotations

import random

import pytest

from tests.faults.campaigns import Lane, consumers_killed, members_change, say
from tests.faults.conftest import Deploy
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.redis_servers import RedisServer

_ROUNDS = 20
# A third of them in each lane.
_KILLS_A_ROUND = 51
_ROUNDS_OF_MEMBERS = 8
_CHANGES_A_ROUND = 40


def _run_kills(
    deploy: Deploy, kafka: KafkaBroker, redis: RedisServer, seed: int, n_kills: int
) -> list[Lane]:
    """Lanes that have come through so many kills together."""
    lanes = [Lane(deploy(kafka, redis), random.Random(seed + i)) for i in range(3)]
    lanes[0].begin_scorers(2)
    consumers_killed(lanes, n_kills // 3)
    lanes[0].kill_scorer()
    for lane in lanes:
        say(f"consumer killed, seed {seed}: {lane.finish()}")
    return lanes


def test_kills_of_the_consumer_change_nothing(
    deploy: Deploy, kafka: KafkaBroker, redis_server: RedisServer, seed: int
) -> None:
    """30 kills at random points of three streams."""
    lanes = _run_kills(deploy, kafka, redis_server, seed, 30)
    # What is to be compacted is known to a consumer alone: one lane's may die each time before.
    assert sum(lane.seen.n_folded for lane in lanes) > 0


@pytest.mark.parametrize("members", [2, 3])
def test_members_that_come_and_go_change_nothing(
    deploy: Deploy, kafka: KafkaBroker, redis_server: RedisServer, seed: int, members: int
) -> None:
    """Cards and merchants are shared by all partitions, and so by all members."""
    lane = Lane(deploy(kafka, redis_server), random.Random(seed), most_members=members)
    members_change(lane, 10)
    print(f"{members} members, seed {seed}: {lane.finish()}")


@pytest.mark.soak
@pytest.mark.parametrize("members", [2, 3])
def test_members_that_come_and_go_for_long(
    deploy: Deploy, kafka: KafkaBroker, redis_server: RedisServer, seed: int, members: int
) -> None:
    """The same, longer; in rounds, so that a failure names the round that can be repeated."""
    for number in range(_ROUNDS_OF_MEMBERS):
        chance = random.Random(seed + number)
        lane = Lane(deploy(kafka, redis_server), chance, most_members=members)
        members_change(lane, _CHANGES_A_ROUND)
        seen = lane.finish()
        say(f"{members} members, seed {seed + number}: {seen}")
        say(f"round {number + 1} of {_ROUNDS_OF_MEMBERS}")
        lane.deployment.remove()


@pytest.mark.soak
def test_a_thousand_kills(
    deploy: Deploy, kafka: KafkaBroker, redis_server: RedisServer, seed: int
) -> None:
    """In rounds, so that a failure names the round that can be repeated."""
    n_kills, n_folded = 0, 0
    for number in range(_ROUNDS):
        lanes = _run_kills(deploy, kafka, redis_server, seed + 1_000 * number, _KILLS_A_ROUND)
        for lane in lanes:
            n_kills += lane.seen.kills["SIGKILL"]
            n_folded += lane.seen.n_folded
            lane.deployment.remove()
        say(f"round {number + 1} of {_ROUNDS}: {n_kills:,} kills so far")
    assert n_kills >= _ROUNDS * _KILLS_A_ROUND
    assert n_folded > 0
