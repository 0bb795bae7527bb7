"""Consumers as processes of their own, and what they have told on the invalidation stream."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import redis

from freshscore.config.settings import Settings
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.redis_progress import progress_of
from freshscore.features.state_layout import StateLayout, state_fingerprints, state_layout
from freshscore.invalidation.stream_messages import StreamMessage, decode
from tests.bench.consumer_bench import ConsumerBench, stream_key
from tests.servers.child import Child

_STOP_S: Final = 30.0


class Entry(NamedTuple):
    """One entry of the stream: when Redis took it, ms, and what it says."""

    id: bytes
    at_ms: int
    said: StreamMessage


class Stream:
    """The stream as a follower reads it."""

    def __init__(self, bench: ConsumerBench, client: redis.Redis) -> None:
        program = bench.program()
        keys = bench.keys(program)
        self._client = client
        self._progress_key = RedisKeys("fs", state_fingerprints(program)).progress("0")
        self._layouts: list[StateLayout] = [
            state_layout(program, keys, e) for e in range(len(program.entities))
        ]

    def all(self) -> list[Entry]:
        """What it holds now."""
        found: Any = self._client.xrange(stream_key())
        return [self._entry(*one) for one in found]

    def latest(self, n: int) -> list[Entry]:
        """Its last `n` entries."""
        found: Any = self._client.xrevrange(stream_key(), count=n)
        return [self._entry(*one) for one in found]

    def n_applied(self) -> int:
        """Messages that Redis holds by its own summary; 0 while it is rebuilt."""
        summary: Any = self._client.get(self._progress_key)
        return sum(one.offset for one in progress_of(summary).markers) if summary else 0

    def after(self, last: bytes, wait_ms: int) -> list[Entry]:
        """What came after the entry `last`, waiting for it `wait_ms` at most."""
        found: Any = self._client.xread({stream_key(): last}, block=wait_ms)
        return [self._entry(*one) for _, some in found or () for one in some]

    def _entry(self, name: bytes, fields: dict[bytes, bytes]) -> Entry:
        return Entry(name, int(name.split(b"-")[0]), decode(fields[b"m"], self._layouts))


@contextmanager
def running(settings: Settings, n: int, folder: Path) -> Iterator[list[Child]]:
    """So many processes of `freshscore consume` with these settings, until the end."""
    told = settings.model_dump(mode="json", exclude_defaults=True)
    words = [
        f"--settings={group}.{key}={json.dumps(value)}"
        for group, values in told.items()
        for key, value in values.items()
    ]
    command = [sys.executable, "-m", "freshscore", "consume", "--profile", "shared", *words]
    children = [
        Child(f"consumer {number}", command, folder / f"consumer-{number}.log")
        for number in range(n)
    ]
    try:
        yield children
        for child in children:
            child.stop(_STOP_S)
    finally:
        for child in children:
            child.kill()
