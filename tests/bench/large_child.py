"""The process that appends to the large merchant, and compacts it each heartbeat.

Every hundredth payment is a second late, and every hundredth comes twice.
"""

from __future__ import annotations

import sys
from threading import Event
from time import perf_counter
from typing import Final

import numpy as np

from tests.bench.large_merchant import MERCHANT, NAMESPACE, RATE_PER_S, Ground, large, now_ms

_TICK_S: Final = 0.02
_RARE: Final = 100


def main(url: str) -> None:
    """Work until it is ended."""
    ground = Ground(url)
    rng = np.random.default_rng(3)
    key = ground.key(MERCHANT, large(0))
    heartbeat_s = ground.settings.redis.heartbeat_s
    began_s = beat_s = perf_counter()
    n_sent, tick = 0, Event()
    with ground.nodes.lines() as lines:
        while True:
            n = int(RATE_PER_S * (perf_counter() - began_s)) - n_sent
            times = now_ms() - np.where(rng.integers(0, _RARE, n), rng.integers(0, 20, n), 1_000)
            data = ground.records(MERCHANT, times, rng)
            width = ground.store.maker.layouts[MERCHANT].width
            again = data[:width] if n and rng.integers(0, _RARE) < n else b""
            if n:
                lines.ask(0, b"APPEND", key, data + again)
            n_sent += n
            if perf_counter() - beat_s >= heartbeat_s:
                beat_s = perf_counter()
                ground.compact(only_due=True)
                lines.ask(0, b"SET", b"%b:written" % NAMESPACE.encode(), b"1")
            tick.wait(_TICK_S)


if __name__ == "__main__":
    main(sys.argv[1])
