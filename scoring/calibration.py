"""The monotone calibration table: from a model's score to the share of frauds at that score.

Between its knots the table is linear: steps would tie scores that the model tells apart, and no
threshold could then meet a wanted rate. It rises strictly, so it changes no order.
Source: isotonic regression by pooling adjacent violators (Ayer et al., 1955).

Rule: a table's value is plain float64 arithmetic in a fixed order, the same bits on every machine.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from freshscore.features.compiled import kernel
from freshscore.features.memory import address_of, f64, i64

# Isotonic fits of a month of payments have some dozens of blocks.
MAX_KNOTS: Final = 512


class CalibrationTable:
    """Knots `scores` and `values`, both float64 (n,), n >= 2 and both strictly ascending.

    Outside the knots the value is that of the nearest one. Raises ValueError for what is no table.
    """

    def __init__(self, scores: NDArray[np.float64], values: NDArray[np.float64]) -> None:
        knots = np.array([scores, values], np.float64)
        if not 2 <= knots.shape[1] <= MAX_KNOTS or not np.all(np.isfinite(knots)):
            raise ValueError(f"a table has 2 to {MAX_KNOTS} finite knots, not {knots.shape[1]}")
        if not np.all(np.diff(knots) > 0):
            raise ValueError("the knots of a table rise strictly")
        self.scores, self.values = knots
        self._block = np.concatenate([np.array([knots.shape[1]]).view(np.float64), *knots])

    @property
    def address(self) -> int:
        """Where `calibrated` finds it, for as long as this object lives."""
        return address_of(self._block)

    def of(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated scores, float64 (n,)."""
        result = np.empty(len(scores))
        _calibrated_each(self.address, np.ascontiguousarray(scores, np.float64), result)
        return result


@kernel
def calibrated(table: int, score: float) -> float:
    """The value of the table at address `table` for `score`; `score` itself where that is 0."""
    if table == 0:
        return score
    n = i64(table)
    scores = table + 8
    values = scores + 8 * n
    left: float = f64(values)
    if score <= f64(scores):
        return left
    low = 0
    high = n
    while high - low > 1:
        middle = (low + high) >> 1
        if f64(scores + 8 * middle) < score:
            low = middle
        else:
            high = middle
    left = f64(values + 8 * low)
    if high == n:
        return left
    right = f64(values + 8 * high)
    begin = f64(scores + 8 * low)
    slope = (right - left) / (f64(scores + 8 * high) - begin)
    # Rounding may pass the end of the segment by a bit, which would break the order.
    value: float = min(left + (score - begin) * slope, right)
    return value


@kernel
def _calibrated_each(table: int, scores: NDArray[np.float64], result: NDArray[np.float64]) -> None:
    for row in range(scores.shape[0]):
        result[row] = calibrated(table, scores[row])


def fitted_table(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> CalibrationTable:
    """The table fitted to `scores` (float64 (n,), within 0 and 1) and `labels` (bool (n,)).

    Raises ValueError where one of the two classes is absent.
    """
    base_rate = float(np.mean(labels)) if len(labels) else 0.0
    if not 0.0 < base_rate < 1.0:
        raise ValueError(f"calibration needs both classes; the share of frauds is {base_rate}")
    order = np.argsort(scores, kind="stable")
    weight, centre, positives = _pooled(scores[order], labels[order].astype(np.float64))
    # One row's worth of the base rate: a block of ten frauds is no proof of certainty.
    rate = (positives + base_rate) / (weight + 1.0)
    # The pull is stronger on small blocks, which can undo the order of two neighbours.
    kept = np.flatnonzero(_rises(rate) & _rises(centre) & (centre < 1.0))
    if len(kept) > MAX_KNOTS - 2:
        kept = kept[np.linspace(0, len(kept) - 1, MAX_KNOTS - 2).astype(np.int64)]
    return CalibrationTable(
        np.concatenate([[0.0], centre[kept], [1.0]]), np.concatenate([[0.0], rate[kept], [1.0]])
    )


def _rises(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which values are above 0 and above all before them."""
    return values > np.maximum.accumulate(np.concatenate([[0.0], values[:-1]]))


@kernel
def _pooled(
    scores: NDArray[np.float64], labels: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Rows, mean score and frauds of each block of an isotonic fit; `scores` ascend."""
    n = scores.shape[0]
    weight = np.empty(n)
    total = np.empty(n)
    positives = np.empty(n)
    blocks = 0
    row = 0
    while row < n:
        weight[blocks] = 0.0
        total[blocks] = 0.0
        positives[blocks] = 0.0
        score = scores[row]
        while row < n and scores[row] == score:
            weight[blocks] += 1.0
            total[blocks] += score
            positives[blocks] += labels[row]
            row += 1
        blocks += 1
        while blocks > 1 and (
            positives[blocks - 2] * weight[blocks - 1] >= positives[blocks - 1] * weight[blocks - 2]
        ):
            weight[blocks - 2] += weight[blocks - 1]
            total[blocks - 2] += total[blocks - 1]
            positives[blocks - 2] += positives[blocks - 1]
            blocks -= 1
    return weight[:blocks], total[:blocks] / weight[:blocks], positives[:blocks]
