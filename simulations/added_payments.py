"""The payments that traffic shaping adds, as a table beside the file's own.

`shaping_payments.with_new_payments` does the same for a frame with freshscore's column names; this
is for files that were read by whatever column map.
Rule: what no column of `NewPayments` gives is copied from the payment that it was made from; a
simulated payment has no facts and flags of its own, for those become known in the stream.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from freshscore.config.errors import BadFile
from freshscore.features.table import Coded, FactTable, Int64s, PaymentTable, Rejected
from freshscore.simulations.generator_attacks import SHARED
from freshscore.simulations.generator_columns import identifiers
from freshscore.simulations.shaping_payments import NewPayments

_PREFIX: Final = "simulated-"


def added_table(table: PaymentTable, added: NewPayments) -> PaymentTable:
    """A row for each of `added`, whose row numbers are those of `table`; codes go on from its own.

    Raises BadFile if the table has transaction ids of the form that simulated payments get.
    """
    if pc.any(pc.starts_with(table.transaction_id, _PREFIX)).as_py():
        raise BadFile(
            f"the file has transaction ids that begin with {_PREFIX!r}, as simulated ones do"
        )
    source: Int64s = added.source_row
    numbers = np.arange(len(added))
    ids = identifiers(_PREFIX, numbers)
    nothing = np.zeros(0, np.int64)
    return replace(
        table,
        row=len(table) + numbers,
        transaction_id=ids,
        original_ids=ids,
        time_ms=added.time_ms,
        arrival_ms=added.time_ms,
        amount_minor=added.amount_minor,
        kind=table.kind[source],
        entities=_entities(table, added),
        numbers={name: values[source] for name, values in table.numbers.items()},
        categories={name: column.take(source) for name, column in table.categories.items()},
        location=None if table.location is None else table.location[source],
        located=None if table.located is None else table.located[source],
        conditions=table.conditions[source],
        flags=np.zeros(len(added), np.uint8),
        facts=FactTable(nothing, np.zeros(0, np.uint8), np.zeros(0, np.bool_), nothing, nothing),
        rejected=Rejected(nothing, np.zeros(0, np.int32), ()),
        kept={},
    )


def _entities(table: PaymentTable, added: NewPayments) -> dict[str, Coded]:
    columns = {name: column.take(added.source_row) for name, column in table.entities.items()}
    merchant = merchant_of(table)
    if merchant is not None:
        columns[merchant] = table.entities[merchant].take(added.merchant_row)
    card = card_of(table)
    if card is not None:
        columns[card] = _with_new(columns[card], added.new_card, np.arange(len(added)), "card")
    # In each burst one of these is one value, the others are all new.
    present = [name for name in SHARED if name in columns and name != card]
    for place, name in enumerate(present):
        shared = added.number % len(present) == place
        whose = np.where(shared, len(added) + added.number, np.arange(len(added)))
        columns[name] = _with_new(columns[name], added.in_burst, whose, name)
    return columns


def card_of(table: PaymentTable) -> str | None:
    """The part of an entity that is the payer: `card`, or else the first that is declared."""
    return _first(table, "card", "customer") or next(iter(table.entities), None)


def merchant_of(table: PaymentTable) -> str | None:
    """The part of an entity that is the payee, if there is one."""
    return _first(table, "merchant", "terminal")


def _first(table: PaymentTable, *names: str) -> str | None:
    return next((name for name in names if name in table.entities), None)


def _with_new(column: Coded, where: np.ndarray, whose: np.ndarray, name: str) -> Coded:
    """`column` with one new value for each number in `whose`, at the rows `where`."""
    distinct, code = np.unique(whose[where], return_inverse=True)
    codes = column.codes.copy()
    codes[where] = len(column.values) + code
    fresh = identifiers(f"{_PREFIX}{name}-", distinct)
    return Coded(
        codes, pa.concat_arrays([column.values.cast(pa.string()), fresh.cast(pa.string())])
    )
