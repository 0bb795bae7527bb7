"""Fresh scores to compare served ones with: what the model itself says of a feature matrix.

For a booster that is LightGBM's own `Booster.predict`, never the walk that the scorer uses; for a
callable, the callable. All rows at once, so that following every touch costs little.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from freshscore.features.table import Floats
from freshscore.scoring.model import Model
from freshscore.scoring.serving import ServableModel

Words = NDArray[np.uint64]

_NAN_BITS = np.uint64(0x7FF8000000000000)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd
_SHIFT = np.uint64(29)


def fresh_scores(model: ServableModel) -> Callable[[Floats], Floats]:
    """A function from a matrix, float64 (n, F), to its scores, float64 (n,)."""
    if not isinstance(model, Model) or model.content.custom_link == "logistic":
        # The link of a custom objective is the model's, not LightGBM's.
        return model.predict
    from freshscore.scoring.lightgbm_door import LoadedBooster

    booster = LoadedBooster(model.content.booster)
    columns = np.array(model.content.booster_columns)
    calibration = model.calibration

    def scores(matrix: Floats) -> Floats:
        found = booster.scores(np.ascontiguousarray(matrix[:, columns]))
        return found if calibration is None else calibration.of(found)

    return scores


def raw_keys(matrix: Floats) -> Words:
    """A hash of the bits of each feature vector, uint64 (n,); all missing values are one."""
    return mixed(np.where(np.isnan(matrix), _NAN_BITS, matrix.view(np.uint64)))


def cell_keys(model: ServableModel, matrix: Floats) -> Words:
    """A hash of the cell of each feature vector, uint64 (n,); of its bits, without cells."""
    if model.forest is None:
        return raw_keys(matrix)
    return mixed(model.forest.cells(matrix).astype(np.uint64))


def same_bits(left: Floats, right: Floats) -> NDArray[np.bool_]:
    """Where two arrays of one shape have the same bits, all missing values being one."""
    missing = np.isnan(left) & np.isnan(right)
    same: NDArray[np.bool_] = missing | (left.view(np.uint64) == right.view(np.uint64))
    return same


def mixed(words: Words) -> Words:
    """A hash of each row of words, uint64 (n, m): uint64 (n,)."""
    # Not for adversaries: two of a million vectors share a hash once in forty million replays.
    key = np.zeros(len(words), np.uint64)
    for column in words.T:
        key ^= column
        key *= _MULTIPLIER
        key ^= key >> _SHIFT
    return key
