"""Point-in-time features of a whole table: each payment at its own time, as serving would see it.

known: what precedes the payment's own row in arrival order, facts by when they became known; true:
all events up to its time, and all facts that were known by then. The result is, bit for bit, that
of a live replay under the same keys, which order the payments of one instant: the accumulators are
those of a store's scan, and end in the same finishing function.

Entity by entity the payments are grouped, and windows move along each entity's events
(features/history_passes.py), so the cost hangs on the number of payments, not on what the windows
hold. Memory: 60 to 80 bytes a payment beside the table and the output.
Source of the two moving edges: sliding-window aggregation with an invertible operation, as in
Tangwongsan, Hirzel, Schneider, "General incremental sliding-window aggregation" (2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from freshscore.features import history_grouping as grouping
from freshscore.features import history_layout as h
from freshscore.features import history_plan as hp
from freshscore.features import row as r
from freshscore.features.history_facts import fact_changes, placed, shared_facts
from freshscore.features.history_groups import (
    Codes,
    Groups,
    codes_of,
    firsts,
    grouped,
    put_in_order,
)
from freshscore.features.history_plan import EntityPlan, history_plan
from freshscore.features.history_rounds import do_others, do_plain, do_rest
from freshscore.features.history_turns import copies_of, ordered, turns_of
from freshscore.features.memory import address_of
from freshscore.features.packing import Codes as CategoryCodes
from freshscore.features.packing import Keys, Packer
from freshscore.features.program import SCALE_BITS, SLOT, Program
from freshscore.features.row import row_words
from freshscore.features.table import Bools, Floats, Int32s, Int64s, PaymentTable
from freshscore.features.table_rows import hashes_of

Mode = Literal["known", "true"]
# Rows are numbered in 31 bits.
MAX_ROWS: Final = 2**31 - 2


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Which events count: time between arrival - horizon_ms and arrival + skew_ms."""

    horizon_ms: int
    skew_ms: int

    def of(self, table: PaymentTable) -> Bools:
        """Whether each event counts, bool (n,)."""
        late_ms = table.arrival_ms - table.time_ms
        accepted: Bools = (late_ms <= self.horizon_ms) & (-late_ms <= self.skew_ms)
        return accepted


def history_features(
    table: PaymentTable,
    program: Program,
    keys: Keys,
    *,
    mode: Mode = "known",
    acceptance: Acceptance | None = None,
    categories: CategoryCodes | None = None,
    out: Floats | None = None,
) -> Floats:
    """Features of every payment of `table` at its own time: float64 (n, columns), row by row.

    mode: see above. acceptance: None accepts every row; a refused row has features, but counts for
    no other. categories: field -> value -> code, of the model. out: where to write, float64
    (n, columns) with each row in one piece; None makes a new array.
    Raises ValueError for an `out` of another form, and for a table of another specification.
    """
    if table.specification != program.specification:
        raise ValueError(
            f"the table was read for specification {table.specification.name!r},"
            f" the program is of {program.specification.name!r}"
        )
    out = _checked_output(out, len(table), program.n_columns)
    if len(table):
        _History(table, program, keys, mode == "true", acceptance).write(out, categories)
    return out


def _checked_output(out: Floats | None, n_rows: int, n_columns: int) -> Floats:
    if n_rows > MAX_ROWS:
        raise ValueError(f"{n_rows} payments in one table; the limit is {MAX_ROWS}")
    if out is None:
        return np.empty((n_rows, n_columns), np.float64)
    if out.shape != (n_rows, n_columns) or out.dtype != np.float64 or out.strides[1] != 8:
        raise ValueError(
            f"out is {out.dtype} {out.shape} with strides {out.strides}; it must be float64"
            f" {(n_rows, n_columns)} with each row in one piece"
        )
    return out


