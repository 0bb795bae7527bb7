"""Live traffic: how long after a payment was sent the next score in another process counts it.

A process of its own sends at a steady rate, another consumes, and this one scores on near states
now and then. What is near counts a payment from the moment at which the follower has applied it.
Where the time goes follows from the stamps of the stream's entries: when a consumer made them, by
the system's clock, and when Redis took them; whole milliseconds, so that parts are rounded.
Beside it: the same sender, and a bare poll loop of kafka-python that does nothing.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any, Final

import numpy as np
from kafka import KafkaConsumer, TopicPartition
from numpy.typing import NDArray

from freshscore import Scorer
from freshscore.config.clock import SystemClock
from freshscore.features.redis_progress import topic_digest
from freshscore.invalidation.kafka_admin import LogAdmin
from freshscore.invalidation.stream_messages import StreamMessage
from freshscore.scoring.shared_scorer import SharedScorer
from tests.bench.consumer_bench import ConsumerBench
from tests.bench.consumer_child import Stream, running
from tests.bench.consumer_topics import N_PARTITIONS, empty
from tests.bench.figures import Figure, at_most
from tests.servers.child import Child

_RATES: Final = (20_000, 2_000)
_SECONDS: Final = 6
# Compiled code is read, and the topics' leaders found.
_FIRST_SECONDS: Final = 2
_LIMIT_S: Final = 60.0
_BETWEEN_S: Final = 0.005
_POLL_MS: Final = 100
_P50_MS, _P99_MS = 5.0, 10.0

Noted = NDArray[np.int64]


def live(bench: ConsumerBench) -> list[Figure]:
    """Median and 99th percentile, ms, and the parts of the median."""
    return [figure for rate in _RATES for figure in _at(bench, rate)]


def _at(bench: ConsumerBench, rate: int) -> list[Figure]:
    alone_ms = _kafka_alone(bench, rate)
    parts_ms = _followed(bench, rate)
    total_ms = parts_ms.pop("")
    name, beside = f"live, {rate:,} events/s, sent to scored", "bare poll loop"
    p50, p99 = _quantiles(total_ms)
    alone50, alone99 = _quantiles(alone_ms)
    return [
        at_most(f"{name}, p50", p50, "ms", _P50_MS, reference=beside, reference_value=alone50),
        at_most(f"{name}, p99", p99, "ms", _P99_MS, reference=beside, reference_value=alone99),
        *(
            Figure(f"{name}, of it {part}, p50", *_quantiles(took_ms)[:1], "ms")
            for part, took_ms in parts_ms.items()
        ),
    ]


def _quantiles(took_ms: NDArray[np.float64]) -> tuple[float, float]:
    steady = took_ms[:, took_ms.shape[1] * _FIRST_SECONDS // _SECONDS :]
    return float(np.median(steady)), float(np.percentile(steady, 99))


def _kafka_alone(bench: ConsumerBench, rate: int) -> NDArray[np.float64]:
    """What a loop that only polls takes, ms."""
    log = empty(bench.broker, f"alone-{rate}")
    seen = np.zeros((N_PARTITIONS, rate * _SECONDS // N_PARTITIONS), np.int64)
    consumer: Any = KafkaConsumer(bootstrap_servers=bench.broker.bootstrap, metrics_enabled=False)
    consumer.assign([TopicPartition(log.name, number) for number in range(N_PARTITIONS)])
    consumer.seek_to_beginning()
    consumer.poll(_POLL_MS)
    sender = _sender(bench, log.name, rate)

    def poll() -> None:
        found = consumer.poll(_POLL_MS)
        now_ns = perf_counter_ns()
        for at, records in found.items():
            seen[at.partition, records[0].offset : records[-1].offset + 1] = now_ns

    _until_seen(seen, poll)
    consumer.close()
    sender.finish(_LIMIT_S)
    sent: Noted = np.load(_file(bench))[0]
    return (seen - sent) / 1e6


def _followed(bench: ConsumerBench, rate: int) -> dict[str, NDArray[np.float64]]:
    """From sent to seen in near states, and the parts of that, ms."""
    log = empty(bench.broker, f"live-{rate}")
    near = {"redis__near": True, "kafka__historical": False}
    settings = bench.settings(log, bench.kept_redis, **near)
    with LogAdmin(settings.kafka) as admin:
        digest = topic_digest(admin.topics([log.name])[log.name].topic_id)
    seen = np.zeros((N_PARTITIONS, rate * _SECONDS // N_PARTITIONS), np.int64)
    made_ms, taken_ms = np.zeros_like(seen), np.zeros_like(seen)
    told = settings.model_dump(mode="json", exclude_defaults=True)
    with (
        bench.kept_redis.client() as client,
        running(settings, 1, bench.folder) as children,
        Scorer.open("shared", settings=_flat(told), model=_model) as scorer,
    ):
        assert isinstance(scorer, SharedScorer)
        _note(scorer, digest, seen)
        children[0].wait_until(lambda: scorer.stats()["near"]["in_step"], _LIMIT_S)
        sender, waiting = _sender(bench, log.name, rate), threading.Event()

        def score() -> None:
            waiting.wait(_BETWEEN_S)
            scorer.score(_asked())

        _until_seen(seen, score)
        sender.finish(_LIMIT_S)
        for entry in Stream(bench, client).all():
            for at, begin, end in _covered(entry.said, digest):
                new = slice(max(begin, int(np.count_nonzero(taken_ms[at]))), end)
                made_ms[at, new], taken_ms[at, new] = entry.said.sent_at_ms, entry.at_ms
    sent, acknowledged = np.load(_file(bench)) / 1e6
    # The monotonic clock beside the system's, ms.
    ahead_ms = SystemClock().now_ms() + 0.5 - perf_counter_ns() / 1e6
    made, taken, known = made_ms - ahead_ms + 0.5, taken_ms - ahead_ms + 0.5, seen / 1e6
    return {
        "": known - sent,
        "Kafka (sent to acknowledged)": acknowledged - sent,
        "consumer (acknowledged to made)": made - acknowledged,
        "Redis (made to taken)": taken - made,
        "follower (taken to applied)": known - taken,
    }


def _note(scorer: SharedScorer, digest: bytes, seen: Noted) -> None:
    """Note when each message counts from now on."""
    reading = scorer._states.near
    assert reading is not None
    step = getattr(reading._follower, "_step")  # noqa: B009  # of the follower alone
    hear: Callable[[StreamMessage, float], None] = step.hear

    def noted(message: StreamMessage, heard_s: float) -> None:
        hear(message, heard_s)
        now_ns = perf_counter_ns()
        for at, begin, end in _covered(message, digest):
            part = seen[at, begin:end]
            part[part == 0] = now_ns

    step.hear = noted


def _covered(message: StreamMessage, digest: bytes) -> list[tuple[int, int, int]]:
    return [
        (one.partition, one.from_offset, one.to_offset)
        for one in message.covered
        if one.topic == digest and one.to_offset > one.from_offset
    ]


def _until_seen(seen: Noted, work: Callable[[], None]) -> None:
    limit_ns = perf_counter_ns() + int(_LIMIT_S * 1e9)
    while not seen.all():
        work()
        assert perf_counter_ns() < limit_ns, f"{np.count_nonzero(seen == 0)} messages are not known"


def _sender(bench: ConsumerBench, topic: str, rate: int) -> Child:
    words = [bench.broker.bootstrap, topic, str(rate), str(_SECONDS), str(_file(bench))]
    command = [sys.executable, "-m", "tests.bench.live_sender", *words]
    return Child("the sender", command, bench.folder / "sender.log")


def _file(bench: ConsumerBench) -> Any:
    return bench.folder / "sent.npy"


def _flat(told: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{group}.{key}": one for group, some in told.items() for key, one in some.items()}


def _model(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-np.nan_to_num(matrix)[:, 0] / 1e4))
    return found


def _asked() -> dict[str, Any]:
    """Some payment: whoever scores keeps the interpreter busy now and then."""
    now_ms = SystemClock().now_ms()
    number = now_ms % 5_000
    return {
        "transaction_id": f"asked-{now_ms}",
        "time": now_ms,
        "amount_minor": 4_999,
        "currency": "EUR",
        "entities": {"card": f"c-{number:08d}", "merchant": f"m-{number:08d}"},
    }
