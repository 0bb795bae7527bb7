"""Payments grouped by one entity: its codes, and the entries in their order.

Rule: codes are compared, never identifiers; an entity of several parts has a code for each
combination that occurs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from freshscore.features import history_grouping as grouping
from freshscore.features import history_layout as h
from freshscore.features.history_grouping import first_equal
from freshscore.features.memory import address_of
from freshscore.features.table import ABSENT, Bools, Int32s, Int64s, PaymentTable

# The table of keys is at least so many times their number, so that probes stay short.
_ROOM: Final = 2


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """An entity of each row: int32 (n,), below `n_codes`, ABSENT for none."""

    row: Int32s
    n_codes: int


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Entries grouped by code.

    entries: int64 (n, words). starts: int32 (n_codes + 2,), where each code's begin, those of
    absent ones last. irregular: uint8 (n_codes,). positions: int32 (n,), the entry of each row;
    empty if not asked for.
    """

    entries: Int64s
    starts: Int32s
    irregular: NDArray[np.uint8]
    positions: Int32s


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """The entries of all irregular entities together, entity by entity.

    place: int64 (m,), numbers of entries. row: int64 (m,), which row belongs there. steps: int32
    (m, 4) as features/history_layout.py says. first: bool (m,), counts from the beginning.
    """

    place: Int64s
    row: Int64s
    steps: Int32s
    first: Bools


def codes_of(table: PaymentTable, parts: tuple[str, ...]) -> Codes:
    """The codes of the entity that `parts` make; absent where one of them is."""
    column = table.entities[parts[0]]
    codes = Codes(np.ascontiguousarray(column.codes), len(column.values))
    for part in parts[1:]:
        column = table.entities[part]
        absent = (codes.row == ABSENT) | (column.codes == ABSENT)
        both = codes.row.astype(np.int64) * len(column.values) + column.codes
        both[absent] = ABSENT
        joined, _ = firsts(both.view(np.uint64))
        joined[absent] = ABSENT
        codes = Codes(joined, len(joined))
    return codes


def firsts(keys: NDArray[np.uint64]) -> tuple[Int32s, int]:
    """int32 (n,): the first row with the same key; and how many rows are not the first."""
    n = len(keys)
    first = np.empty(n, np.int32)
    bits = max(4, (_ROOM * n).bit_length())
    slots = np.zeros(1 << bits, np.int32)
    repeated = first_equal(
        address_of(keys), keys.strides[0], n, address_of(slots), bits, address_of(first)
    )
    return first, repeated


def grouped(
    codes: Codes, columns: NDArray[np.int64], n_members: int, entries: Int64s, placed: bool
) -> Groups:
    """Write the entries of all rows to `entries`, int64 (n, words).

    columns: addresses, as features/history_grouping.py names them. placed: with `positions`.
    """
    n = len(codes.row)
    starts = np.zeros(codes.n_codes + 2, np.int32)
    grouping.starts_of(address_of(codes.row), n, codes.n_codes, address_of(starts))
    ends = starts.copy()
    irregular = np.zeros(codes.n_codes + 1, np.uint8)
    positions = np.empty(n if placed else 0, np.int32)
    grouping.scatter(
        address_of(codes.row),
        n,
        codes.n_codes,
        address_of(starts),
        address_of(ends),
        address_of(columns),
        address_of(entries),
        entries.strides[0],
        n_members,
        address_of(irregular),
        address_of(positions) if placed else 0,
    )
    return Groups(entries, starts, irregular[:-1], positions)


def put_in_order(groups: Groups, order: Order, columns: NDArray[np.int64], n_members: int) -> None:
    """Write the entries of irregular entities anew, in their order."""
    entries = groups.entries
    grouping.rewrite(
        address_of(order.place),
        address_of(order.row),
        len(order.row),
        address_of(columns),
        address_of(entries),
        entries.strides[0],
        n_members,
    )
    entries[order.place[order.first], h.STATE // 8] |= h.SEEN_FIRST
    if len(groups.positions):
        groups.positions[order.row] = order.place
