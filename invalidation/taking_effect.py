"""Invalidating, and waiting until it is true everywhere.

An invalidation has taken effect once every scorer that holds a lease has carried it out; one that
cannot be told loses its lease, and serves nothing from a cache. So it takes one lease at most.
Rule: what is said to be done was seen to be done; a wait has an end.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from freshscore.config.clock import Clock
from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_keys import RedisKeys, tag_of
from freshscore.features.redis_lines import command
from freshscore.invalidation.control import Control, Invalidation
from freshscore.invalidation.scanning import literal, scanned

_BETWEEN_LOOKS_S: Final = 0.02
# Beyond the lease: what the answers of Redis themselves may take.
_GRACE_S: Final = 1.0
# Keys of a node that are looked at for the scores of one entity: some seconds.
_MOST_KEYS: Final = 20_000_000


@dataclass(frozen=True, slots=True)
class Effect:
    """What came of an invalidation.

    number: its own. n_scorers: how many held a lease when it was told. n_behind: how many had not
    carried it out at the end, 0 if it took effect. took_s: until then.
    """

    number: int
    n_scorers: int
    n_behind: int
    took_s: float


def invalidated(control: Control, told: Invalidation, lease_s: float, clock: Clock) -> Effect:
    """Tell all scorers, and wait for them for one lease at most. Raises Unavailable."""
    begun_s = clock.monotonic_s()
    number, n_scorers = control.invalidate(told)
    waiting = threading.Event()
    while True:
        behind, _ = control.behind(number)
        took_s = clock.monotonic_s() - begun_s
        if behind == 0 or took_s > lease_s + _GRACE_S:
            return Effect(number, n_scorers, behind, took_s)
        waiting.wait(_BETWEEN_LOOKS_S)


def drop_scores(nodes: Nodes, keys: RedisKeys, token: bytes) -> int:
    """Delete the scores that are kept of an entity, of all models; how many keys there were.

    Nobody serves them after the invalidation; this only gives their memory back. Raises
    Unavailable.
    """
    tag = tag_of(token)
    pattern = literal(keys.prefix + tag) + b"}:s:*"
    found = [*dict.fromkeys(scanned(nodes, nodes.node_of(tag), pattern, _MOST_KEYS))]
    replies = replies_to(nodes, [(tag, command(b"UNLINK", key)) for key in found])
    return sum(replies)
