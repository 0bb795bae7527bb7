"""Bringing to the disk what was appended to the journal, so that it outlives the power too.

What the log has acknowledged meanwhile is not brought there: in good times nothing is.
Rule: trouble of the disk is told to whoever appends, until it has ended.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from freshscore.config.errors import Unavailable
from freshscore.invalidation.journal_folders import JournalFolder
from freshscore.invalidation.journal_segments import Segment


class JournalDisk:
    """Synchronises the segments of one folder; safe in many threads.

    problem: what the disk said the last time, None where all went well.
    """

    def __init__(self, folder: JournalFolder) -> None:
        self._folder = folder
        self.problem: str | None = None
        self.n_synced = 0

    def sync_old(self) -> None:
        """Bring to the disk what has been waiting since the last call.

        Called every half `fsync_s`: what waits is on the disk when it is `fsync_s` old. Trouble is
        logged once, and kept in `problem`.
        """
        try:
            for segment in self._folder.segments:
                old_to, segment.size_at_last_look = segment.size_at_last_look, segment.size
                if max(segment.mark, segment.synced_to) < old_to:
                    # Not found: all of it was acknowledged meanwhile.
                    with suppress(FileNotFoundError), segment.syncing:
                        self._sync(segment)
        except OSError as problem:
            if self.problem is None:
                logging.getLogger("freshscore").error(
                    "the journal in %s is not brought to the disk: %s",
                    *(self._folder.path.parent, problem),
                )
            self.problem = problem.strerror or type(problem).__name__
        else:
            self.problem = None

    def sync_up_to(self, segment: Segment, end: int) -> None:
        """See that everything before `end` is on the disk; those who wait meanwhile share one.

        Raises Unavailable.
        """
        with segment.syncing:
            if max(segment.synced_to, segment.mark) >= end:
                return
            try:
                with suppress(FileNotFoundError):
                    self._sync(segment)
            except OSError as problem:
                raise Unavailable(
                    f"journal.path {self._folder.path.parent}: {problem.strerror}; the message is"
                    " kept, and lost only if the power is"
                ) from problem

    def _sync(self, segment: Segment) -> None:
        segment.sync()
        self.n_synced += 1
