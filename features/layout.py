"""The record: what one event or one fact is, in memory, in a saved store and in Redis.

A state is a sequence of records of one width, sorted by (event time, identity, type, content).
A record is 4 to 9 words of 8 bytes, little-endian:

    word  event                                       fact
    0     identity: 64 bits of the keyed hash of the transaction_id
    1     event time ms << 16 | type << 14 | kind << 8 | flags known with the event
    2     amount minor << 16 | condition bits         known at ms << 16 | fact << 4 | value
    3     checksum (low 32)                           sender's instant - time (high 32, signed,
                                                      with 8 bits more in word 2), checksum
    4..   identity of each member (64 bits of a keyed hash), 0 if absent
    last  latitude, longitude as int32 of 1e-7 degrees, where the specification wants them

In memory the checksum's place is free for the arena's own use; it is written when a state is
encoded (features/codec.py) and is not part of the digest that makes a version.
Order in one instant: by identity as an unsigned number; an event before its facts.
"""

from __future__ import annotations

from typing import Final

EVENT: Final = 1
FACT: Final = 2

# Bytes from a record's beginning, which is its identity.
TIME: Final = 8
CONTENT: Final = 16
CHECK: Final = 24
MEMBERS: Final = 32

# Latitude and longitude of a request or record that has none: outside every valid place.
NO_PLACE: Final = -(2**63)

PLACE_UNITS: Final = 10_000_000

# The sender's instant of a fact lies within 2^39 ms (17 years) of its event: 40 signed bits.
SENDER_LIMIT_MS: Final = 2**39


def record_words(n_members: int, with_place: bool) -> int:
    """Words of 8 bytes of one record."""
    return 4 + n_members + with_place


def place(latitude: float, longitude: float) -> int:
    """A place as one signed word: two int32 of 1e-7 degrees."""
    north = round(latitude * PLACE_UNITS)
    east = round(longitude * PLACE_UNITS)
    word = (north & 0xFFFFFFFF) << 32 | (east & 0xFFFFFFFF)
    return word - 2**64 if word >= 2**63 else word
