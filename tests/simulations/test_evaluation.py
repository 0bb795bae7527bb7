"""The protocol on payments: what is learned from, what is tested, and what neither may see."""

from __future__ import annotations

import lightgbm
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from freshscore.config.errors import BadFile, BadModel, BadSpecification, ModelMismatch
from freshscore.config.settings import ModelSettings
from freshscore.features.history import Acceptance, history_features
from freshscore.features.program import compiled
from freshscore.features.reading import read_payments
from freshscore.features.specification import FeatureSpecification
from freshscore.features.table import PaymentTable
from freshscore.scoring.training_sets import training_keys
from freshscore.simulations.evaluation import (
    PROTOCOL_MODEL,
    days_of,
    evaluated,
    generated_payments,
)
from freshscore.simulations.generator import Parameters
from freshscore.simulations.protocol import DAY_MS, Split, tested_rows
from tests.scoring.small_models import small_model

START_MS = Parameters().start_ms
SPLIT = Split(train_start_ms=START_MS + 30 * DAY_MS)
ACCEPTANCE = Acceptance(DAY_MS, 60_000)
HANDBOOK = FeatureSpecification.shipped("handbook")
PARAMETERS = Parameters(customers=100, terminals=200, days=days_of(SPLIT, START_MS) + 5)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return generated_payments(PARAMETERS, 4).to_pandas()


def table_of(frame: pd.DataFrame) -> PaymentTable:
    return read_payments(frame, HANDBOOK)


def at_ms(frame: pd.DataFrame) -> np.ndarray:
    found: np.ndarray = frame.TX_DATETIME.astype("datetime64[ms]").astype(np.int64).to_numpy()
    return found


def test_the_model_learns_from_the_training_days_and_is_tested_on_the_test(
    frame: pd.DataFrame,
) -> None:
    """The figures are those of LightGBM and scikit-learn on the same features."""
    table = table_of(frame)
    found = evaluated(table, SPLIT, ACCEPTANCE)
    program = compiled(HANDBOOK)
    features = history_features(table, program, training_keys(program))
    fraud, day = table.ever("fraud"), (table.time_ms - SPLIT.train_start_ms) // DAY_MS
    learned = (day >= 0) & (day < 7)
    model = lightgbm.LGBMClassifier(
        n_estimators=100, learning_rate=0.05, num_leaves=31, min_child_samples=50, reg_lambda=1.0,
        n_jobs=1, deterministic=True, force_row_wise=True, verbosity=-1,
    )  # fmt: skip
    model.fit(features[learned], fraud[learned])
    card = frame.CUSTOMER_ID.to_numpy()
    tested = tested_rows(table.time_ms, card, fraud, SPLIT)
    scores = np.asarray(model.predict_proba(features[tested]))[:, 1]
    assert (found.trained, found.trained_frauds) == (learned.sum(), fraud[learned].sum())
    assert found.performance.payments == tested.sum() > 500
    assert found.performance.auc_roc == pytest.approx(roc_auc_score(fraud[tested], scores))
    assert found.performance.average_precision == pytest.approx(
        average_precision_score(fraud[tested], scores)
    )
    assert found.best.auc_roc == found.best.average_precision == 1.0


def test_what_comes_after_the_test_changes_nothing(frame: pd.DataFrame) -> None:
    changed = frame.copy()
    later = at_ms(frame) >= SPLIT.test_end_ms
    changed.loc[later, ["TX_AMOUNT", "TX_FRAUD"]] = [1.0, 1]
    assert later.any()
    assert evaluated(table_of(changed), SPLIT, ACCEPTANCE) == evaluated(
        table_of(frame), SPLIT, ACCEPTANCE
    )


def test_the_model_does_not_see_labels_after_its_training(frame: pd.DataFrame) -> None:
    """Labels of the delay and of the test judge the scores; they do not make them.

    With the first test days alone, no such label is known in any feature yet.
    """
    split = Split(train_start_ms=SPLIT.train_start_ms, delay_days=0, test_days=7)
    table = table_of(frame)
    fraud = table.ever("fraud")
    flipped = frame.copy()
    inside = (at_ms(frame) >= split.test_start_ms) & (at_ms(frame) < split.test_end_ms)
    flipped.loc[inside, "TX_FRAUD"] = 1 - flipped.TX_FRAUD[inside]
    # The same cards are left out of both tests, for they have frauds in the training days only.
    clean = ~np.isin(frame.CUSTOMER_ID, frame.CUSTOMER_ID[fraud & (at_ms(frame) >= 0)])
    kept = clean | ~inside
    one, other = (
        evaluated(table_of(f[kept].reset_index(drop=True)), split, ACCEPTANCE).performance
        for f in (frame, flipped)
    )
    assert one.payments == other.payments > 0
    assert (one.frauds, other.frauds) == (0, other.payments)


def test_a_model_that_is_there_is_evaluated_untrained(frame: pd.DataFrame) -> None:
    found = evaluated(table_of(frame), SPLIT, ACCEPTANCE, model=small_model())
    assert (found.trained, found.trained_frauds) == (0, 0)
    assert (
        found.performance.payments
        == evaluated(table_of(frame), SPLIT, ACCEPTANCE).performance.payments
    )


def test_the_settings_are_those_of_the_published_figures() -> None:
    """handbook.md: learning rate 0.05, 100 trees, at least 50 rows a leaf, L2 1."""
    assert PROTOCOL_MODEL == ModelSettings(
        num_trees=100, learning_rate=0.05, num_leaves=31, min_child_samples=50, lambda_l2=1.0
    )


def test_what_cannot_be_evaluated_is_said(frame: pd.DataFrame) -> None:
    table = table_of(frame)
    with pytest.raises(BadFile, match="no payments to train on"):
        evaluated(table, Split(train_start_ms=START_MS + 900 * DAY_MS), ACCEPTANCE)
    with pytest.raises(BadFile, match="no payments to test with"):
        evaluated(table, Split(train_start_ms=START_MS + 50 * DAY_MS), ACCEPTANCE)
    with pytest.raises(BadModel, match="both classes are needed"):
        evaluated(table_of(frame.assign(TX_FRAUD=0)), SPLIT, ACCEPTANCE)
    with pytest.raises(BadSpecification, match="no fact 'late'"):
        evaluated(table, SPLIT, ACCEPTANCE, label="late")
    with pytest.raises(ModelMismatch, match="made for specification payments"):
        evaluated(table, SPLIT, ACCEPTANCE, model=small_model(specification="payments"))
    with pytest.raises(BadFile, match="after the training does"):
        days_of(SPLIT, SPLIT.train_start_ms + 1)


def test_a_specification_without_cards_has_no_protocol(frame: pd.DataFrame) -> None:
    spec = FeatureSpecification.from_toml(
        """
        name = "shops"
        currency = "EUR"
        facts = ["fraud"]
        features = [{ name = "amount", function = "amount" }]
        [[entities]]
        name = "merchant"
        """
    )
    with pytest.raises(BadSpecification, match="no entity 'card'"):
        evaluated(read_payments(frame, spec), SPLIT, ACCEPTANCE)
