"""Lines: one thread's own connections to the nodes of Redis, for bytes that were prepared.

What goes to several nodes is sent to all before anything is read. Sending and reading are two
calls, so that a writer can prepare its next batch while a node works on this one.
Cost of three GETs in one exchange, loopback: 20 us, where the library's pipeline takes 54. hiredis
reads replies (0.7 us less than looking for line ends in Python), and the system keeps the limit on
waits (SO_RCVTIMEO, 1.6 us less than a poll before each call) except under TLS, which knows no such.
A thread that sleeps until its reply comes is woken late: by 60 us and more where idle cores halt,
as virtual ones do. So one thread of a process may wait awake, if its replies come sooner than that.
Whole numbers that come by the thousand are read where they lie (features/redis_numbers.py).
Rule: a connection on which anything went wrong, or that was left half read, is never read on.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import hiredis
import numpy as np
from numpy.typing import NDArray

from freshscore.config.clock import Clock
from freshscore.config.errors import Unavailable
from freshscore.features.memory import address_of
from freshscore.features.redis_numbers import FOUND, SCAN, USED, scan_numbers

Address = tuple[str, int]
Request = bytes | bytearray | memoryview
# Makes a connection, ready for commands, within so many seconds; or raises Unavailable.
Connect = Callable[[Address, float], socket.socket]
# What a server answers; errors are values, for one bad command must not hide the other replies.
Reply = Any

# Replies after which nodes should be found again, and the same commands tried again.
MOVED_WORDS: Final = frozenset(
    {"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "READONLY", "MASTERDOWN", "LOADING"}
)
_RECEIVED_BYTES: Final = 1 << 16
# How long one waits awake, and how many waits are then slept through because nothing had come: a
# server that is too far for it costs 6 us of processor a wait.
_AWAKE_S: Final = 100e-6
_SLEPT: Final = 16
# For a node whose turn to be read comes when another has used up the time: its replies are here.
_LEAST_LEFT_S: Final = 0.005
# What is sent between two looks at the clock.
_SENT_BYTES: Final = 1 << 18
_NOT_YET: Final = object()
_SCANNED_BYTES: Final = 1 << 18
# A colon, a sign, 19 digits and a line end: what is longer and not found is no number.
_LONGEST_NUMBER: Final = 23
_COLON: Final = b":"[0]


class ReplyError(Exception):
    """An error that the server answered to one command: a value, never raised by an exchange."""

    @property
    def word(self) -> str:
        """What kind it is: "MOVED", "NOSCRIPT", "OOM", "ERR", ..."""
        return str(self).split(" ", 1)[0]


def command(*parts: bytes) -> bytes:
    """One command as the protocol has it (RESP 2)."""
    body = b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])
    return b"*%d\r\n%b" % (len(parts), body)


def errors_in(replies: Sequence[Reply]) -> frozenset[str]:
    """The kinds of errors among replies; nearly always none."""
    if ReplyError not in set(map(type, replies)):
        return frozenset()
    return frozenset(reply.word for reply in replies if type(reply) is ReplyError)


class Answers(NamedTuple):
    """What a node answered to commands that answer whole numbers, and to the others behind them.

    numbers: int64[n], -1 for a reply that is none. odd: the replies that are none.
    """

    numbers: NDArray[np.int64]
    odd: list[Reply]
    others: list[Reply]


class _WasClosed(Unavailable):
    """A connection that had answered before, and was found closed before it answered again."""


class Lines:
    """Connections to all nodes, for one thread at a time; each is made when it is first needed.

    nodes: where they are. connect: makes a connection within the limit of the exchange that needs
    it. Replies are bytes, int, None, list or ReplyError.
    """

    def __init__(
        self,
        nodes: Sequence[Address],
        connect: Connect,
        clock: Clock,
        limit_s: float,
    ) -> None:
        self._lines = [_Line(address, connect, clock) for address in nodes]
        self._clock = clock
        self._limit_s = limit_s

    @property
    def n(self) -> int:
        """How many nodes they lead to."""
        return len(self._lines)

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to each of them."""
        # A loop: every score asks, and a generator costs it a third of a microsecond.
        for line in self._lines:  # noqa: SIM110
            if not line.is_connected:
                return False
        return True

    def exchange(
        self,
        requests: Sequence[Request | None],
        n_replies: Sequence[int],
        limit_s: float | None = None,
        awake: threading.Lock | None = None,
    ) -> list[list[Reply]]:
        """The replies of each node to what was sent to it, sent to all before any is read.

        requests: for each node its commands as bytes; None for a node that is not concerned.
        n_replies: how many each answers. limit_s: of the whole exchange, about; else the settings'.
        awake: who holds it waits awake; for requests that are answered in microseconds.
        A connection that the server had closed while it was idle is made anew, and the exchange
        repeated once. Raises Unavailable; what was sent may have been done or not, or twice.
        """
        try:
            self.send(requests, limit_s)
            return self.read(n_replies, limit_s, awake)
        except _WasClosed:
            self.close()
            self.send(requests, limit_s)
            return self.read(n_replies, limit_s)

    def attempt(
        self,
        requests: Sequence[Request | None],
        n_replies: Sequence[int],
        limit_s: float | None = None,
        awake: threading.Lock | None = None,
    ) -> list[list[Reply] | Unavailable]:
        """What `exchange` does, with the error in place of the replies of a node in trouble.

        A node that does not answer takes nothing from the others: what they answered is read, and
        connections that are there are used before any is made.
        """
        limit_s = self._limit_s if limit_s is None else limit_s
        found = self._attempted(requests, n_replies, limit_s, awake)
        closed = [isinstance(one, _WasClosed) for one in found]
        if not any(closed):
            return found
        again = [one if lost else None for one, lost in zip(requests, closed, strict=True)]
        n_again = [n if lost else 0 for n, lost in zip(n_replies, closed, strict=True)]
        second = self._attempted(again, n_again, limit_s)
        return [two if lost else one for one, two, lost in zip(found, second, closed, strict=True)]

    def _attempted(
        self,
        requests: Sequence[Request | None],
        n_replies: Sequence[int],
        limit_s: float,
        awake: threading.Lock | None = None,
    ) -> list[list[Reply] | Unavailable]:
        found: list[list[Reply] | Unavailable] = [[] for _ in self._lines]
        asked = [number for number, request in enumerate(requests) if request is not None]
        new = [number for number in asked if not self._lines[number].is_connected]
        ends_s = self._clock.monotonic_s() + limit_s
        for number in [*(one for one in asked if one not in new), *new]:
            request = requests[number]
            assert request is not None
            try:
                self._lines[number].send(request, limit_s / len(new) if number in new else limit_s)
            except Unavailable as problem:
                found[number] = problem
        left_s = limit_s
        if new:
            left_s = max(_LEAST_LEFT_S, ends_s - self._clock.monotonic_s())
        for number, (line, n) in enumerate(zip(self._lines, n_replies, strict=True)):
            if n and not isinstance(found[number], Unavailable):
                try:
                    found[number] = line.read(n, left_s, awake)
                except Unavailable as problem:
                    found[number] = problem
                    left_s = max(_LEAST_LEFT_S, ends_s - self._clock.monotonic_s())
        return found

    def send(self, requests: Sequence[Request | None], limit_s: float | None = None) -> None:
        """Send each node its commands; their replies are read by `read`, in the order of sending.

        Raises Unavailable, and then no reply of this or an earlier sending can be read any more.
        """
        limit_s = self._limit_s if limit_s is None else limit_s
        try:
            for line, request in zip(self._lines, requests, strict=True):
                if request is not None:
                    line.send(request, limit_s)
        except Unavailable:
            self.drop_unread()
            raise

    def read(
        self,
        n_replies: Sequence[int],
        limit_s: float | None = None,
        awake: threading.Lock | None = None,
    ) -> list[list[Reply]]:
        """So many replies of each node. Raises Unavailable, and then none can be read any more."""
        limit_s = self._limit_s if limit_s is None else limit_s
        try:
            return [
                line.read(n, limit_s, awake) if n else []
                for line, n in zip(self._lines, n_replies, strict=True)
            ]
        except Unavailable:
            self.drop_unread()
            raise

    def read_numbers(
        self, n_numbers: Sequence[int], n_others: Sequence[int], limit_s: float | None = None
    ) -> list[Answers]:
        """As `read`, where so many of the first replies of each node are whole numbers."""
        limit_s = self._limit_s if limit_s is None else limit_s
        try:
            return [
                line.read_numbers(n, others, limit_s)
                for line, n, others in zip(self._lines, n_numbers, n_others, strict=True)
            ]
        except Unavailable:
            self.drop_unread()
            raise

    def ask(self, node: int, *parts: bytes) -> Reply:
        """The reply of one node to one command. Raises Unavailable."""
        request: list[Request | None] = [None] * len(self._lines)
        n_replies = [0] * len(self._lines)
        request[node], n_replies[node] = command(*parts), 1
        return self.exchange(request, n_replies)[node][0]

    def drop_unread(self) -> None:
        """Drop the connections on which replies are still to come."""
        for line in self._lines:
            if line.n_unread:
                line.drop()

    def close(self) -> None:
        """Drop all connections; the lines can still be used, on new ones."""
        for line in self._lines:
            line.drop()


