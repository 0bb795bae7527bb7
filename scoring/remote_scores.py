"""Scores that other processes computed: the last few of an entity, beside its state in Redis.

They come with the states, in the same exchange, and are told apart by the feature-aggregate hash,
so one that matches is the very score that the model would give. Looking for them costs bytes and
parsing, keeping them a message; a model that is cheaper than that is simply called. Both sides are
measured, and the choice is changed only where they differ clearly.

    word 0     "fsscore" and the version of this layout
    1, 2       feature-aggregate hash
    3, 4       score, float64; when it was computed, ms
    5          the number of the newest invalidation that its process knew
    6          checksum of the words before: BLAKE2b, 8 bytes

Rule: what is damaged, of another version or older than an invalidation is as if it were not there.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Final

import msgspec

from freshscore.config.errors import Unavailable
from freshscore.features.redis_door import Nodes, command, errors_in
from freshscore.features.redis_keys import RedisKeys, slot_of

_MAGIC: Final = b"fsscore\x01"
_RECORD: Final = struct.Struct("<8s16sdqq")
RECORD_BYTES: Final = _RECORD.size + 8
# Measurements of which the median is taken; an odd number, and so few that a change is seen soon.
_KEPT: Final = 31
# So many of each are wanted before the first choice.
_ENOUGH: Final = 5
# One request in so many is sent the other way, so that both stay measured.
_OTHER_WAY: Final = 64
# Remote scores are used from twice their cost on, and given up below it.
_CLEARLY: Final = 2.0
# Of the life of what is kept, so that what was written together does not end together.
_JITTER: Final = 0.2


class RemoteScore(msgspec.Struct, frozen=True):
    """A score that another process computed, and when, ms."""

    score: float
    computed_ms: int


def encoded(feature_hash: bytes, score: float, computed_ms: int, generation: int) -> bytes:
    """The record of one computed score."""
    body = _RECORD.pack(_MAGIC, feature_hash, score, computed_ms, generation)
    return body + _check(body)


def matching(
    records: Sequence[bytes], feature_hash: bytes, generation: int, now_ms: int
) -> RemoteScore | None:
    """The newest whole record with this hash that knew invalidation number `generation`."""
    for record in records:
        if len(record) != RECORD_BYTES or record[8:24] != feature_hash:
            continue
        magic, _, score, computed_ms, known = _RECORD.unpack_from(record)
        if magic != _MAGIC or known < generation or record[-8:] != _check(record[:-8]):
            continue
        if math.isfinite(score):
            return RemoteScore(score, min(computed_ms, now_ms))
    return None


def _check(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=8, person=b"remote-score").digest()


class Worth:
    """Whether remote scores pay, from what was measured.

    Times in seconds: an exchange without and with candidates, keeping a score, calling the model.
    """

    def __init__(self) -> None:
        self._without: deque[float] = deque(maxlen=_KEPT)
        self._with: deque[float] = deque(maxlen=_KEPT)
        self._keeping: deque[float] = deque(maxlen=_KEPT)
        self._model: deque[float] = deque(maxlen=_KEPT)
        self._n = 0
        self._n_noted = 0
        # Whether scores are looked for and kept by now, and whether there is enough to choose by.
        self.is_used = False
        self.is_measured = False

    def asks(self) -> bool:
        """Whether this request should bring candidates."""
        self._n += 1
        if not self.is_measured:
            return len(self._with) < _ENOUGH and self._n % 2 == 0
        return not self.is_used if self._n % _OTHER_WAY == 0 else self.is_used

    def keeps(self) -> bool:
        """Whether a score that was just computed should be kept for others."""
        return self.is_used or len(self._keeping) < _ENOUGH or self._n % _OTHER_WAY == 0

    @property
    def is_likely(self) -> bool:
        """Whether they pay, as far as is known: also before enough was measured."""
        return self.is_used or not self.is_measured

    def note_exchange(self, elapsed_s: float, with_candidates: bool) -> None:
        """An exchange took so long."""
        (self._with if with_candidates else self._without).append(elapsed_s)

    def note_keeping(self, elapsed_s: float) -> None:
        """Keeping a score took so long."""
        self._keeping.append(elapsed_s)

    def note_model(self, elapsed_s: float) -> None:
        """Calling the model took so long; now and then the choice is made anew."""
        self._model.append(elapsed_s)
        self._n_noted += 1
        if self._n_noted % _ENOUGH == 0:
            every = (self._without, self._with, self._keeping, self._model)
            self.is_measured = all(len(one) >= _ENOUGH for one in every)
            if self.is_measured:
                self._choose()

    @property
    def cost_s(self) -> float:
        """What a remote score costs: candidates in the exchange, and keeping one."""
        candidates = median([*self._with]) - median([*self._without])
        return max(0.0, candidates) + median([*self._keeping])

    @property
    def model_s(self) -> float:
        """What calling the model costs."""
        return median([*self._model])

    def _choose(self) -> None:
        model_s, cost_s = self.model_s, self.cost_s
        self.is_used = model_s > (1.0 if self.is_used else _CLEARLY) * cost_s


class ScoreKeeper:
    """Writes scores beside the states of their first entity; used by one thread.

    most: copies that an entity keeps. ttl_s: how long they live, about.
    """

    def __init__(
        self, nodes: Nodes, keys: RedisKeys, model_version: str, most: int, ttl_s: int
    ) -> None:
        self._nodes = nodes
        self._keys = keys
        self._version = model_version
        self._most = most
        self._ttl_s = ttl_s

    def keep(self, token: bytes, record: bytes) -> None:
        """Keep one record for the entity with `token`. Raises Unavailable."""
        key = self._keys.scores(token, self._version)
        spread = 1.0 - _JITTER * record[8] / 255.0
        request = b"".join(
            (
                command(b"LPUSH", key, record),
                command(b"LTRIM", key, b"0", b"%d" % (self._most - 1)),
                command(b"EXPIRE", key, b"%d" % max(1, round(self._ttl_s * spread))),
            )
        )
        with self._nodes.lines() as lines:
            topology = self._nodes.topology
            tag = key[key.index(b"{") + 1 : key.index(b"}")]
            owner = int(topology.node_of_slot[slot_of(tag)])
            places = range(len(topology.addresses))
            requests = [request if node == owner else None for node in places]
            replies = lines.exchange(requests, [3 if node == owner else 0 for node in places])
        words = errors_in(replies[owner])
        if words:
            # A slot that moved: the next exchange of a score finds the nodes again.
            raise Unavailable(f"Redis refused to keep a score: {', '.join(sorted(words))}")
