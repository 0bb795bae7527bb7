"""From thresholds and category sets to cells: what each split says about small integers.

Source of the rules: LightGBM's `Tree::NumericalDecision` and `Tree::CategoricalDecision` (tree.h),
and its predictor, which reads every value within ZERO_WITHIN of 0 as 0:
a number goes left if it is at most the threshold; a missing value counts as 0 unless the split's
missing type is NaN, and then goes the default way; under missing type zero, so does 0.
A category goes left if its number, cut towards 0, is in the set; everything else goes right.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshscore.scoring import forest_layout as at
from freshscore.scoring.booster_text import (
    CATEGORICAL,
    DEFAULT_LEFT,
    MISSING_NAN,
    MISSING_SHIFT,
    MISSING_ZERO,
    Trees,
)


class NotWalked(Exception):
    """Why the walk does not cover a booster; LightGBM's own call serves it then."""


class Splits(msgspec.Struct, frozen=True):
    """The splits of all trees, in cells.

    edges: for each feature of the vector its ascending thresholds, or the numbers of the categories
    that any split names (float64).
    kind, nan_cell: int64 (n_features,), what SEARCH_KIND and SEARCH_NAN of the image hold.
    feature: int64 (n_nodes,), a feature of the vector. is_category, nan_left, zero_left: bool.
    last_left: int64, numeric nodes: the highest cell that goes left.
    set_word: int64, categorical nodes: the first word of their set of cells in `sets` (uint64).
    """

    edges: tuple[NDArray[np.float64], ...]
    kind: NDArray[np.int64]
    nan_cell: NDArray[np.int64]
    feature: NDArray[np.int64]
    is_category: NDArray[np.bool_]
    nan_left: NDArray[np.bool_]
    zero_left: NDArray[np.bool_]
    last_left: NDArray[np.int64]
    set_word: NDArray[np.int64]
    sets: NDArray[np.uint64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Thresholds or categories of each feature, int64 (n_features,)."""
        return np.array([len(edges) for edges in self.edges], np.int64)


def splits_of(trees: Trees, columns: NDArray[np.int64], n_features: int) -> Splits:
    """The splits of `trees` in cells; `columns` has each booster feature's place in the vector.

    Raises NotWalked.
    """
    feature = columns[trees.feature]
    is_category = (trees.decision & CATEGORICAL) != 0
    missing = trees.decision >> MISSING_SHIFT
    default_left = (trees.decision & DEFAULT_LEFT) != 0
    zero_is_left = trees.threshold >= 0.0

    telling_nan = _features_with(~is_category & (missing == MISSING_NAN), feature, n_features)
    telling_zero = _features_with(~is_category & (missing == MISSING_ZERO), feature, n_features)
    by_category = _features_with(is_category, feature, n_features)
    if np.any(by_category & _features_with(~is_category, feature, n_features)):
        raise NotWalked("a feature is split both as a number and as a category")

    zero_left = np.where(missing == MISSING_ZERO, default_left, zero_is_left)
    nan_left = np.where(missing == MISSING_NAN, default_left, zero_left)
    opposed = ~is_category & (telling_nan & telling_zero)[feature] & zero_left & ~nan_left
    if np.any(opposed):
        raise NotWalked("on one feature a zero and a missing value go opposite ways")

    members = _members(trees)
    edges = _edges(trees, feature, is_category, members, n_features)
    counts = np.array([len(own) for own in edges])
    if np.any(counts > at.MAX_THRESHOLDS):
        raise NotWalked(f"a feature has {counts.max()} thresholds of {at.MAX_THRESHOLDS}")
    set_word, sets = _cell_sets(trees, feature, is_category, members, edges)
    zero_cell = np.array([np.searchsorted(own, 0.0, side="left") for own in edges])
    nan_cell = np.where(telling_zero, at.ZERO_CELL, np.where(by_category, counts, zero_cell))
    return Splits(
        edges=edges,
        kind=np.where(by_category, at.KIND_CATEGORICAL, telling_zero * at.KIND_ZERO),
        nan_cell=np.where(telling_nan, at.NAN_CELL, nan_cell),
        feature=feature,
        is_category=is_category,
        nan_left=nan_left & (telling_nan | telling_zero)[feature],
        zero_left=zero_left & telling_zero[feature],
        last_left=_cells_of_thresholds(trees, feature, is_category, edges),
        set_word=set_word,
        sets=sets,
    )


def _features_with(
    nodes: NDArray[np.bool_], feature: NDArray[np.int64], n_features: int
) -> NDArray[np.bool_]:
    return np.bincount(feature[nodes], minlength=n_features) > 0


def _members(trees: Trees) -> list[NDArray[np.int64]]:
    """The category numbers in each set, ascending."""
    bits = np.unpackbits(trees.set_bits.astype("<u4").view(np.uint8), bitorder="little")
    edges = 32 * trees.set_word
    return [np.flatnonzero(bits[a:b]) for a, b in pairwise(edges)]


def _set_of_node(trees: Trees) -> NDArray[np.int64]:
    """Number of the set of each categorical node, among all trees' sets."""
    number = np.where(trees.decision & CATEGORICAL, trees.threshold, 0.0).astype(np.int64)
    return number + np.repeat(trees.set_start[:-1], np.diff(trees.node_start))


def _edges(
    trees: Trees,
    feature: NDArray[np.int64],
    is_category: NDArray[np.bool_],
    members: list[NDArray[np.int64]],
    n_features: int,
) -> tuple[NDArray[np.float64], ...]:
    order = np.argsort(feature, kind="stable")
    begins = np.searchsorted(feature[order], np.arange(n_features + 1))
    set_of_node = np.where(is_category, _set_of_node(trees), 0)

    def own(nodes: NDArray[np.int64]) -> NDArray[np.float64]:
        if len(nodes) and is_category[nodes[0]]:
            named = [members[number] for number in np.unique(set_of_node[nodes])]
            return np.unique(np.concatenate(named)).astype(np.float64)
        # A threshold of -0.0 is one of 0.0, and must not be counted beside it.
        return np.unique(trees.threshold[nodes] + 0.0)

    return tuple(own(order[a:b]) for a, b in pairwise(begins))


def _cells_of_thresholds(
    trees: Trees,
    feature: NDArray[np.int64],
    is_category: NDArray[np.bool_],
    edges: tuple[NDArray[np.float64], ...],
) -> NDArray[np.int64]:
    cells = np.zeros(len(feature), np.int64)
    for number, own in enumerate(edges):
        nodes = np.flatnonzero((feature == number) & ~is_category)
        cells[nodes] = np.searchsorted(own, trees.threshold[nodes], side="left")
    return cells


def _cell_sets(
    trees: Trees,
    feature: NDArray[np.int64],
    is_category: NDArray[np.bool_],
    members: list[NDArray[np.int64]],
    edges: tuple[NDArray[np.float64], ...],
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Each categorical node's set as bits over its feature's cells; the last cell is in none."""
    nodes = np.flatnonzero(is_category)
    words = [len(edges[feature[node]]) // 64 + 1 for node in nodes]
    set_word = np.zeros(len(feature), np.int64)
    set_word[nodes] = np.cumsum([0, *words])[:-1]
    bits = np.zeros(64 * sum(words), np.uint8)
    set_of_node = _set_of_node(trees)
    for node in nodes:
        cells = np.searchsorted(edges[feature[node]], members[set_of_node[node]])
        bits[64 * set_word[node] + cells] = 1
    return set_word, np.packbits(bits, bitorder="little").view("<u8").astype(np.uint64)
