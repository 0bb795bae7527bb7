"""The simulated servers of Redis and the way to them: connections that break at the worst moment.

A connection looks like a socket, so that the lines of features/redis_lines.py run on it as they
are: what they send is done at once, and what a node answers waits to be received. What can go wrong
is drawn by a chance that its maker seeds:

    refused     a node that is down, or not reached, takes no connection
    blocked     who waits for entries of a stream waits while others go on
    lost        nothing was done, and the connection is gone
    cut         the first commands were done, those behind a cut were not
    unanswered  all was done, and nobody hears of it
    cut off     nothing of a process arrives anywhere, and it waits for its whole limit
    stopped     a node that stands still (SIGSTOP) does what it was sent once it goes on, however
                long ago the sender gave up

Rule: a node does what one connection sent in the order of sending, and a prefix of it at least.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import numpy as np

from freshscore.config.clock import Clock
from freshscore.config.errors import Unavailable
from freshscore.config.settings import RedisSettings
from freshscore.features.redis_door import Nodes, Topology
from freshscore.features.redis_keys import CONTROL, SLOTS, slot_of
from freshscore.features.redis_lines import Address
from freshscore.features.redis_topology import of_cluster, of_one_server
from freshscore.simulations.simulated_redis import SimulatedNode, encoded
from freshscore.simulations.world_chance import Chance

_LOST: Final = "the connection was lost"
# What is called before a process waits for a server, with the word for it; it may raise.
Step = Callable[[str], None]
# What is told of commands that were done, and on which node.
Told = Callable[[SimulatedNode, Sequence[Sequence[bytes]]], None]
# Who is told of what is being sent now, whenever that is done.
Tap = Callable[[], Told]


@dataclass
class ConnectionFaults:
    """How likely each trouble is, of a thing that is sent; 0 for never."""

    lost: float = 0.0
    cut: float = 0.0
    unanswered: float = 0.0
    slow: float = 0.0

    def calm(self) -> None:
        """No more of it."""
        self.lost = self.cut = self.unanswered = self.slow = 0.0


class Server:
    """A node, and whether it can be reached.

    generation: of its connections; those of an earlier one are gone.
    """

    def __init__(self, node: SimulatedNode, address: Address) -> None:
        self.node = node
        self.address = address
        self.generation = 0
        self.is_up = True
        self.is_stopped = False
        # What came while it stood still: the connection, the bytes, and who is told, in order.
        self.waiting: list[tuple[Connection, bytes, Told | None]] = []

    def drop_connections(self) -> None:
        """End all connections; what waited on them is lost."""
        self.generation += 1
        self.waiting.clear()

    def go_on(self) -> None:
        """After standing still: do what has come meanwhile."""
        self.is_stopped = False
        waiting, self.waiting = self.waiting, []
        for connection, data, told in waiting:
            commands = connection.whole_commands(data)
            connection.answers += self.node.run(commands)
            if told is not None:
                told(self.node, commands)


class Servers:
    """All nodes of one deployment; `wait` lets so many seconds go by for a sender that waits."""

    def __init__(
        self,
        nodes: list[SimulatedNode],
        chance: Chance,
        wait: Callable[[float], None],
        limit_s: float,
    ) -> None:
        self.servers = [Server(node, (f"node-{i}", 1)) for i, node in enumerate(nodes)]
        self.faults = ConnectionFaults()
        # The processes of which nothing arrives; they own the steps of their connections.
        self.cut_off: set[object] = set()
        self.chance = chance
        self.wait = wait
        self.limit_s = limit_s
        self._slots: dict[bytes, int] = {}
        n = len(nodes)
        # Whoever has it sees slots move.
        self.node_of_slot = (np.arange(SLOTS) * n // SLOTS).astype(np.uint16)

    def topology(self, step: Step) -> Topology:
        """Where the nodes are now. Raises Unavailable where none tells."""
        if self.is_cut_off(step) or not any(
            one.is_up and not one.is_stopped for one in self.servers
        ):
            raise Unavailable("simulated: no node answers")
        return self.found()

    def found(self) -> Topology:
        """What a node tells that is asked."""
        if len(self.servers) == 1:
            return of_one_server(self.servers[0].address)
        owners = self.node_of_slot
        firsts = np.flatnonzero(np.diff(owners, prepend=len(self.servers)))
        lasts = [*(firsts[1:] - 1).tolist(), SLOTS - 1]
        told = []
        for first, last in zip(firsts.tolist(), lasts, strict=True):
            host, port = self.servers[owners[first]].address
            told.append([first, last, [host.encode(), port]])
        return of_cluster(told, self.servers[0].address)

    def move_slots(self, number: int) -> None:
        """Give some slots of a node, with all keys in them, to another; not that of the stream."""
        target = self.chance.choice([n for n in range(len(self.servers)) if n != number])
        owned = np.flatnonzero(self.node_of_slot == number)
        n_moved = len(owned) // self.chance.choice((2, 5))
        first = self.chance.randrange(len(owned) - n_moved + 1)
        moved = owned[first : first + n_moved]
        moved = moved[moved != slot_of(CONTROL.encode())]
        self.node_of_slot[moved] = target
        for at, one in enumerate(self.servers):
            one.node.has_slot_of = partial(self._has, at)
        source, other = self.servers[number].node, self.servers[target].node
        source.hand_over(other, lambda key: not source.owns(key))

    def _has(self, number: int, key: bytes) -> bool:
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = slot_of(key.partition(b"{")[2].partition(b"}")[0])
        return bool(self.node_of_slot[slot] == number)

    def connected(self, address: Address, step: Step, tap: Tap | None = None) -> Connection:
        """A connection. Raises Unavailable."""
        step("connect")
        found = next((one for one in self.servers if one.address == address), None)
        if found is None or not found.is_up:
            raise Unavailable(f"simulated: {address[0]} refuses the connection")
        if found.is_stopped or self.is_cut_off(step):
            self.wait(self.limit_s)
            raise Unavailable(f"simulated: {address[0]} does not answer")
        found.node.load_scripts()
        return Connection(self, found, step, tap)

    def is_cut_off(self, step: Step) -> bool:
        """Whether nothing arrives of whoever takes this step."""
        return bool(self.cut_off) and getattr(step, "__self__", None) in self.cut_off

    def fail_over(self, number: int, n_lost: int) -> int:
        """Let a replica that lacks the last writes take a node's place; how many it lacks."""
        server = self.servers[number]
        server.drop_connections()
        server.node.forget_scripts()
        server.is_up, server.is_stopped = True, False
        if len(self.servers) > 1:
            # A single server's place is where the settings say; those of a cluster are looked for.
            name, port = server.address
            server.address = (name, port + 1)
        return server.node.lose(n_lost)

    def crash(self, number: int, n_lost: int | None) -> int:
        """End a node's process; its last writes are lost, or all (None). It is down then."""
        server = self.servers[number]
        server.drop_connections()
        server.node.forget_scripts()
        server.is_up, server.is_stopped = False, False
        if n_lost is None:
            server.node.lose_all()
            return -1
        return server.node.lose(n_lost)

    def heal(self) -> None:
        """Let everything be reached again."""
        self.faults.calm()
        self.cut_off.clear()
        for one in self.servers:
            one.is_up = True
            one.go_on()


