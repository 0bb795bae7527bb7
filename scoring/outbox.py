"""What leaves a scorer behind its answers: a bounded buffer, and the thread that empties it.

Rule: whoever hands something over never waits. When the buffer is full, or sending fails, what is
handed over is lost, and counted.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

# How long the sender sleeps, seconds: to wake it costs a score more than its own kernel does.
_PERIOD_S: Final = 0.05


class Outbox(Generic[T]):
    """Hands what it is given to `send`, one by one, in its own thread.

    most: how many may wait. send may raise, after its own limit on waiting: then that one is lost.
    """

    def __init__(self, name: str, send: Callable[[T], None], most: int) -> None:
        self._name = name
        self._send = send
        self._most = most
        self._waiting: deque[T] = deque()
        self._wake = threading.Event()
        self._emptied = threading.Condition()
        self._n_sending = 0
        self._is_closing = False
        self.n_sent = 0
        self.n_lost = 0
        self._thread = threading.Thread(target=self._run, name=f"freshscore-{name}", daemon=True)
        self._thread.start()

    def add(self, one: T) -> None:
        """Hand over `one`; it is lost where too many wait."""
        n = len(self._waiting)
        if n >= self._most or self._is_closing:
            self.n_lost += 1
            return
        self._waiting.append(one)
        if 2 * n >= self._most and not self._wake.is_set():
            self._wake.set()

    @property
    def n_waiting(self) -> int:
        """How many were handed over and not sent yet."""
        return len(self._waiting) + self._n_sending

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything was sent or lost; whether it was in time."""
        self._wake.set()
        with self._emptied:
            return self._emptied.wait_for(lambda: self.n_waiting == 0, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Send what waits, for `timeout_s` at most; the rest is lost."""
        self._is_closing = True
        self._wake.set()
        self._thread.join(timeout_s)
        while self._waiting:
            self._waiting.popleft()
            self.n_lost += 1

    def _run(self) -> None:
        while not (self._is_closing and not self._waiting):
            self._wake.wait(_PERIOD_S)
            self._wake.clear()
            while self._waiting:
                self._send_one()
            with self._emptied:
                self._emptied.notify_all()

    def _send_one(self) -> None:
        # Before it is taken, so that `flush` sees it in one place or in the other.
        self._n_sending = 1
        try:
            self._send(self._waiting.popleft())
            self.n_sent += 1
        except IndexError:
            # Closing took it.
            pass
        except Exception as problem:  # noqa: BLE001  # a thread that ends would lose all others
            self.n_lost += 1
            if self.n_lost & (self.n_lost - 1) == 0:
                logging.getLogger("freshscore").warning(
                    "%d %s lost so far: %s", self.n_lost, self._name, type(problem).__name__
                )
        finally:
            self._n_sending = 0


def outbox_counts(outbox: Outbox[Any]) -> dict[str, int]:
    """What became of what was handed over."""
    return {"sent": outbox.n_sent, "lost": outbox.n_lost, "waiting": outbox.n_waiting}
