"""What one request reads of Redis, in one exchange with each node concerned.

A kernel writes the commands: templates in which only the hash tag changes. With each node's states
goes its progress, asked for before them, so that the states hold at least what it says.
Rule: what a server answers is bytes, or nothing, or trouble; trouble is raised, never read as a new
entity. A node without progress has lost its data, or never had any: its answers are degraded.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from freshscore.config.errors import Unavailable
from freshscore.features import row as r
from freshscore.features import tables as t
from freshscore.features.compiled import entry_point
from freshscore.features.memory import BYTES_AT, address_of
from freshscore.features.past_events import Past, bucket_of_identity
from freshscore.features.record_making import identity_of, time_of
from freshscore.features.redis_commands import REFUSED_WORDS, error_of
from freshscore.features.redis_door import (
    MOVED_WORDS,
    Lines,
    Nodes,
    Reply,
    ReplyError,
    Topology,
    command,
    errors_in,
)
from freshscore.features.redis_keys import RedisKeys, slot_of, tag_of
from freshscore.features.request_kernels import WRITTEN_SHIFT, put_commands
from freshscore.features.state_layout import StateLayout
from freshscore.features.uniting_states import Side, united_state
from freshscore.scoring.node_health import NodeHealth

# epoch, watermark ms, complete since ms, number of markers: features/redis_progress.py.
_PROGRESS: Final = struct.Struct("<8s3q")
_NO_EPOCH: Final = bytes(8)
# How often nodes are found again for one request: slots move one after the other.
_MOST_MOVES: Final = 3
# Of what a deadline leaves: the rest is for the answer without Redis, and for timers of sockets,
# which tick every 4 ms. Of that so much to find nodes again; the rest is for asking them.
FOR_EXCHANGE: Final = 0.8
_FOR_FINDING: Final = 0.5
_WRITTEN: Final = (1 << WRITTEN_SHIFT) - 1
_BUCKET_BYTES: Final = 3
_ANY_TOKEN: Final = bytes(16)
# Watermark ms, complete since ms, degraded bits, the summaries themselves.
_Summary = tuple[int, int, int, tuple[bytes, ...]]


class Fetched(msgspec.Struct, gc=False):
    """What one exchange brought.

    states: of each entity of the program its bytes, or None; during a rotation behind them those
    under the other key. scores: candidates for the request's score, newest first. watermark_ms,
    complete_since_ms: of all nodes that were asked together;
    UNKNOWN where a node does not know since when. degraded: bits of features/tables.py. progress:
    the summaries that were read, one for each node. missing: bits of the entities whose node did
    not answer; of these nothing is known. past: of each entity, where it is a grid, the bucket of
    what was folded of it that can hold the request's payment, read in one step with the state.
    """

    states: list[bytes | None]
    scores: list[bytes]
    watermark_ms: int
    complete_since_ms: int
    degraded: int
    progress: tuple[bytes, ...]
    missing: int = 0
    past: Sequence[bytes | None] = ()


class _Template:
    """A command for one entity, and where the hash tag stands in it."""

    def __init__(self, entity: int, *parts: bytes) -> None:
        self.entity = entity
        self.text = command(*parts)
        self.tag_at = self.text.index(b"{") + 1
        # Of a grid: the key of a bucket too, whose name is the end of the command.
        again_at = self.text.rindex(b"{") + 1
        is_twice = again_at != self.tag_at
        self.again_at = again_at if is_twice else 0
        self.bucket_at = len(self.text) - len(b"\r\n") - _BUCKET_BYTES if is_twice else 0


class Exchanges:
    """The commands for one program's states, and the reading of their replies.

    scores: a model version and a number: so many recent scores of the first entity are asked for
    too. health: of the nodes; with it a node in trouble is left out, and what it has is `missing`;
    without, all raise. others_at: where rows have the tokens under the other key of a rotation, 0
    for nowhere (features/packing.py); since_ms: from which event time on the current key holds.
    Safe in many threads: each hands in a buffer of its own.
    """

    def __init__(
        self,
        nodes: Nodes,
        keys: RedisKeys,
        layouts: Sequence[StateLayout],
        scores: tuple[str, int] | None = None,
        health: NodeHealth | None = None,
        others_at: int = 0,
        since_ms: int = 0,
    ) -> None:
        self.nodes = nodes
        self._health = health
        self._keys = keys
        self._layouts = layouts
        self._token_places = token_places(len(layouts), others_at)
        # Behind the states of a payment's own key stand those of the other one.
        self.n_states = len(self._token_places)
        self.is_of_both = others_at > 0
        self._since_ms = since_ms
        of_states = [*layouts, *layouts][: self.n_states]
        self._templates = [
            _asking(keys, (at - r.TOKENS) // 16, layout)
            for at, layout in zip(self._token_places, of_states, strict=True)
        ]
        self._grids = [number for number, layout in enumerate(of_states) if layout.is_grid]
        if scores is not None:
            key = keys.scores(_ANY_TOKEN, scores[0])
            self._templates.append(_Template(0, b"LRANGE", key, b"0", b"%d" % (scores[1] - 1)))
        self._described = np.array(
            [
                (
                    *(id(one.text) + BYTES_AT, len(one.text), one.tag_at, one.entity),
                    *(one.again_at, one.bucket_at),
                )
                for one in self._templates
            ],
            np.int64,
        )
        self._put = entry_point(put_commands, 5)
        self._described_at = address_of(self._described)
        self._n = len(self._templates)
        self._all = (1 << self._n) - 1
        self._asks_scores = scores is not None
        self._plan = _Plan(nodes.topology, keys)
        # One thread at a time waits awake: more would take the processors from those that work.
        self._awake = threading.Lock()

    def desk(self) -> Desk:
        """Room for the commands of one request at a time."""
        return Desk(sum(len(one.text) for one in self._templates), len(self._templates))

    def fetch(self, desk: Desk, row: bytes, limit_s: float) -> Fetched:
        """What the nodes hold for the payment in `row`. Raises Unavailable after `limit_s`."""
        plan, lines, health = self._plan, desk.lines, self._health
        if health is not None and not health.is_quiet:
            return self.fetch_all(desk, (row,), limit_s)[0]
        if plan.n > 1 or lines is None or not plan.topology is desk.topology is self.nodes.topology:
            return self.fetch_all(desk, (row,), limit_s)[0]
        found = self._put(id(row) + BYTES_AT, self._described_at, self._n, desk.address, 0)
        mask = found & _WRITTEN
        desk.prefix(plan.asks[0])
        request = desk.written(found >> WRITTEN_SHIFT)
        try:
            replies = lines.exchange((request,), (1 + mask.bit_count(),), limit_s, self._awake)[0]
        except Unavailable:
            if health is not None:
                health.failed(plan.topology.addresses[0])
            raise
        try:
            summary = plan.progress_of(_bytes_of(replies[0]))
            return self._fetched(replies[1:], mask, summary)
        except _Moved:
            raise Unavailable("Redis has become a cluster, or a replica") from None

    def fetch_all(self, desk: Desk, rows: Sequence[bytes], limit_s: float) -> list[Fetched]:
        """The same for several rows, in one exchange."""
        for left in range(_MOST_MOVES, 0, -1):
            plan = self._planned()
            try:
                lines = desk.lines_of(self.nodes, plan.topology, limit_s)
                return self._from_many(lines, plan, desk, rows, limit_s, is_last=left == 1)
            except _Moved:
                limit_s = self._found_again(desk.ends_s)
        raise Unavailable("the nodes of Redis keep moving")

    def _found_again(self, ends_s: float | None) -> float:
        """Find the nodes again; how long an exchange with them may take. Raises Unavailable.

        ends_s: when the request is over.
        """
        nodes = self.nodes
        if ends_s is None:
            nodes.refresh()
            return nodes.limit_s
        left_s = FOR_EXCHANGE * (ends_s - nodes.clock.monotonic_s())
        nodes.refresh(min(nodes.limit_s, _FOR_FINDING * left_s))
        left_s = FOR_EXCHANGE * (ends_s - nodes.clock.monotonic_s())
        if left_s <= 0.0:
            raise Unavailable("no time is left to ask nodes of Redis that have moved")
        return min(nodes.limit_s, left_s)

    def tokens(self, row: bytes) -> list[bytes]:
        """The token of each state that is asked for; zeros where the entity is absent."""
        return [row[at : at + 16] for at in self._token_places]

    def numbers(self, entity: int) -> range:
        """The numbers of an entity's states among those that are asked for."""
        return range(entity, self.n_states, len(self._layouts))

    def own_past(self, row: bytes, fetched: Sequence[bytes | None]) -> list[Past]:
        """Of each state the bucket that was read with it, if the payment in `row` may be in it."""
        bucket = bucket_of_identity(identity_of(row))
        return [{bucket: held} if held and row[:8] in held else {} for held in fetched]

    def united(
        self, row: bytes, states: Sequence[bytes | None], pasts: Sequence[Past]
    ) -> list[bytes | None]:
        """One state of each entity, of what was fetched under both keys of a rotation.

        pasts: of each state buckets of what was folded of it; none where there is no grid.
        """
        n = len(self._layouts)
        sides = [Side(*of) for of in zip(states, pasts or [{}] * len(states), strict=True)]
        former, current = sides[n:], sides[:n]
        if time_of(row) < self._since_ms:
            former, current = current, former
        own, since_ms = identity_of(row), self._since_ms
        return [
            united_state(one, other, layout, since_ms=since_ms, own=own)
            for one, other, layout in zip(former, current, self._layouts, strict=True)
        ]

    def past(
        self, desk: Desk, number: int, row: bytes, buckets: Sequence[int], limit_s: float
    ) -> tuple[bytes | None, list[bytes]]:
        """A state by its number, and these buckets of what was folded of it, read in one step.

        Raises Unavailable.
        """
        at = self._token_places[number]
        token = row[at : at + 16]
        fingerprint = self._layouts[number % len(self._layouts)].fingerprint
        names = [self._keys.past(token, fingerprint, bucket) for bucket in buckets]
        asked = command(b"MGET", self._keys.state(token, fingerprint), *names)
        plan = self._planned()
        node = plan.node_of_slot[slot_of(tag_of(token))]
        request = [asked if n == node else None for n in range(plan.n)]
        try:
            lines = desk.lines_of(self.nodes, plan.topology, limit_s)
            replies = lines.exchange(request, [int(n == node) for n in range(plan.n)], limit_s)
            state, *held = _several_of(replies[node][0], 1 + len(buckets))
            return state, [one or b"" for one in held]
        except _Moved:
            raise Unavailable("the nodes of Redis are moving") from None

    def _planned(self) -> _Plan:
        plan = self._plan
        if plan.topology is not self.nodes.topology:
            plan = self._plan = _Plan(self.nodes.topology, self._keys)
        return plan

    def _fetched(self, replies: list[Reply], written: int, summary: _Summary) -> Fetched:
        """One row's answer, from the replies to the commands that were written for it."""
        scores: list[bytes] = []
        if written == self._all:
            if self._asks_scores:
                scores = _list_of(replies.pop())
            states = replies
        else:
            n = self.n_states
            states = [None] * n
            following = iter(replies)
            for number in range(len(self._templates)):
                if written >> number & 1 and number < n:
                    states[number] = next(following)
                elif written >> number & 1:
                    scores = _list_of(next(following))
        past: list[bytes | None] = []
        if self._grids:
            past = [None] * len(states)
            for e in self._grids:
                if states[e] is not None:
                    states[e], past[e] = _several_of(states[e], 2)
        for state in states:
            if state.__class__ is not bytes and state is not None:
                _bytes_of(state)
        return Fetched(states, scores, *summary, past=past)

    def _from_many(
        self,
        lines: Lines,
        plan: _Plan,
        desk: Desk,
        rows: Sequence[bytes],
        limit_s: float,
        *,
        is_last: bool,
    ) -> list[Fetched]:
        """From each node what it owns; sent to all before any is read.

        is_last: where slots keep moving, what the others have is taken.
        """
        requests: list[list[bytes]] = [[] for _ in range(plan.n)]
        # Of each row the node that each command went to, -1 where its entity is absent.
        sent: list[list[int]] = []
        for row in rows:
            self._put(
                id(row) + BYTES_AT,
                self._described_at,
                len(self._templates),
                desk.address,
                desk.slots_at,
            )
            at, went = 0, []
            for template, slot in zip(self._templates, desk.slots[: self._n].tolist(), strict=True):
                node = -1
                if slot >= 0:
                    node = plan.node_of_slot[slot]
                    end = at + len(template.text)
                    if not requests[node]:
                        requests[node].append(plan.asks[node])
                    requests[node].append(desk.commands(end)[at:])
                    at = end
                went.append(node)
            sent.append(went)
        if not any(requests):
            requests[0].append(plan.asks[0])
        joined: list[bytes | None] = [b"".join(parts) if parts else None for parts in requests]
        n_replies = [len(parts) for parts in requests]
        replies = self._exchanged(lines, plan, joined, n_replies, limit_s, is_last=is_last)
        progress = [_bytes_of(found[0]) if found else None for found in replies]
        following = [iter(found[1:]) for found in replies]
        answers = []
        for went in sent:
            known = [node >= 0 and bool(replies[node]) for node in went]
            mine = [
                next(following[node])
                for node, is_known in zip(went, known, strict=True)
                if is_known
            ]
            concerned = {node for node in went if node >= 0} or {0}
            summary = _progress_of([progress[node] for node in sorted(concerned) if replies[node]])
            answer = self._fetched(mine, _bits_of(known), summary)
            lost = [went[i] >= 0 and not known[i] for i in range(self.n_states)]
            n = len(self._layouts)
            answer.missing = _bits_of([any(lost[e::n]) for e in range(n)])
            answers.append(answer)
        return answers

    def _exchanged(
        self,
        lines: Lines,
        plan: _Plan,
        requests: Sequence[bytes | None],
        n_replies: Sequence[int],
        limit_s: float,
        *,
        is_last: bool,
    ) -> list[list[Reply]]:
        """The replies of each node; none of one that is in trouble, where others are not."""
        if self._health is None:
            return lines.exchange(requests, n_replies, limit_s, self._awake)
        found = self._health.exchange(
            lines, plan.topology.addresses, requests, n_replies, limit_s, self._awake
        )
        replies: list[list[Reply]] = []
        problem: Unavailable | None = None
        for one in found:
            moved = set() if isinstance(one, Unavailable) else errors_in(one) & MOVED_WORDS
            if moved and is_last:
                one = Unavailable(f"a node of Redis answers {min(moved)}")
            if isinstance(one, Unavailable):
                problem, one = problem or one, []
            replies.append(one)
        if problem is not None and not any(replies):
            raise problem
        return replies


