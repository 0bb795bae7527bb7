"""Scoring many transactions at once: a table in, columns out.

Rows do not see each other: scoring changes no aggregate. Each is one call of the same compiled code
as a single score (which costs 0.2 us a row), so other threads run in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from freshscore.features.memory import address_of
from freshscore.features.table import PaymentTable
from freshscore.features.table_rows import rows_of
from freshscore.scoring import cache_layout as c
from freshscore.scoring.result import DECISIONS, SOURCES
from freshscore.scoring.serving import Serving, features_at, keep

_TOO_OLD: Final = "as_of: older than what the state holds (newest event - store.horizon_s)"
_TOO_EARLY: Final = "as_of: before the payment's own time"


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Answers to n rows: what the kernel wrote of each, uint8 (n, bytes), and its status (n,)."""

    outs: NDArray[np.uint8]
    statuses: NDArray[np.int64]

    def words(self, at: int, kind: type[np.generic] = np.int64) -> NDArray[Any]:
        """One word of each answer, at byte `at`."""
        return np.ascontiguousarray(self.outs[:, at : at + 8]).view(kind).reshape(-1)


def score_table(serving: Serving, table: PaymentTable, as_of_ms: int) -> Scored:
    """Score every payment of `table` at `as_of_ms` (0: as `Scorer.score` chooses)."""
    rows = rows_of(table, serving.packer)
    n = len(rows)
    outs = np.zeros((n, serving.out_bytes), np.uint8)
    statuses = np.empty(n, np.int64)
    score_in, context_at = serving.score_in, serving.context_at
    row_at, out_at = address_of(rows), address_of(outs)
    row_bytes, out_bytes = rows.strides[0], serving.out_bytes
    for i in range(n):
        statuses[i] = score_in(context_at, row_at, as_of_ms, out_at)
        row_at += row_bytes
        out_at += out_bytes
    _call_model(serving, rows, outs, statuses)
    return Scored(outs, statuses)


def _call_model(
    serving: Serving,
    rows: NDArray[np.uint64],
    outs: NDArray[np.uint8],
    statuses: NDArray[np.int64],
) -> None:
    """Call a model that is not walked, once for all rows that need it, and keep the scores."""
    needing = np.flatnonzero(statuses == c.NEEDS_MODEL)
    if len(needing) == 0:
        return
    features = np.ascontiguousarray(outs[needing, features_at(serving) :]).view(np.float64)
    scores = serving.model.predict(features)
    row_at, out_at = address_of(rows), address_of(outs)
    for i, score in zip(needing.tolist(), scores.tolist(), strict=True):
        keep(serving, row_at + i * rows.strides[0], out_at + i * outs.strides[0], score)
    statuses[needing] = c.SERVED


def as_frame(
    serving: Serving, table: PaymentTable, scored: Scored, index: pd.Index
) -> pd.DataFrame:
    """Answers as a frame on `index`, one row for each row of the source, in its order."""
    n = len(index)
    good = scored.statuses == c.SERVED
    at = table.row[good]
    frame: dict[str, Any] = {
        "score": _placed(n, at, scored.words(c.OUT_SCORE, np.float64)[good], np.nan),
        "decision": _named(n, at, scored.words(c.OUT_DECISION)[good], DECISIONS),
        "source": _named(n, at, scored.words(c.OUT_SOURCE)[good], SOURCES),
        "as_of": _whole(n, at, scored.words(c.OUT_AS_OF)[good]),
        "valid_until": _whole(n, at, scored.words(c.OUT_VALID_UNTIL)[good]),
        "model_version": serving.version,
        "error": _errors(n, table, scored),
    }
    return pd.DataFrame(frame, index=index)


def _placed(n: int, at: NDArray[np.int64], values: NDArray[Any], absent: Any) -> NDArray[Any]:
    column = np.full(n, absent)
    column[at] = values
    return column


def _whole(n: int, at: NDArray[np.int64], values: NDArray[np.int64]) -> Any:
    column = np.zeros(n, np.int64)
    column[at] = values
    absent = np.ones(n, np.bool_)
    absent[at] = False
    return pd.arrays.IntegerArray(column, absent)


def _named(n: int, at: NDArray[np.int64], codes: NDArray[np.int64], names: tuple[str, ...]) -> Any:
    column = np.full(n, -1, np.int64)
    column[at] = codes
    return pd.Categorical.from_codes(column, categories=pd.Index(names))


def _errors(n: int, table: PaymentTable, scored: Scored) -> NDArray[np.object_]:
    column = np.full(n, None, object)
    for row, problem in table.rejected.listed(len(table.rejected)):
        column[row] = f"{problem.reason}: {problem.sentence}"
    column[table.row[scored.statuses == c.AS_OF_TOO_OLD]] = _TOO_OLD
    column[table.row[scored.statuses == c.AS_OF_BEFORE_PAYMENT]] = _TOO_EARLY
    return column
