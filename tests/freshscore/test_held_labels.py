"""Labels that wait for their payments, on a real broker: what is behind them is still to come."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np

from freshscore.features.redis_commands import remove_namespace
from freshscore.features.redis_progress import progress_of
from freshscore.invalidation.assembling import open_consumer
from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.kafka_writing import LogWriter
from tests.freshscore.shared_deployment import SharedDeployment, label, now_ms, payment, recent

_TURNS = 2_000
_APART_S = 0.05


def _send_apart(deployment: SharedDeployment, labels: list[dict[str, Any]]) -> None:
    """Labels in one partition, each with a stamp of its own."""
    writer = LogWriter(deployment.settings.kafka)
    for one in labels:
        topic = deployment.settings.kafka.labels_topic
        writer.send(topic, None, json.dumps(one).encode(), partition=0)
        writer.flush(30.0)
        threading.Event().wait(_APART_S)
    writer.close(30.0)


def _stamps(deployment: SharedDeployment, n: int) -> list[int]:
    """The stamps of the first labels."""
    kafka = deployment.settings.kafka
    reader = LogReader(kafka, [kafka.labels_topic], group=None)
    at = (kafka.labels_topic, 0)
    reader.assign([at])
    reader.seek(at, 0)
    found: list[int] = []
    while len(found) < n:
        for one in reader.poll(100):
            found += one.spans[:, 2].tolist()
    reader.close()
    return found[:n]


def test_a_label_that_waits_holds_the_watermark_before_what_is_behind_it(
    deployment: SharedDeployment,
) -> None:
    payments = recent(8)
    deployment.send(payments)
    deployment.consume()
    known = [label(one, looked_up=False) for one in payments]
    waits = label(payment(900, now_ms()))
    _send_apart(deployment, [known[0], waits, *known[1:]])
    stamps = _stamps(deployment, 9)
    assert (np.diff(stamps) > 0).all()
    consumer = open_consumer(deployment.settings)
    at = (deployment.settings.kafka.labels_topic, 0)
    # Its first heartbeat releases what waited, so it is looked at before that.
    consumer._beat_s = float("inf")
    for _ in range(_TURNS):
        consumer.turn(wait_ms=20)
        if at in consumer._places and consumer._places[at].is_held:
            break
    assert consumer._places[at].is_held
    assert consumer._places[at].applied == 1
    assert consumer._places[at].arrival_ms <= stamps[1]
    with deployment.opened() as found, found.nodes.lines() as lines:
        tag = found.nodes.tags[0]
        summary = lines.ask(0, b"GET", found.redis_keys.progress(tag))
        assert isinstance(summary, bytes)
        assert progress_of(summary).watermark_ms <= stamps[1]
    consumer.close()
    # It is set aside then, and all that is behind it counts.
    assert deployment.consume()["unknown transaction"] == 1
    _all_equal(deployment)


def test_a_rebuild_finds_the_payment_that_a_label_came_too_early_for(
    deployment: SharedDeployment,
) -> None:
    first, late = recent(2)
    deployment.send([first], [label(late)])
    assert deployment.consume()["unknown transaction"] == 1
    deployment.send([late])
    deployment.consume()
    _all_equal(deployment)
    with deployment.opened() as found:
        remove_namespace(found.nodes, deployment.settings.redis.namespace)
    assert deployment.consume() == {"applied": 2, "looked up": 1}
    # The letter is still open, and the fact counts: both sets are what the log may give.
    _all_equal(deployment)


def _all_equal(deployment: SharedDeployment) -> None:
    findings = deployment.figures("verify")["states"]["findings"]
    assert {one["verdict"] for one in findings} == {"equal"}
