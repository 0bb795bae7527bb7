"""Kernels that turn trees into the parts of an image: the node stream, boxes and masks.

They run once for each model that is loaded; scoring/forest_layout.py says what they write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from freshscore.features.compiled import kernel
from freshscore.scoring import forest_layout as at

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Number = int | np.int64

TOO_FAR: Final = -1
_ONE: Final = np.uint64(1)


@kernel
def _preorder(
    left: NDArray[np.int32],
    right: NDArray[np.int32],
    nodes: NDArray[np.int64],
    waiting: NDArray[np.int64],
) -> None:
    """Write the nodes of one tree, each before all below it."""
    n = left.shape[0]
    waiting[0] = 0
    n_waiting = 1 if n > 0 else 0
    n_nodes = 0
    while n_waiting > 0:
        n_waiting -= 1
        node = waiting[n_waiting]
        nodes[n_nodes] = node
        n_nodes += 1
        for child in (right[node], left[node]):
            if child >= 0:
                waiting[n_waiting] = child
                n_waiting += 1


@kernel
def grow_stream(
    node_start: NDArray[np.int64],
    leaf_start: NDArray[np.int64],
    left: NDArray[np.int32],
    right: NDArray[np.int32],
    leaf_number: NDArray[np.int64],
    leaf_rows: NDArray[np.int64],
    n_slots: int,
    head: NDArray[np.uint64],
    sets: NDArray[np.uint64],
    set_words: NDArray[np.int64],
    stream: NDArray[np.uint64],
    roots: NDArray[np.int64],
    work: NDArray[np.int64],
) -> int:
    """Write the node stream of all trees without the leaves that have a slot.

    leaf_number, leaf_rows: of each leaf as the booster counts them. head: of each node its word
    but for leaf flags and distance, the left side going on; set_words: of a categorical node the
    words of its set, 0 of a numeric one. roots: entry number of each tree's first node, or ~leaf.
    work: (5, 2 x most nodes of a tree + 2).
    Returns the length of the stream, or TOO_FAR. A categorical node whose right side goes on has
    its set (in `sets`) inverted.
    """
    length = 0
    for tree in range(node_start.shape[0] - 1):
        a = node_start[tree]
        b = node_start[tree + 1]
        own = leaf_start[tree]
        n = b - a
        order, waiting, parent = work[0], work[1], work[2]
        _preorder(left[a:b], right[a:b], order, waiting)
        # What is left below each node, in leaves and in training rows; leaves behind the nodes.
        alive, rows = work[3], work[4]
        for i in range(2 * n + 1):
            alive[i] = 0
            rows[i] = 0
        for leaf in range(n + 1):
            if leaf_number[own + leaf] - own >= n_slots:
                alive[n + leaf] = 1
                rows[n + leaf] = leaf_rows[own + leaf]
        for i in range(n - 1, -1, -1):
            node = order[i]
            for child in (left[a + node], right[a + node]):
                place = np.int64(child) if child >= 0 else n + ~np.int64(child)
                alive[node] += alive[place]
                rows[node] += rows[place]
        if n == 0 or alive[0] == 0:
            roots[tree] = ~own
            continue
        root = _past_dead(0, left[a:b], right[a:b], alive)
        if root < 0:
            roots[tree] = ~leaf_number[own + ~root]
            continue
        roots[tree] = length
        waiting[0] = root
        parent[0] = -1
        n_waiting = 1
        while n_waiting > 0:
            n_waiting -= 1
            node = waiting[n_waiting]
            if parent[n_waiting] >= 0:
                distance = length - parent[n_waiting]
                if distance > at.MAX_DISTANCE:
                    return TOO_FAR
                stream[parent[n_waiting]] |= np.uint64(distance) << np.uint64(48)
            if node < 0:
                stream[length] = np.uint64(leaf_number[own + ~node])
                length += 1
                continue
            low = _past_dead(left[a + node], left[a:b], right[a:b], alive)
            high = _past_dead(right[a + node], left[a:b], right[a:b], alive)
            word = head[a + node]
            if rows[_place(high, n)] > rows[_place(low, n)]:
                word = _inverted(word, set_words[a + node], sets)
                low, high = high, low
            if low < 0:
                word |= np.uint64(at.NODE_NEXT_IS_LEAF)
            if high < 0:
                word |= np.uint64(at.NODE_OTHER_IS_LEAF)
            stream[length] = word
            waiting[n_waiting] = high
            parent[n_waiting] = length
            waiting[n_waiting + 1] = low
            parent[n_waiting + 1] = -1
            n_waiting += 2
            length += 1
    return length


@kernel
def _place(child: Number, n_nodes: int) -> Number:
    return child if child >= 0 else n_nodes + ~child


@kernel
def _past_dead(
    child: Number, left: NDArray[np.int32], right: NDArray[np.int32], alive: NDArray[np.int64]
) -> Number:
    """The first split or leaf from `child` down that more than one side is left of."""
    n = left.shape[0]
    below = np.int64(child)
    while below >= 0:
        low = np.int64(left[below])
        high = np.int64(right[below])
        if alive[_place(low, n)] == 0:
            below = high
        elif alive[_place(high, n)] == 0:
            below = low
        else:
            return below
    return below


@kernel
def _inverted(word: np.uint64, set_words: int, sets: NDArray[np.uint64]) -> np.uint64:
    """The word of a node with the other side going on."""
    half = np.uint64(0xFFFF)
    if set_words > 0:
        first = np.int64((word >> np.uint64(16)) & np.uint64(0xFFFFFFFF))
        for i in range(first, first + set_words):
            sets[i] = ~sets[i]
        return word
    start = (word >> np.uint64(16)) & half
    width = (word >> np.uint64(32)) & half
    start = (start + width + _ONE) & half
    width = half - width - _ONE
    kept = word & half
    return kept | (start << np.uint64(16)) | (width << np.uint64(32))


@kernel
def grow_boxes(
    node_start: NDArray[np.int64],
    leaf_start: NDArray[np.int64],
    left: NDArray[np.int32],
    right: NDArray[np.int32],
    leaf_number: NDArray[np.int64],
    feature: NDArray[np.int64],
    is_category: NDArray[np.bool_],
    last_left: NDArray[np.int64],
    nan_left: NDArray[np.bool_],
    zero_left: NDArray[np.bool_],
    set_word: NDArray[np.int64],
    sets: NDArray[np.uint64],
    counts: NDArray[np.int64],
    row_of_cell_0: NDArray[np.int64],
    slot_shift: int,
    n_slots: int,
    masks: NDArray[np.uint64],
    boxes: NDArray[np.uint16],
    work: NDArray[np.int64],
    allowed: NDArray[np.bool_],
) -> None:
    """Write each leaf's box, and clear its bit in every row of masks that rules it out.

    boxes: (n_leaves + 1, 2 x lanes), zero before. masks: (rows, words), the bits of all slots set.
    work: (5, at least features and 2 x most nodes of a tree + 2). allowed: (features, most cells of
    one + 3), column c + 2 for cell c.
    """
    lanes = boxes.shape[1] // 2
    low, high, tested, features, parent = work[0], work[1], work[2], work[3], work[4]
    for f in range(counts.shape[0]):
        low[f] = 0
        high[f] = counts[f]
        tested[f] = 0
        for c in range(counts[f] + 3):
            allowed[f, c] = True
    for tree in range(node_start.shape[0] - 1):
        a = node_start[tree]
        n = node_start[tree + 1] - a
        for i in range(2 * n + 1):
            parent[i] = -1
        for node in range(n):
            parent[_place(np.int64(left[a + node]), n)] = node
            parent[_place(np.int64(right[a + node]), n)] = node
        for leaf in range(n + 1):
            n_tested = 0
            child = ~leaf
            node = parent[n + leaf]
            while node >= 0:
                at_node = a + node
                f = feature[at_node]
                if tested[f] == 0:
                    tested[f] = 1
                    features[n_tested] = f
                    n_tested += 1
                goes_left = left[at_node] == child
                if is_category[at_node]:
                    for c in range(counts[f] + 1):
                        bit = sets[set_word[at_node] + (c >> 6)] >> np.uint64(c & 63)
                        allowed[f, c + 2] &= (bit & _ONE == _ONE) == goes_left
                else:
                    if goes_left:
                        high[f] = min(high[f], last_left[at_node])
                    else:
                        low[f] = max(low[f], last_left[at_node] + 1)
                    allowed[f, 0] &= zero_left[at_node] == goes_left
                    allowed[f, 1] &= nan_left[at_node] == goes_left
                child = node
                node = parent[node]
            number = leaf_number[leaf_start[tree] + leaf]
            slot = number - leaf_start[tree]
            bit = (tree << slot_shift) + slot
            for i in range(n_tested):
                f = features[i]
                boxes[number, f] = low[f]
                boxes[number, lanes + f] = at.ANY_CELL - high[f]
                if slot < n_slots:
                    without = ~(_ONE << np.uint64(bit & 63))
                    for c in range(-2, counts[f] + 1):
                        number_in_range = c < 0 or low[f] <= c <= high[f]
                        if not (number_in_range and allowed[f, c + 2]):
                            masks[row_of_cell_0[f] + c, bit >> 6] &= without
                tested[f] = 0
                low[f] = 0
                high[f] = counts[f]
                for c in range(counts[f] + 3):
                    allowed[f, c] = True
