"""Models for the laws: small boosters on features of the traffic itself, so that boxes are wide and
their borders near; and callables.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from freshscore.features.packing import Packer
from freshscore.scoring import lightgbm_door
from freshscore.scoring.callable_model import CallableModel
from freshscore.scoring.model import Model
from freshscore.scoring.model_file import CohortThresholds
from freshscore.scoring.model_making import import_booster
from freshscore.scoring.serving import ServableModel
from tests.laws.law_specifications import CODES, Scaled
from tests.laws.traffic import Traffic
from tests.laws.worlds import MONDAY_MS, Limits, new_store

KINDS = ("walked", "called", "callable")
THRESHOLDS = CohortThresholds("all", 0.4, 0.6)
WEB = CohortThresholds("web", 0.5, 0.5, "channel", "web")


def law_model(kind: str, scaled: Scaled, seed: int) -> ServableModel:
    """A model of one of KINDS: a booster walked in the kernel, one that is called, a callable."""
    if kind == "callable":
        return callable_model(scaled)
    return booster_model(scaled, seed, linear=kind == "called")


def callable_model(scaled: Scaled, version: str = "digest") -> CallableModel:
    """A callable whose score differs wherever one bit of one feature does."""
    return CallableModel(digest_of_features, version, cohorts_of(scaled), codes_of(scaled))


def booster_model(scaled: Scaled, seed: int, *, linear: bool = False, n_trees: int = 8) -> Model:
    """A booster of a few small trees; with linear leaves it cannot be walked."""
    specification = scaled.specification
    matrix = sample_of_features(scaled, seed)
    rng = np.random.default_rng(seed)
    known = np.nan_to_num(matrix, nan=-1.0)
    ranks = known.argsort(0).argsort(0) / len(known)
    labels = ranks @ rng.normal(size=ranks.shape[1]) + rng.normal(0, 0.3, len(ranks))
    text = lightgbm_door.train(
        matrix,
        labels > np.median(labels),
        feature_names=specification.feature_names,
        categorical=_categorical(scaled),
        parameters={
            "objective": "binary",
            "num_leaves": 6,
            "min_child_samples": 5,
            "cat_smooth": 1.0,
            "min_data_per_group": 5,
            "seed": seed % 2**31,
            "num_threads": 1,
            "linear_tree": linear,
        },
        num_trees=n_trees,
    )
    return import_booster(
        text,
        specification,
        cohorts=cohorts_of(scaled),
        made_at_ms=MONDAY_MS + seed % 10**9,
        codes=codes_of(scaled),
        golden_rows=8,
    )


def sample_of_features(scaled: Scaled, seed: int, n: int = 500) -> NDArray[np.float64]:
    """Features of traffic like the campaign's, float64 (n, columns)."""
    store = new_store(scaled.specification, Limits(horizon_ms=scaled.horizon_ms))
    packer = Packer(store.program, store.keys, codes_of(scaled))
    traffic = Traffic(scaled, random.Random(seed))
    found = []
    for _ in range(n):
        payment = traffic.new().first
        row = packer.row(payment)
        traffic.newest_ms = max(traffic.newest_ms, payment.time)
        found.append(store.features(row, traffic.newest_ms))
        store.observe(row)
        if traffic.chance.random() < 0.2:
            fact = traffic.chance.randrange(len(scaled.specification.facts))
            store.label(row, fact, True, payment.time, payment.time, False)
    return np.array(found)


def cohorts_of(scaled: Scaled) -> list[CohortThresholds]:
    """Thresholds of their own for a channel, where the specification reads it."""
    spec = scaled.specification
    reads_channel = "channel" in (*spec.categories, *(one.field for one in spec.conditions))
    return [WEB, THRESHOLDS] if reads_channel else [THRESHOLDS]


def expected_decision(model: ServableModel, fields: Mapping[str, object], score: float) -> str:
    """The decision by the first cohort that the fields meet."""
    meets = [fields.get(cohort.field) == cohort.value for cohort in model.cohorts]
    review, decline = model.cohort_thresholds[[*meets, True].index(True)]
    return "decline" if score >= decline else "review" if score >= review else "approve"


def codes_of(scaled: Scaled) -> dict[str, dict[str, int]]:
    """Category codes of what the specification reads."""
    return {field: CODES[field] for field in scaled.specification.categories}


def digest_of_features(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """A score of each row that differs wherever one bit of one feature does."""
    canonical = np.where(np.isnan(matrix), np.nan, matrix)
    return np.array([zlib.crc32(row.tobytes()) / 2**32 for row in canonical])


def _categorical(scaled: Scaled) -> list[int]:
    return [
        place
        for place, column in enumerate(scaled.specification.columns)
        if column.feature is not None and column.feature.function == "category"
    ]
