"""The slow, obvious oracle, first half: which events and facts count, in plain Python.

Rule: it shares no code with what it checks. It reads the specification and the transaction, and
does the rest itself with lists, dictionaries and integers.
It must never be made fast, and never forgets anything.
Source of the hash: Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from freshscore.features.specification import FeatureSpecification, has_location, members_of
from freshscore.features.transaction import KINDS, Transaction

Key = tuple[str, ...]
Status = Literal["accepted", "repeated", "conflict", "late", "early"]


@dataclass(frozen=True)
class PlainRecord:
    """What one entity's state keeps of one event.

    conditions, flags: one truth for each of the specification's conditions and facts.
    members: keys of the entities that `members_of` names, None where absent.
    place: latitude and longitude in 1e-7 degrees; None where absent or not kept.
    """

    transaction_id: str
    identity: int
    time_ms: int
    amount_minor: int
    kind: str
    conditions: tuple[bool, ...]
    flags: tuple[bool, ...]
    members: tuple[Key | None, ...]
    place: tuple[int, int] | None

    @property
    def order(self) -> tuple[int, int]:
        """The order among events: (time, identity)."""
        return self.time_ms, self.identity


@dataclass(frozen=True)
class PlainFact:
    """One fact; `time_ms` is that of its event, None where it is for any event of its id."""

    transaction_id: str
    name: str
    value: bool
    sender_ms: int
    known_at_ms: int
    time_ms: int | None = None


# What each (entity, key) that a transaction names keeps of it.
Content = dict[tuple[str, Key], PlainRecord]


class PlainSet:
    """The accepted events of every entity, and their facts.

    horizon_ms, skew_ms: how long before, and after, its arrival an event's time may lie.
    record_key: 16 bytes, the key of identities.
    """

    def __init__(
        self,
        specification: FeatureSpecification,
        *,
        horizon_ms: int,
        skew_ms: int,
        record_key: bytes,
    ) -> None:
        self._spec = specification
        self._horizon_ms = horizon_ms
        self._skew_ms = skew_ms
        self._record_key = record_key
        self._contents: dict[str, list[Content]] = {}
        self._states: dict[tuple[str, Key], list[PlainRecord]] = {}
        self._facts: dict[str, list[PlainFact]] = {}

    def observe(self, transaction: Transaction, arrival_ms: int | None = None) -> Status:
        """Take an event; `arrival_ms` is by default its own time.

        A content is what the states keep of it. "repeated": it is what counts already in all
        that it names, and it names all that the first content of its id did. "conflict": another
        content of its id was taken; this one is taken all the same, and the smaller counts.
        """
        arrival_ms = transaction.time if arrival_ms is None else arrival_ms
        if transaction.time < arrival_ms - self._horizon_ms:
            return "late"
        if transaction.time > arrival_ms + self._skew_ms:
            return "early"
        content = {}
        for entity in self._spec.entities:
            key = self._key(transaction, entity.name)
            if key is not None:
                content[entity.name, key] = self._record(transaction, entity.name)
        seen = self._contents.setdefault(transaction.transaction_id, [])
        status: Status = "conflict" if seen else "accepted"
        if seen and self._is_counted(content) and _names(content) >= _names(seen[0]):
            status = "repeated"
        if content not in seen:
            seen.append(content)
            for state, record in content.items():
                self._states.setdefault(state, []).append(record)
        return status

    def label(
        self,
        transaction_id: str,
        name: str,
        value: bool,
        sender_ms: int,
        known_at_ms: int,
        time_ms: int | None = None,
    ) -> None:
        """Take a fact of an event that is here or still to come; ValueError if it is impossible.

        It belongs to the event of that id whose time is `time_ms`; None: to whichever there is.
        """
        if name not in self._spec.facts:
            raise ValueError(f"fact {name!r} is not declared")
        if known_at_ms < sender_ms:
            raise ValueError(f"known at {known_at_ms}, before it was sent at {sender_ms}")
        fact = PlainFact(transaction_id, name, value, sender_ms, known_at_ms, time_ms)
        self._facts.setdefault(transaction_id, []).append(fact)

    def events_of(self, entity: str, key: Key) -> list[PlainRecord]:
        """The records that count for one entity, in order."""
        counted: dict[str, PlainRecord] = {}
        for record in self._states.get((entity, key), []):
            other = counted.get(record.transaction_id)
            if other is None or self._rank(entity, record) < self._rank(entity, other):
                counted[record.transaction_id] = record
        return sorted(counted.values(), key=lambda record: record.order)

    def states(self) -> dict[tuple[str, Key], list[PlainRecord]]:
        """The records that count, for every (entity, key) that has any."""
        return {(entity, key): self.events_of(entity, key) for entity, key in self._states}

    def facts_of(self, record: PlainRecord) -> set[PlainFact]:
        """The facts of one event, flags included, each with its smallest known-at."""
        copies: dict[tuple[str, bool, int], int] = {}
        for name, flag in zip(self._spec.facts, record.flags, strict=True):
            if flag:
                copies[name, True, record.time_ms] = record.time_ms
        for fact in self._facts.get(record.transaction_id, []):
            if fact.time_ms is None or fact.time_ms == record.time_ms:
                which = (fact.name, fact.value, fact.sender_ms)
                copies[which] = min(fact.known_at_ms, copies.get(which, fact.known_at_ms))
        return {
            PlainFact(record.transaction_id, *which, known_at_ms, record.time_ms)
            for which, known_at_ms in copies.items()
        }

    def holds(self, record: PlainRecord, name: str, as_of_ms: int) -> bool:
        """Whether the latest fact `name` of this event known at `as_of_ms` says true."""
        known = [
            (fact.known_at_ms, fact.sender_ms, fact.value)
            for fact in self.facts_of(record)
            if fact.name == name and fact.known_at_ms <= as_of_ms
        ]
        return bool(known) and max(known)[2]

    def _is_counted(self, content: Content) -> bool:
        return all(record in self.events_of(*state) for state, record in content.items())

    def _key(self, transaction: Transaction, entity: str) -> Key | None:
        parts = [transaction.entities.get(part) for part in self._spec.entity(entity).parts]
        present = tuple(part for part in parts if part is not None)
        return present if len(present) == len(parts) else None

    def _record(self, transaction: Transaction, entity: str) -> PlainRecord:
        where = transaction.location if has_location(self._spec, entity) else None
        return PlainRecord(
            transaction_id=transaction.transaction_id,
            identity=identity_of(transaction.transaction_id.encode(), self._record_key),
            time_ms=transaction.time,
            amount_minor=transaction.base_amount(self._spec.currency),
            kind=transaction.kind,
            conditions=tuple(
                transaction.kind == condition.kind
                if condition.field is None
                else transaction.fields.get(condition.field) == condition.value
                for condition in self._spec.conditions
            ),
            flags=tuple(transaction.flags.get(fact, False) for fact in self._spec.facts),
            members=tuple(self._key(transaction, m) for m in members_of(self._spec, entity)),
            place=None if where is None else (round(where[0] * 1e7), round(where[1] * 1e7)),
        )

    def _rank(self, entity: str, record: PlainRecord) -> tuple[object, ...]:
        """The order between two contents of one id: the smaller counts."""
        members = [
            0 if key is None else identity_of(member_bytes(key), self._record_key)
            for key in record.members
        ]
        # As the unsigned words of a record, in which no place is the smallest negative latitude.
        place = (-(2**31), 0) if record.place is None else record.place
        return (
            record.time_ms,
            record.amount_minor,
            KINDS.index(record.kind),
            _bits(record.conditions),
            _bits(record.flags),
            members,
            [fixed % 2**32 for fixed in place],
        )


def member_bytes(key: Key) -> bytes:
    """What is hashed of a member: its one part, or each of several after its length."""
    parts = [part.encode() for part in key]
    if len(parts) == 1:
        return parts[0]
    return b"".join(len(part).to_bytes(2, "little") + part for part in parts)


# An event is asked for with each of its entities, and by each oracle that a world asks.
@functools.lru_cache(maxsize=4_096)
def identity_of(data: bytes, record_key: bytes) -> int:
    """The first 8 bytes of `siphash128`, little-endian: the order among equal times."""
    return int.from_bytes(siphash128(data, record_key)[:8], "little")


def siphash128(data: bytes, key: bytes) -> bytes:
    """SipHash-2-4 of `data` under a key of 16 bytes, with 16 bytes of output."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    start = b"somepseudorandomlygeneratedbytes"
    lanes = [int.from_bytes(start[i : i + 8], "big") for i in range(0, 32, 8)]
    lanes = [lanes[0] ^ k0, lanes[1] ^ k1 ^ 0xEE, lanes[2] ^ k0, lanes[3] ^ k1]
    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) % 256])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        lanes[3] ^= word
        lanes = _mixed(_mixed(lanes))
        lanes[0] ^= word
    lanes[2] ^= 0xEE
    digest = b""
    for _ in range(2):
        lanes = _mixed(_mixed(_mixed(_mixed(lanes))))
        digest += (lanes[0] ^ lanes[1] ^ lanes[2] ^ lanes[3]).to_bytes(8, "little")
        lanes[1] ^= 0xDD
    return digest


def _mixed(lanes: list[int]) -> list[int]:
    a, b, c, d = lanes
    a, c = _sum(a, b), _sum(c, d)
    b, d, a = _turned(b, 13) ^ a, _turned(d, 16) ^ c, _turned(a, 32)
    c, a = _sum(c, b), _sum(a, d)
    b, d, c = _turned(b, 17) ^ c, _turned(d, 21) ^ a, _turned(c, 32)
    return [a, b, c, d]


def _sum(a: int, b: int) -> int:
    return (a + b) % 2**64


def _turned(lane: int, bits: int) -> int:
    return (lane << bits | lane >> (64 - bits)) % 2**64


def _names(content: Content) -> set[str]:
    return {entity for entity, _ in content}


def _bits(truths: Iterable[bool]) -> int:
    return sum(1 << bit for bit, truth in enumerate(truths) if truth)