class _History:
    """One table on its way."""

    def __init__(
        self,
        table: PaymentTable,
        program: Program,
        keys: Keys,
        is_true: bool,
        acceptance: Acceptance | None,
    ) -> None:
        self._table, self._program, self._keys = table, program, keys
        self._is_true = is_true
        self._plan = history_plan(program)
        self._time_ms = np.ascontiguousarray(table.time_ms)
        self._amount_minor = np.ascontiguousarray(table.amount_minor)
        self._conditions = np.ascontiguousarray(table.conditions)
        self._location, self._located = _places(table)
        self._codes: dict[int, Codes] = {}
        self._find_copies(acceptance)
        self._make_scratch()

    def _find_copies(self, acceptance: Acceptance | None) -> None:
        table = self._table
        n = len(table)
        self._accepted = np.ones(n, np.bool_) if acceptance is None else acceptance.of(table)
        self._identity = hashes_of(table.transaction_id, self._keys.row_keys, r.KEY_RECORD)[:, 0]
        first, repeated = firsts(self._identity)
        self._copies = copies_of(table, first, self._program, self._keys) if repeated else None
        # Rows for which an entity needs a closer look; None where there is no such row.
        self._marked: NDArray[np.uint8] | None = None
        facts = table.facts
        if self._copies is not None:
            facts = shared_facts(table, self._copies)
            self._marked = np.zeros(n, np.uint8)
            self._marked[self._copies.row] = 1
        if not self._accepted.all():
            refused = (~self._accepted).view(np.uint8)
            self._marked = refused if self._marked is None else self._marked | refused
        self._changes = fact_changes(table, facts)
        self._arrival_ms: Int64s | None = None
        early = table.arrival_ms < table.time_ms
        if not self._is_true and len(facts) and early.any():
            self._arrival_ms = np.ascontiguousarray(table.arrival_ms)
            ahead = early.view(np.uint8)
            self._marked = ahead if self._marked is None else self._marked | ahead

    def _make_scratch(self) -> None:
        program = self._program
        spec = program.specification
        n_values = len(spec.plain_fields) + len(spec.categories)
        widest = max((int(one.words[hp.ENTRY_BYTES]) for one in self._plan.entities), default=0)
        self._entries = np.empty(len(self._table) * widest // 8, np.int64)
        self._slots = np.zeros(program.scratch_words + SLOT, np.int64)
        self._piece_slots = np.zeros(2 * SLOT * h.PIECE, np.int64)
        self._targets = np.zeros(2 * h.PIECE, np.int64)
        self._row = np.zeros(row_words(len(program.entities), n_values, 0), np.int64)

    def write(self, out: Floats, categories: CategoryCodes | None) -> None:
        """Write all features to `out`."""
        for plan in self._plan.entities:
            self._write_entity(plan, out)
        if self._plan.rest[0]:
            self._write_rest(out, categories)

    def _codes_of(self, entity: int) -> Codes:
        if entity not in self._codes:
            parts = self._program.entities[entity].parts
            self._codes[entity] = codes_of(self._table, parts)
        return self._codes[entity]

    def _write_entity(self, plan: EntityPlan, out: Floats) -> None:
        codes = self._codes_of(plan.entity)
        members = [self._codes_of(entity) for entity in plan.members]
        changes = self._changes if plan.reads_facts else None
        columns = self._columns(members)
        groups = grouped(codes, columns, len(members), self._entries_for(plan), changes is not None)
        steps = np.zeros((0, 4), np.int32)
        if groups.irregular.any():
            steps = self._put_in_order(plan, codes, groups, columns)
        moves = np.zeros((0, 3), np.int64)
        if changes is not None:
            moves = placed(changes, codes.row, groups.positions)
        # Arrays by their places in the job; they must outlive the kernels.
        counted = {
            4 * number + m: np.zeros(members[m].n_codes, np.int32)
            for number, distinct in enumerate(plan.distinct)
            for m in distinct
        }
        seen = {h.SEEN_AT + 8 * m: np.zeros(members[m].n_codes, np.int32) for m in plan.pairs}
        tables = np.zeros(max(1, 4 * len(plan.distinct)), np.int64)
        for at, table in counted.items():
            tables[at] = address_of(table)
        arrays = self._arrays(out) | seen
        arrays |= {
            h.PLAN: plan.words,
            h.ENTRIES: groups.entries,
            h.STARTS: groups.starts,
            h.IRREGULAR: groups.irregular,
            h.STEPS: steps,
            h.CHANGES: moves,
            h.TABLES: tables,
        }
        job = np.zeros(h.JOB_WORDS, np.int64)
        for at, array in arrays.items():
            job[at // 8] = address_of(array)
        job[h.WIDTH // 8] = plan.words[hp.ENTRY_BYTES]
        job[h.N_CODES // 8] = codes.n_codes
        job[h.N_CHANGES // 8] = len(moves)
        job[h.OUT_BYTES // 8] = out.strides[0]
        job[h.SCALE_BITS // 8] = self._program.code[SCALE_BITS]
        do_plain(address_of(job))
        if groups.irregular.any() or groups.starts[-1] > groups.starts[-2]:
            do_others(address_of(job))

    def _entries_for(self, plan: EntityPlan) -> Int64s:
        words = int(plan.words[hp.ENTRY_BYTES]) // 8
        return self._entries[: len(self._table) * words].reshape(-1, words)

    def _arrays(self, out: Floats) -> dict[int, NDArray[Any]]:
        """What is the same for every entity, by its place in the job."""
        arrays: dict[int, NDArray[Any]] = {
            h.CODE: self._program.code,
            h.OUT: out,
            h.SLOTS: self._slots,
            h.ROW: self._row,
            h.PIECE_SLOTS: self._piece_slots,
            h.TARGETS: self._targets,
        }
        if self._arrival_ms is not None:
            arrays[h.ARRIVALS] = self._arrival_ms
        if self._location is not None and self._located is not None:
            arrays |= {h.LOCATIONS: self._location, h.LOCATED: self._located}
        return arrays

    def _columns(self, members: list[Codes]) -> Int64s:
        """Addresses of the columns that entries are made from."""
        columns = np.zeros(grouping.N_COLUMNS, np.int64)
        arrays: dict[int, NDArray[Any]] = {
            grouping.COLUMN_TIME: self._time_ms,
            grouping.COLUMN_AMOUNT: self._amount_minor,
            grouping.COLUMN_CONDITIONS: self._conditions,
            grouping.COLUMN_FACTS: self._changes.flags,
            **{grouping.COLUMN_MEMBERS + 8 * m: one.row for m, one in enumerate(members)},
        }
        if self._marked is not None:
            arrays[grouping.COLUMN_MARKED] = self._marked
        for at, array in arrays.items():
            columns[at // 8] = address_of(array)
        return columns

    def _put_in_order(
        self, plan: EntityPlan, codes: Codes, groups: Groups, columns: Int64s
    ) -> Int32s:
        turns = None
        if self._copies is not None:
            turns = turns_of(
                self._copies, codes.row, self._accepted, self._program, plan.entity, self._is_true
            )
        order = ordered(
            self._table,
            self._identity,
            self._accepted,
            groups,
            self._copies,
            turns,
            self._is_true,
        )
        put_in_order(groups, order, columns, len(plan.members))
        return order.steps

    def _write_rest(self, out: Floats, categories: CategoryCodes | None) -> None:
        values = [*Packer(self._program, self._keys, categories).values_of(self._table)]
        addresses = np.array([address_of(column) for column in values] or [0], np.int64)
        do_rest(
            address_of(self._program.code),
            address_of(self._plan.rest),
            len(self._table),
            address_of(self._time_ms),
            address_of(self._amount_minor),
            address_of(addresses),
            len(values),
            address_of(self._slots),
            address_of(self._row),
            address_of(out),
            out.strides[0],
        )


def _places(table: PaymentTable) -> tuple[Int32s | None, NDArray[np.uint8] | None]:
    """Locations and whether there is one, as kernels read them."""
    if table.location is None or table.located is None:
        return None, None
    located = np.ascontiguousarray(table.located).view(np.uint8)
    return np.ascontiguousarray(table.location), located
