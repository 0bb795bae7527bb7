"""The stream that a replay goes through: payments, and what happens to them in order.

Order: by instant; at one instant facts first, then by payment, and for one scores before its event.
Rule: numbers name payments here, rows of the file first and then the added ones; identifiers are in
Transactions only, and those are made when they are needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from freshscore.features.table import Bools, Bytes, Int32s, Int64s, PaymentTable
from freshscore.features.transaction import Transaction
from freshscore.simulations.added_payments import card_of
from freshscore.simulations.shapes import Shape, TouchKind

NO_FACT: Final = -1
# A content is a payment at a stage, in one number: there is room for so many stages.
MAX_STAGES: Final = 256


@dataclass(frozen=True)
class Composition:
    """Which touches were in the file and which were simulated; counts.

    A touch of the file is the first score of one of its payments, its event, or one of its facts.
    """

    file_scores: int
    file_events: int
    file_facts: int
    simulated_payments: int
    simulated_scores: int
    simulated_events: int
    simulated_facts: int


@dataclass(frozen=True, eq=False)
class Stream:
    """Touches in order, (t,) each, of the payments of `table` and of `added`.

    history: rows of `table` that were played before `start_ms`. added_fraud: (added,).
    at_ms: virtual clock. kind: a TouchKind, for facts that of any. payment: number. content: see
    `content_number`. amount_minor: at that stage. fact: index into the specification's facts,
    NO_FACT for scores and events; value: of the fact.
    """

    shape: Shape
    table: PaymentTable
    added: PaymentTable
    added_fraud: Bools
    history: Int64s
    start_ms: int
    at_ms: Int64s
    kind: Bytes
    payment: Int64s
    content: Int64s
    amount_minor: Int64s
    fact: NDArray[np.int8]
    value: Bools

    def __len__(self) -> int:
        return len(self.at_ms)

    @property
    def n_payments(self) -> int:
        """Payments of the file and added ones."""
        return len(self.table) + len(self.added)

    @cached_property
    def scored(self) -> Bools:
        """Which touches are scores, bool (t,)."""
        return is_score(self.kind)

    @cached_property
    def identity(self) -> Int32s:
        """Of each payment a number that those with one transaction id share, (payments,)."""
        ids = pa.concat_arrays([self.table.transaction_id, self.added.transaction_id])
        codes: Int32s = ids.dictionary_encode().indices.to_numpy().astype(np.int32)
        return codes

    @cached_property
    def card(self) -> Int32s:
        """Of each payment a number that those of one card share, (payments,)."""
        name = card_of(self.table)
        if name is None:
            return self.identity
        codes = np.concatenate([t.entities[name].codes for t in (self.table, self.added)])
        nobody = codes.max(initial=0) + 1 + self.identity
        return np.where(codes < 0, nobody, codes).astype(np.int32)

    @cached_property
    def fraud(self) -> Bools | None:
        """Of each payment whether it is ever known as fraud; None without such a fact."""
        if "fraud" not in self.table.specification.facts:
            return None
        return np.concatenate([self.table.ever("fraud"), self.added_fraud])

    def within_reach(self, horizon_ms: int) -> Stream:
        """The stream with as much of its history as a window can reach from its begin on.

        What is older changes no feature, but is in the versions of some states and not of others:
        who loads a whole file knows of facts only once their events are beyond reach.
        """
        line_ms = self.start_ms - self.table.specification.held_ms - horizon_ms
        return replace(self, history=self.history[self.table.time_ms[self.history] >= line_ms])

    def history_table(self) -> PaymentTable:
        """The payments before the start, with the facts that were known by then."""
        past = self.table.take(self.history)
        facts = past.facts
        known = np.flatnonzero(facts.known_at_ms < self.start_ms)
        columns = ("row", "name", "value", "sender_ms", "known_at_ms")
        kept = {name: getattr(facts, name)[known] for name in columns}
        return replace(past, facts=replace(facts, **kept))

    def transactions(self, contents: Int64s) -> Iterator[Transaction]:
        """Payments as they are at their stages: one for each of `contents`, in any order."""
        payments, stages = contents // MAX_STAGES, contents % MAX_STAGES
        n = len(self.table)
        own = payments < n
        from_file = self.table.transactions(payments[own])
        simulated = self.added.transactions(payments[~own] - n)
        for content, stage, is_own in zip(
            contents.tolist(), stages.tolist(), own.tolist(), strict=True
        ):
            transaction = next(from_file) if is_own else next(simulated)
            yield self._at_stage(transaction, stage, content)

    def composition(self) -> Composition:
        """How many touches of each sort there are."""
        facts, events = self.fact != NO_FACT, self.kind == TouchKind.OBSERVE
        played = np.flatnonzero(events)
        first_event = np.zeros(len(self), np.bool_)
        first_event[played[np.unique(self.payment[played], return_index=True)[1]]] = True
        from_file = self.payment < len(self.table)
        from_file &= facts | first_event | (self.kind == TouchKind.FIRST)
        counts = {
            f"{origin}_{sort}": int(np.count_nonzero(which & (from_file == (origin == "file"))))
            for origin in ("file", "simulated")
            for sort, which in (("scores", self.scored), ("events", events), ("facts", facts))
        }
        return Composition(simulated_payments=len(self.added), **counts)

    @cached_property
    def _changed_amounts(self) -> dict[int, int]:
        """Content -> its amount, where that is not the payment's own."""
        own = np.concatenate([self.table.amount_minor, self.added.amount_minor])
        changed = np.flatnonzero(own[self.payment] != self.amount_minor)
        contents, amounts = self.content[changed].tolist(), self.amount_minor[changed].tolist()
        return dict(zip(contents, amounts, strict=True))

    def _at_stage(self, tx: Transaction, stage: int, content: int) -> Transaction:
        hidden = self.shape.hidden(stage)
        amount_minor = self._changed_amounts.get(content, tx.amount_minor)
        if amount_minor == tx.amount_minor and not hidden:
            return tx
        return Transaction(
            tx.transaction_id,
            tx.time,
            amount_minor,
            tx.currency,
            {name: value for name, value in tx.entities.items() if name not in hidden},
            tx.kind,
            fields={name: value for name, value in tx.fields.items() if name not in hidden},
            location=tx.location,
            flags=tx.flags,
        )


def is_score(kind: Bytes) -> Bools:
    """Which of these TouchKinds are scores."""
    found: Bools = kind <= TouchKind.REVIEW
    return found


def content_number(payment: Int64s, stage: Int64s) -> Int64s:
    """The number of each payment at its stage."""
    return payment * MAX_STAGES + stage


def last_stage(shape: Shape) -> int:
    """The stage at which a payment has everything, as those of history have."""
    return len(shape.stages) - 1
