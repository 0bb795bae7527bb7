"""The Handbook's protocol from payments to metrics: features, training, scores of the test.

Rule: whatever is trained here sees the training days only, features are those of history in mode
`known`, and all seven days are learned from: nothing is held back for thresholds, which ranking
metrics do not need.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
import pyarrow as pa

from freshscore.config.errors import BadFile, BadSpecification
from freshscore.config.settings import ModelSettings
from freshscore.features.history import Acceptance, history_features
from freshscore.features.program import compiled
from freshscore.features.specification import FeatureSpecification
from freshscore.features.table import Bools, PaymentTable
from freshscore.scoring.lightgbm_door import LoadedBooster
from freshscore.scoring.model import Model
from freshscore.scoring.training import train_booster
from freshscore.scoring.training_sets import category_codes, training_keys
from freshscore.simulations.generator import Parameters, generate_tables
from freshscore.simulations.protocol import (
    DAY_MS,
    Performance,
    Split,
    performance,
    tested_rows,
    training_rows,
)

# The model of handbook.md's LightGBM figures; what it does not name is LightGBM's own default.
PROTOCOL_MODEL: Final = ModelSettings(
    num_trees=100, learning_rate=0.05, num_leaves=31, min_child_samples=50, lambda_l2=1.0
)
CARD: Final = "card"


@dataclass(frozen=True)
class Evaluation:
    """One run of the protocol.

    trained, trained_frauds: payments learned from; 0 for a model that was there before.
    best: the metrics that perfect scores would have; card precision is bounded by the frauds there
    are.
    """

    trained: int
    trained_frauds: int
    performance: Performance
    best: Performance


def evaluated(
    table: PaymentTable,
    split: Split,
    acceptance: Acceptance,
    *,
    label: str = "fraud",
    model: Model | None = None,
    settings: ModelSettings = PROTOCOL_MODEL,
    num_threads: int = 1,
) -> Evaluation:
    """The protocol on `table`: of `model`, or of a booster trained with `settings`.

    Raises BadFile where training or test days have no payments, BadModel where training has not
    both classes, BadSpecification without a card or the label, ModelMismatch.
    """
    spec = table.specification
    _check(spec, label)
    fraud = table.ever(label)
    card = table.entities[CARD].codes.astype(np.int64)
    learned = training_rows(table.time_ms, split)
    tested = tested_rows(table.time_ms, card, fraud, split)
    _refuse_empty(table, split, learned, tested)
    program = compiled(spec)
    codes = category_codes(table, np.flatnonzero(learned)) if model is None else model.codes
    features = history_features(
        table, program, training_keys(program), acceptance=acceptance, categories=codes
    )
    scores = np.zeros(len(table))
    if model is None:
        booster = train_booster(
            features[learned], fraud[learned], spec, settings, num_threads=num_threads
        )
        scores[tested] = LoadedBooster(booster, num_threads).scores(features[tested])
    else:
        model.check_fits(spec)
        scores[tested] = model.predict(features[tested])
        learned = np.zeros(len(table), np.bool_)
    return Evaluation(
        trained=int(np.count_nonzero(learned)),
        trained_frauds=int(np.count_nonzero(fraud & learned)),
        performance=performance(table.time_ms, card, fraud, scores, split),
        best=performance(table.time_ms, card, fraud, fraud.astype(np.float64), split),
    )


def generated_payments(parameters: Parameters, seed: int) -> pa.Table:
    """Payments like the Handbook's, with the Handbook's columns."""
    rng = np.random.default_rng(seed)
    return pa.concat_tables(generate_tables(parameters, rng, columns="handbook"))


def days_of(split: Split, start_ms: int) -> int:
    """Days from `start_ms` to the end of the test; raises BadFile if the training begins before."""
    if start_ms > split.train_start_ms:
        raise BadFile(
            f"payments begin on {day_of(start_ms)}, after the training does,"
            f" {day_of(split.train_start_ms)}"
        )
    return (split.test_end_ms - start_ms) // DAY_MS


def day_of(time_ms: int) -> str:
    """The UTC day of an instant, as 2018-07-25."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).date().isoformat()


def _check(spec: FeatureSpecification, label: str) -> None:
    if CARD not in {part for entity in spec.entities for part in entity.parts}:
        raise BadSpecification(f"the protocol follows cards; {spec.name!r} has no entity {CARD!r}")
    if label not in spec.facts:
        raise BadSpecification(f"specification {spec.name!r} has no fact {label!r}")


def _refuse_empty(table: PaymentTable, split: Split, learned: Bools, tested: Bools) -> None:
    for what, rows, first_ms, days in (
        ("train on", learned, split.train_start_ms, split.train_days),
        ("test with", tested, split.test_start_ms, split.test_days),
    ):
        if not rows.any():
            span = "none at all"
            if len(table):
                span = f"some from {day_of(table.time_ms.min())} to {day_of(table.time_ms.max())}"
            raise BadFile(
                f"no payments to {what} in the {days} days from {day_of(first_ms)} on;"
                f" there are {span}"
            )


__all__ = [
    "PROTOCOL_MODEL",
    "Evaluation",
    "day_of",
    "days_of",
    "evaluated",
    "generated_payments",
]
