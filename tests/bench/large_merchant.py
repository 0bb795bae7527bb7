"""One merchant with 10^6 payments within the horizon beside a million cards: what its scores cost.

Its state is folded early, as the consumer's compactor does it. Scores of its payments, and of the
same cards at ordinary merchants, are taken by turns; first where nothing comes, then while a
process of its own appends 500 payments a second and compacts each heartbeat.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, time
from typing import Final

import numpy as np

from freshscore.config.secret import Secret
from freshscore.config.settings import Settings
from freshscore.features.codec import stored
from freshscore.features.layout import TIME
from freshscore.features.packing import Keys, Packer
from freshscore.features.program import Program, compiled
from freshscore.features.redis_compaction import Compactor
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_store import RedisStore
from freshscore.features.specification import FeatureSpecification
from freshscore.features.store import StoreLimits
from freshscore.features.transaction import Transaction
from freshscore.scoring.exchanges import Exchanges
from freshscore.scoring.shared_scorer import SharedScorer
from tests.bench.figures import (
    Figure,
    Measured,
    at_most,
    p50_us,
    p99_us,
    ratio_at_most,
    taking_turns,
)
from tests.bench.material import Material
from tests.servers.child import Child
from tests.servers.redis_servers import RedisServer

SPECIFICATION: Final = Path(__file__).with_name("grid_specification.toml")
NAMESPACE: Final = "merchant"
HORIZON_MS: Final = 2_000_000
N_EVENTS: Final = 10**6
RATE_PER_S: Final = 500
CARD, MERCHANT = 0, 1
_N_CARDS: Final = 10**6
_CARDS_AT_ONCE: Final = 20_000
_OF_CARD: Final = 3
_N_MERCHANTS: Final = 1_000
_OF_MERCHANT: Final = 40
_N_SCORED: Final = 4_000
_APPENDED_BYTES: Final = 1 << 24
_MOST_READ_KB: Final = 64.0
_LOOKS: Final = 50


def now_ms() -> int:
    """This machine's clock."""
    return int(1_000 * time())


