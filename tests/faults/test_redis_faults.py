"""Redis dies, forgets its last second, or forgets everything: the consumer goes on by itself."""

from __future__ import annotations

import random

import pytest

from tests.faults.campaigns import Lane, say
from tests.faults.conftest import Deploy
from tests.faults.deployment import wait_until
from tests.faults.redis_files import borders_of, cut, file_of, size_of
from tests.servers.fixtures import OwnCluster, OwnRedis
from tests.servers.kafka_broker import KafkaBroker

# Three members that recover at once, on two cores.
_LONG_S = 90.0
_CRASHES = 40


@pytest.mark.parametrize("members", [1, 2])
def test_redis_killed_and_back_with_its_data(
    deploy: Deploy, kafka: KafkaBroker, own_redis: OwnRedis, seed: int, members: int
) -> None:
    """Nothing is lost, nothing doubled, and no consumer has to be restarted."""
    lane = Lane(deploy(kafka, own_redis(appendonly=True)), random.Random(seed))
    (redis,) = lane.deployment.servers
    consumers = lane.deployment.begin(members)
    lane.begin_scorers(2)
    for _ in range(3):
        lane.flow_for(lane.chance.uniform(0.5, 1.5))
        redis.kill()
        lane.seen.kills["Redis killed"] += 1
        lane.flow_for(lane.chance.uniform(0.0, 0.5))
        redis.start()
    lane.flow_for(0.5)
    lane.kill_scorer()
    print(f"Redis killed, seed {seed}: {lane.finish()}")
    assert not any(consumer.log.read_text().count("Traceback") for consumer in consumers)


@pytest.mark.parametrize("members", [1, 2])
def test_redis_loses_its_last_second(
    deploy: Deploy, kafka: KafkaBroker, own_redis: OwnRedis, seed: int, members: int
) -> None:
    """What was applied and committed is gone from Redis: it is read again from the markers."""
    lane = Lane(deploy(kafka, own_redis(appendonly=True)), random.Random(seed))
    lane.deployment.begin(members)
    for _ in range(3):
        lane.flow_for(lane.chance.uniform(0.5, 1.0))
        lane.deployment.wait_until_whole()
        (redis,) = lane.deployment.servers
        kept = size_of(redis)
        lane.flow_for(lane.chance.uniform(0.3, 1.0))
        _crash(lane, kept, share=0.9)
        redis.start()
    print(f"the last second lost, seed {seed}: {lane.finish()}")


def test_an_idle_consumer_sees_that_redis_lost_its_last_second(
    deploy: Deploy, kafka: KafkaBroker, own_redis: OwnRedis, seed: int
) -> None:
    """Between two heartbeats, so that nothing but a closed connection tells of it."""
    redis = own_redis(appendonly=True)
    lane = Lane(deploy(kafka, redis, redis__heartbeat_s=2.0), random.Random(seed))
    lane.deployment.begin()
    lane.flow_for(0.5)
    lane.deployment.wait_until_whole()
    kept = size_of(redis)
    lane.flow(60)
    lane.deployment.wait_until_done()
    _crash(lane, kept, share=0.0)
    redis.start()
    left = size_of(redis)
    # Nothing flows: the heartbeat alone must find out.
    wait_until(lambda: size_of(redis) > left, "the consumer writes again")
    print(f"the last second lost while idle, seed {seed}: {lane.finish()}")


def test_redis_forgets_its_scripts(
    deploy: Deploy, kafka: KafkaBroker, own_redis: OwnRedis, seed: int
) -> None:
    """An operator's SCRIPT FLUSH costs a consumer new connections, and no more."""
    lane = Lane(deploy(kafka, own_redis(appendonly=False)), random.Random(seed))
    lane.deployment.begin()
    lane.flow_for(0.5)
    lane.deployment.wait_until_whole()
    with lane.deployment.store() as store, store.nodes.lines() as lines:
        assert lines.ask(0, b"SCRIPT", b"FLUSH") == b"OK"
    lane.flow(60)
    print(f"scripts forgotten, seed {seed}: {lane.finish()}")


