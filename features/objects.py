"""Lists of Transactions, or of mappings with the same names, as raw columns.

Rule: each object is made a Transaction first, so a list is held to exactly what one transaction is
held to; what only the specification knows to be wrong (an undeclared flag, text where it reads a
number) is refused as a store would refuse it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from freshscore.config.errors import BadTransaction
from freshscore.features.columns import AmountColumn, Roles, TimeColumn
from freshscore.features.sources import Loaded, RawColumn
from freshscore.features.specification import FeatureSpecification, has_location
from freshscore.features.table import Problem
from freshscore.features.transaction import FieldValue, Transaction, shown_name

# The reason that a row is counted under, by how the message of Transaction begins.
_REASONS: Final = {
    "transaction_id": "transaction_id",
    "time": "time",
    "amount_minor": "amount",
    "currency": "currency",
    "entit": "entity",
    "the name of an entity": "entity",
    "kind": "kind",
    "a verification": "kind",
    "base_amount_minor": "base_amount",
    "original_id": "original_id",
    "field": "field",
    "the name of a field": "field",
    "location": "location",
    "flag": "flag",
}


def reason_of(problem: BadTransaction) -> str:
    """The reason that a row which raised `problem` is counted under; `row` if none is closer."""
    # A name that is missing is a part that is missing.
    message = str(problem).removeprefix("missing: ")
    return next((r for start, r in _REASONS.items() if message.startswith(start)), "row")


def loaded_objects(
    rows: Sequence[Transaction | Mapping[str, Any]], spec: FeatureSpecification
) -> tuple[Loaded, Roles]:
    """The columns of `rows` that `spec` reads; those that are no Transactions are `broken`."""
    good: list[Transaction] = []
    numbers: list[int] = []
    broken: dict[int, Problem] = {}
    for number, row in enumerate(rows):
        try:
            transaction = Transaction.of(row)
            _check(transaction, spec)
        except BadTransaction as problem:
            broken[number] = Problem(reason_of(problem), str(problem))
        else:
            good.append(transaction)
            numbers.append(number)
    roles = _roles(spec)
    arrays = _arrays(good, roles)
    columns = {name: RawColumn(name, values) for name, values in arrays.items()}
    return Loaded(columns, np.array(numbers, np.int64), broken), roles


def _check(transaction: Transaction, spec: FeatureSpecification) -> None:
    for name in spec.plain_fields:
        _number(transaction, name)
    for name in spec.categories:
        if not isinstance(transaction.fields.get(name, ""), str | None):
            raise BadTransaction(
                f"field {shown_name(name)} must be a string: it is read as a category"
            )
    for flag in transaction.flags:
        if flag not in spec.facts:
            raise BadTransaction(
                f"flag {shown_name(flag)} is no fact of specification {spec.name!r}"
            )


def _number(transaction: Transaction, name: str) -> float | None:
    value = transaction.fields.get(name)
    if isinstance(value, str):
        raise BadTransaction(f"field {shown_name(name)} must be a number, not a string")
    try:
        return None if value is None else float(value)
    except OverflowError:
        raise BadTransaction(f"field {shown_name(name)} is beyond the largest double") from None


def _text(value: FieldValue) -> str | None:
    # A condition on a field compares strings: to it, anything else is absent.
    return value if isinstance(value, str) else None


def _roles(spec: FeatureSpecification) -> Roles:
    """Columns named by what they are and the name within it: no two parts share one."""
    parts = dict.fromkeys(part for entity in spec.entities for part in entity.parts)
    texts = [*spec.categories, *(c.field for c in spec.conditions if c.field is not None)]
    time = TimeColumn("time")
    located = any(has_location(spec, entity.name) for entity in spec.entities)
    return Roles(
        transaction_id="transaction_id",
        time=time,
        amount=AmountColumn("amount", "minor"),
        currency=None,
        currency_column="currency",
        base_amount=AmountColumn("base_amount", "minor"),
        kind="kind",
        # Checked by Transaction, and nothing reads it.
        original_id=None,
        arrival=None,
        entities={part: f"entity {part}" for part in parts},
        numbers={name: f"number {name}" for name in spec.plain_fields},
        derived={},
        categories={name: f"text {name}" for name in texts if name not in spec.plain_fields},
        facts={name: f"flag {name}" for name in spec.facts},
        known_at=dict.fromkeys(spec.facts, time),
        place=("latitude", "longitude") if located else None,
        reads_place=located,
    )


def _arrays(rows: list[Transaction], roles: Roles) -> dict[str, pa.Array]:
    text, whole, double = pa.string(), pa.int64(), pa.float64()
    arrays = {
        "transaction_id": pa.array([row.transaction_id for row in rows], text),
        "time": pa.array([row.time for row in rows], whole),
        "amount": pa.array([row.amount_minor for row in rows], whole),
        "currency": pa.array([row.currency for row in rows], text),
        "base_amount": pa.array([row.base_amount_minor for row in rows], whole),
        "kind": pa.array([row.kind for row in rows], text),
    }
    for name, at in roles.entities.items():
        arrays[str(at)] = pa.array([row.entities.get(name) for row in rows], text)
    for name, at in roles.numbers.items():
        arrays[str(at)] = pa.array([_number(row, name) for row in rows], double)
    for name, at in roles.categories.items():
        arrays[str(at)] = pa.array([_text(row.fields.get(name)) for row in rows], text)
    for name, at in roles.facts.items():
        arrays[str(at)] = pa.array([row.flags.get(name) for row in rows], pa.bool_())
    for axis, at in enumerate(roles.place or ()):
        degrees = [None if row.location is None else row.location[axis] for row in rows]
        arrays[at] = pa.array(degrees, double)
    return arrays
