"""Entities whose events do not simply follow each other: their order, and which event counts when.

Rule: what a payment's copies come to is what a store makes of them in arrival order: one copy of
each content, and of several contents under one identity, within one entity, the smallest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from freshscore.features import history_layout as h
from freshscore.features import row as r
from freshscore.features.history_groups import Groups, Order
from freshscore.features.packing import Keys, Packer
from freshscore.features.program import Program
from freshscore.features.table import Bools, Int32s, Int64s, PaymentTable
from freshscore.features.table_rows import rows_of

Words = NDArray[np.uint64]
NOBODY: Final = -1


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """The rows whose transaction_id is in more than one row.

    row: int64 (k,), ascending. payment: int64 (k,), equal where the ids are. content: uint64
    (k, words), packed rows.
    """

    row: Int64s
    payment: Int64s
    content: Words

    def among(self, rows: Int64s) -> tuple[Int64s, Int64s]:
        """Which of `rows` are copies: their places here, and their places in `rows`."""
        place = np.searchsorted(self.row, rows)
        place[place == len(self.row)] = 0
        at = np.flatnonzero(self.row[place] == rows)
        return place[at], at


@dataclass(frozen=True, slots=True, eq=False)
class Turns:
    """What happens to the rows of Copies in one entity; places in Copies, NOBODY for none.

    aside: int64 (k,), the copy of the same payment that counts when a row is asked about.
    comes: bool (k,), whether the row counts from then on. goes: int64 (k,), whom it replaces.
    first: bool (k,), whether it counts from the beginning.
    """

    aside: Int64s
    comes: Bools
    goes: Int64s
    first: Bools


def copies_of(table: PaymentTable, first: Int32s, program: Program, keys: Keys) -> Copies:
    """The copies in `table`; first: int32 (n,), the first row with the same identity."""
    later = np.flatnonzero(first != np.arange(len(table), dtype=np.int32))
    row = np.unique(np.concatenate([first[later].astype(np.int64), later]))
    return Copies(row, first[row].astype(np.int64), rows_of(table.take(row), Packer(program, keys)))


def turns_of(
    copies: Copies, codes: Int32s, accepted: Bools, program: Program, entity: int, is_true: bool
) -> Turns:
    """The turns of one entity's copies; codes: int32 (n,) of the whole table."""
    k = len(copies.row)
    turns = Turns(
        np.full(k, NOBODY), np.zeros(k, np.bool_), np.full(k, NOBODY), np.zeros(k, np.bool_)
    )
    code = codes[copies.row]
    rank = _content_ranks(copies.content, program, entity)
    order = np.lexsort((copies.row, code, copies.payment))
    order = order[code[order] >= 0]
    family = np.zeros(len(order), np.int64)
    family[_changes(copies.payment[order], code[order])] = 1
    family = np.cumsum(family)
    taken = accepted[copies.row]
    if is_true:
        _settle(turns, order, family, taken, rank)
    else:
        _take_turns(turns, order, family, taken, rank)
    return turns


def _settle(turns: Turns, order: Int64s, family: Int64s, taken: Bools, rank: Int64s) -> None:
    """All copies are there at once: the accepted one with the smallest content counts."""
    accepted = order[taken[order]]
    family_of = np.zeros(len(taken), np.int64)
    family_of[order] = family
    best = accepted[np.lexsort((rank[accepted], family_of[accepted]))]
    winners = best[_changes(family_of[best])]
    turns.first[winners] = True
    winner_of = np.full(len(order) + 1, NOBODY, np.int64)
    winner_of[family_of[winners]] = winners
    turns.aside[order] = winner_of[family]