@pytest.mark.parametrize("members", [1, 2])
def test_redis_loses_everything(
    deploy: Deploy, kafka: KafkaBroker, own_redis: OwnRedis, seed: int, members: int
) -> None:
    """It has no epoch until all is back, and then another one."""
    redis = own_redis(appendonly=False)
    lane = Lane(deploy(kafka, redis), random.Random(seed))
    own = lane.deployment
    own.begin(members)
    lane.flow_for(1.0)
    own.wait_until_whole()
    epoch = own.epoch()
    lane.check(n_requests=2)
    for _ in range(2):
        redis.kill()
        redis.start()
        lane.seen.kills["Redis emptied"] += 1
        assert own.epoch() is None
        lane.flow_for(lane.chance.uniform(0.0, 0.4))
    wait_until(lambda: own.epoch() is not None, "another epoch")
    assert own.epoch() != epoch
    print(f"everything lost, seed {seed}: {lane.finish()}")


def test_an_epoch_is_given_when_all_is_back(
    deploy: Deploy, kafka: KafkaBroker, own_redis: OwnRedis, seed: int
) -> None:
    """At the moment at which a node has its epoch, every state is there."""
    redis = own_redis(appendonly=False)
    lane = Lane(deploy(kafka, redis), random.Random(seed))
    own = lane.deployment
    own.begin()
    lane.flow_for(1.0)
    own.wait_until_whole()
    for _ in range(3):
        redis.kill()
        redis.start()
        wait_until(lambda: own.epoch() is not None, "an epoch")
        lane.check(n_requests=2)
    lane.finish()


def test_one_node_of_a_cluster_loses_everything(
    deploy: Deploy, kafka: KafkaBroker, own_cluster: OwnCluster, seed: int
) -> None:
    """It alone is without an epoch until all is back; the others keep what they have."""
    lane = Lane(deploy(kafka, own_cluster()), random.Random(seed))
    own = lane.deployment
    own.begin()
    lane.flow_for(1.0)
    own.wait_until_whole()
    epochs = (own.epoch() or b"").split()
    lane.check(n_requests=2)
    node = lane.chance.choice(own.servers)
    node.kill()
    node.start()
    lane.seen.kills["nodes emptied"] += 1
    lane.flow_for(0.5)
    own.wait_until_whole()
    assert len({*epochs} & {*(own.epoch() or b"").split()}) == len(own.servers) - 1
    print(f"a node of a cluster emptied, seed {seed}: {lane.finish()}")


def _crash(lane: Lane, kept: int, share: float) -> None:
    """Kill Redis, and cut its file somewhere in the first `share` of what lies behind `kept`."""
    (redis,) = lane.deployment.servers
    wait_until(lambda: size_of(redis) > kept, "something is written that can be lost")
    redis.kill()
    borders = [border for border in borders_of(file_of(redis).read_bytes()) if border >= kept]
    assert len(borders) > 1, "nothing to lose"
    lost = cut(redis, borders[lane.chance.randrange(1 + int(share * (len(borders) - 1)))])
    assert lost > 0
    lane.seen.kills["commands lost"] += lost
    lane.seen.kills["Redis crashed"] += 1


@pytest.mark.soak
@pytest.mark.parametrize("members", [1, 2, 3])
def test_redis_crashes_again_and_again(
    deploy: Deploy, kafka: KafkaBroker, own_redis: OwnRedis, seed: int, members: int
) -> None:
    """Killed with its data, without its last second, or emptied, in any order."""
    redis = own_redis(appendonly=True)
    lane = Lane(deploy(kafka, redis), random.Random(seed))
    own = lane.deployment
    own.begin(members)
    for number in range(_CRASHES):
        if number % 5 == 0:
            say(f"{number} of {_CRASHES} with {members} members: {dict(lane.seen.kills)}")
        lane.flow_for(lane.chance.uniform(0.2, 1.0))
        own.wait_until_whole(_LONG_S)
        kept = size_of(redis)
        lane.flow_for(lane.chance.uniform(0.2, 1.0))
        how = lane.chance.choice(("killed", "crashed", "emptied"))
        if how == "crashed":
            _crash(lane, kept, share=0.9)
            redis.start()
            continue
        if how == "emptied":
            with redis.client() as client:
                client.flushall()
        else:
            redis.kill()
            redis.start()
        lane.seen.kills[f"Redis {how}"] += 1
    print(f"Redis again and again, seed {seed}: {lane.finish()}")
