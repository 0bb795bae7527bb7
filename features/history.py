"""Point-in-time features of a whole table: each payment at its own time, as serving would see it.

known: what precedes the payment's own row in arrival order; true: all events up to its time. Facts
count in both by the instant at which they became known. The result is, bit for bit, that of a live
replay: the accumulators are those of a store's scan, and end in the same finishing function.

Entity by entity the payments are grouped, and windows move along each entity's events
(features/history_kernels.py), so the cost hangs on the number of payments, not on what the windows
hold. Memory: 24 to 40 bytes a payment beside the table and the output, and the codes of entities
made of several parts.
Source of the two moving edges: sliding-window aggregation with an invertible operation, as in
Tangwongsan, Hirzel, Schneider, "General incremental sliding-window aggregation" (2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from freshscore.features import history_grouping as grouping
from freshscore.features import history_kernels as k
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
from freshscore.features.table import Bools, Floats, Int32s, PaymentTable
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
        self._plan = history_plan(program)
        self._is_true = is_true
        n = len(table)
        self._identity = hashes_of(table.transaction_id, keys.row_keys, r.KEY_RECORD)[:, 0]
        self._accepted = np.ones(n, np.bool_) if acceptance is None else acceptance.of(table)
        first, repeated = firsts(self._identity)
        self._copies = copies_of(table, first, program, keys) if repeated else None
        self._marked = self._marks()
        facts = table.facts
        if self._copies is not None:
            facts = shared_facts(table, self._copies)
        self._changes = fact_changes(table, facts)
        self._time_ms = np.ascontiguousarray(table.time_ms)
        self._amount_minor = np.ascontiguousarray(table.amount_minor)
        self._conditions = np.ascontiguousarray(table.conditions)
        self._codes: dict[int, Codes] = {}
        widest = max((int(one.words[hp.ENTRY_BYTES]) for one in self._plan.entities), default=0)
        self._entries = np.empty(n * widest // 8, np.int64)
        self._slots = np.zeros(program.scratch_words + SLOT, np.int64)
        self._piece = np.zeros((2 * SLOT + 1) * k.PIECE, np.int64)
        spec = program.specification
        n_values = len(spec.plain_fields) + len(spec.categories)
        self._row = np.zeros(row_words(len(program.entities), n_values, 0), np.int64)

    def write(self, out: Floats, categories: CategoryCodes | None) -> None:
        """Write all features to `out`."""
        for plan in self._plan.entities:
            self._write_entity(plan, out)
        if self._plan.rest[0]:
            self._write_rest(out, categories)

    def _marks(self) -> NDArray[np.uint8] | None:
        """Rows for which an entity needs a closer look, uint8 (n,); None if there is none."""
        if self._copies is None and self._accepted.all():
            return None
        marked = (~self._accepted).astype(np.uint8)
        if self._copies is not None:
            marked[self._copies.row] = 1
        return marked

    def _codes_of(self, entity: int) -> Codes:
        if entity not in self._codes:
            parts = self._program.entities[entity].parts
            self._codes[entity] = codes_of(self._table, parts)
        return self._codes[entity]

    def _write_entity(self, plan: EntityPlan, out: Floats) -> None:
        codes = self._codes_of(plan.entity)
        changes = self._changes
        members = [self._codes_of(entity) for entity in plan.members]
        columns = self._columns(changes.flags, members)
        n, width = len(self._table), int(plan.words[hp.ENTRY_BYTES])
        entries = self._entries[: n * width // 8].reshape(n, -1)
        reads_facts = plan.reads_facts and len(changes.row) > 0
        groups = grouped(codes, columns, len(members), entries, reads_facts)
        steps = np.zeros((0, 4), np.int32)
        if groups.irregular.any():
            steps = self._put_in_order(plan, codes, groups, columns)
        moves = np.zeros((0, 3), np.int64)
        if reads_facts:
            moves = placed(changes, codes.row, groups.positions)
        counts = {
            4 * number + m: np.zeros(members[m].n_codes, np.int32)
            for number, distinct in enumerate(plan.distinct)
            for m in distinct
        }
        tables = np.zeros(4 * len(plan.distinct) + 1, np.int64)
        for at, table in counts.items():
            tables[at] = address_of(table)
        seen = {m: np.zeros(members[m].n_codes, np.int32) for m in plan.pairs}
        location, located = self._places()
        job = np.zeros(k.JOB_WORDS, np.int64)
        words = {
            k.PLAN: address_of(plan.words),
            k.CODE: address_of(self._program.code),
            k.ENTRIES: address_of(entries),
            k.WIDTH: width,
            k.STARTS: address_of(groups.starts),
            k.N_CODES: codes.n_codes,
            k.IRREGULAR: address_of(groups.irregular),
            k.STEPS: address_of(steps),
            k.CHANGES: address_of(moves),
            k.N_CHANGES: len(moves),
            k.OUT: address_of(out),
            k.OUT_BYTES: out.strides[0],
            k.SLOTS: address_of(self._slots),
            k.ROW: address_of(self._row),
            k.LOCATIONS: 0 if location is None else address_of(location),
            k.LOCATED: 0 if located is None else address_of(located),
            k.TABLES: address_of(tables),
            k.PIECE_SLOTS: address_of(self._piece),
            k.TARGETS: address_of(self._piece) + 16 * SLOT * k.PIECE,
            k.SCALE_BITS: int(self._program.code[SCALE_BITS]),
        }
        words |= {k.SEEN_AT + 8 * m: address_of(one) for m, one in seen.items()}
        for at, word in words.items():
            job[at // 8] = word
        do_plain(address_of(job))
        if len(steps) or groups.starts[-1] > groups.starts[-2]:
            do_others(address_of(job))

    def _columns(self, flags: NDArray[np.uint8], members: list[Codes]) -> NDArray[np.int64]:
        columns = np.zeros(grouping.N_COLUMNS, np.int64)
        for at, column in (
            (grouping.COLUMN_TIME, self._time_ms),
            (grouping.COLUMN_AMOUNT, self._amount_minor),
            (grouping.COLUMN_CONDITIONS, self._conditions),
            (grouping.COLUMN_FACTS, flags),
            (grouping.COLUMN_MARKED, self._marked),
            *((grouping.COLUMN_MEMBERS + 8 * m, one.row) for m, one in enumerate(members)),
        ):
            if isinstance(column, np.ndarray):
                columns[at // 8] = address_of(column)
        return columns

    def _put_in_order(
        self, plan: EntityPlan, codes: Codes, groups: Groups, columns: NDArray[np.int64]
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
            groups.starts,
            groups.irregular,
            groups.entries,
            self._copies,
            turns,
            self._is_true,
        )
        put_in_order(groups, order, columns, len(plan.members))
        return order.steps

    def _places(self) -> tuple[NDArray[np.int32] | None, NDArray[np.uint8] | None]:
        table = self._table
        if table.location is None or table.located is None:
            return None, None
        return (
            np.ascontiguousarray(table.location),
            np.ascontiguousarray(table.located).view(np.uint8),
        )

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
