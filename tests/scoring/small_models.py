"""Models that take milliseconds to make, all different."""

from __future__ import annotations

import functools

import numpy as np

from freshscore.features.specification import FeatureSpecification
from freshscore.scoring import lightgbm_door
from freshscore.scoring.model import Model
from freshscore.scoring.model_file import CohortThresholds
from freshscore.scoring.model_making import import_booster

MADE_AT_MS = 1_546_300_800_000


@functools.cache
def small_model(
    number: int = 0, specification: str = "handbook", cohorts: tuple[CohortThresholds, ...] = ()
) -> Model:
    """The model of this number for a shipped specification without categories.

    cohorts: those with a condition; all others follow them.
    """
    spec = FeatureSpecification.shipped(specification)
    rng = np.random.default_rng(number)
    matrix = rng.random((200, len(spec.feature_names)))
    text = lightgbm_door.train(
        matrix,
        matrix[:, 0] + 0.3 * rng.random(200) > 0.6,
        feature_names=spec.feature_names,
        parameters={"objective": "binary", "num_leaves": 7, "seed": number, "num_threads": 1},
        num_trees=5,
    )
    thresholds = [*cohorts, CohortThresholds("all", 0.5, 0.9)]
    return import_booster(
        text, spec, cohorts=thresholds, made_at_ms=MADE_AT_MS + 1000 * number, golden_rows=16
    )
