"""Figures of `score()` where states are in Redis, beside reading the same keys and doing nothing.

Every state is of the size that a month gives it (80 records a card, 40 a merchant), compacted when
it had doubled, with what came since behind it. The model is 500 trees of 63 leaves.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import Callable, Generator, Sequence
from time import perf_counter_ns
from typing import Any

import numpy as np
import redis

from freshscore.config.secret import Secret
from freshscore.config.settings import Settings
from freshscore.features.codec import compacted
from freshscore.features.packing import Keys, Packer
from freshscore.features.program import compiled
from freshscore.features.record_making import RecordMaker
from freshscore.features.redis_door import Nodes, command
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.specification import FeatureSpecification
from freshscore.features.state_layout import state_fingerprints
from freshscore.features.transaction import Transaction
from freshscore.scoring.shared_scorer import SharedScorer
from tests.bench.figures import (
    Figure,
    Measured,
    at_most,
    p50_us,
    p99_us,
    ratio_at_most,
    taking_turns,
)
from tests.bench.material import HORIZON_S, Material
from tests.servers.redis_servers import RedisServer

_NAMESPACE = "bench"
_PIPELINE = "redis-py pipeline of the same keys, nothing decoded"


def material() -> Material:
    """A month of fewer cards and merchants: each state as large as with all of them."""
    return Material(n_cards=1_250, n_merchants=2_500, n_payments=100_000, n_scored=4_000)


def score(material: Material) -> list[Figure]:
    """One score, everything included, by turns with what it is compared with."""
    with RedisServer() as server:
        bench = SharedBench(server.url, material)
        try:
            return bench.figures(material)
        finally:
            bench.close()


class SharedBench:
    """States in a server, a scorer on them, and plain clients of the same server."""

    def __init__(self, url: str, material: Material) -> None:
        self.settings = Settings.model_validate(
            {
                "store": {
                    "backend": "redis",
                    "specification": material.specification,
                    "horizon_s": HORIZON_S,
                },
                "redis": {"url": url, "namespace": _NAMESPACE},
            }
        )
        program = compiled(FeatureSpecification.named(material.specification))
        keys = Keys(program, Secret(b"bench" * 8, "this benchmark"))
        self.names = RedisKeys(_NAMESPACE, state_fingerprints(program))
        self.maker = RecordMaker(program, keys)
        self.packer = Packer(program, keys)
        self.client = redis.Redis.from_url(url)
        self.nodes = Nodes.open(self.settings.redis)
        self._load(material)
        self.scorer = SharedScorer(self.settings, self.nodes, material.model, program, keys)
        self.own = SharedScorer(self.settings, self.nodes, material.model, program, keys)

    def close(self) -> None:
        """End the scorers and the clients."""
        self.scorer.close()
        self.own.close()
        self.client.close()

    def figures(self, material: Material) -> list[Figure]:
        """All of them."""
        payments, last_ms = material.scored, material.scored[-1].time
        for payment in material.history[-4 * len(payments) :]:
            # Memory is the system's until it is first written.
            self.scorer.score(payment, as_of=last_ms)
            self.own.score(payment, as_of=last_ms)
        computed_before = self.scorer.stats()["answers"]["computed"]
        pipeline = [self.keys_of(payment) for payment in payments]
        with self.nodes.lines() as lines:
            found = taking_turns(
                {
                    "score": Measured(lambda one: self.scorer.score(one, as_of=last_ms), payments),
                    "again": Measured(lambda one: self.own.score(one, as_of=last_ms), payments),
                    "pipeline": Measured(self._read, pipeline),
                    "line": Measured(
                        lambda one: lines.exchange((one,), (3,)), pipeline, self._as_commands
                    ),
                }
            )
            again = taking_turns(
                {
                    "score": Measured(lambda one: self.own.score(one, as_of=last_ms), payments),
                    "pipeline": Measured(self._read, pipeline),
                }
            )
        computed = self.scorer.stats()["answers"]["computed"] - computed_before
        assert computed >= 0.9 * len(payments), computed
        assert self.own.stats()["answers"]["memo"] >= 0.9 * len(payments)
        longest_ms = asyncio.run(_longest_hold_ms(self.scorer, payments[:1_000], last_ms))
        # Apart, for LightGBM's threads go on spinning for a while after each call.
        service = _HandMade(self.client, material)
        service.load(payments)
        found |= taking_turns({"service": Measured(service.score, payments)})
        medians = {name: p50_us(elapsed) for name, elapsed in found.items()}
        beside, goals = medians["pipeline"], (0.8, 1.3)
        return [
            *(
                ratio_at_most(
                    f"score() over Redis, computed, p50 (goal {goal:g} x)",
                    medians["score"],
                    "us",
                    goal,
                    _PIPELINE,
                    beside,
                )
                for goal in goals
            ),
            Figure(
                "score() over Redis, memo, p50",
                p50_us(again["score"]),
                "us",
                _PIPELINE,
                p50_us(again["pipeline"]),
            ),
            Figure(
                "score() over Redis, p99",
                p99_us(found["score"]),
                "us",
                _PIPELINE,
                p99_us(found["pipeline"]),
            ),
            Figure(
                "the same keys through an own connection, nothing decoded, p50",
                medians["line"],
                "us",
                _PIPELINE,
                beside,
            ),
            Figure(
                "hand-made: features in Redis hashes, score cached by hash of the vector, p50",
                medians["service"],
                "us",
                _PIPELINE,
                beside,
            ),
            at_most("score_async, how long the event loop is held, p99", longest_ms, "ms", 1.0),
        ]

    def keys_of(self, payment: Transaction) -> list[bytes]:
        """What one score reads."""
        tokens = self.maker.tokens(self.packer.row(payment))
        return [
            self.names.progress("0"),
            *(
                self.names.state(token, layout.fingerprint)
                for token, layout in zip(tokens, self.maker.layouts, strict=True)
                if token is not None
            ),
        ]

    def _read(self, keys: Sequence[bytes]) -> list[Any]:
        pipeline = self.client.pipeline(transaction=False)
        for key in keys:
            pipeline.get(key)
        return pipeline.execute()

    def _as_commands(self, keys: Sequence[bytes]) -> bytes:
        return b"".join(command(b"GET", key) for key in keys)

    def _compacted(self, n: int) -> int:
        """How many of `n` records stand compacted: all up to the last doubling."""
        least = self.settings.redis.compact_records
        found = 0
        while max(least, 2 * found) <= n:
            found = max(least, 2 * found)
        return found

    def _load(self, material: Material) -> None:
        """All states of the history, and progress up to its end."""
        states: dict[bytes, list[bytes]] = {}
        layouts: dict[bytes, int] = {}
        for payment in material.history:
            row = self.packer.row(payment)
            for entity, token in enumerate(self.maker.tokens(row)):
                if token is not None:
                    key = self.names.state(token, self.maker.layouts[entity].fingerprint)
                    states.setdefault(key, []).append(self.maker.event(row, entity))
                    layouts[key] = entity
        pipeline = self.client.pipeline(transaction=False)
        for number, (key, records) in enumerate(states.items()):
            whole = b"".join(records)
            n_compacted = self._compacted(len(records))
            if n_compacted:
                layout = self.maker.layouts[layouts[key]]
                head = b"".join(records[:n_compacted])
                whole = compacted(head, layout, nonce=number).state
                whole += b"".join(records[n_compacted:])
            pipeline.set(key, whole)
        watermark = material.scored_from_ms
        pipeline.set(
            self.names.progress("0"),
            b"an epoch" + struct.pack("<3q", watermark, material.history[0].time, 0),
        )
        pipeline.execute()


class _HandMade:
    """What a team writes first: features kept in hashes, a score cached by the vector's hash."""

    def __init__(self, client: redis.Redis, material: Material) -> None:
        self._client = client
        self._booster = material.booster
        self._matrix = material.matrix
        self._n = self._matrix.shape[1] // 2

    def load(self, payments: Sequence[Transaction]) -> None:
        """Both entities' features, as some other process would have put them there."""
        pipeline = self._client.pipeline(transaction=False)
        for payment, row in zip(payments, self._matrix.tolist(), strict=True):
            for name, values in self._parts(payment, row):
                pipeline.hset(name, mapping={f"f{i}": value for i, value in enumerate(values)})
        pipeline.execute()

    def score(self, payment: Transaction) -> float:
        """Read, build the vector, look for its score, predict and keep it."""
        pipeline = self._client.pipeline(transaction=False)
        for name, _ in self._parts(payment, []):
            pipeline.hgetall(name)
        values = [float(value) for part in pipeline.execute() for value in part.values()]
        vector = np.array([values])
        key = b"score:" + hashlib.blake2b(vector.tobytes(), digest_size=16).digest()
        held = self._client.get(key)
        if isinstance(held, bytes):
            return float(held)
        score = float(np.asarray(self._booster.predict(vector, num_threads=1))[0])
        self._client.set(key, score, ex=3_600)
        return score

    def _parts(self, payment: Transaction, row: list[float]) -> list[tuple[str, list[float]]]:
        card, merchant = payment.entities["card"], payment.entities["merchant"]
        return [(f"f:{card}", row[: self._n]), (f"f:{merchant}", row[self._n :])]


class _Turn:
    """Awaited: lets the loop go round once."""

    def __await__(self) -> Generator[None, None, None]:
        yield


async def _longest_hold_ms(
    scorer: SharedScorer, payments: Sequence[Transaction], as_of_ms: int
) -> float:
    """Of a loop that scores eight at a time: how long one round takes, 99th of 100, ms."""
    held: list[int] = []
    is_over = asyncio.Event()

    async def watch() -> None:
        while not is_over.is_set():
            started = perf_counter_ns()
            await _Turn()
            held.append(perf_counter_ns() - started)

    async def some(mine: Sequence[Transaction]) -> None:
        for payment in mine:
            await scorer.score_async(payment, as_of=as_of_ms)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(some(payments[first::8]) for first in range(8)))
    is_over.set()
    await watching
    return float(np.quantile(held, 0.99)) / 1e6


def parts() -> dict[str, Callable[[], list[Figure]]]:
    """Name -> what measures it, for tests/bench/run.py."""
    return {"shared": lambda: score(material())}
