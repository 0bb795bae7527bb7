"""The protocol's metrics equal scikit-learn's and a slow, obvious twin's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from freshscore.config.errors import SettingsError
from freshscore.simulations import protocol
from freshscore.simulations.protocol import DAY_MS, Split

SPLIT = Split(train_start_ms=10 * DAY_MS, train_days=3, delay_days=2, test_days=4)

# Few different scores, so that ties are common.
SCORES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0, -math.inf, math.inf])
LABELLED = st.lists(st.tuples(st.booleans(), SCORES), min_size=1, max_size=60)
# Days around the split, a handful of cards.
PAYMENTS = st.lists(
    st.tuples(st.integers(5 * DAY_MS, 22 * DAY_MS), st.integers(0, 6), st.booleans(), SCORES),
    max_size=120,
)


def arrays(rows: Sequence[tuple[bool, float]]) -> tuple[np.ndarray, np.ndarray]:
    fraud, score = zip(*rows, strict=True)
    return np.array(fraud, dtype=np.bool_), np.array(score, dtype=np.float64)


def finite(score: np.ndarray) -> np.ndarray:
    """Scores that scikit-learn takes, in the same order."""
    clipped: np.ndarray = np.nan_to_num(score, posinf=9.0, neginf=-9.0)
    return clipped


@given(LABELLED)
def test_auc_equals_scikit_learn_and_counting_pairs(rows: list[tuple[bool, float]]) -> None:
    fraud, score = arrays(rows)
    pairs = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high in score[fraud]
        for low in score[~fraud]
    ]
    got = protocol.auc_roc(fraud, score)
    if not pairs:
        assert got is None
        return
    assert got == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert got == pytest.approx(roc_auc_score(fraud, finite(score)), abs=1e-12)


@given(LABELLED)
def test_average_precision_equals_scikit_learn_and_a_loop(rows: list[tuple[bool, float]]) -> None:
    fraud, score = arrays(rows)
    got = protocol.average_precision(fraud, score)
    if not fraud.any():
        assert got is None
        return
    at_each_fraud = [fraud[score >= threshold].mean() for threshold in score[fraud]]
    assert got == pytest.approx(sum(at_each_fraud) / len(at_each_fraud), abs=1e-12)
    assert got == pytest.approx(average_precision_score(fraud, finite(score)), abs=1e-12)


def test_metrics_equal_scikit_learn_on_many_rows(rng: np.random.Generator) -> None:
    fraud = rng.random(50_000) < 0.01
    score = np.round(rng.normal(fraud * 1.5, 1.0), 2)
    assert protocol.auc_roc(fraud, score) == pytest.approx(roc_auc_score(fraud, score), abs=1e-12)
    wanted = average_precision_score(fraud, score)
    assert protocol.average_precision(fraud, score) == pytest.approx(wanted, abs=1e-12)


def slow_card_precision(
    rows: Sequence[tuple[int, int, bool, float]], top_cards: int
) -> float | None:
    found: set[int] = set()
    shares = []
    for day in sorted({row[0] // DAY_MS for row in rows}):
        highest: dict[int, float] = {}
        compromised = set()
        for time_ms, card, fraud, score in rows:
            if time_ms // DAY_MS == day and card not in found:
                highest[card] = max(score, highest.get(card, -math.inf))
                if fraud:
                    compromised.add(card)
        top = sorted(highest, key=lambda card: (-highest[card], card))[:top_cards]
        caught = compromised.intersection(top)
        found |= caught
        shares.append(len(caught) / top_cards)
    return sum(shares) / len(shares) if shares else None


Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def columns(rows: Sequence[tuple[int, int, bool, float]]) -> Columns:
    time_ms, card, fraud, score = zip(*rows, strict=True) if rows else ((), (), (), ())
    return (
        np.array(time_ms, dtype=np.int64),
        np.array(card, dtype=np.int64),
        np.array(fraud, dtype=np.bool_),
        np.array(score, dtype=np.float64),
    )


@given(PAYMENTS, st.integers(1, 8))
def test_card_precision_equals_the_slow_twin(
    rows: list[tuple[int, int, bool, float]], top_cards: int
) -> None:
    got = protocol.card_precision(*columns(rows), top_cards)
    assert got == pytest.approx(slow_card_precision(rows, top_cards), abs=1e-12)


def slow_tested_rows(rows: Sequence[tuple[int, int, bool, float]], split: Split) -> list[bool]:
    """Day by day, as the Handbook states it: who is known, then whose payments stay."""
    start = split.train_start_ms // DAY_MS
    after_training = start + split.train_days
    frauds = [(time_ms // DAY_MS, card) for time_ms, card, fraud, _ in rows if fraud]
    known = {card for day, card in frauds if start <= day < after_training}
    kept = [False] * len(rows)
    for number in range(split.test_days):
        # On test day `number`, the delay has passed for as many days after training.
        known |= {card for day, card in frauds if start <= day < after_training + number}
        test_day = after_training + split.delay_days + number
        for row, (time_ms, card, _, _) in enumerate(rows):
            if time_ms // DAY_MS == test_day and card not in known:
                kept[row] = True
    return kept


@given(
    PAYMENTS,
    st.builds(
        Split,
        train_start_ms=st.sampled_from([8 * DAY_MS, 10 * DAY_MS]),
        train_days=st.integers(1, 4),
        delay_days=st.integers(0, 4),
        test_days=st.integers(1, 6),
    ),
)
def test_known_cards_leave_the_test_day_by_day(
    rows: list[tuple[int, int, bool, float]], split: Split
) -> None:
    time_ms, card, fraud, _ = columns(rows)
    assert protocol.tested_rows(time_ms, card, fraud, split).tolist() == slow_tested_rows(
        rows, split
    )


def test_training_rows_are_whole_days() -> None:
    start = SPLIT.train_start_ms
    time_ms = np.array([start - 1, start, start + 3 * DAY_MS - 1, start + 3 * DAY_MS])
    assert protocol.training_rows(time_ms, SPLIT).tolist() == [False, True, True, False]


def test_a_fraud_is_known_once_its_whole_day_is_past_the_delay() -> None:
    """Fraud on the first day after training: the first test day keeps the card, the second not."""
    after_training = SPLIT.train_start_ms + 3 * DAY_MS
    time_ms = np.array([after_training, SPLIT.test_start_ms, SPLIT.test_start_ms + DAY_MS])
    card = np.zeros(3, dtype=np.int64)
    fraud = np.array([True, False, False])
    assert protocol.tested_rows(time_ms, card, fraud, SPLIT).tolist() == [False, True, False]


def test_performance_is_of_the_test_rows_alone(rng: np.random.Generator) -> None:
    size = 4_000
    time_ms = np.sort(rng.integers(8 * DAY_MS, 22 * DAY_MS, size))
    card = rng.integers(0, 800, size)
    fraud = rng.random(size) < 0.05
    score = rng.random(size) + fraud
    tested = protocol.tested_rows(time_ms, card, fraud, SPLIT)
    got = protocol.performance(time_ms, card, fraud, score, SPLIT, top_cards=10)
    assert 0 < got.payments == tested.sum() < size
    assert got.frauds == fraud[tested].sum() > 0
    assert got.auc_roc == protocol.auc_roc(fraud[tested], score[tested])
    assert got.average_precision == protocol.average_precision(fraud[tested], score[tested])
    assert got.card_precision == protocol.card_precision(
        time_ms[tested], card[tested], fraud[tested], score[tested], 10
    )
    assert SPLIT.test_end_ms == SPLIT.test_start_ms + 4 * DAY_MS


def test_nothing_to_measure_is_none() -> None:
    empty = columns([])
    assert protocol.card_precision(*empty) is None
    got = protocol.performance(*empty, SPLIT)
    assert (got.payments, got.frauds) == (0, 0)
    assert (got.auc_roc, got.average_precision, got.card_precision) == (None, None, None)


def test_a_score_that_is_no_number_is_refused() -> None:
    fraud, score = np.array([True, False]), np.array([0.5, math.nan])
    for metric in (protocol.auc_roc, protocol.average_precision):
        with pytest.raises(ValueError, match="1 scores are NaN"):
            metric(fraud, score)
    with pytest.raises(ValueError, match="1 scores are NaN"):
        protocol.card_precision(np.zeros(2, np.int64), np.zeros(2, np.int64), fraud, score)


def test_the_default_split_is_the_published_one() -> None:
    split = Split()
    assert np.datetime64(split.train_start_ms, "ms") == np.datetime64("2018-07-25")
    assert np.datetime64(split.test_start_ms, "ms") == np.datetime64("2018-08-08")
    assert np.datetime64(split.test_end_ms, "ms") == np.datetime64("2018-08-15")


@pytest.mark.parametrize(
    ("name", "value"),
    [("train_start_ms", 1), ("train_days", 0), ("delay_days", -1), ("test_days", 0)],
)
def test_impossible_splits_are_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(SettingsError, match=name):
        Split(**{name: value})
