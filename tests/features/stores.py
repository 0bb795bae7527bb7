"""The one table of stores: whatever is promised of a store is tested on all of them.

A place is somewhere that states are kept, and opens stores on it: two stores of one place are two
writers. In memory there is one writer, so its stores are one.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

import pytest
import redis
from pydantic import SecretStr

from freshscore.config.clock import SystemClock
from freshscore.config.settings import RedisSettings
from freshscore.features.redis_compaction import Compactor
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_store import RedisStore
from freshscore.features.store import MemoryStore
from tests.features.stored_states import LIMITS, NOON_MS, Ground, Payment
from tests.servers.redis_servers import cluster_nodes

EPOCH: Final = bytes(range(8))
# Numbers of cards and merchants that the contract's payments are of.
NUMBERS: Final = 4


class SetClock(SystemClock):
    """A clock whose wall time stands where it is put."""

    def __init__(self, time_ms: int = NOON_MS) -> None:
        self.time_ms = time_ms

    def now_ms(self) -> int:
        """The time that was put, ms."""
        return self.time_ms


def redis_settings(url: str, **given: Any) -> RedisSettings:
    """Settings for a server of the tests, whose URL may hold its password."""
    head, _, host = url.rpartition("@")
    if head:
        scheme, _, user = head.partition("://")
        name, _, password = user.partition(":")
        url = f"{scheme}://{name + '@' if name else ''}{host}"
        given = {"password": SecretStr(password)} | given
    return RedisSettings(url=url, **given)


def client_of(nodes: Nodes) -> Any:
    """A client of the library's own for the same servers; whoever asks closes it."""
    settings = nodes.settings
    url = settings.parsed_url
    password = settings.password and settings.password.get_secret_value()
    if not settings.cluster:
        return redis.Redis.from_url(url.plain, password=password)
    others = cluster_nodes(url.servers[1:])
    return redis.RedisCluster.from_url(url.plain, password=password, startup_nodes=others)


class MemoryPlace:
    """This process."""

    name = "memory"

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self._store = ground.store()

    def open(self) -> MemoryStore:
        """The store."""
        return self._store

    def compact(self, **lines_ms: int) -> None:
        """Nothing: its states are always sorted."""

    def fresh(self) -> MemoryPlace:
        """An empty place of this kind."""
        return MemoryPlace(self.ground)


class RedisPlace:
    """A namespace of its own on a Redis server or cluster."""

    name = "redis"

    def __init__(self, ground: Ground, nodes: Nodes) -> None:
        self.ground = ground
        self.nodes = nodes
        self.clock = SetClock()
        self.namespace = f"t{uuid.uuid4().hex[:12]}"
        self.open().begin(EPOCH)

    def open(self) -> RedisStore:
        """A writer and reader of its own."""
        ground = self.ground
        return RedisStore(
            ground.program, ground.keys, LIMITS, self.nodes, self.clock, namespace=self.namespace
        )

    def compact(self, **lines_ms: int) -> None:
        """Compact every state, due or not."""
        Compactor(self.open()).compact(self.candidates(), only_due=False, **lines_ms)

    def candidates(self) -> list[tuple[int, bytes]]:
        """Every entity that the contract's payments can name."""
        entities = range(len(self.ground.program.entities))
        payments = [Payment(0, NOON_MS, card=n, merchant=n) for n in range(NUMBERS)]
        return [(e, self.ground.token(p, e)) for p, e in itertools.product(payments, entities)]

    def fresh(self) -> RedisPlace:
        """An empty place of this kind."""
        return RedisPlace(self.ground, self.nodes)


Place = MemoryPlace | RedisPlace

STORES: Final = (
    "memory",
    pytest.param("redis_server", marks=pytest.mark.servers),
    pytest.param("redis_cluster", marks=pytest.mark.servers),
)
SERVERS: Final = STORES[1:]


def opened_nodes(request: pytest.FixtureRequest, stack: ExitStack, server: str) -> Nodes:
    """Nodes of a server of the session, closed with the stack."""
    url = request.getfixturevalue(server).url
    nodes = Nodes.open(redis_settings(url, cluster=server == "redis_cluster", timeout_ms=10_000))
    stack.callback(nodes.close)
    return nodes


def places(request: pytest.FixtureRequest, ground: Ground) -> Iterator[Place]:
    """The place that a test's parameter names."""
    with ExitStack() as stack:
        if request.param == "memory":
            yield MemoryPlace(ground)
        else:
            yield RedisPlace(ground, opened_nodes(request, stack, request.param))
