"""The protocol on payments: what is learned from, what is tested, and what neither may see."""

from __future__ import annotations

import lightgbm
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from freshscore.config.errors import BadFile, BadModel, BadSpecification, ModelMismatch
from freshscore.features.history import Acceptance, history_features
from freshscore.features.program import compiled
from freshscore.features.reading import read_payments
from freshscore.features.specification import FeatureSpecification
from freshscore.features.table import PaymentTable
from freshscore.scoring.training_sets import training_keys
from freshscore.simulations import protocol
from freshscore.simulations.evaluation import (
    PROTOCOL_MODEL,
    days_of,
    evaluated,
    generated_payments,
)
from freshscore.simulations.generator import Parameters
from freshscore.simulations.protocol import DAY_MS, Split
from tests.scoring.small_models import small_model

START_MS = Parameters().start_ms
SPLIT = Split(train_start_ms=START_MS + 30 * DAY_MS)
ACCEPTANCE = Acceptance(DAY_MS, 60_000)
HANDBOOK = FeatureSpecification.shipped("handbook")
PARAMETERS = Parameters(customers=100, terminals=200, days=days_of(SPLIT, START_MS) + 5)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    payments: pd.DataFrame = generated_payments(PARAMETERS, 4).to_pandas()
    return payments


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
    tested = protocol.tested_rows(table.time_ms, card, fraud, SPLIT)
    scores = np.asarray(model.predict_proba(features[tested]))[:, 1]
    assert (found.trained, found.trained_frauds) == (learned.sum(), fraud[learned].sum())
    assert found.performance.payments == tested.sum() > 200
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


def test_labels_of_the_test_judge_and_do_not_teach(frame: pd.DataFrame) -> None:
    """On the first test day: its own labels turned over turn the figure over, and no score."""
    first_day = Split(train_start_ms=SPLIT.train_start_ms, test_days=1)
    turned = frame.copy()
    inside = (at_ms(frame) >= SPLIT.test_start_ms) & (at_ms(frame) < first_day.test_end_ms)
    turned.loc[inside, "TX_FRAUD"] = 1 - turned.TX_FRAUD[inside]
    one, other = (
        evaluated(table_of(f), first_day, ACCEPTANCE).performance for f in (frame, turned)
    )
    assert one.auc_roc is not None
    assert other.auc_roc == pytest.approx(1 - one.auc_roc)


def test_labels_of_the_delay_are_not_known_yet(frame: pd.DataFrame) -> None:
    """On the first test day nothing is known of the six days before it."""
    first_day = Split(train_start_ms=SPLIT.train_start_ms, test_days=1)
    turned = frame.copy()
    inside = (at_ms(frame) >= SPLIT.test_start_ms - 6 * DAY_MS) & (
        at_ms(frame) < SPLIT.test_start_ms
    )
    turned.loc[inside, "TX_FRAUD"] = 1 - turned.TX_FRAUD[inside]
    assert evaluated(table_of(turned), first_day, ACCEPTANCE) == evaluated(
        table_of(frame), first_day, ACCEPTANCE
    )


def test_a_model_that_is_there_is_evaluated_untrained(frame: pd.DataFrame) -> None:
    found = evaluated(table_of(frame), SPLIT, ACCEPTANCE, model=small_model())
    assert (found.trained, found.trained_frauds) == (0, 0)
    assert (
        found.performance.payments
        == evaluated(table_of(frame), SPLIT, ACCEPTANCE).performance.payments
    )


def test_the_settings_are_those_of_the_published_figures() -> None:
    """handbook.md: learning rate 0.05, 100 trees, at least 50 rows a leaf, L2 1."""
    published = {"num_trees": 100, "learning_rate": 0.05, "min_child_samples": 50, "lambda_l2": 1.0}
    assert {name: getattr(PROTOCOL_MODEL, name) for name in published} == published


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
