"""LightGBM's text is read whole or refused; objectives are served as named or refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from freshscore.config.errors import BadModel
from freshscore.scoring.booster_text import read_booster
from freshscore.scoring.forest import Forest
from freshscore.scoring.forest_splits import NotWalked
from freshscore.scoring.objectives import link_of
from tests.scoring.random_boosters import fitted, random_matrix, trained

_QUIET = {"verbosity": -1, "num_threads": 1}


def test_what_is_read_is_what_lightgbm_holds(rng: np.random.Generator) -> None:
    one = trained("sorted categories", rng)
    parsed = read_booster(one.text)
    held = one.booster.trees_to_dataframe()
    splits = held[held["split_feature"].notna()]
    leaves = held[held["split_feature"].isna()]
    assert parsed.feature_names == tuple(one.booster.feature_name())
    assert parsed.trees.n_trees == one.booster.num_trees()
    assert len(parsed.trees.feature) == len(splits)
    assert sorted(parsed.trees.leaf_value) == sorted(leaves["value"])
    assert parsed.trees.leaf_count.sum() == leaves["count"].sum()


def test_a_damaged_text_is_refused_or_harmless(rng: np.random.Generator) -> None:
    """Kernels check nothing, so whatever is not refused must be a whole forest."""
    text = trained("one-hot categories", rng).text
    body = text.index("\nend of trees") + 20
    refused = 0
    for _ in range(400):
        damaged = list(text)
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.integers(0, body))
            damaged[place] = str(rng.choice(list("0123456789 -=.\ne")))
        try:
            parsed = read_booster("".join(damaged))
            forest = Forest(parsed, link_of(parsed))
        except (BadModel, NotWalked):
            refused += 1
            continue
        rows = rng.normal(size=(20, forest.n_features))
        for row in rows:
            box = forest.box(row)
            assert box.contains(box.cells)
        assert len(forest.scores(rows)) == 20
    assert refused > 100


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_text_cut_short_is_refused(share: float, rng: np.random.Generator) -> None:
    text = trained("plain", rng).text
    with pytest.raises(BadModel):
        read_booster(text[: int(share * text.index("\nend of trees"))])


@pytest.mark.parametrize(
    ("wrong", "right", "said"),
    [
        ("version=v9", "version=v4", "version"),
        ("left_child=9999", "left_child=", "children|form one tree|values"),
        ("split_feature=9999 ", "split_feature=", "outside|values"),
        ("num_leaves=x", "num_leaves=", "num_leaves"),
        ("threshold=nan ", "threshold=", "number|values"),
    ],
)
def test_the_message_names_the_key(
    wrong: str, right: str, said: str, rng: np.random.Generator
) -> None:
    with pytest.raises(BadModel, match=said):
        read_booster(trained("plain", rng).text.replace(right, wrong, 1))


@pytest.mark.parametrize("objective", ["multiclass", "multiclassova"])
def test_multi_class_is_refused_by_name(objective: str, rng: np.random.Generator) -> None:
    matrix, _ = random_matrix(rng, 200, 3)
    parameters = {**_QUIET, "objective": objective, "num_class": 3}
    one = fitted(matrix, rng.integers(0, 3, 200), [], parameters, 2)
    with pytest.raises(BadModel, match=f"multi-class.*{objective}"):
        link_of(read_booster(one.text))


def test_an_unserved_objective_is_refused_by_name(rng: np.random.Generator) -> None:
    matrix, _ = random_matrix(rng, 200, 3)
    parameters = {**_QUIET, "objective": "cross_entropy_lambda"}
    one = fitted(matrix, rng.random(200) < 0.5, [], parameters, 2)
    with pytest.raises(BadModel, match="cross_entropy_lambda"):
        link_of(read_booster(one.text))


def test_a_custom_objective_needs_a_link(rng: np.random.Generator) -> None:
    def own(scores: np.ndarray, data: object) -> tuple[np.ndarray, np.ndarray]:
        return scores - labels, np.ones_like(scores)

    matrix, _ = random_matrix(rng, 200, 3)
    labels = (rng.random(200) < 0.5).astype(float)
    one = fitted(matrix, labels, [], {**_QUIET, "objective": own}, 5)
    parsed = read_booster(one.text)
    with pytest.raises(BadModel, match=r"custom objective.*link"):
        link_of(parsed)
    raw = np.asarray(one.booster.predict(matrix, raw_score=True))
    assert (Forest(parsed, link_of(parsed, "identity")).scores(matrix) == raw).all()
    logistic = link_of(parsed, "logistic")
    assert (Forest(parsed, logistic).scores(matrix) == logistic.of(raw)).all()
    assert np.allclose(logistic.of(raw), 1 / (1 + np.exp(-raw)))
