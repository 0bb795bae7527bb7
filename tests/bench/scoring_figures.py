"""Figures of `score()` and `observe()`, one payment at a time, and of `score_many()`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from cachetools import TTLCache

from freshscore.features.transaction import Transaction
from freshscore.scoring.lightgbm_door import LoadedBooster
from freshscore.scoring.model import Model
from freshscore.scoring.scorer import Scorer
from tests.bench.figures import (
    Figure,
    Measured,
    at_most,
    each_ns,
    p50_us,
    p99_us,
    ratio_at_most,
    seconds,
    taking_turns,
)
from tests.bench.material import DAY_MS, Material

PAYMENT_FIELDS = ("transaction_id", "time", "amount_minor", "currency", "entities")
_BARE = "LightGBM single-row fast C call, bare"


def as_mapping(payment: Transaction) -> dict[str, Any]:
    """The payment as a user's dict."""
    return {name: getattr(payment, name) for name in PAYMENT_FIELDS}


def _copy(payment: Transaction) -> Transaction:
    return Transaction.of(as_mapping(payment))


def computed(material: Material) -> list[Figure]:
    """A first score, features included, beside the model's bare call on finished features."""
    with material.scorer(material.model) as scorer, material.scorer(material.model) as other:
        warmed(scorer, material)
        warmed(other, material)
        found = taking_turns(
            {
                "ours": Measured(scorer.score, material.scored),
                "bare": Measured(bare_call(material.booster), material.matrix),
                "dict": Measured(other.score, material.scored, as_mapping),
                "naive": Measured(_predicted(material), material.rows[:4_000]),
            }
        )
        assert scorer.stats()["answers"]["computed"] >= len(material.scored)
    medians = {name: p50_us(elapsed) for name, elapsed in found.items()}
    return [
        ratio_at_most(
            "computed, features included, p50",
            medians["ours"],
            "us",
            0.7,
            _BARE,
            medians["bare"],
        ),
        Figure("computed, p99", p99_us(found["ours"]), "us", _BARE, p99_us(found["bare"])),
        Figure("computed from a dict, p50", medians["dict"], "us", _BARE, medians["bare"]),
        Figure(
            "features from a dict, then Booster.predict, p50",
            medians["naive"],
            "us",
            _BARE,
            medians["bare"],
        ),
    ]


def memo(material: Material) -> list[Figure]:
    """The same payment again: as the same object, as another with the same content, as a dict."""
    payments = material.scored
    with material.scorer(material.model) as scorer:
        for payment in payments:
            scorer.score(payment)
        cache: TTLCache[str, float] = TTLCache(len(payments), 3_600)
        for payment in payments:
            cache[payment.transaction_id] = 0.5
        found = taking_turns(
            {
                "same": Measured(scorer.score, payments),
                "compared": Measured(scorer.score, payments, _copy),
                "dict": Measured(scorer.score, payments, as_mapping),
                "cache": Measured(lambda payment: cache[payment.transaction_id], payments),
            }
        )
        answers = scorer.stats()["answers"]
        assert answers["memo"] >= 3 * len(payments) * 0.999, answers
    beside: dict[str, Any] = {
        "reference": "cachetools.TTLCache by id, p50",
        "reference_value": p50_us(found["cache"]),
    }
    return [
        at_most("memo, same object, p50", p50_us(found["same"]), "us", 1.0, **beside),
        at_most("memo, contents compared, p50", p50_us(found["compared"]), "us", 1.5, **beside),
        at_most("memo, same object, p99", p99_us(found["same"]), "us", 3.0),
        at_most("memo, contents compared, p99", p99_us(found["compared"]), "us", 3.0),
        Figure("memo from a dict, p50", p50_us(found["dict"]), "us", **beside),
    ]


def moved_states(material: Material) -> list[Figure]:
    """Box or cell: a fact of another payment moved the merchant's state, the score still holds.

    The fact is of the last week, where the specification does not look for frauds yet.
    """
    payments = material.scored
    week_ago_ms = material.scored_from_ms - 5 * DAY_MS
    recent = {one.entities["merchant"]: one for one in material.history if one.time > week_ago_ms}
    with material.scorer(material.model) as scorer:
        for payment in payments:
            scorer.score(payment)
        for payment in recent.values():
            scorer.label(payment.transaction_id, fraud=True)
        sources = np.empty(len(payments), np.int64)
        elapsed = np.empty(len(payments), np.int64)
        for i, payment in enumerate(payments):
            started = time.perf_counter_ns()
            result = scorer.score(payment)
            elapsed[i] = time.perf_counter_ns() - started
            sources[i] = result.source in ("box", "cell")
    confirmed = elapsed[sources == 1]
    return [
        at_most("box or cell, p50", p50_us(confirmed), "us", 2.5),
        Figure("box or cell, share of re-scores", len(confirmed) / len(payments), ""),
    ]


def not_walked(material: Material) -> list[Figure]:
    """A booster that the walk does not cover (linear leaves): its own call and at most 4 us.

    The call in the midst of scoring finds less in the caches than one bare call after the other, so
    what it takes there is taken off, and both are shown.
    """
    payments = material.scored
    inside = np.empty(len(payments), np.int64)
    with material.scorer(material.linear_model) as scorer:
        warmed(scorer, material)
        serving = serving_of(scorer)
        timed = _TimedCalls(serving.model)
        serving.model = timed
        elapsed = np.empty(len(payments), np.int64)
        for i, payment in enumerate(payments):
            started = time.perf_counter_ns()
            scorer.score(payment)
            elapsed[i] = time.perf_counter_ns() - started
            inside[i] = timed.elapsed_ns
    bare = each_ns(bare_call(material.linear_booster), material.matrix)
    return [
        at_most(
            "not walked: beside the C call in it, p50",
            p50_us(elapsed - inside),
            "us",
            4.0,
            reference="the C call in it",
            reference_value=p50_us(inside),
        ),
        Figure("not walked: the C call in it, p50", p50_us(inside), "us", _BARE, p50_us(bare)),
    ]