def _asking(keys: RedisKeys, entity: int, layout: StateLayout) -> _Template:
    """The command for the state of one entity."""
    key = keys.state(_ANY_TOKEN, layout.fingerprint)
    if not layout.is_grid:
        return _Template(entity, b"GET", key)
    # In one step: what was folded between two could be taken out of a state that has it not.
    return _Template(entity, b"MGET", key, keys.past(_ANY_TOKEN, layout.fingerprint, 0))


class Desk:
    """Room for one request's commands, with a node's own question before them."""

    def __init__(self, n_bytes: int, n_commands: int) -> None:
        # The longest question of a node: its tag has at most ten digits.
        self._before = 256
        self._room = bytearray(self._before + n_bytes)
        self._view = memoryview(self._room)
        self.address = address_of(np.frombuffer(self._room, np.uint8)) + self._before
        self.slots = np.zeros(n_commands, np.int64)
        self.slots_at = address_of(self.slots)
        self._first = b""
        # When the request is over, on the monotonic clock; None: it has no deadline.
        self.ends_s: float | None = None
        # Its own connections, borrowed until `leave`, and the nodes that they are to.
        self.lines: Lines | None = None
        self.topology: Topology | None = None

    def lines_of(self, nodes: Nodes, topology: Topology, limit_s: float) -> Lines:
        """Connections to the nodes of `topology`; _Moved where there are others by now."""
        lines = self.lines
        if lines is None or self.topology is not topology:
            self.leave(nodes)
            self.lines = lines = nodes.borrow(limit_s)
            self.topology = topology
        if nodes.topology is not topology:
            self.leave(nodes)
            raise _Moved
        return lines

    def leave(self, nodes: Nodes) -> None:
        """Give the connections back."""
        lines, self.lines = self.lines, None
        if lines is not None:
            nodes.give_back(lines)

    def prefix(self, question: bytes) -> None:
        """Put a node's question before the commands, unless it stands there."""
        if question is not self._first:
            self._room[self._before - len(question) : self._before] = question
            self._first = question

    def written(self, n_bytes: int) -> memoryview:
        """The question and so many bytes of commands."""
        return self._view[self._before - len(self._first) : self._before + n_bytes]

    def commands(self, n_bytes: int) -> bytes:
        """So many bytes of commands, to be kept."""
        return bytes(self._view[self._before : self._before + n_bytes])


