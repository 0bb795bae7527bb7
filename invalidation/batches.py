"""A batch: what a poll of the log brought, as it goes to Redis and on to the followers.

Messages become rows (a kernel reads the plain ones, the careful reader the others), rows become
records grouped by entity, groups become one byte stream of commands for each node. Nothing is sent.
Rule: each message has one outcome, and what is refused has a reason; a batch is a function of its
messages, their arrivals, and of which identities this batcher has seen.
Never share a batcher between threads. Its buffers are re-used: a batch is whole until the second
batch after it is built.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from freshscore.config.settings import Settings
from freshscore.features import row as r
from freshscore.features.memory import BYTES_AT, address_of
from freshscore.features.packing import Keys
from freshscore.features.program import Program
from freshscore.invalidation import append_kernels as k
from freshscore.invalidation import append_plan as p
from freshscore.invalidation import messages as m
from freshscore.invalidation.append_kernels import fill_body, group_rows
from freshscore.invalidation.append_plan import AppendLimits, AppendPlan
from freshscore.invalidation.batch import (
    Batch,
    Buffers,
    Erasure,
    Found,
    Lookup,
    Refusal,
    with_room,
)
from freshscore.invalidation.feed import Acceptance
from freshscore.invalidation.message_columns import MessageColumns
from freshscore.invalidation.message_reading import MessageReader, is_far
from freshscore.invalidation.message_rows import read_messages
from freshscore.invalidation.message_tables import MessageTables, fits
from freshscore.invalidation.messages import MessageRefused, is_erasure

__all__ = ["Batch", "BatchLimits", "Batcher", "Erasure", "Found", "Lookup", "Messages", "Refusal"]

# A batch's buffers outlive the next one's making, so that its replies can be read after that.
_TURNS: Final = 2
_HALF_DAY_MS: Final = 43_200_000
_DAY_S: Final = 86_400
# Outcomes that kernels find, by status.
_OUTCOMES: Final = {
    k.APPLIED: "applied",
    k.CONFLICT: m.CONFLICT,
    k.LATE: m.LATE,
    k.EARLY: m.EARLY,
    k.LOOKUP: "looked up",
}
_DETAILS: Final = {
    k.CONFLICT: "its transaction_id was seen with another entity, time or amount",
    k.LATE: "its time is before its arrival by more than the horizon",
    k.EARLY: "its time is after its arrival by more than the skew",
}


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Limits of what a batcher takes: of one message, and of one batch."""

    max_message_bytes: int
    max_messages: int


class Messages:
    """Messages where they lie: int64[n, 3] of address, length (0 and 0: none) and arrival ms.

    held: whatever keeps those bytes alive and unchanged.
    """

    def __init__(self, inputs: NDArray[np.int64], held: object) -> None:
        self.inputs = inputs
        self.held = held

    @classmethod
    def of(cls, values: Sequence[bytes | None], arrivals_ms: Sequence[int]) -> Self:
        """The messages in bytes objects, as a client hands them out; None is a tombstone."""
        n = len(values)
        inputs = np.empty((n, 3), np.int64)
        inputs[:, 0] = np.fromiter(map(id, values), np.int64, n)
        inputs[:, 0] += BYTES_AT
        if None in values:
            inputs[:, 1] = [0 if value is None else len(value) for value in values]
            inputs[[value is None for value in values], 0] = 0
        else:
            inputs[:, 1] = np.fromiter(map(len, values), np.int64, n)  # type: ignore[arg-type]  # no None
        inputs[:, 2] = arrivals_ms
        return cls(inputs, values)

    def __len__(self) -> int:
        return len(self.inputs)

    def value(self, i: int) -> bytes | None:
        """A copy of one message."""
        address, n_bytes, _ = self.inputs[i].tolist()
        return ctypes.string_at(address, n_bytes) if address else None


