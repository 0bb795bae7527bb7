"""How far a node has got: the summary that is read with the states, in the same exchange.

    8 bytes       epoch: random, given once, when the node is initialised or rebuilt
    int64 x 3     watermark ms (0: not every partition has reported), complete since ms (0:
                  unknown), number of markers
    per marker    8 bytes of the SHA-1 of its topic's id, int64 partition, next offset, and the
                  lowest arrival that is still to come, ms; in the order of "m:TOPICID:PARTITION"

Little-endian; written by the scripts of features/redis_scripts.py alone.
Rule: a node without a summary has no epoch, and what it does not hold is unknown, not absent.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

import msgspec

from freshscore.config.errors import DamagedState

_HEAD: Final = struct.Struct("<8s3q")
_MARKER: Final = struct.Struct("<8s3q")


class Marker(msgspec.Struct, frozen=True):
    """One partition: all before `offset` is applied; what is to come arrived at `arrival_ms` on."""

    topic: bytes
    partition: int
    offset: int
    arrival_ms: int


class Progress(msgspec.Struct, frozen=True):
    """A node's summary; the fields are those of the module's description."""

    epoch: bytes
    watermark_ms: int
    complete_since_ms: int
    markers: tuple[Marker, ...]


def progress_of(summary: bytes) -> Progress:
    """The summary in bytes. Raises DamagedState for what is none."""
    if len(summary) < _HEAD.size:
        raise DamagedState(f"a node's progress has {len(summary)} bytes, not {_HEAD.size} or more")
    epoch, watermark_ms, complete_since_ms, n = _HEAD.unpack_from(summary)
    if len(summary) != _HEAD.size + n * _MARKER.size:
        raise DamagedState(f"a node's progress of {n} markers has {len(summary)} bytes")
    markers = tuple(Marker(*found) for found in _MARKER.iter_unpack(summary[_HEAD.size :]))
    return Progress(epoch, watermark_ms, complete_since_ms, markers)


def topic_digest(topic_id: str) -> bytes:
    """How a marker names its topic."""
    return hashlib.sha1(topic_id.encode(), usedforsecurity=False).digest()[:8]
