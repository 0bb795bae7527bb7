"""Figures of `score()` on near states while 20,000 events a second are followed.

Beside it the embedded `score()` of the same payments, by turns, and near states that nothing
happens to. A process plays the consumers: it appends to Redis, and tells it on the stream. A scorer
waits between two payments, as one that serves does.
"""

from __future__ import annotations

import struct
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Final, NamedTuple

import numpy as np

from freshscore.config.clock import SystemClock
from freshscore.features.near_states import NearStates
from freshscore.features.redis_door import command
from freshscore.features.transaction import Transaction
from freshscore.invalidation.following import Follower
from freshscore.scoring.near_reading import NearReading
from tests.bench.figures import Figure, at_least, p50_us, p99_us, ratio_at_most
from tests.bench.material import Material
from tests.bench.near_publisher import Batch, summary, written
from tests.bench.shared_figures import SharedBench
from tests.servers.child import Child
from tests.servers.folder import Folder
from tests.servers.redis_servers import RedisServer

_RATE: Final = 20_000
_EVENTS: Final = 100
_SECONDS: Final = 10
_HEARTBEAT_S: Final = 1.0
_MAX_BYTES: Final = 1 << 28
_BETWEEN_S: Final = 0.0005
_LIMIT_S: Final = 30.0
_PROBED: Final = 97

Nanoseconds = np.ndarray[Any, Any]


class _Run(NamedTuple):
    """Nanoseconds of each score, near and embedded, and what was counted meanwhile."""

    near: Nanoseconds
    embedded: Nanoseconds
    counts: dict[str, Any]


def material() -> Material:
    """A month of cards and merchants that each have a few payments a second while it is scored."""
    return Material(n_cards=2_500, n_merchants=5_000, n_payments=200_000, n_scored=12_000)


def near(material: Material) -> list[Figure]:
    """First scores on near states, without traffic and with it."""
    folder = Folder()
    try:
        with RedisServer() as server, material.scorer(material.model) as embedded:
            bench = SharedBench(server.url, material)
            try:
                return _figures(_Near(bench, material, folder.path), embedded.score)
            finally:
                bench.close()
    finally:
        folder.remove()


def _figures(near: _Near, embedded: Callable[..., object]) -> list[Figure]:
    payments = near.material.scored
    half = len(payments) // 2
    near.warm()
    quiet = near.run([], payments[:half], embedded)
    busy = near.run(near.batches(), payments[half:], embedded)
    counts = busy.counts
    propagation = counts["propagation"]
    told = f"near, {_RATE:,} events/s followed"
    p50_ms, p99_ms = counts["propagation_ms"]
    return [
        ratio_at_most(
            f"{told}, p50", p50_us(busy.near), "us", 1.3, "embedded", p50_us(busy.embedded)
        ),
        ratio_at_most(
            f"{told}, p99", p99_us(busy.near), "us", 1.15, "nothing happens", p99_us(quiet.near)
        ),
        Figure("embedded beside it, p99", p99_us(busy.embedded), "us", "", p99_us(quiet.embedded)),
        Figure("near, nothing happens, p50", p50_us(quiet.near), "us", "", p50_us(quiet.embedded)),
        at_least(f"{told}, first scores with both states near", counts["found"], "", 0.99),
        Figure(f"{told}, sent to applied, p50", p50_ms, "ms"),
        Figure(f"{told}, sent to applied, p99", p99_ms, "ms"),
        Figure(f"{told}, share behind Redis when probed", propagation["share"] or 0.0, ""),
        Figure(f"{told}, received to applied, p99", counts["applying_us"][1], "us"),
    ]


