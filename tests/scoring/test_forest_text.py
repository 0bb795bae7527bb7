"""LightGBM's text is read whole or refused; objectives are served as named or refused by name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from freshscore.config.errors import BadModel
from freshscore.scoring.booster_text import read_booster
from freshscore.scoring.forest import Forest
from freshscore.scoring.forest_splits import NotWalked
from freshscore.scoring.objectives import check_leaves, link_of
from tests.scoring.random_boosters import (
    Trained,
    fitted,
    random_matrix,
    trained,
    with_its_sizes,
)

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
    changed = trained("plain", rng).text.replace(right, wrong, 1)
    with pytest.raises(BadModel, match=said):
        read_booster(with_its_sizes(changed))


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("\nleaf_value=", "\nleaf_value=0", r"tree 0 is (\d+) bytes long, .*tree_sizes says (\d+)"),
        ("\nTree=0\n", "\nTree=77\n", "tree 0 is .*bytes long"),
        ("\nTree=0\n", "\nTree=7\n", "tree 0 is numbered '7'"),
        ("\ntree_sizes=", "\ntree_sizes=1 ", "tree_sizes has 4 lengths for 3 trees"),
        ("\ntree_sizes=", "\ntree_lengths=", "tree_sizes has 0 lengths for 3 trees"),
        ("\nsplit_gain=", "\nsplit_gain:", "each key=value"),
        ("\nsplit_gain=", "\n=split_gai=", "each key=value"),
    ],
)
def test_a_tree_of_another_length_or_number_is_refused(
    right: str, wrong: str, said: str, rng: np.random.Generator
) -> None:
    """LightGBM goes by these lengths, and ends the process where there is no tree."""
    matrix, _ = random_matrix(rng, 300, 3)
    text = fitted(matrix, matrix[:, 0] > 0, [], {**_QUIET, "objective": "binary"}, 3).text
    with pytest.raises(BadModel, match=said):
        read_booster(text.replace(right, wrong, 1))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("leaf_features", "99", "leaf_features is outside the 3 features"),
        ("leaf_features", "", "leaf_features has"),
        ("leaf_coeff", "", "leaf_coeff has"),
        ("leaf_coeff", "nan", "leaf_coeff is not finite"),
        ("leaf_const", "inf", "leaf_const or"),
        ("num_features", "-1", "num_features is below 0"),
    ],
)
def test_linear_leaves_are_whole(key: str, value: str, said: str, rng: np.random.Generator) -> None:
    """LightGBM reads past the end of what is not."""

    def damaged(line: re.Match[str]) -> str:
        return f"{key}={' '.join([value, *line[1].split()[1:]])}\n" if line[1].strip() else line[0]

    text = re.sub(rf"{key}=(.*)\n", damaged, _linear(rng).text)
    with pytest.raises(BadModel, match=said):
        read_booster(with_its_sizes(text))


def test_no_damaged_text_ends_the_process(rng: np.random.Generator, tmp_path: Path) -> None:
    """Whatever LightGBM is given, it answers or refuses: tried in a process of its own."""
    one = _linear(rng)
    texts = []
    for _ in range(150):
        damaged = list(one.text)
        place = int(rng.integers(0, one.text.index("\nend of trees")))
        damaged[place] = str(rng.choice(list("0123456789 -=.ex\n")))
        texts.append("".join(damaged))
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(texts))
    code = f"""
import json, pathlib
import numpy as np
from freshscore.config.errors import BadModel
from freshscore.scoring.booster_text import read_booster
from freshscore.scoring.lightgbm_door import LoadedBooster
for text in json.loads(pathlib.Path({str(file)!r}).read_text()):
    try:
        read_booster(text)
        print("read", len(LoadedBooster(text).scores(np.zeros((9, 3)))))
    except BadModel as problem:
        print("refused")
"""
    found = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-500:]
    assert found.stdout.count("refused\n") > 30
    assert found.stdout.count("read 9\n") > 30


def _linear(rng: np.random.Generator) -> Trained:
    matrix = rng.normal(size=(300, 3))
    settings = {**_QUIET, "objective": "binary", "linear_tree": True, "num_leaves": 6}
    return fitted(matrix, matrix[:, 0] > 0, [], settings, 3)


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


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "x", ""])
def test_a_parameter_of_an_objective_is_a_finite_number(
    value: str, rng: np.random.Generator
) -> None:
    text = trained("plain", rng).text.replace("sigmoid:1", f"sigmoid:{value}", 1)
    with pytest.raises(BadModel, match=f"sigmoid is '{value}'"):
        link_of(read_booster(text))


@pytest.mark.parametrize("kind", ["regression", "square root"])
def test_leaves_that_add_up_to_no_number_are_refused(kind: str, rng: np.random.Generator) -> None:
    parsed = read_booster(trained(kind, rng).text)
    link = link_of(parsed)
    check_leaves(parsed, link)
    values = np.full_like(parsed.trees.leaf_value, -1.7e308 if kind == "regression" else 1e160)
    trees = msgspec.structs.replace(parsed.trees, leaf_value=values)
    doubled = msgspec.structs.replace(
        trees,
        leaf_value=np.tile(values, 2),
        leaf_start=np.concatenate([trees.leaf_start, trees.leaf_start[1:] + len(values)]),
    )
    with pytest.raises(BadModel, match="leaves add up to"):
        check_leaves(msgspec.structs.replace(parsed, trees=doubled), link)


def test_a_custom_objective_needs_a_link(rng: np.random.Generator) -> None:
    def own(scores: np.ndarray, data: object) -> tuple[np.ndarray, np.ndarray]:
        return scores - labels, np.ones_like(scores)

    matrix, _ = random_matrix(rng, 200, 3)
    labels = (rng.random(200) < 0.5).astype(float)
    one = fitted(matrix, labels, [], {**_QUIET, "objective": own}, 5)
    parsed = read_booster(one.text)
    with pytest.raises(BadModel, match=r"custom objective.*link"):
        link_of(parsed)
    with pytest.raises(BadModel, match=r"objective binary; it takes no link"):
        link_of(read_booster(trained("plain", rng).text), "logistic")
    raw = np.asarray(one.booster.predict(matrix, raw_score=True))
    assert (Forest(parsed, link_of(parsed, "identity")).scores(matrix) == raw).all()
    logistic = link_of(parsed, "logistic")
    assert (Forest(parsed, logistic).scores(matrix) == logistic.of(raw)).all()
    assert np.allclose(logistic.of(raw), 1 / (1 + np.exp(-raw)))
