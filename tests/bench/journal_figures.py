"""Figures of `observe()` with the journal, beside handing the same payments to Kafka's client.

Kafka is there all the time: this is what the promise costs that a killed process loses nothing.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter_ns
from typing import Any

import numpy as np

from freshscore.config.secret import Secret
from freshscore.config.settings import Settings
from freshscore.features.packing import Keys
from freshscore.features.program import compiled
from freshscore.features.redis_door import Nodes
from freshscore.features.specification import FeatureSpecification
from freshscore.features.transaction import Transaction
from freshscore.invalidation.journal_limits import JournalLimits
from freshscore.invalidation.journalled_topics import JournalledTopics
from freshscore.invalidation.kafka_writing import LogWriter
from freshscore.scoring.shared_scorer import SharedScorer
from tests.bench.consumer_bench import ConsumerBench
from tests.bench.consumer_topics import made
from tests.bench.figures import Figure, p50_us, p99_us
from tests.bench.material import Material

_WITHOUT = "without the journal"
_N_CALLS, _N_TURNS = 1_000, 6
# Between two calls: about 900 a second.
_PAUSE_S = 0.001
_LIMIT_S = 60.0


def observing(bench: ConsumerBench) -> list[Figure]:
    """One call, at a steady rate and one after the other, by turns."""
    material = Material(n_payments=20_000, n_scored=1_000)
    found = []
    for name, pause_s in (("900/s", _PAUSE_S), ("at full speed", 0.0)):
        with_it, without = _by_turns(bench, material, pause_s)
        for which, of in (("p50", p50_us), ("p99", p99_us)):
            title = f"observe() with the journal, {name}, {which}"
            found.append(Figure(title, of(with_it), "us", _WITHOUT, of(without)))
    return found


def _by_turns(bench: ConsumerBench, material: Material, pause_s: float) -> list[Any]:
    with ExitStack() as stack:
        scorers = [stack.enter_context(_scorer(bench, material, has)) for has in (True, False)]
        elapsed: list[list[Any]] = [[] for _ in scorers]
        for turn in range(1 + _N_TURNS):
            for scorer, own in zip(scorers, elapsed, strict=True):
                first = turn * _N_CALLS
                calls = _timed(scorer.observe, material.history[first : first + _N_CALLS], pause_s)
                scorer.flush(_LIMIT_S)
                # In the first turn connections are made and code is compiled.
                if turn:
                    own.append(calls)
        return [np.concatenate(own) for own in elapsed]


def _timed(call: Callable[[Transaction], None], payments: Any, pause_s: float) -> Any:
    never, elapsed_ns = threading.Event(), np.empty(len(payments), np.int64)
    for number, payment in enumerate(payments):
        if pause_s:
            never.wait(pause_s)
        started = perf_counter_ns()
        call(payment)
        elapsed_ns[number] = perf_counter_ns() - started
    return elapsed_ns


@contextmanager
def _scorer(bench: ConsumerBench, material: Material, has_journal: bool) -> Iterator[SharedScorer]:
    topic = f"observed-{uuid.uuid4().hex}"
    made(bench.broker, topic, {"message.timestamp.type": "LogAppendTime"})
    settings = Settings.model_validate(
        {
            "store": {"backend": "redis", "specification": material.specification},
            "redis": {"url": bench.redis.url, "namespace": topic[:32]},
            "kafka": {"bootstrap_servers": bench.broker.bootstrap, "transactions_topic": topic},
        }
    )
    program = compiled(FeatureSpecification.named(material.specification))
    keys = Keys(program, Secret(b"bench" * 8, "this benchmark"))
    writer = LogWriter(settings.kafka)
    with TemporaryDirectory() as folder:
        limits, journal = JournalLimits.of(settings), None
        if has_journal:
            journal = JournalledTopics.open(
                Path(folder), keys.key_id, limits, writer, settings.kafka
            )
        scorer = SharedScorer(
            settings,
            Nodes.open(settings.redis),
            material.model,
            program,
            keys,
            writer=writer,
            journal=journal,
        )
        with scorer:
            yield scorer
