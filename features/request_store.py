"""One request's states, fetched as bytes, as the store that every kernel reads.

Rule: it holds what one request fetched, checked and united, until the next; it belongs to one
thread at a time, keeps alive what its kernels point into, and changes no state.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from freshscore.features import request_kernels as q
from freshscore.features import tables
from freshscore.features.codec import buckets_of_facts, decode, encode
from freshscore.features.compiled import entry_point
from freshscore.features.evaluation import scratch_for
from freshscore.features.memory import BYTES_AT, address_of
from freshscore.features.packing import Keys
from freshscore.features.past_events import Past, bucket_of_identity
from freshscore.features.program import MEMBERS_AT, Program
from freshscore.features.reading_states import ACCUMULATORS, read_features
from freshscore.features.state_layout import StateLayout, state_layout
from freshscore.features.store import StoreLimits

# First sizes; both double as states need it: a card of 40 records, and what united ones take.
_FIRST_RECORDS: Final = 1_024
_FIRST_BYTES: Final = 1 << 16
_PAYMENT_WORDS: Final = 2
_TABLE_WORDS: Final = 3
# A grid has no limit: what it holds beyond tiles is what the horizon keeps open.
_UNLIMITED: Final = 2**40


class RequestStore:
    """A store of one request's states; `take` fills it, scoring and `features` read it."""

    def __init__(self, program: Program, keys: Keys, limits: StoreLimits) -> None:
        self.program = program
        self.keys = keys
        self.limits = limits
        n = len(program.entities)
        self.layouts: list[StateLayout] = [state_layout(program, keys, e) for e in range(n)]
        self.head = np.zeros((tables.ENTITY + tables.ENTITY_HEAD * n) // 8, np.int64)
        self.address = address_of(self.head)
        self.code_at = address_of(program.code)
        self._rows = np.zeros((n, tables.ENTITY_ROW // 8), np.int64)
        self._hashes = np.zeros((n, 2), np.int32)
        self._tables = np.zeros((n, _TABLE_WORDS), np.int64)
        self._payments = np.zeros((2, _PAYMENT_WORDS), np.int64)
        self._staged = np.zeros(64, np.int64)
        self._fetched = bytearray(16 * n)
        self._fetched_at = address_of(np.frombuffer(self._fetched, np.uint8))
        self._pack = struct.Struct(f"<{2 * n}q").pack_into
        self._held: Sequence[bytes | None] = ()
        self._own = 0
        self._take = entry_point(q.take_states, 6)
        # Set where the scratch moved: whoever keeps its address looks, and clears it.
        self.has_grown = False
        self._describe()
        self._make_buffer(_FIRST_BYTES)
        self._make_scratch(_FIRST_RECORDS)

    def take(
        self,
        row: bytes,
        states: Sequence[bytes | None],
        watermark_ms: int = 0,
        complete_since_ms: int = tables.UNKNOWN,
        degraded: int = 0,
        past: Sequence[bytes | None] = (),
    ) -> bool:
        """Hold the states of the entities of `row`; whether they are complete, checked and counted.

        states: of each entity of the program, in order, its bytes, or None where the row has no
        such entity or the entity has no state. degraded: bits of features/tables.py. past: of each
        entity the bucket of what was folded that can hold this payment, as it was read with the
        state; None for nothing. If False, `late` and `damaged` say which entities are concerned.
        """
        self._own = self._holding(row, states, past) if any(past) else 0
        self._held = states
        words: list[int] = []
        for state in states:
            if state is None:
                words += (0, -1)
            else:
                words += (id(state) + BYTES_AT, len(state))
        self._pack(self._fetched, 0, *words)
        row_at = id(row) + BYTES_AT
        while True:
            found = self._take(
                self.address, row_at, self._fetched_at, watermark_ms, complete_since_ms, degraded
            )
            if found != q.NO_ROOM:
                return bool(found == q.TAKEN) and self._own == 0
            self._grow()

    @property
    def late(self) -> list[int]:
        """Numbers of entities to be taken `with_past`.

        They have facts whose events are folded, or have folded the row's own payment.
        """
        return self._entities(int(self.head[q.LATE // 8]) | self._own)

    @property
    def damaged(self) -> list[int]:
        """Numbers of entities whose bytes fail their check; they are read as without a state."""
        return self._entities(int(self.head[q.DAMAGED // 8]))

    def buckets(self, row: bytes, entity: int, state: bytes) -> frozenset[int]:
        """The buckets of what was folded that `with_past` needs. Raises DamagedState."""
        needed = buckets_of_facts(decode(state, self.layouts[entity]))
        return needed | {bucket_of_identity(_identity(row))}

    def with_past(self, row: bytes, entity: int, state: bytes, past: Past) -> bytes:
        """The state as bytes in which late facts count, and the payment in `row` is a record.

        past: what was folded of it, read with the state in one step. Raises DamagedState.
        """
        return encode(decode(state, self.layouts[entity], past, _identity(row)))

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

    def version(self, entity: int) -> int:
        """The 128-bit version of the state that was taken of an entity; 0 where it has none."""
        at = tables.VERSION // 8
        return int.from_bytes(self._rows[entity, at : at + 2].tobytes(), "little")

    @property
    def summarised_below_ms(self) -> int:
        """S of the states that were taken: nothing can be answered for an instant before it."""
        return int(self.head[tables.SUMMARISED // 8])

    def _holding(
        self, row: bytes, states: Sequence[bytes | None], past: Sequence[bytes | None]
    ) -> int:
        """Bits of the entities whose state is folded early, and whose bucket has the payment."""
        bits = 0
        for entity, bucket in enumerate(past):
            state = states[entity]
            if bucket and state and row[:8] in bucket:
                bits |= bool(q.is_summarised(id(state) + BYTES_AT, len(state))) << entity
        return bits

    def _entities(self, bits: int) -> list[int]:
        return [e for e in range(len(self.program.entities)) if bits >> e & 1]

    def _set(self, at: int, value: int) -> None:
        self.head[at // 8] = value

    def _describe(self) -> None:
        """Everything of the head that no request changes."""
        self._set(tables.N_ENTITIES, len(self.program.entities))
        self._set(tables.HELD, self.program.specification.held_ms)
        self._set(q.LATENESS, self.limits.horizon_ms)
        held_ms = self.program.specification.held_ms
        self._set(q.HELD_FROM, self.keys.answers_from_ms + held_ms)
        self._set(tables.PAYMENTS, address_of(self._payments))
        self._set(tables.PAYMENT_MASK, len(self._payments) - 1)
        self._set(tables.PAYMENT_BYTES, self._payments.strides[0])
        self._set(tables.MEMBERS, self.code_at + 8 * int(self.program.code[MEMBERS_AT]))
        self._set(tables.RECORD_KEY, address_of(self.keys.digest_keys))
        self._set(tables.STAGED, address_of(self._staged))
        self._set(tables.COMPLETE_SINCE, tables.UNKNOWN)
        for e, (layout, state) in enumerate(zip(self.program.entities, self.layouts, strict=True)):
            head = tables.ENTITY + tables.ENTITY_HEAD * e
            self._tables[e, q.LAYOUT // 8] = state.address
            self._set(head + tables.ROWS, address_of(self._rows[e]))
            self._set(head + tables.ROW_COUNT, 1)
            self._set(head + tables.HASH, address_of(self._hashes[e]))
            self._set(head + tables.HASH_MASK, 1)
            self._set(head + tables.WIDTH, 8 * layout.words)
            self._set(head + tables.N_MEMBERS, len(layout.members))
            self._set(head + tables.PLACE_AT, layout.place_at)
            most = _UNLIMITED if state.is_grid else self.limits.max_events_per_entity
            self._set(head + tables.MAX_EVENTS, most)
            self._set(head + tables.TILES, address_of(self._tables[e]))

    def _grow(self) -> None:
        needed, most = int(self.head[q.NEEDED // 8]), int(self.head[q.MOST // 8])
        if needed > self._buffer.nbytes:
            self._make_buffer(2 * needed)
        if most > int(self.head[q.SCANNED // 8]):
            self._make_scratch(2 * most)
            self.has_grown = True

    def _make_buffer(self, n_bytes: int) -> None:
        self._buffer = np.empty(n_bytes // 8, np.int64)
        self._set(q.BUFFER, address_of(self._buffer))
        self._set(q.BUFFER_BYTES, self._buffer.nbytes)

    def _make_scratch(self, n_records: int) -> None:
        self.scratch = scratch_for(self.program, ACCUMULATORS, n_records)
        self.scratch_at = address_of(self.scratch)
        self._set(q.SCANNED, n_records)


def _identity(row: bytes) -> int:
    """The low 64 bits of a payment's identity."""
    return int.from_bytes(row[:8], "little")
