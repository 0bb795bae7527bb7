"""Dead letters: what was refused, where it stands in the log, and why; never what it said.

A letter is kept under the position of its message (topic id, partition, offset), so that a message
that is read again does not count twice. It holds reason, length and a keyed digest; whoever wants
the payload reads it at its place in the log, for as long as the topic keeps it.
Rule: a letter shows no content. One that was brought back is followed by one that says so.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import msgspec

from freshscore.config.decoding import as_type
from freshscore.config.errors import Unavailable

_VERSION: Final = 1


class DeadLetter(msgspec.Struct, frozen=True, omit_defaults=True):
    """One refused message.

    topic_id, partition, offset: where it stands. arrival_ms: its stamp. detail: what was wrong with
    it, without content. digest: keyed, of its bytes. brought_back: it was applied since.
    """

    topic: str
    topic_id: str
    partition: int
    offset: int
    arrival_ms: int
    reason: str
    detail: str
    length: int
    digest: str
    v: int = _VERSION
    brought_back: bool = False

    @property
    def position(self) -> tuple[str, int, int]:
        """What it is kept under."""
        return self.topic_id, self.partition, self.offset

    @property
    def key(self) -> bytes:
        """Its key in the topic, so that all letters of one position are in one partition."""
        return f"{self.topic_id}:{self.partition}:{self.offset}".encode()


def digest_of(payload: bytes, key: bytes) -> str:
    """The keyed digest of a message: 32 hexadecimal digits."""
    return hashlib.blake2b(payload, key=key, digest_size=16, person=b"dead-letter").hexdigest()


def decoded_letter(value: bytes) -> DeadLetter | None:
    """The letter in a message of the topic; None for what is no letter."""
    try:
        return as_type(msgspec.json.decode, value, DeadLetter)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
        return None


class LetterWriter(Protocol):
    """What letters are sent with (invalidation/kafka_writing.py)."""

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        *,
        done: Callable[[Any], None] | None = None,
    ) -> None:
        """Hand one message over; `done` is called with where it stands, None for never."""
        ...

    def flush(self, timeout_s: float) -> None:
        """Wait until all is acknowledged."""
        ...


class DeadLetters:
    """Sends letters, and knows whether all of them are in the log."""

    def __init__(self, writer: LetterWriter, topic: str, timeout_s: float) -> None:
        self._writer = writer
        self._topic = topic
        self._timeout_s = timeout_s
        self._counting = threading.Lock()
        self._unsent = 0
        self._failed = 0

    def put(self, letter: DeadLetter) -> None:
        """Send a letter. Raises Unavailable."""
        with self._counting:
            self._unsent += 1
        try:
            self._writer.send(self._topic, letter.key, msgspec.json.encode(letter), done=self._done)
        except BaseException:
            # Nobody will say what became of it; its message is read again.
            with self._counting:
                self._unsent -= 1
            raise

    def _done(self, at: object) -> None:
        with self._counting:
            self._unsent -= 1
            self._failed += at is None

    def settle(self) -> None:
        """Wait until all letters are in the log. Raises Unavailable if one is not."""
        with self._counting:
            waiting, failed, self._failed = self._unsent, self._failed, 0
        if waiting:
            self._writer.flush(self._timeout_s)
            with self._counting:
                failed, self._failed = failed + self._failed, 0
        if failed:
            raise Unavailable(f"{failed} dead letters did not reach topic {self._topic}")


def open_letters(values: Iterator[bytes]) -> dict[tuple[str, int, int], DeadLetter]:
    """By position the letters that were not brought back, of the messages of the topic in order.

    What is no letter is passed over: others may write to the topic too.
    """
    found: dict[tuple[str, int, int], DeadLetter] = {}
    for value in values:
        letter = decoded_letter(value)
        if letter is None:
            continue
        if letter.brought_back:
            found.pop(letter.position, None)
        else:
            found[letter.position] = letter
    return found
