"""The door to Redis: which nodes there are, and connections to them.

Nodes are found at the start, again when they move or one cannot be reached, and now and then
(features/redis_finding.py). Connections (features/redis_connecting.py) carry prepared bytes
(features/redis_lines.py), and are borrowed by one thread at a time.

Rule: whoever waits for a score looks for nodes within what is left of its deadline, if at all; the
rest is done beside it.
"""

from __future__ import annotations

import os
import socket
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from freshscore.config.clock import Clock, SystemClock
from freshscore.config.errors import Closed, FreshscoreError, Unavailable
from freshscore.config.settings import RedisSettings
from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_connecting import Connecting
from freshscore.features.redis_finding import Finding
from freshscore.features.redis_lines import (
    MOVED_WORDS,
    Address,
    Lines,
    Reply,
    ReplyError,
    command,
    errors_in,
)
from freshscore.features.redis_topology import Topology

__all__ = [
    "MOVED_WORDS",
    "Lines",
    "Nodes",
    "Reply",
    "ReplyError",
    "Topology",
    "command",
    "errors_in",
]

# How long nodes are believed to be where they were, if nothing tells otherwise: whoever asks for
# nothing that has moved is never told so.
_LOOK_AGAIN_S: Final = 5.0
# How often they are looked for within that time, once one of them is lost.
_LOOKS: Final = 20
# Connections that one process makes to one node at once: two, so that one that hangs does not bar
# the next.
_CONNECTING_AT_ONCE: Final = 2


