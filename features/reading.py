"""How payments enter in bulk: files, frames and lists become one checked PaymentTable.

Rule: a bad row is set aside with its reason and the good rows go on; a bad file is BadFile, whole.
Columns that the specification does not read are not looked at.
Everything is done by column (lists apart): the cost is about a microsecond a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from freshscore.config.errors import BadFile
from freshscore.features.columns import ColumnMap, Roles, chosen_map, shown
from freshscore.features.objects import loaded_objects
from freshscore.features.payment_columns import Faults, PaymentReader
from freshscore.features.sources import Loaded, RawColumn, opened
from freshscore.features.specification import FeatureSpecification
from freshscore.features.table import Int64s, PaymentTable, Rejected
from freshscore.features.text_columns import original_of_text
from freshscore.features.transaction import Transaction

if TYPE_CHECKING:
    import pandas

    Payments: TypeAlias = (
        str | Path | pandas.DataFrame | pa.Table | Sequence[Transaction | Mapping[str, Any]]
    )


def read_payments(
    source: Payments,
    specification: FeatureSpecification,
    *,
    columns: ColumnMap | str | None = None,
    keep: Sequence[str] = (),
) -> PaymentTable:
    """The payments of `source`, checked, in arrival order, with what `specification` reads.

    source: path of a Parquet or CSV file, a pandas DataFrame, an Arrow table, or a list of
    Transactions or mappings with their names.
    columns: a column map, the name of a shipped one or the path of one; None: the shipped one that
    the columns fit. keep: further columns to hand through as they are. Lists have neither.

    Bad rows are in `rejected`. A frame or list without rows gives a table without rows.
    Raises BadFile for a file that is missing, damaged, cut short or without rows, for columns that
    appear twice, are missing, or are of a type that cannot be what the map says.
    """
    if isinstance(source, list | tuple):
        if columns is not None or keep:
            raise TypeError("a list of transactions has no columns to map or keep")
        loaded, roles = loaded_objects(source, specification)
        return _table(loaded, roles, specification, ())
    found = opened(source)
    roles = chosen_map(found.names, columns, found.name).resolved(found.names, specification)
    missing = [name for name in keep if name not in found.names]
    if missing:
        raise BadFile(f"{found.name} has no columns {', '.join(missing)}; {shown(found.names)}")
    wanted = [*dict.fromkeys([*roles.wanted(), *keep])]
    return _table(found.load(wanted, roles.texts()), roles, specification, keep)


def _table(
    loaded: Loaded, roles: Roles, spec: FeatureSpecification, keep: Sequence[str]
) -> PaymentTable:
    read = PaymentReader(loaded, roles, spec)
    # In the order of Transaction's checks: the first problem of a row is the one it is counted by.
    ids = read.ids()
    times_ms = read.times_ms()
    own_minor, in_base = read.amounts_minor()
    entities = read.entities()
    kinds = read.kinds()
    read.refuse_verifications_of(kinds, own_minor)
    amounts_minor, known = read.base_amounts_minor(own_minor, in_base)
    read.refuse_original_ids()
    numbers, categories = read.numbers(), read.categories()
    location, located = read.places()
    flags, facts = read.facts(times_ms)
    read.refuse_unknown_amounts(known)
    read.refuse_verifications_of(kinds, amounts_minor)
    arrivals_ms = read.arrivals_ms(times_ms)
    whole = PaymentTable(
        specification=spec,
        row=loaded.row,
        transaction_id=ids,
        original_ids=_originals(loaded.columns[roles.transaction_id], ids),
        time_ms=times_ms,
        arrival_ms=arrivals_ms,
        amount_minor=amounts_minor,
        kind=kinds,
        entities=entities,
        numbers=numbers,
        categories=categories,
        location=location,
        located=located,
        conditions=read.conditions(kinds, categories),
        flags=flags,
        facts=facts,
        rejected=_rejected(loaded, read.faults),
        kept={name: _as_array(loaded.columns[name]) for name in keep},
        absent=roles.absent(),
    )
    return whole.ordered(np.flatnonzero(read.faults.problem < 0))


def _originals(column: RawColumn, ids: pa.StringArray) -> pa.Array:
    """The ids as they came; of mixed objects, as text."""
    if isinstance(column.values, list):
        return ids
    return original_of_text(column.values) if column.cells == "text" else column.values


def _as_array(column: RawColumn) -> pa.Array:
    if not isinstance(column.values, list):
        return column.values
    return pa.array([None if value is None else str(value) for value in column.values])


def _rejected(loaded: Loaded, faults: Faults) -> Rejected:
    bad = np.flatnonzero(faults.problem >= 0)
    rows = np.concatenate([loaded.row[bad], np.array([*loaded.broken], np.int64)])
    distinct = {p: number for number, p in enumerate(dict.fromkeys(loaded.broken.values()))}
    broken = [distinct[problem] + len(faults.problems) for problem in loaded.broken.values()]
    problems = np.concatenate([faults.problem[bad], np.array(broken, np.int32)])
    order: Int64s = np.argsort(rows, kind="stable")
    return Rejected(rows[order], problems[order], (*faults.problems, *distinct))
