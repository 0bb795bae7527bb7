"""The servers and topics that the figures of the consumer share: started and filled when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from freshscore.config.secret import FILE_NAME, Secret
from freshscore.config.settings import Settings
from freshscore.features.packing import Keys
from freshscore.features.program import Program, compiled
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.specification import FeatureSpecification
from freshscore.invalidation.publishing import STREAM
from tests.bench.consumer_runs import settings_of
from tests.bench.consumer_topics import Log, Message, filled, handbook, made_others
from tests.servers.folder import Folder
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.redis_servers import RedisCluster, RedisServer

_MATERIAL = b"bench" * 8


class ConsumerBench:
    """A broker, a Redis with an append-only file and one without, and what was filled so far."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._logs: dict[str, Log] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    @cached_property
    def broker(self) -> KafkaBroker:
        """The broker, with the topics that nothing is measured on."""
        broker = self._open.enter_context(KafkaBroker())
        made_others(broker)
        return broker

    @cached_property
    def redis(self) -> RedisServer:
        """A Redis that keeps nothing on disk."""
        return self._open.enter_context(RedisServer())

    @cached_property
    def kept_redis(self) -> RedisServer:
        """A Redis with an append-only file, synchronised every second."""
        settings = ["appendfsync everysec"]
        return self._open.enter_context(RedisServer(appendonly=True, settings=settings))

    @cached_property
    def folder(self) -> Path:
        """A folder with the identifier secret, for logs too."""
        folder = Folder()
        self._open.callback(folder.remove)
        secret = folder.path / FILE_NAME
        secret.touch(mode=0o600)
        secret.write_text(_MATERIAL.hex())
        return folder.path

    def log(self, name: str, messages: Callable[[], Iterable[Message]]) -> Log:
        """The topic of that name, filled with these messages when it is first asked for."""
        if name not in self._logs:
            self._logs[name] = filled(self.broker, name, messages())
        return self._logs[name]

    @cached_property
    def handbook(self) -> Log:
        """All of the Handbook's payments."""
        return self.log("handbook", handbook)

    def settings(self, log: Log, server: RedisServer | RedisCluster, **more: Any) -> Settings:
        """A consumer's settings; the server is emptied, as each run begins with nothing."""
        server.flush()
        more = {"store__path": self.folder, **more}
        return settings_of(self.broker.bootstrap, server.url, log, **more)

    def program(self, name: str = "handbook") -> Program:
        """A shipped specification, compiled."""
        return compiled(FeatureSpecification.named(name))

    def keys(self, program: Program) -> Keys:
        """The keys that the consumers have."""
        return Keys(program, Secret(_MATERIAL, "the benchmark"))


def stream_key() -> bytes:
    """The key of the invalidation stream."""
    return RedisKeys("fs").control(STREAM)


def used_bytes(client: redis.Redis, name: str = "used_memory_dataset") -> int:
    """Memory of a server's data; the stream, which is bounded apart, is deleted before."""
    client.delete(stream_key())
    found: Any = client.info("memory")
    # Of an empty server Redis says less than nothing, as a number without a sign.
    n = int(found[name])
    return n - (1 << 64) if n >> 63 else n
