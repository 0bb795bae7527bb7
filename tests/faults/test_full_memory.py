"""Redis has reached its maxmemory: consumers wait and say so, scorers score, and all goes on."""

from __future__ import annotations

import random

from tests.faults.campaigns import Lane
from tests.faults.conftest import Deploy
from tests.faults.deployment import Process, wait_until
from tests.servers.fixtures import OwnRedis
from tests.servers.kafka_broker import KafkaBroker

_ROOM_BYTES = 100_000
_SCORED = 10


def test_memory_runs_full_and_there_is_room_again(
    deploy: Deploy, kafka: KafkaBroker, own_redis: OwnRedis, seed: int
) -> None:
    """Nothing is lost or doubled, no process is restarted, and no lease is gone for good."""
    redis = own_redis()
    lane = Lane(deploy(kafka, redis, redis__lease_s=1.0), random.Random(seed))
    own = lane.deployment
    (consumer,) = own.begin()
    lane.begin_scorers(1)
    (scorer,) = own.scorers
    lane.flow_for(0.5)
    own.wait_until_whole()
    with redis.client() as client:
        used = int(client.info("memory")["used_memory"])
        client.config_set("maxmemory", used + _ROOM_BYTES)
        while "maxmemory" not in consumer.log.read_text():
            lane.flow()
            assert lane.sender.n_sent < 100_000, "the memory did not run full"
        lane.seen.kills["memory full"] += 1
        told, trouble = own.scorers_told[0], troubles(scorer)
        n = len(told.read_text().splitlines())
        wait_until(lambda: len(told.read_text().splitlines()) >= n + _SCORED, "the scorer goes on")
        assert troubles(scorer) == trouble
        client.config_set("maxmemory", 0)
    lane.flow_for(0.5)
    print(f"memory full, seed {seed}: {lane.finish()}")
    for process in (consumer, scorer):
        assert "Traceback" not in process.log.read_text()


def troubles(scorer: Process) -> int:
    """How many payments were not scored or not sent."""
    return scorer.log.read_text().count("Unavailable(")
