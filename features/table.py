"""Payments as columns: what a file, a frame or a list becomes, and what history and stores read.

Rule: a table holds valid payments only, in arrival order (equal arrivals: by source row), with the
values that its specification reads and nothing else; whatever was refused is in `rejected`.
Their `repr` shows how many there are, never an identifier.
Strings are coded once, so that nothing behind the door compares or hashes one per row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from freshscore.features.layout import PLACE_UNITS
from freshscore.features.specification import FeatureSpecification
from freshscore.features.transaction import KINDS, FieldValue, Transaction

Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]
Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]
Bits16 = NDArray[np.uint16]

ABSENT: Final = -1
# Payments turned into objects at a time: the lists of one such piece stay in the CPU's cache.
_ROWS_AT_ONCE: Final = 4_096


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """A column of strings as codes.

    codes: int32 (n,), position in `values`, ABSENT where there is none.
    values: pyarrow string array of distinct strings, UTF-8, no nulls; some may be unused.
    """

    codes: Int32s
    values: pa.StringArray

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.codes)

    def __repr__(self) -> str:
        return f"Coded({len(self)} rows, {len(self.values)} distinct)"

    def take(self, rows: Int64s) -> Coded:
        """The column at `rows`."""
        return Coded(self.codes[rows], self.values)

    def compacted(self) -> Coded:
        """The same column without unused values; the order of values is kept."""
        used = np.zeros(len(self.values) + 1, np.bool_)
        # The place after the last value takes the absent ones: -1 counts from the end.
        used[self.codes] = True
        used[-1] = False
        if used[:-1].all():
            return self
        places = np.append((np.cumsum(used[:-1]) - 1).astype(np.int32), np.int32(ABSENT))
        return Coded(places[self.codes], self.values.filter(pa.array(used[:-1])))

    def texts(self) -> pa.StringArray:
        """The strings themselves, null where absent."""
        return self.values.take(pa.array(self.codes, mask=self.codes == ABSENT))


@dataclass(frozen=True, slots=True, eq=False)
class FactTable:
    """Facts that became known at another instant than their event's own, by (row, name).

    row: int64 (m,), index into the payments. name: uint8 (m,), index into the specification's
    facts. value: bool (m,). sender_ms, known_at_ms: int64 (m,).
    """

    row: Int64s
    name: Bytes
    value: Bools
    sender_ms: Int64s
    known_at_ms: Int64s

    def __len__(self) -> int:
        """Number of facts."""
        return len(self.row)

    def __repr__(self) -> str:
        return f"FactTable({len(self)} facts)"

    def of(self, rows: Int64s, n_rows: int) -> FactTable:
        """The facts of payments `rows` out of `n_rows`, numbered by their place in `rows`."""
        places = np.full(n_rows, ABSENT, np.int64)
        places[rows] = np.arange(len(rows))
        row = places[self.row]
        kept = np.flatnonzero(row != ABSENT)
        order = kept[np.lexsort((self.name[kept], row[kept]))]
        return FactTable(
            row[order],
            self.name[order],
            self.value[order],
            self.sender_ms[order],
            self.known_at_ms[order],
        )


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a row was set aside: the part of it that is wrong, and a sentence without its content."""

    reason: str
    sentence: str


@dataclass(frozen=True, slots=True, eq=False)
class Rejected:
    """Rows that were set aside.

    row: int64 (k,), row numbers of the source, ascending. problem: int32 (k,), index into
    `problems`.
    """

    row: Int64s
    problem: Int32s
    problems: tuple[Problem, ...]

    def __len__(self) -> int:
        """Number of rows set aside."""
        return len(self.row)

    def __repr__(self) -> str:
        return f"Rejected({self.counts()})"

    def counts(self) -> dict[str, int]:
        """Rows by reason, the most frequent first."""
        counted: dict[str, int] = {}
        for number, n_rows in enumerate(np.bincount(self.problem, minlength=len(self.problems))):
            reason = self.problems[number].reason
            counted[reason] = counted.get(reason, 0) + int(n_rows)
        by_count = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
        return {reason: n_rows for reason, n_rows in by_count if n_rows}

    def listed(self, max_rows: int) -> list[tuple[int, Problem]]:
        """The first `max_rows` rows with their problems."""
        numbered = zip(self.row[:max_rows].tolist(), self.problem[:max_rows].tolist(), strict=True)
        return [(row, self.problems[number]) for row, number in numbered]


