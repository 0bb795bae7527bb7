"""The log is restarted, read again, written again, and made anew: aggregates stay what they are."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition

from tests.faults.campaigns import Lane, say
from tests.faults.conftest import Deploy
from tests.faults.deployment import DAY_MS, Deployment, Logged, wait_until
from tests.faults.expected import check_account, check_states, expected_of, letters_of
from tests.faults.identifiers import check_no_identifiers
from tests.servers.fixtures import OwnKafka
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.redis_servers import RedisServer

_LONG = 10
_WIDE_S = 41 * DAY_MS // 1_000


def test_the_broker_killed_and_back(
    deploy: Deploy, own_kafka: OwnKafka, redis_server: RedisServer, seed: int
) -> None:
    """Nothing is lost, nothing doubled, and no consumer has to be restarted."""
    _restart_the_broker(deploy, own_kafka, redis_server, seed, ["kill"])


@pytest.mark.soak
def test_the_broker_killed_and_stopped_again_and_again(
    deploy: Deploy, own_kafka: OwnKafka, redis_server: RedisServer, seed: int
) -> None:
    """The same, longer."""
    _restart_the_broker(deploy, own_kafka, redis_server, seed, ["kill", "stop"] * _LONG)


def _restart_the_broker(
    deploy: Deploy, own_kafka: OwnKafka, redis: RedisServer, seed: int, ends: Sequence[str]
) -> None:
    lane = Lane(deploy(own_kafka(), redis, horizon_s=600), random.Random(seed))
    consumers = lane.deployment.begin(2)
    lane.begin_scorers(1)
    for how in ends:
        lane.flow_for(1.0)
        getattr(lane.deployment.broker, how)()
        lane.seen.kills[f"broker: {how}"] += 1
        lane.deployment.broker.start()
        say(f"broker: {dict(lane.seen.kills)}")
    lane.flow_for(1.0)
    print(f"broker killed, seed {seed}: {lane.finish()}")
    assert not any(consumer.log.read_text().count("Traceback") for consumer in consumers)


def test_the_stream_is_produced_twice_and_read_again(
    deploy: Deploy, kafka: KafkaBroker, redis_server: RedisServer, seed: int
) -> None:
    """Twice in the log, offsets reset to the beginning, both: no version moves."""
    lane = _flowed(deploy, kafka, redis_server, seed)
    own = lane.deployment
    before = expected_of(own, [lane.stream])
    produced = [own.read(topic) for topic in own.sources]
    for one in produced:
        _send_again(lane, one)
    own.wait_until_done()
    check_states(own, before, lane.chance)
    own.stop_all()
    _reset_offsets(own)
    own.begin()
    own.wait_until_done()
    check_states(own, before, lane.chance)
    print(f"produced twice, seed {seed}: {lane.finish()}")


def test_topics_are_deleted_and_made_anew(
    deploy: Deploy, kafka: KafkaBroker, redis_server: RedisServer, seed: int
) -> None:
    """While the consumer is away; offsets begin at 0 again, and mean other messages."""
    lane = _flowed(deploy, kafka, redis_server, seed)
    own = lane.deployment
    before = expected_of(own, [lane.stream])
    first_ids, first_letters = own.topic_ids(), letters_of(own)
    produced = [own.read(topic) for topic in own.sources]
    own.stop_all()
    _remake(own)
    own.begin()
    for one in produced:
        _send_again(lane, one)
    own.wait_until_done()
    check_states(own, before, lane.chance)
    after = expected_of(own, [lane.stream])
    lane.seen.outcomes = check_account(after, letters_of(own))
    check_account(before, first_letters)
    assert letters_of(own, first_ids).by_position == first_letters.by_position
    _close(lane, f"topics made anew, seed {seed}")


def test_topics_are_made_anew_under_a_consumer_that_runs(
    deploy: Deploy, kafka: KafkaBroker, redis_server: RedisServer, seed: int
) -> None:
    """It finds out by itself: dead letters stand under the new topic's id."""
    lane = _flowed(deploy, kafka, redis_server, seed)
    own = lane.deployment
    before = expected_of(own, [lane.stream])
    produced = [own.read(topic) for topic in own.sources]
    _remake(own)
    for one in produced:
        _send_again(lane, one)
    own.wait_until_done()
    check_states(own, before, lane.chance)
    lane.seen.outcomes = check_account(expected_of(own, [lane.stream]), letters_of(own))
    _close(lane, f"topics made anew under a consumer, seed {seed}")


def _flowed(deploy: Deploy, kafka: KafkaBroker, redis: RedisServer, seed: int) -> Lane:
    """A stream of which all arrives in time whenever it is sent again, applied by one consumer."""
    own = deploy(kafka, redis, horizon_s=_WIDE_S)
    lane = Lane(own, random.Random(seed), span_ms=40 * DAY_MS)
    own.begin()
    for _ in range(25):
        lane.flow()
    own.wait_until_done()
    return lane


def _close(lane: Lane, what: str) -> None:
    """End a lane whose log says less than its states hold: what was sent first is gone from it."""
    lane.sender.close()
    lane.deployment.stop_all()
    lane.seen.n_searched = check_no_identifiers(lane.deployment, [lane.stream.mark])
    print(f"{what}: {lane.seen}")


def _send_again(lane: Lane, produced: list[Logged]) -> None:
    lane.sender.send_all([(one.at.topic, one.value) for one in produced])


def _reset_offsets(own: Deployment) -> None:
    """As kafka-consumer-groups --reset-offsets --to-earliest does, while the group is empty."""
    consumer = KafkaConsumer(
        bootstrap_servers=own.broker.bootstrap, group_id=own.name, enable_auto_commit=False
    )
    places = [TopicPartition(topic, n) for topic in own.sources for n in range(own.n_partitions)]
    consumer.assign(places)
    consumer.commit({place: OffsetAndMetadata(0, "", -1) for place in places})
    consumer.close(autocommit=False)
    assert {*own.committed().values()} == {0}


def _remake(own: Deployment) -> None:
    """Delete the sources, and make them anew under their names."""
    with own.broker.admin() as admin:
        admin.delete_topics([*own.sources])
        wait_until(lambda: not {*own.sources} & {*admin.list_topics()}, "the topics are gone")
    own.make_sources()


def test_many_labels_without_a_payment_hold_nothing_up(
    deploy: Deploy, kafka: KafkaBroker, redis_server: RedisServer, seed: int
) -> None:
    """Each waits for the payments that were there when it was read, and all of them at once."""
    own = deploy(kafka, redis_server, redis__heartbeat_s=1.0)
    lane = Lane(own, random.Random(seed))
    own.begin()
    now_ms = lane.clock.now_ms()
    lane.sender.send_all([one for _ in range(400) for one in lane.stream.stray_label(now_ms)])
    lane.flow(40)
    own.wait_until_done(limit_s=15.0)
    seen = lane.finish(n_requests=2)
    print(f"labels without a payment, seed {seed}: {seen}")
    assert seen.outcomes["unknown transaction"] >= 400
