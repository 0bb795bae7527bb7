"""What came out of a replay: all figures that its tables and its report show.

Rule: numbers only, of payments and touches by count, time or money; nothing here names a card, a
merchant or a payment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from freshscore.features.table import Bools, Floats, Int64s
from freshscore.scoring import cache_layout as c
from freshscore.scoring.result import CAUSES, SOURCES
from freshscore.simulations.equality import Equality
from freshscore.simulations.incumbents import (
    IncumbentComparison,
    compared_decisions,
    incumbent_decisions,
)
from freshscore.simulations.policies import Comparison, PolicyStats, Touch, compared, foresight
from freshscore.simulations.protocol import auc_roc, average_precision
from freshscore.simulations.records import Records
from freshscore.simulations.replay import Replay
from freshscore.simulations.streams import Composition

_PERCENTILES: Final = (50, 90, 99)


@dataclass(frozen=True)
class SourceFigures:
    """Answers of one source. again: of payments that had been scored before.

    latency_us, age_s: at 50, 90 and 99 %; None without an answer (age: without a cached one).
    """

    source: str
    answers: int
    again: int
    latency_us: tuple[float, ...] | None
    age_s: tuple[float, ...] | None


@dataclass(frozen=True)
class CauseFigures:
    """Why the score that was known for a payment was not served as it stood.

    confirmed: the same score held all the same (box or cell). computed: another was needed.
    """

    cause: str
    confirmed: int
    computed: int


@dataclass(frozen=True)
class QualityFigures:
    """How well scores of the file's payments tell frauds; None where both classes are not there."""

    scores: str
    answers: int
    frauds: int
    average_precision: float | None
    auc_roc: float | None


@dataclass(frozen=True)
class Timeline:
    """Answers by source in equal spans of virtual time: answers (spans, sources).

    start_ms: (spans,). foresight: (spans,), how many of the answers it would have re-used.
    """

    span_ms: int
    start_ms: Int64s
    answers: Int64s
    foresight: Int64s


@dataclass(frozen=True)
class Outcome:
    """All figures of a replay. policies: perfect foresight first, then the scorer.

    quality: empty without labels. ages_s: of cached answers, for their distribution.
    touches_per_s: played in real time, recomputations included.
    """

    specification: str
    model_version: str
    shape: str
    currency: str
    first_ms: int
    last_ms: int
    history: int
    composition: Composition
    refused: int
    feed: dict[str, int]
    sources: tuple[SourceFigures, ...]
    causes: tuple[CauseFigures, ...]
    policies: tuple[PolicyStats, ...]
    quality: tuple[QualityFigures, ...]
    incumbent: IncumbentComparison | None
    equality: Equality
    timeline: Timeline
    ages_s: Floats
    touches_per_s: float

    @property
    def answers(self) -> int:
        """Scores answered."""
        return sum(figures.answers for figures in self.sources)

    @property
    def saved(self) -> int:
        """Answers for which the model did not run."""
        return sum(one.answers for one in self.sources if one.source != "computed")


def outcome_of(
    replay: Replay, equality: Equality, window_ms: int, incumbent: str | None = None
) -> Outcome:
    """The figures of `replay`; window_ms: for how long perfect foresight may re-use a score.

    incumbent: a column that the table has kept. Raises BadFile if it holds no decisions.
    """
    stream, records = replay.stream, replay.records
    again = _again(replay)
    comparison = _compare(replay, again, window_ms)
    return Outcome(
        specification=stream.table.specification.name,
        model_version=replay.model.version,
        shape=stream.shape.name,
        currency=stream.table.specification.currency,
        first_ms=int(records.as_of_ms[0]),
        last_ms=int(records.as_of_ms[-1]),
        history=len(stream.history),
        composition=stream.composition(),
        refused=replay.refused,
        feed=dict(sorted(replay.feed.items())),
        sources=_sources(records, again),
        causes=_causes(records),
        policies=tuple(comparison.stats()),
        quality=_quality(replay, again),
        incumbent=None if incumbent is None else _beside(replay, again, incumbent),
        equality=equality,
        timeline=_timeline(records, np.frombuffer(comparison.in_bound, np.uint8)),
        ages_s=records.age_ms[records.source != c.COMPUTED_NOW] / 1000.0,
        touches_per_s=len(stream) / replay.elapsed_s,
    )


def _payments(replay: Replay) -> Int64s:
    return replay.stream.payment[replay.records.touch]


def _again(replay: Replay) -> Bools:
    """Which answers are to payments that had been scored before."""
    identity = replay.stream.identity[_payments(replay)]
    again = np.ones(len(identity), np.bool_)
    again[np.unique(identity, return_index=True)[1]] = False
    return again


