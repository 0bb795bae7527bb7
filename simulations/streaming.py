"""From a table of payments and a shape to the stream that is replayed.

A payment of the file is played when its message arrived (its own time, where the file has no
arrivals), and its facts when they became known. What was played before the start is history.
Rule: the same table, shape and generator give the same stream.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freshscore.config.errors import BadFile
from freshscore.features.table import Int64s, PaymentTable
from freshscore.simulations.added_payments import added_table
from freshscore.simulations.shapes import Shape, TouchKind
from freshscore.simulations.shaping import Touches, shaped
from freshscore.simulations.shaping_payments import PaymentColumns
from freshscore.simulations.streams import (
    MAX_STAGES,
    NO_FACT,
    Stream,
    content_number,
    is_score,
    last_stage,
)

_Columns = dict[str, NDArray[Any]]


def stream_of(table: PaymentTable, shape: Shape, start_ms: int, rng: np.random.Generator) -> Stream:
    """The stream of `table` under `shape`; payments played before `start_ms` are history.

    Raises BadFile if nothing is left to replay.
    """
    if len(shape.stages) > MAX_STAGES:
        raise ValueError(f"shape {shape.name!r} has {len(shape.stages)} stages of {MAX_STAGES}")
    played_ms = played_at_ms(table)
    order = np.argsort(played_ms, kind="stable")
    first = int(np.searchsorted(played_ms[order], start_ms))
    if first == len(table):
        raise BadFile(f"the file has no payment at {start_ms} ms or later")
    facts = table.specification.facts
    fraud = table.ever("fraud") if "fraud" in facts else np.zeros(len(table), np.bool_)
    columns = PaymentColumns(played_ms[order], table.amount_minor[order], fraud[order])
    traffic = shaped(columns, shape, rng, first_scored_row=first)
    added = replace(
        traffic.added,
        source_row=order[traffic.added.source_row],
        merchant_row=order[traffic.added.merchant_row],
    )
    payment = np.concatenate([order, len(table) + np.arange(len(added))])[traffic.touches.row]
    parts = [
        _shaped_touches(traffic.touches, payment, table, shape),
        _facts_of_file(table, order[:first], start_ms, shape),
    ]
    touches = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    kept = _in_order(touches)
    return Stream(
        shape=shape,
        table=table,
        added=added_table(table, added),
        added_fraud=added.fraud,
        history=np.sort(order[:first]),
        start_ms=start_ms,
        **{name: column[kept] for name, column in touches.items()},
    )


def played_at_ms(table: PaymentTable) -> Int64s:
    """When each payment is played, (n,): on arrival, but never before its own time."""
    return np.maximum(table.time_ms, table.arrival_ms)


def _shaped_touches(
    touches: Touches, payment: Int64s, table: PaymentTable, shape: Shape
) -> _Columns:
    """Shaped touches, without the facts that the file itself has or the specification lacks."""
    facts = table.specification.facts
    stage = touches.stage.astype(np.int64)
    fact = np.full(len(touches), NO_FACT, np.int8)
    kept = touches.kind < TouchKind.DECLINED_FACT
    simulated = payment >= len(table)
    for kind, name, wanted in (
        (TouchKind.FRAUD_FACT, "fraud", simulated),
        (TouchKind.DECLINED_FACT, "declined", True),
    ):
        if name in facts:
            of_this = touches.kind == kind
            # A fact names the entities of its event.
            stage[of_this] = shape.observed_stage
            fact[of_this] = facts.index(name)
            kept |= of_this & wanted
    return {
        "at_ms": touches.at_ms[kept],
        "kind": touches.kind[kept],
        "payment": payment[kept],
        "content": content_number(payment, stage)[kept],
        "amount_minor": touches.amount_minor[kept],
        "fact": fact[kept],
        "value": np.ones(np.count_nonzero(kept), np.bool_),
    }


def _facts_of_file(table: PaymentTable, history: Int64s, start_ms: int, shape: Shape) -> _Columns:
    """The file's facts, but those of payments in `history` that were known before the start."""
    facts = table.facts
    is_past = np.zeros(len(table), np.bool_)
    is_past[history] = True
    kept = np.flatnonzero(~is_past[facts.row] | (facts.known_at_ms >= start_ms))
    row = facts.row[kept]
    stage = np.where(is_past[row], last_stage(shape), shape.observed_stage)
    return {
        "at_ms": np.maximum(facts.known_at_ms[kept], start_ms),
        "kind": np.full(len(kept), TouchKind.FRAUD_FACT, np.uint8),
        "payment": row,
        "content": content_number(row, stage),
        "amount_minor": table.amount_minor[row],
        "fact": facts.name[kept].astype(np.int8),
        "value": facts.value[kept],
    }


def _in_order(touches: _Columns) -> Int64s:
    """The order of the touches, without those after the last score: nobody would see them."""
    is_event = touches["fact"] == NO_FACT
    order: Int64s = np.lexsort((touches["kind"], touches["payment"], is_event, touches["at_ms"]))
    seen = np.flatnonzero(is_score(touches["kind"][order]))
    return order[: seen[-1] + 1]
