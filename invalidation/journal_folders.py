"""Whose a folder of the journal is: each process writes to its own, and takes over those of dead.

A process holds the lock on its folder as long as it lives, however it ends; names never come again.
So a folder that can be locked is a dead process', and then it is ours.
Rule: nothing in a folder is read for sending or removed without its lock. What another identifier
key or layout has written stays as it is.
"""

from __future__ import annotations

import fcntl
import os
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from freshscore.config.errors import FreshscoreError, StoreInUse
from freshscore.config.secret import random_seed
from freshscore.invalidation.journal_segments import Segment, segments_in

_PREFIX: Final = "journal-"
# A name can only be lost to a process that looks for the dead at that very instant.
_MOST_TRIES: Final = 16


class LeftInPlace(FreshscoreError, ValueError):
    """A folder that this process must not send; the message says why, and what to do."""


class JournalFolder:
    """A folder of segments, locked. In the child of a fork it is the parent's alone."""

    def __init__(self, path: Path, lock: int, segments: list[Segment]) -> None:
        self.path = path
        # Replaced as a whole, so that any thread may walk through it.
        self.segments = tuple(segments)
        self._listing = threading.Lock()
        # Event times before it were too old when the folder was taken over.
        self.counts_from_ms = 0
        # The event time of what is sent next; None where it does not count.
        self.oldest_ms: int | None = None
        self._release = weakref.finalize(self, os.close, lock)
        myself = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forked(myself()))

    @classmethod
    def made(cls, parent: Path, now_ms: int) -> Self:
        """A new one. now_ms: for its name, by which the oldest is found first. Raises OSError."""
        for _ in range(_MOST_TRIES):
            path = parent / f"{_PREFIX}{now_ms:014d}-{random_seed():016x}"
            path.mkdir(mode=0o700)
            lock = _locked(path)
            if lock is not None:
                return cls(path, lock, [])
        raise StoreInUse(f"no folder in {parent} could be locked in {_MOST_TRIES} tries")

    @classmethod
    def taken_over(cls, path: Path, key_ids: frozenset[str]) -> Self | None:
        """That of a dead process; None where it lives, or nothing was left.

        Raises OSError, and LeftInPlace where it is of another key than `key_ids`, or layout.
        """
        lock = _locked(path)
        if lock is None:
            return None
        try:
            segments = [_opened(one, path, key_ids) for one in segments_in(path)]
        except BaseException:
            os.close(lock)
            raise
        folder = cls(path, lock, segments)
        folder.remove_acknowledged()
        if folder.segments:
            return folder
        folder.close()
        return None

    @property
    def n_bytes(self) -> int:
        """What its segments take on the disk."""
        return sum(segment.size for segment in self.segments)

    @property
    def is_acknowledged(self) -> bool:
        """Whether everything in it is in the log."""
        return all(segment.is_acknowledged for segment in self.segments)

    def note_next(self, event_ms: int | None) -> None:
        """What is sent next is of this time."""
        counts = event_ms is not None and event_ms >= self.counts_from_ms
        self.oldest_ms = event_ms if counts else None

    def add(self, segment: Segment) -> None:
        """It is the newest from now on."""
        with self._listing:
            self.segments = (*self.segments, segment)

    def remove_acknowledged(self) -> list[Segment]:
        """Remove the segments that are not needed any more, and say which. Raises OSError."""
        gone = [one for one in self.segments if one.is_closed and one.is_acknowledged]
        for one in gone:
            one.path.unlink(missing_ok=True)
        if gone:
            with self._listing:
                self.segments = tuple(one for one in self.segments if one not in gone)
        return gone

    def close(self) -> None:
        """Leave it to others; it goes where nothing is left in it."""
        if not self.segments:
            with suppress(OSError):
                self.path.rmdir()
        self.release()

    def release(self) -> None:
        """Give up the lock, and nothing else."""
        self._release()


def folders_in(parent: Path) -> list[Path]:
    """All folders of journals, those that were begun first before. Raises OSError."""
    return sorted(path for path in parent.iterdir() if path.name.startswith(_PREFIX))


def _opened(path: Path, folder: Path, key_ids: frozenset[str]) -> Segment:
    segment = Segment.opened(path)
    if segment is None:
        raise LeftInPlace(
            f"the journal in {folder.name} is of another version of freshscore, and stays there;"
            " start that version to have it sent"
        )
    # Where the header is damaged, messages say themselves under which key they are.
    if segment.key_id is not None and segment.key_id not in key_ids:
        raise LeftInPlace(
            f"the journal in {folder.name} was written under the identifier secret"
            f" {segment.key_id}; this one is {', '.join(sorted(key_ids))}. It stays there; start a"
            " process with that secret to have it sent"
        )
    return segment


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock on a folder; None where another does, or it is gone."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), path.stat()):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _forked(folder: JournalFolder | None) -> None:
    """In the child of a fork: the lock is the parent's, and must end with it."""
    if folder is not None:
        folder.release()
