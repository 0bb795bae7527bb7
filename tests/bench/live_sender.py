"""Sends payments at a steady rate, and says when each was handed over.

    python -m tests.bench.live_sender BOOTSTRAP TOPIC RATE SECONDS FILE

FILE: int64[partitions, messages of one], ns of the system's monotonic clock, in their order.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from time import perf_counter_ns
from typing import Final

import numpy as np

from freshscore.config.clock import SystemClock
from freshscore.config.settings import KafkaSettings
from freshscore.invalidation.kafka_writing import LogWriter
from tests.bench.consumer_topics import N_PARTITIONS, payment

_AT_ONCE: Final = 40
_N_CARDS, _N_MERCHANTS = 5_000, 10_000


def send(bootstrap: str, topic: str, rate: int, seconds: int, path: Path) -> None:
    """Send round the partitions, 40 messages at a time."""
    writer = LogWriter(KafkaSettings(bootstrap_servers=bootstrap))
    n, clock, never = rate * seconds, SystemClock(), threading.Event()
    rng = np.random.default_rng(1)
    cards = rng.integers(_N_CARDS, size=n).tolist()
    merchants = rng.integers(_N_MERCHANTS, size=n).tolist()
    sent = np.zeros((N_PARTITIONS, n // N_PARTITIONS), np.int64)
    began_ns = perf_counter_ns()
    for i in range(n):
        if i % _AT_ONCE == 0:
            early_s = i / rate - (perf_counter_ns() - began_ns) / 1e9
            if early_s > 0:
                never.wait(early_s)
        of = {"card": f"c-{cards[i]:08d}", "merchant": f"m-{merchants[i]:08d}"}
        value = payment(f"live-{i:09d}", clock.now_ms(), 4_999, of)
        number = i % N_PARTITIONS
        sent[number, i // N_PARTITIONS] = perf_counter_ns()
        writer.send(topic, None, value, partition=number)
    writer.flush(30.0)
    writer.close(5.0)
    np.save(path, sent)


if __name__ == "__main__":
    bootstrap, topic, rate, seconds, file = sys.argv[1:]
    send(bootstrap, topic, int(rate), int(seconds), Path(file))
