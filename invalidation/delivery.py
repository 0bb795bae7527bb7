"""Handing messages over to the log: who takes them, and where they come to stand.

Rule: what was taken is told of once the log has it, or never will; nobody is told before that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Delivered:
    """Where a message came to stand in the log. arrival_ms: its stamp; -1 where that is ours."""

    topic: str
    partition: int
    offset: int
    arrival_ms: int


class Writer(Protocol):
    """What takes messages: the producer itself, or the journal before it."""

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        *,
        event_ms: int | None = None,
        done: Callable[[Delivered | None], None] | None = None,
    ) -> None:
        """Take a message; `done` is called with where it stands, None for never.

        event_ms: the time that decides on its acceptance, None where none does. Raises Unavailable
        or Backpressure; then it was not taken.
        """
        ...

    def flush(self, timeout_s: float) -> None:
        """Wait until all is acknowledged. Raises Unavailable."""
        ...

    def close(self, timeout_s: float) -> None:
        """Send what is left, for `timeout_s` at most."""
        ...
