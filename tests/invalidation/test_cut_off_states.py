"""Messages that the log forgot before they were applied: said, and never passed over in silence."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from kafka import TopicPartition

from freshscore import Scorer
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.redis_lines import Lines
from freshscore.invalidation.assembling import open_consumer
from freshscore.invalidation.consumer import Consumer
from freshscore.invalidation.node_markers import NodeMarkers
from freshscore.invalidation.node_reports import NodeReport, node_reports
from freshscore.invalidation.partitions import WHOLE, NodeMarker, RebuiltNote
from tests.freshscore.shared_deployment import (
    SharedDeployment,
    label,
    payment,
    recent,
    shared_deployment,
)
from tests.servers.kafka_broker import KafkaBroker

_LIMIT_TURNS = 400
_SKEW_MS = 1_000


@pytest.fixture(
    params=[
        pytest.param("redis_server", marks=pytest.mark.servers),
        pytest.param("redis_cluster", marks=pytest.mark.servers),
    ]
)
def deployment(
    request: pytest.FixtureRequest,
    kafka: KafkaBroker,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[SharedDeployment]:
    redis = request.getfixturevalue(request.param)
    for one in shared_deployment(kafka, redis, namespace, tmp_path, monkeypatch):
        one.given["store.skew_s"] = _SKEW_MS // 1_000
        yield one


def _reports(deployment: SharedDeployment) -> list[NodeReport]:
    with deployment.opened() as found:
        return node_reports(found.nodes, found.redis_keys)


def _epochs(deployment: SharedDeployment) -> list[str | None]:
    return [one.epoch for one in _reports(deployment)]


def _cut(deployment: SharedDeployment, kafka: KafkaBroker, left: int) -> None:
    """Remove all but the last messages of each partition of payments, as retention does."""
    topic = deployment.settings.kafka.transactions_topic
    with kafka.admin() as admin:
        places = [TopicPartition(topic, number) for number in range(2)]
        ends = admin.list_partition_offsets(dict.fromkeys(places, -1))
        admin.delete_records({place: ends[place].offset - left for place in places})


def _turn_until_caught_up(consumer: Consumer) -> None:
    for _ in range(_LIMIT_TURNS):
        consumer.turn()
        if consumer.is_caught_up:
            return
    pytest.fail("the consumer did not catch up")


def _check_rebuilt(
    deployment: SharedDeployment, before: list[str | None], log: pytest.LogCaptureFixture
) -> None:
    """Every node has another epoch, is complete since what is left came, and equals the log."""
    reports = _reports(deployment)
    assert not {None, *before} & {one.epoch for one in reports}
    found = deployment.figures("verify")["states"]
    assert {one["verdict"] for one in found["findings"]} == {"equal"}
    assert {one.complete_since_ms for one in reports} == {found["line_ms"]}
    said = [one.getMessage() for one in log.records if one.levelno == logging.ERROR]
    assert any("is gone from the log before it was applied" in one for one in said)


@pytest.mark.parametrize("by_another_specification", [False, True])
def test_consumers_that_were_away_for_longer_than_the_retention(
    deployment: SharedDeployment,
    kafka: KafkaBroker,
    caplog: pytest.LogCaptureFixture,
    by_another_specification: bool,
) -> None:
    """Also where the group went on meanwhile, with a specification of other states."""
    deployment.send(recent(30))
    deployment.consume()
    before = _epochs(deployment)
    own = deployment.given["store.specification"]
    sent = recent(40, first=30)
    deployment.send(sent, [label(sent[3]), label(sent[-1])])
    if by_another_specification:
        text = Path(own).read_text("utf-8").replace('facts = ["fraud"]', 'facts = ["fraud", "x"]')
        other = deployment.folder / "other.toml"
        other.write_text(text, "utf-8")
        deployment.given["store.specification"] = str(other)
        deployment.consume()
        deployment.given["store.specification"] = own
    _cut(deployment, kafka, 5)
    consumer = open_consumer(deployment.settings)
    for _ in range(_LIMIT_TURNS):
        consumer.turn()
        if None in _epochs(deployment):
            break
    given = deployment.given
    with Scorer.open("shared", settings=given, model=lambda rows: np.zeros(len(rows))) as scorer:
        assert "state lost" in scorer.score(payment(1, sent[-1]["time"])).degraded
    _turn_until_caught_up(consumer)
    consumer.close()
    _check_rebuilt(deployment, before, caplog)
    whole = _epochs(deployment)
    assert sum(deployment.consume().values()) == 0
    assert _epochs(deployment) == whole


@pytest.mark.parametrize("more_comes", [True, False])
def test_a_consumer_that_is_overtaken_while_it_runs(
    deployment: SharedDeployment,
    kafka: KafkaBroker,
    caplog: pytest.LogCaptureFixture,
    more_comes: bool,
) -> None:
    """The client goes on at the log's beginning without a word; also where nothing is left."""
    deployment.send(recent(30))
    consumer = open_consumer(deployment.settings)
    _turn_until_caught_up(consumer)
    before = _epochs(deployment)
    deployment.send(recent(400, first=30))
    _cut(deployment, kafka, 5 if more_comes else 0)
    for _ in range(_LIMIT_TURNS):
        consumer.turn()
        if not {*before} & {*_epochs(deployment)}:
            break
    _turn_until_caught_up(consumer)
    consumer.close()
    if more_comes:
        _check_rebuilt(deployment, before, caplog)
    else:
        assert not {None, *before} & {*_epochs(deployment)}


