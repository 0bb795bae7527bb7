"""Erasing the state of one entity in Redis up to an instant, for good.

What is left has a header that remembers the instant, so that what lies before it is ignored,
whenever it is appended: by a consumer that is behind, by a repetition, or when the log is read
again. So the order of erasing and appending makes no difference (law 3), and the header is the only
tombstone that a state needs; it lives for as long as a window can reach back.
Rule: what was erased is in no key of the state afterwards, and what came after the instant stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from freshscore.config.errors import DamagedState, Unavailable
from freshscore.config.secret import random_seed
from freshscore.features.checksums import HEADER_BYTES
from freshscore.features.codec import erased
from freshscore.features.past_events import BUCKETS
from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_keys import tag_of
from freshscore.features.redis_lines import Reply, command
from freshscore.features.redis_reading import Wanted
from freshscore.features.redis_scripts import DROP, SWAP
from freshscore.features.redis_store import RedisStore

# Each try loses against another write that fell between its reading and its writing, at most.
_MOST_TRIES: Final = 100
# Keys that one script removes, 0.1 ms.
_AT_ONCE: Final = 512
# No state begins so: whoever reads it finds it damaged, as it was.
DAMAGED_AND_ERASED: Final = b"erased, and damaged before"


class Eraser:
    """Erases states of one store, beside any number of writers; nonce: 64 random bits a call."""

    def __init__(self, store: RedisStore, nonce: Callable[[], int] = random_seed) -> None:
        self._store = store
        self._nonce = nonce

    def erase(self, wanted: Wanted, below_ms: int) -> None:
        """Erase what a state holds of before `below_ms`, and ignore it from now on.

        A state that is damaged stays so, without its content, until it is rebuilt. Raises
        Unavailable.
        """
        for _ in range(_MOST_TRIES):
            left = self._swapped(wanted, below_ms)
            if left is not None and self._is_past_dropped(wanted, left):
                return
        raise Unavailable("a state that is to be erased is written to without a pause")

    def _swapped(self, wanted: Wanted, below_ms: int) -> bytes | None:
        """What was swapped in; None where it was overtaken."""
        entity, token = wanted
        key, life_s = self._store.reading.state_key(entity, token), b"%d" % self._store.ttl_s
        held = self._asked(wanted, command(b"GET", key))
        try:
            layout = self._store.maker.layouts[entity]
            left = erased(held or b"", layout, below_ms=below_ms, nonce=self._nonce())
        except DamagedState:
            left = DAMAGED_AND_ERASED
        if held is None:
            begun = self._asked(wanted, command(b"SET", key, left, b"NX", b"EX", life_s))
            return None if begun is None else left
        digest = hashlib.sha1(held, usedforsecurity=False).hexdigest().encode()
        given = [b"%d" % len(held), digest, left, life_s]
        swap = command(b"EVALSHA", SWAP.digest, b"1", key, *given)
        return left if self._asked(wanted, swap) else None

    def _is_past_dropped(self, wanted: Wanted, left: bytes) -> bool:
        """Let go of what was folded: `left` has no tile that it could be asked for.

        False where the state was compacted since: a bucket may be about a tile again.
        """
        (entity, token), reading = wanted, self._store.reading
        if not self._store.maker.layouts[entity].is_grid:
            return True
        keys = [reading.past_key(entity, token, number) for number in range(BUCKETS)]
        dropping = []
        for first in range(0, BUCKETS, _AT_ONCE):
            named = [reading.state_key(entity, token), *keys[first : first + _AT_ONCE]]
            given = (b"%d" % len(named), *named, left[:HEADER_BYTES])
            dropping.append((tag_of(token), command(b"EVALSHA", DROP.digest, *given)))
        return all(replies_to(self._store.nodes, dropping))

    def _asked(self, wanted: Wanted, one: bytes) -> Reply:
        (reply,) = replies_to(self._store.nodes, [(tag_of(wanted[1]), one)])
        return reply
