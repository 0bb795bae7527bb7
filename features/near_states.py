"""Near states: a mirror, in this process' memory, of the bytes that Redis holds for entities.

What an exchange brought is admitted as it is. What the invalidation stream carries, the records
that were appended in Redis, is appended here too. States are sets, so repetitions are harmless, and
a reader unites what was appended as it does for bytes that it has just fetched: near and fetched
states are one code path. An entity that was asked for and has no state is held as one that has
none, or every new card would miss.

Why no state here lacks what it should have. A follower applies the stream's messages in order, and
a message is published once its records are in Redis. A ticket has the number of the follower's last
step, and is drawn before an exchange is sent; so what the steps up to the ticket brought is in what
the exchange reads. Of later steps each entity keeps the number of its last one, or of the last one
of another entity that shares its note: where that is above the ticket's, the bytes are not
admitted. A step that comes after the admission finds the state held, and appends. Each step and
each admission is one kernel call, so there is no moment between.
Redis may lose what it held. Then its summary of progress is behind what the ticket knew of each
partition, and what comes with it is not admitted. A flush refuses all that was asked for before it.
What is not admitted is not held afterwards, so an entity's near state is never behind what the last
exchange brought of it, which pending events need (scoring/pending.py).
Beneath all that lies a limit on age, for what no stream can tell of: a writer that died between its
append and its message, and never came back.
Rule: nothing here decides whether near states may be served: invalidation/following.py does.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from freshscore.features import near_kernels as n
from freshscore.features import near_ring as g
from freshscore.features.compiled import entry_point
from freshscore.features.memory import BYTES_AT, address_of
from freshscore.features.state_layout import StateLayout

# Notes: at 40,000 records a second four come during an exchange, so that one admission in 16,000
# is refused for another entity's.
_NOTES: Final = 1 << 16
_LEAST_BYTES: Final = 1 << 14
# The largest place: a state of 6,000 records; copying it takes 20 us.
_MOST_PLACE: Final = 1 << 18
_PLACES_IN_BLOCK: Final = 8
# Slots for two places in three at most, all of the least size.
_FULLEST: Final = 2 / 3
_FIRST_ROOM: Final = 1 << 14
_FIRST_KNOWN: Final = 64
_VOUCHED: Final = 1
_ADDED: Final = 2
# Groups that one step applies: about 30 us, in which no other thread runs.
GROUPS_AT_ONCE: Final = 512
COUNTED: Final = {
    "held": g.HELD,
    "live_bytes": g.LIVE,
    "hits": g.HITS,
    "misses": g.MISSES,
    "admitted": g.ADMITTED,
    "not_admitted": g.NOT_ADMITTED,
    "appended": g.APPENDED,
    "evicted": g.EVICTED,
    "dropped": g.DROPPED,
    "moved": g.MOVED,
    "flushes": g.FLUSHES,
}


class NearRoom:
    """Room for the states of one request at a time; each seat has its own.

    complete_since_ms: since when all states that were found last are complete. n_bytes: of room.
    probed: row and states of a look that is to be compared with the exchange that it is answered
    by, or None.
    """

    __slots__ = (
        *("_drawn", "_found", "_numbers", "_pack", "_read", "_unpack"),
        *("address", "complete_since_ms", "most_known", "n_bytes", "out", "out_at", "probed"),
        "ticket_at",
    )

    def __init__(self, n_entities: int) -> None:
        self.complete_since_ms = 0
        self.probed: tuple[bytes, list[bytes | None]] | None = None
        words = struct.Struct(f"<{2 * n_entities + 2}q")
        self._pack, self._unpack = words.pack_into, words.unpack
        self._numbers = range(0, 2 * n_entities, 2)
        self.out = bytearray(words.size)
        self.out_at = address_of(np.frombuffer(self.out, np.uint8))
        self.grow(_FIRST_ROOM)
        self.make_ticket(_FIRST_KNOWN)

    def make_ticket(self, n_partitions: int) -> None:
        """Make room for a ticket that knows so many partitions; it is of no exchange as yet."""
        self._drawn = bytearray(n.DRAWN_OFFSETS + 8 * n_partitions)
        self.ticket_at = address_of(np.frombuffer(self._drawn, np.uint8))
        self.most_known = n_partitions

    def grow(self, n_bytes: int) -> None:
        """Make room for so many bytes."""
        self._found = bytearray(n_bytes)
        self._read = memoryview(self._found)
        self.address = address_of(np.frombuffer(self._found, np.uint8))
        self.n_bytes = n_bytes

    @property
    def needed(self) -> int:
        """Bytes that the last look needed."""
        needed: int = self._unpack(self.out)[-1]
        return needed

    def pack(self, states: Sequence[bytes | None]) -> None:
        """Write where the bytes of states lie, for the kernels."""
        words: list[int] = []
        for state in states:
            words += (0, g.NO_STATE) if state is None else (id(state) + BYTES_AT, len(state))
        self._pack(self.out, 0, *words, 0, 0)

    def states(self) -> list[bytes | None]:
        """What the last look found of each entity."""
        words, read = self._unpack(self.out), self._read
        self.complete_since_ms = words[-2]
        # Without a function for each entity, for all scores come here.
        states: list[bytes | None] = []
        for number in self._numbers:
            length = words[number + 1]
            at = words[number]
            states.append(None if length < 0 else bytes(read[at : at + length]))
        return states


class NearStates:
    """Near states of the entities of `layouts`, for all threads of a process.

    max_bytes: of the block, reserved and touched as it fills; beside it the table takes 4-8 % and
    the notes half a megabyte. most_age_s: how long a state is held before it is fetched anew.
    most_grown: records by which a state may grow, where it has not doubled. Raises ValueError for
    too few bytes.
    """

    def __init__(
        self,
        layouts: Sequence[StateLayout],
        max_bytes: int,
        *,
        most_age_s: int = 600,
        most_grown: int = 64,
    ) -> None:
        if max_bytes < _LEAST_BYTES:
            raise ValueError(f"near states need at least {_LEAST_BYTES} bytes, not {max_bytes}")
        block_bytes = max_bytes & ~63
        self._n = len(layouts)
        self._widths = np.array([layout.width for layout in layouts], np.int64)
        # Whole cache lines, from the first byte on.
        self._block = np.empty(block_bytes + 64, np.uint8)
        self._table = np.zeros(_slots_for(block_bytes // g.LEAST_PLACE), np.int64)
        self._notes = np.zeros(_NOTES, np.int64)
        self._known = np.zeros((0, n.KNOWN_ROW // 8), np.int64)
        self._head = np.zeros(g.HEAD_BYTES // 8, np.int64)
        self._at = address_of(self._head)
        widest = max(layout.width for layout in layouts)
        described = {
            g.N_ENTITIES: self._n,
            g.WIDTHS: address_of(self._widths),
            g.BLOCK: address_of(self._block) + 63 & ~63,
            g.BLOCK_BYTES: block_bytes,
            g.TABLE: address_of(self._table),
            g.TABLE_MASK: len(self._table) - 1,
            g.NOTES: address_of(self._notes),
            g.NOTES_MASK: _NOTES - 1,
            g.GENERATION: 1,
            g.MOST_PLACE: min(_MOST_PLACE, block_bytes // _PLACES_IN_BLOCK),
            g.MOST_AGE: most_age_s,
            g.GROWTH: most_grown * widest,
        }
        for at, value in described.items():
            self._head[at // 8] = value
        # All compiled before the first use: a step that compiled would hold up every thread.
        self._draw = entry_point(n.draw, 3)
        self._admit = entry_point(n.admit, 7)
        self._drop = entry_point(n.drop, 2)
        self._look = entry_point(n.look, 6)
        self._apply = entry_point(n.apply, 5)
        self._flush = entry_point(n.flush, 2)
        self._vouches = entry_point(n.vouches, 4)

    def room(self) -> NearRoom:
        """Room for one request at a time."""
        return NearRoom(self._n)

    def draw(self, room: NearRoom) -> None:
        """Draw a ticket into a room, before the exchange is sent whose states come from it."""
        while True:
            needed = self._draw(self._at, room.ticket_at, room.most_known)
            if needed <= room.most_known:
                return
            room.make_ticket(2 * needed)

    def look(self, row: bytes, room: NearRoom, now_s: int) -> list[bytes | None] | None:
        """The states of the entities of `row`, if all are held; None if one is not.

        Of each entity its bytes, or None where it is absent or has no state: what an exchange would
        have brought. now_s: of the monotonic clock. They are copies, which nothing changes.
        """
        row_at = id(row) + BYTES_AT
        while True:
            found = self._look(self._at, row_at, room.address, room.n_bytes, room.out_at, now_s)
            if found == 0:
                return room.states()
            if found != n.NO_ROOM:
                return None
            room.grow(2 * room.needed)

    def admit(
        self,
        row: bytes,
        states: Sequence[bytes | None],
        room: NearRoom,
        *,
        summaries: Sequence[bytes],
        complete_since_ms: int,
        now_s: int,
        adds: bool = True,
    ) -> int:
        """Hold what an exchange brought of the entities of `row`; how many of them are held.

        states: as they were fetched, nothing united with them. room: with the ticket that was drawn
        before the exchange, which may have brought several rows. summaries: of progress, one of
        each node that was asked (features/redis_progress.py); none where one had none. adds:
        whether to hold entities that are not held yet; a scan of many rows should not. To be called
        before anybody acts on what the states contain.
        """
        options = _ADDED if adds else 0
        if summaries and all(self._is_vouched(one, room) for one in summaries):
            options |= _VOUCHED
        room.pack(states)
        kept: int = self._admit(
            self._at,
            id(row) + BYTES_AT,
            room.out_at,
            room.ticket_at,
            complete_since_ms,
            now_s,
            options,
        )
        return kept

    def drop(self, row: bytes) -> None:
        """Forget the states of the entities of `row`: they were found damaged, or not admitted."""
        self._drop(self._at, id(row) + BYTES_AT)

    def apply(self, data_at: int, groups: NDArray[np.int64], first: int, last: int) -> None:
        """Append the groups `first` to `last` of a message whose bytes begin at `data_at`.

        groups: int64[n, 5], invalidation/stream_messages.py. At most GROUPS_AT_ONCE of them, if
        other threads are not to wait.
        """
        self._apply(self._at, data_at, address_of(groups), first, last)

    def know(self, known: NDArray[np.int64]) -> None:
        """What is known to be published: int64[n, 4], for each partition what a marker says.

        The caller keeps its offsets up to date in place; of n = 0 nothing is admitted.
        """
        # Between two of these a ticket may be drawn: that of the former table is worth nothing.
        self._head[g.N_KNOWN // 8] = 0
        self._known = known
        self._head[g.KNOWN // 8] = address_of(known)
        self._head[g.N_KNOWN // 8] = len(known)
        self._head[g.KNOWN_NUMBER // 8] += 1

    def flush(self, *, is_open: bool) -> None:
        """Forget everything, and whatever was asked for before; whether to admit from now on."""
        self._flush(self._at, int(is_open))

    @property
    def counts(self) -> dict[str, int]:
        """States and bytes that are held, and what was counted since the beginning."""
        return {name: int(self._head[at // 8]) for name, at in COUNTED.items()}

    def _is_vouched(self, summary: bytes, room: NearRoom) -> bool:
        found = self._vouches(self._at, id(summary) + BYTES_AT, len(summary), room.ticket_at)
        return bool(found)


def _slots_for(n_places: int) -> int:
    slots = 64
    while n_places > _FULLEST * slots:
        slots *= 2
    return slots
