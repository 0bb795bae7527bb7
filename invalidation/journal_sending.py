"""Sending what the journal holds: oldest first, paced, until the log has acknowledged it.

One way for good times and bad: what is sent is always read from the disk, also milliseconds after
it was appended. So what is sent after an outage, or of a dead process, takes the path that every
message takes.
Folders of dead processes are looked for at the start and every LOOK_S; they are taken over as long
as they fit under the limit on bytes, and sent before what comes here.
Rule: a message leaves the journal only when it was acknowledged; what did not reach the log is
handed over again, for as long as it takes. `send_per_s` bounds what is sent beside what comes at
this moment, so that what comes never waits for the pace.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from freshscore.config.clock import Clock
from freshscore.config.errors import Unavailable
from freshscore.invalidation.delivery import Delivered, Writer
from freshscore.invalidation.journal import Journal
from freshscore.invalidation.journal_folders import JournalFolder, LeftInPlace, folders_in
from freshscore.invalidation.journal_pace import Pace
from freshscore.invalidation.journal_records import Placed
from freshscore.invalidation.journal_segments import Segment

LOOK_S: Final = 10.0
# Between two tries where Kafka takes nothing, or has not taken a message.
_AGAIN_S: Final = 1.0
# How often somebody looks where nothing wakes it; while the pace holds something back.
_IDLE_S: Final = 1.0
_PACE_S: Final = 0.01
# How often files are looked through; there may be a thousand.
_REMOVE_S: Final = 0.1


class JournalSender:
    """Sends one process' journal, and those that it takes over; `step` is for one thread.

    key_ids: of the keys whose messages consumers take beside the journal's own, during a rotation.
    wake: called where a step should follow at once. tell: called after each acknowledgement.
    """

    def __init__(
        self,
        journal: Journal,
        writer: Writer,
        clock: Clock,
        *,
        key_ids: frozenset[str] = frozenset(),
        wake: Callable[[], None] = lambda: None,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        self._journal = journal
        self._writer = writer
        self._clock = clock
        self._key_ids = key_ids | {journal.key_id}
        self._wake = wake
        self._tell = tell
        self._others: list[JournalFolder] = []
        self._left: set[Path] = set()
        now_s = clock.monotonic_s()
        self._look_at_s = now_s
        self._again_at_s = now_s
        self._refused_until_s = now_s
        self._remove_at_s = now_s
        self._n_troubles = 0
        limits = journal.limits
        self._pace = Pace(limits.send_per_s, max(1, limits.in_flight_bytes // 256), now_s)
        self._counting = threading.Lock()
        self._in_flight_bytes = 0
        self._is_held_up = False
        self._has_looked = False
        self.n_acknowledged = 0
        self.n_not_sent = 0
        self.n_damaged_bytes = 0
        self.n_torn_bytes = 0

    @property
    def n_others(self) -> int:
        """How many journals of dead processes are being sent."""
        return len(self._others)

    @property
    def n_left(self) -> int:
        """How many were left in place: of another key or layout."""
        return len(self._left)

    @property
    def is_done(self) -> bool:
        """Whether the log has all that was appended here and all that the dead have left."""
        return self._has_looked and not self._others and self._journal.is_acknowledged

    def step(self) -> float:
        """Send what may be sent; seconds until there may be more, unless `wake` is called.

        Trouble is logged once, and tried again.
        """
        now_s = self._clock.monotonic_s()
        self._pace.move_to(now_s, self._journal.n_appended)
        wait_s = _IDLE_S
        try:
            if now_s >= self._look_at_s:
                self._look_at_s = now_s + LOOK_S
                self._take_over()
            self._is_held_up = False
            if now_s >= self._again_at_s:
                n_before = self._n_troubles
                if not self._send_all(now_s):
                    wait_s = _IDLE_S if self._is_held_up else _PACE_S
                if self._n_troubles == n_before:
                    self._n_troubles = 0
        except OSError as problem:
            # Unavailable is one too.
            self._log_first("%s", problem)
            self._again_at_s = now_s + _AGAIN_S
        if now_s >= self._remove_at_s:
            self._remove_at_s = now_s + (_REMOVE_S if self._remove_acknowledged() else LOOK_S)
        return wait_s

    def close(self) -> None:
        """Leave what was taken over to others."""
        for folder in self._others:
            # What was acknowledged last.
            with suppress(OSError):
                folder.remove_acknowledged()
            folder.close()
        self._others = []

    def _send_all(self, now_s: float) -> bool:
        """Whether all is sent."""
        for folder in (*self._others, self._journal.folder):
            for segment in folder.segments:
                try:
                    if now_s >= self._refused_until_s and not self._send_refused(segment):
                        return False
                    if not self._send_waiting(folder, segment):
                        return False
                except OSError as problem:
                    if isinstance(problem, Unavailable):
                        raise
                    # What cannot be read at this time holds up nothing else.
                    self._log_first("the journal cannot be read: %s", problem)
        return True

    def _send_waiting(self, folder: JournalFolder, segment: Segment) -> bool:
        n_damaged, n_torn = segment.n_damaged, segment.n_torn
        try:
            while not segment.is_read:
                for one in segment.next():
                    if not self._may_send(one):
                        return False
                    self._send_one(folder, segment, one)
        finally:
            self._note_damage(segment, segment.n_damaged - n_damaged, segment.n_torn - n_torn)
        return True

    def _send_one(self, folder: JournalFolder, segment: Segment, one: Placed) -> None:
        n_bytes = one.end - one.at
        folder.note_next(one.message.event_ms)
        segment.take(one)
        with self._counting:
            self._in_flight_bytes += n_bytes
        try:
            self._hand_over(segment, one)
        except BaseException:
            segment.give_back(one)
            with self._counting:
                self._in_flight_bytes -= n_bytes
            raise

    def _send_refused(self, segment: Segment) -> bool:
        for at, end in segment.again():
            one = segment.read_again(at, end)
            if one is None:
                self._note_damage(segment, end - at, 0)
                segment.acknowledged(at)
                with self._counting:
                    self._in_flight_bytes -= end - at
            elif self._pace.n_free < 1.0:
                return False
            else:
                segment.take_again(at)
                try:
                    self._hand_over(segment, one)
                except BaseException:
                    segment.refused(at)
                    raise
        return True

    def _may_send(self, one: Placed) -> bool:
        with self._counting:
            free = self._journal.limits.in_flight_bytes - self._in_flight_bytes
            # One that is larger than the limit goes alone.
            self._is_held_up = free < one.end - one.at and self._in_flight_bytes > 0
        return not self._is_held_up and self._pace.n_free >= 1.0

    def _hand_over(self, segment: Segment, one: Placed) -> None:
        """Raises Unavailable; then it is not on its way."""
        message = one.message
        self._writer.send(
            message.topic,
            message.key,
            message.value,
            done=partial(self._told, segment, one.at, one.end - one.at),
        )
        self._pace.n_free -= 1.0

    def _told(self, segment: Segment, at: int, n_bytes: int, stood: Delivered | None) -> None:
        """What became of a message; in a thread of the client, or within `send`."""
        if stood is None:
            segment.refused(at)
            self.n_not_sent += 1
            self._refused_until_s = self._clock.monotonic_s() + _AGAIN_S
            if self.n_not_sent & (self.n_not_sent - 1) == 0:
                logging.getLogger("freshscore").warning(
                    "%d messages of the journal did not reach Kafka so far; they are sent again",
                    self.n_not_sent,
                )
            return
        told = self._journal.whom_to_tell(segment, at)
        try:
            # First, so that whoever waits for the journal finds everybody told.
            if told is not None:
                told(stood)
        finally:
            with self._counting:
                self.n_acknowledged += 1
                self._in_flight_bytes -= n_bytes
                left = self._in_flight_bytes
            segment.acknowledged(at)
        self._tell()
        if not left or (self._is_held_up and 2 * left <= self._journal.limits.in_flight_bytes):
            self._wake()

    def _take_over(self) -> None:
        """Take over what the dead have left, as far as it fits; raises OSError."""
        journal = self._journal
        known = {journal.folder.path, *self._left, *(folder.path for folder in self._others)}
        for path in folders_in(journal.parent):
            if path in known:
                continue
            try:
                folder = JournalFolder.taken_over(path, self._key_ids)
            except (LeftInPlace, OSError) as problem:
                self._left.add(path)
                logging.getLogger("freshscore").error("%s", problem)
                continue
            if folder is None:
                continue
            fits = journal.held_bytes + folder.n_bytes <= journal.limits.max_bytes
            if not fits and (self._others or not journal.is_acknowledged):
                folder.close()
                return
            self._note_oldest(folder)
            self._others.append(folder)
            self._note_others()
        self._has_looked = True

    def _note_oldest(self, folder: JournalFolder) -> None:
        """Which event of a folder is sent next; what is too old already stops nobody."""
        folder.counts_from_ms = self._clock.now_ms() - self._journal.limits.most_age_ms
        for segment in folder.segments:
            for one in segment.next():
                folder.note_next(one.message.event_ms)
                return

    def _note_others(self) -> None:
        times = [one.oldest_ms for one in self._others if one.oldest_ms is not None]
        self._journal.others_oldest_ms = min(times, default=None)
        self._journal.others_bytes = sum(one.n_bytes for one in self._others)

    def _remove_acknowledged(self) -> bool:
        """Remove what the log has; whether that could be done."""
        try:
            self._journal.remove_acknowledged()
            if self._others:
                for folder in [*self._others]:
                    folder.remove_acknowledged()
                    if not folder.segments:
                        folder.close()
                        self._others.remove(folder)
                self._note_others()
        except OSError as problem:
            logging.getLogger("freshscore").warning(
                "what Kafka has cannot be removed from the journal: %s", problem
            )
            return False
        return True

    def _note_damage(self, segment: Segment, n_damaged: int, n_torn: int) -> None:
        self.n_torn_bytes += n_torn
        self.n_damaged_bytes += n_damaged
        if n_damaged:
            logging.getLogger("freshscore").error(
                "the journal is damaged: %d bytes of %s are no messages and were passed over; the"
                " events in them are lost",
                n_damaged,
                f"{segment.path.parent.name}/{segment.path.name}",
            )

    def _log_first(self, sentence: str, problem: Exception) -> None:
        """Say it, unless something was said since all went well."""
        if not self._n_troubles:
            logging.getLogger("freshscore").warning(sentence, problem)
        self._n_troubles += 1
