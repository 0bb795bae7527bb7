"""Scoring many transactions at once: a table in, columns out.

Rows do not see each other: scoring changes no aggregate. Each is one call of the same compiled code
as a single score (which costs 0.2 us a row), so other threads run in between.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from freshscore.config.errors import DeadlineExceeded
from freshscore.features.memory import address_of
from freshscore.features.table import PaymentTable
from freshscore.features.table_rows import rows_of
from freshscore.scoring import cache_layout as c
from freshscore.scoring.flights import Flights
from freshscore.scoring.result import AGED, ALL_SOURCES, DECISIONS, UNAVAILABLE, degraded_causes
from freshscore.scoring.serving import HASH, Serving, check_probe, features_at, keep

_TOO_OLD: Final = "as_of: older than what the state holds (newest event - store.horizon_s)"
_TOO_EARLY: Final = "as_of: before the payment's own time"
_NOT_IN_TIME: Final = "the same score is being computed elsewhere (cache.inflight_wait_s)"
_UNAVAILABLE: Final = "Redis does not answer, and nothing is known of this payment here"
# A status beside those of the kernel.
NOT_IN_TIME: Final = -100


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Answers to n rows: what the kernel wrote of each, uint8 (n, bytes), and its status (n,)."""

    outs: NDArray[np.uint8]
    statuses: NDArray[np.int64]

    def words(self, at: int, kind: type[np.generic] = np.int64) -> NDArray[Any]:
        """One word of each answer, at byte `at`."""
        return np.ascontiguousarray(self.outs[:, at : at + 8]).view(kind).reshape(-1)


class RowStates(Protocol):
    """Where the states of a table's rows are fetched before each is scored."""

    @property
    def context_at(self) -> int:
        """The context that scores on them."""
        ...

    def take(
        self, rows: NDArray[np.uint64], number: int, as_of_ms: int, out: NDArray[np.uint8]
    ) -> int | None:
        """Let the context have the states of row `number`, and return None.

        Or, where they cannot be had, the row's status, with the answer at `as_of_ms` (0: now) in
        `out` if it is SERVED.
        """
        ...

    def instant(self, row: NDArray[np.uint64], as_of_ms: int) -> int:
        """The instant at which the row that was taken is scored, ms."""
        ...

    def is_found(self, out: NDArray[np.uint8]) -> bool:
        """After NEEDS_MODEL in `out`: whether the score of the row taken last is known elsewhere.

        Then it is kept, and in `out`.
        """
        ...

    def computed(self, out: NDArray[np.uint8]) -> None:
        """The model gave the score in `out`, of the row taken last."""
        ...


def score_table(
    serving: Serving,
    table: PaymentTable,
    as_of_ms: int,
    flights: Flights,
    wait_s: float,
    states: RowStates | None = None,
) -> Scored:
    """Score every payment of `table` at `as_of_ms` (0: as `Scorer.score` chooses).

    A model that is not walked is called once for all rows that need it, and whose scores no other
    process has computed; wait_s: how long to wait, after that, for what other threads compute.
    states: None where all are in memory.
    """
    rows = rows_of(table, serving.packer)
    outs = np.zeros((len(rows), serving.out_bytes), np.uint8)
    scored = Scored(outs, np.empty(len(rows), np.int64))
    score_in, context_at = serving.score_in, serving.context_at
    row_at, out_at = address_of(rows), address_of(outs)
    row_bytes, out_bytes = rows.strides[0], serving.out_bytes
    at_ms = as_of_ms
    if states is not None:
        context_at = states.context_at
    for i in range(len(rows)):
        status = None
        if states is not None:
            status = states.take(rows, i, as_of_ms, outs[i])
            at_ms = states.instant(rows[i], as_of_ms)
        if status is None:
            status = score_in(context_at, row_at, at_ms, out_at)
        if status == c.NEEDS_MODEL and states is not None and states.is_found(outs[i]):
            status = c.SERVED
        scored.statuses[i] = status
        row_at += row_bytes
        out_at += out_bytes
    needing = np.flatnonzero(scored.statuses == c.NEEDS_MODEL)
    while len(needing):
        needing = _call_model(serving, rows, scored, needing, flights, wait_s, states)
    for i in np.flatnonzero(scored.statuses == c.TO_BE_PROBED).tolist():
        check_probe(serving, outs[i].tobytes())
        scored.statuses[i] = c.SERVED
    return scored


