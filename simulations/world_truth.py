"""What a simulated world knows: what was said, what of it counts, and what each state holds.

A message is known by its bytes, a record by the bytes that it is in a state. So the truth says of
any state which events and facts it counts, from what was appended to it and not lost, however it
was compacted since; and of any position in the log which records must be there.
Rule: what is accepted is decided here from times and stamps alone, as the definitions say.
"""

from __future__ import annotations

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
    """What one state counts. events, facts: numbers of contents and facts."""

    entity: int
    records: frozenset[bytes]
    events: NDArray[np.int64]
    facts: NDArray[np.int64]
    version: bytes


@dataclass(slots=True)
class _State:
    """One state. log: for each partition the records of its messages with their offsets."""

    entity: int
    node: int
    log: dict[Partition, list[tuple[int, bytes]]] = field(default_factory=dict)
    n_losses: int = -1
    n_bytes: int = 0
    latest: Snapshot | None = None


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
            self.states[key] = _State(entity, int(self._node_of_slot[slot_of(tag_of(token))]))
        return key

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
        if state.latest is not None and state.n_losses == node.n_losses:
            if len(ever) == state.n_bytes:
                return state.latest
            fresh = self.split(key, bytes(ever[state.n_bytes :]))
            known = state.latest.records
            if not fresh <= known:
                state.latest = self.grown(state.latest, fresh - known)
        else:
            state.latest = self.made(state.entity, self.split(key, bytes(ever)))
        state.n_losses, state.n_bytes = node.n_losses, len(ever)
        return state.latest

    def split(self, key: bytes, data: bytes) -> frozenset[bytes]:
        """The records that were appended to a state. Raises BrokenLaw for a part of one."""
        width = self.maker.layouts[self.states[key].entity].width
        if len(data) % width:
            raise BrokenLaw(f"{len(data)} bytes appended to a state of records of {width}")
        return frozenset(data[at : at + width] for at in range(0, len(data), width))

    def made(self, entity: int, records: frozenset[bytes]) -> Snapshot:
        """The snapshot of these records. Raises BrokenLaw for one that nobody said."""
        return self.grown(NOTHING._replace(entity=entity), records)

    def grown(self, before: Snapshot, new: frozenset[bytes]) -> Snapshot:
        """A snapshot with more records."""
        events: list[int] = []
        facts: list[int] = []
        for record in new:
            found = self._meaning.get((before.entity, record))
            if found is None:
                raise BrokenLaw(f"a state of entity {before.entity} holds what nobody said")
            (events if found[0] else facts).append(found[1])
        records = before.records | new
        version = bytes(16)
        if records:
            number = state_version(b"".join(records), self.maker.layouts[before.entity])
            version = number.to_bytes(16, "little")
        return Snapshot(
            before.entity,
            records,
            np.concatenate([before.events, np.array(sorted(events), np.int64)]),
            np.concatenate([before.facts, np.array(sorted(facts), np.int64)]),
            version,
        )

    def must_hold(self, key: bytes) -> frozenset[bytes]:
        """The records of all that was accepted for a state."""
        log = self.states[key].log
        return frozenset(record for some in log.values() for _, record in some)


_NONE: Final = np.array([], np.int64)
NOTHING: Final = Snapshot(-1, frozenset(), _NONE, _NONE, bytes(16))
