"""SIGTERM and SIGINT for commands that work until they are told to stop.

Being told to stop is no failure, whenever it comes: also while the servers are still looked for the
process ends with 0, or a supervisor would count a failed start.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Stoppable(Protocol):
    """What works until it is told to stop."""

    def stop(self) -> None:
        """Let it end; from any thread."""
        ...


T = TypeVar("T", bound=Stoppable)


class _ToldToStop(BaseException):
    """A signal came before there was anything to stop; no error that a library may translate."""


class Signals(Generic[T]):
    """Both signals: they end the opening of something, and stop it once it is open."""

    def __init__(self) -> None:
        self._opened: T | None = None
        self._is_opening = False
        self._told = threading.Event()
        signal.signal(signal.SIGTERM, self._tell)
        signal.signal(signal.SIGINT, self._tell)

    def opened(self, open_one: Callable[[], T]) -> T | None:
        """What `open_one` gives, which signals stop from then on; None if one came before that.

        Raises whatever `open_one` raises.
        """
        try:
            self._is_opening = True
            if self._told.is_set():
                return None
            found = self._opened = open_one()
        except _ToldToStop:
            return None
        finally:
            self._is_opening = False
        # What a handler raises is lost where a library was just tidying up.
        if self._told.is_set():
            found.stop()
        return found

    def _tell(self, *_: object) -> None:
        self._told.set()
        if self._opened is not None:
            # Not in the handler itself: it may interrupt what it would have to wait for.
            stop = self._opened.stop
            threading.Thread(target=stop, name="freshscore-stop", daemon=True).start()
        elif self._is_opening:
            self._is_opening = False
            raise _ToldToStop
