"""The memory store: the states of all entities of one process.

Rule: kernels do the work, and a kernel that holds the interpreter lock is one step for all threads;
so every method here is safe to call from any thread, and none needs a lock of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from freshscore.config.errors import Closed, SettingsError, StoreFull
from freshscore.config.settings import StoreSettings
from freshscore.features import applying, arena, tables
from freshscore.features.applying import (
    ACCEPTED,
    BEYOND_REACH,
    CONFLICT,
    REPEATED,
    UNKNOWN,
    answer_of,
    apply_events,
    apply_facts,
    stopped,
)
from freshscore.features.blocks import SUMS
from freshscore.features.compiled import entry_point
from freshscore.features.evaluation import MAX_EVENTS_LIMIT, scratch_for
from freshscore.features.memory import BYTES_AT, address_of
from freshscore.features.packing import Keys
from freshscore.features.program import (
    MEMBERS_AT,
    NO_CONDITION,
    Program,
    condition_code,
)
from freshscore.features.reading_states import ACCUMULATORS, read_features
from freshscore.features.row import TOKENS

OUTCOMES: Final = {
    ACCEPTED: "accepted",
    REPEATED: "repeated",
    CONFLICT: "conflict",
    BEYOND_REACH: "beyond reach",
    UNKNOWN: "unknown",
}
# The first size of tables that double; small, since a process may have many small stores.
_FIRST_SLOTS: Final = 1024
# Hash tables are kept at most so full: longer probes cost more than memory.
_FULLEST: Final = 0.7
# At the limit on payments, their table is made anew once one in so many is out of reach.
_LEAVING: Final = 64
_REGION_BYTES: Final = 1 << 20
# Events applied while other threads wait for the interpreter: about a millisecond.
_ROWS_AT_ONCE: Final = 2048


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Limits of a memory store (from the settings), all counts but the last two.

    horizon_ms: how late an accepted event may be, so how far back states are kept beyond reach.
    arena_bytes: for records; reserved, but touched only as it fills.
    """

    max_entities: int
    max_payments: int
    max_events_per_entity: int
    horizon_ms: int
    arena_bytes: int

    @classmethod
    def of(cls, settings: StoreSettings) -> Self:
        """The limits that the settings name."""
        return cls(
            max_entities=settings.max_entities,
            max_payments=settings.max_payments,
            max_events_per_entity=settings.max_events_per_entity,
            horizon_ms=1000 * settings.horizon_s,
            arena_bytes=settings.arena_bytes,
        )


