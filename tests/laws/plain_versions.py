"""Versions of states in plain Python: the sum of the keyed digests of the records that count.

Shares no code with the kernels: records are put together here as features/layout.py describes them,
from what the plain oracle says is in the state, and hashed by the oracle's own SipHash.
"""

from __future__ import annotations

import struct

from freshscore.features.program import Program
from freshscore.features.specification import has_location, members_of
from freshscore.features.transaction import KINDS
from freshscore.simulations.oracle_set import (
    Key,
    PlainFact,
    PlainRecord,
    PlainSet,
    identity_of,
    member_bytes,
    siphash128,
)
from tests.laws.worlds import World

_EVENT, _FACT = 1, 2


def plain_versions(world: World, oracle: PlainSet) -> dict[tuple[str, Key], int]:
    """(entity, key) -> version of its state, 128 bits, for every state of the oracle.

    For worlds in which facts were applied only to payments whose events are there.
    """
    names = [layout.name for layout in world.store.program.entities]
    found = {}
    for (entity, key), events in oracle.states().items():
        number = names.index(entity)
        digest_key = world.store.keys.digest_keys[2 * number : 2 * number + 2].tobytes()
        records = [record_bytes(world, entity, event) for event in events]
        for event in events:
            records += [
                fact_bytes(world.store.program, number, event, fact)
                for fact in oracle.facts_of(event)
                if not _is_flag(world, event, fact)
            ]
        digests = [siphash128(record, digest_key) for record in records]
        total = sum(int.from_bytes(digest, "little") for digest in digests)
        found[entity, key] = total % 2**128
    return found


def record_bytes(world: World, entity: str, event: PlainRecord) -> bytes:
    """The record of one event."""
    flags = sum(1 << bit for bit, flag in enumerate(event.flags) if flag)
    conditions = sum(1 << bit for bit, holds in enumerate(event.conditions) if holds)
    kind = KINDS.index(event.kind)
    record = struct.pack(
        "<4Q",
        event.identity,
        event.time_ms << 16 | _EVENT << 14 | kind << 8 | flags,
        event.amount_minor << 16 | conditions,
        0,
    )
    for key in event.members:
        member = 0 if key is None else identity_of(member_bytes(key), world.record_key)
        record += struct.pack("<Q", member)
    assert len(event.members) == len(members_of(world.specification, entity))
    if has_location(world.specification, entity):
        if event.place is None:
            record += struct.pack("<q", -(2**63))
        else:
            north, east = event.place
            # Little-endian: the later half of the word is the upper one.
            record += struct.pack("<2i", east, north)
    return record


def fact_bytes(program: Program, entity: int, event: PlainRecord, fact: PlainFact) -> bytes:
    """The record of one fact."""
    number = program.specification.facts.index(fact.name)
    ago = (fact.sender_ms - event.time_ms) % 2**40
    words = [0] * program.entities[entity].words
    words[0] = event.identity
    words[1] = event.time_ms << 16 | _FACT << 14
    words[2] = fact.known_at_ms << 16 | ago >> 32 << 8 | number << 4 | fact.value
    words[3] = (ago & 0xFFFFFFFF) << 32
    return struct.pack(f"<{len(words)}Q", *words)


def _is_flag(world: World, event: PlainRecord, fact: PlainFact) -> bool:
    """Whether it is known with the event, and so stands in the event's own record."""
    bit = world.specification.facts.index(fact.name)
    at_once = fact.known_at_ms == fact.sender_ms == event.time_ms
    return event.flags[bit] and fact.value and at_once
