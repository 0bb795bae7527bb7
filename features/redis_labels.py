"""The label index: a payment's time and entities by its identity, for facts that bring neither.

A string holds one generation of a bucket, records one behind the other, appended blindly:

    8 bytes    identity of the payment, its low 64 bits
    int64      its event time, ms
    16 bytes   the token of each entity of the specification, in order; zeros where it is absent

A generation is a quarter of the index's lifetime, by arrival, and lives for five quarters, so a
lookup reads five strings of one slot. The entities are named in the key, so that the index of
another specification is not found instead of misread, be its records as wide as these.
Rule: a record is found or it is not: what does not fit the width is damage, never read.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from freshscore.config.errors import DamagedState
from freshscore.features.program import Program
from freshscore.features.record_making import identity_of, time_of
from freshscore.features.redis_keys import RedisKeys, bucket_of, index_name
from freshscore.features.row import TOKENS

GENERATIONS: Final = 4
_FIRST: Final = struct.Struct("<Qq")
_DAY_MS: Final = 86_400_000
_ABSENT: Final = bytes(16)


class Indexed(msgspec.Struct, frozen=True):
    """What the index knows of a payment; None for an entity that it does not name."""

    time_ms: int
    tokens: tuple[bytes | None, ...]


class LabelIndex:
    """The keys and records of the index of one program. lifetime_days: 0 for no index."""

    def __init__(self, keys: RedisKeys, program: Program, lifetime_days: int) -> None:
        self._keys = keys
        self._name = name_of_index(program)
        self._n_entities = len(program.entities)
        self._width = _FIRST.size + 16 * self._n_entities
        self._generation_ms = lifetime_days * _DAY_MS // GENERATIONS
        self.ttl_s = lifetime_days * _DAY_MS * (GENERATIONS + 1) // (GENERATIONS * 1_000)

    @property
    def is_kept(self) -> bool:
        """Whether there is an index."""
        return self._generation_ms > 0

    def key(self, row: bytes, arrival_ms: int) -> bytes:
        """Where the payment in `row`, which arrived at `arrival_ms`, is entered."""
        generation = arrival_ms // self._generation_ms
        return self._keys.labels(bucket_of(identity_of(row)), self._name, generation)

    def keys_of(self, row: bytes, now_ms: int) -> list[bytes]:
        """Where it may have been entered within the lifetime, oldest first; of one slot."""
        bucket, last = bucket_of(identity_of(row)), now_ms // self._generation_ms
        return [self._keys.labels(bucket, self._name, last - n) for n in range(GENERATIONS, -1, -1)]

    def record(self, row: bytes) -> bytes:
        """What is entered."""
        tokens = row[TOKENS : TOKENS + 16 * self._n_entities]
        return _FIRST.pack(identity_of(row), time_of(row)) + tokens

    def found(self, identity: int, strings: list[bytes | None]) -> Indexed | None:
        """The first entry of a payment in what was read. Raises DamagedState."""
        wanted = identity.to_bytes(8, "little")
        for string in strings:
            if string is not None and len(string) % self._width:
                raise DamagedState(
                    f"a string of the label index has {len(string)} bytes, in records of"
                    f" {self._width}"
                )
            at = _position(string or b"", wanted, self._width)
            if string is not None and at >= 0:
                return self._indexed(string[at : at + self._width])
        return None

    def _indexed(self, record: bytes) -> Indexed:
        _, time_ms = _FIRST.unpack_from(record)
        places = range(_FIRST.size, self._width, 16)
        tokens = (record[at : at + 16] for at in places)
        return Indexed(time_ms, tuple(None if t == _ABSENT else t for t in tokens))


def name_of_index(program: Program) -> bytes:
    """How keys name the index of a program: by the entities whose tokens are in its records."""
    return index_name((layout.name, *layout.parts) for layout in program.entities)


def _position(string: bytes, wanted: bytes, width: int) -> int:
    """Where the first record begins that begins with `wanted`, or -1."""
    at = string.find(wanted)
    while at >= 0 and at % width:
        at = string.find(wanted, at + 1)
    return at
