"""Traffic shaping: from a table of payments and a shape to an ordered stream of touches.

A touch is one thing that happens to one payment at one instant of the virtual clock: it is scored,
its event reaches the aggregates, or a fact about it becomes known.
The shares and delays, and the published facts that they come from, are in `shapes`.

Order: by instant; at one instant facts first (a fact counts at the instant at which it is known),
then by row, and for one row scores before its event.
Rule: the same table, shape and seed give the same stream. Each part of a shape draws from a stream
of its own, so that changing one leaves the others as they were.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from freshscore.simulations.shapes import Shape, TouchKind, delays_ms, drawn_delays
from freshscore.simulations.shaping_payments import NewPayments, PaymentColumns, new_payments

Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Touches:
    """Touches in order, one element each.

    at_ms: virtual clock, UTC. kind: a TouchKind.
    row: of the payment; rows of the table first, then those of `NewPayments` in their order.
    stage: index into the shape's stages; the payment has no field of `shape.hidden(stage)` yet.
    amount_minor: the payment's amount at this stage. Facts are about the payment, not the stage.
    """

    at_ms: Int64s
    kind: Bytes
    row: Int64s
    stage: Bytes
    amount_minor: Int64s

    def __len__(self) -> int:
        return len(self.at_ms)


@dataclass(frozen=True)
class Traffic:
    """A shaped table: its touches, and the payments that the table did not have."""

    shape: Shape
    touches: Touches
    added: NewPayments


@dataclass(frozen=True)
class _Course:
    """When each scored payment reaches each stage, and with what amount; (stages, payments)."""

    row: Int64s
    at_ms: Int64s
    reached: Bools
    amount_minor: Int64s


def shaped(
    payments: PaymentColumns, shape: Shape, rng: np.random.Generator, *, first_scored_row: int = 0
) -> Traffic:
    """The traffic that `payments` are under `shape`.

    Rows before `first_scored_row` are history: they are neither scored nor observed, for the caller
    loads them in bulk; facts about them are touches all the same, those before the first score too.
    """
    declines_rng, added_rng, course_rng, again_rng, events_rng, labels_rng = rng.spawn(6)
    scored = np.arange(len(payments)) >= first_scored_row
    declined = scored & (declines_rng.random(len(payments)) < shape.declined_share)
    added = new_payments(payments, shape, declined, first_scored_row, added_rng)
    time_ms = np.concatenate([payments.time_ms, added.time_ms])
    amount_minor = np.concatenate([payments.amount_minor, added.amount_minor])
    fraud = np.concatenate([payments.fraud, added.fraud])
    row = np.concatenate(
        [np.flatnonzero(scored), np.arange(len(payments), len(payments) + len(added))]
    )
    course = _course(row, time_ms, amount_minor, shape, course_rng)
    fraud_row = np.flatnonzero(fraud)
    fraud_known_ms = time_ms + delays_ms(shape.label_delays, len(time_ms), labels_rng)
    parts = [
        *_stage_touches(course),
        _rescores(course, shape, again_rng),
        *_events(course, shape, events_rng),
        _facts(TouchKind.FRAUD_FACT, fraud_row, fraud_known_ms[fraud], amount_minor),
    ]
    if shape.declined_known_ms is not None:
        known_ms = payments.time_ms[declined] + shape.declined_known_ms
        rows = np.flatnonzero(declined)
        parts.append(_facts(TouchKind.DECLINED_FACT, rows, known_ms, amount_minor))
    return Traffic(shape=shape, touches=_in_order(parts), added=added)


def _course(
    row: Int64s, time_ms: Int64s, amount_minor: Int64s, shape: Shape, rng: np.random.Generator
) -> _Course:
    at_ms = [time_ms[row]]
    reached = [np.ones(len(row), dtype=np.bool_)]
    amounts = [amount_minor[row]]
    for stage in shape.stages[1:]:
        at_ms.append(at_ms[-1] + _between(stage.after_ms, len(row), rng))
        reached.append(reached[-1] & (rng.random(len(row)) < stage.share))
        changed = rng.random(len(row)) < stage.amount_changed_share
        factor = np.where(changed, rng.uniform(*stage.amount_factor, len(row)), 1.0)
        amounts.append(np.rint(amounts[-1] * factor).astype(np.int64))
    return _Course(row, np.stack(at_ms), np.stack(reached), np.stack(amounts))


def _stage_touches(course: _Course) -> list[Touches]:
    everyone = np.arange(len(course.row))
    first = _touches(course, TouchKind.FIRST, everyone, course.at_ms[0], 0)
    later = [
        _touches(course, TouchKind.STAGE, who, course.at_ms[stage, who], stage)
        for stage in range(1, len(course.at_ms))
        for who in [np.flatnonzero(course.reached[stage])]
    ]
    return [first, *later]


def _rescores(course: _Course, shape: Shape, rng: np.random.Generator) -> Touches:
    """Scores again after the first, each with the content of the last stage reached by then."""
    size = len(course.row)
    chosen = rng.random(size) < shape.rescored_share
    times = np.where(chosen, _between(shape.rescores, size, rng), 0)
    who = np.repeat(np.arange(size), times)
    part, delay_ms = drawn_delays(shape.rescore_delays, len(who), rng)
    at_ms = course.at_ms[0, who] + delay_ms
    # Stages are reached one after the other: the number reached by then names the last one.
    stage = np.count_nonzero(course.reached[:, who] & (course.at_ms[:, who] <= at_ms), axis=0) - 1
    kinds = np.array([delay.kind for delay in shape.rescore_delays], dtype=np.uint8)
    return _touches(course, kinds[part], who, at_ms, stage)


def _events(course: _Course, shape: Shape, rng: np.random.Generator) -> list[Touches]:
    """Every payment's event, and those that are delivered once more."""
    lag_rng, late_rng, duplicates_rng = rng.spawn(3)
    size = len(course.row)
    lag_ms = shape.event_lag_ms + _between((0, shape.event_jitter_ms), size, lag_rng)
    late = late_rng.random(size) < shape.late_share
    lag_ms = np.where(late, _between(shape.late_ms, size, late_rng), lag_ms)
    at_ms = course.at_ms[shape.observed_stage] + lag_ms
    everyone = np.arange(size)
    twice = np.flatnonzero(duplicates_rng.random(size) < shape.duplicate_share)
    again_ms = at_ms[twice] + _between(shape.duplicate_ms, len(twice), duplicates_rng)
    return [
        _touches(course, TouchKind.OBSERVE, everyone, at_ms, shape.observed_stage),
        _touches(course, TouchKind.OBSERVE, twice, again_ms, shape.observed_stage),
    ]


