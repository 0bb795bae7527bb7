"""The door to Redis: which nodes there are, and connections to them.

Nodes are found at the start, again when they move or one cannot be reached, and now and then: one
of a single server, the primaries of a cluster. A connection is made by the library, which knows
TLS, users and passwords; from then on it is a socket for prepared bytes (features/redis_lines.py),
borrowed by one thread at a time.

A node's tag names the very set of slots that the node has, so what is kept under it, its markers
and its epoch, vouches for these slots and no others. A node that gets or gives slots has another
tag from then on, and under it no epoch: whether states came with a slot, and all of them, cannot be
seen (the slots of a lost node are given to others empty), so it is rebuilt like one that is new.
Rejected: a tag that stays while its slot does; a slot that came empty then held only new entities.
Rule: errors of the library end here: `Unavailable` where trying again makes sense, SettingsError
where somebody has to change something. A server that evicts keys is refused, for an evicted state
would look like a new entity.
"""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import redis
from numpy.typing import NDArray
from redis.cluster import RedisCluster
from redis.connection import Connection, SSLConnection, parse_url

from freshscore.config.clock import Clock, SystemClock
from freshscore.config.errors import Closed, FreshscoreError, SettingsError, Unavailable
from freshscore.config.settings import RedisSettings
from freshscore.config.tls import tls_problem_of
from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_keys import SLOTS, slot_of
from freshscore.features.redis_lines import (
    MOVED_WORDS,
    Address,
    Lines,
    Reply,
    ReplyError,
    command,
    errors_in,
)
from freshscore.features.redis_scripts import SCRIPTS

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

# Where tags begin, by the digest of a node's slots: one pair of sets in 10^9 begins alike. From
# there on so many numbers are tried: for one slot alone 2^14 on average.
_TAGS: Final = 1 << 30
_TAGS_TRIED: Final = 1 << 20
# How long nodes are believed to be where they were, if nothing tells otherwise: whoever asks for
# nothing that has moved is never told so.
_LOOK_AGAIN_S: Final = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class Topology:
    """The nodes at one moment, in the order of their lowest slot.

    addresses: of the primaries. node_of_slot: uint16[16384]. tags: of each node a decimal number
    whose slot it owns, as text, that follows from the set of all its slots; "0" of a single server.
    """

    addresses: tuple[Address, ...]
    node_of_slot: NDArray[np.uint16]
    tags: tuple[str, ...]

    def node_of(self, tag: bytes) -> int:
        """The node that owns a hash tag."""
        return int(self.node_of_slot[slot_of(tag)])

    def is_like(self, other: Topology) -> bool:
        """Whether nothing has moved between the two."""
        return self.addresses == other.addresses and np.array_equal(
            self.node_of_slot, other.node_of_slot
        )


class Nodes:
    """The nodes of a server or a cluster; safe in many threads, and connected anew after a fork."""

    def __init__(self, settings: RedisSettings, clock: Clock) -> None:
        self.settings = settings
        self._clock = clock
        self._options = _Options(settings)
        self._pool = _Pool(settings.max_connections)
        self._is_closed = False
        self._client: redis.Redis | RedisCluster | None = None
        self._lock = threading.Lock()
        # Held by the one who looks for the nodes; nobody waits for it.
        self._looking = threading.Lock()
        self._checked: set[Address] = set()
        self.topology = self._found_from(self._options.address)
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

    @property
    def client(self) -> Any:
        """The library's own client, for rare commands inside `translated()`; made on first use."""
        with self._lock:
            if self._client is None:
                with translated():
                    self._client = self._options.client()
            return self._client

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
        if self._clock.monotonic_s() - self._looked_s >= _LOOK_AGAIN_S:
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
        lines = Lines(topology.addresses, self._connected, self._clock, self.limit_s)
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

    def refresh(self) -> bool:
        """Find the nodes again, after MOVED or a lost node; whether they have changed.

        Lines that are borrowed keep the nodes that they know. Raises what `open` raises.
        """
        return self._refresh_from([*self.topology.addresses, self._options.address])

    def _refresh_from(self, addresses: Sequence[Address]) -> bool:
        """Find the nodes again, by the first of these that answers."""
        problem = Unavailable("no node of Redis is known")
        for address in dict.fromkeys(addresses):
            try:
                found = self._found_from(address)
            except Unavailable as lost:
                problem = lost
                continue
            self._looked_s = self._clock.monotonic_s()
            if found.is_like(self.topology):
                return False
            self.topology = found
            return True
        raise problem

    def _look_again(self, lost: Address | None = None) -> None:
        """Find the nodes of a cluster again, if nobody is about it; not by `lost`.

        Where none answers they stay as they were.
        """
        if not self.settings.cluster or not self._looking.acquire(blocking=False):
            return
        try:
            known = [*self.topology.addresses, self._options.address]
            with suppress(Unavailable):
                self._refresh_from([one for one in known if one != lost])
        finally:
            self._looking.release()

    def close(self) -> None:
        """Close the connections; those that are borrowed when they are given back."""
        self._is_closed = True
        while self._pool.free:
            self._pool.free.pop()[1].close()
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connected(self, address: Address, limit_s: float) -> socket.socket:
        try:
            return self._options.connected(address, limit_s, self._clock)
        except Unavailable:
            # Another may have taken its place, and nobody answers MOVED for a node that is gone.
            self._look_again(address)
            raise

    def _found_from(self, address: Address) -> Topology:
        """The nodes that the one at `address` knows of, each checked when it is first met."""
        if self.settings.cluster:
            found = _cluster_slots(self._asked(address, [(b"CLUSTER", b"SLOTS")])[0], address)
        else:
            found = Topology((address,), np.zeros(SLOTS, np.uint16), ("0",))
        for node in found.addresses:
            if node not in self._checked:
                self._check(node)
                self._checked.add(node)
        return found

    def _asked(self, address: Address, commands: list[tuple[bytes, ...]]) -> list[Reply]:
        connect = partial(self._options.connected, clock=self._clock)
        lines = Lines([address], connect, self._clock, self.limit_s)
        request = b"".join(command(*parts) for parts in commands)
        try:
            return lines.exchange([request], [len(commands)])[0]
        finally:
            lines.close()

    def _check(self, address: Address) -> None:
        """Refuse a server on which states could vanish, or of another kind than the settings."""
        place = f"Redis at {address[0]}:{address[1]}"
        # Not CONFIG GET: the documented user may not, and each try would be a line of ACL LOG.
        memory, kind = self._asked(address, [(b"INFO", b"memory"), (b"INFO", b"cluster")])
        policy = _in_info(memory).get("maxmemory_policy")
        if policy is None:
            raise SettingsError(
                f"{place}: INFO does not say whether it evicts keys; the user in redis.url needs"
                " +info"
            )
        if policy != "noeviction":
            raise SettingsError(
                f"{place} has maxmemory-policy {policy}: when its memory is full it would drop"
                " states, which then look like new entities; set it to noeviction"
            )
        is_cluster = _in_info(kind).get("cluster_enabled") == "1"
        if is_cluster and not self.settings.cluster:
            raise SettingsError(f"{place} is a node of a cluster, and redis.cluster is false")


