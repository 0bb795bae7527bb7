"""Figures of states in Redis, on a server of their own: what an event takes, and an exchange.

The payments are Handbook's in number for a card and a terminal, and in their spread.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freshscore.config.secret import Secret
from freshscore.config.settings import RedisSettings
from freshscore.features.packing import Keys, Packer
from freshscore.features.program import compiled
from freshscore.features.redis_compaction import Compactor
from freshscore.features.redis_door import Nodes, command
from freshscore.features.redis_store import RedisStore
from freshscore.features.specification import FeatureSpecification
from freshscore.features.store import StoreLimits
from freshscore.features.transaction import Transaction
from tests.bench.figures import Figure, Measured, at_most, p50_us, ratio_at_most, taking_turns
from tests.servers.redis_servers import RedisServer

_START_MS = 1_700_006_400_000
_DAY_MS = 86_400_000
_LIMITS = StoreLimits(10**6, 10**7, 32_768, _DAY_MS, 1 << 20)
# Handbook's proportions, 350 payments a card and 175 a terminal in half a year, at a 25th.
_N_EVENTS, _N_CARDS, _N_TERMINALS, _SPAN_MS = 70_000, 200, 400, 183 * _DAY_MS
_N_EXCHANGES = 5_000


def memory() -> list[Figure]:
    """Bytes of Redis for an event of `handbook`, appended and compacted, and for one card."""
    with RedisServer() as server:
        store = _store(server)
        packer = Packer(store.program, store.keys)
        rows = [packer.row(payment) for payment in _payments()]
        before = _used_bytes(server)
        store.observe_all(_as_rows(rows))
        appended = (_used_bytes(server) - before) / len(rows)
        tokens = {(e, t) for row in rows for e, t in enumerate(store.maker.tokens(row)) if t}
        Compactor(store).compact(sorted(tokens), only_due=False)
        compacted = (_used_bytes(server) - before) / len(rows)
        of_card = _bytes_of_card(server, store, packer)
        store.nodes.close()
    return [
        at_most("Redis, handbook: an event as appended", appended, "bytes", 105),
        at_most("Redis, handbook: an event compacted", compacted, "bytes", 70),
        at_most("Redis, handbook: a card of 40 events", of_card, "bytes", 2_200),
    ]


def label_index() -> list[Figure]:
    """Bytes of Redis for a payment in the label index."""
    with RedisServer() as server:
        store = _store(server, label_index_days=120)
        packer = Packer(store.program, store.keys)
        rows = [packer.row(payment) for payment in _payments()]
        store.observe_all(_as_rows(rows))
        with server.client() as client:
            held = sum(
                int(client.memory_usage(key) or 0) for key in client.scan_iter(match="fs:{i*")
            )
        store.nodes.close()
    return [Figure("Redis, handbook: a payment in the label index", held / len(rows), "bytes")]


def exchange() -> list[Figure]:
    """Two states and the progress read in one exchange, beside the library's pipeline."""
    with RedisServer() as server, server.client() as client:
        keys = [b"fs:{0}:a", b"fs:{0}:b", b"fs:{0}:progress"]
        for key, n_bytes in zip(keys, (80 + 40 * 32, 80 + 300 * 32, 96), strict=True):
            client.set(key, bytes(n_bytes))
        nodes = Nodes.open(RedisSettings(url=server.url))
        request = b"".join(command(b"GET", key) for key in keys)

        def by_library(_: object) -> object:
            pipeline = client.pipeline(transaction=False)
            for key in keys:
                pipeline.get(key)
            return pipeline.execute()

        items = range(_N_EXCHANGES)
        with nodes.lines() as lines:
            found = taking_turns(
                {
                    "own": Measured(lambda _: lines.exchange([request], [3]), items),
                    "library": Measured(by_library, items),
                }
            )
        nodes.close()
    own, library = p50_us(found["own"]), p50_us(found["library"])
    name = "Redis: three GETs in one exchange"
    return [ratio_at_most(name, own, "us", 0.6, "redis-py pipeline", library)]


def _store(server: RedisServer, label_index_days: int = 0) -> RedisStore:
    program = compiled(FeatureSpecification.named("handbook"))
    settings = RedisSettings(url=server.url, timeout_ms=10_000, label_index_days=label_index_days)
    keys = Keys(program, Secret(b"bench" * 8, "this benchmark"))
    store = RedisStore(program, keys, _LIMITS, Nodes.open(settings))
    store.begin(bytes(8))
    return store


def _payments() -> Iterator[Transaction]:
    """Cards pay 0 to 4 times a day, as the Handbook draws it, and terminals differ alike."""
    chance = random.Random(1)
    cards = chance.choices(
        [f"c{n}" for n in range(_N_CARDS)],
        [chance.uniform(0.0, 4.0) for _ in range(_N_CARDS)],
        k=_N_EVENTS,
    )
    terminals = chance.choices(
        [f"m{n}" for n in range(_N_TERMINALS)],
        [chance.uniform(0.0, 4.0) for _ in range(_N_TERMINALS)],
        k=_N_EVENTS,
    )
    for number, (card, terminal) in enumerate(zip(cards, terminals, strict=True)):
        time_ms = _START_MS + number * _SPAN_MS // _N_EVENTS
        amount = chance.randrange(100, 20_000)
        entities = {"card": card, "merchant": terminal}
        yield Transaction(f"t{number}", time_ms, amount, "EUR", entities)


def _bytes_of_card(server: RedisServer, store: RedisStore, packer: Packer) -> int:
    """What a card of 40 events takes, appended one by one, key included."""
    for n in range(40):
        time_ms = _START_MS + _SPAN_MS + n * _DAY_MS // 2
        payment = Transaction(f"mine{n}", time_ms, 4_999, "EUR", {"card": "mine"})
        row = packer.row(payment)
        store.observe(row)
    (token, *_) = store.maker.tokens(row)
    assert token is not None
    with server.client() as client:
        return int(client.memory_usage(store.reading.state_key(0, token), samples=0) or 0)


def _as_rows(rows: list[bytes]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(rows), np.uint64).reshape(len(rows), -1)


def _used_bytes(server: RedisServer) -> int:
    """Memory of the server, tables of keys included, buffers of connections aside."""
    with server.client() as client:
        found: Any = client.info("memory")
    return int(found["used_memory"]) - int(found["mem_clients_normal"])