class Connection:
    """What the lines hold for a socket."""

    __slots__ = (
        "_begun",
        "_blocked",
        "_generation",
        "_is_lost",
        "_read",
        "_server",
        "_servers",
        "_step",
        "_tap",
        "answers",
    )

    def __init__(self, servers: Servers, server: Server, step: Step, tap: Tap | None) -> None:
        self._servers = servers
        self._server = server
        self._step = step
        self._tap = tap
        self._generation = server.generation
        self._is_lost = False
        # The beginning of a command whose end is still to be sent.
        self._begun = b""
        # An XREAD that waits for entries.
        self._blocked: list[bytes] | None = None
        self.answers = b""
        self._read = 0

    def sendall(self, data: bytes | bytearray | memoryview) -> None:
        """Have the node do what is sent. Raises ConnectionResetError, or what the step raises."""
        self._step("send")
        server, given = self._server, bytes(data)
        self._check()
        if self._servers.is_cut_off(self._step):
            return
        told = None if self._tap is None else self._tap()
        if server.is_stopped:
            server.waiting.append((self, given, told))
            return
        faults, node = self._servers.faults, server.node
        commands = self.whole_commands(given)
        chance = self._servers.chance.random
        if faults.lost and chance() < faults.lost:
            commands, self._is_lost = [], True
        elif faults.cut and len(commands) > 1 and chance() < faults.cut:
            commands = commands[: self._servers.chance.randrange(1, len(commands))]
            self._is_lost = True
        elif faults.unanswered and chance() < faults.unanswered:
            self._is_lost = True
        if faults.slow and chance() < faults.slow:
            self._servers.wait(self._servers.chance.random() * self._servers.limit_s)
        if commands and b"BLOCK" in commands[-1]:
            self._blocked = node.awaited(commands[-1])
            commands = commands[:-1]
        self.answers += node.run(commands)
        if told is not None:
            told(node, commands)

    def recv(self, n: int, flags: int = 0) -> bytes:
        """What the node has answered. Raises ConnectionResetError, TimeoutError."""
        self._step("receive")
        self._check()
        if self._is_lost:
            self._is_lost = False
            self._generation = -1
            raise ConnectionResetError(_LOST)
        if self._servers.is_cut_off(self._step):
            self._servers.wait(self._servers.limit_s)
            raise TimeoutError
        if self._blocked is not None and not self._server.is_stopped:
            self._wait_for_entries(self._blocked)
        first = self._read
        if first == len(self.answers):
            # The sender gives up: the lines drop a connection on which a wait was in vain.
            self._servers.wait(self._servers.limit_s)
            raise TimeoutError
        self._read = first + n
        found = self.answers[first : first + n]
        if self._read >= len(self.answers):
            self.answers, self._read = b"", 0
        return found

    def whole_commands(self, data: bytes) -> list[list[bytes]]:
        """The commands that are whole with these bytes; what is large is sent in parts."""
        given = self._begun + data
        commands, n = self._server.node.commands(given)
        self._begun = given[n:]
        return commands

    def _wait_for_entries(self, parts: list[bytes]) -> None:
        """Answer an XREAD: others go on until something comes, or the time is over."""
        node = self._server.node
        found = node.reply(parts)
        if found is None:
            self._step("blocked")
            self._check()
            if self._server.is_stopped:
                return
            found = node.reply(parts)
        if found is None:
            self._servers.wait(int(parts[parts.index(b"BLOCK") + 1]) / 1_000)
        self._blocked = None
        self.answers += encoded(found)

    def recv_into(self, room: memoryview) -> int:
        """The same, into `room`; how many bytes."""
        found = self.recv(len(room))
        room[: len(found)] = found
        return len(found)

    def settimeout(self, limit_s: float | None) -> None:
        """Every wait ends after the limit of the settings."""

    def setsockopt(self, *given: Any) -> None:
        """The same."""

    def close(self) -> None:
        """Nothing of it is read any more; what was sent stays sent."""
        self._generation = -1

    def _check(self) -> None:
        if self._generation != self._server.generation:
            raise ConnectionResetError(_LOST)


class SimulatedNodes(Nodes):
    """The nodes as one process knows them: what finds and connects them is simulated, no more."""

    def __init__(
        self,
        settings: RedisSettings,
        clock: Clock,
        servers: Servers,
        step: Step,
        tap: Tap | None = None,
    ) -> None:
        self._servers = servers
        self._step = step
        self._tap = tap
        super().__init__(settings, clock)

    def _found_from(self, address: Address, limit_s: float) -> Topology:
        found = self._servers.topology(self._step)
        known = getattr(self, "topology", None)
        return known if known is not None and known.is_like(found) else found

    def _connected(self, address: Address, limit_s: float) -> socket.socket:
        try:
            return cast("socket.socket", self._servers.connected(address, self._step, self._tap))
        except Unavailable:
            self._look_again(address)
            raise

    def _look_beside(self, lost: Address | None = None) -> None:
        """There is one thread: who asks next looks again."""
