"""One set of payments in every form in which payments enter, and tables as comparable values."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from freshscore.features.reading import read_payments
from freshscore.features.specification import FeatureSpecification
from freshscore.features.table import PaymentTable

# Reads every part that a payment can have, so that nothing goes unchecked for want of a reader.
SPECIFICATION = FeatureSpecification.from_toml(
    """
    name = "everything"
    currency = "EUR"
    facts = ["declined", "fraud"]
    label_delay = { fraud = "7d" }
    features = [
        { name = "amount", function = "amount" },
        { name = "risk", function = "field", of = "risk" },
        { name = "mcc", function = "category", of = "mcc" },
        { name = "card_distance", function = "distance", entity = "card" },
    ]
    [[entities]]
    name = "card"
    [[entities]]
    name = "pair"
    of = ["card", "merchant"]
    [[windows]]
    entity = "card"
    lengths = ["1d"]
    aggregates = [
        { function = "count" },
        { function = "count", where = { kind = "refund" } },
        { function = "count", where = { field = "channel", value = "web" } },
        { function = "share", of = "fraud" },
    ]
    """
)
ENTITIES = ("card", "merchant")
FIELDS = ("risk", "mcc", "channel")
PAYMENT: dict[str, Any] = {
    "transaction_id": "t-1",
    "time": 1_546_300_800_000,
    "amount_minor": 1_050,
    "currency": "EUR",
    "entities": {"card": "c-1", "merchant": "m-1"},
    "kind": "authorisation",
    "base_amount_minor": None,
    "original_id": None,
    "fields": {"risk": 0.25, "mcc": "5411", "channel": "web"},
    "location": (50.85, 4.35),
    "flags": {"declined": True},
}
# Names of Transaction whose values are mappings or pairs, and lie in columns of their own.
_NESTED = ("entities", "fields", "flags", "location")


def flat(payment: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of a payment under freshscore's own column names."""
    cells = {name: value for name, value in payment.items() if name not in _NESTED}
    cells |= {name: payment["entities"].get(name) for name in ENTITIES}
    cells |= {name: payment["fields"].get(name) for name in FIELDS}
    cells["latitude"], cells["longitude"] = payment["location"] or (None, None)
    for fact in SPECIFICATION.facts:
        cells[fact] = payment["flags"].get(fact)
        # Flags are known at the event's own time, whatever the specification says of labels.
        cells[f"{fact}_known_at"] = payment["time"]
    return cells


def as_list(payments: Sequence[Mapping[str, Any]], folder: Path) -> PaymentTable:
    return read_payments(list(payments), SPECIFICATION)


def as_frame(payments: Sequence[Mapping[str, Any]], folder: Path) -> PaymentTable:
    rows = [flat(payment) for payment in payments]
    columns = {name: pd.Series([row[name] for row in rows], dtype=object) for name in rows[0]}
    return read_payments(pd.DataFrame(columns), SPECIFICATION)


def as_parquet(payments: Sequence[Mapping[str, Any]], folder: Path) -> PaymentTable:
    rows = [flat(payment) for payment in payments]
    arrays = {name: _typed([row[name] for row in rows]) for name in rows[0]}
    pq.write_table(pa.table(arrays), folder / "payments.parquet")
    return read_payments(folder / "payments.parquet", SPECIFICATION)


def _typed(cells: list[Any]) -> pa.Array:
    # A typed column has no truths among its numbers.
    if {type(cell) for cell in cells} - {type(None)} > {bool}:
        cells = [float(cell) if isinstance(cell, bool) else cell for cell in cells]
    return pa.array(cells)


def as_csv(payments: Sequence[Mapping[str, Any]], folder: Path) -> PaymentTable:
    rows = [flat(payment) for payment in payments]
    with (folder / "payments.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return read_payments(folder / "payments.csv", SPECIFICATION)


Form = Callable[[Sequence[Mapping[str, Any]], Path], PaymentTable]
FORMS: dict[str, Form] = {
    "list": as_list,
    "frame": as_frame,
    "parquet": as_parquet,
    "csv": as_csv,
}


def contents(table: PaymentTable) -> dict[str, Any]:
    """Everything in a table as plain values that `==` compares; NaN is None."""
    facts = table.facts
    return {
        "row": table.row.tolist(),
        "transaction_id": table.transaction_id.to_pylist(),
        "time_ms": table.time_ms.tolist(),
        "arrival_ms": table.arrival_ms.tolist(),
        "amount_minor": table.amount_minor.tolist(),
        "kind": table.kind.tolist(),
        "entities": {name: column.texts().to_pylist() for name, column in table.entities.items()},
        "numbers": {name: _plain(values) for name, values in table.numbers.items()},
        "categories": {n: column.texts().to_pylist() for n, column in table.categories.items()},
        "location": None if table.location is None else table.location.tolist(),
        "located": None if table.located is None else table.located.tolist(),
        "conditions": table.conditions.tolist(),
        "flags": table.flags.tolist(),
        "facts": [
            column.tolist()
            for column in (facts.row, facts.name, facts.value, facts.sender_ms, facts.known_at_ms)
        ],
        "rejected": [(row, problem.reason) for row, problem in table.rejected.listed(10**6)],
    }


def check_structure(table: PaymentTable) -> None:
    """What holds for every table: lengths, types, order, codes that point into their values."""
    n = len(table)
    columns = [*table.entities.values(), *table.categories.values()]
    for codes in [column.codes for column in columns]:
        assert codes.dtype == np.int32
    expected = {
        "row": np.int64,
        "time_ms": np.int64,
        "arrival_ms": np.int64,
        "amount_minor": np.int64,
        "kind": np.uint8,
        "conditions": np.uint16,
        "flags": np.uint8,
    }
    for name, kind in expected.items():
        assert getattr(table, name).dtype == kind
        assert getattr(table, name).shape == (n,)
    assert len(table.transaction_id) == len(table.original_ids) == n
    assert table.transaction_id.type == pa.string()
    assert table.transaction_id.null_count == 0
    for column in columns:
        assert column.values.type == pa.string()
        assert column.values.null_count == 0
        texts = column.values.to_pylist()
        assert len(set(texts)) == len(texts)
        assert len(column) == n
        assert ((column.codes >= -1) & (column.codes < len(texts))).all()
    order = list(zip(table.arrival_ms.tolist(), table.row.tolist(), strict=True))
    assert order == sorted(order)
    facts = list(zip(table.facts.row.tolist(), table.facts.name.tolist(), strict=True))
    assert facts == sorted(set(facts))
    assert not {*table.row.tolist()} & {*table.rejected.row.tolist()}


def _plain(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]
