"""Figures of the consumer over a real broker and a real Redis, beside a loop that only polls.

What takes turns is compared in one run; each figure is the median of its turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from tests.bench import consumer_beside, consumer_live, consumer_memory, consumer_processes
from tests.bench.consumer_bench import ConsumerBench, used_bytes
from tests.bench.consumer_runs import bare, consumed
from tests.bench.consumer_topics import Log, handbook, uniform
from tests.bench.figures import Figure, ratio_at_least
from tests.servers.redis_servers import RedisServer

_TURNS: Final = 3
_N_READ: Final = 200_000
_N_UNIFORM: Final = 500_000
_BARE: Final = "bare kafka-python poll loop"
_PUBLIC_RATIO, _IN_PLACE_RATIO = 0.65, 2.0
_GOALS: Final = {"public calls": _PUBLIC_RATIO, "in place": _IN_PLACE_RATIO}
_SIZES: Final = (10_000, 100_000, 1_000_000)


def parts(bench: ConsumerBench) -> dict[str, Callable[[], list[Figure]]]:
    """Name -> what measures it, for tests/bench/run.py."""
    return {
        "consumer": lambda: consumer(bench),
        "rebuild": lambda: consumer_memory.rebuild(bench),
        "five": lambda: five_entities(bench),
        "sizes": lambda: sizes(bench),
        "consumers": lambda: consumer_processes.consumers(bench),
        "live": lambda: consumer_live.live(bench),
        "quixstreams": lambda: consumer_beside.quixstreams(bench),
    }


def consumer(bench: ConsumerBench) -> list[Figure]:
    """Messages a second, from JSON to acknowledged by Redis and told on the stream."""
    figures = []
    for said, log in (
        ("handbook", bench.handbook),
        ("10^6 x 10^5 entities", _uniform(bench, _SIZES[-1])),
    ):
        found = _by_turns(bench, log)
        for (how, kept), rate in found.items():
            if how != _BARE:
                name = f"consumer, {said}, {how}, {kept}"
                beside = found[_BARE, ""]
                figures.append(ratio_at_least(name, rate, "k/s", _GOALS[how], _BARE, beside))
    return [*figures, _with_index(bench)]


def _by_turns(bench: ConsumerBench, log: Log) -> dict[tuple[str, str], float]:
    """(how, where) -> thousands of messages a second."""
    servers = {"append-only file": bench.kept_redis, "in memory": bench.redis}
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(_TURNS):
        rate = bare(bench.broker.bootstrap, log, _N_READ)
        found.setdefault((_BARE, ""), []).append(rate)
        for kept, server in servers.items():
            for how in _GOALS:
                rate = _rate(bench, log, server, in_place=how == "in place")
                found.setdefault((how, kept), []).append(rate)
    return {name: float(np.median(rates)) / 1_000 for name, rates in found.items()}


def _rate(bench: ConsumerBench, log: Log, server: RedisServer, *, in_place: bool) -> float:
    return consumed(bench.settings(log, server), _N_READ, in_place=in_place)


def _with_index(bench: ConsumerBench) -> Figure:
    """The same with the label index, by turns with a bare loop."""
    log, bares, rates = bench.handbook, [], []
    for _ in range(_TURNS):
        bares.append(bare(bench.broker.bootstrap, log, _N_READ) / 1_000)
        settings = bench.settings(log, bench.kept_redis, redis__label_index_days=120)
        rates.append(consumed(settings, _N_READ) / 1_000)
    name = "consumer, handbook, in place, append-only file, label index"
    return Figure(name, float(np.median(rates)), "k/s", _BARE, float(np.median(bares)))


def _uniform(bench: ConsumerBench, n_cards: int) -> Log:
    n_merchants = n_cards // 10
    name = f"uniform-{n_cards}"
    return bench.log(name, lambda: uniform(_N_UNIFORM, n_cards, n_merchants))


def five_entities(bench: ConsumerBench) -> list[Figure]:
    """Five entities an event instead of two: card, merchant, device, ip and email."""
    log = bench.log("devices", lambda: handbook(_N_READ, devices=True))
    found = _rates_and_bytes(bench, [(log, "handbook"), (log, "payments")])
    (two, two_bytes), (five, five_bytes) = found
    return [
        Figure("consumer, five entities", five, "k/s", "two entities", two),
        Figure("Redis, five entities, appended", five_bytes, "B/event", "two", two_bytes),
    ]


def sizes(bench: ConsumerBench) -> list[Figure]:
    """Throughput and memory with 10^4 to 10^6 cards, and a tenth of merchants."""
    logs = [(_uniform(bench, n_cards), "handbook") for n_cards in _SIZES]
    found = _rates_and_bytes(bench, logs)
    figures = []
    for n_cards, (rate, n_bytes) in zip(_SIZES, found, strict=True):
        said = f"10^{len(str(n_cards)) - 1} cards"
        name = f"consumer, {said}, {_N_UNIFORM:,} events"
        figures.append(Figure(name, rate, "k/s", "10^4 cards", found[0][0]))
        figures.append(Figure(f"Redis, {said}, appended", n_bytes, "B/event"))
    return figures


def _rates_and_bytes(
    bench: ConsumerBench, wanted: Sequence[tuple[Log, str]]
) -> list[tuple[float, float]]:
    """For each log under a specification: thousands of messages a second, and bytes a message."""
    rates: list[list[float]] = [[] for _ in wanted]
    held = [0.0] * len(wanted)
    with bench.redis.client() as client:
        for _ in range(_TURNS):
            for i, (log, name) in enumerate(wanted):
                settings = bench.settings(log, bench.redis, store__specification=name)
                before = used_bytes(client)
                rates[i].append(consumed(settings, log.n) / 1_000)
                held[i] = (used_bytes(client) - before) / log.n
    return [(float(np.median(some)), n_bytes) for some, n_bytes in zip(rates, held, strict=True)]
