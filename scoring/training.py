"""Training a model on a feature matrix: booster, calibration table, thresholds, metrics.

The rows are in time order. The booster learns from the head of them; calibration, thresholds and
metrics come from the tail, which it has not seen, as tomorrow's payments will be.
Rule: the same matrix, labels, settings and seed give the same booster, whatever the threads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from freshscore.config.errors import BadModel
from freshscore.config.settings import ModelSettings
from freshscore.features.packing import Cohort
from freshscore.features.specification import FeatureSpecification
from freshscore.scoring import lightgbm_door
from freshscore.scoring.calibration import fitted_table
from freshscore.scoring.lightgbm_door import LoadedBooster
from freshscore.scoring.model import ALL, Model
from freshscore.scoring.model_file import CohortThresholds, TrainingFacts
from freshscore.scoring.model_making import import_booster

VALIDATION_SHARE: Final = 0.2
# Below this a rate of half a percent is not five payments; the cohort takes the thresholds of all.
_MIN_COHORT_ROWS: Final = 1_000


def train_model(
    matrix: NDArray[np.float64],
    labels: NDArray[np.bool_],
    *,
    specification: FeatureSpecification,
    settings: ModelSettings,
    made_at_ms: int,
    codes: Mapping[str, Mapping[str, int]] | None = None,
    cohorts: Sequence[Cohort] = (),
    cohort_of_row: NDArray[np.integer] | None = None,
    time_ms: NDArray[np.int64] | None = None,
    validation_share: float = VALIDATION_SHARE,
    num_threads: int = 1,
    after_trees: Callable[[int], None] | None = None,
) -> Model:
    """Train on rows in time order.

    matrix: float64 (n, features of `specification`), missing is NaN. labels: bool (n,).
    codes: those with which category features were made. cohort_of_row: (n,) number of each row's
    cohort in `cohorts`, len(cohorts) for none of them. time_ms: (n,) for the record.
    after_trees: told how many more trees there are.
    Raises BadModel where head or tail has no row of either class. Warns, and keeps in
    `facts.warnings`, where scores tie so that no threshold meets a rate.
    """
    n = len(labels)
    n_head = n - round(n * validation_share)
    head, tail = slice(0, n_head), slice(n_head, n)
    for name, part in (("trained on", labels[head]), ("held back", labels[tail])):
        _need_both_classes(part, name)
    text = train_booster(
        matrix[head],
        labels[head],
        specification,
        settings,
        num_threads=num_threads,
        after_trees=after_trees,
    )
    scores = LoadedBooster(text, num_threads).scores(matrix[tail])
    calibration = fitted_table(scores, labels[tail])
    scores = calibration.of(scores)
    numbers = None if cohort_of_row is None else cohort_of_row[tail]
    parts = _by_cohort(scores, len(cohorts), numbers)
    thresholds = _thresholds(parts, cohorts, settings)
    warnings = tuple(_unmet_rates(parts, thresholds, settings))
    for sentence in warnings:
        logging.getLogger("freshscore").warning("%s", sentence)
    return import_booster(
        text,
        specification,
        cohorts=thresholds,
        made_at_ms=made_at_ms,
        codes=codes or {},
        calibration=calibration,
        facts=TrainingFacts(
            rows=n_head,
            frauds=int(np.count_nonzero(labels[head])),
            first_ms=None if time_ms is None else int(time_ms[0]),
            last_ms=None if time_ms is None else int(time_ms[-1]),
            validation_rows=n - n_head,
            metrics=_metrics(scores, labels[tail]),
            warnings=warnings,
        ),
        golden_rows=settings.golden_rows,
    )


def train_booster(
    matrix: NDArray[np.float64],
    labels: NDArray[np.bool_],
    specification: FeatureSpecification,
    settings: ModelSettings,
    *,
    num_threads: int = 1,
    after_trees: Callable[[int], None] | None = None,
) -> str:
    """The text of a booster that learned from all rows; raises BadModel without both classes."""
    _need_both_classes(labels, "trained on")
    return lightgbm_door.train(
        matrix,
        labels,
        feature_names=specification.feature_names,
        categorical=_categorical(specification),
        parameters=_parameters(settings, num_threads),
        num_trees=settings.num_trees,
        after_trees=after_trees,
    )


def _need_both_classes(labels: NDArray[np.bool_], name: str) -> None:
    frauds = np.count_nonzero(labels)
    if not 0 < frauds < len(labels):
        raise BadModel(
            f"the {len(labels)} rows {name} have {frauds} frauds; both classes are needed"
        )


def rate_threshold(scores: NDArray[np.float64], rate: float) -> float:
    """The lowest score that at most the share `rate` of `scores` reaches; infinity if none does."""
    if not len(scores):
        return float("inf")
    ranked, counts = np.unique(scores, return_counts=True)
    reaching = np.cumsum(counts[::-1])[::-1]
    within = ranked[reaching <= rate * len(scores)]
    return float(within[0]) if len(within) else float("inf")


def _by_cohort(
    scores: NDArray[np.float64], n_cohorts: int, numbers: NDArray[np.integer] | None
) -> list[NDArray[np.float64]]:
    """The scores that each cohort's thresholds come from, and at last those of `all`."""

    def own_rows(number: int) -> NDArray[np.float64]:
        own = scores[:0] if numbers is None else scores[numbers == number]
        return own if len(own) >= _MIN_COHORT_ROWS else scores

    # `all` is for payments of no cohort, and has thresholds of its own where there are enough.
    return [own_rows(number) for number in range(n_cohorts + 1)]


