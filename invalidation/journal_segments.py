"""One file of the journal: what was appended to it, what is on its way to the log, what arrived.

A message is waiting (behind `read_to`), in flight (handed over, not acknowledged), refused (to be
handed over again) or acknowledged; the mark in the file says up to where all are. It is written
when nothing is in flight, and every MARK_BYTES: after a crash at most so much is sent twice, beside
what was in flight.
Cost: files are opened for each stretch that is read and each mark that is written, so that a large
journal takes no descriptors; only the appender keeps its own.
Rule: the appender alone makes `size` larger, once the bytes are in the file; the sender alone
reads; acknowledgements come from any thread.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from freshscore.invalidation.journal_records import (
    HEADER_BYTES,
    MARK_AT,
    Placed,
    found_in,
    header,
    mark_bytes,
    read_header,
)

MARK_BYTES: Final = 64 * 1024
_STRETCH_BYTES: Final = 64 * 1024
_SUFFIX: Final = ".segment"


class Segment:
    """A segment; safe in the threads of its appender, its sender, and who acknowledges.

    key_id: of the identifier key under which it was written, None where that is damaged.
    """

    def __init__(self, path: Path, key_id: str | None, size: int, mark: int) -> None:
        self.path = path
        self.number = int(path.stem)
        self.key_id = key_id
        self.size = size
        # No more is appended.
        self.is_closed = False
        self.read_to = mark
        self.mark = mark
        # Before it nothing waits or is in flight; what was refused aside.
        self.waiting_from = mark
        self.synced_to = 0
        self.size_at_last_look = 0
        self.n_damaged = 0
        self.n_torn = 0
        self.syncing = threading.Lock()
        self._lock = threading.Lock()
        self._in_flight: dict[int, int] = {}
        self._refused: dict[int, int] = {}
        self._tried_again: dict[int, int] = {}
        self._written_mark = mark

    @classmethod
    def made(cls, folder: Path, number: int, key_id: str) -> tuple[Self, int]:
        """A new segment, and a descriptor to append with. Raises OSError."""
        path = folder / f"{number:08d}{_SUFFIX}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(descriptor, header(key_id), 0)
        except BaseException:
            os.close(descriptor)
            path.unlink()
            raise
        return cls(path, key_id, HEADER_BYTES, HEADER_BYTES), descriptor

    @classmethod
    def opened(cls, path: Path) -> Self | None:
        """What another process has left; None where its layout is another. Raises OSError."""
        with path.open("rb") as file:
            told = read_header(file.read(HEADER_BYTES))
            size = os.fstat(file.fileno()).st_size
        if told is None:
            return None
        segment = cls(path, told.key_id, size, min(told.mark, size))
        segment.is_closed = True
        return segment

    @property
    def is_read(self) -> bool:
        """Whether everything in it has been handed over."""
        return self.read_to >= self.size

    @property
    def is_acknowledged(self) -> bool:
        """Whether everything in it is in the log."""
        return self.mark >= self.size

    def next(self) -> list[Placed]:
        """Messages behind `read_to`, in order; none where there are no more. Raises OSError.

        What is no record is passed over: `take` counts it as damage, and at the end it is counted
        here, as what a crash has torn.
        """
        at, size = self.read_to, self.size
        n_bytes = _STRETCH_BYTES
        while at < size:
            n_bytes = min(n_bytes, size - at)
            data = self._stretch(at, n_bytes)
            placed, next_at, wanted = found_in(data, at, size)
            if placed:
                return placed
            if len(data) < n_bytes:
                break
            at, n_bytes = next_at, max(_STRETCH_BYTES, wanted)
        with self._lock:
            if at < size:
                # Somebody has cut the file, or removed it.
                self.n_damaged += size - self.read_to
            else:
                self.n_torn += size - self.read_to
            self.read_to = size
            self._note()
        return []

    def again(self) -> list[tuple[int, int]]:
        """Where what is to be handed over again begins and ends."""
        with self._lock:
            return [*self._refused.items()]

    def read_again(self, at: int, end: int) -> Placed | None:
        """The message that was refused at this place; None where it is damaged by now."""
        placed = found_in(self._stretch(at, end - at), at, end).placed
        return placed[0] if placed else None

    def take(self, one: Placed) -> None:
        """It is about to be handed over."""
        with self._lock:
            self.n_damaged += one.at - self.read_to
            self._in_flight[one.at] = one.end
            self.read_to = one.end
            self._note()

    def give_back(self, one: Placed) -> None:
        """The last that was taken was not handed over: it waits again."""
        with self._lock:
            self._in_flight.pop(one.at, None)
            self.read_to = one.at
            self._note()

    def take_again(self, at: int) -> None:
        """What was refused is about to be handed over."""
        with self._lock:
            self._tried_again[at] = self._refused.pop(at)

    def acknowledged(self, at: int) -> None:
        """The message at this place is in the log."""
        with self._lock:
            for places in (self._in_flight, self._tried_again, self._refused):
                places.pop(at, None)
            self._note()
            is_far = self.mark - self._written_mark >= MARK_BYTES
            if is_far or (not self._in_flight and self.mark > self._written_mark):
                # Without the mark some is sent again, which changes nothing.
                with suppress(OSError):
                    self._write_mark()

    def refused(self, at: int) -> None:
        """The message at this place did not reach the log, and is to be handed over again."""
        with self._lock:
            for places in (self._in_flight, self._tried_again):
                if at in places:
                    self._refused[at] = places.pop(at)
            self._note()

    def sync(self) -> None:
        """Bring what was appended, and the name of the file, to the disk. Raises OSError."""
        size = self.size
        sync_path(self.path)
        if not self.synced_to:
            sync_path(self.path.parent)
        self.synced_to = size

    def _note(self) -> None:
        """Say anew up to where all is acknowledged."""
        self.waiting_from = next(iter(self._in_flight), self.read_to)
        self.mark = min(self.waiting_from, *self._refused, *self._tried_again, self.read_to)

    def _write_mark(self) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            write_all(descriptor, mark_bytes(self.mark), MARK_AT)
        finally:
            os.close(descriptor)
        self._written_mark = self.mark

    def _stretch(self, at: int, n_bytes: int) -> bytes:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return b""
        try:
            return os.pread(descriptor, n_bytes, at)
        finally:
            os.close(descriptor)


def segments_in(folder: Path) -> list[Path]:
    """The segments of a folder, in the order in which they were begun. Raises OSError."""
    found = (path for path in folder.iterdir() if path.suffix == _SUFFIX and path.stem.isdecimal())
    return sorted(found)


def write_all(descriptor: int, data: bytes, at: int) -> None:
    """Write all of `data` at this place. Raises OSError; then a part of it may stand there."""
    done = os.pwrite(descriptor, data, at)
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], at + done)


def sync_path(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
