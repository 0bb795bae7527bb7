"""The specification, settings and models of simulated worlds: all that a state can do, small.

Windows last from seconds to minutes, so that events leave them, states are forgotten, and grids are
folded while a world runs. Compaction begins at a few records.
Rule: nothing here is drawn; what differs from world to world is passed in.
"""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from freshscore.config.secret import Secret
from freshscore.config.settings import Settings
from freshscore.features.packing import Keys, Packer
from freshscore.features.program import Program, compiled
from freshscore.features.specification import (
    Aggregate,
    Condition,
    Entity,
    Feature,
    FeatureSpecification,
    WindowGroup,
)
from freshscore.features.store import MemoryStore, StoreLimits
from freshscore.scoring import lightgbm_door
from freshscore.scoring.callable_model import CallableModel
from freshscore.scoring.model_file import CohortThresholds
from freshscore.scoring.model_making import import_booster
from freshscore.scoring.serving import ServableModel
from freshscore.simulations.world_chance import Chance
from freshscore.simulations.world_traffic import BEGIN_MS, Traffic

NAMESPACE: Final = "w"
SECRET: Final = Secret(bytes(range(32)), "a simulated world")
_FRAUD: Final = "fraud"
_THRESHOLDS: Final = CohortThresholds("all", 0.4, 0.6)
_SAMPLE: Final = 600
_MODEL_SEED: Final = 7


def world_specification() -> FeatureSpecification:
    """Exact states and a grid, a delay, facts, conditions, and features of the last event."""
    return FeatureSpecification(
        name="world",
        currency="EUR",
        entities=(
            Entity("card"),
            Entity("merchant"),
            Entity("shop", of=("merchant",), mode="grid", resolution=0.1),
        ),
        windows=(
            WindowGroup(
                "card",
                ("5s", "1m", "10m"),
                (
                    Aggregate("count"),
                    Aggregate("sum"),
                    Aggregate("mean"),
                    Aggregate("max"),
                    Aggregate("last"),
                    Aggregate("distinct", of="merchant"),
                ),
            ),
            WindowGroup(
                "merchant",
                ("10s", "5m"),
                (
                    Aggregate("count"),
                    Aggregate("std"),
                    Aggregate("count", where=Condition(kind="refund"), name="refunds"),
                    Aggregate("share", of=_FRAUD, empty=0.0),
                ),
            ),
            WindowGroup(
                "shop",
                ("1m", "10m"),
                (Aggregate("count"), Aggregate("mean"), Aggregate("share", of=_FRAUD, empty=0.0)),
            ),
            WindowGroup(
                "shop",
                ("1m",),
                (Aggregate("count", name="count_before"),),
                delay="10s",
                current=False,
            ),
        ),
        features=(
            Feature("amount", "amount"),
            Feature("since_last", "since_last", entity="card"),
            Feature("first_at_merchant", "first_pair", entity="card", of="merchant"),
            Feature("amount_to_mean", "ratio", to="card_amount_mean_1m"),
        ),
        facts=(_FRAUD,),
    )


def world_settings(*, grid_records: int = 512) -> Settings:
    """Settings under which every path is taken in minutes of virtual time.

    grid_records: beyond which a grid is folded early; 512 is never reached.
    """
    return Settings.model_validate(
        {
            "store": {"backend": "redis", "horizon_s": 60, "skew_s": 2},
            "cache": {"max_bytes": 1 << 20, "probe_share": 0.01, "valid_until_cap_s": 600},
            # Time moves little between two scores, and what rests must be whole at once.
            "breaker": {"open_ms": 1, "max_open_ms": 1},
            "redis": {
                "namespace": NAMESPACE,
                "timeout_ms": 200,
                "compact_records": 8,
                "grid_records": grid_records,
                "idle_margin_days": 1,
                "stream_max_bytes": 1 << 16,
                "label_index_days": 4,
            },
            "kafka": {"clock_error_ms": 1_000, "max_poll_records": 200, "commit_every_s": 0.5},
        }
    )


def world_program() -> tuple[Program, Keys]:
    """The program of the specification, and the keys of the worlds' secret."""
    program = compiled(world_specification())
    return program, Keys(program, SECRET)


def tree_model(program: Program, keys: Keys, chance: Chance) -> ServableModel:
    """A small forest on features of the worlds' own traffic, walked in the kernel."""
    matrix = _sample(program, keys, chance)
    ranks = np.nan_to_num(matrix, nan=-1.0).argsort(0).argsort(0) / len(matrix)
    rng = np.random.default_rng(_MODEL_SEED)
    wanted = ranks @ rng.normal(size=ranks.shape[1]) + rng.normal(0, 0.3, len(ranks))
    text = lightgbm_door.train(
        matrix,
        wanted > np.median(wanted),
        feature_names=program.specification.feature_names,
        parameters={
            "objective": "binary",
            "num_leaves": 15,
            "min_child_samples": 5,
            "seed": _MODEL_SEED,
            "num_threads": 1,
        },
        num_trees=20,
    )
    return import_booster(
        text,
        program.specification,
        cohorts=[_THRESHOLDS],
        made_at_ms=BEGIN_MS,
        golden_rows=8,
    )


def digest_model() -> CallableModel:
    """A model whose score differs wherever one bit of one feature does."""
    return CallableModel(_digests, "digest", [_THRESHOLDS])


def _digests(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    canonical = np.where(np.isnan(matrix), np.nan, matrix)
    return np.array([zlib.crc32(row.tobytes()) / 2**32 for row in canonical])


def _sample(program: Program, keys: Keys, chance: Chance) -> NDArray[np.float64]:
    limits = StoreLimits(1_000, 10_000, 4_096, 60_000, 1 << 24)
    store = MemoryStore(program, keys, limits)
    packer = Packer(program, keys)
    traffic = Traffic(chance)
    now_ms, found = BEGIN_MS, []
    for _ in range(_SAMPLE):
        now_ms += traffic.chance.choice((10, 200, 900, 4_000))
        payment = traffic.payment(now_ms)
        row = packer.row(payment)
        found.append(store.features(row, max(now_ms, payment.time)))
        store.observe(row)
        if traffic.chance.random() < 0.2:
            store.label(row, 0, True, now_ms, now_ms, False)
    return np.array(found)
