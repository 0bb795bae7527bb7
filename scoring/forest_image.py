"""Laying out an image: how many slots, how large each part, and where it begins.

The block is one allocation: above 4 MB numpy asks the system for large pages for it, without which
looking up addresses costs a third of a random score.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshscore.features.memory import address_of
from freshscore.scoring import forest_layout as at
from freshscore.scoring.booster_text import Trees
from freshscore.scoring.forest_growing import TOO_FAR, grow_boxes, grow_stream
from freshscore.scoring.forest_splits import NotWalked, Splits
from freshscore.scoring.objectives import Link

_LINE: Final = 64

# Measured (500 x 63, 32 features): rows of masks are combined at 50 bytes a ns from the second
# and third cache, a tree walked for want of a slot costs 50 ns, a tree of a pure walk 28 ns.
_MASK_BYTES_PER_NS: Final = 50.0
_FALLBACK_NS: Final = 50.0
_WALK_NS: Final = 28.0
_SLOT_SHIFTS: Final = (3, 4, 5, 6)


class Image(msgspec.Struct, frozen=True):
    """An image and what it was laid out for.

    slots: leaves of each tree that have a slot; mask_bytes: what their masks take.
    """

    block: NDArray[np.uint8]
    slots: int
    mask_bytes: int
    scratch_bytes: int

    @property
    def address(self) -> int:
        """Where it begins, while it lives."""
        return address_of(self.block)


def grown_image(
    trees: Trees, splits: Splits, link: Link, divisor: float, calibration: int, mask_limit: int
) -> Image:
    """The image of `trees`; raises NotWalked.

    calibration: address of a table or 0. mask_limit: the most bytes of masks.
    """
    counts = splits.counts
    n_features = len(counts)
    used = np.flatnonzero(np.bincount(splits.feature, minlength=n_features))
    row_of_cell_0 = np.zeros(n_features, np.int64)
    # Rows for ZERO_CELL and NAN_CELL stand before that of cell 0.
    row_of_cell_0[used] = np.cumsum([0, *(counts[used] + 3)])[:-1] + 2
    n_rows = int((counts[used] + 3).sum())
    leaf_number = _numbered(trees)
    shift = _slot_shift(trees, leaf_number, len(used), n_rows, mask_limit)
    slots = 0 if shift is None else 1 << shift
    mask_words = 0 if shift is None else _mask_words(trees.n_trees, shift)

    sets = splits.sets.copy()
    stream, roots = _stream(trees, splits, leaf_number, slots, sets)
    n_leaves = len(trees.leaf_value)
    lanes = -(-n_features // at.VECTOR_LANES) * at.VECTOR_LANES
    leaves = np.empty(n_leaves)
    leaves[leaf_number] = trees.leaf_value
    thresholds, search, levels = _search(splits)
    n_padded = -(-trees.n_trees // at.BOX_GROUP) * at.BOX_GROUP
    walking_bytes = 8 * mask_words + 4 * n_padded + _LINE + 4 * lanes
    # A search and a walk use the same bytes, one after the other; cells of batches lie behind.
    scratch_bytes = max(walking_bytes, 16 * n_features) + 2 * n_features
    parts: dict[int, NDArray[Any] | tuple[tuple[int, ...], Any]] = {
        at.SEARCH: search,
        at.USED: np.stack([used, row_of_cell_0[used]], axis=1),
        at.MASKS: ((n_rows if slots else 0, mask_words), np.uint64),
        at.FIRST_LEAVES: trees.leaf_start[:-1],
        at.ROOTS: roots,
        at.NODES: stream,
        at.SETS: sets,
        at.LEAVES: leaves,
        # One more box, of the whole space, pads a group of reached leaves.
        at.BOXES: ((n_leaves + 1, 2 * lanes), np.uint16),
        at.THRESHOLDS: thresholds,
        at.LEVELS: levels,
    }
    block, head, views = _laid_out(parts)
    head[at.N_FEATURES // 8] = n_features
    head[at.N_TREES // 8] = trees.n_trees
    head[at.N_USED // 8] = len(used) if slots else 0
    head[at.N_LEAVES // 8] = n_leaves
    head[at.SLOT_SHIFT // 8] = shift or 0
    head[at.SLOT_BITS // 8] = np.uint64((1 << slots) - 1).view(np.int64)
    head[at.MASK_WORDS // 8] = mask_words
    head[at.BOX_LANES // 8] = lanes
    head[at.LINK // 8] = link.kind
    head[at.LINK_SCALE // 8 : at.DIVISOR // 8 + 1] = np.array([link.scale, divisor]).view(np.int64)
    head[at.CALIBRATION // 8] = calibration
    head[at.SCRATCH_BYTES // 8] = scratch_bytes
    views[at.SEARCH][:, at.SEARCH_AT // 8] *= 8
    views[at.SEARCH][:, at.SEARCH_AT // 8] += address_of(views[at.THRESHOLDS])
    views[at.USED][:, 1] = views[at.USED][:, 1] * 8 * mask_words + address_of(views[at.MASKS])
    walked = roots >= 0
    views[at.ROOTS][walked] = 8 * roots[walked] + address_of(views[at.NODES])
    views[at.BOXES][...] = 0
    if slots:
        views[at.MASKS][...] = _all_slots(trees, shift or 0, mask_words)
    grow_boxes(
        trees.node_start, trees.leaf_start, trees.left, trees.right, leaf_number,
        splits.feature, splits.is_category, splits.last_left, splits.nan_left, splits.zero_left,
        splits.set_word, splits.sets, counts, row_of_cell_0, shift or 0, slots,
        views[at.MASKS], views[at.BOXES], _work(trees, n_features),
        np.empty((n_features, counts.max() + 3), np.bool_),
    )  # fmt: skip
    block.flags.writeable = False
    return Image(block, slots, views[at.MASKS].nbytes, scratch_bytes)


def _numbered(trees: Trees) -> NDArray[np.int64]:
    """A number for each leaf: by tree, then by training rows, the most first."""
    tree = np.repeat(np.arange(trees.n_trees), np.diff(trees.leaf_start))
    order = np.lexsort((np.arange(len(tree)), -trees.leaf_count, tree))
    number = np.empty(len(tree), np.int64)
    number[order] = np.arange(len(tree))
    return number


def _mask_words(n_trees: int, shift: int) -> int:
    """Words of a row of masks: a bit for each slot, in whole cache lines."""
    return -(-(n_trees << shift) // (8 * _LINE)) * _LINE // 8


def _slot_shift(
    trees: Trees, leaf_number: NDArray[np.int64], n_used: int, n_rows: int, limit: int
) -> int | None:
    """How many slots are fastest for vectors like those of the training; None for none."""
    n_leaves = np.diff(trees.leaf_start)
    slot = leaf_number - np.repeat(trees.leaf_start[:-1], n_leaves)
    # Without counts every leaf is as likely as any other of its tree.
    rows = trees.leaf_count + (1 if trees.leaf_count.max() == 0 else 0)
    share = rows / np.repeat(np.maximum(np.add.reduceat(rows, trees.leaf_start[:-1]), 1), n_leaves)
    best, best_ns = None, _WALK_NS * trees.n_trees
    for shift in _SLOT_SHIFTS:
        row_bytes = 8 * _mask_words(trees.n_trees, shift)
        walked = float(share[slot >= 1 << shift].sum())
        cost_ns = n_used * row_bytes / _MASK_BYTES_PER_NS + walked * _FALLBACK_NS
        if n_rows * row_bytes <= limit and cost_ns < best_ns:
            best, best_ns = shift, cost_ns
    return best


def _all_slots(trees: Trees, shift: int, mask_words: int) -> NDArray[np.uint64]:
    """A row of masks that rules no leaf out."""
    bits = np.zeros((mask_words * 64 >> shift, 1 << shift), np.uint8)
    n_leaves = np.diff(trees.leaf_start)
    bits[: trees.n_trees] = np.arange(1 << shift) < n_leaves[:, np.newaxis]
    return np.packbits(bits.reshape(-1), bitorder="little").view("<u8").astype(np.uint64)


def _stream(
    trees: Trees, splits: Splits, leaf_number: NDArray[np.int64], slots: int,
    sets: NDArray[np.uint64],
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:  # fmt: skip
    start = np.where(splits.zero_left, at.ZERO_CELL, np.where(splits.nan_left, at.NAN_CELL, 0))
    width = (splits.last_left - start) & 0xFFFF
    where = np.where(splits.is_category, splits.set_word, start | width << 16)
    flag = np.where(splits.is_category, at.NODE_CATEGORICAL, 0)
    head = (splits.feature | flag | where << 16).astype(np.uint64)
    set_words = np.where(splits.is_category, splits.counts[splits.feature] // 64 + 1, 0)
    stream = np.zeros(len(trees.feature) + len(trees.leaf_value), np.uint64)
    roots = np.empty(trees.n_trees, np.int64)
    length = grow_stream(
        trees.node_start, trees.leaf_start, trees.left, trees.right, leaf_number,
        trees.leaf_count, slots, head, sets, set_words, stream, roots, _work(trees, 0),
    )  # fmt: skip
    if length == TOO_FAR:
        raise NotWalked(f"one of its trees is longer than {at.MAX_DISTANCE} splits and leaves")
    return stream[:length], roots


def _work(trees: Trees, n_features: int) -> NDArray[np.int64]:
    """What the growing kernels write to for one tree and one vector of features."""
    most_nodes = int(np.diff(trees.node_start).max())
    return np.empty((5, max(2 * most_nodes + 2, n_features)), np.int64)


def _search(
    splits: Splits,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """All thresholds, each feature's filled up with infinity; what a search needs of each feature;
    how many features take part in each of its steps."""
    steps = np.array([len(own).bit_length() for own in splits.edges], np.int64)
    order = np.argsort(-steps, kind="stable")
    begins = np.cumsum([0, *(1 << steps)])
    thresholds = np.full(begins[-1], np.inf)
    for own, begin in zip(splits.edges, begins, strict=False):
        thresholds[begin : begin + len(own)] = own
    search = np.empty((len(order), at.SEARCH_WORDS), np.int64)
    search[:, at.SEARCH_FEATURE // 8] = order
    search[:, at.SEARCH_AT // 8] = begins[order]
    search[:, at.SEARCH_KIND // 8] = splits.kind[order]
    search[:, at.SEARCH_NAN // 8] = splits.nan_cell[order]
    search[:, at.SEARCH_COUNT // 8] = splits.counts[order]
    taking_part = [np.count_nonzero(steps >= step) for step in range(steps.max(), 0, -1)]
    return thresholds, search, np.array([len(taking_part), *taking_part], np.int64)


def _laid_out(
    parts: dict[int, NDArray[Any] | tuple[tuple[int, ...], Any]],
) -> tuple[NDArray[np.uint8], NDArray[np.int64], dict[int, NDArray[Any]]]:
    """One block with a head and `parts` (arrays, or shape and type of what is filled later)."""
    shapes = {
        place: (part.shape, part.dtype) if isinstance(part, np.ndarray) else part
        for place, part in parts.items()
    }
    sizes = {place: int(np.prod(s)) * np.dtype(t).itemsize for place, (s, t) in shapes.items()}
    total = 8 * at.HEAD_WORDS + sum(size + _LINE for size in sizes.values())
    whole = np.empty(total + _LINE, np.uint8)
    begin = -address_of(whole) % _LINE
    block = whole[begin:]
    head = block[: 8 * at.HEAD_WORDS].view(np.int64)
    head[:] = 0
    views: dict[int, NDArray[Any]] = {}
    place_at = 8 * at.HEAD_WORDS
    for place, (shape, dtype) in shapes.items():
        place_at = -(-place_at // _LINE) * _LINE
        views[place] = block[place_at : place_at + sizes[place]].view(dtype).reshape(shape)
        part = parts[place]
        if isinstance(part, np.ndarray):
            views[place][...] = part
        head[place // 8] = address_of(block) + place_at
        place_at += sizes[place]
    return block, head, views