class _Pool:
    """Lines that nobody uses, and places for those who do."""

    def __init__(self, n: int) -> None:
        self.places = threading.BoundedSemaphore(n)
        # Appending, popping and setting one item are single steps under the interpreter's lock.
        self.free: list[tuple[Topology, Lines]] = []
        self.borrowed: dict[Lines, Topology] = {}


def _forked(nodes: Nodes | None) -> None:
    """In the child of a fork: the parent's connections are the parent's."""
    if nodes is None:
        return
    old = nodes._pool
    nodes._pool = _Pool(nodes.settings.max_connections)
    nodes._lock = threading.Lock()
    nodes._looking = threading.Lock()
    nodes._client = None
    for lines in [*(lines for _, lines in old.free), *old.borrowed]:
        lines.close()


@contextmanager
def translated() -> Iterator[None]:
    """Raise errors of the library as Unavailable or SettingsError."""
    try:
        yield
    except (redis.AuthenticationError, redis.exceptions.AuthorizationError) as problem:
        raise SettingsError(
            "Redis refuses the user or password: that of redis.url with redis.password"
            f" (FRESHSCORE_REDIS__PASSWORD): {problem}"
        ) from problem
    except redis.exceptions.NoPermissionError as problem:
        raise SettingsError(f"Redis refuses a command to this user: {problem}") from problem
    except (redis.RedisError, redis.exceptions.RedisClusterException, OSError) as problem:
        raise _of_trouble(problem) from problem


def _of_trouble(problem: BaseException) -> FreshscoreError:
    """What the library's error is for a user; the one of TLS behind it, where there is one."""
    tls = tls_problem_of(problem)
    if isinstance(tls, ssl.SSLCertVerificationError):
        return SettingsError(
            f"Redis shows a certificate that is not accepted: {tls.verify_message};"
            " ssl_ca_certs in redis.url says whom to trust"
        )
    if tls is not None:
        return Unavailable(
            f"Redis ends TLS: {tls}; if it wants to see a certificate:"
            " ssl_certfile and ssl_keyfile in redis.url"
        )
    return Unavailable(f"Redis: {problem}")


