"""A shadow while servers die and come back: it waits, goes on by itself, and leaves nothing out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.freshscore.shadows import begun, committed_of, decisions_of, turns_until, with_model
from tests.freshscore.shared_deployment import SharedDeployment, payment, recent, shared_deployment
from tests.servers.fixtures import OwnKafka, OwnRedis
from tests.servers.kafka_broker import KafkaBroker

# A killed broker's registration must end before it is back.
_SOON = {"broker.session.timeout.ms": "3000", "broker.heartbeat.interval.ms": "500"}


@pytest.fixture
def broker(own_kafka: OwnKafka) -> KafkaBroker:
    """A broker that may be killed."""
    return own_kafka(settings=_SOON)


def test_it_outlives_redis_and_kafka(
    broker: KafkaBroker,
    own_redis: OwnRedis,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each message is answered at least once; what is committed was acknowledged before."""
    redis = own_redis(appendonly=True)
    (deployment,) = shared_deployment(broker, redis, namespace, tmp_path, monkeypatch)
    with_model(deployment)
    deployment.given |= {"kafka.commit_every_s": 0.05, "redis.timeout_ms": 300}
    deployment.send(recent(20))
    deployment.consume()
    shadow = begun(deployment)
    deployment.send(recent(5, first=900))
    turns_until(shadow, lambda: shadow.counts.n_messages == 5)

    redis.kill()
    deployment.send(recent(5, first=905))
    for _ in range(4):
        shadow.turn()
    assert shadow.counts.n_messages == 5
    assert _n_committed(deployment) <= 25
    redis.start()
    turns_until(shadow, lambda: shadow.counts.n_messages >= 10)

    broker.kill()
    for _ in range(4):
        shadow.turn()
    broker.start()
    deployment.send([payment(910 + i, one["time"]) for i, one in enumerate(recent(5))])
    turns_until(shadow, lambda: len({one.row[:16] for one in decisions_of(deployment)}) == 15)
    shadow.close()
    assert _n_committed(deployment) == 35


def _n_committed(deployment: SharedDeployment) -> int:
    """Messages before what is committed: those of before the shadow too."""
    return sum(one or 0 for one in committed_of(deployment))
