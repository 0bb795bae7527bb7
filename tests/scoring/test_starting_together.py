"""What starts together does not meet at Redis all at once: connections in turn, leases spread."""

from __future__ import annotations

import random
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from freshscore.config.errors import Unavailable
from freshscore.config.settings import RedisSettings
from freshscore.features.redis_door import Nodes, command
from freshscore.features.redis_lines import Address
from freshscore.invalidation.control import Control
from freshscore.scoring.leases import LeaseKeeper
from tests.servers.redis_servers import RedisServer

_THREADS = 24
_AT_ONCE = 2


def opened(server: RedisServer) -> Nodes:
    return Nodes.open(RedisSettings(url=server.url, max_connections=_THREADS, timeout_ms=20_000))


def test_few_connections_are_made_at_once(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every thread gets its own all the same."""
    nodes = opened(redis_server)
    connect, counting = Nodes._connected, threading.Condition()
    under_way = most = made = 0

    def counted(self: Nodes, address: Address, limit_s: float) -> socket.socket:
        nonlocal under_way, most, made
        with counting:
            under_way += 1
            made += 1
            most = max(most, under_way)
            counting.notify_all()
            # Long enough for all others to come, if nothing holds them.
            counting.wait_for(lambda: under_way > _AT_ONCE, 0.05)
        try:
            return connect(self, address, limit_s)
        finally:
            with counting:
                under_way -= 1

    monkeypatch.setattr(Nodes, "_connected", counted)
    together = threading.Barrier(_THREADS)

    def ask(_: int) -> object:
        with nodes.lines() as lines:
            together.wait()
            found = lines.exchange([command(b"PING")], [1])[0][0]
            # So that no connection is used twice.
            together.wait()
            return found

    with ThreadPoolExecutor(_THREADS) as pool:
        assert {*pool.map(ask, range(_THREADS))} == {b"PONG"}
    nodes.close()
    assert made == _THREADS
    assert most == _AT_ONCE


def test_whoever_waits_for_a_turn_waits_no_longer_than_its_limit(redis_server: RedisServer) -> None:
    nodes = opened(redis_server)
    (address,) = nodes.topology.addresses
    turns = nodes._pool.turns_at(address)
    for _ in range(_AT_ONCE):
        assert turns.acquire(blocking=False)
    with nodes.lines() as lines, pytest.raises(Unavailable, match="others connect"):
        lines.exchange([command(b"PING")], [1], 0.05)
    turns.release()
    with nodes.lines() as lines:
        assert lines.exchange([command(b"PING")], [1], 5.0) == [[b"PONG"]]
    nodes.close()


def test_leases_taken_together_are_renewed_apart(redis_server: RedisServer) -> None:
    """Over the heartbeat, and each in its first one."""
    nodes, chance, heartbeat_s = opened(redis_server), random.Random(1), 1.0
    keepers = [
        LeaseKeeper(
            Control(nodes, "unused"),
            f"{chance.getrandbits(64):016x}",
            5.0,
            heartbeat_s,
            lambda told: None,
        )
        for _ in range(640)
    ]
    nodes.close()
    in_tenths, _ = np.histogram([one.first_s for one in keepers], 10, (0.0, heartbeat_s))
    assert in_tenths.sum() == len(keepers)
    # Binomial: 64 +- 7.6 in each.
    assert in_tenths.min() >= 32
    assert in_tenths.max() <= 102