class Nodes:
    """The nodes of a deployment; safe in many threads, and connected anew after a fork."""

    def __init__(self, settings: RedisSettings, clock: Clock) -> None:
        self.settings = settings
        self.clock = clock
        self._connecting = Connecting(settings)
        self._finding = Finding(self._connecting, clock)
        self._pool = _Pool(settings.max_connections)
        self._is_closed = False
        # Held by the one who looks for the nodes; nobody waits for it.
        self._looking = threading.Lock()
        # What a look that nobody waited for has found to be refused.
        self._refusal: FreshscoreError | None = None
        self.topology = self._found_by(self._connecting.servers)
        self._looked_s = clock.monotonic_s()
        myself = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forked(myself()))

    @classmethod
    def open(cls, settings: RedisSettings, clock: Clock | None = None) -> Nodes:
        """Find the nodes and check them.

        Raises Unavailable where none answers, and SettingsError for a wrong password, for a server
        that evicts keys when its memory is full, and for `redis.cluster` where it is not so.
        """
        return cls(settings, clock or SystemClock())

    @property
    def n(self) -> int:
        """How many nodes there are."""
        return len(self.topology.addresses)

    @property
    def node_of_slot(self) -> NDArray[np.uint16]:
        """The node of each slot, uint16[16384]."""
        return self.topology.node_of_slot

    @property
    def tags(self) -> tuple[str, ...]:
        """A hash tag of each node, which it has while it has the same slots."""
        return self.topology.tags

    @property
    def limit_s(self) -> float:
        """How long one wait may take, seconds (redis.timeout_ms)."""
        return self.settings.timeout_ms / 1_000

    def node_of(self, tag: bytes) -> int:
        """The node that owns a hash tag."""
        return self.topology.node_of(tag)

    def run_script(
        self,
        script: str,
        keys: Sequence[bytes | str],
        arguments: Sequence[bytes | str | int] = (),
    ) -> Any:
        """What a script answers that is run now and then; all its keys have one hash tag.

        It may be run twice where a connection was lost. Raises what `replies_to` raises.
        """
        given = [
            one if isinstance(one, bytes) else str(one).encode() for one in (*keys, *arguments)
        ]
        tag = given[0].partition(b"{")[2].partition(b"}")[0]
        asked = command(b"EVAL", script.encode(), b"%d" % len(keys), *given)
        return replies_to(self, [(tag, asked)])[0]

    @contextmanager
    def lines(self) -> Iterator[Lines]:
        """Borrow one thread's connections; what is left half read is dropped.

        Raises Unavailable if none of redis.max_connections is given back within redis.timeout_ms.
        """
        if self.clock.monotonic_s() - self._looked_s >= _LOOK_AGAIN_S:
            self._look_again()
        lines = self.borrow()
        try:
            yield lines
        finally:
            self.give_back(lines)

    def borrow(self, limit_s: float | None = None) -> Lines:
        """What `lines` gives, to be handed to `give_back` in whatever state it is.

        limit_s: how long to wait for a place; else the settings'.
        """
        limit_s = self.limit_s if limit_s is None else limit_s
        if self._is_closed:
            raise Closed("the connections to Redis are closed")
        pool = self._pool
        if not pool.places.acquire(timeout=max(0.0, limit_s)):
            raise Unavailable(
                f"all {self.settings.max_connections} connections to Redis (redis.max_connections)"
                f" were in use for {limit_s * 1_000:.0f} ms"
            )
        topology = self.topology
        while pool.free:
            try:
                made_for, lines = pool.free.pop()
            except IndexError:
                break
            if made_for is topology:
                pool.borrowed[lines] = topology
                return lines
            lines.close()
        lines = Lines(topology.addresses, self._connected_in_turn, self.clock, self.limit_s)
        pool.borrowed[lines] = topology
        return lines

    def give_back(self, lines: Lines) -> None:
        """End a borrowing."""
        pool = self._pool
        made_for = pool.borrowed.pop(lines, None)
        if made_for is None:
            # Borrowed before a fork, or given back already.
            lines.close()
            return
        lines.drop_unread()
        if self._is_closed or made_for is not self.topology:
            lines.close()
        else:
            pool.free.append((made_for, lines))
        pool.places.release()

    def refresh(self, limit_s: float | None = None) -> bool:
        """Find the nodes again, after MOVED or a lost node; whether they have changed.

        limit_s: for all that is asked, and what it was not enough for goes on beside; else each
        that is asked has redis.timeout_ms. Lines that are borrowed keep the nodes that they know.
        Raises what `open` raises.
        """
        try:
            return self._refresh_from(self._asked_for_nodes, limit_s)
        except Unavailable:
            if limit_s is not None:
                self._look_beside()
            raise

    @property
    def _asked_for_nodes(self) -> list[Address]:
        """Who is asked where the nodes are, in this order."""
        given = [*self._connecting.servers]
        return given if self._connecting.primary else [*self.topology.addresses, *given]

    def _refresh_from(self, addresses: Sequence[Address], limit_s: float | None = None) -> bool:
        found = self._found_by(addresses, limit_s)
        self._looked_s = self.clock.monotonic_s()
        self._refusal = None
        if found.is_like(self.topology):
            return False
        self.topology = found
        return True

    def _found_by(self, addresses: Sequence[Address], limit_s: float | None = None) -> Topology:
        """The nodes, by the first of these that answers; limit_s: for all of them."""
        ends_s = None if limit_s is None else self.clock.monotonic_s() + limit_s
        problem = Unavailable("nobody was asked where the nodes of Redis are")
        asked = [*dict.fromkeys(addresses)]
        for number, address in enumerate(asked):
            share_s = self.limit_s
            if ends_s is not None:
                # One that hangs must leave some of the time to the others.
                share_s = (ends_s - self.clock.monotonic_s()) / (len(asked) - number)
            if share_s <= 0.0:
                break
            try:
                return self._found_from(address, share_s)
            except Unavailable as lost:
                problem = lost
        raise problem

    def _look_again(self, lost: Address | None = None) -> None:
        """Find nodes again that may have moved, if nobody is about it; not by `lost`.

        Where none answers they stay as they were.
        """
        if self._may_move and self._looking.acquire(blocking=False):
            try:
                self._look(lost)
            finally:
                self._looking.release()

    def _look_beside(self, lost: Address | None = None) -> None:
        """Do that in a thread of its own: who waits for a score has no time left for it."""
        if self._may_move and self._looking.acquire(blocking=False):
            threading.Thread(
                target=self._look_for_a_while, args=(lost,), name="freshscore-nodes", daemon=True
            ).start()

    def _look_for_a_while(self, lost: Address | None) -> None:
        """Look until the nodes are others: it takes seconds until another takes a lost one's place.

        So whoever tries again finds it at once, however long it has waited.
        """
        known, never = self.topology, threading.Event()
        try:
            for _ in range(_LOOKS):
                self._look(lost)
                if self.topology is not known or self._is_closed:
                    return
                never.wait(_LOOK_AGAIN_S / _LOOKS)
        except FreshscoreError as problem:
            self._refusal = problem
        finally:
            self._looking.release()

    def _look(self, lost: Address | None) -> None:
        with suppress(Unavailable):
            self._refresh_from([one for one in self._asked_for_nodes if one != lost])

    @property
    def _may_move(self) -> bool:
        """Whether another server may take a node's place."""
        return self.settings.cluster or self._connecting.primary is not None

    def close(self) -> None:
        """Close the connections; those that are borrowed when they are given back."""
        self._is_closed = True
        while self._pool.free:
            self._pool.free.pop()[1].close()

    def _connected_in_turn(self, address: Address, limit_s: float) -> socket.socket:
        """A connection, while few others are made to that node.

        All threads of all processes want one at once where a service starts, or a node is back, and
        the node's only processor would shake hands instead of answering.
        """
        ends_s = self.clock.monotonic_s() + limit_s
        turns = self._pool.turns_at(address)
        if not turns.acquire(timeout=limit_s):
            raise Unavailable(
                f"others connect to Redis at {address[0]}:{address[1]}, and it took all of"
                f" {limit_s * 1_000:.0f} ms"
            )
        try:
            return self._connected(address, ends_s - self.clock.monotonic_s())
        finally:
            turns.release()

    def _connected(self, address: Address, limit_s: float) -> socket.socket:
        if address not in self.topology.addresses:
            raise Unavailable(f"Redis at {address[0]}:{address[1]} has been replaced")
        try:
            return self._connecting.connected(address, limit_s, self.clock)
        except Unavailable:
            # Another may have taken its place, and nobody answers MOVED for a node that is gone.
            self._look_beside(address)
            if self._refusal is not None:
                raise self._refusal from None
            raise

    def _found_from(self, address: Address, limit_s: float) -> Topology:
        return self._finding.found_from(address, limit_s)


class _Pool:
    """Lines that nobody uses, and places for those who do."""

    def __init__(self, n: int) -> None:
        self.places = threading.BoundedSemaphore(n)
        # Appending, popping and setting one item are single steps under the interpreter's lock.
        self.free: list[tuple[Topology, Lines]] = []
        self.borrowed: dict[Lines, Topology] = {}
        self._turns: dict[Address, threading.Semaphore] = {}

    def turns_at(self, address: Address) -> threading.Semaphore:
        """Who may connect to a node."""
        return self._turns.setdefault(address, threading.Semaphore(_CONNECTING_AT_ONCE))


def _forked(nodes: Nodes | None) -> None:
    """In the child of a fork: the parent's connections are the parent's."""
    if nodes is None:
        return
    old = nodes._pool
    nodes._pool = _Pool(nodes.settings.max_connections)
    nodes._looking = threading.Lock()
    for lines in [*(lines for _, lines in old.free), *old.borrowed]:
        lines.close()