class _Near:
    """A scorer with near states, which follows."""

    def __init__(self, bench: SharedBench, material: Material, folder: Path) -> None:
        self.material = material
        self._bench = bench
        self._folder = folder
        self._last_ms = material.scored[-1].time
        self._states = NearStates(bench.maker.layouts, _MAX_BYTES)
        self._follower = Follower(
            bench.nodes, bench.names, bench.maker.layouts, self._states, _HEARTBEAT_S
        )
        reading = NearReading(self._states, self._follower, SystemClock(), probed=_PROBED)
        bench.scorer.take_near(reading)
        progress = summary(0, material.scored_from_ms, material.history[0].time)
        bench.client.set(bench.names.progress("0"), progress)
        self._follower.start()

    def warm(self) -> None:
        """Every entity is asked for once, while somebody publishes."""
        child = self._publisher([])
        try:
            child.wait_until(self._follower.may_serve, _LIMIT_S)
            for payment in self.material.history[-4 * len(self.material.scored) :]:
                self._bench.scorer.score(payment, as_of=self._last_ms)
        finally:
            child.kill()

    def run(
        self,
        batches: Sequence[Batch],
        payments: Sequence[Transaction],
        embedded: Callable[..., object],
    ) -> _Run:
        """Score each payment once here and once embedded, with a wait before both."""
        score, at_ms, waiting = self._bench.scorer.score, self._last_ms, threading.Event()
        child = self._publisher(batches)
        try:
            child.wait_until(self._is_at_work(bool(batches)), _LIMIT_S)
            before = self._counts()
            elapsed = np.zeros((2, len(payments)), np.int64)
            for i, payment in enumerate(payments):
                for mine, call in enumerate((score, embedded)):
                    waiting.wait(_BETWEEN_S)
                    began_ns = perf_counter_ns()
                    call(payment, as_of=at_ms)
                    elapsed[mine, i] = perf_counter_ns() - began_ns
            counts = self._counts()
        finally:
            child.kill()
        found = counts["hits"] - before["hits"]
        missed = counts["misses"] - before["misses"]
        return _Run(elapsed[0], elapsed[1], {**counts, "found": found / (found + missed)})

    def _is_at_work(self, has_batches: bool) -> Callable[[], bool]:
        groups = self._counts()["groups"]

        def holds() -> bool:
            counts = self._counts()
            return bool(counts["in_step"] and (counts["groups"] > groups or not has_batches))

        return holds

    def _counts(self) -> dict[str, Any]:
        counts: dict[str, Any] = self._bench.scorer.stats()["near"]
        return counts

    def _publisher(self, batches: Sequence[Batch]) -> Child:
        path = self._folder / f"batches-{len(batches)}"
        written(path, batches)
        words = [self._bench.settings.redis.url, self.material.specification, str(path)]
        command = [sys.executable, "-m", "tests.bench.near_publisher", *words]
        return Child("the publisher", [*command, str(_RATE // _EVENTS)], self._folder / "log")

    def batches(self) -> list[Batch]:
        """Payments of the same cards and merchants, from the last seconds before `as_of`."""
        rng = np.random.default_rng(2)
        history = self.material.history
        n = _RATE * _SECONDS
        chosen = [history[at] for at in rng.integers(len(history), size=n).tolist()]
        return [self._batch(first, chosen) for first in range(0, n, _EVENTS)]

    def _batch(self, first: int, chosen: Sequence[Transaction]) -> Batch:
        maker, body, appends = self._bench.maker, [], []
        for number in range(first, first + _EVENTS):
            of = chosen[number]
            time_ms = self._last_ms - len(chosen) // 20 + number // 20
            payment = Transaction(
                f"live-{number}", time_ms, 4_999, "EUR", of.entities, fields=of.fields
            )
            row = self._bench.packer.row(payment)
            for entity, token in enumerate(maker.tokens(row)):
                if token is not None:
                    record = maker.event(row, entity)
                    body.append(struct.pack("<q", entity << 32 | 1) + token + record)
                    key = self._bench.names.state(token, maker.layouts[entity].fingerprint)
                    appends.append(command(b"APPEND", key, record))
        return Batch(_EVENTS, len(body), b"".join(body), b"".join(appends))


def parts() -> dict[str, Callable[[], list[Figure]]]:
    """Name -> what measures it, for tests/bench/run.py."""
    return {"near": lambda: near(material())}
