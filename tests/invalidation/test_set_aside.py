"""What dead letters set aside of the log, in as much memory as is given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from freshscore.invalidation.log_records import Stretch
from freshscore.invalidation.past_writing import topic_ids
from freshscore.invalidation.set_aside import set_aside
from freshscore.invalidation.verifying import verify_states
from tests.freshscore.shared_deployment import SharedDeployment, recent, shared_deployment
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.redis_servers import RedisServer


@pytest.fixture
def deployment(
    kafka: KafkaBroker,
    redis_server: RedisServer,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[SharedDeployment]:
    yield from shared_deployment(kafka, redis_server, namespace, tmp_path, monkeypatch)


def test_letters_beyond_the_limit_are_counted_and_left_out(deployment: SharedDeployment) -> None:
    """Those of other stretches, of other topics, and of conflicts take no room."""
    payments = recent(6)
    deployment.send([*payments, payments[0] | {"amount_minor": 1}])
    labels, transactions = (
        deployment.settings.kafka.labels_topic,
        deployment.settings.kafka.transactions_topic,
    )
    deployment.send_bytes(labels, [b"{}"] * 3)
    deployment.send_bytes(transactions, [b"{}"] * 20)
    assert deployment.consume() == {"applied": 6, "conflict": 1, "malformed": 23}
    kafka = deployment.settings.kafka
    with deployment.opened() as found:
        ids = topic_ids(found)
        places = [(transactions, number) for number in range(2)]
        whole = [Stretch(at, 0, 99, 99) for at in places]
        every = set_aside(kafka, ids, whole)
        assert (sum(map(len, every.offsets.values())), every.n_left_out) == (20, 0)
        some = set_aside(kafka, ids, whole, 13)
        assert (sum(map(len, some.offsets.values())), some.n_left_out) == (13, 7)
        last = {at: int(max(offsets)) for at, offsets in every.offsets.items()}
        ends = [Stretch(at, last[at], 99, 99) for at in last]
        assert {at: [*one] for at, one in set_aside(kafka, ids, ends, 2).offsets.items()} == {
            at: [offset] for at, offset in last.items()
        }
        assert set_aside(kafka, {**ids, transactions: "?"}, whole) == ({}, {}, 0)
        assert verify_states(found, [], most_letters=5).n_letters_left_out == 18
        assert verify_states(found, []).n_letters_left_out == 0
