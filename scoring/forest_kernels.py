"""Scoring one vector with a forest's image: cells, raw score, box, link, digest.

All arguments are addresses and counts, so a call costs nothing to pass and nothing is allocated;
scoring/forest_layout.py has the layout and the reasons, `Forest` the checked way in.
Scratch is `SCRATCH_BYTES` of the image's head, on a cache line, one for each thread.

Rule: a raw score is the sum of the reached leaves in tree order, in float64, and the link is
LightGBM's own formula with the C library's `exp` (numpy's differs in one result of 25), so that
every bit is that of `Booster.predict`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from freshscore.features.compiled import kernel
from freshscore.features.memory import (
    f64,
    i64,
    prefetch,
    put_f64,
    put_i32,
    put_i64,
    put_u16,
    u16,
    u64,
)
from freshscore.features.siphash import sip_absorbed, sip_finished, sip_started
from freshscore.scoring import forest_layout as at
from freshscore.scoring.box_kernels import box_of
from freshscore.scoring.calibration import calibrated
from freshscore.scoring.spans import halves_at, lowest_bit, words_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

# LightGBM's kZeroThreshold, a float widened to double: what lies within is read as 0.
ZERO_WITHIN: Final = float(np.float32(1e-35))

_ONES: Final = np.uint64(0xFFFFFFFFFFFFFFFF)
_63: Final = np.uint64(63)
_16: Final = np.uint64(16)
_32: Final = np.uint64(32)
_48: Final = np.uint64(48)
_HALF: Final = np.uint64(0xFFFF)
_SINGLE: Final = np.uint64(0xFFFFFFFF)
_FEATURE: Final = np.uint64(at.NODE_FEATURE)
_CATEGORICAL: Final = np.uint64(at.NODE_CATEGORICAL)
_NEXT_IS_LEAF: Final = np.uint64(at.NODE_NEXT_IS_LEAF)
_OTHER_IS_LEAF: Final = np.uint64(at.NODE_OTHER_IS_LEAF)
_NOTHING: Final = np.uint64(0)
_ONE: Final = np.uint64(1)


@kernel
def cells_of(image: int, features: int, cells: int, scratch: int) -> None:
    """Write the cell (uint16) of each float64 at `features`.

    All features are searched side by side, one step of each before the next, without branches:
    a sixth of the time of one after the other, which waits for each comparison.
    """
    n = i64(image + at.N_FEATURES)
    search = i64(image + at.SEARCH)
    values = scratch
    places = scratch + 8 * n
    for i in range(n):
        own = search + 8 * at.SEARCH_WORDS * i
        value = f64(features + 8 * i64(own + at.SEARCH_FEATURE))
        if abs(value) <= ZERO_WITHIN:
            value = 0.0
        if i64(own + at.SEARCH_KIND) == at.KIND_CATEGORICAL:
            # As the cast to int does: -0.5 is category 0.
            value = np.trunc(value)
        put_f64(values + 8 * i, value)
        put_i64(places + 8 * i, i64(own + at.SEARCH_AT))
    _search(i64(image + at.LEVELS), values, places)
    for i in range(n):
        own = search + 8 * at.SEARCH_WORDS * i
        value = f64(values + 8 * i)
        place = i64(places + 8 * i)
        kind = i64(own + at.SEARCH_KIND)
        cell = (place - i64(own + at.SEARCH_AT)) >> 3
        if math.isnan(value):
            cell = i64(own + at.SEARCH_NAN)
        elif kind == at.KIND_CATEGORICAL:
            if f64(place) != value:
                cell = i64(own + at.SEARCH_COUNT)
        elif kind == at.KIND_ZERO and value == 0.0:
            cell = at.ZERO_CELL
        put_u16(cells + 2 * i64(own + at.SEARCH_FEATURE), cell)


@kernel
def _search(levels: int, values: int, places: int) -> None:
    """Move each place to the first threshold that is not below its value."""
    n_levels = i64(levels)
    step = 4 << n_levels
    for level in range(n_levels):
        for i in range(i64(levels + 8 + 8 * level)):
            place = i64(places + 8 * i)
            beyond = place + step
            below = f64(beyond - 8) < f64(values + 8 * i)
            put_i64(places + 8 * i, beyond if below else place)
        step >>= 1


@kernel
def walk(image: int, cells: int, scratch: int) -> float:
    """The raw score; leaves the numbers of the reached leaves in the scratch, for `box_of`."""
    return _walk(image, cells, scratch, 0)


@kernel
def walk_box(image: int, cells: int, scratch: int, lowest: int, highest: int) -> float:
    """The raw score, and its box (see `box_of`)."""
    raw = _walk(image, cells, scratch, i64(image + at.BOXES))
    box_of(image, cells, scratch, lowest, highest)
    return raw


@kernel
def _walk(image: int, cells: int, scratch: int, boxes: int) -> float:
    """The raw score; asks for the boxes of the reached leaves early, where `boxes` is not 0."""
    _intersect(image, cells, scratch)
    stride = 4 * i64(image + at.BOX_LANES)
    shift = np.uint64(i64(image + at.SLOT_SHIFT))
    slots = u64(image + at.SLOT_BITS)
    first = i64(image + at.FIRST_LEAVES)
    leaves = i64(image + at.LEAVES)
    reached = scratch + 8 * i64(image + at.MASK_WORDS)
    raw = 0.0
    for tree in range(i64(image + at.N_TREES)):
        place = np.uint64(tree) << shift
        bits = (u64(scratch + 8 * np.int64(place >> np.uint64(6))) >> (place & _63)) & slots
        if bits != _NOTHING:
            leaf = i64(first + 8 * tree) + lowest_bit(bits)
        else:
            leaf = _walked(image, i64(i64(image + at.ROOTS) + 8 * tree), cells)
        put_i32(reached + 4 * tree, leaf)
        if boxes != 0:
            # Two lines hold the box of a vector of 32 features. Worth 1 us a score.
            prefetch(boxes + stride * leaf)
            prefetch(boxes + stride * leaf + 64)
        raw += f64(leaves + 8 * leaf)
    mean: float = raw / f64(image + at.DIVISOR)
    return mean


@kernel
def _intersect(image: int, cells: int, scratch: int) -> None:
    """The AND of each used feature's row of masks, into the scratch."""
    n_words = i64(image + at.MASK_WORDS)
    n_used = i64(image + at.N_USED)
    used = i64(image + at.USED)
    every = words_at(scratch, n_words)
    for w in range(n_words):
        every[w] = _ONES
    i = 0
    # Eight rows a pass: loading and storing the result costs more than the rows themselves.
    while i + 8 <= n_used:
        a = _masks(used + 16 * i, cells, n_words)
        b = _masks(used + 16 * i + 16, cells, n_words)
        c = _masks(used + 16 * i + 32, cells, n_words)
        d = _masks(used + 16 * i + 48, cells, n_words)
        e = _masks(used + 16 * i + 64, cells, n_words)
        f = _masks(used + 16 * i + 80, cells, n_words)
        g = _masks(used + 16 * i + 96, cells, n_words)
        h = _masks(used + 16 * i + 112, cells, n_words)
        for w in range(n_words):
            every[w] &= a[w] & b[w] & c[w] & d[w] & e[w] & f[w] & g[w] & h[w]
        i += 8
    while i < n_used:
        a = _masks(used + 16 * i, cells, n_words)
        for w in range(n_words):
            every[w] &= a[w]
        i += 1