def _compare(replay: Replay, again: Bools, window_ms: int) -> Comparison:
    stream, records = replay.stream, replay.records
    payment = _payments(replay)
    thresholds = np.asarray(replay.model.cohort_thresholds)[replay.cohort[payment]]
    scores = records.score.tolist()
    computed = (records.source == c.COMPUTED_NOW).tolist()
    served = [None if new else score for score, new in zip(scores, computed, strict=True)]
    columns = (
        records.as_of_ms,
        stream.identity[payment],
        stream.card[payment],
        again,
        records.raw,
        records.cell,
        records.fresh,
        records.fresh.view(np.int64),
        thresholds[:, 0],
        thresholds[:, 1],
    )
    comparison = Comparison(foresight(window_ms), compared(window_ms))
    for touch in zip(*(column.tolist() for column in columns), served, strict=True):
        comparison.record(Touch(*touch))
    comparison.finished()
    return comparison


def _sources(records: Records, again: Bools) -> tuple[SourceFigures, ...]:
    found = []
    for number, name in enumerate(SOURCES):
        these = records.source == number
        cached = number != c.COMPUTED_NOW
        found.append(
            SourceFigures(
                source=name,
                answers=int(np.count_nonzero(these)),
                again=int(np.count_nonzero(these & again)),
                latency_us=_percentiles(records.latency_us[these]),
                age_s=_percentiles(records.age_ms[these] / 1000.0) if cached else None,
            )
        )
    return tuple(found)


def _percentiles(values: np.ndarray) -> tuple[float, ...] | None:
    if not len(values):
        return None
    return tuple(float(value) for value in np.percentile(values, _PERCENTILES))


def _causes(records: Records) -> tuple[CauseFigures, ...]:
    evaluated = records.source != c.MEMO
    return tuple(
        CauseFigures(
            cause=name,
            confirmed=int(np.count_nonzero(of_this & (records.source != c.COMPUTED_NOW))),
            computed=int(np.count_nonzero(of_this & (records.source == c.COMPUTED_NOW))),
        )
        for number, name in enumerate(CAUSES)
        for of_this in [evaluated & (records.cause == number)]
    )


def _quality(replay: Replay, again: Bools) -> tuple[QualityFigures, ...]:
    fraud = replay.stream.fraud
    if fraud is None:
        return ()
    payment, score = _payments(replay), replay.records.score
    label = fraud[payment]
    identity = replay.stream.identity[payment]
    rescored = np.isin(identity, identity[again])
    # Simulated payments are frauds by decree, of a sort that no model may have seen.
    own = payment < len(replay.stream.table)
    parts = (
        ("first scores, all payments of the file", own & ~again),
        ("first scores, those scored again", own & ~again & rescored),
        ("re-scores", own & again),
    )
    return tuple(
        QualityFigures(
            scores=name,
            answers=int(np.count_nonzero(these)),
            frauds=int(np.count_nonzero(label[these])),
            average_precision=average_precision(label[these], score[these]),
            auc_roc=auc_roc(label[these], score[these]),
        )
        for name, these in parts
    )


def _beside(replay: Replay, again: Bools, column: str) -> IncumbentComparison:
    """First decisions on the file's own payments beside those in `column`."""
    stream = replay.stream
    payment = _payments(replay)
    first = np.flatnonzero(~again & (payment < len(stream.table)))
    kept: pa.Array = stream.table.kept[column]
    rows = payment[first]
    return compared_decisions(
        column,
        incumbent_decisions(kept, column)[rows],
        replay.records.decision[first],
        stream.table.amount_minor[rows],
        None if stream.fraud is None else stream.fraud[rows],
    )


_MINUTE_MS: Final = 60_000
_SPANS_MS: Final = tuple(
    _MINUTE_MS * minutes for minutes in (1, 5, 15, 60, 180, 360, 720, 1_440, 10_080)
)
_MOST_SPANS: Final = 60


def _timeline(records: Records, in_bound: np.ndarray) -> Timeline:
    first_ms, last_ms = int(records.as_of_ms[0]), int(records.as_of_ms[-1])
    fitting = [one for one in _SPANS_MS if (last_ms - first_ms) // one < _MOST_SPANS]
    span_ms = fitting[0] if fitting else (last_ms - first_ms) // _MOST_SPANS + 1
    span = records.as_of_ms // span_ms
    n_spans = int(span[-1] - span[0]) + 1
    place = span - span[0]
    answers = np.zeros((n_spans, len(SOURCES)), np.int64)
    np.add.at(answers, (place, records.source), 1)
    return Timeline(
        span_ms=span_ms,
        start_ms=(span[0] + np.arange(n_spans)) * span_ms,
        answers=answers,
        foresight=np.bincount(place, weights=in_bound, minlength=n_spans).astype(np.int64),
    )