@dataclass(frozen=True, slots=True, eq=False)
class PaymentTable:
    """n payments in arrival order, checked.

    row: int64 (n,), row number in the source, from 0. original_ids: transaction ids as they came.
    time_ms, arrival_ms: int64 (n,), UTC. amount_minor: int64 (n,), in the specification's currency.
    kind: uint8 (n,), index into KINDS.
    entities: each name that makes up the specification's entities. numbers: each plain field,
    float64 (n,), NaN where absent. categories: each field that category features or conditions
    read and no number feature does.
    location: int32 (n, 2), latitude and longitude in 1e-7 degrees, with `located` bool (n,); None
    if the specification reads no location.
    conditions: uint16 (n,), bits of `specification.conditions` that hold.
    flags: uint8 (n,), bits of `specification.facts` that are true and known at the event's own
    time; `facts` has those known at another.
    kept: further columns that the caller asked for, as they came.
    absent: what the specification reads and the source has no column for.
    """

    specification: FeatureSpecification
    row: Int64s
    transaction_id: pa.StringArray
    original_ids: pa.Array
    time_ms: Int64s
    arrival_ms: Int64s
    amount_minor: Int64s
    kind: Bytes
    entities: dict[str, Coded]
    numbers: dict[str, Floats]
    categories: dict[str, Coded]
    location: Int32s | None
    located: Bools | None
    conditions: Bits16
    flags: Bytes
    facts: FactTable
    rejected: Rejected
    kept: dict[str, pa.Array] = field(default_factory=dict)
    absent: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of payments."""
        return len(self.row)

    def __repr__(self) -> str:
        return (
            f"PaymentTable({len(self)} payments of specification {self.specification.name!r},"
            f" {len(self.facts)} facts, {len(self.rejected)} rejected)"
        )

    def ever(self, fact: str) -> Bools:
        """Whether `fact` ever becomes true of each payment, bool (n,); KeyError if undeclared."""
        if fact not in self.specification.facts:
            raise KeyError(fact)
        bit = self.specification.facts.index(fact)
        found = (self.flags >> bit & 1).astype(np.bool_)
        of_this = (self.facts.name == bit) & self.facts.value
        found[self.facts.row[of_this]] = True
        return found

    def take(self, rows: NDArray[np.integer[Any]] | Sequence[int]) -> PaymentTable:
        """The payments at ascending places `rows`, with their facts; `rejected` stays whole.

        Raises ValueError where `rows` do not ascend, since arrival order would be lost.
        """
        at = np.asarray(rows, np.int64)
        if (at[1:] <= at[:-1]).any():
            raise ValueError("rows must ascend: a table is in arrival order")
        return self._taken(at)

    def between(self, first_ms: int, before_ms: int) -> PaymentTable:
        """The payments with event time in [first_ms, before_ms)."""
        inside = (self.time_ms >= first_ms) & (self.time_ms < before_ms)
        return self._taken(np.flatnonzero(inside))

    def ordered(self, rows: Int64s) -> PaymentTable:
        """The payments at ascending `rows` in arrival order, equal arrivals by row.

        For whoever builds a table from columns that are in the source's order.
        """
        at = rows
        arrivals_ms = self.arrival_ms[rows]
        if (arrivals_ms[1:] < arrivals_ms[:-1]).any():
            at = rows[np.argsort(arrivals_ms, kind="stable")]
        elif len(rows) == len(self):
            return self
        taken = self._taken(at)
        return taken if len(rows) == len(self) else taken._compacted()

    def _compacted(self) -> PaymentTable:
        coded = {name: column.compacted() for name, column in self.entities.items()}
        categories = {name: column.compacted() for name, column in self.categories.items()}
        return replace(self, entities=coded, categories=categories)

    def _taken(self, at: Int64s) -> PaymentTable:
        places = pa.array(at)
        return PaymentTable(
            specification=self.specification,
            row=self.row[at],
            transaction_id=self.transaction_id.take(places),
            original_ids=self.original_ids.take(places),
            time_ms=self.time_ms[at],
            arrival_ms=self.arrival_ms[at],
            amount_minor=self.amount_minor[at],
            kind=self.kind[at],
            entities={name: column.take(at) for name, column in self.entities.items()},
            numbers={name: values[at] for name, values in self.numbers.items()},
            categories={name: column.take(at) for name, column in self.categories.items()},
            location=None if self.location is None else self.location[at],
            located=None if self.located is None else self.located[at],
            conditions=self.conditions[at],
            flags=self.flags[at],
            facts=self.facts.of(at, len(self)),
            rejected=self.rejected,
            kept={name: values.take(places) for name, values in self.kept.items()},
            absent=self.absent,
        )

    def transaction(self, i: int) -> Transaction:
        """Payment `i` as a Transaction; see `transactions`."""
        return next(self.transactions([i]))

    def transactions(
        self, rows: NDArray[np.integer[Any]] | Sequence[int] | None = None
    ) -> Iterator[Transaction]:
        """The payments at `rows` (any order; None: all) as Transactions.

        They have the same features and state records as what was read: amounts are in the
        specification's currency, fields are those that the specification reads, flags those known
        at the event's own time. About 10 us each.
        """
        at = np.arange(len(self)) if rows is None else np.asarray(rows, np.int64)
        for start in range(0, len(at), _ROWS_AT_ONCE):
            yield from self._transactions(at[start : start + _ROWS_AT_ONCE])

    def _transactions(self, at: Int64s) -> Iterator[Transaction]:
        entities = _by_row(
            len(at), {name: c.take(at).texts().to_pylist() for name, c in self.entities.items()}
        )
        fields = _by_row(
            len(at),
            {name: _or_none(values[at]) for name, values in self.numbers.items()}
            | {name: c.take(at).texts().to_pylist() for name, c in self.categories.items()},
        )
        places = self._places(at)
        flags = self.flags[at].tolist()
        ids = self.transaction_id.take(pa.array(at)).to_pylist()
        times_ms, amounts_minor = self.time_ms[at].tolist(), self.amount_minor[at].tolist()
        for i, kind in enumerate(self.kind[at].tolist()):
            yield Transaction(
                ids[i],
                times_ms[i],
                amounts_minor[i],
                self.specification.currency,
                entities[i],
                KINDS[kind],
                fields=fields[i],
                location=places[i],
                flags=self._named(flags[i]),
            )

    def _places(self, at: Int64s) -> list[tuple[float, float] | None]:
        if self.location is None or self.located is None:
            return [None] * len(at)
        degrees = (self.location[at] / PLACE_UNITS).tolist()
        located = self.located[at].tolist()
        return [tuple(place) if has else None for place, has in zip(degrees, located, strict=True)]

    def _named(self, bits: int) -> dict[str, bool]:
        return {name: True for bit, name in enumerate(self.specification.facts) if bits >> bit & 1}


def _or_none(values: Floats) -> list[FieldValue]:
    return [None if value != value else value for value in values.tolist()]


def _by_row(n_rows: int, columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """One dict a row of what is not None."""
    rows: list[dict[str, Any]] = [{} for _ in range(n_rows)]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            if value is not None:
                row[name] = value
    return rows