def test_a_rebuilding_that_is_overtaken_begins_again(
    deployment: SharedDeployment, kafka: KafkaBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """Else its end would vouch for messages that it never read."""
    deployment.send(recent(30))
    _cut(deployment, kafka, 5)
    with deployment.opened() as found:
        markers = _markers(deployment, found.nodes, found.redis_keys, found.keys.key_id)
        lines = found.nodes.borrow()
        markers.begin_rebuilding(lines)
        topic = deployment.settings.kafka.transactions_topic
        done = {(topic, number): RebuiltNote(WHOLE, 1) for number in range(2)}
        assert markers.note_rebuilt(lines, dict.fromkeys(done, 3), done, 1)
        found.nodes.give_back(lines)
    assert {one.is_rebuilding for one in _reports(deployment)} == {True}
    deployment.consume()
    _check_rebuilt(deployment, [], caplog)


def test_a_node_that_has_just_become_whole_knows_how_far_it_is(
    deployment: SharedDeployment,
) -> None:
    """A consumer that dies before its next marker leaves no node without one."""
    with deployment.opened() as found:
        markers = _markers(deployment, found.nodes, found.redis_keys, found.keys.key_id)
        lines = found.nodes.borrow()
        markers.begin_rebuilding(lines)
        kafka = deployment.settings.kafka
        topics = (kafka.transactions_topic, kafka.labels_topic)
        places = [(topic, number) for topic in topics for number in range(2)]
        notes = {at: RebuiltNote(WHOLE, 1_000) for at in places}
        assert markers.note_rebuilt(lines, dict.fromkeys(places, 7), notes, 2_000)
        assert not markers.is_rebuilding
        read = markers.read(lines, places)
        assert {one for some in read.values() for one in some} == {NodeMarker(True, 7)}
        # Of another rebuilding by now: nothing is given up.
        _check_given_up_once(markers, lines, found.nodes, found.redis_keys)
        found.nodes.give_back(lines)


def _check_given_up_once(markers: NodeMarkers, lines: Lines, nodes: Nodes, keys: RedisKeys) -> None:
    for _ in range(2):
        markers.give_up(lines, 0)
        first, *others = node_reports(nodes, keys)
        assert (first.epoch, first.is_rebuilding, first.markers) == (None, True, {})
        assert all(one.epoch is not None for one in others)
    assert first.key_id is not None


def _markers(
    deployment: SharedDeployment, nodes: Nodes, keys: RedisKeys, key_id: str
) -> NodeMarkers:
    return NodeMarkers(
        nodes, keys, key_id, _topic_ids(deployment), 4, itertools.count(5).__next__, 0
    )


def _topic_ids(deployment: SharedDeployment) -> Mapping[str, str]:
    consumer = open_consumer(deployment.settings)
    ids = dict(consumer._parts.topic_ids)
    consumer.close()
    return ids
