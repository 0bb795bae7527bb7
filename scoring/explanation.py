"""Why a payment has its score, and why the cache did or did not serve it.

Contributions are of the actual feature vector: they are not constant where the score is, so none is
ever kept with a cached score.
Source: Lundberg et al., "Consistent Individualized Feature Attribution for Tree Ensembles" (2018),
as LightGBM computes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshscore.config.errors import BadModel
from freshscore.features.specification import Column, FeatureSpecification, duration_ms
from freshscore.scoring.model import Model
from freshscore.scoring.result import Result, ShownWithoutIdentifier
from freshscore.scoring.serving import ServableModel

_SERVED: Final = {
    "memo": "the payment was scored before, and nothing that its score depends on has changed",
    "box": (
        "the payment was scored before; its features have changed, but not so far that any tree of"
        " the model would take another leaf, so the score is the same"
    ),
    "cell": (
        "a payment whose features lie between the same thresholds of the model was scored before,"
        " so the score is the same"
    ),
}
_COMPUTED: Final = {
    "new": "no score of this payment was in the cache",
    "time": "events or facts came into or left a window since the last score",
    "content": "the payment was asked with other content than before",
    "other events": "other events of its entities have changed the features since the last score",
    "facts": "facts about earlier events have changed the features since the last score",
    "own event": "the payment's own event was observed since the last score",
    "earlier as_of": "the last score is of a later as_of",
    "not to be served": "cached scores were invalidated, or may not be served without a lease",
}


class Contribution(msgspec.Struct, frozen=True):
    """What one feature adds to the raw score.

    value: of the feature, a category by its name, None where missing. contribution: in units of the
    raw score (log-odds where the link is logistic), above 0 where it raises the score. reason,
    sentence: as the specification declares them.
    """

    feature: str
    value: float | str | None
    contribution: float
    reason: str | None
    sentence: str | None


class Explanation(ShownWithoutIdentifier, frozen=True):
    """The score of one payment, explained.

    source: memo, box, cell or computed; served: a sentence on why. expected: the raw score before
    any feature is known; with all contributions it is the payment's raw score, before link and
    calibration. contributions: the largest first, whichever the sign; None with `unexplained`
    saying why there is none. complete_since: as in the Result; incomplete: the features of windows
    that reach further back.
    """

    transaction_id: str
    score: float | None
    decision: str | None
    model_version: str
    as_of: int
    valid_until: int
    source: str | None
    served: str
    expected: float | None
    contributions: tuple[Contribution, ...] | None
    unexplained: str | None = None
    degraded: tuple[str, ...] = ()
    complete_since: int | None = None
    incomplete: tuple[str, ...] = ()

    @property
    def reasons(self) -> tuple[Contribution, ...]:
        """What raises the score: for each reason code its largest contribution, largest first."""
        found: dict[str, Contribution] = {}
        for one in self.contributions or ():
            if one.contribution > 0 and one.reason is not None:
                found.setdefault(one.reason, one)
        return tuple(found.values())


def explained(
    model: ServableModel,
    specification: FeatureSpecification,
    vector: NDArray[np.float64],
    result: Result,
) -> Explanation:
    """The explanation of `result`, the score of float64 `vector` (features,)."""
    expected, contributions, unexplained = None, None, None
    if isinstance(model, Model):
        try:
            contributions, expected = contributions_of(model, specification, vector)
        except BadModel as problem:
            unexplained = f"model {model.version} says no contributions of features: {problem}"
    else:
        unexplained = (
            f"model {model.version} is a callable: it says what the score is, not which feature"
            " adds what"
        )
    return Explanation(
        transaction_id=result.transaction_id,
        score=result.score,
        decision=result.decision,
        model_version=result.model_version,
        as_of=result.as_of,
        valid_until=result.valid_until,
        source=result.source,
        served=served_sentence(result),
        expected=expected,
        contributions=contributions,
        unexplained=unexplained,
        degraded=result.degraded,
        complete_since=result.complete_since,
        incomplete=incomplete_features(specification, result),
    )


def incomplete_features(specification: FeatureSpecification, result: Result) -> tuple[str, ...]:
    """Features of windows that begin before the history behind `result` is complete."""
    since = result.complete_since
    if since is None:
        return ()
    found = []
    for column in specification.columns:
        if column.group >= 0:
            group = specification.windows[column.group]
            length_ms = duration_ms(column.length)
            begins = (
                result.as_of - group.delay_ms - length_ms - specification.step_ms(group, length_ms)
            )
            if begins < since:
                found.append(column.name)
    return tuple(found)


def contributions_of(
    model: Model, specification: FeatureSpecification, vector: NDArray[np.float64]
) -> tuple[tuple[Contribution, ...], float]:
    """What each feature of float64 `vector` (features,) adds, largest first, and the expected."""
    *added, expected = model.contributions(vector.reshape(1, -1))[0].tolist()
    found = [
        Contribution(
            column.name,
            _shown(column, float(value), model.codes),
            contribution,
            column.reason,
            column.sentence,
        )
        for column, value, contribution in zip(specification.columns, vector, added, strict=True)
    ]
    return tuple(sorted(found, key=lambda one: -abs(one.contribution))), expected


def _shown(
    column: Column, value: float, codes: Mapping[str, Mapping[str, int]]
) -> float | str | None:
    if value != value:
        return None
    feature = column.feature
    if feature is None or feature.function != "category":
        return value
    return next((name for name, code in codes.get(feature.of or "", {}).items() if code == value))


def served_sentence(result: Result) -> str:
    """Why the cache served `result`, or why it did not."""
    if result.source is None:
        return "the payment was set aside"
    if result.source == "memo":
        return _SERVED["memo"]
    why = _COMPUTED[result.cause]
    if result.source == "computed":
        return f"computed, for {why}" if result.cause == "new" else f"computed anew: {why}"
    return f"{_SERVED[result.source]} ({why})"
