"""Making a model of a booster: golden rows, category codes, and what the caller knows of it.

Rule: expected scores of golden rows come from LightGBM itself, so a model that exists has been
compared with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshscore.config.errors import BadModel, ModelMismatch
from freshscore.features.specification import FeatureSpecification
from freshscore.scoring.booster_text import BoosterText, read_booster, with_plain_ends
from freshscore.scoring.calibration import CalibrationTable
from freshscore.scoring.forest_splits import NotWalked, splits_of
from freshscore.scoring.lightgbm_door import LoadedBooster
from freshscore.scoring.model import Model
from freshscore.scoring.model_file import FORMAT, CohortThresholds, ModelContent, TrainingFacts
from freshscore.scoring.objectives import link_of

# Steps between the values of neighbouring rows and features. The first is a prime above the number
# of values that any feature can have, so that a step never falls into a short cycle.
_ROW_STEP: Final = 1_000_003
_FEATURE_STEP: Final = 7_919


def import_booster(
    text: str,
    specification: FeatureSpecification,
    *,
    cohorts: Sequence[CohortThresholds],
    made_at_ms: int,
    names: Mapping[str, str] | None = None,
    codes: Mapping[str, Mapping[str, int]] | None = None,
    custom_link: str | None = None,
    calibration: CalibrationTable | None = None,
    facts: TrainingFacts | None = None,
    golden_rows: int = 256,
) -> Model:
    """A model of the booster in `text` (LightGBM's model text).

    names: the specification's name of each booster feature that is called otherwise there; the
    booster may have its features in any order, and need not use all. codes: by default read from
    the booster's `pandas_categorical`. cohorts: thresholds, `all` last. made_at_ms: the instant
    that the version carries. golden_rows: how many.

    Raises BadModel for a kind that cannot be served, ModelMismatch with the names that the
    specification lacks.
    """
    text = with_plain_ends(text)
    booster = read_booster(text)
    link_of(booster, custom_link)
    columns = _columns(booster, specification, names or {})
    if codes is None:
        codes = read_codes(booster, specification, columns)
    content = ModelContent(
        format=FORMAT,
        made_at_ms=made_at_ms,
        booster=text,
        booster_columns=columns,
        custom_link=custom_link,
        specification=specification.name,
        fingerprint=specification.fingerprint,
        feature_names=specification.feature_names,
        codes={field: dict(values) for field, values in codes.items()},
        calibration=None
        if calibration is None
        else (tuple(calibration.scores.tolist()), tuple(calibration.values.tolist())),
        cohorts=tuple(cohorts),
        facts=facts or TrainingFacts(),
        golden_rows=b"",
        golden_scores=b"",
    )
    return Model(_with_golden_rows(content, booster, calibration, golden_rows))


def read_codes(
    booster: BoosterText, specification: FeatureSpecification, columns: Sequence[int]
) -> dict[str, dict[str, int]]:
    """Category field -> value -> code, as pandas numbered them when the booster was trained.

    Raises BadModel where the booster's category lists cannot be told apart, or hold what a payment
    would not say in the same text, or where a category feature of the specification has none.
    """
    fields = {
        place: column.feature.of
        for place, column in enumerate(specification.columns)
        if column.feature is not None and column.feature.function == "category"
    }
    known = booster.categorical_features
    lists = booster.pandas_categories
    if lists and len(lists) != len(known):
        raise BadModel(
            f"the booster has {len(lists)} pandas category lists for {len(known)} categorical"
            " features; pass the codes of each field"
        )
    codes: dict[str, dict[str, int]] = {}
    for number, values in zip(known, lists, strict=False):
        field = fields.get(columns[number])
        if field is not None:
            _check_category(booster.feature_names[number], values)
            codes[field] = {str(value): code for code, value in enumerate(values)}
    without = sorted({field for field in fields.values() if field} - codes.keys())
    if without:
        raise BadModel(
            f"the booster does not say which value of {', '.join(without)} has which code;"
            " pass the codes"
        )
    return codes


def _check_category(name: str, values: Sequence[Any]) -> None:
    # A payment says its categories as text: True may be "true" or "1" there, and 1.0 be "1".
    kinds = {type(value) for value in values}
    if kinds not in ({str}, {int}, set()):
        found = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise BadModel(
            f"column {name}: its pandas categories are {found}, of which nobody can say what text"
            " they are in a payment; make them strings before training, or pass the codes"
        )
    if len(set(values)) != len(values):
        raise BadModel(f"column {name}: two of its pandas categories are the same")


def _columns(
    booster: BoosterText, specification: FeatureSpecification, names: Mapping[str, str]
) -> tuple[int, ...]:
    places = {name: place for place, name in enumerate(specification.feature_names)}
    wanted = [names.get(name, name) for name in booster.feature_names]
    unknown = [name for name in wanted if name not in places]
    if unknown:
        raise ModelMismatch(
            f"specification {specification.name} has no feature {', '.join(unknown)};"
            f" it has {', '.join(specification.feature_names)}"
        )
    if len(set(wanted)) != len(wanted):
        twice = sorted({name for name in wanted if wanted.count(name) > 1})
        raise ModelMismatch(f"two features of the booster are taken for {', '.join(twice)}")
    return tuple(places[name] for name in wanted)


def _with_golden_rows(
    content: ModelContent,
    booster: BoosterText,
    calibration: CalibrationTable | None,
    n: int,
) -> ModelContent:
    rows = golden_rows_of(booster, content.booster_columns, len(content.feature_names), n)
    own = np.ascontiguousarray(rows[:, list(content.booster_columns)])
    scores = LoadedBooster(content.booster).scores(own)
    if content.custom_link is not None:
        scores = link_of(booster, content.custom_link).of(scores)
    if not np.isfinite(scores).all():
        raise BadModel(
            f"the booster gives {np.count_nonzero(~np.isfinite(scores))} scores of {n} that are no"
            " finite number, on values beside its own thresholds"
        )
    if calibration is not None:
        scores = calibration.of(scores)
    return msgspec.structs.replace(
        content,
        golden_rows=rows.astype("<f8").tobytes(),
        golden_scores=scores.astype("<f8").tobytes(),
    )


def golden_rows_of(
    booster: BoosterText, columns: Sequence[int], n_features: int, n: int
) -> NDArray[np.float64]:
    """Vectors, float64 (n, n_features), on and beside the booster's own thresholds.

    The first are all missing, all zero and both infinities; of the others each feature is at one
    of its thresholds or categories, next to it on either side, or missing, in a fixed pattern.
    Where leaves are linear, all lie within what was seen in training.
    """
    rows = np.zeros((n, n_features))
    for number, value in enumerate((np.nan, 0.0, np.inf, -np.inf)):
        rows[number : number + 1] = value
    for place, edges in enumerate(_edges(booster, columns, n_features)):
        if not len(edges):
            continue
        beside = [edges, np.nextafter(edges, np.inf), np.nextafter(edges, -np.inf), edges + 0.5]
        values = np.concatenate([*beside, [np.nan]])
        steps = _ROW_STEP * np.arange(max(n - 4, 0)) + _FEATURE_STEP * place
        rows[4:, place] = values[steps % len(values)]
    if booster.linear:
        _clip_to_training(rows, booster, columns)
    return rows


def _clip_to_training(
    rows: NDArray[np.float64], booster: BoosterText, columns: Sequence[int]
) -> None:
    # Linear leaves make inf - inf of infinities, which is no score to compare hosts by; and the
    # threshold that parts missing values from all numbers is the largest number there is.
    for info, place in zip(booster.feature_infos, columns, strict=False):
        span = re.fullmatch(r"\[([^:]+):([^:]+)\]", info)
        if span:
            try:
                low, high = float(span[1]), float(span[2])
            except ValueError:
                raise BadModel(f"feature_infos has {info!r}, not a range of numbers") from None
            np.clip(rows[:, place], low, high, out=rows[:, place])


def _edges(
    booster: BoosterText, columns: Sequence[int], n_features: int
) -> Sequence[NDArray[np.float64]]:
    try:
        return splits_of(booster.trees, np.array(columns, np.int64), n_features).edges
    except NotWalked:
        trees = booster.trees
        feature = np.array(columns, np.int64)[trees.feature]
        return [np.unique(trees.threshold[feature == place]) for place in range(n_features)]