def _call_model(
    serving: Serving,
    rows: NDArray[np.uint64],
    scored: Scored,
    needing: NDArray[np.int64],
    flights: Flights,
    wait_s: float,
    states: RowStates | None,
) -> NDArray[np.int64]:
    """Call the model once for the keys that nobody computes; the rows that still need it then."""
    outs, statuses = scored.outs, scored.statuses
    led: dict[bytes, int] = {}
    boarded: dict[bytes, threading.Lock] = {}
    others: dict[int, bytes] = {}
    for i in needing.tolist():
        key = outs[i, HASH].tobytes()
        flight = None if key in led else flights.board(key)
        if flight is None:
            others[i] = key
        else:
            led[key], boarded[key] = i, flight
    row_at, out_at, at_context = address_of(rows), address_of(outs), serving.context_at
    if states is not None:
        at_context = states.context_at
    try:
        if led:
            at = [*led.values()]
            features = np.ascontiguousarray(outs[at, features_at(serving) :]).view(np.float64)
            for i, score in zip(at, serving.model.predict(features).tolist(), strict=True):
                told = None
                if states is not None:
                    told = states.take(rows, i, _as_of_in(outs[i]), outs[i])
                if told is not None:
                    statuses[i] = told
                    continue
                keep(
                    serving,
                    row_at + i * rows.strides[0],
                    out_at + i * outs.strides[0],
                    score,
                    at_context,
                )
                statuses[i] = c.SERVED
                if states is not None:
                    states.computed(outs[i])
    finally:
        for key, flight in boarded.items():
            flights.land(key, flight)
    ends_s = flights.ends_s(wait_s)
    for i, key in others.items():
        try:
            flights.wait(key, ends_s)
        except DeadlineExceeded:
            statuses[i] = NOT_IN_TIME
            continue
        at_ms = _as_of_in(outs[i])
        outs[i] = 0
        told = None if states is None else states.take(rows, i, at_ms, outs[i])
        statuses[i] = (
            told
            if told is not None
            else serving.score_in(
                at_context,
                row_at + i * rows.strides[0],
                at_ms,
                out_at + i * outs.strides[0],
            )
        )
    return np.flatnonzero(statuses == c.NEEDS_MODEL)


def _as_of_in(out: NDArray[np.uint8]) -> int:
    return int(out[c.OUT_AS_OF : c.OUT_AS_OF + 8].view(np.int64)[0])


def as_frame(
    serving: Serving, table: PaymentTable, scored: Scored, index: pd.Index
) -> pd.DataFrame:
    """Answers as a frame on `index`, one row for each row of the source, in its order."""
    n = len(index)
    good = scored.statuses == c.SERVED
    at = table.row[good]
    as_of = scored.words(c.OUT_AS_OF)[good]
    since = scored.words(c.OUT_COMPLETE_SINCE)[good]
    degraded = scored.words(c.OUT_DEGRADED)[good]
    aged = degraded & AGED != 0
    frame: dict[str, Any] = {
        "score": _placed(n, at, scored.words(c.OUT_SCORE, np.float64)[good], np.nan),
        "decision": _named(n, at, scored.words(c.OUT_DECISION)[good], DECISIONS),
        "source": _named(n, at, scored.words(c.OUT_SOURCE)[good], ALL_SOURCES),
        "as_of": _whole(n, at, as_of),
        "valid_until": _whole(n, at, scored.words(c.OUT_VALID_UNTIL)[good]),
        "model_version": serving.version,
        "degraded": _causes(n, at, degraded),
        "known_age_ms": _whole(n, at[aged], scored.words(c.OUT_KNOWN_AGE)[good][aged]),
        "complete_since": _whole(n, at[since != 0], np.minimum(since, as_of)[since != 0]),
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


def _causes(n: int, at: NDArray[np.int64], bits: NDArray[np.int64]) -> NDArray[np.object_]:
    """Why answers are degraded, a text for each; empty where they are not."""
    column = np.full(n, "", object)
    for row in np.flatnonzero(bits):
        column[at[row]] = ", ".join(degraded_causes(int(bits[row])))
    return column


def _errors(n: int, table: PaymentTable, scored: Scored) -> NDArray[np.object_]:
    column = np.full(n, None, object)
    for row, problem in table.rejected.listed(len(table.rejected)):
        column[row] = f"{problem.reason}: {problem.sentence}"
    column[table.row[scored.statuses == c.AS_OF_TOO_OLD]] = _TOO_OLD
    column[table.row[scored.statuses == c.AS_OF_BEFORE_PAYMENT]] = _TOO_EARLY
    column[table.row[scored.statuses == NOT_IN_TIME]] = _NOT_IN_TIME
    column[table.row[scored.statuses == UNAVAILABLE]] = _UNAVAILABLE
    return column
