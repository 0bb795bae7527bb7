"""Decisions on their way to the log: what was answered, on which set, for the audit.

A record is packed when the score is given, and handed to an outbox (scoring/outbox.py): when that
is full the audit loses decisions, counted, and no score waits. A record is:

    head      version, source and whether the states were near, degraded bits, lengths of what
              follows, times: see _HEAD, little-endian
    message   that a shadow answered, where it stands: see _MESSAGE
    version   of the model, UTF-8
    versions  of the states of the specification's entities, 16 bytes each, as the Result has them
    row       of the request (features/row.py): keyed hashes, amounts, fields; no identifier
    progress  the summaries that were read with the states (features/redis_progress.py), each
              behind its length: what of the log those states hold
    pending   8 bytes of the identity of each event that was united and not yet in Redis

Rule: nothing in it is an identifier, only keyed hashes; and packing reads no clock.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Final

import msgspec

from freshscore.config.errors import DamagedState
from freshscore.features import row as r
from freshscore.scoring import cache_layout as c
from freshscore.scoring.result import AGED, ALL_SOURCES, DECISIONS, degraded_causes

VERSION: Final = 2
# Layout, source, decision, degraded; bytes of model version and row, entities, summaries, pending;
# score (NaN where there is none), as_of, valid until; age of what was used without Redis, bits of
# the entities that were left out; the feature-aggregate hash.
_HEAD: Final = struct.Struct("<4B5IdqqqI16s")
# Partition and offset.
_MESSAGE: Final = struct.Struct("<iq")
_NO_MESSAGE: Final = (-1, -1)
_LENGTH: Final = struct.Struct("<I")
_WITHOUT_REDIS: Final = struct.Struct("<2q")
# Beside the source: the states were near, and what was applied and not yet told is missing.
_NEAR: Final = 0x80


class Decision(msgspec.Struct, frozen=True):
    """One decision as the auditor reads it; the fields are those of the module's description.

    score: None where the settings decided. known_age_ms: as the Result has it. missing: numbers of
    the entities that were left out.
    message: partition and offset, in the topic of transactions, of the message that a shadow
    answered; None for an answer that somebody asked for. A shadow that begins again may answer a
    message twice: both decisions name the same one.
    """

    model_version: str
    score: float | None
    decision: str
    source: str
    degraded: tuple[str, ...]
    as_of_ms: int
    valid_until_ms: int
    known_age_ms: int | None
    missing: tuple[int, ...]
    feature_hash: bytes
    state_versions: tuple[bytes, ...]
    row: bytes
    progress: tuple[bytes, ...]
    pending: tuple[bytes, ...]
    is_near: bool
    message: tuple[int, int] | None

    @property
    def is_shadow(self) -> bool:
        """Whether nobody acted on it: `freshscore shadow` gave it."""
        return self.message is not None

    @property
    def transaction(self) -> bytes:
        """The keyed hash of the transaction's identity, 16 bytes."""
        return self.row[r.IDENTITY_LOW : r.IDENTITY_HIGH + 8]


def packed(
    row: bytes,
    out: bytes,
    model_version: bytes,
    n_entities: int,
    progress: Sequence[bytes],
    pending: Sequence[bytes],
    *,
    is_near: bool = False,
) -> bytes:
    """The record of the answer in `out` (scoring/cache_layout.py) to the request in `row`."""
    score, source, decision, as_of, until = c.HEAD.unpack_from(out)
    age_ms, missing = _WITHOUT_REDIS.unpack_from(out, c.OUT_KNOWN_AGE)
    head = _HEAD.pack(
        VERSION,
        source | _NEAR * is_near,
        decision,
        out[c.OUT_DEGRADED],
        len(model_version),
        len(row),
        n_entities,
        len(progress),
        len(pending),
        score,
        as_of,
        until,
        age_ms,
        missing,
        out[c.OUT_HASH_LOW : c.OUT_HASH_HIGH + 8],
    )
    summaries = [part for one in progress for part in (_LENGTH.pack(len(one)), one)]
    versions = out[c.OUT_VERSIONS : c.OUT_VERSIONS + 16 * n_entities]
    message = _MESSAGE.pack(*_NO_MESSAGE)
    return b"".join((head, message, model_version, versions, row, *summaries, *pending))


def as_shadow(record: bytes, partition: int, offset: int) -> bytes:
    """`record`, marked as a shadow's answer to the message there."""
    message = _MESSAGE.pack(partition, offset)
    return b"".join((record[: _HEAD.size], message, record[_HEAD.size + len(message) :]))


def unpacked(record: bytes) -> Decision:
    """The decision in `record`. Raises DamagedState for bytes that are none."""
    try:
        return _unpacked(record)
    except (struct.error, ValueError, IndexError) as problem:
        raise DamagedState(f"a decision of {len(record)} bytes cannot be read") from problem


def _unpacked(record: bytes) -> Decision:
    head = _HEAD.unpack_from(record)
    version, source, decision, degraded, n_model, n_row, n_entities, n_progress, n_pending = head[
        :9
    ]
    if version != VERSION:
        raise ValueError(f"version {version}")
    least = n_model + 16 * n_entities + n_row + _LENGTH.size * n_progress + 8 * n_pending
    at = _HEAD.size + _MESSAGE.size
    if at + least > len(record):
        # Before anything is made of these numbers: a damaged one may be four billion.
        raise ValueError("its lengths do not add up")
    message = _MESSAGE.unpack_from(record, _HEAD.size)
    model, at = record[at : at + n_model], at + n_model
    versions = tuple(record[at + 16 * e : at + 16 * e + 16] for e in range(n_entities))
    at += 16 * n_entities
    row, at = record[at : at + n_row], at + n_row
    progress = []
    for _ in range(n_progress):
        (length,) = _LENGTH.unpack_from(record, at)
        progress.append(record[at + _LENGTH.size : at + _LENGTH.size + length])
        at += _LENGTH.size + length
    pending = tuple(record[at + 8 * i : at + 8 * i + 8] for i in range(n_pending))
    if at + 8 * n_pending != len(record):
        raise ValueError("its lengths do not add up")
    score, as_of, until, age_ms, missing, digest = head[9:]
    return Decision(
        model_version=model.decode(),
        score=None if math.isnan(score) else score,
        decision=DECISIONS[decision],
        source=ALL_SOURCES[source & ~_NEAR],
        degraded=degraded_causes(degraded),
        as_of_ms=as_of,
        valid_until_ms=until,
        known_age_ms=age_ms if degraded & AGED else None,
        missing=tuple(e for e in range(n_entities) if missing >> e & 1),
        feature_hash=digest,
        state_versions=versions,
        row=row,
        progress=tuple(progress),
        pending=pending,
        is_near=source & _NEAR != 0,
        message=None if message == _NO_MESSAGE else message,
    )
