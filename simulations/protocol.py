"""The evaluation protocol of the Fraud Detection Handbook, as pure functions on arrays.

A model is trained on `train_days`, the labels of the next `delay_days` are not known yet, and it is
tested on `test_days`.
Cards that are known to be compromised leave the test: a fraud is known from the day that begins
`delay_days` after the end of its own. So on the first test day the cards with a fraud in the
training days are left out, on the second those of the first day after training too, and so on.
Frauds from before the training days are not held against a card.

Days are UTC and whole. Scores are compared as they are; nothing here needs a threshold.
Source: Fraud Detection Handbook, chapters 3 (protocol) and 4 (metrics).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from freshscore.config.errors import SettingsError

DAY_MS = 86_400_000

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """One training period and its test; the defaults are those of the published results.

    train_start_ms: midnight UTC of the first training day, ms.
    """

    train_start_ms: int = 1_532_476_800_000  # 2018-07-25
    train_days: int = 7
    delay_days: int = 7
    test_days: int = 7

    def __post_init__(self) -> None:
        if self.train_start_ms % DAY_MS:
            raise SettingsError(f"train_start_ms is {self.train_start_ms}; it must be a midnight")
        for name, low in (("train_days", 1), ("delay_days", 0), ("test_days", 1)):
            if getattr(self, name) < low:
                raise SettingsError(f"{name} is {getattr(self, name)}; it must be {low} or more")

    @property
    def test_start_ms(self) -> int:
        """Midnight UTC of the first test day."""
        return self.train_start_ms + (self.train_days + self.delay_days) * DAY_MS

    @property
    def test_end_ms(self) -> int:
        """Midnight UTC after the last test day."""
        return self.test_start_ms + self.test_days * DAY_MS


@dataclass(frozen=True)
class Performance:
    """The metrics of one test; None where they are not defined (no fraud, or nothing else).

    card_precision: mean over days; None without test payments.
    """

    payments: int
    frauds: int
    auc_roc: float | None
    average_precision: float | None
    card_precision: float | None


def training_rows(time_ms: Int64s, split: Split) -> Bools:
    """(rows,): which payments are trained on."""
    day = _day(time_ms, split)
    return (day >= 0) & (day < split.train_days)


def tested_rows(time_ms: Int64s, card: Int64s, fraud: Bools, split: Split) -> Bools:
    """(rows,): which payments are tested on.

    card: (rows,) the card of each payment, as any number.
    """
    day = _day(time_ms, split)
    first_test_day = split.train_days + split.delay_days
    cards, code = np.unique(card, return_inverse=True)
    # The day of each card's first fraud from the training on, or a day that never comes.
    first_fraud = np.full(len(cards), np.iinfo(np.int64).max)
    held = fraud & (day >= 0)
    np.minimum.at(first_fraud, code[held], day[held])
    tested = (day >= first_test_day) & (day < first_test_day + split.test_days)
    return tested & (first_fraud[code] >= day - split.delay_days)


def performance(
    time_ms: Int64s,
    card: Int64s,
    fraud: Bools,
    score: Floats,
    split: Split,
    top_cards: int = 100,
) -> Performance:
    """The metrics of `score` (rows,) on the test payments among the rows; others are ignored."""
    tested = tested_rows(time_ms, card, fraud, split)
    time_ms, card, fraud, score = time_ms[tested], card[tested], fraud[tested], score[tested]
    return Performance(
        payments=len(score),
        frauds=int(np.count_nonzero(fraud)),
        auc_roc=auc_roc(fraud, score),
        average_precision=average_precision(fraud, score),
        card_precision=card_precision(time_ms, card, fraud, score, top_cards),
    )


def auc_roc(fraud: Bools, score: Floats) -> float | None:
    """The probability that a fraud scores above a legitimate payment, ties counting half.

    None without a fraud or without anything else.
    """
    frauds, others = _counts(fraud)
    if not frauds or not others:
        return None
    true, false = _cumulative(fraud, score)
    # The area under the steps (false, true), by trapezoids: a tie is one slanted step.
    doubled = np.sum(np.diff(false, prepend=0) * (true + np.concatenate([[0], true[:-1]])))
    return float(doubled / (2 * frauds * others))


def average_precision(fraud: Bools, score: Floats) -> float | None:
    """Mean precision at the score of each fraud, without interpolation; None without a fraud."""
    frauds, _ = _counts(fraud)
    if not frauds:
        return None
    true, false = _cumulative(fraud, score)
    return float(np.sum(np.diff(true, prepend=0) * (true / (true + false))) / frauds)


def card_precision(
    time_ms: Int64s, card: Int64s, fraud: Bools, score: Floats, top_cards: int = 100
) -> float | None:
    """Card precision at `top_cards`: mean over days of compromised cards found / top_cards.

    Each day the cards are ranked by their highest score of the day; a card is compromised that day
    if one of its payments of that day is fraud. A compromised card among the `top_cards` highest
    is found, and counts on no later day. Equal scores rank by card.
    The divisor is `top_cards` also on a day that has fewer cards. None without payments.
    """
    _refuse_nan(score)
    day = time_ms // DAY_MS
    days = np.unique(day)
    if not len(days):
        return None
    found: Int64s = np.empty(0, dtype=np.int64)
    shares = []
    for today in days:
        rows = np.flatnonzero((day == today) & ~np.isin(card, found))
        compromised = _compromised_on_top(card[rows], fraud[rows], score[rows], top_cards)
        shares.append(len(compromised) / top_cards)
        found = np.concatenate([found, compromised])
    return float(np.mean(shares))


def _compromised_on_top(card: Int64s, fraud: Bools, score: Floats, top_cards: int) -> Int64s:
    """The compromised ones among the cards with the highest scores of one day."""
    cards, code = np.unique(card, return_inverse=True)
    highest = np.full(len(cards), -np.inf)
    np.maximum.at(highest, code, score)
    compromised = np.bincount(code, weights=fraud, minlength=len(cards)) > 0
    top = np.argsort(-highest, kind="stable")[:top_cards]
    return cards[top[compromised[top]]]


def _day(time_ms: Int64s, split: Split) -> Int64s:
    """Days since the training began; negative before."""
    return (time_ms - split.train_start_ms) // DAY_MS


def _counts(fraud: Bools) -> tuple[int, int]:
    frauds = int(np.count_nonzero(fraud))
    return frauds, len(fraud) - frauds


def _cumulative(fraud: Bools, score: Floats) -> tuple[Int64s, Int64s]:
    """Frauds and others that score at least as high as each different score, highest first."""
    _refuse_nan(score)
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    # Compared, not subtracted: two infinities are a tie.
    last_of_tie = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    true = np.cumsum(fraud[order], dtype=np.int64)[last_of_tie]
    return true, last_of_tie + 1 - true


def _refuse_nan(score: Floats) -> None:
    if np.isnan(score).any():
        raise ValueError(f"{np.count_nonzero(np.isnan(score))} scores are NaN, which has no rank")