def _thresholds(
    parts: Sequence[NDArray[np.float64]], cohorts: Sequence[Cohort], settings: ModelSettings
) -> list[CohortThresholds]:
    def pair(own: NDArray[np.float64]) -> tuple[float, float]:
        declined = rate_threshold(own, settings.decline_rate)
        return rate_threshold(own, settings.decline_rate + settings.review_rate), declined

    *named, every = parts
    return [
        *(
            CohortThresholds(cohort.name, *pair(own), cohort.field, cohort.value)
            for cohort, own in zip(cohorts, named, strict=True)
        ),
        CohortThresholds(ALL, *pair(every)),
    ]


def _unmet_rates(
    parts: Sequence[NDArray[np.float64]],
    thresholds: Sequence[CohortThresholds],
    settings: ModelSettings,
) -> Iterator[str]:
    """A sentence for each cohort that scores tied at the top leave without a threshold.

    The threshold stays infinite rather than at the tie: a rate is a limit, of the honest customers
    that may be turned away and of the payments that people can look at, and declining four times
    as many unasked does harm at once; so the team is told, and may ask for the rate of the tie.
    """
    allowed = {
        "decline": ("model.decline_rate allows", settings.decline_rate),
        "review": (
            "model.decline_rate and model.review_rate together allow",
            settings.decline_rate + settings.review_rate,
        ),
    }
    for one, own in zip(thresholds, parts, strict=True):
        top = float(np.mean(own == own.max()))
        for decision, (names, rate) in allowed.items():
            if rate > 0 and np.isinf(getattr(one, decision)):
                yield (
                    f"cohort {one.name}: no payment can reach the {decision} threshold: the highest"
                    f" score is that of {top:.2%} of the {len(own):,} payments held back, and"
                    f" {names} {rate:.2%}; raise the rate to take them all, or train on more"
                    " payments, or on features that tell them apart"
                )


def _categorical(specification: FeatureSpecification) -> list[int]:
    return [
        place
        for place, column in enumerate(specification.columns)
        if column.feature is not None and column.feature.function == "category"
    ]


def _parameters(settings: ModelSettings, num_threads: int) -> dict[str, object]:
    return {
        "objective": "binary",
        "learning_rate": settings.learning_rate,
        "num_leaves": settings.num_leaves,
        "min_child_samples": settings.min_child_samples,
        "lambda_l2": settings.lambda_l2,
        "seed": settings.seed,
        "num_threads": num_threads,
        # Same histograms in the same order, whatever the threads.
        "deterministic": True,
        "force_row_wise": True,
    }


def _metrics(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> dict[str, float]:
    """Area under the ROC curve, average precision and Brier score of rows of both classes."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    true = np.cumsum(labels[order])[ends]
    false = ends + 1 - true
    gained = np.diff(true, prepend=0)
    area = np.sum(np.diff(false, prepend=0) * (true - gained / 2)) / (true[-1] * false[-1])
    return {
        "auc_roc": float(area),
        "average_precision": float(np.sum(gained * true / (true + false)) / true[-1]),
        "brier": float(np.mean((scores - labels) ** 2)),
    }
