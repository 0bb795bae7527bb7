"""Training sets: what a row may know, and that the same file gives the same model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from freshscore.config.errors import BadFile, BadModel, BadSpecification
from freshscore.config.settings import Settings
from freshscore.features.history import Acceptance
from freshscore.features.packing import Cohort
from freshscore.features.reading import read_payments
from freshscore.features.specification import FeatureSpecification
from freshscore.features.table import PaymentTable
from freshscore.scoring.training_sets import (
    TrainingScope,
    TrainingSet,
    labels_of,
    trained,
    training_set,
)
from freshscore.simulations.generator import Parameters, generate

DAY_MS = 86_400_000
START_MS = Parameters().start_ms
CUT_MS = START_MS + 40 * DAY_MS
ACCEPTANCE = Acceptance(DAY_MS, 60_000)
HANDBOOK = FeatureSpecification.shipped("handbook")
SETTINGS = Settings().model_copy(
    update={"model": Settings().model.model_copy(update={"num_trees": 10, "num_leaves": 15})}
)
# One category, one condition on another field, and a fact that a file says the instant of.
SHOPS = FeatureSpecification.from_toml(
    """
    name = "shops"
    currency = "EUR"
    facts = ["fraud"]
    label_delay = { fraud = "2d" }
    features = [
        { name = "amount", function = "amount" },
        { name = "shop", function = "category", of = "shop" },
    ]
    [[entities]]
    name = "card"
    [[windows]]
    entity = "card"
    lengths = ["1d"]
    aggregates = [
        { function = "count" },
        { function = "count", where = { field = "channel", value = "web" } },
        { function = "share", of = "fraud" },
    ]
    """
)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """60 days of 80 customers, with the Handbook's columns."""
    parameters = Parameters(customers=80, terminals=160, days=60)
    return generate(parameters, np.random.default_rng(3), "handbook")


def table_of(frame: pd.DataFrame) -> PaymentTable:
    return read_payments(frame, HANDBOOK)


def shops(*rows: dict[str, Any]) -> PaymentTable:
    """Payments of one card, an hour apart, of shop `a`, unless a row says otherwise."""
    filled = [
        {
            "transaction_id": f"t{number}",
            "time": START_MS + number * 3_600_000,
            "amount_minor": 100 + number,
            "currency": "EUR",
            "card": "c",
            "shop": "a",
            "channel": "web",
            "fraud": False,
            **row,
        }
        for number, row in enumerate(rows)
    ]
    return read_payments(pd.DataFrame(filled), SHOPS)


def assert_equal(one: TrainingSet, other: TrainingSet) -> None:
    np.testing.assert_array_equal(one.matrix.view(np.uint64), other.matrix.view(np.uint64))
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.time_ms, other.time_ms)
    np.testing.assert_array_equal(one.cohort, other.cohort)
    assert one.codes == other.codes


def changed_from(frame: pd.DataFrame, time_ms: int) -> pd.DataFrame:
    """The same payments up to `time_ms`; from then on fewer, of other amounts, all fraud."""
    at_ms = frame.TX_DATETIME.astype("datetime64[ms]").astype(np.int64)
    changed = frame.copy()
    later = at_ms >= time_ms
    changed.loc[later, "TX_AMOUNT"] = 1.0
    changed.loc[later, "TX_FRAUD"] = 1
    return changed[~later | (changed.index % 3 > 0)].reset_index(drop=True)


def test_what_happens_after_the_cut_changes_nothing_before_it(frame: pd.DataFrame) -> None:
    """No leakage: neither events nor labels of the future are seen, with and without a limit."""
    scope = TrainingScope(before_ms=CUT_MS, known_by_ms=CUT_MS)
    whole, changed = table_of(frame), table_of(changed_from(frame, CUT_MS))
    expected = training_set(whole, scope, ACCEPTANCE)
    assert_equal(expected, training_set(changed, scope, ACCEPTANCE))
    unlimited = training_set(changed, TrainingScope(), ACCEPTANCE)
    n = len(expected)
    assert 0 < n < len(unlimited)
    np.testing.assert_array_equal(expected.matrix, unlimited.matrix[:n])


def test_canary_a_change_before_the_cut_is_seen(frame: pd.DataFrame) -> None:
    scope = TrainingScope(before_ms=CUT_MS, known_by_ms=CUT_MS)
    changed = table_of(changed_from(frame, CUT_MS - 12 * DAY_MS))
    one, other = (training_set(t, scope, ACCEPTANCE) for t in (table_of(frame), changed))
    assert len(one) != len(other)


def test_a_label_reaches_features_only_once_it_was_known(frame: pd.DataFrame) -> None:
    """All frauds of a week turned to legitimate: nothing changes before the first was known."""
    first_ms, delay_ms = CUT_MS - 20 * DAY_MS, 7 * DAY_MS
    at_ms = frame.TX_DATETIME.astype("datetime64[ms]").astype(np.int64)
    cleared = frame.copy()
    cleared.loc[(at_ms >= first_ms) & (at_ms < first_ms + delay_ms), "TX_FRAUD"] = 0
    one, other = (training_set(table_of(f), TrainingScope(), ACCEPTANCE) for f in (frame, cleared))
    differs = (one.matrix != other.matrix).any(axis=1)
    assert differs.any()
    assert one.time_ms[differs].min() >= first_ms + delay_ms


