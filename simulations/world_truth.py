"""What a simulated world knows: what was said, what of it counts, and what each state holds.

A message is known by its bytes, a record by the bytes that it is in a state. So the truth says of
any state which events and facts it counts, from what was appended to it and not lost, however it
was compacted since; and of any position in the log which records must be there.
Rule: what is accepted is decided here from times and stamps alone, as the definitions say.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from freshscore.config.settings import Settings
from freshscore.features.codec import state_version
from freshscore.features.packing import Keys, Packer
from freshscore.features.program import Program
from freshscore.features.record_making import RecordMaker, identity_of
from freshscore.features.redis_keys import RedisKeys, slot_of, tag_of
from freshscore.features.transaction import Transaction
from freshscore.invalidation.partitions import Partition
from freshscore.simulations.simulated_redis import SimulatedNode

Place = tuple[Partition, int]
# What a header says of instants and sizes (features/codec.py): F and what was forgotten, the
# numbers of tiles and records, S.
_HEADED: Final = b"fsstate"
_HEADER_BYTES: Final = 88
_LINES: Final = struct.Struct("<32x2q16xQq")
_N_TILES_SHIFT: Final = 40
# No state of a world has so many records that can be folded early.
_FOLDED_SELDOM: Final = 512


class BrokenLaw(AssertionError):
    """A law does not hold; the text says which, and on what, without identifiers."""


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """One content of one payment.

    states: the key of the state of each entity, None where it is absent; records: what it is there.
    """

    number: int
    transaction: Transaction
    row: bytes
    identity: bytes
    states: tuple[bytes | None, ...]
    records: tuple[bytes, ...]


class Fact(NamedTuple):
    """One fact that the log holds, of the payment whose content has this number."""

    content: int
    name: int
    value: bool
    sender_ms: int
    known_at_ms: int


class Said(NamedTuple):
    """What a message says. facts: names and values with the sender's instant; of a payment none.

    content: None for what cannot be read, or names nobody that is known.
    """

    content: Content | None
    facts: tuple[tuple[int, bool], ...] = ()
    sender_ms: int = 0
    known_ms: int = 0


class Snapshot(NamedTuple):
    """What one state counts. events, facts: numbers of contents and facts.

    records: all that it holds. passed: those of them that it does not count before they were
    compared with what was folded early. lines: what is appended counts so late where its time is
    from the first on and below the second, ms.
    """

    entity: int
    records: frozenset[bytes]
    events: NDArray[np.int64]
    facts: NDArray[np.int64]
    version: bytes
    passed: frozenset[bytes] = frozenset()
    lines: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class _State:
    """One state. log: for each partition the records of its messages with their offsets."""

    entity: int
    slot: int
    log: dict[Partition, list[tuple[int, bytes]]] = field(default_factory=dict)
    n_losses: int = -1
    n_bytes: int = 0
    latest: Snapshot | None = None
    read_on: SimulatedNode | None = None
    # With these bytes, where some of it was folded early.
    held: bytes = b""


class Truth:
    """Everything that happened in one world."""

    def __init__(
        self,
        settings: Settings,
        program: Program,
        keys: Keys,
        packer: Packer,
        node_of_slot: NDArray[np.uint16],
    ) -> None:
        store = settings.store
        # Else all that a state holds counts.
        self._is_early = settings.redis.grid_records < _FOLDED_SELDOM
        self.horizon_ms, self.skew_ms = 1_000 * store.horizon_s, 1_000 * store.skew_s
        self.maker = RecordMaker(program, keys)
        self.contents: list[Content] = []
        self.facts: list[Fact] = []
        self.states: dict[bytes, _State] = {}
        self.accepted: dict[str, Content] = {}
        # Positions of messages that must have a letter, and of those that may say "conflict".
        self.refused: dict[Place, str] = {}
        self.n_accepted = 0
        self._said: dict[bytes, Said] = {}
        self._meaning: dict[tuple[int, bytes], tuple[bool, int]] = {}
        self._names = RedisKeys(settings.redis.namespace)
        self._packer = packer
        self._node_of_slot = node_of_slot

    def content(self, transaction: Transaction) -> Content:
        """A content that may be said, scored or observed from now on."""
        row = self._packer.row(transaction)
        states: list[bytes | None] = []
        records = []
        for entity, token in enumerate(self.maker.tokens(row)):
            states.append(None if token is None else self._state_of(entity, token))
            records.append(b"" if token is None else self.maker.event(row, entity))
        identity = identity_of(row).to_bytes(8, "little")
        number = len(self.contents)
        found = Content(number, transaction, row, identity, tuple(states), tuple(records))
        for entity, record in enumerate(records):
            self._meaning.setdefault((entity, record), (True, number))
        self.contents.append(found)
        return found

    def _state_of(self, entity: int, token: bytes) -> bytes:
        key = self._names.state(token, self.maker.layouts[entity].fingerprint)
        if key not in self.states:
            self.states[key] = _State(entity, slot_of(tag_of(token)))
        return key

    def node_of(self, key: bytes) -> int:
        """The node that has a state now."""
        return int(self._node_of_slot[self.states[key].slot])

    def say(self, value: bytes, said: Said) -> None:
        """From now on a message of these bytes means this."""
        self._said[value] = said

    def came(self, at: Partition, offset: int, value: bytes, arrival_ms: int) -> None:
        """A message has come to stand in the log."""
        said = self._said.get(value)
        if said is None:
            return
        if said.content is None:
            self.refused[at, offset] = "malformed or unknown"
        elif said.facts:
            self._came_facts(at, offset, said, said.content, arrival_ms)
        else:
            self._came_payment(at, offset, said.content, arrival_ms)

    def _came_payment(self, at: Partition, offset: int, content: Content, arrival_ms: int) -> None:
        refusal = self.refusal(content, arrival_ms)
        if refusal is not None:
            self.refused[at, offset] = refusal
        else:
            self.n_accepted += 1
            self.accepted.setdefault(content.transaction.transaction_id, content)
            for key, record in zip(content.states, content.records, strict=True):
                if key is not None:
                    self.states[key].log.setdefault(at, []).append((offset, record))

    def refusal(self, content: Content, arrival_ms: int) -> str | None:
        """Why a payment that arrived then is refused; None where it is accepted."""
        time_ms = content.transaction.time
        if time_ms < arrival_ms - self.horizon_ms:
            return "late"
        return "early" if time_ms > arrival_ms + self.skew_ms else None

    def _came_facts(
        self, at: Partition, offset: int, said: Said, content: Content, arrival_ms: int
    ) -> None:
        known_ms = max(said.known_ms, said.sender_ms, arrival_ms)
        for name, value in said.facts:
            number = self.fact(Fact(content.number, name, value, said.sender_ms, known_ms))
            for key, record in self.fact_records(number).items():
                self.states[key].log.setdefault(at, []).append((offset, record))

    def fact(self, fact: Fact) -> int:
        """Know a fact; its number."""
        self.facts.append(fact)
        return len(self.facts) - 1

    def fact_records(self, number: int) -> dict[bytes, bytes]:
        """What a fact is in each state of its payment."""
        fact = self.facts[number]
        content = self.contents[fact.content]
        found = {}
        for entity, key in enumerate(content.states):
            if key is None:
                continue
            record = self.maker.fact(
                content.row,
                entity,
                time_ms=content.transaction.time,
                fact=fact.name,
                value=fact.value,
                known_at_ms=fact.known_at_ms,
                sender_ms=fact.sender_ms,
            )
            self._meaning.setdefault((entity, record), (False, number))
            found[key] = record
        return found

    def snapshot(self, node: SimulatedNode, key: bytes) -> Snapshot:
        """What the state at `key` counts now, on the node that holds it. Raises BrokenLaw."""
        state = self.states[key]
        ever = node.appended.get(key, b"")
        is_as_before = state.read_on is node and state.n_losses == node.n_losses
        if self._is_early:
            held = node.held(key) or b""
            if is_as_before and len(ever) == state.n_bytes and held == state.held:
                return state.latest or NOTHING
            state.latest, state.held = self._with_lines(key, held, bytes(ever)), held
        elif is_as_before and state.latest is not None:
            if len(ever) == state.n_bytes:
                return state.latest
            fresh = self.split(key, bytes(ever[state.n_bytes :]))
            known = state.latest.records
            if not fresh <= known:
                state.latest = self.grown(state.latest, fresh - known)
        else:
            state.latest = self.made(state.entity, self.split(key, bytes(ever)))
        state.read_on, state.n_losses, state.n_bytes = node, node.n_losses, len(ever)
        return state.latest

    def _with_lines(self, key: bytes, held: bytes, ever: bytes) -> Snapshot:
        """The snapshot of a state of which some may be folded early.

        What was appended behind its header, and nowhere else, has not been compared yet.
        """
        entity = self.states[key].entity
        layout = self.maker.layouts[entity]
        lines, tail = (0, 0), b""
        if layout.is_grid and held.startswith(_HEADED):
            fold_ms, forget_ms, sizes, early_ms = _LINES.unpack_from(held)
            if early_ms:
                lines = (max(fold_ms, forget_ms), early_ms)
                n_tiles, n = sizes >> _N_TILES_SHIFT, sizes & ((1 << _N_TILES_SHIFT) - 1)
                tail = held[_HEADER_BYTES + layout.tile_width * n_tiles + layout.width * n :]
        records = self.split(key, ever)
        behind = Counter(self._records(key, tail))
        often = Counter(self._records(key, ever)) if behind else Counter()
        new = frozenset(record for record, n in behind.items() if n == often[record])
        before = self.made(entity, records - new)._replace(lines=lines)
        return self.grown(before, new) if new else before

    def _records(self, key: bytes, data: bytes) -> list[bytes]:
        """Records one behind the other. Raises BrokenLaw for a part of one."""
        width = self.maker.layouts[self.states[key].entity].width
        if len(data) % width:
            raise BrokenLaw(f"{len(data)} bytes appended to a state of records of {width}")
        return [data[at : at + width] for at in range(0, len(data), width)]

    def split(self, key: bytes, data: bytes) -> frozenset[bytes]:
        """The records that were appended to a state. Raises BrokenLaw for a part of one."""
        return frozenset(self._records(key, data))

    def made(self, entity: int, records: frozenset[bytes]) -> Snapshot:
        """The snapshot of these records. Raises BrokenLaw for one that nobody said."""
        return self.grown(NOTHING._replace(entity=entity), records)

    def grown(self, before: Snapshot, new: frozenset[bytes]) -> Snapshot:
        """A snapshot with more records."""
        events: list[int] = []
        facts: list[int] = []
        passed: list[bytes] = []
        begin_ms, end_ms = before.lines
        for record in new:
            found = self._meaning.get((before.entity, record))
            if found is None:
                raise BrokenLaw(f"a state of entity {before.entity} holds what nobody said")
            is_event, number = found
            if is_event and begin_ms <= self.contents[number].transaction.time < end_ms:
                passed.append(record)
            else:
                (events if is_event else facts).append(number)
        grown = before._replace(
            records=before.records | new,
            events=np.concatenate([before.events, np.array(sorted(events), np.int64)]),
            facts=np.concatenate([before.facts, np.array(sorted(facts), np.int64)]),
            passed=before.passed | {*passed},
        )
        return grown._replace(version=self._version(grown))

    def counting(self, before: Snapshot, some: frozenset[bytes]) -> Snapshot:
        """A snapshot that counts some of what it passes over: they were compared."""
        counted = self.grown(before._replace(lines=(0, 0)), some)
        counted = counted._replace(passed=before.passed - some, lines=before.lines)
        return counted._replace(version=self._version(counted))

    def _version(self, state: Snapshot) -> bytes:
        counted = state.records - state.passed
        if not counted:
            return bytes(16)
        number = state_version(b"".join(counted), self.maker.layouts[state.entity])
        return number.to_bytes(16, "little")

    def must_hold(self, key: bytes) -> frozenset[bytes]:
        """The records of all that was accepted for a state."""
        log = self.states[key].log
        return frozenset(record for some in log.values() for _, record in some)


_NONE: Final = np.array([], np.int64)
NOTHING: Final = Snapshot(-1, frozenset(), _NONE, _NONE, bytes(16))
