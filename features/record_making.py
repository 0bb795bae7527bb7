"""Records of single events and facts, for whoever keeps states outside of the memory store.

Rule: they are made by the kernels with which the memory store makes its own, so the bytes and the
versions are the same wherever a state is kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from freshscore.features import tables
from freshscore.features.applying import make_event, make_fact
from freshscore.features.codec import stored
from freshscore.features.memory import BYTES_AT, address_of
from freshscore.features.packing import Keys
from freshscore.features.program import MEMBERS_AT, Program
from freshscore.features.row import IDENTITY_LOW, TIME, TOKENS
from freshscore.features.state_layout import state_layout

_ABSENT = bytes(16)


class RecordMaker:
    """Makes the stored records of one program's payments, each with its checksum.

    layouts: of the states of each entity, in order.
    """

    def __init__(self, program: Program, keys: Keys) -> None:
        self._program = program
        n = len(program.entities)
        self.layouts = tuple(state_layout(program, keys, e) for e in range(n))
        self._head = shapes_head(program)
        self._address = address_of(self._head)

    def tokens(self, row: bytes) -> tuple[bytes | None, ...]:
        """The token of each entity of the payment in `row`; None where it is absent."""
        found = (row[at : at + 16] for at in self._token_places)
        return tuple(None if token == _ABSENT else token for token in found)

    @property
    def _token_places(self) -> range:
        return range(TOKENS, TOKENS + 16 * len(self.layouts), 16)

    def event(self, row: bytes, entity: int) -> bytes:
        """The record that the event in `row` is in the states of entity number `entity`."""
        layout = self.layouts[entity]
        record = np.zeros((1, layout.width // 8), np.uint64)
        make_event(self._address, entity, id(row) + BYTES_AT, address_of(record))
        return stored(record, layout)

    def fact(
        self,
        row: bytes,
        entity: int,
        *,
        time_ms: int,
        fact: int,
        value: bool,
        known_at_ms: int,
        sender_ms: int,
    ) -> bytes:
        """The record of a fact of the payment whose identity is in `row`; time_ms: its event's."""
        layout = self.layouts[entity]
        record = np.zeros((1, layout.width // 8), np.uint64)
        identity = np.uint64(identity_of(row))
        make_fact(
            address_of(record),
            layout.width,
            identity,
            time_ms,
            fact,
            int(value),
            known_at_ms,
            sender_ms,
        )
        return stored(record, layout)


def shapes_head(program: Program) -> NDArray[np.int64]:
    """As much of a store's head as `make_event` reads: the entities' shapes, and no state.

    It points into the program, which the caller keeps alive.
    """
    n = len(program.entities)
    head = np.zeros((tables.ENTITY + tables.ENTITY_HEAD * n) // 8, np.int64)
    head[tables.N_ENTITIES // 8] = n
    head[tables.MEMBERS // 8] = address_of(program.code) + 8 * int(program.code[MEMBERS_AT])
    for e, layout in enumerate(program.entities):
        at = (tables.ENTITY + tables.ENTITY_HEAD * e) // 8
        head[at + tables.WIDTH // 8] = 8 * layout.words
        head[at + tables.N_MEMBERS // 8] = len(layout.members)
        head[at + tables.PLACE_AT // 8] = layout.place_at
    return head


def identity_of(row: bytes) -> int:
    """The low 64 bits of the identity of the payment in `row`, by which records know it."""
    return int.from_bytes(row[IDENTITY_LOW : IDENTITY_LOW + 8], "little")


def time_of(row: bytes) -> int:
    """The own time of the payment in `row`, ms."""
    return int.from_bytes(row[TIME : TIME + 8], "little", signed=True)