class Batcher:
    """Makes batches, one after the other, of one thread.

    node_of_slot: uint16[16384]; it may be replaced between batches, after nodes have moved.
    columns, decode: as MessageReader takes them.
    """

    def __init__(
        self,
        program: Program,
        keys: Keys,
        acceptance: Acceptance,
        append: AppendLimits,
        limits: BatchLimits,
        node_of_slot: NDArray[np.uint16],
        *,
        columns: MessageColumns | None = None,
        decode: Callable[[bytes], Any] | None = None,
    ) -> None:
        self.node_of_slot = node_of_slot
        self.limits = limits
        self._append = append
        self._plan = AppendPlan(program, keys, acceptance, append)
        self._reader = MessageReader(program, keys, columns, decode)
        self._tables = None
        if self._reader.is_plain and fits(program):
            self._tables = MessageTables(program, keys, limits.max_message_bytes)
        self._n_entities = len(program.entities)
        self._row_words = self._reader.row_bytes // 8
        self._turns = [
            Buffers(np.empty(0, np.uint8), np.empty((0, p.GROUP // 8), np.int64), [])
            for _ in range(_TURNS)
        ]
        self._rows = np.empty((0, self._row_words), np.uint64)
        self._statuses = np.empty(0, np.uint8)
        self._links = np.empty(0, np.int32)
        self._hash = np.empty(0, np.int32)

    @classmethod
    def of(
        cls,
        settings: Settings,
        program: Program,
        keys: Keys,
        node_of_slot: NDArray[np.uint16],
        *,
        columns: MessageColumns | None = None,
        decode: Callable[[bytes], Any] | None = None,
    ) -> Self:
        """The batcher that the settings describe."""
        store, redis, kafka = settings.store, settings.redis, settings.kafka
        held_s = -(-program.specification.held_ms // 1_000)
        append = AppendLimits(
            namespace=redis.namespace,
            life_s=held_s + store.horizon_s + _DAY_S * redis.idle_margin_days,
            label_index_days=redis.label_index_days,
            compact_records=redis.compact_records,
        )
        acceptance = Acceptance.of(store)
        limits = BatchLimits(kafka.max_message_bytes, kafka.max_poll_records)
        return cls(
            program, keys, acceptance, append, limits, node_of_slot, columns=columns, decode=decode
        )

    def forget_expiries(self) -> None:
        """After a failed write or a lost node: let the next append to each key extend its life."""
        self._plan.forget_expiries()

    def build(
        self,
        transactions: Messages,
        labels: Messages,
        now_ms: int,
        found: Sequence[Found] = (),
    ) -> Batch:
        """The batch of these messages, and of labels of earlier batches that were looked up.

        now_ms: the process' clock, for when keys' lives were extended. Raises ValueError for more
        messages than the limit.
        """
        n_transactions, n_labels = len(transactions), len(labels)
        n = n_transactions + n_labels
        if n > self.limits.max_messages:
            raise ValueError(f"a batch of {n} messages; the limit is {self.limits.max_messages}")
        said = np.zeros((n_labels + len(found), p.LABEL // 8), np.int64)
        inputs = np.zeros((n + len(found), 3), np.int64)
        inputs[:n_transactions] = transactions.inputs
        inputs[n_transactions:n] = labels.inputs
        buffers = self._turns[0]
        self._turns.append(self._turns.pop(0))
        words = self._words(n_transactions, inputs, said, now_ms)
        if self._tables is not None:
            read_messages(self._tables.address, address_of(words), n)
        n_slow = int(np.count_nonzero(self._statuses[:n] == k.WAITING))
        apart = self._read(transactions, labels, said)
        far = self._place(found, n, said)
        self._fill(words, buffers)
        batch = Batch(self._plan, self._append, words, buffers)
        statuses = self._statuses[:n]
        batch.n_slow = n_slow
        batch.far = far
        batch.lookups = [one for one in apart if isinstance(one, Lookup)]
        batch.erasures = [one for one in apart if isinstance(one, Erasure)]
        batch.refused = [one for one in apart if isinstance(one, Refusal)]
        batch.refused += _refusals(statuses, n_transactions)
        batch.counts = _counts(statuses, batch.refused)
        if batch.erasures:
            batch.counts["erased"] = len(batch.erasures)
        batch.route(self.node_of_slot)
        return batch

    def _words(
        self,
        n_transactions: int,
        inputs: NDArray[np.int64],
        said: NDArray[np.int64],
        now_ms: int,
    ) -> NDArray[np.int64]:
        """The words of a batch of these messages, with room for its rows."""
        n = len(inputs)
        if len(self._rows) < n:
            self._rows = np.empty((2 * n, self._row_words), np.uint64)
            self._statuses = np.empty(2 * n, np.uint8)
            self._links = np.empty(2 * n * (self._n_entities + 1), np.int32)
            self._hash = np.empty(_slots(2 * n * (self._n_entities + 1)), np.int32)
        self._statuses[:n] = k.WAITING
        words = np.zeros(p.BATCH // 8, np.int64)
        for at, value in (
            (p.N_ROWS, n),
            (p.N_TRANSACTIONS, n_transactions),
            (p.ROWS, address_of(self._rows)),
            (p.ROW_BYTES, 8 * self._row_words),
            (p.STATUSES, address_of(self._statuses)),
            (p.INPUTS, address_of(inputs)),
            (p.LABELS, address_of(said)),
            (p.LINKS, address_of(self._links)),
            (p.HASH, address_of(self._hash)),
            (p.HASH_MASK, _slots(n * (self._n_entities + 1)) - 1),
            (p.HALF_DAY, now_ms // _HALF_DAY_MS),
        ):
            words[at // 8] = value
        return words

    def _read(
        self, transactions: Messages, labels: Messages, said: NDArray[np.int64]
    ) -> list[Refusal | Lookup | Erasure]:
        """Read the messages that no kernel has read; what is refused, or not for a batch alone."""
        apart: list[Refusal | Lookup | Erasure] = []
        for i in np.flatnonzero(self._statuses[: len(transactions) + len(labels)] == k.WAITING):
            at = int(i)
            is_label = at >= len(transactions)
            index = at - len(transactions) if is_label else at
            messages = labels if is_label else transactions
            try:
                self._check_size(int(messages.inputs[index, 1]))
                if is_label:
                    aside = self._read_label(messages, index, at, said)
                    apart += [aside] if aside else []
                else:
                    self._put_row(at, self._reader.transaction(messages.value(index)))
            except MessageRefused as refused:
                self._statuses[at] = k.REFUSED
                apart.append(Refusal(is_label, index, refused.reason, refused.detail))
        return apart

    def _check_size(self, n_bytes: int) -> None:
        if n_bytes > self.limits.max_message_bytes:
            raise MessageRefused(
                m.OVERSIZED,
                f"{n_bytes} bytes; kafka.max_message_bytes is {self.limits.max_message_bytes}",
            )

    def _read_label(
        self, messages: Messages, index: int, at: int, said: NDArray[np.int64]
    ) -> Lookup | Erasure | None:
        """Read one label; what to look up if it does not bring its payment, or what to erase."""
        value, arrival_ms = messages.value(index), int(messages.inputs[index, 2])
        if value is not None and is_erasure(value):
            states = self._reader.erasure(value)
            self._statuses[at] = k.REFUSED
            return Erasure(index, tuple(states), arrival_ms + 1)
        label = self._reader.label(value, arrival_ms)
        if label.needs_lookup:
            self._statuses[at] = k.LOOKUP
            return Lookup(index, int.from_bytes(label.row[:8], "little"), label)
        self._put_row(at, label.row)
        said[index] = label.given, label.values, label.known_ms, label.sender_ms
        return None

    def _put_row(self, at: int, row: bytes | bytearray) -> None:
        self._rows[at] = np.frombuffer(row, np.uint64)
        self._statuses[at] = k.READ

    def _place(self, found: Sequence[Found], n: int, said: NDArray[np.int64]) -> list[Found]:
        """Put labels that were looked up behind the `n` messages; those that have no place."""
        far = []
        for i, one in enumerate(found):
            label = one.lookup.label
            row = bytearray(label.row)
            row[r.TIME : r.TIME + 8] = one.time_ms.to_bytes(8, "little", signed=True)
            row[r.TOKENS : r.TOKENS + len(one.tokens)] = one.tokens
            if is_far(row, label.sender_ms):
                self._statuses[n + i] = k.REFUSED
                far.append(one)
                continue
            self._put_row(n + i, row)
            at = len(said) - len(found) + i
            said[at] = label.given, label.values, label.known_ms, label.sender_ms
        return far

    def _fill(self, words: NDArray[np.int64], buffers: Buffers) -> None:
        """Group the rows, and write the body."""
        most = int(words[p.N_ROWS // 8]) * (self._n_entities + 1)
        if len(buffers.groups) < most:
            buffers.groups = np.empty((2 * most, p.GROUP // 8), np.int64)
        words[p.GROUPS // 8] = address_of(buffers.groups)
        n_bytes = group_rows(self._plan.address, address_of(words))
        buffers.body = with_room(buffers.body, n_bytes)
        words[p.BODY // 8] = address_of(buffers.body)
        fill_body(self._plan.address, address_of(words))


def _slots(n: int) -> int:
    """Slots of a hash table for `n` groups: at least twice as many."""
    return 1 << (2 * n + 1).bit_length()


def _refusals(statuses: NDArray[np.uint8], n_transactions: int) -> list[Refusal]:
    """What the kernels refused of transactions."""
    apart = []
    for status, detail in _DETAILS.items():
        for i in np.flatnonzero(statuses[:n_transactions] == status).tolist():
            apart.append(Refusal(False, i, _OUTCOMES[status], detail))
    return apart


def _counts(statuses: NDArray[np.uint8], refused: list[Refusal]) -> dict[str, int]:
    """Outcome -> messages."""
    counts: dict[str, int] = {}
    by_status = np.bincount(statuses, minlength=max(_OUTCOMES) + 1).tolist()
    for status, outcome in _OUTCOMES.items():
        if by_status[status]:
            counts[outcome] = by_status[status]
    for one in refused:
        if one.reason not in _OUTCOMES.values():
            counts[one.reason] = counts.get(one.reason, 0) + 1
    return counts
