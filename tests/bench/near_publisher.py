"""Plays a consumer for near states: appends to Redis and tells it on the stream, at a steady rate.

    python -m tests.bench.near_publisher URL SPECIFICATION FILE BATCHES_PER_S

FILE: batches one behind the other, as `written` has them; when all are sent heartbeats go on until
the process is ended.
"""

from __future__ import annotations

import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Final, NamedTuple

from freshscore.config.clock import SystemClock
from freshscore.config.secret import Secret
from freshscore.config.settings import RedisSettings
from freshscore.features.packing import Keys
from freshscore.features.program import compiled
from freshscore.features.redis_door import Nodes, command
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.redis_progress import topic_digest
from freshscore.features.specification import FeatureSpecification
from freshscore.features.state_layout import state_fingerprints, state_layout
from freshscore.invalidation.publishing import Publisher, Range

NAMESPACE: Final = "bench"
SECRET: Final = Secret(b"bench" * 8, "this benchmark")
# Topic name -> id; one partition.
_TOPICS: Final = {"payments": "payments-id"}
_AT: Final = ("payments", 0)
_HEAD: Final = struct.Struct("<4q")
_BEAT_S: Final = 0.2


class Batch(NamedTuple):
    """What a batch appends, and tells.

    appends: commands, each with one reply. body: of the message, as a consumer's batch has it.
    """

    n_events: int
    n_groups: int
    body: bytes
    appends: bytes


def written(path: Path, batches: Sequence[Batch]) -> None:
    """Write batches into a file."""
    with path.open("wb") as file:
        for one in batches:
            file.write(_HEAD.pack(one.n_events, one.n_groups, len(one.body), len(one.appends)))
            file.write(one.body + one.appends)


def summary(offset: int, watermark_ms: int, since_ms: int) -> bytes:
    """A node's progress, as features/redis_progress.py has it: the partition up to `offset`."""
    marker = struct.pack("<8s3q", topic_digest(_TOPICS["payments"]), 0, offset, watermark_ms)
    return b"an epoch" + struct.pack("<3q", watermark_ms, since_ms, 1) + marker


def _read(path: Path) -> Iterator[Batch]:
    data = path.read_bytes()
    at = 0
    while at < len(data):
        n_events, n_groups, n_body, n_appends = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        middle = at + n_body
        yield Batch(n_events, n_groups, data[at:middle], data[middle : middle + n_appends])
        at = middle + n_appends


def _publish(url: str, specification: str, path: Path, rate: int) -> None:
    program = compiled(FeatureSpecification.named(specification))
    keys = Keys(program, SECRET)
    settings = RedisSettings(url=url, namespace=NAMESPACE)
    layouts = [state_layout(program, keys, e) for e in range(len(program.entities))]
    publisher = Publisher(settings, layouts, _TOPICS, str(path).encode()[-8:].rjust(8))
    progress = RedisKeys(NAMESPACE, state_fingerprints(program)).progress("0")
    clock, never, offset = SystemClock(), threading.Event(), 0
    batches = [*_read(path)]
    with Nodes.open(settings).lines() as lines:
        # A heartbeat first, and then none before the follower has had time to be in step.
        began_s = perf_counter() + 3 * _BEAT_S
        beat = Batch(0, 0, b"", b"")
        sent = 0
        while True:
            is_due = sent < len(batches) and perf_counter() >= began_s
            one = batches[sent] if is_due else beat
            sent += is_due
            now_ms = clock.now_ms()
            covers = Range(_AT, offset, offset + one.n_events, now_ms)
            offset += one.n_events
            request = one.appends + command(b"SET", progress, summary(offset, now_ms, 1))
            request += publisher.command([covers], now_ms, one.n_groups, one.body)
            lines.exchange([request], [one.n_groups + 2])
            late_s = perf_counter() - began_s - sent / rate
            never.wait(max(0.0, -late_s) if is_due else _BEAT_S)


if __name__ == "__main__":
    url, specification, file, batches_per_s = sys.argv[1:]
    _publish(url, specification, Path(file), int(batches_per_s))
