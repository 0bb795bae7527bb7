"""LightGBM's own calls, for boosters that the walk does not cover."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from freshscore.config.errors import BadModel
from freshscore.scoring.lightgbm_door import LoadedBooster, train
from tests.scoring.random_boosters import KINDS, fitted, probes, same_bits, trained

_QUIET = {"verbosity": -1, "num_threads": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_the_fast_call_has_the_bits_of_predict(kind: str, rng: np.random.Generator) -> None:
    one = trained(kind, rng)
    rows = probes(rng, one, one.forest(), 100)
    loaded = LoadedBooster(one.text)
    expected = np.asarray(one.booster.predict(rows))
    assert same_bits(loaded.scores(rows), expected).all()
    fast = loaded.fast_row()
    for row, score in zip(rows, expected, strict=True):
        fast.features[:] = row
        assert fast.score() == score


def test_the_fast_call_serves_linear_trees(rng: np.random.Generator) -> None:
    matrix = rng.normal(size=(300, 4))
    matrix[rng.random((300, 4)) < 0.1] = np.nan
    labels = np.nan_to_num(matrix[:, 0]) > 0
    one = fitted(matrix, labels, [], {**_QUIET, "objective": "binary", "linear_tree": True}, 5)
    expected = np.asarray(one.booster.predict(matrix))
    raw = np.asarray(one.booster.predict(matrix, raw_score=True))
    loaded = LoadedBooster(one.text)
    fast, fast_raw = loaded.fast_row(), loaded.fast_row(raw=True)
    for number, row in enumerate(matrix):
        fast.features[:] = fast_raw.features[:] = row
        assert fast.score() == expected[number]
        assert fast_raw.score() == raw[number]


def test_contributions_add_up_to_the_raw_score(rng: np.random.Generator) -> None:
    one = trained("plain", rng)
    loaded = LoadedBooster(one.text)
    parts = loaded.contributions(one.matrix)
    assert parts.shape == (len(one.matrix), one.matrix.shape[1] + 1)
    assert np.allclose(parts.sum(axis=1), loaded.scores(one.matrix, raw=True))
    assert loaded.contributions(one.matrix[:0]).shape == (0, one.matrix.shape[1] + 1)
    assert loaded.scores(one.matrix[:0]).shape == (0,)


def test_training_is_repeatable_whatever_the_threads(rng: np.random.Generator) -> None:
    matrix = rng.normal(size=(500, 4))
    labels = matrix[:, 0] > 0

    def trees(threads: int, seed: int) -> str:
        parameters = {
            "objective": "binary",
            "deterministic": True,
            "force_row_wise": True,
            "bagging_freq": 1,
            "bagging_fraction": 0.5,
            "num_threads": threads,
            "seed": seed,
        }
        text = train(matrix, labels, feature_names=list("abcd"), parameters=parameters, num_trees=5)
        return text[: text.index("\nparameters:")]

    assert trees(1, 3) == trees(2, 3)
    assert trees(1, 3) != trees(1, 4)


def test_refusals_are_typed(rng: np.random.Generator) -> None:
    with pytest.raises(BadModel, match="cannot read"):
        LoadedBooster("tree\nversion=v4\n")
    with pytest.raises(BadModel, match="refuses"):
        train(
            rng.normal(size=(9, 1)),
            np.zeros(9, np.bool_),
            feature_names=["a"],
            parameters={"objective": "unheard of"},
            num_trees=1,
        )


def test_every_refusal_of_lightgbm_is_typed(rng: np.random.Generator) -> None:
    matrix = rng.normal(size=(300, 3))
    settings = {**_QUIET, "objective": "binary", "linear_tree": True}
    one = fitted(matrix, matrix[:, 0] > 0, [], settings, 2)
    loaded = LoadedBooster(one.text)
    with pytest.raises(BadModel, match="linear trees"):
        loaded.contributions(matrix)
    with pytest.raises(BadModel, match="number of features"):
        loaded.scores(matrix[:, :2])
    # Behind an empty line LightGBM looks for no more trees.
    cut = one.text.replace("\nleaf_weight=", "\n\nleaf_weight=", 1)
    with pytest.raises(BadModel, match="LightGBM"):
        LoadedBooster(cut)


def test_scoring_with_a_forest_does_not_import_lightgbm() -> None:
    """Its import costs 0.7 s, which an embedded scorer does not have to pay."""
    code = "import sys, freshscore.scoring.model; sys.exit('lightgbm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
