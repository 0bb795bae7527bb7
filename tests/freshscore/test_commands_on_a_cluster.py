"""The operator's commands where states lie on three nodes: each asks all, and finds its own."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from freshscore.features.redis_door import Nodes
from freshscore.features.redis_keys import RedisKeys
from freshscore.scoring.remote_scores import ScoreKeeper, encoded
from tests.freshscore.shared_deployment import (
    CARDS,
    HOUR_MS,
    SharedDeployment,
    label,
    now_ms,
    payment,
    recent,
    shared_deployment,
)
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.redis_servers import RedisCluster


@pytest.fixture
def deployment(
    kafka: KafkaBroker,
    redis_cluster: RedisCluster,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[SharedDeployment]:
    yield from shared_deployment(kafka, redis_cluster, namespace, tmp_path, monkeypatch)


def test_all_of_them(
    deployment: SharedDeployment,
    redis_cluster: RedisCluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    payments = recent(60)
    late = payment(301, now_ms() - 2 * HOUR_MS)
    deployment.send([*payments, late], [label(payments[3]), label(late)])
    deployment.consume()
    lag = deployment.figures("lag")
    assert [one["has_epoch"] for one in lag["nodes"]] == [True] * 3
    assert {one["behind"] for one in lag["partitions"]} == {0}

    verified = deployment.figures("verify")["states"]["findings"]
    assert {one["verdict"] for one in verified} == {"equal"}
    assert len(verified) == 8

    assert deployment.figures("dead-letters", "list")["reasons"] == {
        "late": 1,
        "unknown transaction": 1,
    }
    resent = deployment.figures("dead-letters", "resend", store__horizon_s=3 * 3_600)
    assert resent["outcomes"] == {"brought back": 2}

    for card in CARDS:
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{card}\n"))
        shown = deployment.figures("entities", "show", "--entity", "card")
        assert shown["n_events"] == 10 + (card == CARDS[1])
        drop(deployment, bytes.fromhex(shown["token"]))

    with redis_cluster.client() as client:
        with deployment.opened() as found:
            names, tag = found.redis_keys, found.nodes.tags[1]
        client.delete(names.markers(tag), names.progress(tag))
    assert deployment.run("lag") == 1
    assert deployment.run("verify") == 2
    said = capsys.readouterr()
    assert "without data" in said.out
    for identifier in (*CARDS, "payment-"):
        assert identifier not in said.out + said.err + json.dumps(lag)


def drop(deployment: SharedDeployment, token: bytes) -> None:
    """Scores of an entity are found on its node, and go."""
    nodes = Nodes.open(deployment.settings.redis)
    names = RedisKeys(deployment.settings.redis.namespace)
    ScoreKeeper(nodes, names, "m-1", 4, 600).keep(token, encoded(bytes(16), 0.5, now_ms(), 0))
    nodes.close()
    words = ("cache", "invalidate", "--entity", "card", "--hash", token.hex())
    assert deployment.figures(*words)["n_dropped"] == 1
