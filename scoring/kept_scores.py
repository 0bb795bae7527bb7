"""The scores that are kept in Redis for one entity, as an operator sees them.

Rule: a score is shown with what tells it apart (its feature-aggregate hash), never with what it was
computed from; what is damaged is said to be.
"""

from __future__ import annotations

import msgspec

from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_keys import RedisKeys, tag_of
from freshscore.features.redis_lines import command
from freshscore.scoring.remote_scores import matching

# Where a record has its hash: scoring/remote_scores.py.
_HASH_AT, _HASH_END = 8, 24
_NO_INVALIDATION = -(2**63)


class KeptScore(msgspec.Struct, frozen=True):
    """One record; score and time are None where it is damaged.

    is_served: whether a scorer with the same features would take it: it is whole, and no older than
    the last invalidation.
    """

    feature_hash: str
    score: float | None
    computed_ms: int | None
    is_served: bool


class KeptScores(msgspec.Struct, frozen=True):
    """What is kept of an entity under one model version, newest first; life_s: until it ends."""

    scores: tuple[KeptScore, ...]
    life_s: int | None


def kept_scores(
    nodes: Nodes, keys: RedisKeys, token: bytes, model_version: str, now_ms: int
) -> KeptScores:
    """The scores of an entity under a model version. Raises Unavailable."""
    tag, key = tag_of(token), keys.scores(token, model_version)
    number_key = keys.control("generation")
    asked = [
        (tag, command(b"LRANGE", key, b"0", b"-1")),
        (tag, command(b"TTL", key)),
        (b"control", command(b"GET", number_key)),
    ]
    records, life_s, number = replies_to(nodes, asked)
    generation = int(number or 0)
    found = tuple(_kept(record, generation, now_ms) for record in records)
    return KeptScores(found, None if life_s < 0 else life_s)


def _kept(record: bytes, generation: int, now_ms: int) -> KeptScore:
    feature_hash = record[_HASH_AT:_HASH_END]
    whole = matching([record], feature_hash, _NO_INVALIDATION, now_ms)
    return KeptScore(
        feature_hash=feature_hash.hex(),
        score=None if whole is None else whole.score,
        computed_ms=None if whole is None else whole.computed_ms,
        is_served=matching([record], feature_hash, generation, now_ms) is not None,
    )
