"""Reading states from Redis: decoded and checked, with how far the nodes that hold them have got.

Rule: a state is whole or it is a problem with a name. Absent means new only on a node that has its
epoch; on another it means lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from freshscore.config.errors import DamagedState, Unavailable
from freshscore.features.codec import decode
from freshscore.features.decoded_state import DecodedState
from freshscore.features.record_making import RecordMaker
from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_door import Nodes, Topology, command
from freshscore.features.redis_keys import RedisKeys, tag_of
from freshscore.features.redis_progress import Progress, progress_of

# Why a state cannot be used.
STATE_LOST: Final = "state lost"
STATE_DAMAGED: Final = "state damaged"
# How often states are read for one request while slots move.
_MOST_MOVES: Final = 3

# The number of an entity in its specification, and a token.
Wanted = tuple[int, bytes]
_Found = DecodedState | str | None


class StoredStates(msgspec.Struct, frozen=True, eq=False):
    """What was read for one payment, for each entity in the specification's order.

    states: None for an entity that is absent, new, or could not be read. problems: why a state
    cannot be used, STATE_LOST or STATE_DAMAGED; else None. watermark_ms, complete_since_ms: the
    lowest and the highest of the nodes that were read; 0 where one does not know.
    """

    states: tuple[DecodedState | None, ...]
    problems: tuple[str | None, ...]
    watermark_ms: int
    complete_since_ms: int


class StateReading:
    """Reads the states of one program's entities."""

    def __init__(self, maker: RecordMaker, names: RedisKeys, nodes: Nodes) -> None:
        self._maker = maker
        self._names = names
        self._nodes = nodes

    def state_key(self, entity: int, token: bytes) -> bytes:
        """The key of the state of an entity."""
        return self._names.state(token, self._maker.layouts[entity].fingerprint)

    def past_key(self, entity: int, token: bytes) -> bytes:
        """The key of what was folded of it."""
        return self._names.past(token, self._maker.layouts[entity].fingerprint)

    def read(self, rows: Sequence[bytes]) -> list[StoredStates]:
        """The states of the entities of each row, in one exchange with each node concerned.

        What was folded is read in a second one, where a fact asks for it. Raises Unavailable.
        """
        tokens = [self._maker.tokens(row) for row in rows]
        wanted = [
            (entity, token) for of in tokens for entity, token in enumerate(of) if token is not None
        ]
        found, progress = self._found(wanted)
        known = [one for one in progress if one is not None]
        watermark_ms = min((one.watermark_ms for one in known), default=0)
        sinces = [one.complete_since_ms for one in known]
        since_ms = max(sinces) if sinces and all(sinces) else 0
        in_order = iter(found)
        read = []
        for of in tokens:
            mine = [None if token is None else next(in_order) for token in of]
            states = tuple(one if isinstance(one, DecodedState) else None for one in mine)
            problems = tuple(one if isinstance(one, str) else None for one in mine)
            read.append(StoredStates(states, problems, watermark_ms, since_ms))
        return read

    def progress(self) -> tuple[Progress | None, ...]:
        """How far each node has got; None for one without its epoch. Raises Unavailable."""
        tags = self._nodes.tags
        asked = [(tag.encode(), command(b"GET", self._names.progress(tag))) for tag in tags]
        return tuple(_progress(reply) for reply in replies_to(self._nodes, asked))

    def _found(self, wanted: Sequence[Wanted]) -> tuple[list[_Found], list[Progress | None]]:
        """A state, a problem, or None for a new entity, for each; and how far the nodes are.

        Where slots moved meanwhile all is read again: a node's progress says nothing of a state
        that another node gave.
        """
        for _ in range(_MOST_MOVES):
            topology = self._nodes.topology
            found = self._found_on(topology, wanted)
            if self._nodes.topology is topology:
                return found
        raise Unavailable("the nodes of Redis keep moving")

    def _found_on(
        self, topology: Topology, wanted: Sequence[Wanted]
    ) -> tuple[list[_Found], list[Progress | None]]:
        """What `_found` says, where the nodes are those of `topology` from begin to end."""
        owners = [topology.node_of(tag_of(token)) for _, token in wanted]
        concerned = sorted(set(owners))
        tags = [topology.tags[node] for node in concerned]
        asked = [(tag.encode(), command(b"GET", self._names.progress(tag))) for tag in tags]
        asked += [(tag_of(t), command(b"GET", self.state_key(e, t))) for e, t in wanted]
        replies = replies_to(self._nodes, asked)
        progress = [_progress(reply) for reply in replies[: len(concerned)]]
        blobs = replies[len(concerned) :]
        found = [
            self._decoded(entity, blob) if progress[concerned.index(owner)] else STATE_LOST
            for (entity, _), blob, owner in zip(wanted, blobs, owners, strict=True)
        ]
        self._add_past(wanted, blobs, found)
        return found, progress

    def _decoded(self, entity: int, blob: bytes | None, past: bytes = b"") -> _Found:
        if blob is None:
            return None
        try:
            return decode(blob, self._maker.layouts[entity], past)
        except DamagedState:
            return STATE_DAMAGED

    def _add_past(
        self, wanted: Sequence[Wanted], blobs: Sequence[bytes | None], found: list[_Found]
    ) -> None:
        """Decode those again that have facts of folded events, with what was folded.

        That is read after the state: an event that was folded in between is in both, not in none.
        """
        of = [
            i
            for i, one in enumerate(found)
            if isinstance(one, DecodedState) and one.n_without_event
        ]
        asked = [(tag_of(wanted[i][1]), command(b"GET", self.past_key(*wanted[i]))) for i in of]
        for i, past in zip(of, replies_to(self._nodes, asked) if of else [], strict=True):
            found[i] = self._decoded(wanted[i][0], blobs[i], past or b"")


def _progress(reply: bytes | None) -> Progress | None:
    """A node's progress; None where there is none, or no whole one."""
    if reply is None:
        return None
    try:
        return progress_of(reply)
    except DamagedState:
        return None
