"""A forest gives LightGBM's bits; one cell, one score; inside a box every tree keeps its leaf."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from freshscore.scoring import forest_layout as at
from freshscore.scoring.booster_text import read_booster
from freshscore.scoring.forest import MASK_BYTES_LIMIT, Forest
from freshscore.scoring.forest_splits import NotWalked
from freshscore.scoring.objectives import link_of
from tests.scoring.random_boosters import (
    KINDS,
    Matrix,
    Trained,
    fitted,
    probes,
    random_matrix,
    same_bits,
    trained,
    with_its_sizes,
)

_BOOSTERS_OF_A_KIND = 3
_QUIET = {"verbosity": -1, "num_threads": 1}


@pytest.mark.parametrize("mask_bytes_limit", [MASK_BYTES_LIMIT, 0], ids=["masks", "walk only"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_is_that_of_predict(
    kind: str, mask_bytes_limit: int, rng: np.random.Generator
) -> None:
    for _ in range(_BOOSTERS_OF_A_KIND):
        one = trained(kind, rng)
        forest = one.forest(mask_bytes_limit)
        rows = probes(rng, one, forest, 300)
        expected = np.asarray(one.booster.predict(rows))
        raw = np.asarray(one.booster.predict(rows, raw_score=True))
        if kind == "random forest":
            raw /= one.booster.num_trees()  # LightGBM gives the sum, and links the mean
        assert same_bits(forest.scores(rows), expected).all()
        assert same_bits(forest.raw_scores(rows), raw).all()


def test_the_comparison_can_fail(rng: np.random.Generator) -> None:
    """Canary: one leaf that is off by one bit is seen."""
    one = trained("plain", rng)
    text = one.text
    begin = text.index("leaf_value=") + len("leaf_value=")
    end = text.index("\n", begin)
    values = [float(value) for value in text[begin:end].split()]
    nudged = " ".join(repr(float(np.nextafter(value, np.inf))) for value in values)
    parsed = read_booster(with_its_sizes(text[:begin] + nudged + text[end:]))
    raw = Forest(parsed, link_of(parsed)).raw_scores(one.matrix)
    assert not same_bits(raw, np.asarray(one.booster.predict(one.matrix, raw_score=True))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_cell_has_one_score(kind: str, rng: np.random.Generator) -> None:
    """Vectors redrawn within their cells score the same bits, as LightGBM computes them."""
    one = trained(kind, rng)
    forest = one.forest()
    rows = probes(rng, one, forest, 300)
    cells = forest.cells(rows)
    again = _vectors_of(forest, cells, rng)
    kept = (forest.cells(again) == cells).all(axis=1)
    assert np.count_nonzero(kept) > 50
    raw = np.asarray(one.booster.predict(rows, raw_score=True))
    raw_again = np.asarray(one.booster.predict(again, raw_score=True))
    assert same_bits(raw, raw_again)[kept].all()


def _vectors_of(forest: Forest, cells: NDArray[np.uint16], rng: np.random.Generator) -> Matrix:
    """For each row of cells a vector that lies in them, but for cells too narrow for a draw."""
    vectors = np.empty(cells.shape)
    for f, edges in enumerate(forest.splits.edges):
        own = cells[:, f].astype(np.int64)
        if forest.splits.kind[f] == at.KIND_CATEGORICAL:
            values = np.append(edges, -1.0)[np.minimum(own, len(edges))]
            values = np.where(values >= 0, values + rng.random(len(own)) * 0.9, values)
        else:
            # A cell holds its upper threshold; half of the draws lie close above its lower one.
            low = np.nextafter(np.concatenate([[-1e301], edges]), np.inf)
            high = np.append(edges, 1e301)
            place = np.minimum(own, len(edges))
            values = np.where(rng.random(len(own)) < 0.5, low[place], high[place])
        values = np.where(own == at.ZERO_CELL, 0.0, values)
        vectors[:, f] = np.where(own == at.NAN_CELL, np.nan, values)
    return vectors


@pytest.mark.parametrize("kind", KINDS)
def test_inside_a_box_every_tree_keeps_its_leaf(kind: str, rng: np.random.Generator) -> None:
    for mask_bytes_limit in (MASK_BYTES_LIMIT, 0):
        one = trained(kind, rng)
        forest = one.forest(mask_bytes_limit)
        for row in probes(rng, one, forest, 8):
            box = forest.box(row)
            assert box.contains(box.cells)
            low, high = box.lowest.astype(np.int64), box.highest.astype(np.int64)
            untested = (low == 0) & (high == at.ANY_CELL)
            top = np.where(untested, forest.splits.counts, high)
            drawn = rng.integers(low, top + 1, (60, forest.n_features))
            # A feature that no split on the way tests may also be missing.
            missing = untested & (rng.random(drawn.shape) < 0.2)
            vectors = _vectors_of(forest, drawn.astype(np.uint16), rng)
            vectors[missing] = np.nan
            inside = box.contains(forest.cells(vectors))
            raw = np.asarray(one.booster.predict(vectors, raw_score=True))
            if kind == "random forest":
                raw /= one.booster.num_trees()
            assert np.count_nonzero(inside) > 0
            assert same_bits(raw, np.full(60, box.raw))[inside].all()
            assert (one.reached(vectors) == one.reached(row[np.newaxis]))[inside].all()


@pytest.mark.parametrize("kind", KINDS)
def test_just_outside_a_box_some_tree_changes_its_leaf(kind: str, rng: np.random.Generator) -> None:
    """A box is as large as it can be, single categories and missing values aside."""
    one = trained(kind, rng)
    forest = one.forest()
    met = 0
    for row in probes(rng, one, forest, 20):
        box = forest.box(row)
        outside = _just_outside(forest, box.cells, box.lowest, box.highest)
        if not len(outside):
            continue
        vectors = _vectors_of(forest, outside, rng)
        exact = (forest.cells(vectors) == outside).all(axis=1)
        changed = (one.reached(vectors) != one.reached(row[np.newaxis])).any(axis=1)
        assert changed[exact].all()
        met += int(np.count_nonzero(exact))
    numbers = forest.splits.kind != at.KIND_CATEGORICAL
    assert met > 0 or not forest.splits.counts[numbers].any()


def _just_outside(
    forest: Forest,
    cells: NDArray[np.uint16],
    lowest: NDArray[np.uint16],
    highest: NDArray[np.uint16],
) -> NDArray[np.uint16]:
    """The cells, with one number moved one step beyond an end of its range."""
    rows = []
    for f, count in enumerate(forest.splits.counts):
        number = forest.splits.kind[f] != at.KIND_CATEGORICAL and cells[f] <= count
        for beyond in (int(lowest[f]) - 1, int(highest[f]) + 1):
            if number and 0 <= beyond <= count:
                row = cells.copy()
                row[f] = beyond
                rows.append(row)
    return np.array(rows, np.uint16).reshape(len(rows), len(cells))


def test_saved_after_early_stopping(rng: np.random.Generator) -> None:
    import lightgbm

    matrix, categorical = random_matrix(rng, 600, 5)
    labels = rng.random(600) < 0.5
    data = lightgbm.Dataset(
        matrix[:400],
        labels[:400].astype(float),
        categorical_feature=categorical,
        free_raw_data=False,
    )
    held_back = data.create_valid(matrix[400:], labels[400:].astype(float))
    booster = lightgbm.train(
        {**_QUIET, "objective": "binary", "metric": "auc"},
        data,
        200,
        valid_sets=[held_back],
        callbacks=[lightgbm.early_stopping(5, verbose=False)],
    )
    one = Trained(booster, booster.model_to_string(), matrix)
    forest = one.forest()
    assert read_booster(one.text).trees.n_trees == booster.best_iteration < 200
    rows = probes(rng, one, forest, 300)
    assert same_bits(forest.scores(rows), np.asarray(booster.predict(rows))).all()


def test_constant_trees_and_unused_features(rng: np.random.Generator) -> None:
    """Nothing can be split: one leaf, one cell, and a box that is everything."""
    matrix = np.ones((200, 3))
    one = fitted(matrix, rng.random(200) < 0.3, [], {**_QUIET, "objective": "binary"}, 5)
    forest = one.forest()
    rows = rng.normal(size=(50, 3))
    rows[0] = np.nan
    assert same_bits(forest.scores(rows), np.asarray(one.booster.predict(rows))).all()
    assert not forest.cells(rows).any()
    box = forest.box(rows[0])
    assert (box.lowest == 0).all()
    assert (box.highest == at.ANY_CELL).all()


@pytest.mark.parametrize("features", [31, 33, 70])
def test_any_number_of_features(features: int, rng: np.random.Generator) -> None:
    """Vectors shorter and longer than the lanes in which boxes are kept."""
    matrix, categorical = random_matrix(rng, 600, features)
    labels = np.nan_to_num(matrix[:, features - 1]) > np.nanmedian(matrix[:, features - 1])
    labels ^= rng.random(600) < 0.2
    one = fitted(matrix, labels, categorical, {**_QUIET, "objective": "binary"}, 20)
    forest = one.forest()
    rows = probes(rng, one, forest, 200)
    assert same_bits(forest.scores(rows), np.asarray(one.booster.predict(rows))).all()
    for row in rows[:20]:
        box = forest.box(row)
        outside = _just_outside(forest, box.cells, box.lowest, box.highest)
        if not len(outside):
            continue
        vectors = _vectors_of(forest, outside, rng)
        exact = (forest.cells(vectors) == outside).all(axis=1)
        changed = (one.reached(vectors) != one.reached(row[np.newaxis])).any(axis=1)
        assert changed[exact].all()


def test_any_number_of_slots(rng: np.random.Generator) -> None:
    """The bits do not depend on how many leaves have a slot, nor on counts of training rows."""
    matrix = rng.normal(size=(3_000, 4))
    labels = (np.sin(4 * matrix).sum(axis=1) > 0) ^ (rng.random(3_000) < 0.1)
    settings = {**_QUIET, "objective": "binary", "num_leaves": 90, "min_data_in_leaf": 5}
    one = fitted(matrix, labels, [], settings, 30)
    rows = probes(rng, one, one.forest(), 200)
    expected = np.asarray(one.booster.predict(rows))
    unknown_counts = with_its_sizes(one.text.replace("leaf_count=", "leaf_count_unknown="))
    met = set()
    for text in (one.text, unknown_counts):
        parsed = read_booster(text)
        for limit in (0, 80_000, 160_000, 320_000, MASK_BYTES_LIMIT):
            forest = Forest(parsed, link_of(parsed), mask_bytes_limit=limit)
            assert forest.image.mask_bytes <= limit
            assert same_bits(forest.scores(rows), expected).all()
            met.add(forest.image.slots)
    assert met == {0, 16, 32, 64}


def test_places_of_features_in_the_vector(rng: np.random.Generator) -> None:
    """A booster may have its features in another order than the vector, and use only some."""
    one = trained("plain", rng)
    n = one.matrix.shape[1]
    columns = rng.permutation(n + 3)[:n]
    parsed = read_booster(one.text)
    forest = Forest(parsed, link_of(parsed), columns=columns, n_features=n + 3)
    rows = probes(rng, one, one.forest(), 200)
    vectors = rng.normal(size=(200, n + 3))
    vectors[:, columns] = rows
    assert same_bits(forest.scores(vectors), np.asarray(one.booster.predict(rows))).all()


def test_linear_leaves_are_not_walked(rng: np.random.Generator) -> None:
    matrix = rng.normal(size=(300, 3))
    one = fitted(
        matrix, matrix[:, 0] > 0, [], {**_QUIET, "objective": "binary", "linear_tree": True}, 3
    )
    with pytest.raises(NotWalked, match="linear"):
        one.forest()


@pytest.mark.parametrize("zero_as_missing", [False, True])
def test_training_continued_with_missing_values(
    zero_as_missing: bool, rng: np.random.Generator
) -> None:
    """Splits that know no missing values and splits that do, on one feature."""
    for _ in range(4):
        matrix = rng.normal(size=(400, 3))
        matrix[rng.random((400, 3)) < 0.2] = 0.0
        labels = (matrix[:, 0] > rng.normal()) ^ (rng.random(400) < 0.2)
        settings = {**_QUIET, "objective": "binary", "max_bin": 31}
        first = fitted(matrix, labels, [], settings, 6)
        matrix[rng.random((400, 3)) < 0.3] = np.nan
        settings["zero_as_missing"] = zero_as_missing
        one = fitted(matrix, labels, [], settings, 6, init_model=first.booster)
        types = {int(d) >> 2 for d in read_booster(one.text).trees.decision}
        assert types == {0, 1 if zero_as_missing else 2}
        forest = one.forest()
        rows = probes(rng, one, forest, 200)
        assert same_bits(forest.scores(rows), np.asarray(one.booster.predict(rows))).all()


def test_zero_and_missing_that_go_opposite_ways_are_not_walked(rng: np.random.Generator) -> None:
    """Training continued under another missing type, which no order of cells can express."""
    matrix = rng.normal(size=(400, 2))
    labels = (matrix[:, 0] > 0) ^ (rng.random(400) < 0.2)
    matrix[rng.random((400, 2)) < 0.3] = np.nan
    settings = {**_QUIET, "objective": "binary", "max_bin": 31}
    first = fitted(matrix, labels, [], {**settings, "zero_as_missing": True}, 10)
    one = fitted(matrix, labels, [], settings, 10, init_model=first.booster)
    with pytest.raises(NotWalked, match="opposite"):
        one.forest()


def test_a_matrix_of_another_shape_or_type_is_refused(rng: np.random.Generator) -> None:
    forest = trained("plain", rng).forest()
    wrongs: list[NDArray[Any]] = [
        np.zeros((2, forest.n_features + 1)),
        np.zeros(forest.n_features),
        np.zeros((2, forest.n_features), np.float32),
    ]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="float64"):
            forest.scores(wrong)


def test_rows_may_lie_apart_in_memory(rng: np.random.Generator) -> None:
    one = trained("plain", rng)
    forest = one.forest()
    rows = np.asfortranarray(probes(rng, one, forest, 50))
    assert same_bits(forest.scores(rows[::2]), np.asarray(one.booster.predict(rows[::2]))).all()
    assert len(forest.scores(rows[:0])) == 0
