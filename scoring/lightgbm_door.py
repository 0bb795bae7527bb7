"""The door to LightGBM: training, scores of boosters that the walk does not cover, explanations.

Importing LightGBM costs 0.7 s, so whoever only scores with a `Forest` does not import this module.
Rule: LightGBM's errors leave here as BadModel.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import lightgbm
import numpy as np
from lightgbm.basic import _LIB, LightGBMError, _safe_call  # type: ignore[attr-defined]  # the C library has no public name; this one is in every version
from numpy.typing import NDArray

from freshscore.config.errors import BadModel
from freshscore.features.memory import address_of

# Names of LightGBM's C interface: C_API_DTYPE_FLOAT64, C_API_PREDICT_NORMAL and _RAW_SCORE.
_FLOAT64: Final = 1
_NORMAL: Final = 0
_RAW_SCORE: Final = 1
# Told the lengths of trees, LightGBM reads them in threads, where the first fault ends the process;
# without them it reads one after the other, and says the fault.
_TREE_SIZES: Final = re.compile(r"^=*tree_sizes.*\n", re.MULTILINE)


def train(
    matrix: NDArray[np.float64],
    labels: NDArray[np.bool_],
    *,
    feature_names: Sequence[str],
    categorical: Sequence[int] = (),
    parameters: Mapping[str, Any],
    num_trees: int,
    after_trees: Callable[[int], None] | None = None,
) -> str:
    """Train a booster and return its text.

    matrix: (n, len(feature_names)), NaN where missing; labels: (n,); categorical: the features that
    hold category numbers. after_trees: told how many more trees there are.
    Raises BadModel for parameters that LightGBM refuses.
    """
    settings = {"verbosity": -1, **parameters}
    told = [] if after_trees is None else [lambda _: after_trees(1)]
    try:
        data = lightgbm.Dataset(
            matrix,
            labels.astype(np.float64),
            feature_name=list(feature_names),
            categorical_feature=list(categorical),
            params=settings,
        )
        text: str = lightgbm.train(
            settings, data, num_boost_round=num_trees, callbacks=told
        ).model_to_string()
    except LightGBMError as problem:
        raise BadModel(f"LightGBM refuses to train: {problem}") from problem
    return text


class LoadedBooster:
    """A booster inside LightGBM; raises BadModel for a text that it cannot read."""

    def __init__(self, text: str, num_threads: int = 1) -> None:
        try:
            self._booster = lightgbm.Booster(model_str=_TREE_SIZES.sub("", text))
        except LightGBMError as problem:
            raise BadModel(f"LightGBM cannot read the booster: {problem}") from problem
        n_read, n_trees = self._booster.num_trees(), text.count("\nTree=")
        if n_read != n_trees:
            raise BadModel(f"LightGBM reads {n_read} of the booster's {n_trees} trees")
        self._num_threads = num_threads
        self.n_features = self._booster.num_feature()

    def scores(self, matrix: NDArray[np.float64], *, raw: bool = False) -> NDArray[np.float64]:
        """Scores of each row, float64 (n,); raw: before the objective's link."""
        return self._predict(matrix, raw_score=raw)

    def contributions(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """What each feature adds to the raw score of each row, the expected value in the last
        column (n, n_features + 1). Source: Lundberg et al., "TreeSHAP" (2018)."""
        return self._predict(matrix, pred_contrib=True)

    def _predict(self, matrix: NDArray[np.float64], **how: bool) -> NDArray[np.float64]:
        if len(matrix) == 0:
            return np.empty((0, self.n_features + 1) if how.get("pred_contrib") else 0)
        try:
            result = self._booster.predict(matrix, num_threads=self._num_threads, **how)
        except LightGBMError as problem:
            raise BadModel(f"LightGBM refuses: {problem}") from problem
        return np.asarray(result, np.float64)

    def fast_row(self, *, raw: bool = False) -> FastRow:
        """LightGBM's prepared call for one row at a time."""
        return FastRow(self._booster, raw=raw)


class FastRow:
    """LightGBM's single-row call, prepared once; for one thread, as `features` is its only input.

    features: float64 (n_features,), filled before each call.
    """

    def __init__(self, booster: lightgbm.Booster, *, raw: bool = False) -> None:
        self._booster = booster
        self.features = np.zeros(booster.num_feature())
        self._score = ctypes.c_double()
        self._length = ctypes.c_int64()
        self._prepared = ctypes.c_void_p()
        code = _LIB.LGBM_BoosterPredictForMatSingleRowFastInit(
            booster._handle,
            _RAW_SCORE if raw else _NORMAL,
            0,
            -1,
            _FLOAT64,
            len(self.features),
            b"num_threads=1 verbosity=-1",
            ctypes.byref(self._prepared),
        )
        _checked(code, "prepare its call for one row")
        self._arguments = (
            self._prepared,
            ctypes.c_void_p(address_of(self.features)),
            ctypes.byref(self._length),
            ctypes.byref(self._score),
        )
        self._call = _LIB.LGBM_BoosterPredictForMatSingleRowFast

    def score(self) -> float:
        """The score of `features`."""
        code = self._call(*self._arguments)
        if code:
            _checked(code, "score a row")
        return self._score.value

    def __del__(self) -> None:
        if self._prepared.value:
            _LIB.LGBM_FastConfigFree(self._prepared)


def _checked(code: int, to_do: str) -> None:
    try:
        _safe_call(code)
    except LightGBMError as problem:
        raise BadModel(f"LightGBM failed to {to_do}: {problem}") from problem
