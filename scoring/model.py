"""A model ready to score: booster, calibration, thresholds and category codes, checked.

Rule: a model exists only if it gives its golden rows' bits on this host. What the walk does not
cover is served by LightGBM's own calls, and says why (`not_walked`).
"""

from __future__ import annotations

import functools
import math
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from freshscore.config.errors import BadModel, DamagedModel, ModelMismatch
from freshscore.features.packing import Cohort
from freshscore.features.specification import FeatureSpecification
from freshscore.features.transaction import LATEST_MS
from freshscore.scoring import model_file
from freshscore.scoring.booster_text import read_booster
from freshscore.scoring.calibration import CalibrationTable
from freshscore.scoring.forest import Forest
from freshscore.scoring.forest_splits import NotWalked
from freshscore.scoring.model_file import CohortThresholds, ModelContent, TrainingFacts
from freshscore.scoring.objectives import Link, check_leaves, link_of

if TYPE_CHECKING:
    from freshscore.scoring.lightgbm_door import FastRow, LoadedBooster

ALL: Final = "all"
# The row that a kernel reads has 8 bits for the number of its cohort.
MAX_COHORTS: Final = 255
_VERSION_HASH_CHARACTERS: Final = 10


class Model:
    """One model version; immutable.

    content: all that it is. file: its bytes. forest: its trees for the kernels, or None, and then
    `not_walked` says why.
    """

    def __init__(self, content: ModelContent) -> None:
        """Raises BadModel, and ModelMismatch where this host's bits differ from the golden rows."""
        _check(content)
        self.content = content
        self.file = model_file.encoded(content)
        self.calibration = (
            None
            if content.calibration is None
            else CalibrationTable(*(np.array(knots) for knots in content.calibration))
        )
        self._columns = np.array(content.booster_columns, np.int64)
        booster = read_booster(content.booster)
        if len(booster.feature_names) != len(self._columns):
            raise BadModel(
                f"the booster has {len(booster.feature_names)} features, but"
                f" {len(self._columns)} places in the vector"
            )
        self.link: Link = link_of(booster, content.custom_link)
        check_leaves(booster, self.link)
        self._is_linear = booster.linear
        self.forest: Forest | None = None
        self.not_walked: str | None = None
        try:
            self.forest = Forest(
                booster,
                self.link,
                columns=self._columns,
                n_features=len(content.feature_names),
                calibration=self.calibration,
            )
        except NotWalked as reason:
            self.not_walked = str(reason)
        self._of_thread = threading.local()
        self._check_golden_rows()

    @staticmethod
    def load(file: bytes) -> Model:
        """The model in `file`; raises DamagedModel, BadModel or ModelMismatch."""
        content = model_file.decoded(file)
        try:
            return Model(content)
        except (TypeError, ValueError) as problem:
            if isinstance(problem, BadModel | ModelMismatch):
                raise
            raise DamagedModel(f"the model's parts contradict each other: {problem}") from problem

    @functools.cached_property
    def version(self) -> str:
        """When it was made (UTC) and the beginning of its checksum."""
        made_at = datetime.fromtimestamp(self.content.made_at_ms / 1000, UTC)
        digest = model_file.content_hash(self.file)[:_VERSION_HASH_CHARACTERS]
        return f"{made_at:%Y%m%dT%H%M%SZ}-{digest}"

    @property
    def codes(self) -> dict[str, dict[str, int]]:
        """Category field -> value -> code."""
        return self.content.codes

    @property
    def facts(self) -> TrainingFacts:
        """What it was made from."""
        return self.content.facts

    @functools.cached_property
    def cohorts(self) -> tuple[Cohort, ...]:
        """Named conditions, the first that holds counting; all others are the cohort `all`."""
        return tuple(
            Cohort(cohort.name, cohort.field, cohort.value)
            for cohort in self.content.cohorts
            if cohort.field is not None and cohort.value is not None
        )

    @functools.cached_property
    def cohort_thresholds(self) -> NDArray[np.float64]:
        """float64 (len(cohorts) + 1, 2): review and decline of each cohort, then of all others."""
        return np.array([(cohort.review, cohort.decline) for cohort in self.content.cohorts])

    def predict(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """Finite scores, float64 (n,), of a matrix (n, features) in the specification's order.

        Raises BadModel where a score is no finite number (linear leaves make some of infinities).
        """
        if self.forest is not None:
            return self._finite(self.forest.scores(matrix))
        scores = self._loaded.scores(self._own(matrix))
        if self.content.custom_link is not None:
            # LightGBM gives raw scores for an objective that it does not know.
            scores = self.link.of(scores)
        # Before calibration, which would make some score of a NaN.
        scores = self._finite(scores)
        return scores if self.calibration is None else self.calibration.of(scores)

    def predict_one(self, features: NDArray[np.float64]) -> float:
        """The finite score of one row (F,), by LightGBM's single-row call if not walked.

        Raises BadModel as `predict` does.
        """
        if self.forest is not None:
            return float(self.predict(features.reshape(1, -1))[0])
        fast: FastRow | None = getattr(self._of_thread, "fast", None)
        if fast is None:
            fast = self._of_thread.fast = self._loaded.fast_row()
        # Without `mode`, numpy would fill a buffer and copy that.
        features.take(self._columns, out=fast.features, mode="clip")
        score = fast.score()
        if self.content.custom_link is not None:
            score = float(self.link.of(np.array([score]))[0])
        if not math.isfinite(score):
            raise self._not_finite(1, 1)
        return (
            score if self.calibration is None else float(self.calibration.of(np.array([score]))[0])
        )

    def contributions(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """What each feature adds to the raw score, (n, features + 1), the expected value last.

        Raises BadModel for linear leaves, of which LightGBM cannot say it.
        """
        if self._is_linear:
            raise BadModel("LightGBM has no contributions for trees with linear leaves")
        own = self._loaded.contributions(self._own(matrix))
        result = np.zeros((len(matrix), len(self.content.feature_names) + 1))
        result[:, self._columns] = own[:, :-1]
        result[:, -1] = own[:, -1]
        return result

    def check_fits(self, specification: FeatureSpecification) -> None:
        """Raise ModelMismatch, with the difference, unless it scores this specification."""
        theirs, own = specification.feature_names, self.content.feature_names
        if own == theirs and self.content.fingerprint == specification.fingerprint:
            return
        said = differences(own, theirs)
        if not said:
            said = [
                "the names agree, but a feature means something else: fingerprint"
                f" {self.content.fingerprint.hex()}, not {specification.fingerprint.hex()}"
            ]
        raise ModelMismatch(
            f"model {self.version} was made for specification {self.content.specification},"
            f" not for {specification.name}: {'; '.join(said)}"
        )

    @functools.cached_property
    def _loaded(self) -> LoadedBooster:
        # LightGBM takes 0.7 s to import: only what needs it waits for it.
        from freshscore.scoring.lightgbm_door import LoadedBooster

        return LoadedBooster(self.content.booster)

    def _own(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """The booster's own features, in its order."""
        return np.ascontiguousarray(matrix[:, self._columns])

    def _finite(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        n_bad = len(scores) - int(np.count_nonzero(np.isfinite(scores)))
        if n_bad:
            raise self._not_finite(n_bad, len(scores))
        return scores

    def _not_finite(self, n_bad: int, n: int) -> BadModel:
        return BadModel(
            f"model {self.version} gave {n_bad} scores of {n} that are no finite number"
        )

    def _check_golden_rows(self) -> None:
        rows = golden_matrix(self.content)
        expected = np.frombuffer(self.content.golden_scores, "<f8").astype(np.float64)
        if not len(rows) or len(rows) != len(expected):
            raise BadModel(
                f"a model has golden rows, each with its score, not {len(rows)} rows"
                f" and {len(expected)} scores"
            )
        if not np.isfinite(expected).all():
            raise BadModel("a golden row's score is no finite number")
        differ = np.count_nonzero(self.predict(rows).view(np.uint64) != expected.view(np.uint64))
        if differ:
            raise ModelMismatch(
                f"{differ} of {len(expected)} golden rows score otherwise on this host than where"
                " the model was made, so no score could be compared with another host's;"
                " train or import the model on a host like this one"
            )


def golden_matrix(content: ModelContent) -> NDArray[np.float64]:
    """The golden rows, float64 (n, features)."""
    rows = np.frombuffer(content.golden_rows, "<f8").astype(np.float64)
    return rows.reshape(-1, len(content.feature_names))


def differences(own: tuple[str, ...], theirs: tuple[str, ...]) -> list[str]:
    """What tells the features of a model (`own`) from those of a specification, in words."""
    missing = [name for name in theirs if name not in own]
    extra = [name for name in own if name not in theirs]
    said = []
    if missing:
        said.append(f"the model lacks {', '.join(missing)}")
    if extra:
        said.append(f"the specification lacks {', '.join(extra)}")
    if not said and own != theirs:
        pairs = zip(own, theirs, strict=True)
        place, (model, specified) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
        said.append(
            f"the order differs from place {place + 1} on: {model} in the model,"
            f" {specified} in the specification"
        )
    return said


def _check(content: ModelContent) -> None:
    n = len(content.feature_names)
    columns = content.booster_columns
    if not n or len(set(columns)) != len(columns) or not all(0 <= place < n for place in columns):
        raise BadModel(f"the booster's features do not have {len(columns)} places among {n}")
    if not 0 <= content.made_at_ms <= LATEST_MS:
        raise BadModel(f"made_at_ms is {content.made_at_ms}; it must be 0 to {LATEST_MS} (2100)")
    if "\r" in content.booster:
        raise BadModel("the booster's text has line ends other than LF")
    check_cohorts(content.cohorts)


def check_cohorts(cohorts: tuple[CohortThresholds, ...]) -> None:
    """Raise BadModel unless the last cohort, and it alone, is `all`, and thresholds ascend."""
    if not cohorts:
        raise BadModel(f"a model has thresholds at least for the cohort {ALL!r}")
    *named, last = cohorts
    if last.name != ALL or last.field is not None or last.value is not None:
        raise BadModel(f"the last cohort is {ALL!r}, without a condition")
    if any(cohort.field is None or cohort.value is None for cohort in named):
        raise BadModel(f"every cohort but {ALL!r} has a condition on a field")
    names = [cohort.name for cohort in cohorts]
    if len(set(names)) != len(names) or len(named) > MAX_COHORTS:
        raise BadModel(f"cohorts have different names, and are {MAX_COHORTS} at most: {names}")
    for cohort in cohorts:
        if not cohort.review <= cohort.decline:
            raise BadModel(
                f"cohort {cohort.name}: the review threshold {cohort.review} is not at most"
                f" the decline threshold {cohort.decline}"
            )