class _Plan:
    """What depends on where the slots are."""

    def __init__(self, topology: Topology, keys: RedisKeys) -> None:
        self.topology = topology
        self.n = len(topology.addresses)
        self.node_of_slot: list[int] = topology.node_of_slot.tolist()
        self.asks = [command(b"GET", keys.progress(tag)) for tag in topology.tags]
        # The last summary that was read, and what it says; replaced in one piece.
        self._known: tuple[bytes | None, _Summary] = (None, _progress_of((None,)))

    def progress_of(self, summary: bytes | None) -> _Summary:
        """What the summary of the only node says."""
        known, said = self._known
        if summary != known:
            said = _progress_of((summary,))
            self._known = (summary, said)
        return said


class _Moved(Exception):
    """A node answered that a slot is elsewhere."""


def _progress_of(summaries: Sequence[bytes | None]) -> _Summary:
    """Watermark, since when complete, degraded bits, summaries; of all of them together."""
    watermark, since, degraded = 2**62 if summaries else 0, 0, 0
    known: list[bytes] = []
    for summary in summaries:
        if summary is None or len(summary) < _PROGRESS.size or summary[:8] == _NO_EPOCH:
            watermark, since, degraded = 0, t.UNKNOWN, t.STATE_LOST
            continue
        _, passed, complete, _ = _PROGRESS.unpack_from(summary)
        watermark = min(watermark, passed)
        since = max(since, complete or t.UNKNOWN)
        known.append(summary)
    return watermark, since, degraded, tuple(known)


