"""The journal: what was observed, on the disk until the log has it.

Every message is appended with one `write` before `observe` returns, also while Kafka is there: what
has been handed to the client stands in this process' memory until the broker's answer, and dies
with it. A killed process loses nothing that was appended; a power cut at most what was appended in
the last `fsync_s`, for only what waits for so long is brought to the disk. In good times segments
are removed before that, and nothing is.
Cost: 3-4 us for an append; while Kafka is there no fsync.
Rule: an append is whole or did not happen; it waits for no server; what does not fit, or would wait
behind what comes too late for the log, is refused. Messages are hashed when they come here.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

from freshscore.config.clock import Clock
from freshscore.config.errors import (
    Backpressure,
    Closed,
    ForkedScorer,
    FreshscoreError,
    SettingsError,
    Unavailable,
)
from freshscore.invalidation.delivery import Delivered
from freshscore.invalidation.journal_disk import JournalDisk
from freshscore.invalidation.journal_folders import JournalFolder
from freshscore.invalidation.journal_limits import JournalLimits
from freshscore.invalidation.journal_records import HEADER_BYTES, record, record_bytes
from freshscore.invalidation.journal_segments import Segment, sync_path, write_all
from freshscore.invalidation.journal_times import WaitingTimes

Told: TypeAlias = Callable[[Delivered | None], None]

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
# How finely the oldest event is known, of the time that it may wait.
_STEPS: Final = 1_024


class Journal:
    """What one process appends; safe in many threads. JournalSender sends it.

    parent: the folder of all processes of this machine, on a disk of its own. Raises SettingsError
    where nothing can be written there. key_id: of the key under which messages are hashed.
    """

    def __init__(self, parent: Path, key_id: str, limits: JournalLimits, clock: Clock) -> None:
        self.parent = parent
        self.key_id = key_id
        self.limits = limits
        # What JournalSender has taken over: its bytes, and its oldest event.
        self.others_bytes = 0
        self.others_oldest_ms: int | None = None
        self.n_appended = 0
        self.n_refused = 0
        self._clock = clock
        self._appending = threading.Lock()
        self._refusal: FreshscoreError | None = None
        self._waiting = WaitingTimes(max(1, limits.most_age_ms // _STEPS))
        # Oldest first.
        self._told: OrderedDict[tuple[Segment, int], Told] = OrderedDict()
        self._n_segments = 0
        self._made_bytes = 0
        self._removed_bytes = 0
        self._descriptor = -1
        try:
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder = JournalFolder.made(parent, clock.now_ms())
            self._active = self._next_segment()
            self.disk = JournalDisk(self.folder)
            sync_path(parent)
            free = shutil.disk_usage(parent).free
        except OSError as problem:
            raise SettingsError(f"journal.path {parent}: {problem.strerror}") from problem
        if free < limits.max_bytes:
            logging.getLogger("freshscore").warning(
                "journal.max_bytes is %d, and only %d bytes are free in %s",
                *(limits.max_bytes, free, parent),
            )
        myself = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forked(myself()))

    @property
    def held_bytes(self) -> int:
        """What lies on the disk, with what was taken over."""
        return self._made_bytes - self._removed_bytes + self.others_bytes

    @property
    def is_acknowledged(self) -> bool:
        """Whether the log has everything that was appended here."""
        return self.folder.is_acknowledged

    @property
    def end(self) -> tuple[int, int]:
        """Behind the last message: the number of its segment, and the place in it."""
        with self._appending:
            return self._active.number, self._active.size

    def is_acknowledged_to(self, end: tuple[int, int]) -> bool:
        """Whether the log has everything before `end`."""
        number, size = end
        return all(
            segment.is_acknowledged or (segment.number == number and segment.mark >= size)
            for segment in self.folder.segments
            if segment.number <= number
        )

    def append(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        event_ms: int | None,
        told: Told | None = None,
    ) -> None:
        """Keep a message until the log has it; then `told` is called with where it stands there.

        event_ms: the time that decides on its acceptance, None where none does. Where more wait
        than are told, the oldest are not. Raises Backpressure where it does not fit or what waits
        is too old; Unavailable where the disk takes nothing.
        """
        name = topic.encode("ascii")
        n_bytes = record_bytes(name, key, value)
        with self._appending:
            if self._refusal is not None:
                raise self._refusal
            try:
                if self.disk.problem is not None:
                    raise Unavailable(f"journal.path {self.parent}: {self.disk.problem}")
                self._check_age()
                segment = self._segment_for(n_bytes)
                at = segment.size
                self._write(record(name, key, value, event_ms, at), at)
            except (Backpressure, Unavailable):
                self.n_refused += 1
                raise
            if event_ms is not None:
                self._note_time(event_ms, segment, at)
            if told is not None:
                self._note_told(segment, at, told)
            self.n_appended += 1
            self._made_bytes += n_bytes
            segment.size = end = at + n_bytes
        if not self.limits.fsync_s:
            self.disk.sync_up_to(segment, end)

    def whom_to_tell(self, segment: Segment, at: int) -> Told | None:
        """Who asked where the message at this place comes to stand; from now on nobody."""
        return self._told.pop((segment, at), None)

    def oldest_age_ms(self) -> int | None:
        """How old the oldest event is that waits and counts; None where nothing waits."""
        with self._appending:
            return self._age_ms()

    def remove_acknowledged(self) -> list[Segment]:
        """Remove what the log has, and say which segments. For one thread. Raises OSError."""
        gone = self.folder.remove_acknowledged()
        self._removed_bytes += sum(segment.size for segment in gone)
        return gone

    def close(self) -> None:
        """Take nothing more, and leave what the log does not have to the next process."""
        with self._appending:
            if self._refusal is not None:
                return
            self._refusal = Closed("the journal is closed")
            self._active.is_closed = True
            os.close(self._descriptor)
        with suppress(OSError):
            self.folder.remove_acknowledged()
        self.folder.close()

    def abandon_to(self, refusal: FreshscoreError) -> None:
        """In the child of a fork: it is the parent's."""
        self._refusal = refusal
        os.close(self._descriptor)
        # Another thread of the parent may have held it.
        self._appending = threading.Lock()

    def _age_ms(self) -> int | None:
        known = (self._waiting.oldest_ms(self._waiting_from), self.others_oldest_ms)
        oldest_ms = min((one for one in known if one is not None), default=None)
        return None if oldest_ms is None else self._clock.now_ms() - oldest_ms

    def _check_age(self) -> None:
        age_ms, most_ms = self._age_ms(), self.limits.most_age_ms
        if age_ms is not None and age_ms > most_ms:
            raise Backpressure(
                f"the oldest event that waits for Kafka in the journal is {age_ms} ms old; beyond"
                f" {most_ms} ms (store.horizon_s without journal.margin_s) it comes too late to"
                " count, so nothing more is taken until it is sent"
            )

    def _waiting_from(self) -> tuple[int, int]:
        """The number of the first segment in which something waits, and from where on."""
        for segment in self.folder.segments:
            if segment.waiting_from < segment.size:
                return segment.number, segment.waiting_from
        return self._active.number, self._active.size

    def _note_told(self, segment: Segment, at: int, told: Told) -> None:
        """Before it can be sent."""
        self._told[segment, at] = told
        if len(self._told) > self.limits.most_told:
            # Another thread may take the last one at this moment.
            with suppress(KeyError):
                self._told.popitem(last=False)

    def _note_time(self, event_ms: int, segment: Segment, at: int) -> None:
        now_ms = self._clock.now_ms()
        # What is nearly too late when it comes takes its chance, and stops nobody.
        if now_ms - event_ms <= self.limits.most_age_ms:
            self._waiting.add((segment.number, at), min(event_ms, now_ms))

    def _segment_for(self, n_bytes: int) -> Segment:
        """Where so many bytes are appended."""
        size = self._active.size
        is_full = size > HEADER_BYTES and size + n_bytes > self.limits.segment_bytes
        needed = n_bytes + (HEADER_BYTES if is_full else 0)
        if self.held_bytes + needed > self.limits.max_bytes:
            raise Backpressure(
                f"the journal is full: journal.max_bytes is {self.limits.max_bytes}, and"
                f" {self.held_bytes} bytes wait for Kafka"
            )
        if is_full:
            before, descriptor = self._active, self._descriptor
            try:
                self._active = self._next_segment()
            except OSError as problem:
                raise self._untaken(problem, n_bytes) from problem
            # Only now: a closed file that the log has is removed at any moment.
            before.is_closed = True
            os.close(descriptor)
        return self._active

    def _next_segment(self) -> Segment:
        number, self._n_segments = self._n_segments, self._n_segments + 1
        segment, self._descriptor = Segment.made(self.folder.path, number, self.key_id)
        self._made_bytes += HEADER_BYTES
        self.folder.add(segment)
        return segment

    def _write(self, data: bytes, at: int) -> None:
        try:
            # At its place: what a failed one has left there is written over.
            write_all(self._descriptor, data, at)
        except OSError as problem:
            raise self._untaken(problem, len(data)) from problem

    def _untaken(self, problem: OSError, n_bytes: int) -> FreshscoreError:
        if problem.errno in _NO_ROOM:
            return Backpressure(
                f"journal.path {self.parent} has no room for {n_bytes} bytes: {problem.strerror}"
            )
        return Unavailable(f"journal.path {self.parent}: {problem.strerror}")


def _forked(journal: Journal | None) -> None:
    if journal is not None:
        journal.abandon_to(
            ForkedScorer("this journal was opened before a fork, in another process")
        )
