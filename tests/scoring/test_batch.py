"""Frames and lists of payments: one call of the model for what needs it, and every row answered."""

from __future__ import annotations

import threading

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from freshscore.config.errors import BadModel
from freshscore.features.transaction import Transaction
from freshscore.scoring.scorer import Scorer

NOON_MS = 1_699_876_800_000


class Counted:
    """A model that remembers how many rows each call had, and may be held."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.entered = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        self.calls.append(len(matrix))
        self.entered.set()
        assert self.may_go_on.wait(60)
        return matrix[:, 0] / 1e6


def frame_of(*numbers: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "transaction_id": [f"t{n}" for n in numbers],
            "time": NOON_MS,
            "amount_minor": [100 * n for n in numbers],
            "currency": "EUR",
            "card": [f"c{n}" for n in numbers],
            "merchant": "m",
        }
    )


def opened(model: Counted, **settings: object) -> Scorer:
    ours = {"store.specification": "handbook", "cache.probe_share": 0.0}
    return Scorer.open(settings=ours | settings, model=model)


def test_a_payment_that_stands_in_a_frame_several_times_is_computed_once() -> None:
    model = Counted()
    with opened(model) as scorer:
        answers = scorer.score_many(frame_of(1, 2, 1, 3, 1))
        assert model.calls == [3]
        assert answers["score"].tolist() == [1e-6, 2e-6, 1e-6, 3e-6, 1e-6]
        assert answers["source"].tolist() == ["computed", "computed", "memo", "computed", "memo"]
        stats = scorer.stats()
        assert sum(stats["causes"].values()) == stats["answers"]["computed"] == 3


def test_threads_that_score_one_frame_compute_each_score_once() -> None:
    model = Counted()
    model.may_go_on.clear()
    with opened(model) as scorer:
        found: list[pd.DataFrame] = []
        threads = [
            threading.Thread(target=lambda: found.append(scorer.score_many(frame_of(1, 2, 3))))
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        assert model.entered.wait(60)
        model.may_go_on.set()
        for thread in threads:
            thread.join(60)
        assert model.calls == [3]
        assert [answers["score"].tolist() for answers in found] == [[1e-6, 2e-6, 3e-6]] * 5


def test_a_row_that_waits_too_long_has_an_error_and_the_others_a_score() -> None:
    model = Counted()
    model.may_go_on.clear()
    with opened(model, **{"cache.inflight_wait_s": 0.01}) as scorer:
        leader = threading.Thread(target=lambda: scorer.score_many(frame_of(1)))
        leader.start()
        assert model.entered.wait(60)
        listed = scorer.score_many([payment(1)])
        assert [result.score for result in listed] == [None]
        assert "computed elsewhere" in (listed[0].error or "")
        rest = threading.Timer(0.2, model.may_go_on.set)
        rest.start()
        answers = scorer.score_many(frame_of(2, 1))
        leader.join(60)
        rest.join()
    assert answers["score"].tolist()[0] == 2e-6
    assert np.isnan(answers["score"].tolist()[1]) or answers["score"].tolist()[1] == 1e-6


def payment(number: int) -> Transaction:
    entities = {"card": f"c{number}", "merchant": "m"}
    return Transaction(f"t{number}", NOON_MS, 100 * number, "EUR", entities)


def test_a_frame_says_what_is_degraded_and_since_when_it_is_complete() -> None:
    with opened(Counted(), **{"store.max_events_per_entity": 16}) as scorer:
        for number in range(17):
            entities = {"card": f"c{number}", "merchant": "m"}
            scorer.observe(Transaction(f"o{number}", NOON_MS - 20 + number, 100, "EUR", entities))
        answers = scorer.score_many(frame_of(1))
        one = scorer.score(payment(1))
        assert answers["degraded"].tolist() == ["too many events"] == list(one.degraded)
        assert answers["complete_since"].tolist() == [NOON_MS - 20 + 1] == [one.complete_since]


@pytest.mark.parametrize("rows", ["payments.parquet", 5, {"a": 1}])
def test_rows_of_another_kind_are_refused_before_anything_is_scored(rows: object) -> None:
    with opened(Counted()) as scorer:
        with pytest.raises(TypeError, match="a pandas DataFrame or a list"):
            scorer.score_many(rows)  # type: ignore[call-overload]  # that is what is tested
        assert scorer.stats()["requests"] == 0


@pytest.mark.parametrize("model", [5, "champion"])
def test_a_model_of_another_kind_is_refused(model: object) -> None:
    with pytest.raises(BadModel, match=r"not (int|str)"):
        Scorer.open(model=model)  # type: ignore[arg-type]  # that is what is tested


@pytest.mark.parametrize("is_wrong", [False, True])
def test_hits_of_a_called_model_are_probed_and_a_difference_is_counted(is_wrong: bool) -> None:
    model = Counted()
    with opened(model, **{"cache.probe_share": 1.0}) as scorer:
        first = scorer.score(payment(1))
        if is_wrong:
            # Another model under the same version: what the version must never stand for.
            serving = scorer._serving
            assert serving is not None
            serving.model.predict = lambda matrix: matrix[:, 0] + 1.0  # type: ignore[method-assign]  # on purpose
        again = scorer.score(payment(1))
        answers = scorer.score_many(frame_of(1, 1))
        stats = scorer.stats()
    assert (first.source, again.source) == ("computed", "memo")
    assert again.score == first.score
    assert answers["source"].tolist() == ["memo", "memo"]
    assert (stats["probes"], stats["mismatches"]) == (3, 3 if is_wrong else 0)


def test_no_period_of_traffic_hides_a_source_from_the_sampled_latencies() -> None:
    with opened(Counted()) as scorer:
        for number in range(400):
            for _ in range(16):
                scorer.score(payment(number))
        sampled = {name: one["sampled"] for name, one in scorer.stats()["latency_us"].items()}
        assert sampled["computed"] > 5
        assert sampled["memo"] > 200