@kernel(inline="always")
def _masks(feature: int, cells: int, n_words: int) -> NDArray[np.uint64]:
    """The row of masks of a used feature's cell; NAN_CELL and ZERO_CELL lie before cell 0."""
    cell = np.int64(np.int16(u16(cells + 2 * i64(feature))))
    return words_at(i64(feature + 8) + 8 * n_words * cell, n_words)


@kernel
def _walked(image: int, root: int, cells: int) -> int:
    """The leaf of one tree that the cells reach, among those without a slot."""
    if root < 0:
        return ~root
    sets = i64(image + at.SETS)
    place: int | np.int64 = root
    while True:
        node = u64(place)
        cell = np.uint64(u16(cells + 2 * np.int64(node & _FEATURE)))
        if node & _CATEGORICAL:
            word = np.int64((node >> _16) & _SINGLE) + np.int64(cell >> np.uint64(6))
            goes_on = ((u64(sets + 8 * word) >> (cell & _63)) & _ONE) == _ONE
        else:
            goes_on = ((cell - (node >> _16)) & _HALF) <= ((node >> _32) & _HALF)
        if goes_on:
            place += 8
            at_leaf = (node & _NEXT_IS_LEAF) != _NOTHING
        else:
            place += 8 * np.int64(node >> _48)
            at_leaf = (node & _OTHER_IS_LEAF) != _NOTHING
        if at_leaf:
            leaf: int = i64(place)
            return leaf