class Ground:
    """The store of the benchmark, and payments for it."""

    def __init__(self, url: str) -> None:
        self.settings = Settings.model_validate(
            {
                "store": {
                    "backend": "redis",
                    "specification": str(SPECIFICATION),
                    "horizon_s": HORIZON_MS // 1_000,
                },
                "redis": {"url": url, "namespace": NAMESPACE, "timeout_ms": 10_000},
            }
        )
        self.program: Program = compiled(FeatureSpecification.named(str(SPECIFICATION)))
        self.keys = Keys(self.program, Secret(b"bench" * 8, "this benchmark"))
        self.nodes = Nodes.open(self.settings.redis)
        limits = StoreLimits.of(self.settings.store)
        self.store = RedisStore(self.program, self.keys, limits, self.nodes, namespace=NAMESPACE)
        self.packer = Packer(self.program, self.keys)

    def token(self, entity: int, payment: Transaction) -> bytes:
        """The token of one of a payment's entities."""
        token = self.store.maker.tokens(self.packer.row(payment))[entity]
        assert token is not None
        return token

    def key(self, entity: int, payment: Transaction) -> bytes:
        """The key of its state."""
        return self.store.reading.state_key(entity, self.token(entity, payment))

    def records(self, entity: int, times_ms: np.ndarray, rng: np.random.Generator) -> bytes:
        """Stored events at these instants, of random payments."""
        like = self.store.maker.event(self.packer.row(large(0)), entity)
        records = np.tile(np.frombuffer(like, np.uint64), (len(times_ms), 1))
        records[:, 0] = rng.integers(1, 2**63, len(times_ms)).astype(np.uint64)
        low = records[:, TIME // 8] & np.uint64(0xFFFF)
        records[:, TIME // 8] = times_ms.astype(np.uint64) << np.uint64(16) | low
        return stored(records, self.store.maker.layouts[entity])

    def compact(self, *, only_due: bool) -> dict[str, int]:
        """Compact the large merchant's state as a consumer does."""
        at_ms = now_ms()
        fold_ms = at_ms - HORIZON_MS - self.settings.kafka.clock_error_ms
        state = (MERCHANT, self.token(MERCHANT, large(0)))
        done = Compactor(self.store).compact(
            [state], fold_below_ms=fold_ms, now_ms=at_ms, only_due=only_due
        )
        return dict(done)


def payment(number: int, merchant: str) -> Transaction:
    """One of now, of one of the cards that are scored."""
    entities = {"card": f"card-{number % _N_SCORED}", "merchant": merchant}
    return Transaction(f"{merchant}-{number}", now_ms(), 4_999, "EUR", entities)


def large(number: int) -> Transaction:
    """One at the large merchant."""
    return payment(number, "large")


def ordinary(number: int) -> Transaction:
    """One at one of the others."""
    return payment(number, f"merchant-{number % _N_MERCHANTS}")


def merchant() -> list[Figure]:
    """All figures."""
    material = Material(
        n_cards=500,
        n_merchants=500,
        n_payments=20_000,
        n_scored=4_000,
        specification=str(SPECIFICATION),
    )
    with RedisServer() as server:
        ground = Ground(server.url)
        scorer = SharedScorer(
            ground.settings,
            Nodes.open(ground.settings.redis),
            material.model,
            ground.program,
            ground.keys,
        )
        try:
            return [*_figures(server, ground, scorer)]
        finally:
            scorer.close()
            ground.nodes.close()


def _figures(server: RedisServer, ground: Ground, scorer: SharedScorer) -> Iterator[Figure]:
    _load(server, ground)
    before = _bytes_besides(server, ground)
    began_s = perf_counter()
    done = ground.compact(only_due=False)
    assert done == {"swapped": 1}, done
    yield Figure("10^6 events folded early, all at once", perf_counter() - began_s, "s")
    kept = _bytes_besides(server, ground) - before
    yield Figure("the same kept one by one, in Redis", kept / 1e6, "MB")
    yield from _scored(ground, scorer, "nothing coming")
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.bench.large_child", server.url]
        child = Child("the writer", command, Path(folder) / "writer.log")
        child.wait_until(lambda: _has_written(ground), 120.0)
        yield from _scored(ground, scorer, f"{RATE_PER_S} a second coming")
        child.stop(30.0)
    yield Figure("one heartbeat's compaction", _compaction_ms(ground), "ms")


def _bytes_besides(server: RedisServer, ground: Ground) -> int:
    """What Redis holds besides the large merchant's state."""
    client = server.client()
    state = client.memory_usage(ground.key(MERCHANT, large(0)), samples=0) or 0
    return int(client.info("memory")["used_memory"]) - state


def _has_written(ground: Ground) -> bool:
    with ground.nodes.lines() as lines:
        return bool(lines.ask(0, b"EXISTS", b"%b:written" % NAMESPACE.encode()))


def _load(server: RedisServer, ground: Ground) -> None:
    """The merchant's events, as appended; cards and ordinary merchants, and progress."""
    rng = np.random.default_rng(1)
    at_ms = now_ms()
    ground.store.begin(bytes(7) + b"\x01", 1)
    client = server.client()
    data = ground.records(MERCHANT, at_ms - rng.integers(0, HORIZON_MS, N_EVENTS), rng)
    for first in range(0, len(data), _APPENDED_BYTES):
        client.append(ground.key(MERCHANT, large(0)), data[first : first + _APPENDED_BYTES])
    for number in range(_N_MERCHANTS):
        times = at_ms - rng.integers(0, 86_400_000, _OF_MERCHANT)
        client.append(ground.key(MERCHANT, ordinary(number)), ground.records(MERCHANT, times, rng))
    width = ground.store.maker.layouts[CARD].width * _OF_CARD
    times = at_ms - rng.integers(0, 86_400_000, _OF_CARD * _CARDS_AT_ONCE)
    for first in range(0, _N_CARDS, _CARDS_AT_ONCE):
        data = ground.records(CARD, times, rng)
        pipeline = client.pipeline(transaction=False)
        for i in range(_CARDS_AT_ONCE):
            number = first + i
            if number < _N_SCORED:
                key = ground.key(CARD, large(number))
            else:
                key = ground.store.reading.state_key(CARD, rng.bytes(16))
            pipeline.set(key, data[i * width : (i + 1) * width])
        pipeline.execute()


def _scored(ground: Ground, scorer: SharedScorer, name: str) -> Iterator[Figure]:
    """Scores by turns, and the bytes that one reads of the merchant, the most of many looks."""
    for number in range(2_000):
        scorer.score(large(number))
        scorer.score(ordinary(number))
    most = 0
    exchanges = Exchanges(ground.nodes, ground.store.names, ground.store.maker.layouts)
    desk = exchanges.desk()

    def look(number: int) -> Transaction:
        nonlocal most
        if number % (_N_SCORED // _LOOKS) == 0:
            [found] = exchanges.fetch_all(desk, (ground.packer.row(large(number)),), 10.0)
            held = (found.states[MERCHANT], found.past[MERCHANT])
            most = max(most, sum(len(one or b"") for one in held))
        return large(number)

    numbers = range(10_000, 10_000 + 2 * _N_SCORED)
    elapsed = taking_turns(
        {
            "large": Measured(scorer.score, numbers, look),
            "ordinary": Measured(scorer.score, numbers, ordinary),
        }
    )
    desk.leave(ground.nodes)
    yield at_most(f"large merchant, {name}: read", most / 1e3, "KB", _MOST_READ_KB)
    yield Figure(
        f"large merchant, {name}: score() p50",
        p50_us(elapsed["large"]),
        "us",
        "an ordinary merchant",
        p50_us(elapsed["ordinary"]),
    )
    yield ratio_at_most(
        f"large merchant, {name}: score() p99",
        p99_us(elapsed["large"]),
        "us",
        2.0,
        "an ordinary merchant",
        p99_us(elapsed["ordinary"]),
    )


def _compaction_ms(ground: Ground) -> float:
    """Median of compacting what a second brings."""
    rng = np.random.default_rng(2)
    elapsed = []
    for _ in range(20):
        at_ms = now_ms()
        data = ground.records(MERCHANT, at_ms - rng.integers(0, 1_000, RATE_PER_S), rng)
        with ground.nodes.lines() as lines:
            lines.ask(0, b"APPEND", ground.key(MERCHANT, large(0)), data)
        began_s = perf_counter()
        ground.compact(only_due=False)
        elapsed.append(1e3 * (perf_counter() - began_s))
    return float(np.median(elapsed))
