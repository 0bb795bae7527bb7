"""Redis stands still, dies, forgets, or loses a primary, while scorers answer within a deadline.

Every call is answered; as good as all within the deadline, whatever Redis does; what lacks anything
says so; and all recover alone: in the end answers are whole, and equal to the oracle's.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.faults.campaigns import Lane
from tests.faults.conftest import Deploy
from tests.faults.deployment import pause
from tests.servers.fixtures import OwnCluster, OwnRedis
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.redis_servers import RedisServer

DEADLINE_MS = 150.0
_EVERY_S = 0.01
# Of the answers of a run: two cores are shared by broker, Redis, consumer, scorers and other tests.
_LATE_SHARE = 0.05
ANSWERED = {"redis.timeout_ms": 500, "fallback.decision": "review"}


@contextmanager
def standing_still(server: RedisServer) -> Iterator[None]:
    """It hears, and answers nothing."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def answering(deploy: Deploy, kafka: KafkaBroker, redis: Any, seed: int, **more: Any) -> Lane:
    """A lane with a consumer and two scorers that have answered for a while."""
    settings = {name.replace(".", "__"): value for name, value in ANSWERED.items()} | more
    lane = Lane(deploy(kafka, redis, **settings), random.Random(seed))
    lane.deployment.begin()
    lane.flow_for(0.5)
    lane.deployment.wait_until_whole()
    lane.begin_scorers(2, every_s=_EVERY_S, deadline_ms=DEADLINE_MS)
    lane.flow_for(1.0)
    return lane


def settled(lane: Lane) -> None:
    """Check what must hold at the end of each of these."""
    own = lane.deployment
    own.wait_until_whole()
    # By themselves, without a restart, within the longest pause of a breaker and a heartbeat.
    pause(2.0)
    seen = lane.finish(n_requests=4)
    answers = seen.answers
    print(f"{dict(answers)}; {seen}")
    assert answers["not scored"] == 0
    assert answers["degraded"] > 0
    assert answers["late"] <= _LATE_SHARE * answers["scored"]


@pytest.mark.parametrize("for_s", [2.0, pytest.param(10.0, marks=pytest.mark.soak)])
def test_redis_stands_still(
    deploy: Deploy, kafka: KafkaBroker, own_redis: OwnRedis, seed: int, for_s: float
) -> None:
    redis = own_redis(appendonly=True)
    lane = answering(deploy, kafka, redis, seed)
    with standing_still(redis):
        lane.flow_for(for_s)
    lane.flow_for(1.0)
    settled(lane)
    assert lane.seen.answers["degraded: nothing known"] > 50 * for_s


@pytest.mark.parametrize("keeps", [True, False])
def test_redis_dies_and_comes_back(
    deploy: Deploy, kafka: KafkaBroker, own_redis: OwnRedis, seed: int, keeps: bool
) -> None:
    """With its data, or without: then answers say that states are lost, until they are rebuilt."""
    redis = own_redis(appendonly=keeps)
    lane = answering(deploy, kafka, redis, seed)
    redis.kill()
    lane.flow_for(1.0)
    redis.start()
    lane.flow_for(1.0)
    settled(lane)
    assert lane.seen.answers["degraded: nothing known"] > 50
    assert keeps or lane.seen.answers["degraded: state lost"] > 0


def test_a_primary_dies(
    deploy: Deploy, kafka: KafkaBroker, own_cluster: OwnCluster, seed: int
) -> None:
    cluster = own_cluster(replicas=1, settings=["cluster-require-full-coverage no"])
    lane = answering(deploy, kafka, cluster, seed)
    cluster.primaries[lane.chance.randrange(3)].kill()
    lane.flow_for(5.0)
    settled(lane)
    assert lane.seen.answers["degraded: state unreachable"] > 0
