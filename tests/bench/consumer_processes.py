"""One, two and three consumers of one topic, each a process: how fast they rebuild a lost Redis.

They run and have shared the partitions, when Redis forgets everything; so no start is measured. The
rate is that of the invalidation stream, between its first and its last entry with messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from tests.bench.consumer_bench import ConsumerBench
from tests.bench.consumer_child import Entry, Stream, running
from tests.bench.consumer_topics import N_PARTITIONS, Log
from tests.bench.figures import Figure
from tests.servers.child import Child

_NUMBERS: Final = (1, 2, 3)
_TURNS: Final = 3
_LIMIT_S: Final = 120.0
_HEARTBEAT_S: Final = 0.25
# Entries of each consumer that say which partitions it has: its last heartbeats.
_N_LATEST: Final = 4


def consumers(bench: ConsumerBench) -> list[Figure]:
    """Thousands of messages a second, by the number of processes."""
    rates = {n: _rate(bench, n) for n in _NUMBERS}
    return [
        Figure(f"{n} consumers, rebuild", rates[n], "k/s", "one consumer", rates[1])
        for n in _NUMBERS
    ]


def _rate(bench: ConsumerBench, n: int) -> float:
    log = bench.handbook
    more = {"redis__heartbeat_s": _HEARTBEAT_S, "redis__stream_max_bytes": 1 << 30}
    settings = bench.settings(log, bench.redis, **more)
    found = []
    with bench.redis.client() as client, running(settings, n, bench.folder) as children:
        stream = Stream(bench, client)
        _wait_until_shared(stream, children, log)
        for _ in range(_TURNS):
            client.flushall()
            found.append(_measured(stream, children, log))
    return float(np.median(found)) / 1_000


def _wait_until_shared(stream: Stream, children: Sequence[Child], log: Log) -> None:
    """Until every consumer tells of partitions of its own, and all messages are told."""

    def is_shared() -> bool:
        if stream.n_applied() < log.n:
            return False
        entries = stream.latest(_N_LATEST * len(children))
        senders = {one.said.sender for one in entries}
        told = {(one.topic, one.partition) for entry in entries for one in entry.said.covered}
        return len(senders) == len(children) and len(told) == 2 * N_PARTITIONS

    children[0].wait_until(is_shared, _LIMIT_S)


def _measured(stream: Stream, children: Sequence[Child], log: Log) -> float:
    """Messages a second of one rebuilding."""
    # The stream is read once it is complete: reading it takes as long as writing it.
    children[0].wait_until(lambda: stream.n_applied() == log.n, _LIMIT_S)
    entries = stream.all()
    assert _n_told(entries) == log.n
    with_messages = [entry for entry in entries if _n_of(entry)]
    first, last = with_messages[0], with_messages[-1]
    return (log.n - _n_of(first)) / (last.at_ms - first.at_ms) * 1_000


def _n_of(entry: Entry) -> int:
    """Messages that an entry covers."""
    return sum(one.to_offset - one.from_offset for one in entry.said.covered)


def _n_told(entries: Sequence[Entry]) -> int:
    """Messages that entries cover, without what lies before a gap."""
    ends: dict[tuple[bytes, int], int] = {}
    for entry in entries:
        for one in entry.said.covered:
            at = (one.topic, one.partition)
            if one.from_offset <= ends.get(at, 0):
                ends[at] = max(ends.get(at, 0), one.to_offset)
    return sum(ends.values())