def _bits_of(flags: Sequence[bool]) -> int:
    return sum(flag << number for number, flag in enumerate(flags))


def _bytes_of(reply: Reply) -> bytes | None:
    if reply is None or reply.__class__ is bytes:
        found: bytes | None = reply
        return found
    if isinstance(reply, ReplyError):
        if reply.word in MOVED_WORDS:
            raise _Moved
        if reply.word in REFUSED_WORDS:
            raise error_of(reply)
        raise Unavailable(f"Redis answered {reply.word} where a state was asked for")
    raise Unavailable(f"Redis answered with {type(reply).__name__} where a state was asked for")


def _several_of(reply: Reply, n: int) -> list[bytes | None]:
    """The `n` values of one command; raises what `_bytes_of` raises."""
    if not isinstance(reply, list) or len(reply) != n:
        _bytes_of(reply)
        raise Unavailable("Redis answered something else than so many values")
    return [_bytes_of(one) for one in reply]


def _list_of(reply: Reply) -> list[bytes]:
    """A list of bytes; of one that is no list, nothing: candidates are never needed."""
    return [one for one in reply if one.__class__ is bytes] if isinstance(reply, list) else []


def tokens_of(row: bytes, n: int) -> list[bytes]:
    """The token of each of `n` entities of a row; zeros where it is absent."""
    return [row[at : at + 16] for at in token_places(n)]


def token_places(n: int, others_at: int = 0) -> list[int]:
    """Where a row has the tokens of `n` entities; behind them, during a rotation, the others."""
    firsts = (r.TOKENS, others_at) if others_at else (r.TOKENS,)
    return [first + 16 * e for first in firsts for e in range(n)]
