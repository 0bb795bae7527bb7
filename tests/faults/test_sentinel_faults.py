"""A primary dies, and Sentinels put its replica in its place: what is lost comes back from the log.

Replication is asynchronous, so a replica may lack what consumers were told is written. What the
primary had said is compared with what the replica has, and timed until the replica has it too.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest

from tests.faults.campaigns import Lane, say
from tests.faults.conftest import Deploy
from tests.faults.deployment import Deployment, wait_until
from tests.servers.fixtures import OwnSentinels
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.redis_sentinels import RedisSentinels
from tests.servers.redis_servers import RedisServer, ReplicatedRedis

Markers = dict[bytes, int]
_TURNS = 5
_LONG_S = 60.0
# Messages in one step; a step ends when they are in the log.
_MUCH = 100


class Failover(NamedTuple):
    """What one failover cost.

    n_lost: messages that the primary had and its replica lacked. unserved_s: from the kill until
    the replica takes writes. repaired_s: until it has all that the primary had, and what came
    since.
    """

    n_lost: int
    unserved_s: float
    repaired_s: float

    def __str__(self) -> str:
        return (
            f"{self.n_lost} messages lost, {self.unserved_s:.2f} s until the replica takes writes,"
            f" {self.repaired_s:.2f} s until it has them and what came since"
        )


def markers_of(own: Deployment, server: RedisServer) -> Markers:
    """Partition -> next offset, as a server has them; none while it has no epoch."""
    with server.client() as client:
        (key,) = client.scan_iter(match=f"{own.name}:{{0}}:markers:*", count=10_000)
        held = client.hgetall(key)
    return {name: int(value.split()[0]) for name, value in held.items() if name.startswith(b"m:")}


def fail_over(lane: Lane, redis: RedisSentinels, *, cut_off_s: float, chunk: int) -> Failover:
    """Kill the primary while messages flow; its replica has heard nothing for `cut_off_s`."""
    own, clock = lane.deployment, lane.clock
    primary = redis.primary
    (replica,) = (one for one in redis.nodes if one is not primary)
    if cut_off_s:
        cut_off(replica)
        end_s = clock.monotonic_s() + cut_off_s
        while clock.monotonic_s() < end_s:
            lane.flow(chunk)
    lane.flow(chunk)
    had = markers_of(own, primary)
    primary.kill()
    killed_s = clock.monotonic_s()
    lane.seen.kills["primaries killed"] += 1
    kept = markers_of(own, replica)
    n_lost = sum(max(0, offset - kept.get(name, 0)) for name, offset in had.items())
    lane.flow(chunk)
    ids = own.topic_ids()
    wanted = {f"m:{ids[at]}:{n}".encode(): end for (at, n), end in own.ends().items() if end}
    wait_until(replica.is_primary, "the replica takes over", _LONG_S)
    unserved_s = clock.monotonic_s() - killed_s

    def is_repaired() -> bool:
        has = markers_of(own, replica)
        return all(has.get(name, 0) >= end for name, end in wanted.items())

    wait_until(is_repaired, "what was lost has come back", _LONG_S)
    repaired_s = clock.monotonic_s() - killed_s
    lane.seen.kills["messages lost by the replica"] += n_lost
    return Failover(n_lost, unserved_s, repaired_s)


def cut_off(replica: ReplicatedRedis) -> None:
    """Let a replica hear nothing of its primary, while both live."""
    with replica.client() as client:
        client.config_set("masteruser", "nobody")
        client.config_set("masterauth", "nothing")
        client.execute_command("CLIENT", "KILL", "TYPE", "master")


def rejoin(redis: RedisSentinels, gone: ReplicatedRedis) -> None:
    """Have the killed server back as a replica of the other, so that it can be killed too."""
    gone.start()
    for one in redis.nodes:
        with one.client() as client:
            client.config_set("masteruser", "")
            client.config_set("masterauth", "")
    primary = redis.primary
    gone.wait_until(lambda: gone is not primary and gone.follows(), 60.0)
    redis.wait_until_known()


@pytest.mark.parametrize("cut_off_s", [0.0, 0.5])
def test_a_replica_takes_over_under_load(
    deploy: Deploy,
    kafka: KafkaBroker,
    own_sentinels: OwnSentinels,
    seed: int,
    cut_off_s: float,
) -> None:
    """Consumers and scorers go on by themselves, and in the end all is there, counted once."""
    redis = own_sentinels()
    lane = Lane(deploy(kafka, redis), random.Random(seed))
    consumers = lane.deployment.begin(2)
    lane.begin_scorers(2)
    lane.flow_for(0.5)
    lane.deployment.wait_until_whole()
    epoch = lane.deployment.epoch()
    found = fail_over(lane, redis, cut_off_s=cut_off_s, chunk=12)
    assert found.n_lost > 0 or not cut_off_s
    lane.flow_for(0.5)
    lane.deployment.wait_until_whole()
    # Nothing was rebuilt: what the replica had is a prefix, and its markers say which.
    assert lane.deployment.epoch() == epoch
    print(f"a failover by Sentinels, seed {seed}: {found}; {lane.finish()}")
    assert not any("Traceback" in one.log.read_text() for one in consumers)


@pytest.mark.soak
@pytest.mark.parametrize("cut_off_s", [0.0, 0.1, 1.0])
def test_what_failovers_lose_under_load_and_how_long_until_it_is_back(
    deploy: Deploy, kafka: KafkaBroker, own_sentinels: OwnSentinels, seed: int, cut_off_s: float
) -> None:
    """The figures of docs/shared.md."""
    redis = own_sentinels(appendonly=True)
    lane = Lane(deploy(kafka, redis, kafka__max_poll_records=2_000), random.Random(seed))
    lane.deployment.begin(2)
    lane.begin_scorers(2)
    lane.flow_for(0.5)
    for number in range(_TURNS):
        lane.deployment.wait_until_whole()
        gone = redis.primary
        found = fail_over(lane, redis, cut_off_s=cut_off_s, chunk=_MUCH)
        say(f"{number + 1} of {_TURNS}, cut off for {cut_off_s} s: {found}")
        rejoin(redis, gone)
    print(f"failovers by Sentinels, cut off for {cut_off_s} s, seed {seed}: {lane.finish(0)}")
