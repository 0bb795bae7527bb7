"""What the campaigns stand on: a launcher for the session, and deployments that end with a test."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.deployment import Deployment, Launcher
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.redis_sentinels import RedisSentinels
from tests.servers.redis_servers import RedisCluster, RedisServer

Deploy = Callable[..., Deployment]


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """The process that consumers are forked from."""
    with contextlib.closing(Launcher()) as started:
        yield started


@pytest.fixture
def deploy(launcher: Launcher, namespace: str, tmp_path: Path) -> Iterator[Deploy]:
    """Makes deployments on given servers; their processes are killed at the end."""
    numbers = itertools.count()
    made: list[Deployment] = []

    def make(
        broker: KafkaBroker, redis: RedisServer | RedisCluster | RedisSentinels, **settings: Any
    ) -> Deployment:
        number = next(numbers)
        folder = tmp_path / str(number)
        folder.mkdir()
        made.append(Deployment(broker, redis, launcher, f"{namespace}{number}", folder, **settings))
        return made[-1]

    yield make
    for one in made:
        one.kill_all()
