"""The hold: while past events are brought in, nothing is folded or forgotten that they could touch.

It is a key that compaction asks for (invalidation/folding_lines.py), with a life that is renewed as
long as the work goes on, so a process that dies holds for that life and no longer. A second key
says whose it is: one at a time brings in the past.
Rule: what compaction began before the hold may end after it; so whoever holds looks at the states
once more at the end (invalidation/state_lines.py).
"""

from __future__ import annotations

from typing import Final

from freshscore.config.clock import Clock
from freshscore.config.errors import StoreInUse, Unavailable
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_keys import RedisKeys
from freshscore.invalidation.folding_lines import HOLD

_OWNER: Final = "hold-owner"
# Of its life; so often that one renewal may fail.
_RENEWED_AT: Final = 1 / 3

# KEYS hold, owner; ARGV who, life (ms), the instant below which nothing is folded (ms).
# 1: it is ours; 0: it is another's, or it has ended meanwhile.
_TAKE: Final = """
if redis.call('EXISTS', KEYS[1]) == 1 and redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RENEW: Final = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1
"""
_END: Final = """
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[1], KEYS[2]) end
return 1
"""


class Hold:
    """One hold, as a context manager: taken at the beginning, ended at the end.

    owner: random, tells it from others. life_s: how long it lasts without a renewal.
    Entering raises StoreInUse where another holds, and Unavailable.
    """

    def __init__(
        self, nodes: Nodes, keys: RedisKeys, owner: str, life_s: float, clock: Clock
    ) -> None:
        self._nodes = nodes
        self._keys = [keys.control(HOLD), keys.control(_OWNER)]
        self._owner = owner
        self._life_s = life_s
        self._clock = clock
        self._renewed_s = 0.0

    def __enter__(self) -> Hold:
        # Nothing at all is folded: what comes may be older than all that is there.
        if not self._run(_TAKE, self._owner, self._life_ms, 0):
            raise StoreInUse(
                "another backfill or resend is under way; if it has died, its hold ends by itself"
                f" within {self._life_s:g} s (redis.hold_s)"
            )
        self._renewed_s = self._clock.monotonic_s()
        return self

    def __exit__(self, *_: object) -> None:
        self._run(_END, self._owner)

    def renew(self) -> None:
        """Let it last longer, where it is time to. Raises Unavailable if it has ended meanwhile."""
        now_s = self._clock.monotonic_s()
        if now_s - self._renewed_s < _RENEWED_AT * self._life_s:
            return
        if not self._run(_RENEW, self._owner, self._life_ms):
            raise Unavailable(
                f"the hold on folding has ended: it was not renewed within {self._life_s:g} s"
                " (redis.hold_s); begin again"
            )
        self._renewed_s = now_s

    @property
    def _life_ms(self) -> int:
        return round(1_000 * self._life_s)

    def _run(self, script: str, *arguments: str | int) -> bool:
        return bool(self._nodes.run_script(script, self._keys, arguments))
