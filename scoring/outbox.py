"""What leaves a scorer behind its answers: a bounded buffer, and the thread that empties it.

Rule: whoever hands something over never waits. What was handed on to a client and is not there yet
takes room like what waits, for clients have buffers without bounds. When the room is used up, what
is handed over is lost, and counted; so is what cannot be sent, unless it is kept until it can.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from freshscore.config.errors import Unavailable

T = TypeVar("T")

# How long the sender sleeps, seconds: to wake it costs a score more than its own kernel does.
_PERIOD_S: Final = 0.05
# Between two tries to send what is kept.
_AGAIN_S: Final = 0.5


class Outbox(Generic[T]):
    """Hands what it is given to `send`, one by one, in its own thread.

    send: sends one, and calls what it is given once, with whether it is there; then or later, in
    any thread. It may raise, after its own limit on waiting: then that one is lost, but where
    `keeps` is set, and what is raised is Unavailable, it is sent again. most: how many may be on
    their way.
    """

    def __init__(
        self,
        name: str,
        send: Callable[[T, Callable[[bool], None]], None],
        most: int,
        *,
        keeps: bool = False,
    ) -> None:
        self._name = name
        self._send = send
        self._most = most
        self._keeps = keeps
        self._waiting: deque[T] = deque()
        self._wake = threading.Event()
        self._settled = threading.Condition()
        # Taken from what waits, and not there yet.
        self._n_sending = 0
        self._closing = threading.Event()
        self.n_sent = 0
        self.n_lost = 0
        self._thread = threading.Thread(target=self._run, name=f"freshscore-{name}", daemon=True)
        self._thread.start()

    def add(self, one: T) -> None:
        """Hand over `one`; it is lost where too many wait."""
        if self.n_waiting >= self._most or self._closing.is_set():
            self._note(0, n_lost=1)
            return
        self._waiting.append(one)
        if 2 * len(self._waiting) >= self._most and not self._wake.is_set():
            self._wake.set()

    @property
    def n_waiting(self) -> int:
        """How many were handed over and are not there yet."""
        return len(self._waiting) + self._n_sending

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is there or lost; whether it was in time."""
        self._wake.set()
        with self._settled:
            return self._settled.wait_for(lambda: self.n_waiting == 0, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Send what waits, for `timeout_s` at most; the rest is lost."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_s)
        while self._waiting:
            self._waiting.popleft()
            self._note(0, n_lost=1)

    def _run(self) -> None:
        while not (self._closing.is_set() and not self._waiting):
            self._wake.wait(_PERIOD_S)
            self._wake.clear()
            while self._waiting and self._send_one():
                pass

    def _send_one(self) -> bool:
        """Send the first that waits; False where it is kept, and what follows should wait too."""
        # Before it is taken, so that `flush` sees it in one place or in the other.
        self._note(1)
        try:
            one = self._waiting.popleft()
        except IndexError:
            # Closing took it.
            self._note(-1)
            return True
        try:
            self._send(one, self._told)
        except Unavailable as problem:
            if self._keeps and not self._closing.is_set():
                self._waiting.appendleft(one)
                self._note(-1)
                self._closing.wait(_AGAIN_S)
                return False
            self._lose(problem)
        except Exception as problem:  # noqa: BLE001  # a thread that ends would lose all others
            self._lose(problem)
        return True

    def _told(self, is_there: bool) -> None:
        if is_there:
            self._note(-1, n_sent=1)
        else:
            self._note(-1, n_lost=1)

    def _note(self, n_sending: int, n_sent: int = 0, n_lost: int = 0) -> None:
        with self._settled:
            self._n_sending += n_sending
            self.n_sent += n_sent
            self.n_lost += n_lost
            if not self.n_waiting:
                self._settled.notify_all()

    def _lose(self, problem: Exception) -> None:
        self._note(-1, n_lost=1)
        if self.n_lost & (self.n_lost - 1) == 0:
            logging.getLogger("freshscore").warning(
                "%d %s lost so far: %s", self.n_lost, self._name, type(problem).__name__
            )


def outbox_counts(outbox: Outbox[Any]) -> dict[str, int]:
    """What became of what was handed over."""
    return {"sent": outbox.n_sent, "lost": outbox.n_lost, "waiting": outbox.n_waiting}
