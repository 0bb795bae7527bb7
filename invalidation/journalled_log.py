"""The log as a scorer sees it: what is handed over is on the disk, whether Kafka is there or not.

One thread sends (invalidation/journal_sending.py), one brings to the disk what waits.
Rule: nobody who hands something over waits for a server; nothing is told before the log has it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from freshscore.config.clock import Clock, SystemClock
from freshscore.config.errors import FreshscoreError, Unavailable
from freshscore.invalidation.delivery import Delivered, Writer
from freshscore.invalidation.journal import Journal
from freshscore.invalidation.journal_limits import JournalLimits
from freshscore.invalidation.journal_sending import JournalSender


class JournalledLog:
    """Takes messages for the log; made by `open`, ended by `close`. Safe in many threads."""

    def __init__(
        self, journal: Journal, writer: Writer, clock: Clock, key_ids: frozenset[str]
    ) -> None:
        self._journal = journal
        self._writer = writer
        self._clock = clock
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._acknowledged = threading.Condition()
        self._n_waiting_for_it = 0
        self.sender = JournalSender(
            journal, writer, clock, key_ids=key_ids, wake=self._wake.set, tell=self._tell
        )
        self._threads = [threading.Thread(target=self._send_all, name="freshscore-journal")]
        if journal.limits.fsync_s:
            self._threads.append(threading.Thread(target=self._sync, name="freshscore-fsync"))
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    @classmethod
    def open(
        cls,
        parent: Path,
        key_id: str,
        limits: JournalLimits,
        writer: Writer,
        *,
        clock: Clock | None = None,
        key_ids: frozenset[str] = frozenset(),
    ) -> Self:
        """A journal of this process' own in `parent`; what dead ones have left there is sent too.

        key_id: of the key under which messages are hashed; key_ids: of others whose messages
        consumers take. Raises SettingsError where nothing can be written there.
        """
        chosen = SystemClock() if clock is None else clock
        return cls(Journal(parent, key_id, limits, chosen), writer, chosen, key_ids)

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        *,
        event_ms: int | None = None,
        done: Callable[[Delivered | None], None] | None = None,
    ) -> None:
        """Keep a message until the log has it; then `done` is called with where it stands.

        event_ms: the time that decides on its acceptance, None where none does. Raises
        Backpressure, Unavailable, Closed, ForkedScorer; then it was not taken.
        """
        self._journal.append(topic, key, value, event_ms, done)
        if not self._wake.is_set():
            self._wake.set()

    @property
    def counts(self) -> dict[str, int | None]:
        """What was taken, what became of it, and what lies on the disk (docs/statistics.md)."""
        journal, sender = self._journal, self.sender
        return {
            "appended": journal.n_appended,
            "refused": journal.n_refused,
            "acknowledged": sender.n_acknowledged,
            "sent_again": sender.n_not_sent,
            "bytes": journal.held_bytes,
            "oldest_age_ms": journal.oldest_age_ms(),
            "brought_to_disk": journal.disk.n_synced,
            "taken_over": sender.n_others,
            "left_in_place": sender.n_left,
            "damaged_bytes": sender.n_damaged_bytes,
            "torn_bytes": sender.n_torn_bytes,
        }

    def flush(self, timeout_s: float) -> None:
        """Wait until the log has what was handed over before. Raises Unavailable after `timeout_s`.

        What is not sent by then stays in the journal, and is sent when Kafka is back.
        """
        end = self._journal.end
        with self._acknowledged:
            self._n_waiting_for_it += 1
            self._wake.set()
            try:
                if self._acknowledged.wait_for(
                    lambda: self._journal.is_acknowledged_to(end), timeout_s
                ):
                    return
            finally:
                self._n_waiting_for_it -= 1
        raise Unavailable(
            f"Kafka did not acknowledge within {timeout_s} s; what it has not is in the journal"
        )

    def close(self, timeout_s: float) -> None:
        """Send what is left, for `timeout_s` at most; the rest waits for the next process."""
        ends_s = self._clock.monotonic_s() + timeout_s
        with suppress(FreshscoreError):
            self.flush(timeout_s)
        self.stop(ends_s - self._clock.monotonic_s())
        self._writer.close(max(0.0, ends_s - self._clock.monotonic_s()))
        self.release()

    def stop(self, limit_s: float) -> None:
        """Hand nothing more to the writer; its threads are waited for, for `limit_s`, about."""
        ends_s = self._clock.monotonic_s() + limit_s
        self._closing.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(max(0.1, ends_s - self._clock.monotonic_s()))

    def release(self) -> None:
        """Take nothing more, and leave what was not acknowledged to others."""
        self.sender.close()
        self._journal.close()

    def _tell(self) -> None:
        """Something was acknowledged."""
        if self._n_waiting_for_it:
            with self._acknowledged:
                self._acknowledged.notify_all()

    def _send_all(self) -> None:
        while not self._closing.is_set():
            self._wake.clear()
            try:
                wait_s = self.sender.step()
            except Exception:  # a thread that ends would leave all others unsent
                if self._closing.is_set():
                    # The client was closed while something was handed over.
                    return
                logging.getLogger("freshscore").exception("the journal cannot be sent")
                self._closing.wait(1.0)
                continue
            self._wake.wait(wait_s)

    def _sync(self) -> None:
        while not self._closing.wait(self._journal.limits.fsync_s / 2.0):
            self._journal.disk.sync_old()
