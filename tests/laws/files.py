"""Payments as the frame that a user would have: one column for each part, an arrival column, and
for each fact whether and when it became known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from freshscore.features.specification import FeatureSpecification
from freshscore.features.transaction import Transaction


@dataclass(frozen=True)
class Line:
    """One line of a file: a payment, when it arrived, and fact -> when it became known true."""

    payment: Transaction
    arrival_ms: int
    known_at_ms: Mapping[str, int] = field(default_factory=dict)


def frame_of(lines: Sequence[Line], specification: FeatureSpecification) -> pd.DataFrame:
    """A frame with freshscore's own column names."""
    cells = [_cells(line, specification) for line in lines]
    names = list(cells[0]) if cells else []
    return pd.DataFrame(
        {name: pd.Series([row[name] for row in cells], dtype=object) for name in names}
    )


def _cells(line: Line, specification: FeatureSpecification) -> dict[str, Any]:
    payment = line.payment
    latitude, longitude = payment.location or (None, None)
    parts = sorted({part for entity in specification.entities for part in entity.parts})
    conditions = {c.field for c in specification.conditions if c.field is not None}
    fields = sorted({*specification.plain_fields, *specification.categories, *conditions})
    cells: dict[str, Any] = {
        "transaction_id": payment.transaction_id,
        "time_ms": payment.time,
        "arrival_ms": line.arrival_ms,
        "amount_minor": payment.amount_minor,
        "currency": payment.currency,
        "base_amount_minor": payment.base_amount_minor,
        "kind": payment.kind,
        "latitude": latitude,
        "longitude": longitude,
    }
    cells |= {part: payment.entities.get(part) for part in parts}
    cells |= {name: payment.fields.get(name) for name in fields}
    for fact in specification.facts:
        # A flag is known with the event, all else when the line says.
        known_at_ms = payment.time if payment.flags.get(fact) else line.known_at_ms.get(fact)
        cells[fact] = known_at_ms is not None
        cells[f"{fact}_known_at"] = payment.time if known_at_ms is None else known_at_ms
    return cells


def in_arrival_order(lines: Sequence[Line]) -> list[Line]:
    """By arrival, equal ones in the order of the file."""
    order = np.argsort([line.arrival_ms for line in lines], kind="stable")
    return [lines[i] for i in order.tolist()]
