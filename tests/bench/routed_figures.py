"""Hit ratio of 1, 4 and 16 scorers on the same states, routed by card and in turn.

One stream of payments that are scored again as the preset "reuse" has it, over one Redis. All
scorers live in this process: each has a memory tier of its own, as a process has, and what is
counted is who knows a score, not how fast. Events and facts are appended as a consumer does it, at
their instant of the stream.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import redis

from freshscore.config.errors import AsOfTooOld
from freshscore.config.secret import Secret
from freshscore.config.settings import Settings
from freshscore.features.packing import Keys, Packer
from freshscore.features.program import compiled
from freshscore.features.reading import read_payments
from freshscore.features.record_making import RecordMaker, time_of
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_keys import RedisKeys
from freshscore.features.specification import FeatureSpecification
from freshscore.features.state_layout import state_fingerprints
from freshscore.features.transaction import Transaction
from freshscore.scoring.callable_model import CallableModel
from freshscore.scoring.model import ALL
from freshscore.scoring.model_file import CohortThresholds
from freshscore.scoring.serving import ServableModel
from freshscore.scoring.shared_scorer import SharedScorer
from freshscore.scoring.shares import share_of_row
from freshscore.simulations.generator import Parameters, generate
from freshscore.simulations.shapes import TouchKind, preset
from freshscore.simulations.streaming import stream_of
from freshscore.simulations.streams import Stream
from tests.bench.figures import Figure
from tests.bench.material import Material
from tests.servers.redis_servers import RedisServer

_SCORERS: Final = (1, 4, 16)
_DAY_MS: Final = 86_400_000
_NAMESPACE: Final = "routed"
_SPECIFICATION: Final = "handbook"
_DEAR_S: Final = 0.001
# What another scorer may find is written behind the answer, in less than this.
_KEPT_WITHIN_S: Final = 0.2


def routed() -> list[Figure]:
    """Of a booster that is walked, and of a model that is called and takes 1 ms."""
    parameters = Parameters(customers=300, terminals=600, days=32)
    table = read_payments(
        generate(parameters, np.random.default_rng(3)), FeatureSpecification.named(_SPECIFICATION)
    )
    start_ms = parameters.start_ms + (parameters.days - 1) * _DAY_MS
    stream = stream_of(table, preset("reuse"), start_ms, np.random.default_rng(4))
    figures = []
    with RedisServer() as server:
        for said, model in (
            ("walked", Material(specification=_SPECIFICATION).model),
            ("called, 1 ms", CallableModel(_dear, "dear", [CohortThresholds(ALL, 0.5, 0.9)])),
        ):
            for n in _SCORERS:
                for by_card in (True, False) if n > 1 else (True,):
                    found = _hits(server, stream, model, n, by_card=by_card)
                    figures.append(_figure(said, n, by_card, found))
    return figures


def _dear(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    until = time.perf_counter() + _DEAR_S
    while time.perf_counter() < until:
        pass
    weights = np.arange(1, matrix.shape[1] + 1)
    return np.asarray(1.0 / (1.0 + np.exp(-(np.nan_to_num(matrix) @ weights) / 1e5)))


def _figure(said: str, n: int, by_card: bool, found: Counter[str]) -> Figure:
    total = found.total()
    parts = ", ".join(
        f"{name} {100 * count / total:.1f}"
        for name, count in sorted(found.items())
        if name != "computed"
    )
    how = ("by card" if by_card else "in turn") if n > 1 else "alone"
    again = 100.0 * found["memo"] / total
    name = f"{n} scorers {how}, {said}: {parts}; of it memo"
    return Figure(name, 100.0 * (1.0 - found["computed"] / total), "% hits", "memo", again)


def _hits(
    server: RedisServer, stream: Stream, model: ServableModel, n: int, *, by_card: bool
) -> Counter[str]:
    """Answers by source; those that another scorer had computed apart."""
    server.flush()
    with _Deployment(server.url, stream, model, n) as deployment:
        return deployment.played(by_card=by_card)


@dataclass(frozen=True)
class _Touch:
    """One touch of the stream."""

    at_ms: int
    kind: int
    payment: Transaction
    fact: int
    value: bool


class _Deployment:
    """Scorers on states that hold what came before the stream."""

    def __init__(self, url: str, stream: Stream, model: ServableModel, n: int) -> None:
        settings = Settings.model_validate(
            {
                "store": {
                    "backend": "redis",
                    "specification": _SPECIFICATION,
                    "horizon_s": 3 * _DAY_MS // 1_000,
                },
                "redis": {"url": url, "namespace": _NAMESPACE},
            }
        )
        program = compiled(FeatureSpecification.named(_SPECIFICATION))
        keys = Keys(program, Secret(b"bench" * 8, "this benchmark"))
        self._stream = stream
        self._names = RedisKeys(_NAMESPACE, state_fingerprints(program))
        self._packer = Packer(program, keys)
        self._maker = RecordMaker(program, keys)
        self._client = redis.Redis.from_url(url)
        self._scorers = [
            SharedScorer(settings, Nodes.open(settings.redis), model, program, keys)
            for _ in range(n)
        ]
        self._begin()

    def __enter__(self) -> _Deployment:
        return self

    def __exit__(self, *_: object) -> None:
        for scorer in self._scorers:
            scorer.close()
        self._client.close()

    def played(self, *, by_card: bool) -> Counter[str]:
        """The stream, each of its scores asked of one scorer."""
        found: Counter[str] = Counter()
        n, turn = len(self._scorers), 0
        for touch in self._touches():
            row = self._packer.row(touch.payment)
            if touch.kind > TouchKind.REVIEW:
                self._append(row, touch)
                continue
            turn = int(n * share_of_row(row, len(self._maker.layouts))) if by_card else turn + 1
            if touch.kind != TouchKind.FIRST:
                self._wait_until_kept()
            try:
                result = self._scorers[turn % n].score(touch.payment, as_of=touch.at_ms)
            except AsOfTooOld:
                continue
            of_others = " of others" if result.tier == "redis" else ""
            found[f"{result.source}{of_others}"] += 1
        return found

    def _touches(self) -> Iterator[_Touch]:
        stream = self._stream
        payments = list(stream.transactions(stream.content))
        for i, payment in enumerate(payments):
            yield _Touch(
                int(stream.at_ms[i]),
                int(stream.kind[i]),
                payment,
                int(stream.fact[i]),
                bool(stream.value[i]),
            )

    def _begin(self) -> None:
        pipeline = self._client.pipeline(transaction=False)
        history = self._stream.history_table()
        for payment in history.transactions(range(len(history))):
            row = self._packer.row(payment)
            for entity, token in self._tokens(row):
                pipeline.append(self._key(entity, token), self._maker.event(row, entity))
        summary = b"an epoch" + struct.pack("<3q", self._stream.start_ms, 1, 0)
        pipeline.set(self._names.progress("0"), summary)
        pipeline.execute()

    def _append(self, row: bytes, touch: _Touch) -> None:
        is_event = touch.kind == TouchKind.OBSERVE
        for entity, token in self._tokens(row):
            record = (
                self._maker.event(row, entity)
                if is_event
                else self._maker.fact(
                    row,
                    entity,
                    time_ms=time_of(row),
                    fact=touch.fact,
                    value=touch.value,
                    known_at_ms=touch.at_ms,
                    sender_ms=touch.at_ms,
                )
            )
            self._client.append(self._key(entity, token), record)

    def _wait_until_kept(self) -> None:
        """In the stream seconds lie between, here none."""
        ends_s, pause = time.perf_counter() + _KEPT_WITHIN_S, threading.Event()
        while time.perf_counter() < ends_s and any(self._waiting()):
            pause.wait(0.002)

    def _waiting(self) -> Sequence[int]:
        remotes = [scorer._remote for scorer in self._scorers]
        return [remote.counts["waiting"] for remote in remotes if remote is not None]

    def _tokens(self, row: bytes) -> Iterator[tuple[int, bytes]]:
        for entity, token in enumerate(self._maker.tokens(row)):
            if token is not None:
                yield entity, token

    def _key(self, entity: int, token: bytes) -> bytes:
        return self._names.state(token, self._maker.layouts[entity].fingerprint)
