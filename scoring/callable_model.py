"""Any other model: a callable over the feature matrix, served through the same cache.

It has no thresholds that are known here, so its scores are keyed on the bits of its features: two
vectors share a score only if they are the same numbers (a missing value is one value, -0.0 and 0.0
are two).
Rule: the version is declared by the caller, and names this very function: a model that answers
otherwise under one version makes every cached score wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from freshscore.config.errors import BadModel
from freshscore.features.packing import Cohort
from freshscore.scoring.forest import Forest
from freshscore.scoring.model import check_cohorts
from freshscore.scoring.model_file import CohortThresholds

# Kinds of numpy types that are real numbers: truth values, with and without a sign, floating.
_NUMBERS: Final = "biuf"


class ScoringFunction(Protocol):
    """Scores of a feature matrix: float64 (n, features), NaN where missing, to finite (n,).

    Deterministic, and for one row what it is for that row among others.
    """

    def __call__(self, matrix: NDArray[np.float64], /) -> NDArray[np.float64]:
        """The scores of `matrix`."""
        ...


class CallableModel:
    """A scoring function with a version and thresholds.

    cohorts: as in a model's artefact, `all` last. codes: category field -> value -> code, for a
    specification with category features.
    """

    forest: Forest | None = None

    def __init__(
        self,
        function: ScoringFunction,
        version: str,
        cohorts: Sequence[CohortThresholds],
        codes: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        """Raises BadModel."""
        if not version:
            raise BadModel("a callable model has a version, which is part of every key")
        check_cohorts(tuple(cohorts))
        self.version = version
        self.codes = {field: dict(values) for field, values in (codes or {}).items()}
        self.cohorts = tuple(
            Cohort(one.name, one.field, one.value)
            for one in cohorts
            if one.field is not None and one.value is not None
        )
        self.cohort_thresholds = np.array([(one.review, one.decline) for one in cohorts])
        self._function = function

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores, float64 (n,); raises BadModel unless the function gave a finite one for each."""
        try:
            given = np.asarray(self._function(matrix))
        except ValueError as problem:
            raise BadModel(f"model {self.version} gave no scores: {problem}") from problem
        if given.dtype.kind not in _NUMBERS:
            raise BadModel(f"model {self.version} gave {given.dtype} for scores, not real numbers")
        scores = given.astype(np.float64, copy=False)
        if scores.shape != (len(matrix),):
            raise BadModel(
                f"model {self.version} gave scores of shape {scores.shape} for {len(matrix)} rows"
            )
        if not np.isfinite(scores).all():
            raise BadModel(
                f"model {self.version} gave {np.count_nonzero(~np.isfinite(scores))} scores of"
                f" {len(scores)} that are no finite number"
            )
        return scores

    def predict_one(self, features: NDArray[np.float64]) -> float:
        """The score of one row (F,); raises BadModel as `predict` does."""
        return float(self.predict(features.reshape(1, -1))[0])
