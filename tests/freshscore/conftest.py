"""What the tests of commands share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.freshscore.shared_deployment import SharedDeployment, shared_deployment
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
    """A shared deployment with topics and a namespace of the test's own, on one Redis."""
    yield from shared_deployment(kafka, redis_server, namespace, tmp_path, monkeypatch)
