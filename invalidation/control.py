"""What is told to all scorers at once: entities, models and cohorts whose cached scores end.

Every scorer holds a lease in Redis and renews it; with each renewal it says up to which number it
has carried out what was told, and learns what came since. An invalidation has taken effect once
every lease that is still held says so: within one lease, since a scorer whose lease has ended
serves no cached score.
Layout: four keys under one hash tag, so that a script sees them together.

    generation   the number of the last invalidation
    log          the last of them, oldest first: number, kind, what
    leases       scorer -> when its lease ends, by the clock of the server (ms)
    seen         scorer -> the number up to which it has carried out the log

Numbers follow from the server's clock and always rise. So a number that a failover has lost is
never given again, and who has seen it is known to have seen something else than what is there.
Rule: who has missed what the log no longer holds, or seen what it never held, is told to give up
everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from freshscore.features.redis_door import Nodes

# Invalidations that are kept for scorers that renew late.
_KEPT: Final = 1_000

ENTITY: Final = "entity"
MODEL: Final = "model"
COHORT: Final = "cohort"
EVERYTHING: Final = "everything"

_LIVE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now)) do
    redis.call('ZREM', KEYS[3], gone)
    redis.call('HDEL', KEYS[4], gone)
end
"""

_TELL: Final = """
local generation = redis.call('GET', KEYS[1]) or '0'
local told, found = {generation}, generation == ARGV[3]
if not found then
    local log = redis.call('LRANGE', KEYS[2], 0, -1)
    -- Before the first of them there was nothing.
    found = ARGV[3] == '0' and #log < tonumber(ARGV[4])
    for _, entry in ipairs(log) do
        local number, said = string.match(entry, '^(%d+) (.*)$')
        if found then
            told[#told + 1] = said
        end
        found = found or number == ARGV[3]
    end
end
if not found then
    return {generation, 'everything '}
end
return told
"""
_RENEW: Final = (
    _LIVE
    + """
redis.call('ZADD', KEYS[3], now + ARGV[2], ARGV[1])
redis.call('HSET', KEYS[4], ARGV[1], ARGV[3])
"""
    + _TELL
)

_INVALIDATE: Final = (
    _LIVE
    + """
local last = tonumber(redis.call('GET', KEYS[1]) or '0')
local generation = string.format('%.0f', math.max(last + 1, time[1] * 1000000 + time[2]))
redis.call('SET', KEYS[1], generation)
redis.call('RPUSH', KEYS[2], generation .. ' ' .. ARGV[1])
redis.call('LTRIM', KEYS[2], -ARGV[2], -1)
return {generation, redis.call('ZCARD', KEYS[3])}
"""
)

_BEHIND: Final = (
    _LIVE
    + """
local behind, since = 0, {}
for _, entry in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
    local number = string.match(entry, '^%d+')
    if number == ARGV[1] or next(since) then
        since[number] = true
    end
end
for _, scorer in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
    if not since[redis.call('HGET', KEYS[4], scorer) or ''] then
        behind = behind + 1
    end
end
return {behind, redis.call('ZCARD', KEYS[3])}
"""
)

_RELEASE: Final = """
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
return 0
"""


@dataclass(frozen=True, slots=True)
class Invalidation:
    """One thing whose cached scores end.

    kind: entity, model, cohort or everything. what: the token of an entity in hexadecimal digits,
    the version of a model, the name of a cohort; empty for everything.
    """

    kind: str
    what: str


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a renewed lease tells: the number of the last invalidation, and those that came."""

    generation: int
    told: tuple[Invalidation, ...]


class Control:
    """The control keys in Redis. All methods raise Unavailable."""

    def __init__(self, nodes: Nodes, namespace: str) -> None:
        self._nodes = nodes
        self._keys = [
            f"{namespace}:{{control}}:{name}" for name in ("generation", "log", "leases", "seen")
        ]

    def renew(self, scorer: str, lease_ms: int, seen: int) -> Renewal:
        """Renew the lease of `scorer`, which has carried out what was told up to number `seen`."""
        return _renewal(self._run(_RENEW, scorer, lease_ms, seen, _KEPT))

    def release(self, scorer: str) -> None:
        """Give a lease back: nobody needs to wait for this scorer."""
        self._run(_RELEASE, scorer)

    def invalidate(self, told: Invalidation) -> tuple[int, int]:
        """Tell all scorers; the number of this invalidation, and how many hold a lease."""
        generation, leases = self._run(_INVALIDATE, f"{told.kind} {told.what}", _KEPT)
        return int(generation), int(leases)

    def behind(self, generation: int) -> tuple[int, int]:
        """How many scorers with a lease have not carried out `generation`, and how many there are.

        A lease that ends counts no more: without one nothing is served from a cache.
        """
        behind, leases = self._run(_BEHIND, generation)
        return int(behind), int(leases)

    def _run(self, script: str, *arguments: str | int) -> list[bytes]:
        answer: list[bytes] = self._nodes.run_script(script, self._keys, arguments)
        return answer


class ListeningControl(Control):
    """The same for who hears what is told, and is waited for by nobody: it writes nothing."""

    def renew(self, scorer: str, lease_ms: int, seen: int) -> Renewal:
        """What was told since number `seen`."""
        return _renewal(self._run(_TELL, scorer, lease_ms, seen, _KEPT))

    def release(self, scorer: str) -> None:
        """Nothing: no lease is held."""


def _renewal(answer: list[bytes]) -> Renewal:
    return Renewal(int(answer[0]), tuple(_invalidation(one) for one in answer[1:]))


def _invalidation(line: bytes) -> Invalidation:
    kind, _, what = line.decode().partition(" ")
    return Invalidation(kind, what)
