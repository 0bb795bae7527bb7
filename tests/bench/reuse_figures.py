"""Figures of re-use: hits on re-scored payments beside perfect foresight and other policies.

Traffic of ../shared/reuse.md, replayed through the production scorer; foresight re-uses any score
of the same card that would be the fresh one, for half an hour.
"""

from __future__ import annotations

import contextlib
import io
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from freshscore.config.clock import SystemClock
from freshscore.config.loading import load_settings
from freshscore.features.reading import read_payments
from freshscore.features.specification import FeatureSpecification
from freshscore.features.table import PaymentTable
from freshscore.replaying import run_replay, trained_before
from freshscore.simulations.generator import Parameters, generate
from freshscore.simulations.outcome import Outcome
from freshscore.simulations.shapes import preset
from freshscore.simulations.streaming import stream_of
from tests.bench.figures import Figure, ratio_at_least

SPARKOV = Path(__file__).resolve().parents[3] / "shared" / "data" / "sparkov_2019h1.parquet"
_SEED = 3
_DAY_MS = 86_400_000


def rescored() -> list[Figure]:
    """On generated payments like the Handbook's, and on the shared Sparkov file."""
    parameters = Parameters(customers=1_000, terminals=2_000, days=60)
    frame = generate(parameters, np.random.default_rng(_SEED))
    start_ms = parameters.start_ms + 53 * _DAY_MS
    figures = []
    for name in ("handbook", "payments"):
        table = read_payments(frame, FeatureSpecification.named(name))
        figures += _of_replay(f"{name}, generated", table, start_ms)
    if SPARKOV.exists():
        table = read_payments(SPARKOV, FeatureSpecification.named("sparkov"))
        june_ms = int(datetime(2019, 6, 1, tzinfo=UTC).timestamp() * 1000)
        figures += _of_replay("sparkov, June", table, june_ms)
    else:
        print("the shared Sparkov file is not here: its figures are left out")
    return figures


def _of_replay(name: str, table: PaymentTable, start_ms: int) -> list[Figure]:
    outcome = _replayed(table, start_ms)
    policies = {one.name: one for one in outcome.policies}
    bound = policies["perfect foresight"].hits_again
    shares = [
        ratio_at_least(
            f"re-scores saved, {name}",
            policies["freshscore"].hits_again,
            "hits",
            0.99,
            "perfect foresight",
            bound,
        )
    ]
    for policy in outcome.policies:
        if policy.name not in ("perfect foresight", "freshscore", "no cache"):
            shares.append(
                Figure(
                    f"  beside it: {policy.name}, {policy.stale:,} not fresh",
                    policy.hits_again,
                    "hits",
                    "perfect foresight",
                    bound,
                )
            )
    differ = outcome.equality.cached_differ
    goal = Figure(f"scores that differ from fresh, {name}", differ, "", goal="0", met=differ == 0)
    return [*shares, goal]


def _replayed(table: PaymentTable, start_ms: int) -> Outcome:
    settings = load_settings(settings={"store.specification": table.specification.name})
    stream_rng, replay_rng = np.random.default_rng(_SEED).spawn(2)
    stream = stream_of(table, preset("reuse"), start_ms, stream_rng)
    clock = SystemClock()
    # What a replay says while it works is not part of the table.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        chosen = trained_before(stream, settings, clock, "the benchmark's own")
        return run_replay(stream, chosen.model, settings, replay_rng, clock, oracle="none")[0]