def _touches(
    course: _Course, kind: int | Bytes, who: Int64s, at_ms: Int64s, stage: int | Int64s
) -> Touches:
    """Touches of the payments `who`, indices into the course."""
    return Touches(
        at_ms=at_ms,
        kind=np.broadcast_to(np.asarray(kind, dtype=np.uint8), who.shape),
        row=course.row[who],
        stage=np.broadcast_to(np.asarray(stage, dtype=np.uint8), who.shape),
        amount_minor=course.amount_minor[stage, who],
    )


def _facts(kind: TouchKind, row: Int64s, known_ms: Int64s, amount_minor: Int64s) -> Touches:
    return Touches(
        at_ms=known_ms,
        kind=np.full(len(row), kind, dtype=np.uint8),
        row=row,
        stage=np.zeros(len(row), dtype=np.uint8),
        amount_minor=amount_minor[row],
    )


def _in_order(parts: list[Touches]) -> Touches:
    columns = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(Touches)
    }
    fact = columns["kind"] >= TouchKind.DECLINED_FACT
    # Facts below all rows; then by row, and within a row in the order of TouchKind.
    tie = np.where(fact, np.int64(0), columns["row"] + 1) * len(TouchKind) + columns["kind"]
    by_tie = np.argsort(tie, kind="stable")
    order = by_tie[np.argsort(columns["at_ms"][by_tie], kind="stable")]
    return Touches(**{name: column[order] for name, column in columns.items()})


def _between(pair: tuple[int, int], size: int, rng: np.random.Generator) -> Int64s:
    return rng.integers(pair[0], pair[1] + 1, size)