@dataclass(frozen=True)
class _Options:
    """What connections are made of."""

    settings: RedisSettings
    _given: Mapping[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        with _at_fault():
            given = parse_url(self.settings.url)  # type: ignore[no-untyped-call]  # the library's
        object.__setattr__(self, "_given", given)

    @property
    def address(self) -> Address:
        """Of the server in the URL."""
        return str(self._given.get("host", "localhost")), int(self._given.get("port", 6379))

    def connected(self, address: Address, limit_s: float, clock: Clock) -> socket.socket:
        """A socket on which the user is known and the scripts are loaded, within `limit_s`."""
        ends_s = clock.monotonic_s() + limit_s
        given = dict(self._given)
        made_by = given.pop("connection_class", Connection)
        options = (
            given
            | self._common(limit_s)
            | {"host": address[0], "port": address[1]}
            | {"redis_connect_func": partial(_shake_hands, ends_s, clock)}
        )
        with _at_fault((TypeError, ValueError, redis.RedisError)):
            connection = made_by(**options)
        with translated():
            try:
                with _at_fault():
                    connection.connect()
                for script in SCRIPTS:
                    connection.send_command("SCRIPT", "LOAD", script.text)
                for _ in SCRIPTS:
                    _bound(connection, ends_s, clock)
                    connection.read_response()
            except BaseException:
                connection.disconnect()
                raise
        # Taken from it, so that it does not close it; the library has no public way to its socket.
        made: socket.socket = connection._sock
        connection._sock = None
        return made

    def client(self) -> redis.Redis | RedisCluster:
        """The library's client."""
        given = dict(self._given)
        is_tls = given.pop("connection_class", Connection) is SSLConnection
        options = given | self._common(self.settings.timeout_ms / 1_000) | {"ssl": is_tls}
        if self.settings.cluster:
            return RedisCluster(**{name: value for name, value in options.items() if name != "db"})
        return redis.Redis(**options)

    def _common(self, limit_s: float) -> dict[str, Any]:
        password = self.settings.password
        return {
            "password": None if password is None else password.get_secret_value(),
            "socket_timeout": limit_s,
            "socket_connect_timeout": limit_s,
            "socket_keepalive": True,
            # RESP 2: nothing comes unasked.
            "protocol": 2,
        }


@contextmanager
def _at_fault(kinds: tuple[type[Exception], ...] = (ValueError,)) -> Iterator[None]:
    """Raise as SettingsError what the library says of values in redis.url, in errors of `kinds`."""
    try:
        yield
    except kinds as problem:
        if isinstance(problem, OSError):
            # A certificate that is not accepted is both.
            raise
        raise SettingsError(f"redis.url: {problem}") from problem


def _shake_hands(ends_s: float, clock: Clock, connection: Connection) -> None:
    """Do what the library does on a new connection, in what is left of the time."""
    _bound(connection, ends_s, clock)
    # By one of these names it would tell what it is called (CLIENT SETINFO), which the documented
    # user may not: each try would be a line of ACL LOG.
    for name in ("driver_info", "lib_name", "lib_version"):
        setattr(connection, name, None)
    connection.on_connect()  # type: ignore[no-untyped-call]  # the library's


def _bound(connection: Connection, ends_s: float, clock: Clock) -> None:
    """Let the next wait of a connection end at `ends_s`, on the monotonic clock."""
    left_s = ends_s - clock.monotonic_s()
    if left_s <= 0.0:
        raise TimeoutError("connecting took too long")
    # The library puts the first on its parser; the second is what a read waits by.
    connection.socket_timeout = left_s
    made: socket.socket = connection._sock  # type: ignore[assignment]  # connected by now
    made.settimeout(left_s)


def _in_info(reply: Reply) -> dict[str, str]:
    """The lines of an answer to INFO; nothing where the user may not ask."""
    if not isinstance(reply, bytes):
        return {}
    pairs = (line.split(":", 1) for line in reply.decode().splitlines() if ":" in line)
    return {name: value.strip() for name, value in pairs}


def _cluster_slots(reply: Reply, asked: Address) -> Topology:
    """What CLUSTER SLOTS says. Raises Unavailable while slots have no node."""
    place = f"Redis at {asked[0]}:{asked[1]}"
    if isinstance(reply, ReplyError):
        if "cluster support disabled" in str(reply):
            raise SettingsError(f"{place} is no cluster, and redis.cluster is true")
        raise Unavailable(f"{place}: {reply}")
    ranges = sorted((first, last, node[0] or b"", node[1]) for first, last, node, *_ in reply)
    # Without an announced name a node is where the one that was asked is.
    places = [(host.decode() or asked[0], int(port)) for _, _, host, port in ranges]
    addresses = tuple(dict.fromkeys(places))
    owners = np.full(SLOTS, len(addresses), np.uint16)
    for (first, last, _, _), found in zip(ranges, places, strict=True):
        owners[first : last + 1] = addresses.index(found)
    n_missing = int(np.count_nonzero(owners == len(addresses)))
    if n_missing:
        raise Unavailable(f"{place}: {n_missing} of {SLOTS} slots have no node")
    return Topology(addresses, owners, _node_tags(owners, len(addresses)))


def _node_tags(owners: NDArray[np.uint16], n: int) -> tuple[str, ...]:
    return tuple(_tag_of_set(owners == node) for node in range(n))


def _tag_of_set(owned: NDArray[np.bool_]) -> str:
    """The tag of a node with these slots, bool[16384]: the first number that lies in one of them.

    Counted from the digest of the set on.
    """
    packed = np.packbits(owned).tobytes()
    digest = hashlib.blake2b(packed, digest_size=8, person=b"slots-of-a-node").digest()
    first = int.from_bytes(digest, "little") % _TAGS
    numbers = range(first, first + _TAGS_TRIED)
    return next(str(number) for number in numbers if owned[slot_of(b"%d" % number)])
