"""LightGBM's text of a booster, read into flat arrays without LightGBM.

Source: the format that `Booster.model_to_string()` writes (versions v3 and v4 of it): a header of
`key=value` lines, one block of them for each tree, a section of parameters, one JSON line of the
categories that pandas knew. All trees of the text count: a text saved after early stopping holds
the best iterations only.

Rule: what leaves here is whole: every node and leaf of a tree hangs in it exactly once, every
index is in range, every tree has its number and is as long as the header says. Anything else raises
BadModel, naming the tree and the key: LightGBM itself checks little of it, and reads past the end
or ends the process where the text is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshscore.config.errors import BadModel
from freshscore.features.compiled import kernel

CATEGORICAL: Final = 1
DEFAULT_LEFT: Final = 2
MISSING_SHIFT: Final = 2
MISSING_ZERO: Final = 1
MISSING_NAN: Final = 2

# LightGBM keeps node and leaf numbers in 32 bits with a sign.
_MAX_LEAVES: Final = 2**31 - 1
_VERSIONS: Final = ("v3", "v4")
_TREE: Final = "\nTree="
# LightGBM reads so many lines of a tree, and takes what follows for the end of all trees.
_MAX_LINES: Final = 22

Key = Literal[
    "split_feature", "threshold", "decision_type", "left_child", "right_child", "leaf_value",
    "leaf_count", "cat_boundaries", "cat_threshold",
]  # fmt: skip
Numbers = Callable[[str, Any, int | None], NDArray[Any]]


class Trees(msgspec.Struct, frozen=True):
    """All trees of a booster, one after the other.

    node_start, leaf_start, set_start: int64 (n_trees + 1,), where each tree's own begin.
    feature, left, right: int32; threshold: float64; decision: uint8, each (n_nodes,); a child
    below zero is the leaf `~child` of the same tree.
    leaf_value: float64 (n_leaves,); leaf_count: int64, rows in training, 0 where unknown.
    set_word: int64 (n_sets + 1,), where each set of categories begins in `set_bits` (uint32).
    The threshold of a categorical node is the number of its set within its tree.
    """

    node_start: NDArray[np.int64]
    leaf_start: NDArray[np.int64]
    set_start: NDArray[np.int64]
    feature: NDArray[np.int32]
    threshold: NDArray[np.float64]
    decision: NDArray[np.uint8]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    leaf_value: NDArray[np.float64]
    leaf_count: NDArray[np.int64]
    set_word: NDArray[np.int64]
    set_bits: NDArray[np.uint32]

    @property
    def n_trees(self) -> int:
        """How many trees."""
        return len(self.node_start) - 1


class BoosterText(msgspec.Struct, frozen=True):
    """What a booster's text says.

    objective: the name first, then its parameters; empty for a custom one.
    feature_infos: `[lowest:highest]`, category numbers joined by colons, or `none`, by feature.
    pandas_categories: for each category column of the frame that it was trained on, its values.
    """

    objective: tuple[str, ...]
    num_class: int
    num_tree_per_iteration: int
    average_output: bool
    linear: bool
    feature_names: tuple[str, ...]
    feature_infos: tuple[str, ...]
    categorical_features: tuple[int, ...]
    pandas_categories: tuple[tuple[Any, ...], ...]
    trees: Trees


def with_plain_ends(text: str) -> str:
    """`text` with LF line ends: LightGBM counts bytes, of which a text in CRLF has more."""
    return text.replace("\r\n", "\n")


def read_booster(text: str) -> BoosterText:
    """The booster that `text` describes; raises BadModel where it is no whole booster."""
    head, blocks, tail = _parts(with_plain_ends(text))
    header = _pairs(head)
    if head[0] != "tree" or header.get("version") not in _VERSIONS:
        raise BadModel(
            f"not a LightGBM model text of version {' or '.join(_VERSIONS)}:"
            f" it begins {text[:20]!r}, version {header.get('version')!r}"
        )
    names = tuple(header.get("feature_names", "").split())
    if len(names) != _count(header, "max_feature_idx") + 1:
        raise BadModel(
            f"max_feature_idx is {header['max_feature_idx']}, but there are {len(names)} names"
        )
    _check_sizes(header.get("tree_sizes", ""), blocks)
    trees = [_tree_pairs(number, block) for number, block in enumerate(blocks)]
    return BoosterText(
        objective=tuple(header.get("objective", "").split()),
        num_class=_count(header, "num_class"),
        num_tree_per_iteration=_count(header, "num_tree_per_iteration"),
        average_output="average_output" in head,
        linear=any(_is_linear(tree) for tree in trees),
        feature_names=names,
        feature_infos=tuple(header.get("feature_infos", "").split()),
        categorical_features=_categorical_features(tail, len(names)),
        pandas_categories=_pandas_categories(tail),
        trees=_flat(trees, len(names)),
    )


def _parts(text: str) -> tuple[list[str], list[str], list[str]]:
    """Lines of the header, the text of each tree from its number on, lines after the trees."""
    body, end, tail = text.partition("\nend of trees")
    if not end:
        raise BadModel("the text of the booster is cut short: there is no 'end of trees'")
    head, *blocks = body.split(_TREE)
    if not blocks:
        raise BadModel("the booster has no trees")
    return head.split("\n"), blocks, tail.split("\n")


def _pairs(lines: list[str]) -> dict[str, str]:
    return {key: value for key, equals, value in (line.partition("=") for line in lines) if equals}


def _check_sizes(said: str, blocks: list[str]) -> None:
    sizes = said.split()
    if len(sizes) != len(blocks):
        raise BadModel(f"the header's tree_sizes has {len(sizes)} lengths for {len(blocks)} trees")
    for number, (size, block) in enumerate(zip(sizes, blocks, strict=True)):
        # From "Tree=" to before the next: the line end between two trees is that of the first.
        length = len(_TREE.encode()) + len(block.encode())
        if size != str(length):
            raise BadModel(
                f"tree {number} is {length} bytes long, but the header's tree_sizes says {size}:"
                " the text was changed after LightGBM wrote it"
            )


def _tree_pairs(number: int, block: str) -> dict[str, str]:
    own, *lines = block.rstrip("\n").split("\n")
    if own != str(number):
        raise BadModel(f"tree {number} is numbered {own[:20]!r}")
    if len(lines) > _MAX_LINES or not all(line.find("=") > 0 for line in lines):
        raise BadModel(
            f"tree {number} has {len(lines)} lines; they are {_MAX_LINES} at most, each key=value"
        )
    return _pairs(lines)


def _count(header: dict[str, str], key: str) -> int:
    value = header.get(key, "")
    if not value.isdecimal():
        raise BadModel(f"the header's {key} is {value!r}, not a count")
    return int(value)


def _categorical_features(tail: list[str], n_features: int) -> tuple[int, ...]:
    for line in tail:
        found = re.fullmatch(r"\[categorical_feature: ([\d,]+)\]", line)
        if found:
            numbers = tuple(sorted({int(number) for number in found[1].split(",") if number}))
            if numbers and numbers[-1] >= n_features:
                raise BadModel(f"categorical_feature is outside the {n_features} features")
            return numbers
    return ()


def _pandas_categories(tail: list[str]) -> tuple[tuple[Any, ...], ...]:
    prefix = "pandas_categorical:"
    for line in reversed(tail):
        if line.startswith(prefix):
            try:
                lists = msgspec.json.decode(line[len(prefix) :], type=list[list[Any]] | None)
            except msgspec.DecodeError as problem:
                raise BadModel(f"the line of pandas categories is unreadable: {problem}") from None
            return tuple(tuple(values) for values in lists or [])
    return ()


def _flat(pairs: list[dict[str, str]], n_features: int) -> Trees:
    parts = [_tree(number, tree, n_features) for number, tree in enumerate(pairs)]

    def joined(key: Key) -> NDArray[Any]:
        return np.concatenate([part[key] for part in parts])

    def starts(key: Key) -> NDArray[np.int64]:
        return np.cumsum([0, *(len(part[key]) for part in parts)], dtype=np.int64)

    # Boundaries of sets are counted within their tree, and have one more entry than there are sets.
    n_sets = [max(len(part["cat_boundaries"]) - 1, 0) for part in parts]
    words = starts("cat_threshold")
    begins = [part["cat_boundaries"][:-1] + at for part, at in zip(parts, words, strict=False)]
    return Trees(
        node_start=starts("split_feature"),
        leaf_start=starts("leaf_value"),
        set_start=np.cumsum([0, *n_sets], dtype=np.int64),
        feature=joined("split_feature"),
        threshold=joined("threshold"),
        decision=joined("decision_type"),
        left=joined("left_child"),
        right=joined("right_child"),
        leaf_value=joined("leaf_value"),
        leaf_count=joined("leaf_count"),
        set_word=np.concatenate([*begins, words[-1:]]),
        set_bits=joined("cat_threshold"),
    )


def _tree(number: int, pairs: dict[str, str], n_features: int) -> dict[Key, NDArray[Any]]:
    n_leaves = _count(pairs, "num_leaves")
    n_nodes = n_leaves - 1
    n_sets = _count(pairs, "num_cat")
    if not 1 <= n_leaves <= _MAX_LEAVES:
        raise BadModel(f"tree {number} has {n_leaves} leaves")

    def numbers(key: str, dtype: Any, n: int | None, default: int | None = None) -> NDArray[Any]:
        if default is not None and key not in pairs:
            return np.full(n or 0, default, dtype)
        try:
            found = np.array(pairs.get(key, "").split(), np.float64 if dtype == np.float64 else int)
            narrow: NDArray[Any] = found.astype(dtype)
        except (ValueError, OverflowError):
            raise BadModel(f"tree {number}: {key} holds what is no number") from None
        if (n is not None and len(found) != n) or not np.array_equal(narrow, found, equal_nan=True):
            raise BadModel(
                f"tree {number}: {key} has {len(found)} values of {n}, or too large ones"
            )
        return narrow

    if _is_linear(pairs):
        _check_linear(number, numbers, n_leaves, n_features)
    # A tree of one leaf may carry empty lists of nodes, or leave them out.
    tree: dict[Key, NDArray[Any]] = {
        "split_feature": numbers("split_feature", np.int32, n_nodes),
        "threshold": numbers("threshold", np.float64, n_nodes),
        "decision_type": numbers("decision_type", np.uint8, n_nodes, default=0),
        "left_child": numbers("left_child", np.int32, n_nodes),
        "right_child": numbers("right_child", np.int32, n_nodes),
        "leaf_value": numbers("leaf_value", np.float64, n_leaves),
        "leaf_count": numbers("leaf_count", np.int64, n_leaves, default=0),
        "cat_boundaries": numbers("cat_boundaries", np.int64, n_sets + 1 if n_sets else None),
        "cat_threshold": numbers("cat_threshold", np.uint32, None),
    }
    for wrong in _faults(tree, n_features, n_sets):
        raise BadModel(f"tree {number}: {wrong}")
    return tree


def _is_linear(pairs: dict[str, str]) -> bool:
    return pairs.get("is_linear", "0") != "0"


def _check_linear(number: int, numbers: Numbers, n_leaves: int, n_features: int) -> None:
    """Raise BadModel unless the linear model of each leaf is whole: LightGBM takes it as it is."""
    constants = numbers("leaf_const", np.float64, n_leaves)
    counts = numbers("num_features", np.int64, n_leaves)
    if np.any(counts < 0):
        raise BadModel(f"tree {number}: num_features is below 0")
    features = numbers("leaf_features", np.int64, int(counts.sum()))
    coefficients = numbers("leaf_coeff", np.float64, len(features))
    if np.any((features < 0) | (features >= n_features)):
        raise BadModel(f"tree {number}: leaf_features is outside the {n_features} features")
    if not np.all(np.isfinite(constants)) or not np.all(np.isfinite(coefficients)):
        raise BadModel(f"tree {number}: leaf_const or leaf_coeff is not finite")


def _faults(tree: dict[Key, NDArray[Any]], n_features: int, n_sets: int) -> Iterator[str]:
    feature, decision = tree["split_feature"], tree["decision_type"]
    threshold, edges = tree["threshold"], tree["cat_boundaries"]
    if np.any((feature < 0) | (feature >= n_features)):
        yield f"split_feature is outside the {n_features} features"
    if np.any(decision >> MISSING_SHIFT > MISSING_NAN):
        yield "decision_type has an unknown missing type"
    sets = threshold[decision & CATEGORICAL == CATEGORICAL]
    if np.any((sets < 0) | (sets >= n_sets) | (sets != np.floor(sets))):
        yield f"a categorical split names none of the {n_sets} sets"
    if n_sets and (edges[0] != 0 or np.any(np.diff(edges) < 0)):
        yield "cat_boundaries do not ascend from 0"
    if n_sets and edges[-1] != len(tree["cat_threshold"]):
        yield "cat_boundaries do not end where cat_threshold ends"
    if np.any(np.isnan(threshold)) or not np.all(np.isfinite(tree["leaf_value"])):
        yield "a threshold is not a number, or a leaf value not finite"
    n_nodes = len(feature)
    met, waiting = np.zeros(2 * n_nodes + 1, np.int64), np.zeros(n_nodes + 1, np.int64)
    if n_nodes and not _is_tree(tree["left_child"], tree["right_child"], met, waiting):
        yield "its nodes and leaves do not form one tree"


@kernel
def _is_tree(
    left: NDArray[np.int32],
    right: NDArray[np.int32],
    met: NDArray[np.int64],
    waiting: NDArray[np.int64],
) -> bool:
    """Whether every node and leaf is reached from node 0 exactly once, and nothing else is.

    met (nodes, then leaves) and waiting are 0 before.
    """
    n = left.shape[0]
    n_waiting = 1
    n_met = 0
    met[0] = 1
    while n_waiting > 0:
        n_waiting -= 1
        node = waiting[n_waiting]
        for child in (left[node], right[node]):
            place = np.int64(child) if child >= 0 else n + ~np.int64(child)
            if place >= (n if child >= 0 else 2 * n + 1) or met[place] != 0:
                return False
            met[place] = 1
            n_met += 1
            if child >= 0:
                waiting[n_waiting] = child
                n_waiting += 1
    whole: bool = n_met == 2 * n
    return whole
