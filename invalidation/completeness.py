"""Since when the states in Redis are complete, and moving that back where the past was brought in.

From the cut-over on, the log is the source of every state; before it, what was brought in is. Every
node keeps its cut-over from the first event that is brought in on, so that whoever compares states
with the log knows how far it goes.
Rule: what a node says is changed only if it is the node that was asked: epoch and instant agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from freshscore.config.errors import Unavailable
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_keys import RedisKeys
from freshscore.invalidation.node_reports import CUT_OVER, NodeReport, node_reports

# KEYS markers, progress; ARGV epoch, complete since as it was, complete since from now on (ms).
# 0: it is another node by now, or its data are.
_MOVE: Final = """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
if redis.call('HGET', KEYS[1], 'complete_since') ~= ARGV[2] then return 0 end
redis.call('HSETNX', KEYS[1], 'CUT_OVER', ARGV[2])
redis.call('HSET', KEYS[1], 'complete_since', ARGV[3])
local summary = redis.call('GET', KEYS[2])
if summary then
  redis.call('SET', KEYS[2], string.sub(summary, 1, 16)
    .. struct.pack('<i8', tonumber(ARGV[3])) .. string.sub(summary, 25))
end
return 1
""".replace("CUT_OVER", CUT_OVER)


class Completeness:
    """Since when the nodes are complete, as they said when this was made.

    Raises Unavailable where one has no data, or does not know.
    """

    def __init__(self, nodes: Nodes, keys: RedisKeys) -> None:
        self._nodes = nodes
        self._keys = keys
        self._reports = node_reports(nodes, keys)
        for one in self._reports:
            if one.epoch is None or not one.complete_since_ms:
                raise Unavailable(
                    f"the node of Redis with tag {one.tag} has no data yet, so it is not known from"
                    " when on the log is the source; start `freshscore consume`, and wait until"
                    " `freshscore lag` calls every node whole"
                )

    @property
    def since_ms(self) -> int:
        """The instant from which all nodes are complete."""
        return max(one.complete_since_ms for one in self._reports)

    @property
    def watermark_ms(self) -> int:
        """The highest arrival that any node holds; 0 for none."""
        return max((at for one in self._reports for _, at in one.markers.values()), default=0)

    def note_cut_over(self) -> None:
        """Have every node keep from when on the log is the source. Raises Unavailable."""
        for one in self._reports:
            self._move(one, one.complete_since_ms)

    def reach_back(self, spans_ms: Sequence[tuple[int, int]]) -> int:
        """Move it back over spans of the past, first and last instant, that reach it.

        The instant from which all nodes are complete now. Raises Unavailable where a node has lost
        its data meanwhile.
        """
        since_ms = reached(self.since_ms, spans_ms)
        for one in self._reports:
            if since_ms < one.complete_since_ms:
                self._move(one, since_ms)
        return since_ms

    def _move(self, one: NodeReport, since_ms: int) -> None:
        keys = [self._keys.markers(one.tag), self._keys.progress(one.tag)]
        given: list[bytes | str | int] = [one.epoch or "", one.complete_since_ms, since_ms]
        if not self._nodes.run_script(_MOVE, keys, given):
            # Run twice where a connection was lost, it finds its own work.
            now = {report.tag: report for report in node_reports(self._nodes, self._keys)}
            held = now.get(one.tag)
            if held is None or (held.epoch, held.complete_since_ms) != (one.epoch, since_ms):
                raise Unavailable(
                    f"the node of Redis with tag {one.tag} has lost its data, or another backfill"
                    " has ended meanwhile; begin again"
                )


def reached(since_ms: int, spans_ms: Sequence[tuple[int, int]]) -> int:
    """The earliest instant from which spans cover everything up to `since_ms`."""
    for first_ms, last_ms in sorted(spans_ms, key=lambda span: -span[1]):
        if last_ms >= since_ms > first_ms:
            since_ms = first_ms
    return since_ms