class _Line:
    """One connection to one node."""

    __slots__ = (
        "_address",
        "_clock",
        "_connect",
        "_has_answered",
        "_kept_limit_s",
        "_n_to_sleep",
        "_reader",
        "_socket",
        "n_unread",
    )

    def __init__(self, address: Address, connect: Connect, clock: Clock) -> None:
        self._address = address
        self._connect = connect
        self._clock = clock
        self._socket: socket.socket | None = None
        self._reader: Any = None
        self._kept_limit_s = 0.0
        self._has_answered = False
        # Waits that are slept through, for the last one that was awake was for nothing.
        self._n_to_sleep = 0
        # Sendings whose replies were not all read.
        self.n_unread = 0

    @property
    def is_connected(self) -> bool:
        return self._socket is not None

    def send(self, request: Request, limit_s: float) -> None:
        connection = self._socket
        if connection is None:
            connection = self._opened(limit_s)
        self.n_unread += 1
        try:
            if limit_s != self._kept_limit_s:
                self._keep_limit(connection, limit_s)
            if len(request) <= _SENT_BYTES:
                connection.sendall(request)
            else:
                self._send_much(connection, memoryview(request), limit_s)
        except OSError as problem:
            raise self._failed(problem, limit_s) from problem

    def read(self, n: int, limit_s: float, awake: threading.Lock | None = None) -> list[Reply]:
        connection = self._socket
        if connection is None or not self.n_unread:
            raise Unavailable(f"Redis at {self._place}: the connection was lost before its replies")
        next_reply = self._reader.gets
        replies: list[Reply] = []
        append = replies.append
        ends_s = 0.0
        try:
            if limit_s != self._kept_limit_s:
                self._keep_limit(connection, limit_s)
            while True:
                reply = next_reply()
                if reply is not _NOT_YET:
                    append(reply)
                    if len(replies) == n:
                        self.n_unread -= 1
                        self._has_answered = True
                        return replies
                    continue
                received = None if awake is None else self._received_awake(connection, awake)
                if received is None:
                    received = connection.recv(_RECEIVED_BYTES)
                if not received:
                    raise ConnectionResetError("it closed the connection")
                self._reader.feed(received)
                # What trickles is bounded as a whole; the first look tells when it began.
                if not ends_s:
                    ends_s = self._clock.monotonic_s() + limit_s
                elif self._clock.monotonic_s() > ends_s:
                    raise TimeoutError
        except (OSError, hiredis.HiredisError) as problem:
            raise self._failed(problem, limit_s, not replies) from problem

    def _received_awake(self, connection: socket.socket, awake: threading.Lock) -> bytes | None:
        """What comes within the time that is waited awake; None for nothing, or not to be tried."""
        if self._n_to_sleep:
            self._n_to_sleep -= 1
            return None
        if isinstance(connection, ssl.SSLSocket) or not awake.acquire(blocking=False):
            return None
        try:
            ends_s = self._clock.monotonic_s() + _AWAKE_S
            while self._clock.monotonic_s() < ends_s:
                try:
                    return connection.recv(_RECEIVED_BYTES, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    continue
        finally:
            awake.release()
        self._n_to_sleep = _SLEPT
        return None

    def read_numbers(self, n: int, n_others: int, limit_s: float) -> Answers:
        numbers = np.full(n, -1, np.int64)
        found = self._scan(numbers, limit_s) if n else 0
        rest = self.read(n - found + n_others, limit_s) if found < n or n_others else []
        if n and not rest:
            self.n_unread -= 1
            self._has_answered = True
        odd: list[Reply] = []
        for at, reply in enumerate(rest[: n - found], found):
            if type(reply) is int:
                numbers[at] = reply
            else:
                odd.append(reply)
        return Answers(numbers, odd, rest[n - found :])

    def _scan(self, numbers: NDArray[np.int64], limit_s: float) -> int:
        """Receive numbers up to the first reply that is none, and leave the rest to the reader.

        How many there were.
        """
        connection = self._socket
        # What an earlier reading left belongs before what is still to be received.
        if connection is None or not self.n_unread or self._reader.has_data():
            return 0
        n, found, held = len(numbers), 0, 0
        buffer, scan = np.empty(_SCANNED_BYTES, np.uint8), np.zeros(SCAN, np.int64)
        view, begin = buffer.data, address_of(buffer)
        ends_s = self._clock.monotonic_s() + limit_s
        try:
            if limit_s != self._kept_limit_s:
                self._keep_limit(connection, limit_s)
            while found < n:
                received = connection.recv_into(view[held:])
                if not received:
                    raise ConnectionResetError("it closed the connection")
                held += received
                out = address_of(numbers) + 8 * found
                scan_numbers(begin, held, out, n - found, address_of(scan))
                found += int(scan[FOUND])
                used = int(scan[USED])
                view[: held - used] = bytes(view[used:held])
                held -= used
                if held >= _LONGEST_NUMBER or (held and buffer[0] != _COLON):
                    break
                if self._clock.monotonic_s() > ends_s:
                    raise TimeoutError
        except OSError as problem:
            raise self._failed(problem, limit_s, not found) from problem
        self._reader.feed(bytes(view[:held]))
        return found

    def drop(self) -> None:
        """Close the connection; the next use makes a new one."""
        connection, self._socket = self._socket, None
        self._reader = None
        self.n_unread = 0
        if connection is not None:
            connection.close()

    def _opened(self, limit_s: float) -> socket.socket:
        self._socket = self._connect(self._address, limit_s)
        self._has_answered = False
        self._reader = hiredis.Reader(replyError=ReplyError, notEnoughData=_NOT_YET)
        self._kept_limit_s = 0.0
        return self._socket

    def _keep_limit(self, connection: socket.socket, limit_s: float) -> None:
        """Let every wait of the connection end after so long."""
        if isinstance(connection, ssl.SSLSocket):
            connection.settimeout(limit_s)
        else:
            whole = int(limit_s)
            kept = struct.pack("@ll", whole, max(1, int((limit_s - whole) * 1e6)))
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, kept)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, kept)
        self._kept_limit_s = limit_s

    def _send_much(self, connection: socket.socket, request: memoryview, limit_s: float) -> None:
        ends_s = self._clock.monotonic_s() + limit_s
        for first in range(0, len(request), _SENT_BYTES):
            if self._clock.monotonic_s() > ends_s:
                raise TimeoutError
            connection.sendall(request[first : first + _SENT_BYTES])

    def _failed(self, problem: Exception, limit_s: float, at_once: bool = True) -> Unavailable:
        """Drop the connection; the error to raise. at_once: before anything was answered."""
        was_closed = isinstance(problem, ConnectionError) and self._has_answered and at_once
        was_closed = was_closed and self.n_unread == 1
        self.drop()
        if isinstance(problem, TimeoutError | BlockingIOError):
            said = f"no answer within {limit_s * 1_000:.0f} ms"
        else:
            said = str(problem) or type(problem).__name__
        said = f"Redis at {self._place}: {said}"
        return _WasClosed(said) if was_closed else Unavailable(said)

    @property
    def _place(self) -> str:
        return f"{self._address[0]}:{self._address[1]}"
