"""States with very many events within the horizon: what one score has to read, and how long.

Records are put into Redis as consumers append them, then compacted, and a grid's folded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Final

import numpy as np

from freshscore.config.secret import Secret
from freshscore.config.settings import RedisSettings
from freshscore.features.codec import stored
from freshscore.features.layout import TIME
from freshscore.features.packing import Keys, Packer
from freshscore.features.program import compiled
from freshscore.features.redis_compaction import Compactor
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_store import RedisStore
from freshscore.features.request_store import RequestStore
from freshscore.features.specification import FeatureSpecification
from freshscore.features.store import StoreLimits
from freshscore.features.transaction import Transaction
from freshscore.scoring.exchanges import Exchanges
from tests.bench.figures import Figure
from tests.servers.redis_servers import RedisServer

_SPECIFICATION: Final = Path(__file__).with_name("grid_specification.toml")
_NOW_MS: Final = 1_699_920_000_000
_DAY_MS: Final = 86_400_000
_LIMITS: Final = StoreLimits(10**5, 10**6, 16_384, _DAY_MS, 1 << 26)
_SIZES: Final = (10**4, 10**5, 10**6)
_APPENDED_BYTES: Final = 1 << 24
_FOLDED_BEFORE_MS: Final = 10_000
_READS: Final = 5


def large() -> list[Figure]:
    """Of an exact and a grid entity: bytes of the state, and ms for reading it and its features."""
    with RedisServer() as server:
        return [*_figures(server)]


def _figures(server: RedisServer) -> Iterator[Figure]:
    settings = RedisSettings(url=server.url, timeout_ms=10_000)
    for entity, mode in enumerate(("exact", "grid")):
        for n in _SIZES:
            nodes = Nodes.open(settings)
            one = _Large(server, nodes, entity, n)
            name = f"{n:,} events of one entity, {mode}"
            yield from one.figures(f"{name}, as appended")
            one.compact(0)
            yield from one.figures(f"{name}, compacted")
            if mode == "grid":
                one.compact(_NOW_MS - _FOLDED_BEFORE_MS)
                yield from one.figures(f"{name}, folded")
            nodes.close()


class _Large:
    """A payment one of whose entities has `n` events of the last day in Redis."""

    def __init__(self, server: RedisServer, nodes: Nodes, entity: int, n: int) -> None:
        program = compiled(FeatureSpecification.named(str(_SPECIFICATION)))
        keys = Keys(program, Secret(b"bench" * 8, "this benchmark"))
        self._store = RedisStore(program, keys, _LIMITS, nodes, namespace=f"large-{entity}-{n}")
        self._store.begin(bytes(7) + b"\x01", 1)
        entities = {"card": "c", "merchant": "m"}
        payment = Transaction("t", _NOW_MS, 4_999, "EUR", entities)
        self._row = Packer(program, keys).row(payment)
        maker = self._store.maker
        token = maker.tokens(self._row)[entity]
        assert token is not None
        self._state = (entity, token)
        record = np.frombuffer(maker.event(self._row, entity), np.uint64)
        records = np.tile(record, (n, 1))
        rng = np.random.default_rng(1)
        records[:, 0] = rng.integers(1, 2**63, n).astype(np.uint64)
        times = np.sort(_NOW_MS - rng.integers(1, _DAY_MS, n)).astype(np.uint64)
        low = records[:, TIME // 8] & np.uint64(0xFFFF)
        records[:, TIME // 8] = times << np.uint64(16) | low
        data = stored(records, maker.layouts[entity])
        with server.client() as client:
            for first in range(0, len(data), _APPENDED_BYTES):
                key = self._store.reading.state_key(entity, token)
                client.append(key, data[first : first + _APPENDED_BYTES])
        self._exchanges = Exchanges(nodes, self._store.names, maker.layouts)
        self._request = RequestStore(program, keys, _LIMITS)

    def compact(self, fold_below_ms: int) -> None:
        """Compact the state, and fold what is older."""
        compactor = Compactor(self._store)
        done = compactor.compact([self._state], fold_below_ms=fold_below_ms, only_due=False)
        assert done["swapped"] == 1, done

    def figures(self, name: str) -> Iterator[Figure]:
        """Bytes that are read, and the median of reading them and making the features."""
        elapsed_ms = []
        desk = self._exchanges.desk()
        for _ in range(_READS):
            began_s = perf_counter()
            [fetched] = self._exchanges.fetch_all(desk, (self._row,), 20.0)
            self._request.take(self._row, fetched.states, _NOW_MS - 1_000)
            self._request.features(self._row, _NOW_MS)
            elapsed_ms.append(1e3 * (perf_counter() - began_s))
        desk.leave(self._exchanges.nodes)
        state = fetched.states[self._state[0]]
        assert state is not None
        yield Figure(name, len(state) / 1e3, "KB")
        yield Figure(f"{name}: read and evaluated, p50", float(np.median(elapsed_ms)), "ms")