class MemoryStore:
    """States of the entities of `program`'s specification, in this process."""

    def __init__(self, program: Program, keys: Keys, limits: StoreLimits) -> None:
        if limits.max_events_per_entity > MAX_EVENTS_LIMIT:
            raise ValueError(
                f"max_events_per_entity is {limits.max_events_per_entity};"
                f" a scan meets at most {MAX_EVENTS_LIMIT}"
            )
        self.program = program
        self.keys = keys
        self.limits = limits
        n = len(program.entities)
        self.head = np.zeros((tables.ENTITY + tables.ENTITY_HEAD * n) // 8, np.int64)
        self.address = address_of(self.head)
        self._numbers = np.zeros((n + 1) // 2 + 1, np.int64)
        self._numbers_at = address_of(self._numbers)
        # What applying one event answers, if it was applied.
        self._of_one = {answer_of(1, code): name for code, name in OUTCOMES.items()}
        # Of events that were observed one by one.
        self._counts = np.zeros(len(OUTCOMES), np.int64)
        self._counts_at = address_of(self._counts)
        self._apply_events = entry_point(apply_events, 7)
        self._staged = np.zeros(64, np.int64)
        self.code_at = address_of(program.code)
        self._arena = _Arena(limits.arena_bytes)
        self._full_until_ms = 0
        self._make_entities()
        self._make_payments()
        self.scratch = scratch_for(program, ACCUMULATORS, limits.max_events_per_entity)
        self.scratch_at = address_of(self.scratch)

    def observe(self, row: bytes) -> str:
        """Apply the event in `row`: "accepted", "repeated", "conflict" or "beyond reach".

        Raises StoreFull at a limit, with no state changed.
        """
        at = id(row) + BYTES_AT
        while True:
            answer = self._apply_events(
                self.address, at, 0, 0, 1, self._counts_at, self._numbers_at
            )
            outcome = self._of_one.get(answer)
            if outcome is not None:
                return outcome
            self._grow(stopped(answer)[1])

    def label(
        self, row: bytes, fact: int, value: bool, known_at_ms: int, sender_ms: int, looked_up: bool
    ) -> str:
        """Apply a fact of the payment in `row`: "accepted", "repeated", "unknown", "beyond reach".

        looked_up: time and entities are those of the observed payment, `row` has the identity only.
        Raises StoreFull at a limit, with no state changed.
        """
        words = np.array([fact, int(value), known_at_ms, sender_ms, int(looked_up)], np.int64)
        counts = np.zeros(len(OUTCOMES), np.int64)
        at = id(row) + BYTES_AT
        while True:
            done, outcome = stopped(
                apply_facts(
                    self.address,
                    at,
                    0,
                    address_of(words),
                    0,
                    1,
                    address_of(counts),
                    self._numbers_at,
                )
            )
            if done:
                return OUTCOMES[outcome]
            self._grow(outcome)

    def observe_all(self, rows: NDArray[np.uint64]) -> dict[str, int]:
        """Apply the events in `rows` (n, words of a row), in order; outcome -> how many.

        Raises StoreFull at a limit; the events before it are applied.
        """
        outcomes = np.zeros(len(OUTCOMES), np.int64)
        n, row_bytes = len(rows), rows.strides[0]
        for first in range(0, n, _ROWS_AT_ONCE):
            last = min(first + _ROWS_AT_ONCE, n)
            done = first
            while done < last:
                done, outcome = stopped(
                    self._apply_events(
                        self.address,
                        address_of(rows),
                        row_bytes,
                        done,
                        last,
                        address_of(outcomes),
                        self._numbers_at,
                    )
                )
                if done < last:
                    self._grow(outcome)
        return _counted(outcomes)

    def label_all(
        self,
        rows: NDArray[np.uint64],
        facts: NDArray[np.uint8],
        values: NDArray[np.bool_],
        known_at_ms: NDArray[np.int64],
        sender_ms: NDArray[np.int64],
    ) -> dict[str, int]:
        """Apply one fact for the payment in each row, as `label` does; outcome -> how many."""
        outcomes = np.zeros(len(OUTCOMES), np.int64)
        words = np.zeros((len(rows), 5), np.int64)
        for at, column in enumerate((facts, values, known_at_ms, sender_ms)):
            words[:, at] = column
        done = 0
        while done < len(rows):
            done, outcome = stopped(
                apply_facts(
                    self.address,
                    address_of(rows),
                    rows.strides[0],
                    address_of(words),
                    done,
                    len(rows),
                    address_of(outcomes),
                    self._numbers_at,
                )
            )
            if done < len(rows):
                self._grow(outcome)
        return _counted(outcomes)

    def features(self, row: bytes, as_of_ms: int) -> NDArray[np.float64]:
        """The feature vector of the transaction in `row` at `as_of_ms`: float64[n_columns]."""
        out = np.empty(self.program.n_columns, np.float64)
        read_features(
            self.address,
            self.code_at,
            id(row) + BYTES_AT,
            as_of_ms,
            self.scratch_at,
            address_of(out),
        )
        return out

    def versions(self, row: bytes) -> tuple[int | None, ...]:
        """The version of the state of each of the transaction's entities; None where none is.

        128 bits: equal versions of one entity mean equal sets of records.
        """
        return tuple(self._version(row, e) for e in range(len(self.program.entities)))

    def _version(self, row: bytes, e: int) -> int | None:
        low, high = struct.unpack_from("<2Q", row, TOKENS + 16 * e)
        head = tables.entity_head(self.address, e)
        number = tables.find_entity(head, np.uint64(low), np.uint64(high))
        if number == tables.NOT_FOUND:
            return None
        at = (tables.ENTITY_ROW * number + tables.VERSION) // 8
        version = self._rows[e][at : at + 2].tobytes()
        return int.from_bytes(version, "little")

    def seal(self) -> None:
        """Apply nothing more: events and facts raise Closed from now on, in every thread."""
        self._set(tables.SEALED, 1)

    def reserve(self, n_entities: Sequence[int], n_payments: int) -> None:
        """Make the tables of an empty store large enough for so many entities and payments."""
        for e, n in enumerate(n_entities):
            self._hashes[e] = np.zeros(_slots_for(n), np.int32)
            self._set_hash(e)
        self._payments = self._payment_slots(_slots_for(n_payments))
        self._set_payments()

    @property
    def observed(self) -> dict[str, int]:
        """Events that were observed one by one: outcome -> how many."""
        return _counted(self._counts)

    @property
    def newest_ms(self) -> int:
        """The newest event time applied, ms; 0 before the first."""
        return max(0, self._word(tables.NEWEST))

    @property
    def complete_since_ms(self) -> int | None:
        """Since when the store was offered all that happened, ms; None before the first event.

        It is the time of the first event ever observed, or the begin of what was loaded before it.
        """
        since = self._word(tables.COMPLETE_SINCE)
        return None if since == tables.UNKNOWN else since

    @property
    def reaches_to_ms(self) -> int:
        """Events before this are beyond reach, ms."""
        held_ms = self._word(tables.HELD) + self._word(tables.HORIZON)
        return self._word(tables.NEWEST) - held_ms

    def declare_complete(self, first_ms: int, last_ms: int) -> None:
        """Say that all events from `first_ms` to `last_ms` were offered; a gap after it counts."""
        since = self._word(tables.COMPLETE_SINCE)
        if first_ms < since and (since == tables.UNKNOWN or since <= last_ms):
            self._set(tables.COMPLETE_SINCE, first_ms)

    @property
    def n_payments(self) -> int:
        """Payments that are known by identity."""
        return self._word(tables.PAYMENT_COUNT)

    @property
    def n_entities(self) -> int:
        """Entities with a state."""
        return sum(
            self._word(tables.ENTITY + tables.ENTITY_HEAD * e + tables.ROW_COUNT)
            for e in range(len(self.program.entities))
        )

    @property
    def n_records(self) -> int:
        """Records held, of events and facts."""
        return self._word(tables.N_RECORDS)

    @property
    def memory(self) -> dict[str, int]:
        """Bytes: of live records, of segments, of regions in use, of entity and payment tables."""
        heads = [tables.ENTITY + tables.ENTITY_HEAD * e for e in range(len(self.program.entities))]
        return {
            "records": self._word(tables.RECORD_BYTES_LIVE),
            "segments": self._arena.word(arena.LIVE),
            "regions": self._arena.word(arena.USED) * self._arena.region_bytes,
            "entities": sum(
                self._word(head + tables.ROW_COUNT) * tables.ENTITY_ROW
                + 4 * (self._word(head + tables.HASH_MASK) + 1)
                for head in heads
            ),
            "payments": self._payments.nbytes,
        }

    def _word(self, at: int) -> int:
        return int(self.head[at // 8])

    def _set(self, at: int, value: int) -> None:
        self.head[at // 8] = value

    def _make_entities(self) -> None:
        n = len(self.program.entities)
        limits = self.limits
        self._rows = [
            reserved(
                limits.max_entities * tables.ENTITY_ROW, "store.max_entities", limits.max_entities
            )
            for _ in range(n)
        ]
        self._hashes = [np.zeros(_FIRST_SLOTS, np.int32) for _ in range(n)]
        self._conditions = [self._block_conditions(e) for e in range(n)]
        self._set(tables.N_ENTITIES, n)
        self._set(tables.NEWEST, -(2**62))
        self._set(tables.COMPLETE_SINCE, tables.UNKNOWN)
        self._set(tables.HORIZON, limits.horizon_ms)
        self._set(tables.HELD, self.program.specification.held_ms)
        self._set(tables.ARENA, self._arena.address)
        self._set(tables.MEMBERS, self.code_at + 8 * int(self.program.code[MEMBERS_AT]))
        self._set(tables.RECORD_KEY, address_of(self.keys.digest_keys))
        self._set(tables.STAGED, address_of(self._staged))
        for e, layout in enumerate(self.program.entities):
            head = tables.ENTITY + tables.ENTITY_HEAD * e
            conditions, sums = self._conditions[e]
            grid = self.program.specification.entity(layout.name).mode == "grid"
            self._set(head + tables.ROWS, address_of(self._rows[e]))
            self._set(head + tables.ROW_LIMIT, limits.max_entities)
            self._set(head + tables.WIDTH, 8 * layout.words)
            self._set(head + tables.N_MEMBERS, len(layout.members))
            self._set(head + tables.PLACE_AT, layout.place_at)
            self._set(head + tables.MAX_EVENTS, 2**40 if grid else limits.max_events_per_entity)
            self._set(head + tables.BLOCK_WORDS, len(conditions) * (sums + 2))
            self._set(head + tables.BLOCK_CONDITIONS, address_of(conditions))
            self._set(head + tables.N_BLOCK_CONDITIONS, len(conditions))
            self._set_hash(e)

    def _block_conditions(self, entity: int) -> tuple[NDArray[np.int64], int]:
        """Conditions that an entity's windows have, and the sums that each block keeps for one."""
        spec = self.program.specification
        name = self.program.entities[entity].name
        found = [
            (condition_code(spec, aggregate), aggregate.function)
            for group in spec.windows
            if group.entity == name
            for aggregate in group.aggregates
        ]
        conditions = sorted({code for code, _ in found}) or [NO_CONDITION]
        facts = any(code >= 32 or function == "share" for code, function in found)
        return np.array(conditions, np.int64), SUMS + (len(spec.facts) if facts else 0)

    def _set_hash(self, e: int) -> None:
        head = tables.ENTITY + tables.ENTITY_HEAD * e
        slots = len(self._hashes[e])
        self._set(head + tables.HASH, address_of(self._hashes[e]))
        self._set(head + tables.HASH_MASK, slots - 1)
        self._set(head + tables.HASH_LIMIT, int(slots * _FULLEST))

    def _make_payments(self) -> None:
        self._payments = self._payment_slots(_FIRST_SLOTS)
        self._set(tables.PAYMENT_BYTES, self._payments.strides[0])
        self._set_payments()

    def _payment_slots(self, slots: int) -> NDArray[np.int64]:
        words = 2 + (len(self.program.entities) + 1) // 2
        return np.zeros((slots, words), np.int64)

    def _set_payments(self) -> None:
        slots = len(self._payments)
        self._set(tables.PAYMENTS, address_of(self._payments))
        self._set(tables.PAYMENT_MASK, slots - 1)
        self._set(tables.PAYMENT_LIMIT, min(int(slots * _FULLEST), self.limits.max_payments))

    def _grow(self, outcome: int) -> None:
        if outcome == applying.FULL_ARENA:
            raise StoreFull(
                f"the arena is full: store.arena_bytes is {self.limits.arena_bytes},"
                f" {self.memory['segments']} bytes hold live records"
            )
        if outcome == applying.CLOSED:
            raise Closed("the store is closed: what it holds is being saved")
        if outcome == applying.FULL_PAYMENTS:
            self._grow_payments()
        else:
            self._grow_entities(applying.FULL_ENTITIES - outcome)

    def _grow_payments(self) -> None:
        limit = self.limits.max_payments
        if self.newest_ms <= self._full_until_ms:
            raise StoreFull(self._too_many_payments())
        old = self._payments
        slots = len(old)
        times = old[:, tables.PAYMENT_TIME // 8]
        times = times[times != 0] >> 16
        held_ms = self._word(tables.HELD) + self._word(tables.HORIZON)
        beyond = np.count_nonzero(times < self.newest_ms - held_ms)
        if int(slots * _FULLEST) < limit:
            # Twice the slots, unless making the table anew frees a quarter of it.
            slots = slots if beyond > len(times) // 4 else 2 * slots
        elif beyond < max(1, len(times) // _LEAVING):
            # The table is made anew for many that leave, not for each; time says when that is.
            leaving = max(1, len(times) // _LEAVING) - 1
            self._full_until_ms = int(np.partition(times, leaving)[leaving]) + held_ms
            raise StoreFull(self._too_many_payments())
        table = np.zeros((slots, old.shape[1]), np.int64)
        if tables.replace_payments(
            self.address,
            address_of(old),
            address_of(table),
            slots,
            min(int(slots * _FULLEST), limit),
        ):
            self._payments = table

    def _too_many_payments(self) -> str:
        return (
            f"{self.n_payments} payments are known by identity, and fewer than one in {_LEAVING} of"
            f" them is out of reach by now; store.max_payments is {self.limits.max_payments}"
        )

    def _grow_entities(self, e: int) -> None:
        head = tables.ENTITY + tables.ENTITY_HEAD * e
        if self._word(head + tables.ROW_COUNT) >= self.limits.max_entities:
            raise StoreFull(
                f"there are {self.limits.max_entities} of entity"
                f" {self.program.entities[e].name!r}, which is store.max_entities"
            )
        old = self._hashes[e]
        slots = 2 * len(old)
        table = np.zeros(slots, np.int32)
        if tables.replace_hash(
            self.address + head, address_of(old), address_of(table), slots, int(slots * _FULLEST)
        ):
            self._hashes[e] = table


def reserved(n_bytes: int, setting: str, value: int) -> NDArray[np.int64]:
    """Words of memory, touched only as they fill. Raises SettingsError where there is none."""
    try:
        return np.empty(n_bytes // 8, np.int64)
    except MemoryError:
        raise SettingsError(
            f"{setting} is {value}, for which this machine cannot reserve {n_bytes} bytes"
        ) from None


def _slots_for(n: int) -> int:
    """Slots of a hash table that `n` entries leave room in."""
    slots = _FIRST_SLOTS
    while int(slots * _FULLEST) <= n:
        slots *= 2
    return slots


def _counted(outcomes: NDArray[np.int64]) -> dict[str, int]:
    return {OUTCOMES[code]: int(count) for code, count in enumerate(outcomes) if count}


class _Arena:
    """The reserved block of memory for segments, and its head."""

    def __init__(self, n_bytes: int) -> None:
        self.region_bytes = min(_REGION_BYTES, max(4096, n_bytes // 16))
        n_regions = n_bytes // self.region_bytes
        # Not zeroed: pages are the system's until they are written.
        self._block = reserved(n_regions * self.region_bytes, "store.arena_bytes", n_bytes)
        self._states = np.full(n_regions, arena.REGION_FREE, np.int64)
        self._head = np.zeros(arena.ARENA_HEAD_WORDS, np.int64)
        self.address = address_of(self._head)
        for at, value in (
            (arena.BASE, address_of(self._block)),
            (arena.REGION_BYTES, self.region_bytes),
            (arena.N_REGIONS, n_regions),
            (arena.STATES, address_of(self._states)),
            (arena.CURRENT, -1),
        ):
            self._head[at // 8] = value

    def word(self, at: int) -> int:
        """One word of the arena's head."""
        return int(self._head[at // 8])
