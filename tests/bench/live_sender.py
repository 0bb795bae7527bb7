"""Sends payments at a steady rate, and says when each was sent and acknowledged.

    python -m tests.bench.live_sender BOOTSTRAP TOPIC RATE SECONDS FILE

FILE: int64[2, partitions, messages of one], ns of the system's monotonic clock, in their order.

kafka-python's producer takes 80 % of a core for 20,000 messages a second, which is not what is
measured: a client in C or Java takes a tenth. So record batches and requests are made here, in the
protocol's own words (KIP-98, Produce version 3). Every 2 ms what came since goes out, to all
partitions in one request, as a client does that lingers for so long.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Final

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from freshscore.config.clock import SystemClock
from tests.bench.consumer_topics import N_PARTITIONS, payment

_TICK_S: Final = 0.002
_N_CARDS, _N_MERCHANTS = 5_000, 10_000
_CLIENT: Final = b"freshscore-live"
_PRODUCE, _VERSION, _TIMEOUT_MS = 0, 3, 30_000
_ALL: Final = -1
_BEFORE_CRC: Final = 9
# What sending waits for at first, so that all payments are made by then.
_AHEAD_S: Final = 1.0


def send(bootstrap: str, topic: str, rate: int, seconds: int, path: Path) -> None:
    """Send to all partitions in each request; Produce answers in the order of requests."""
    # One message of each partition at least.
    each = max(1, round(rate * _TICK_S / N_PARTITIONS))
    n_ticks = rate * seconds // (each * N_PARTITIONS)
    values, clock, never = (
        _payments(n_ticks * each * N_PARTITIONS, rate),
        SystemClock(),
        threading.Event(),
    )
    noted = np.zeros((2, n_ticks), np.int64)
    host, _, port = bootstrap.partition(":")
    with socket.create_connection((host, int(port))) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reading = threading.Thread(target=_read, args=(line, topic, noted[1]))
        reading.start()
        never.wait(_AHEAD_S)
        began_ns = perf_counter_ns()
        for tick in range(n_ticks):
            early_s = tick * each * N_PARTITIONS / rate - (perf_counter_ns() - began_ns) / 1e9
            if early_s > 0:
                never.wait(early_s)
            noted[0, tick] = perf_counter_ns()
            some = values[tick * each * N_PARTITIONS : (tick + 1) * each * N_PARTITIONS]
            parts = [some[number::N_PARTITIONS] for number in range(N_PARTITIONS)]
            line.sendall(_request(tick, topic.encode(), parts, clock.now_ms()))
        reading.join()
    of_each = np.repeat(noted, each, axis=1)[:, np.newaxis, :]
    np.save(path, np.tile(of_each, (1, N_PARTITIONS, 1)))


def _payments(n: int, rate: int) -> list[bytes]:
    rng = np.random.default_rng(1)
    cards = rng.integers(_N_CARDS, size=n).tolist()
    merchants = rng.integers(_N_MERCHANTS, size=n).tolist()
    now_ms = SystemClock().now_ms()
    return [
        payment(
            f"live-{now_ms}-{i:09d}",
            now_ms + 1_000 * i // rate,
            4_999,
            {"card": f"c-{card:08d}", "merchant": f"m-{merchant:08d}"},
        )
        for i, (card, merchant) in enumerate(zip(cards, merchants, strict=True))
    ]


def _read(line: socket.socket, topic: str, acknowledged_ns: NDArray[np.int64]) -> None:
    """Note when each request was answered; SystemExit for an error among the answers."""
    with line.makefile("rb") as answers:
        for tick in range(len(acknowledged_ns)):
            (n_bytes,) = struct.unpack(">i", answers.read(4))
            answer = answers.read(n_bytes)
            acknowledged_ns[tick] = perf_counter_ns()
            # Behind the correlation, one topic and the number of its partitions.
            at = 4 + 4 + 2 + len(topic) + 4
            for number in range(N_PARTITIONS):
                _, error = struct.unpack_from(">ih", answer, at + 22 * number)
                if error:
                    raise SystemExit(f"Kafka answers error {error}")


def _request(number: int, topic: bytes, parts: Sequence[Sequence[bytes]], now_ms: int) -> bytes:
    head = struct.pack(">hhih", _PRODUCE, _VERSION, number, len(_CLIENT)) + _CLIENT
    # No transaction, acknowledged by all, one topic.
    body = struct.pack(">hhii", -1, _ALL, _TIMEOUT_MS, 1)
    body += struct.pack(">h", len(topic)) + topic + struct.pack(">i", len(parts))
    for partition, values in enumerate(parts):
        batch = _batch(values, now_ms)
        body += struct.pack(">ii", partition, len(batch)) + batch
    return struct.pack(">i", len(head) + len(body)) + head + body


def _batch(values: Sequence[bytes], now_ms: int) -> bytes:
    n = len(values)
    records = b"".join(_record(number, value) for number, value in enumerate(values))
    # Attributes, last offset delta, first and last stamp, producer, epoch, sequence, records.
    told = struct.pack(">hiqqqhii", 0, n - 1, now_ms, now_ms, -1, -1, -1, n) + records
    # Base offset, length behind it, leader epoch, magic.
    return struct.pack(">qiibI", 0, len(told) + _BEFORE_CRC, -1, 2, crc32c(told)) + told


def _record(number: int, value: bytes) -> bytes:
    """Without a key and headers, at the batch's stamp."""
    body = b"\0\0" + _varint(number) + _varint(-1) + _varint(len(value)) + value + b"\0"
    return _varint(len(body)) + body


def _varint(value: int) -> bytes:
    left, parts = (value << 1) ^ (value >> 63), bytearray()
    while left > 0x7F:
        parts.append(left & 0x7F | 0x80)
        left >>= 7
    parts.append(left)
    return bytes(parts)


if __name__ == "__main__":
    bootstrap, topic, rate, seconds, file = sys.argv[1:]
    send(bootstrap, topic, int(rate), int(seconds), Path(file))