@kernel
def inside(lowest: int, highest: int, cells: int, n_features: int) -> bool:
    """Whether every cell lies in its range."""
    low = halves_at(lowest, n_features)
    high = halves_at(highest, n_features)
    cell = halves_at(cells, n_features)
    outside = np.uint16(0)
    # Without an early end it is a handful of vector comparisons.
    for f in range(n_features):
        outside |= np.uint16(cell[f] < low[f]) | np.uint16(cell[f] > high[f])
    within: bool = outside == 0
    return within


@kernel
def link(image: int, raw: float) -> float:
    """What the booster's objective makes of a raw score."""
    kind = i64(image + at.LINK)
    if kind == at.LINK_LOGISTIC:
        return 1.0 / (1.0 + math.exp(-f64(image + at.LINK_SCALE) * raw))
    if kind == at.LINK_EXPONENTIAL:
        return math.exp(raw)
    if kind == at.LINK_SIGNED_SQUARE:
        return raw * raw if raw >= 0.0 else -raw * raw
    return raw


@kernel
def score_of(image: int, raw: float) -> float:
    """The score: link, then the calibration table where there is one."""
    return calibrated(i64(image + at.CALIBRATION), link(image, raw))


@kernel
def cells_digest(cells: int, n: int, k0: np.uint64, k1: np.uint64) -> tuple[np.uint64, np.uint64]:
    """The feature-aggregate hash: SipHash-2-4-128 of `n` cells, under the 128-bit fingerprint of
    the feature specification as its key (k0 its first 8 bytes, little-endian)."""
    lanes = sip_started(k0, k1)
    whole = n // 4
    for i in range(whole):
        lanes = sip_absorbed(lanes, u64(cells + 8 * i))
    rest = _NOTHING
    for i in range(4 * whole, n):
        rest |= np.uint64(u16(cells + 2 * i)) << np.uint64(16 * (i - 4 * whole))
    return sip_finished(lanes, rest, 2 * n)


@kernel(nogil=True)
def cells_of_rows(image: int, matrix: int, n_rows: int, cells: int, scratch: int) -> None:
    """Cells (uint16) of each row of a float64 matrix, row after row."""
    n = i64(image + at.N_FEATURES)
    for row in range(n_rows):
        cells_of(image, matrix + 8 * n * row, cells + 2 * n * row, scratch)


@kernel(nogil=True)
def raw_scores_of_cells(image: int, cells: int, n_rows: int, raw: int, scratch: int) -> None:
    """Raw scores (float64) of rows of cells."""
    n = i64(image + at.N_FEATURES)
    for row in range(n_rows):
        put_f64(raw + 8 * row, walk(image, cells + 2 * n * row, scratch))


@kernel(nogil=True)
def score_matrix(image: int, matrix: int, n_rows: int, scores: int, scratch: int) -> None:
    """Scores (float64) of the rows of a float64 matrix; releases the interpreter's lock."""
    n = i64(image + at.N_FEATURES)
    cells = scratch + i64(image + at.SCRATCH_BYTES) - 2 * n
    for row in range(n_rows):
        cells_of(image, matrix + 8 * n * row, cells, scratch)
        put_f64(scores + 8 * row, score_of(image, walk(image, cells, scratch)))
