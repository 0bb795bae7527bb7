"""What it costs to be able to answer without Redis, and what such an answer takes.

The breakers, the measured limit and a deadline are compared with the same scorer without them, by
turns; the difference is a few hundred nanoseconds in an exchange of tens of microseconds, so what
they do for each score is timed by itself too.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from time import process_time_ns

from freshscore.config.errors import Unavailable
from freshscore.features.transaction import Transaction
from freshscore.scoring.exchange_limit import TIMED
from freshscore.scoring.shared_scorer import SharedScorer
from tests.bench.figures import Figure, Measured, at_least, at_most, p50_us, p99_us, taking_turns
from tests.bench.material import Material
from tests.bench.shared_figures import SharedBench, material
from tests.servers.redis_servers import RedisServer

_DEADLINE_MS = 100.0
_N_BY_ITSELF = 200_000


def without_redis(material: Material) -> list[Figure]:
    """Both figures."""
    with RedisServer() as server:
        bench = SharedBench(server.url, material)
        try:
            return _healthy(bench, material) + _stopped(bench, material, server)
        finally:
            bench.close()


def _healthy(bench: SharedBench, material: Material) -> list[Figure]:
    payments, last_ms = material.scored, material.scored[-1].time
    guarded, bare = bench.scorer, bench.own
    # As it was before there were breakers: nobody is asked, and every exchange may take as long.
    bare._exchanges._health = None
    for payment in payments:
        guarded.score(payment, as_of=last_ms)
        bare.score(payment, as_of=last_ms)

    def scoring(scorer: SharedScorer, deadline_ms: float | None) -> Callable[[Transaction], object]:
        return lambda one: scorer.score(one, as_of=last_ms, deadline_ms=deadline_ms)

    found = taking_turns(
        {
            "bare": Measured(scoring(bare, None), payments),
            "guarded": Measured(scoring(guarded, None), payments),
            "deadline": Measured(scoring(guarded, _DEADLINE_MS), payments),
        }
    )
    p50 = {name: p50_us(elapsed) for name, elapsed in found.items()}
    beside = "the same without breakers"
    return [
        Figure("score() with breakers, memo, p50", p50["guarded"], "us", beside, p50["bare"]),
        Figure("the same with deadline_ms, p50", p50["deadline"], "us", beside, p50["bare"]),
        at_most("what they do for a score, by itself", _by_itself_ns(guarded), "ns", 1_000),
    ]


def _by_itself_ns(scorer: SharedScorer) -> float:
    """What `RequestStates.fetch` and `Exchanges.fetch` do for them, without the exchange."""
    states, health, seat = scorer._states, scorer._health, scorer._seats.take(1.0)
    clock, limit = scorer._clock, scorer._health.limit

    def guard() -> None:
        for number in range(_N_BY_ITSELF):
            limit_s = states.left_s(seat.desk, None)
            started_s = clock.monotonic_s()
            if not health.is_quiet:
                raise AssertionError("nothing has failed")
            if number % TIMED == 0 and limit_s == limit.limit_s:
                limit.took(clock.monotonic_s() - started_s)

    try:
        # Of the processor: other work on this machine is none of it.
        began_ns = process_time_ns()
        guard()
        return (process_time_ns() - began_ns) / _N_BY_ITSELF
    finally:
        scorer._seats.give_back(seat)


def _stopped(bench: SharedBench, material: Material, server: RedisServer) -> list[Figure]:
    """Redis hears and answers nothing: the last answers of payments, with trials among them."""
    scorer, last_ms = bench.scorer, material.scored[-1].time
    remembered = material.scored[-1_000:]
    os.kill(server.pid, signal.SIGSTOP)
    try:

        def score(payment: Transaction) -> None:
            with contextlib.suppress(Unavailable):
                scorer.score(payment, as_of=last_ms, deadline_ms=_DEADLINE_MS)

        for payment in remembered[:5]:
            score(payment)
        found = taking_turns({"known": Measured(score, remembered)})["known"]
    finally:
        os.kill(server.pid, signal.SIGCONT)
    counts = scorer.stats()["without_redis"]
    assert counts["remembered"] > 0.5 * len(remembered), counts
    within = float((found <= _DEADLINE_MS * 1e6).mean())
    return [
        Figure("Redis stands still: the last answer, p50", p50_us(found), "us"),
        Figure("Redis stands still: the last answer, p99", p99_us(found), "us"),
        at_least(f"of these, within deadline_ms = {_DEADLINE_MS:g}", within, "share", 0.99),
    ]


def parts() -> dict[str, Callable[[], list[Figure]]]:
    """Name -> what measures it, for tests/bench/run.py."""
    return {"without_redis": lambda: without_redis(material())}
