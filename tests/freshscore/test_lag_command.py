"""`freshscore lag` on real servers: what is behind, and which node has lost its data."""

from __future__ import annotations

import pytest

from tests.freshscore.shared_deployment import SharedDeployment, recent
from tests.servers.redis_servers import RedisServer


def test_lag_before_between_and_after(
    deployment: SharedDeployment, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node without data is an exit code of 1; what is sent is behind until it is applied."""
    deployment.send(recent(10))
    new = deployment.figures("lag", code=1)
    assert sum(one["behind"] for one in new["partitions"]) == 10
    assert {one["applied"] for one in new["partitions"]} == {None}
    assert [one["has_epoch"] for one in new["nodes"]] == [False]
    assert "without data" in capsys.readouterr().out

    assert deployment.consume() == {"applied": 10}
    whole = deployment.figures("lag")
    assert {one["behind"] for one in whole["partitions"]} == {0}
    assert all(one["committed"] in (None, one["end"]) for one in whole["partitions"])
    assert 0 <= whole["nodes"][0]["watermark_age_s"] < 60
    assert len(whole["partitions"]) == 4

    deployment.send(recent(7, first=10))
    assert sum(one["behind"] for one in deployment.figures("lag")["partitions"]) == 7

    with deployment.opened() as found:
        names = found.redis_keys
    with redis_server.client() as client:
        client.delete(names.markers("0"), names.progress("0"))
        client.hset(names.markers("0").decode(), "rebuilding", "ab" * 8)
    lost = deployment.figures("lag", code=1)
    assert lost["nodes"][0]["is_rebuilding"]
    assert "being rebuilt" in capsys.readouterr().out


def test_first_mistakes(deployment: SharedDeployment, capsys: pytest.CaptureFixture[str]) -> None:
    """No topic, no Redis, no broker: exit code 2 and one sentence that says which."""
    assert deployment.run("lag", kafka__labels_topic="nowhere") == 2
    assert "no topic nowhere" in capsys.readouterr().err
    assert deployment.run("lag", redis__url="redis://127.0.0.1:1/0") == 2
    assert "127.0.0.1:1" in capsys.readouterr().err
    nowhere = {"kafka__bootstrap_servers": "127.0.0.1:1", "kafka__request_timeout_s": 1.0}
    assert deployment.run("lag", **nowhere) == 2
    assert "Kafka at 127.0.0.1:1" in capsys.readouterr().err
