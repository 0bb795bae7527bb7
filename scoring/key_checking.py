"""Whether the states that are read were begun under the secrets at hand.

Under another secret every entity would seem to be new, and no answer would say so. A node's epoch
changes when its states are begun; so whenever one is met that was not checked, and now and then
while a node has none, Redis is asked under which identifier key its states are.
Rule: what was checked costs a comparison; nothing is answered on states of another key.
"""

from __future__ import annotations

from typing import Final

from freshscore.config.clock import Clock
from freshscore.features import tables as t
from freshscore.features.redis_commands import error_of
from freshscore.features.redis_door import MOVED_WORDS, Nodes, ReplyError, command
from freshscore.features.redis_keys import CONTROL, RedisKeys
from freshscore.invalidation.deployment import KEY_ID
from freshscore.invalidation.identifier_keys import IdentifierKeys, KeyNote
from freshscore.scoring.exchanges import Desk, Fetched

_EPOCH_BYTES: Final = 8
# Nodes get other epochs when data is lost or slots move: what is forgotten here is asked again.
_MOST_EPOCHS: Final = 4_096


class KeyCheck:
    """Compares identifier keys, over the connections of the request that met a new epoch.

    between_s: how often Redis is asked while a node has no epoch. known: the summaries that were
    checked last; who brings the same ones need not ask.
    """

    def __init__(
        self, nodes: Nodes, names: RedisKeys, own: IdentifierKeys, clock: Clock, between_s: float
    ) -> None:
        self._nodes = nodes
        self._names = names
        self._own = own
        self._clock = clock
        self._between_s = between_s
        self._epochs: frozenset[bytes] = frozenset()
        self._again_s = 0.0
        self.known: tuple[bytes, ...] | None = None

    def check(self, desk: Desk, fetched: Fetched, limit_s: float) -> None:
        """Raise WrongSecret where what was fetched is of another secret; Unavailable.

        desk: with the connections that brought it. limit_s: of the exchange, if one is needed.
        """
        epochs = frozenset([summary[:_EPOCH_BYTES] for summary in fetched.progress])
        is_lost = bool(fetched.degraded & t.STATE_LOST)
        is_time = is_lost and self._clock.monotonic_s() >= self._again_s
        if not epochs <= self._epochs or is_time:
            if not self._ask(desk, limit_s):
                return
            kept = self._epochs if len(self._epochs) < _MOST_EPOCHS else frozenset()
            self._epochs = kept | epochs
            self._again_s = self._clock.monotonic_s() + self._between_s
        if not is_lost:
            self.known = fetched.progress

    def _ask(self, desk: Desk, limit_s: float) -> bool:
        """False where nodes are moving, so that nothing is known."""
        lines, topology = desk.lines, desk.topology
        if lines is None or topology is None or topology is not self._nodes.topology:
            return False
        asked = [
            command(b"HGET", self._names.markers(tag), KEY_ID.encode()) for tag in topology.tags
        ]
        of_control = topology.node_of(CONTROL.encode())
        asked[of_control] += command(b"GET", self._names.control(KEY_ID))
        n_replies = [1 + (node == of_control) for node in range(len(asked))]
        for node, replies in enumerate(lines.exchange(asked, n_replies, limit_s)):
            for reply in replies:
                if isinstance(reply, ReplyError):
                    if reply.word in MOVED_WORDS:
                        return False
                    raise error_of(reply)
            if replies[0] is not None:
                self._own.check_node(replies[0].decode())
            if node == of_control:
                self._own.judged(KeyNote.of(replies[1]), self._clock.now_ms())
        return True