def test_matured_labels_are_those_of_one_instant() -> None:
    """A fraud known in time counts, one known later does not, and a young payment is left out."""
    known = START_MS + 3 * DAY_MS
    table = shops(
        {"fraud": True, "fraud_known_at": known},
        {"fraud": True, "fraud_known_at": known + 1},
        {},
        {"time": known - 2 * DAY_MS, "fraud": True, "fraud_known_at": known - DAY_MS},
        {"time": known - 2 * DAY_MS + 1, "fraud": True, "fraud_known_at": known - DAY_MS},
    )
    matured = training_set(table, TrainingScope(known_by_ms=known), ACCEPTANCE)
    assert matured.labels.tolist() == [True, False, False, True]
    assert training_set(table, TrainingScope(), ACCEPTANCE).labels.tolist() == [
        True, True, False, True, True,
    ]  # fmt: skip


def test_scope_limits_rows_and_not_their_history() -> None:
    table = shops(*[{}] * 6)
    rows = training_set(
        table,
        TrainingScope(first_ms=START_MS + 2 * 3_600_000, before_ms=START_MS + 4 * 3_600_000),
        ACCEPTANCE,
    )
    assert rows.time_ms.tolist() == [START_MS + h * 3_600_000 for h in (2, 3)]
    assert rows.matrix[:, 2].tolist() == [3.0, 4.0]


def test_a_payment_in_several_rows_is_trained_on_once_and_is_what_any_row_says() -> None:
    table = shops({}, {"transaction_id": "t0", "time": START_MS, "amount_minor": 100,
                       "fraud": True, "fraud_known_at": START_MS + DAY_MS}, {})  # fmt: skip
    rows = training_set(table, TrainingScope(), ACCEPTANCE)
    assert rows.labels.tolist() == [True, False]
    assert labels_of(table, TrainingScope()).tolist() == [True, True, False]


def test_rows_are_in_time_order_whatever_the_order_of_arrival() -> None:
    late = {"time": START_MS - DAY_MS, "arrival": START_MS + 9 * 3_600_000}
    table = shops({"arrival": START_MS}, {"arrival": START_MS + 3_600_000}, late)
    rows = training_set(table, TrainingScope(), ACCEPTANCE)
    assert rows.time_ms.tolist() == [START_MS - DAY_MS, START_MS, START_MS + 3_600_000]


def test_codes_are_those_of_the_rows_in_scope() -> None:
    table = shops({"shop": "z"}, {"shop": "b"}, {"shop": None}, {"shop": "a"}, {"shop": "later"})
    rows = training_set(table, TrainingScope(before_ms=START_MS + 4 * 3_600_000), ACCEPTANCE)
    assert rows.codes == {"shop": {"a": 0, "b": 1, "z": 2}}
    np.testing.assert_array_equal(rows.matrix[:, 1], [2.0, 1.0, np.nan, 0.0])


def test_cohorts_are_numbered_by_the_first_that_holds() -> None:
    table = shops({}, {"channel": "app"}, {"channel": "post"}, {"channel": None, "shop": "b"})
    cohorts = [Cohort("online", "channel", "web"), Cohort("b", "shop", "b")]
    assert training_set(table, TrainingScope(), ACCEPTANCE, cohorts).cohort.tolist() == [0, 2, 2, 1]


@pytest.mark.parametrize(
    ("scope", "cohorts", "error", "said"),
    [
        (TrainingScope(label="late"), [], BadSpecification, "no fact 'late' to train on"),
        (TrainingScope(first_ms=CUT_MS), [], BadFile, "none of them to train on: from"),
        (TrainingScope(before_ms=START_MS), [], BadFile, "before 2018-04-01 00:00 UTC"),
        (TrainingScope(known_by_ms=START_MS), [], BadFile, "labels known by"),
        (TrainingScope(), [Cohort("x", "country", "BE")], BadSpecification, "field 'country'"),
    ],
)
def test_what_cannot_be_trained_on_is_said(
    scope: TrainingScope, cohorts: list[Cohort], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        training_set(shops({}, {}), scope, ACCEPTANCE, cohorts)


def test_a_file_without_a_fraud_is_refused(frame: pd.DataFrame) -> None:
    honest = frame.assign(TX_FRAUD=0).head(500)
    with pytest.raises(BadModel, match="both classes are needed"):
        trained(table_of(honest), TrainingScope(), SETTINGS, made_at_ms=0)


def test_the_same_file_gives_the_same_model(frame: pd.DataFrame) -> None:
    scope = TrainingScope(first_ms=START_MS + 30 * DAY_MS)
    told: list[int] = []
    first, second = (
        trained(table_of(frame), scope, SETTINGS, made_at_ms=1_000, after_trees=told.append)
        for _ in range(2)
    )
    assert first.file == second.file
    assert first.version == second.version
    assert sum(told) == 2 * SETTINGS.model.num_trees
    other = trained(table_of(frame[:-1]), scope, SETTINGS, made_at_ms=1_000)
    assert other.version != first.version


def test_a_trained_model_knows_what_it_was_made_from(frame: pd.DataFrame) -> None:
    table = table_of(frame)
    scope = TrainingScope(first_ms=START_MS + 30 * DAY_MS)
    model = trained(table, scope, SETTINGS, made_at_ms=1_000)
    rows = training_set(table, scope, ACCEPTANCE)
    facts = model.facts
    assert facts.rows is not None
    assert facts.validation_rows == len(rows) - facts.rows
    assert facts.frauds == rows.labels[: facts.rows].sum()
    assert (facts.first_ms, facts.last_ms) == (rows.time_ms[0], rows.time_ms[-1])
    assert facts.metrics["auc_roc"] > 0.7
    model.check_fits(HANDBOOK)
