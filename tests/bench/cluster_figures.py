"""What three nodes cost: a consumer and `score()` on a cluster beside the same on one server.

All servers are on this machine, so a second and a third node bring work and no further cores: what
is measured is the price of more exchanges, not what a cluster is for.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from freshscore.config.settings import Settings
from freshscore.features.redis_door import Nodes
from freshscore.features.transaction import Transaction
from freshscore.scoring.shared_scorer import SharedScorer
from tests.bench.consumer_bench import ConsumerBench
from tests.bench.consumer_runs import consumed
from tests.bench.consumer_topics import handbook
from tests.bench.figures import (
    Figure,
    Measured,
    p50_us,
    p99_us,
    ratio_at_least,
    ratio_at_most,
    taking_turns,
)
from tests.bench.material import Material
from tests.bench.shared_figures import material
from tests.servers.redis_servers import RedisCluster

_N_CONSUMED: Final = 400_000
_N_SCORED: Final = 4_000
_TURNS: Final = 3
_SERVER: Final = "one server"


def three_nodes(bench: ConsumerBench) -> list[Figure]:
    """The consumer by turns, and then scores on what the last turns left."""
    log = bench.handbook
    with RedisCluster() as cluster:
        one: list[float] = []
        three: list[float] = []
        for _ in range(_TURNS):
            alone = bench.settings(log, bench.redis)
            one.append(consumed(alone, _N_CONSUMED))
            clustered = bench.settings(log, cluster, redis__cluster=True)
            three.append(consumed(clustered, _N_CONSUMED))
        scored = _scored(bench, material(), alone, clustered)
    value, reference = float(np.median(three)) / 1_000, float(np.median(one)) / 1_000
    name = "consumer, handbook, a cluster of three nodes"
    return [ratio_at_least(name, value, "k/s", 0.9, _SERVER, reference), *scored]


def _scored(
    bench: ConsumerBench, material: Material, alone: Settings, clustered: Settings
) -> list[Figure]:
    program = bench.program()
    keys = bench.keys(program)
    payments = _payments()
    scorers = {
        name: SharedScorer(settings, Nodes.open(settings.redis), material.model, program, keys)
        for name, settings in (("one", alone), ("three", clustered))
    }
    try:
        for scorer in scorers.values():
            # Memory is the system's until it is first written.
            for payment in payments:
                scorer.score(payment)
        as_of_ms = payments[-1].time + 60_000
        found = taking_turns(
            {
                "one": Measured(_scoring(scorers["one"], as_of_ms), payments),
                "three": Measured(_scoring(scorers["three"], as_of_ms), payments),
            }
        )
    finally:
        for scorer in scorers.values():
            scorer.close()
    rows = []
    for quantile, of in (("p50", p50_us), ("p99", p99_us)):
        name = f"score() over Redis, three nodes, {quantile}"
        rows.append(ratio_at_most(name, of(found["three"]), "us", 1.5, _SERVER, of(found["one"])))
    return rows


def _scoring(scorer: SharedScorer, as_of_ms: int) -> Callable[[Transaction], object]:
    return lambda payment: scorer.score(payment, as_of=as_of_ms)


def _payments() -> Sequence[Transaction]:
    """Those that come next in the topic."""
    following = itertools.islice(handbook(_N_CONSUMED + _N_SCORED), _N_CONSUMED, None)
    return [Transaction.of(json.loads(value, object_hook=_of_message)) for _, _, value in following]


def _of_message(said: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in said.items() if name != "v"}
