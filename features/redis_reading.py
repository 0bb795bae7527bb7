"""Reading states from Redis: decoded and checked, with how far the nodes that hold them have got.

Rule: a state is whole or it is a problem with a name. Absent means new only on a node that has its
epoch; on another it means lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from freshscore.config.errors import DamagedState, Unavailable
from freshscore.features.codec import buckets_of_state, decode
from freshscore.features.decoded_state import DecodedState
from freshscore.features.past_events import BUCKETS, Past, bucket_of_identity
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

# How often what was folded is asked for while a state goes on asking for more of it.
_MOST_LOOKS: Final = 4

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

    def past_key(self, entity: int, token: bytes, bucket: int) -> bytes:
        """The key of one bucket of what was folded of it."""
        return self._names.past(token, self._maker.layouts[entity].fingerprint, bucket)

    def read(self, rows: Sequence[bytes]) -> list[StoredStates]:
        """The states of the entities of each row, in one exchange with each node concerned.

        What was folded is read in a second one, where it is asked for: by an appended event that
        may be a repetition, a late fact, or the row's own payment. Raises Unavailable.
        """
        tokens = [self._maker.tokens(row) for row in rows]
        wanted = [
            (entity, token) for of in tokens for entity, token in enumerate(of) if token is not None
        ]
        owns = [
            int.from_bytes(row[:8], "little")
            for row, of in zip(rows, tokens, strict=True)
            for token in of
            if token is not None
        ]
        found, progress = self._found(wanted, owns)
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

    def _found(
        self, wanted: Sequence[Wanted], owns: Sequence[int]
    ) -> tuple[list[_Found], list[Progress | None]]:
        """A state, a problem, or None for a new entity, for each; and how far the nodes are.

        Where slots moved meanwhile all is read again: a node's progress says nothing of a state
        that another node gave.
        """
        for _ in range(_MOST_MOVES):
            topology = self._nodes.topology
            found = self._found_on(topology, wanted, owns)
            if self._nodes.topology is topology:
                return found
        raise Unavailable("the nodes of Redis keep moving")

    def _found_on(
        self, topology: Topology, wanted: Sequence[Wanted], owns: Sequence[int]
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
        for number, (one, own) in enumerate(zip(wanted, owns, strict=True)):
            state = found[number]
            if isinstance(state, DecodedState) and (buckets := _buckets(state, own)):
                found[number] = self._with_past(*one, own, buckets)
        return found, progress

    def whole(self, entity: int, token: bytes) -> tuple[bytes, Past]:
        """The bytes of a state, empty for none, and the buckets with which all of it counts.

        Raises Unavailable, DamagedState.
        """
        return self._whole(entity, token, None, frozenset())

    def past_bytes(self, entity: int, token: bytes) -> int:
        """The bytes of what was folded of a state. Raises Unavailable."""
        keys = [self.past_key(entity, token, number) for number in range(BUCKETS)]
        asked = [(tag_of(token), command(b"STRLEN", key)) for key in keys]
        return sum(replies_to(self._nodes, asked))

    def _whole(
        self, entity: int, token: bytes, own: int | None, buckets: frozenset[int]
    ) -> tuple[bytes, Past]:
        """Read in one step, so that what the buckets say is said of this very state."""
        for _ in range(_MOST_LOOKS):
            numbers = sorted(buckets)
            keys = [self.past_key(entity, token, number) for number in numbers]
            asked = command(b"MGET", self.state_key(entity, token), *keys)
            blob, *held = replies_to(self._nodes, [(tag_of(token), asked)])[0]
            if blob is None:
                return b"", {}
            past = {number: one or b"" for number, one in zip(numbers, held, strict=True)}
            state = decode(blob, self._maker.layouts[entity], past)
            more = _buckets(state, own) - buckets
            if not more:
                return blob, past
            buckets |= more
        raise Unavailable("a state changes faster than what was folded of it is read")

    def _with_past(self, entity: int, token: bytes, own: int, buckets: frozenset[int]) -> _Found:
        try:
            blob, past = self._whole(entity, token, own, buckets)
            return decode(blob, self._maker.layouts[entity], past, own) if blob else None
        except DamagedState:
            return STATE_DAMAGED

    def _decoded(self, entity: int, blob: bytes | None) -> _Found:
        if blob is None:
            return None
        try:
            return decode(blob, self._maker.layouts[entity])
        except DamagedState:
            return STATE_DAMAGED


def _buckets(state: DecodedState, own: int | None) -> frozenset[int]:
    """What of the folded events it takes to read a state whole, for the payment `own`."""
    buckets = buckets_of_state(state)
    if own is not None and state.summarised_below_ms:
        buckets |= {bucket_of_identity(own)}
    return buckets


def _progress(reply: bytes | None) -> Progress | None:
    """A node's progress; None where there is none, or no whole one."""
    if reply is None:
        return None
    try:
        return progress_of(reply)
    except DamagedState:
        return None
