"""The message of one batch on the invalidation stream: what changed, and which offsets it covers.

Layout, in words of 8 bytes, little-endian:

    0      "fsinval" and the version of this layout, 1 byte
    1      the sender: 8 random bytes of a process
    2      sequence number of the sender's messages, from 0 without a gap
    3      sent at, ms
    4      digest of the layouts of all entities: whose records these are
    5      number of partitions << 32 | number of groups
    6      bytes of the groups
    7      seal: fold of all other words (features/checksums.py)
    8 ..   for each partition 5 words: digest of the topic id, partition, from offset, to offset
           (exclusive), arrival ms up to which the partition was read
    then   for each group: entity << 32 | number of records, its token (2 words), its records as
           they are stored, each with its checksum; without records: its state was replaced

A follower that knows a partition up to an offset at or beyond `from` is in step after applying the
groups; else there is a gap. A message without groups is a heartbeat.
Rule: no identifier is in it, only tokens. A message with any damage is refused whole.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from freshscore.config.errors import DamagedState
from freshscore.features.checksums import words_fold
from freshscore.features.compiled import kernel
from freshscore.features.memory import BYTES_AT, address_of, i64, put_i64, put_u64
from freshscore.features.state_layout import StateLayout
from freshscore.invalidation.append_plan import GROUP_HEAD

_MAGIC: Final = b"fsinval\x01"
_FRONT: Final = struct.Struct("<8s8sqqQQQQ")
_PARTITION: Final = struct.Struct("<8sqqqq")
_GROUP: Final = struct.Struct("<q16s")
_SEED: Final = np.uint64(2)
_GROUP_WORDS: Final = 5
_SEAL_AT: Final = 56
_LOW_32: Final = 0xFFFFFFFF
_MANY: Final = 2**32


class Covered(NamedTuple):
    """The offsets of one partition that a message covers: `[from_offset, to_offset)`.

    topic: 8 bytes, the digest of its id (features/redis_progress.py). arrival_ms: lowest arrival
    that is still to come.
    """

    topic: bytes
    partition: int
    from_offset: int
    to_offset: int
    arrival_ms: int


class StreamMessage(msgspec.Struct, frozen=True, eq=False):
    """A message that was received whole.

    groups: int64[n, 5], for each entity its number, its token (2 words), its number of records, and
    the byte of `data` at which they begin.
    """

    data: bytes
    sender: bytes
    sequence: int
    sent_at_ms: int
    covered: tuple[Covered, ...]
    groups: NDArray[np.int64]

    @property
    def address(self) -> int:
        """Where its bytes lie in memory, while the message is alive."""
        return id(self.data) + BYTES_AT

    def token(self, group: int) -> bytes:
        """The token of one group."""
        return self.groups[group, 1:3].tobytes()


def layouts_digest(layouts: Sequence[StateLayout]) -> int:
    """64 bits that name the record layouts of all entities in order."""
    words = [layout.record_fingerprint for layout in layouts]
    digest = hashlib.blake2b(
        struct.pack(f"<{len(words)}Q", *words), digest_size=8, person=b"stream-layouts"
    )
    return int.from_bytes(digest.digest(), "little")


def replaced_group(entity: int, token: bytes) -> bytes:
    """The group that tells of a state that was replaced."""
    return _GROUP.pack(entity << 32, token)


def encode(
    layouts: Sequence[StateLayout],
    sender: bytes,
    sequence: int,
    sent_at_ms: int,
    covered: Sequence[Covered],
    n_groups: int = 0,
    body: bytes | memoryview = b"",
) -> bytes:
    """The message of a batch: `n_groups` and `body` as a Batch has them; without them a heartbeat.

    sender: 8 bytes. Raises ValueError for more than 2^32 groups or partitions.
    """
    if max(n_groups, len(covered)) >= _MANY:
        raise ValueError(f"{n_groups} groups and {len(covered)} partitions; less than 2^32 fit")
    front = _FRONT.pack(
        _MAGIC,
        sender,
        sequence,
        sent_at_ms,
        layouts_digest(layouts),
        len(covered) << 32 | n_groups,
        len(body),
        0,
    )
    parts = b"".join(_PARTITION.pack(*one) for one in covered)
    data = b"".join((front, parts, body))
    # Bytes that nobody else has seen yet are ours to complete.
    _put_seal(id(data) + BYTES_AT, len(data))
    return data


def decode(data: bytes, layouts: Sequence[StateLayout]) -> StreamMessage:
    """The message in `data`, checked; DamagedState for any damage, and for other layouts."""
    if len(data) < _FRONT.size or len(data) % 8:
        raise DamagedState(f"a message of the invalidation stream has {len(data)} bytes")
    magic, sender, sequence, sent_at_ms, digest, sizes, n_body, seal = _FRONT.unpack_from(data)
    if magic != _MAGIC or digest != layouts_digest(layouts):
        raise DamagedState("a message of the invalidation stream has another layout")
    n_covered, n_groups = sizes >> 32, sizes & _LOW_32
    body_at = _FRONT.size + n_covered * _PARTITION.size
    if body_at + n_body != len(data) or seal != int(_seal(id(data) + BYTES_AT, len(data))):
        raise DamagedState("a message of the invalidation stream fails its check")
    covered = tuple(Covered(*one) for one in _PARTITION.iter_unpack(data[_FRONT.size : body_at]))
    groups = np.empty((n_groups, _GROUP_WORDS), np.int64)
    widths = np.array([*(layout.width for layout in layouts), 0], np.int64)
    end = _index_groups(
        id(data) + BYTES_AT,
        body_at,
        len(data),
        n_groups,
        address_of(widths),
        len(layouts),
        address_of(groups),
    )
    if end != len(data):
        raise DamagedState("a message of the invalidation stream has groups that do not fill it")
    return StreamMessage(data, sender, sequence, sent_at_ms, covered, groups)


@kernel
def _index_groups(
    data: int, at: int, n_bytes: int, n: int, widths: int, n_entities: int, out: int
) -> int:
    """Write number, token, records and place of each group; where the last ends, 0 for damage."""
    for i in range(n):
        if at + GROUP_HEAD > n_bytes:
            return 0
        head = i64(data + at)
        entity = head >> 32
        count = head & _LOW_32
        if entity < 0 or entity >= n_entities:
            return 0
        words = out + 8 * _GROUP_WORDS * i
        put_i64(words, entity)
        put_i64(words + 8, i64(data + at + 8))
        put_i64(words + 16, i64(data + at + 16))
        put_i64(words + 24, count)
        put_i64(words + 32, at + GROUP_HEAD)
        at += GROUP_HEAD + count * i64(widths + 8 * entity)
    return at


@kernel
def _seal(data: int, n_bytes: int) -> np.uint64:
    """The fold of a message, the seal's own place aside."""
    fold = words_fold(data, _SEAL_AT, _SEED)
    return words_fold(data + _SEAL_AT + 8, n_bytes - _SEAL_AT - 8, fold)


@kernel
def _put_seal(data: int, n_bytes: int) -> int:
    put_u64(data + _SEAL_AT, _seal(data, n_bytes))
    return 0
