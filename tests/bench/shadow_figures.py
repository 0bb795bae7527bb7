"""What one shadow keeps pace with: payments a second, from JSON to an acknowledged decision.

Recent payments of 1,000 cards at 2,000 merchants, all applied before, so that each is scored on
states of its hour by 500 trees of 63 leaves; beside it the same payments by `score_many` alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Final

import numpy as np

from freshscore.config.clock import SystemClock
from freshscore.features.transaction import Transaction
from freshscore.invalidation.assembling import open_consumer
from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.kafka_writing import LogWriter
from freshscore.invalidation.message_reading import MessageReader
from freshscore.scoring.shadow_opening import GROUP_SUFFIX
from freshscore.scoring.shadowing import SentDecisions, Shadow, ShadowParts
from freshscore.scoring.shared_opening import open_shared
from tests.bench.consumer_bench import ConsumerBench
from tests.bench.consumer_topics import Message, payment
from tests.bench.figures import Figure
from tests.bench.material import Material

_N: Final = 20_000
_CARDS, _MERCHANTS = 1_000, 2_000
_HOUR_MS: Final = 3_600_000


def parts(bench: ConsumerBench) -> dict[str, Callable[[], list[Figure]]]:
    """Name -> what measures it, for tests/bench/run.py."""
    return {"shadow": lambda: shadow(bench)}


def shadow(bench: ConsumerBench) -> list[Figure]:
    """The rate of one process, and what a score of it takes that is asked for alone."""
    now_ms = SystemClock().now_ms()
    log = bench.log("recent", lambda: _recent(now_ms))
    settings = bench.settings(log, bench.redis)
    consumer = open_consumer(settings)
    while not consumer.is_caught_up:
        consumer.turn()
    consumer.close()
    kafka, program = settings.kafka, bench.program()
    records: deque[bytes] = deque()
    scorer = open_shared(settings, Material(specification="handbook").model, shadow=records.append)
    reader = LogReader(kafka, [kafka.transactions_topic], group=kafka.group + GROUP_SUFFIX)
    reader.commit({(log.name, at): 0 for at in reader.partitions(log.name)}, wait=True)
    found = Shadow(
        kafka,
        ShadowParts(
            reader,
            MessageReader(program, bench.keys(program)),
            scorer,
            records,
            SentDecisions(LogWriter(kafka), kafka.decisions_topic),
            SystemClock(),
        ),
    )
    while not found.n_partitions:
        found.turn()
    begun_s = perf_counter()
    while found.counts.n_messages < _N:
        found.turn()
    took_s = perf_counter() - begun_s
    told = found.counts.figures()
    assert (told["scored"], told["degraded"]["count"]) == (_N, 0), told
    payments = [Transaction.of(one) for one in _payments(now_ms)]
    begun_s = perf_counter()
    scorer.score_many(payments)
    alone_s = perf_counter() - begun_s
    found.close()
    return [
        Figure(
            "shadow, one process: payments scored and published",
            _N / took_s / 1_000,
            "k/s",
            "score_many of the same payments again",
            _N / alone_s / 1_000,
        ),
        Figure("shadow: one score alone, p50", told["latency_us"]["p50"], "us"),
    ]


def _payments(now_ms: int) -> Iterator[dict[str, object]]:
    rng = np.random.default_rng(1)
    cards, merchants = rng.integers(_CARDS, size=_N), rng.integers(_MERCHANTS, size=_N)
    for i in range(_N):
        yield {
            "transaction_id": f"t-{i:09d}",
            "time": now_ms - _HOUR_MS + i * _HOUR_MS // _N,
            "amount_minor": 4_999,
            "currency": "EUR",
            "entities": {"card": f"c-{cards[i]:08d}", "merchant": f"m-{merchants[i]:08d}"},
        }


def _recent(now_ms: int) -> Iterator[Message]:
    for one in _payments(now_ms):
        identity, time_ms, entities = one["transaction_id"], one["time"], one["entities"]
        assert isinstance(identity, str)
        assert isinstance(time_ms, int)
        assert isinstance(entities, dict)
        yield entities["card"].encode(), time_ms, payment(identity, time_ms, 4_999, entities)
