"""Consumers are killed, join and leave: aggregates and the account come out the same."""

from __future__ import annotations

import random

import pytest

from tests.faults.campaigns import Lane, consumers_killed, members_change
from tests.faults.conftest import Deploy
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.redis_servers import RedisServer


def _run_kills(
    deploy: Deploy, kafka: KafkaBroker, redis: RedisServer, seed: int, n_kills: int
) -> None:
    lanes = [Lane(deploy(kafka, redis), random.Random(seed + i)) for i in range(3)]
    consumers_killed(lanes, n_kills // 3)
    for lane in lanes:
        print(f"consumer killed, seed {seed}: {lane.finish()}")
    # What is to be compacted is known to a consumer alone: one lane's may die each time before.
    assert sum(lane.seen.n_folded for lane in lanes) > 0


def test_kills_of_the_consumer_change_nothing(
    deploy: Deploy, kafka: KafkaBroker, redis_server: RedisServer, seed: int
) -> None:
    """30 kills at random points of three streams."""
    _run_kills(deploy, kafka, redis_server, seed, 30)


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
    for number in range(8):
        chance = random.Random(seed + number)
        lane = Lane(deploy(kafka, redis_server), chance, most_members=members)
        members_change(lane, 40)
        print(f"{members} members, seed {seed + number}: {lane.finish()}")


@pytest.mark.soak
def test_a_thousand_kills(
    deploy: Deploy, kafka: KafkaBroker, redis_server: RedisServer, seed: int
) -> None:
    """In rounds, so that a failure names the round that can be repeated."""
    for number in range(20):
        _run_kills(deploy, kafka, redis_server, seed + 1_000 * number, 51)