def _take_turns(turns: Turns, order: Int64s, family: Int64s, taken: Bools, rank: Int64s) -> None:
    """Copies come one after the other, and each is replaced by a smaller content only."""
    columns = (order, family, taken[order], rank[order])
    holder, held_rank, last_family = NOBODY, 0, 0
    for copy, own, accepted, own_rank in zip(*(one.tolist() for one in columns), strict=True):
        if own != last_family:
            holder, last_family = NOBODY, own
        turns.aside[copy] = holder
        if accepted and (holder == NOBODY or own_rank < held_rank):
            turns.comes[copy] = True
            turns.goes[copy] = holder
            holder, held_rank = copy, own_rank


def _changes(*columns: NDArray[Any]) -> Int64s:
    """Where rows of sorted columns differ from the row before; the first does."""
    n = len(columns[0])
    differs = np.zeros(n, np.bool_)
    differs[:1] = True
    for column in columns:
        differs[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(differs)


def _content_ranks(content: Words, program: Program, entity: int) -> Int64s:
    """int64 (k,): the order of contents within one entity's state (applying.compare_content)."""
    layout = program.entities[entity]
    n_entities = len(program.entities)
    names = [one.name for one in program.entities]
    bits = content[:, r.BITS // 8]
    inside = r.TOKENS // 8 + 2 * n_entities
    keys = [
        content[:, r.TIME // 8],
        content[:, r.AMOUNT // 8],
        bits >> np.uint64(8) & np.uint64(0xFF),
        bits >> np.uint64(16) & np.uint64(0xFFFF),
        bits & np.uint64(0xFF),
        *(content[:, inside + names.index(member)] for member in layout.members),
    ]
    if layout.place_at:
        keys.append(content[:, r.PLACE // 8])
    order = np.lexsort(keys[::-1])
    new = np.zeros(len(order), np.int64)
    new[_changes(*(key[order] for key in keys))] = 1
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.cumsum(new)
    return ranks


def ordered(
    table: PaymentTable,
    identity: Words,
    accepted: Bools,
    groups: Groups,
    copies: Copies | None,
    turns: Turns | None,
    is_true: bool,
) -> Order:
    """Order and steps of the irregular entities among `groups`, whose entries are in table order.

    identity: uint64 (n,); accepted: bool (n,), whether each row counts for others.
    """
    starts, codes = groups.starts, np.flatnonzero(groups.irregular)
    lengths = (starts[codes + 1] - starts[codes]).astype(np.int64)
    group = np.repeat(np.arange(len(codes)), lengths)
    begins = np.cumsum(lengths) - lengths
    inside = np.arange(len(group)) - begins[group]
    place = starts[codes].astype(np.int64)[group] + inside
    arrived = groups.entries[place, h.STATE // 8] & h.ROW_BITS
    order = np.lexsort((identity[arrived], table.time_ms[arrived], group))
    row = arrived[order]
    local = np.empty(len(order), np.int64)
    local[order] = inside
    asked, own = (row, inside) if is_true else (arrived, local)
    taken = np.where(accepted[asked], own, NOBODY)
    steps = np.full((len(order), 4), NOBODY, np.int32)
    steps[:, 0] = own
    steps[:, 1 if is_true else 2] = taken
    first = accepted[row] & is_true
    if copies is not None and turns is not None:
        _put_turns(steps, first, copies, turns, asked, own, row)
    return Order(place, row, steps, first)


def _put_turns(
    steps: Int32s,
    first: Bools,
    copies: Copies,
    turns: Turns,
    asked: Int64s,
    own: Int64s,
    row: Int64s,
) -> None:
    """Put the turns of copies in the place of the steps of other rows."""
    copy, at = copies.among(asked)
    # The place after the last stands for nobody, who is -1 there too.
    place_of = np.full(len(copies.row) + 1, NOBODY, np.int64)
    place_of[copy] = own[at]
    steps[at, 1] = place_of[turns.aside[copy]]
    steps[at, 2] = np.where(turns.comes[copy], own[at], NOBODY)
    steps[at, 3] = place_of[turns.goes[copy]]
    copy, at = copies.among(row)
    first[at] = turns.first[copy]
