"""Figures of `score()` and `observe()`, one payment at a time."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from cachetools import TTLCache

from freshscore.features.transaction import Transaction
from freshscore.scoring.lightgbm_door import LoadedBooster
from tests.bench.figures import Figure, at_most, each_ns, p50_us, p99_us, ratio_at_most
from tests.bench.material import BoosterModel, Material

PAYMENT_FIELDS = ("transaction_id", "time", "amount_minor", "currency", "entities")


def as_mapping(payment: Transaction) -> dict[str, Any]:
    """The payment as a user's dict."""
    return {name: getattr(payment, name) for name in PAYMENT_FIELDS}


def memo_and_computed(material: Material) -> list[Figure]:
    """Computed on first touch, memo on second, by identity and by content; the alternatives."""
    scorer = material.scorer(BoosterModel(material.booster, walked=True))
    payments = material.scored
    for payment in material.history[-2_000:]:
        scorer.score(payment)
    computed = each_ns(scorer.score, payments)
    same = each_ns(scorer.score, payments)
    copies = [Transaction.of(as_mapping(payment)) for payment in payments]
    scorer.score(copies[0])
    compared = each_ns(scorer.score, copies)
    mappings = each_ns(scorer.score, [as_mapping(payment) for payment in payments])
    answers = scorer.stats()["answers"]
    assert answers["memo"] >= 3 * len(payments) * 0.999, answers
    fast = _fast_call(material)
    naive = _features_and_predict(material)
    cache: TTLCache[str, float] = TTLCache(len(payments), 300)
    for payment in payments:
        cache[payment.transaction_id] = 0.5
    ttl = each_ns(lambda payment: cache[payment.transaction_id], payments)
    scorer.close()
    beside = "cachetools.TTLCache by id, p50"
    bare = "LightGBM single-row fast C call, bare"
    return [
        at_most(
            "memo, same object, p50",
            p50_us(same),
            "us",
            1.0,
            reference=beside,
            reference_value=p50_us(ttl),
        ),
        at_most("memo, contents compared, p50", p50_us(compared), "us", 1.5),
        at_most("memo, same object, p99", p99_us(same), "us", 3.0),
        at_most("memo, contents compared, p99", p99_us(compared), "us", 3.0),
        Figure("memo from a dict, p50", p50_us(mappings), "us"),
        ratio_at_most(
            "computed, features included, p50", p50_us(computed), "us", 0.7, bare, p50_us(fast)
        ),
        Figure("computed, p99", p99_us(computed), "us"),
        Figure("features, then Booster.predict on a dict, p50", p50_us(naive), "us"),
    ]


def _fast_call(material: Material) -> np.ndarray[Any, Any]:
    """LightGBM's own single-row call on finished features, the row's copy not counted."""
    row = LoadedBooster(material.booster.model_to_string()).fast_row()
    elapsed = np.empty(len(material.matrix), np.int64)
    for i, features in enumerate(material.matrix):
        row.features[:] = features
        started = time.perf_counter_ns()
        row.score()
        elapsed[i] = time.perf_counter_ns() - started
    return elapsed


def _features_and_predict(material: Material) -> np.ndarray[Any, Any]:
    """The same features from a dict, and `Booster.predict` on one row."""
    booster = material.booster
    rows = [dict(enumerate(features)) for features in material.matrix[:2_000]]

    def scored(row: dict[int, float]) -> object:
        return booster.predict(np.array([list(row.values())]), num_threads=1)

    return each_ns(scored, rows)


def moved_states(material: Material) -> list[Figure]:
    """Box: states changed between two scores of a payment, the score did not."""
    scorer = material.scorer(BoosterModel(material.booster, walked=True))
    payments = material.scored
    for payment in payments:
        scorer.score(payment)
    for payment in payments:
        scorer.observe(payment)
    elapsed: dict[str, list[int]] = {}
    for payment in payments:
        started = time.perf_counter_ns()
        result = scorer.score(payment)
        elapsed.setdefault(result.source or "", []).append(time.perf_counter_ns() - started)
    scorer.close()
    confirmed = np.array(elapsed.get("box", []) + elapsed.get("cell", []))
    return [
        at_most("box or cell, p50", p50_us(confirmed), "us", 2.5),
        Figure("box or cell, share of re-scores", len(confirmed) / len(payments), ""),
    ]


def not_walked(material: Material) -> list[Figure]:
    """A booster that the walk does not cover: its own call and at most 4 us."""
    model = BoosterModel(material.booster, walked=False)
    row = LoadedBooster(material.booster.model_to_string()).fast_row()

    def predict(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        row.features[:] = matrix[0]
        return np.array([row.score()])

    model._function = predict
    scorer = material.scorer(model)
    elapsed = each_ns(scorer.score, material.scored)
    scorer.close()
    fast = p50_us(_fast_call(material))
    return [at_most("not walked: less the bare C call, p50", p50_us(elapsed) - fast, "us", 4.0)]


def dear_model(material: Material) -> list[Figure]:
    """A callable of 5 ms; the same payments again."""

    def dear(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        until = time.perf_counter() + 0.005
        while time.perf_counter() < until:
            pass
        return matrix[:, 0] * 0.0 + 0.5

    scorer = material.scorer(dear)
    few = material.scored[:300]
    first = each_ns(scorer.score, few)
    again = np.concatenate([each_ns(scorer.score, few) for _ in range(5)])
    scorer.close()
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
    """Events one by one, and in a batch."""
    scorer = material.scorer(lambda rows: rows[:, 0] * 0.0)
    serving = scorer._serving
    assert serving is not None  # it is open
    payments = material.scored
    for payment in payments:
        serving.packer.row(payment)
    elapsed = each_ns(scorer.observe, payments)
    scorer.close()
    other = material.scorer(lambda rows: rows[:, 0] * 0.0)
    packer = other._serving
    assert packer is not None  # it is open
    rows = np.array([np.frombuffer(packer.packer.row(payment), np.uint64) for payment in payments])
    started = time.perf_counter_ns()
    other._store.observe_all(rows)
    batch_us = (time.perf_counter_ns() - started) / len(payments) / 1000
    other.close()
    return [
        at_most("observe, one by one, p50", p50_us(elapsed), "us", 1.5),
        at_most("observe, in a batch", batch_us, "us", 0.5),
    ]


def whole_batch(material: Material) -> list[Figure]:
    """score_many of 10,000 rows beside Booster.predict on the finished matrix."""
    import pandas as pd

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
    theirs, ours = [], []
    for _ in range(5):
        scorer = material.scorer(BoosterModel(material.booster, walked=True))
        started = time.perf_counter_ns()
        scorer.score_many(frame)
        ours.append(time.perf_counter_ns() - started)
        scorer.close()
        started = time.perf_counter_ns()
        material.booster.predict(material.matrix[:10_000], num_threads=1)
        theirs.append(time.perf_counter_ns() - started)
    us_a_row = 1_000 * len(payments)
    return [
        ratio_at_most(
            "score_many, 10,000 rows of a frame",
            float(np.median(ours)) / us_a_row,
            "us a row",
            1.0,
            "Booster.predict on the finished matrix, 1 thread",
            float(np.median(theirs)) / us_a_row,
        )
    ]
