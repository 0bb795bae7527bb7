"""Journals of several topics: one that takes nothing holds up no other, on a real broker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from freshscore.config.clock import SystemClock
from freshscore.config.errors import Unavailable
from freshscore.config.settings import KafkaSettings
from freshscore.invalidation.journalled_log import JournalledLog
from freshscore.invalidation.journalled_topics import JournalledTopics
from freshscore.invalidation.kafka_writing import LogWriter
from tests.invalidation.journal_worlds import KEY_ID, ROOMY
from tests.servers.kafka_broker import KafkaBroker

_LIMIT_S = 60.0
_N = 50


@pytest.fixture
def settings(kafka: KafkaBroker, namespace: str) -> KafkaSettings:
    """Of a log that has the topic of payments, and not that of labels."""
    found = KafkaSettings(
        bootstrap_servers=kafka.bootstrap,
        transactions_topic=f"{namespace}-transactions",
        labels_topic=f"{namespace}-labels",
        request_timeout_s=1.0,
    )
    kafka.create_topic(found.transactions_topic, partitions=1)
    return found


def sent_by_turns(topics: JournalledTopics, settings: KafkaSettings) -> tuple[list[Any], list[Any]]:
    """What was told of labels and of payments; a label goes first."""
    labels: list[Any] = []
    payments: list[Any] = []
    for n in range(_N):
        topics.send(settings.labels_topic, None, b"%d" % n, done=labels.append)
        topics.send(settings.transactions_topic, None, b"%d" % n, done=payments.append)
    with pytest.raises(Unavailable, match="in the journal"):
        topics.flush(3.0)
    return labels, payments


def test_a_topic_that_is_not_there_holds_up_no_other(
    kafka: KafkaBroker, settings: KafkaSettings, tmp_path: Path
) -> None:
    """What waits for it is sent, in order, once it is there."""
    topics = JournalledTopics.open(tmp_path, KEY_ID, ROOMY, LogWriter(settings), settings)
    labels, payments = sent_by_turns(topics, settings)
    assert [one.offset for one in payments] == [*range(_N)]
    assert labels == []
    assert topics.counts["appended"] == 2 * _N
    assert topics.counts["acknowledged"] == _N
    kafka.create_topic(settings.labels_topic, partitions=1)
    topics.flush(_LIMIT_S)
    assert [one.offset for one in labels] == [*range(_N)]
    topics.close(_LIMIT_S)
    assert [*tmp_path.glob("*/*")] == []


def test_one_journal_for_all_topics_is_held_up(settings: KafkaSettings, tmp_path: Path) -> None:
    """The canary: nothing of what stands behind the first label is sent."""
    writer, clock = LogWriter(settings), SystemClock()
    both = JournalledLog.open(tmp_path, KEY_ID, ROOMY, writer, clock=clock)
    names = (settings.transactions_topic, settings.labels_topic)
    topics = JournalledTopics(dict.fromkeys(names, both), writer, clock)
    assert sent_by_turns(topics, settings) == ([], [])
    topics.close(0.1)
