"""Live traffic: how long after a payment was sent a follower of the stream knows that Redis has it.

A process of its own sends at a steady rate, another consumes, and this one follows the invalidation
stream, which tells of a batch once Redis has acknowledged its states.
"""

from __future__ import annotations

import sys
from time import perf_counter_ns
from typing import Final

import numpy as np
from numpy.typing import NDArray

from freshscore.features.redis_progress import topic_digest
from freshscore.invalidation.kafka_admin import LogAdmin
from tests.bench.consumer_bench import ConsumerBench
from tests.bench.consumer_child import Stream, running
from tests.bench.consumer_topics import N_PARTITIONS, empty
from tests.bench.figures import Figure
from tests.servers.child import Child

_RATE: Final = 20_000
_SECONDS: Final = 8
# Compiled code is read, and the topics' leaders found.
_FIRST_SECONDS: Final = 2
_LIMIT_S: Final = 60.0
_WAIT_MS: Final = 200

Nanoseconds = NDArray[np.int64]


def live(bench: ConsumerBench) -> list[Figure]:
    """Median and 99th percentile, ms."""
    log = empty(bench.broker, "live")
    settings = bench.settings(log, bench.kept_redis, kafka__historical=False)
    n = _RATE * _SECONDS
    seen = np.zeros((N_PARTITIONS, n // N_PARTITIONS), np.int64)
    sent_at = bench.folder / "sent.npy"
    with LogAdmin(settings.kafka) as admin:
        digest = topic_digest(admin.topics([log.name])[log.name].topic_id)
    with bench.kept_redis.client() as client, running(settings, 1, bench.folder) as children:
        stream = Stream(bench, client)
        children[0].wait_until(lambda: len(stream.all()) > 0, _LIMIT_S)
        words = [bench.broker.bootstrap, log.name, str(_RATE), str(_SECONDS), str(sent_at)]
        command = [sys.executable, "-m", "tests.bench.live_sender", *words]
        sender = Child("the sender", command, bench.folder / "sender.log")
        _follow(stream, digest, seen)
        sender.finish(_LIMIT_S)
    took_ms = (seen - np.load(sent_at)).ravel() / 1e6
    steady = took_ms.reshape(N_PARTITIONS, -1)[:, _RATE * _FIRST_SECONDS // N_PARTITIONS :]
    assert (steady > 0).all()
    name = f"live, {_RATE:,} events/s, sent to known at a follower"
    return [
        Figure(f"{name}, p50", float(np.median(steady)), "ms"),
        Figure(f"{name}, p99", float(np.percentile(steady, 99)), "ms"),
    ]


def _follow(stream: Stream, digest: bytes, seen: Nanoseconds) -> None:
    """Note when each message of the topic was known, until all are."""
    last, n_left = b"0", seen.size
    limit_ns = perf_counter_ns() + int(_LIMIT_S * 1e9)
    while n_left:
        entries = stream.after(last, _WAIT_MS)
        now_ns = perf_counter_ns()
        assert now_ns < limit_ns, f"{n_left} messages are not known"
        for entry in entries:
            last = entry.id
            for one in entry.said.covered:
                if one.topic == digest and one.to_offset > one.from_offset:
                    part = seen[one.partition, one.from_offset : one.to_offset]
                    n_left -= int(np.count_nonzero(part == 0))
                    part[part == 0] = now_ns
