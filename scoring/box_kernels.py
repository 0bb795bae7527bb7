"""The box of a score: the cells over which every tree keeps the leaf that was reached.

Each leaf's own box is stored (scoring/forest_layout.py); the box of a score is what the reached
ones have in common, a maximum in each lane. Reading them is the cost: 64 KB for 500 trees and 32
features, which `walk_box` asks for while it walks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from freshscore.features.compiled import kernel
from freshscore.features.memory import i32, i64, put_i32, put_u16, u16
from freshscore.scoring import forest_layout as at
from freshscore.scoring.spans import halves_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHUNK: Final = 2 * at.VECTOR_LANES
_MISSING_FROM: Final = min(at.ZERO_CELL, at.NAN_CELL)


@kernel
def box_of(image: int, cells: int, scratch: int, lowest: int, highest: int) -> None:
    """The box of the cells that `walk` has just scored with this scratch.

    Writes, for each feature, the lowest and highest cell (uint16) for which every tree keeps its
    leaf while the others stay in their ranges. Where a split on the way tests a category, or a
    missing value that a split tells from numbers, the range is that cell alone.
    """
    lanes = 2 * i64(image + at.BOX_LANES)
    n_trees = i64(image + at.N_TREES)
    reached = scratch + 8 * i64(image + at.MASK_WORDS)
    n_padded = (n_trees + at.BOX_GROUP - 1) // at.BOX_GROUP * at.BOX_GROUP
    for tree in range(n_trees, n_padded):
        put_i32(reached + 4 * tree, i64(image + at.N_LEAVES))
    boxes = i64(image + at.BOXES)
    box = (reached + 4 * n_padded + 63) // 64 * 64
    for chunk in range(0, lanes, _CHUNK):
        _largest(boxes + 2 * chunk, 2 * lanes, reached, n_padded, box + 2 * chunk)
    complement = box + lanes
    for i in range(i64(image + at.N_FEATURES)):
        own = i64(image + at.SEARCH) + 8 * at.SEARCH_WORDS * i
        f = i64(own + at.SEARCH_FEATURE)
        low = u16(box + 2 * f)
        high = at.ANY_CELL - u16(complement + 2 * f)
        cell = u16(cells + 2 * f)
        single = cell >= _MISSING_FROM or i64(own + at.SEARCH_KIND) == at.KIND_CATEGORICAL
        if single and high != at.ANY_CELL:
            low = cell
            high = cell
        put_u16(lowest + 2 * f, low)
        put_u16(highest + 2 * f, high)


@kernel
def _largest(boxes: int, stride: int, reached: int, n: int, box: int) -> None:
    """The largest of `n` boxes in each of _CHUNK lanes."""
    result = halves_at(box, _CHUNK)
    for lane in range(_CHUNK):
        result[lane] = 0
    for i in range(0, n, at.BOX_GROUP):
        a = _box(boxes, stride, reached + 4 * i)
        b = _box(boxes, stride, reached + 4 * i + 4)
        c = _box(boxes, stride, reached + 4 * i + 8)
        d = _box(boxes, stride, reached + 4 * i + 12)
        e = _box(boxes, stride, reached + 4 * i + 16)
        f = _box(boxes, stride, reached + 4 * i + 20)
        g = _box(boxes, stride, reached + 4 * i + 24)
        h = _box(boxes, stride, reached + 4 * i + 28)
        for lane in range(_CHUNK):
            left = _larger(_larger(a[lane], b[lane]), _larger(c[lane], d[lane]))
            right = _larger(_larger(e[lane], f[lane]), _larger(g[lane], h[lane]))
            result[lane] = _larger(result[lane], _larger(left, right))


@kernel(inline="always")
def _box(boxes: int, stride: int, leaf: int) -> NDArray[np.uint16]:
    return halves_at(boxes + stride * i32(leaf), _CHUNK)


@kernel(inline="always")
def _larger(left: np.uint16, right: np.uint16) -> np.uint16:
    return left if left > right else right
