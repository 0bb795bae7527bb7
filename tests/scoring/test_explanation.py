"""Explanations: contributions add up to the score, reasons and causes are the true ones."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from freshscore.config.errors import BadModel
from freshscore.features.specification import FeatureSpecification
from freshscore.scoring import lightgbm_door
from freshscore.scoring.callable_model import CallableModel
from freshscore.scoring.explanation import contributions_of
from freshscore.scoring.lightgbm_door import LoadedBooster
from freshscore.scoring.model_file import CohortThresholds
from freshscore.scoring.model_making import import_booster
from freshscore.scoring.result import CAUSES
from freshscore.scoring.scorer import Scorer
from tests.scoring.small_models import small_model

NOW_MS = 1_546_300_800_000
HOUR_MS = 3_600_000
HANDBOOK = FeatureSpecification.shipped("handbook")


def payment(number: int, time_ms: int = NOW_MS, amount_minor: int = 1_234) -> dict[str, object]:
    return {
        "transaction_id": f"t{number}",
        "time": time_ms,
        "amount_minor": amount_minor,
        "currency": "EUR",
        "entities": {"card": "c", "merchant": "m"},
    }


@pytest.fixture
def scorer() -> Iterator[Scorer]:
    settings = {"store.specification": "handbook", "store.arena_bytes": 1 << 24}
    with Scorer.open(settings=settings, model=small_model()) as opened:
        yield opened


def test_contributions_add_up_to_the_raw_score(rng: np.random.Generator) -> None:
    model = small_model()
    booster = LoadedBooster(model.content.booster)
    for vector in rng.random((20, len(HANDBOOK.columns))):
        vector[rng.integers(len(vector))] = math.nan
        contributions, expected = contributions_of(model, HANDBOOK, vector)
        raw = booster.scores(vector.reshape(1, -1), raw=True)[0]
        assert expected + sum(c.contribution for c in contributions) == pytest.approx(raw)
        assert sorted(c.feature for c in contributions) == sorted(HANDBOOK.feature_names)


def test_contributions_are_of_the_feature_they_name(rng: np.random.Generator) -> None:
    """Also where the booster has the features in another order, and not all of them."""
    vector = rng.random(len(HANDBOOK.columns))
    names = [HANDBOOK.feature_names[place] for place in (7, 0, 3)]
    matrix = rng.random((300, 3))
    text = lightgbm_door.train(
        matrix,
        matrix[:, 1] > 0.5,
        feature_names=names,
        parameters={"objective": "binary", "num_leaves": 7},
        num_trees=5,
    )
    cohorts = [CohortThresholds("all", 0.5, 0.9)]
    model = import_booster(text, HANDBOOK, cohorts=cohorts, made_at_ms=0, golden_rows=8)
    own = LoadedBooster(text).contributions(vector[[7, 0, 3]].reshape(1, -1))[0]
    contributions, expected = contributions_of(model, HANDBOOK, vector)
    found = {c.feature: (c.value, c.contribution) for c in contributions}
    assert [found[name] for name in names] == [
        (vector[place], own[at]) for at, place in enumerate((7, 0, 3))
    ]
    assert all(added == 0.0 for name, (_, added) in found.items() if name not in names)
    assert expected == own[-1]


def test_the_largest_comes_first_with_reason_and_sentence(scorer: Scorer) -> None:
    explanation = scorer.explain(payment(1))
    assert explanation.contributions is not None
    sizes = [abs(c.contribution) for c in explanation.contributions]
    assert sizes == sorted(sizes, reverse=True)
    columns = {column.name: column for column in HANDBOOK.columns}
    for one in explanation.contributions:
        column = columns[one.feature]
        assert (one.reason, one.sentence) == (column.reason, column.sentence)
        assert "{window}" not in (one.sentence or "")
    assert {c.feature: c.value for c in explanation.contributions}["amount"] == 12.34


def test_reasons_raise_the_score_and_each_stands_once(scorer: Scorer) -> None:
    explanation = scorer.explain(payment(1))
    assert explanation.contributions is not None
    raising = [c for c in explanation.contributions if c.contribution > 0]
    assert {c.reason for c in explanation.reasons} == {c.reason for c in raising}
    codes = [c.reason for c in explanation.reasons]
    assert len(set(codes)) == len(codes)
    for reason in explanation.reasons:
        assert reason == next(c for c in raising if c.reason == reason.reason)


def test_an_explanation_is_of_the_score_that_is_served(scorer: Scorer) -> None:
    result = scorer.score(payment(1))
    explanation = scorer.explain(payment(1))
    assert (explanation.score, explanation.decision) == (result.score, result.decision)
    assert (explanation.model_version, explanation.as_of) == (result.model_version, result.as_of)
    assert result.source == "computed"
    assert explanation.source == "memo"
    assert "nothing that its score depends on has changed" in explanation.served


def test_why_the_cache_did_not_serve_is_said(scorer: Scorer) -> None:
    first = scorer.explain(payment(1))
    assert first.source == "computed"
    assert first.served == "computed, for no score of this payment was in the cache"
    dear = scorer.explain(payment(1, amount_minor=99_999_999))
    assert "other content" in dear.served


def test_a_state_that_moved_is_named(scorer: Scorer) -> None:
    scorer.score(payment(1))
    scorer.observe(payment(2, NOW_MS - HOUR_MS))
    explanation = scorer.explain(payment(1))
    assert "other events" in explanation.served


def test_every_cause_has_its_sentence() -> None:
    from freshscore.scoring import explanation

    assert set(explanation._COMPUTED) == set(CAUSES)


def test_missing_values_are_none_and_categories_have_their_name() -> None:
    spec = FeatureSpecification.from_toml(
        """
        name = "shops"
        currency = "EUR"
        features = [
            { name = "shop", function = "category", of = "shop" },
            { name = "risk", function = "field", of = "risk" },
        ]
        """
    )
    rng = np.random.default_rng(1)
    matrix = np.stack([rng.integers(0, 3, 300).astype(float), rng.random(300)], axis=1)
    text = lightgbm_door.train(
        matrix,
        matrix[:, 0] == 1,
        feature_names=spec.feature_names,
        categorical=[0],
        parameters={"objective": "binary", "num_leaves": 7, "min_child_samples": 5},
        num_trees=3,
    )
    codes = {"shop": {"bakery": 0, "jeweller": 1, "kiosk": 2}}
    model = import_booster(
        text,
        spec,
        cohorts=[CohortThresholds("all", 0.5, 0.9)],
        made_at_ms=0,
        codes=codes,
        golden_rows=8,
    )
    contributions, _ = contributions_of(model, spec, np.array([1.0, math.nan]))
    assert {c.feature: c.value for c in contributions} == {"shop": "jeweller", "risk": None}
    assert next(c for c in contributions if c.feature == "shop").contribution > 0


def test_a_callable_model_says_that_it_has_no_contributions() -> None:
    thresholds = [CohortThresholds("all", 0.5, 0.9)]
    model = CallableModel(lambda matrix: np.full(len(matrix), 0.25), "theirs", thresholds)
    settings = {"store.specification": "handbook", "store.arena_bytes": 1 << 24}
    with Scorer.open(settings=settings, model=model) as scorer:
        explanation = scorer.explain(payment(1))
    assert explanation.score == 0.25
    assert explanation.contributions is None
    assert explanation.reasons == ()
    assert "theirs is a callable" in str(explanation.unexplained)


def test_a_model_with_linear_leaves_says_that_it_has_no_contributions(
    rng: np.random.Generator,
) -> None:
    matrix = rng.random((300, len(HANDBOOK.columns)))
    text = lightgbm_door.train(
        matrix,
        matrix[:, 0] > 0.5,
        feature_names=HANDBOOK.feature_names,
        parameters={"objective": "binary", "num_leaves": 4, "linear_tree": True},
        num_trees=3,
    )
    cohorts = [CohortThresholds("all", 0.5, 0.9)]
    model = import_booster(text, HANDBOOK, cohorts=cohorts, made_at_ms=0, golden_rows=8)
    settings = {"store.specification": "handbook", "store.arena_bytes": 1 << 24}
    with Scorer.open(settings=settings, model=model) as scorer:
        explanation = scorer.explain(payment(1))
        assert explanation.score == scorer.score(payment(1)).score
    assert explanation.contributions is None
    assert "linear leaves" in str(explanation.unexplained)
    with pytest.raises(BadModel, match="linear"):
        LoadedBooster(text).contributions(matrix)