class _TimedCalls:
    """A model whose single-row calls are timed."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.elapsed_ns = 0

    def predict_one(self, features: np.ndarray[Any, Any]) -> float:
        """The model's score."""
        started = time.perf_counter_ns()
        score = self._model.predict_one(features)
        self.elapsed_ns = time.perf_counter_ns() - started
        return score


def dear_model(material: Material) -> list[Figure]:
    """A callable of 5 ms; the same payments again."""

    def dear(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        until = time.perf_counter() + 0.005
        while time.perf_counter() < until:
            pass
        return matrix[:, 0] * 0.0 + 0.5

    few = material.scored[:300]
    with material.scorer(dear) as scorer:
        first = each_ns(scorer.score, few)
        again = np.concatenate([each_ns(scorer.score, few) for _ in range(5)])
    return [
        at_most(
            "callable of 5 ms, hit, p50",
            p50_us(again),
            "us",
            2.0,
            reference="its first score",
            reference_value=p50_us(first),
        ),
    ]


def observing(material: Material) -> list[Figure]:
    """Events one by one, from a dict, and in a batch."""
    payments = material.scored
    with _observer(material) as one, _observer(material) as other, _observer(material) as batch:
        rows = []
        for payment in payments:
            row = serving_of(batch).packer.row(payment)
            rows.append(np.frombuffer(row, np.uint64))
        for payment in payments:
            serving_of(one).packer.row(payment)
        found = taking_turns(
            {
                "one by one": Measured(one.observe, payments),
                "dict": Measured(other.observe, payments, as_mapping),
            }
        )
        whole = np.array(rows)
        batch_us = seconds(lambda: batch._store.observe_all(whole)) * 1e6 / len(whole)
    return [
        at_most("observe, one by one, p50", p50_us(found["one by one"]), "us", 1.5),
        at_most("observe, in a batch", batch_us, "us", 0.5),
        Figure("observe from a dict, p50", p50_us(found["dict"]), "us"),
    ]


def whole_batch(material: Material) -> list[Figure]:
    """score_many of 10,000 rows beside Booster.predict on the finished matrix."""
    payments = material.scored[:10_000]
    frame = pd.DataFrame(
        {
            "transaction_id": [payment.transaction_id for payment in payments],
            "time": [payment.time for payment in payments],
            "amount_minor": [payment.amount_minor for payment in payments],
            "currency": "EUR",
            "card": [payment.entities["card"] for payment in payments],
            "merchant": [payment.entities["merchant"] for payment in payments],
        }
    )
    matrix = material.matrix[: len(payments)]
    theirs, ours = [], []
    for _ in range(6):
        with material.scorer(material.model) as scorer:
            warmed(scorer, material)
            ours.append(seconds(lambda: scorer.score_many(frame)))
        theirs.append(seconds(lambda: material.booster.predict(matrix, num_threads=1)))
    us_a_row = 1e6 / len(payments)
    # The first of each compiles, imports and starts threads.
    return [
        ratio_at_most(
            "score_many, 10,000 rows of a frame",
            float(np.median(ours[1:])) * us_a_row,
            "us a row",
            1.0,
            "Booster.predict on the finished matrix, 1 thread",
            float(np.median(theirs[1:])) * us_a_row,
        )
    ]


def five_entities(material: Material) -> list[Figure]:
    """The `payments` specification: memo, computed and observe."""
    payments = material.scored
    with material.scorer(material.model) as scorer:
        warmed(scorer, material)
        first = each_ns(scorer.score, payments)
        again = each_ns(scorer.score, payments)
        bare = each_ns(bare_call(material.booster), material.matrix)
        observed = each_ns(scorer.observe, payments)
    return [
        Figure("payments, five entities: memo, p50", p50_us(again), "us"),
        Figure("payments, five entities: computed, p50", p50_us(first), "us", _BARE, p50_us(bare)),
        Figure("payments, five entities: observe, p50", p50_us(observed), "us"),
    ]


def warmed(scorer: Scorer, material: Material) -> None:
    """Score other payments first, so that the code is warm and the ones measured are not."""
    for payment in material.history[-2_000:]:
        scorer.score(payment)


def bare_call(booster: Any) -> Callable[[np.ndarray[Any, Any]], float]:
    """LightGBM's own single-row call on finished features."""
    row = LoadedBooster(booster.model_to_string()).fast_row()

    def scored(features: np.ndarray[Any, Any]) -> float:
        row.features[:] = features
        return row.score()

    return scored


def serving_of(scorer: Scorer) -> Any:
    """What an open scorer serves with."""
    serving = scorer._serving
    assert serving is not None  # it is open
    return serving


def _predicted(material: Material) -> Callable[[dict[str, float]], object]:
    """The same features from a dict, and `Booster.predict` on one row."""
    booster = material.booster
    return lambda row: booster.predict(np.array([list(row.values())]), num_threads=1)


def _observer(material: Material) -> Scorer:
    return material.scorer(lambda rows: rows[:, 0] * 0.0)
