"""Each topic's journal by itself, so that one which takes nothing holds up no other.

A topic may be gone, without a leader, or not for us to write: what is for it then waits, fills its
own journal and window, and is tried again for as long as it takes. Within a topic the order is that
in which things were handed over; between topics the log has none.
The folders are called by what the topics are for: messages know their topic, and one that is
renamed leaves what was meant for the old one where it is found.
Rule: what is promised of a journal (invalidation/journalled_log.py) is promised of each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from freshscore.config.clock import Clock, SystemClock
from freshscore.config.errors import FreshscoreError
from freshscore.config.settings import KafkaSettings
from freshscore.invalidation.delivery import Delivered, Writer
from freshscore.invalidation.journal_limits import JournalLimits
from freshscore.invalidation.journalled_log import JournalledLog


class JournalledTopics:
    """Takes messages for the topics that scorers write; made by `open`. Safe in many threads."""

    def __init__(self, logs: Mapping[str, JournalledLog], writer: Writer, clock: Clock) -> None:
        self._logs = logs
        self._writer = writer
        self._clock = clock

    @classmethod
    def open(
        cls,
        parent: Path,
        key_id: str,
        limits: JournalLimits,
        writer: Writer,
        settings: KafkaSettings,
        *,
        key_ids: frozenset[str] = frozenset(),
    ) -> Self:
        """A journal for payments and one for labels, below `parent`, each with these limits.

        key_id, key_ids: as for `JournalledLog.open`. Raises what `JournalledLog.open` raises.
        """
        clock = SystemClock()
        topics = {
            settings.transactions_topic: "transactions",
            settings.labels_topic: "labels",
        }
        with ExitStack() as opened:
            logs = {}
            for topic, name in topics.items():
                log = JournalledLog.open(
                    parent / name, key_id, limits, writer, clock=clock, key_ids=key_ids
                )
                opened.callback(log.release)
                opened.callback(log.stop, 0.0)
                logs[topic] = log
            opened.pop_all()
        return cls(logs, writer, clock)

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

        Raises what `JournalledLog.send` raises; then it was not taken.
        """
        self._logs[topic].send(topic, key, value, event_ms=event_ms, done=done)

    @property
    def counts(self) -> dict[str, int | None]:
        """What was taken, and what became of it, of all together (docs/statistics.md)."""
        counted = [log.counts for log in self._logs.values()]
        found: dict[str, int | None] = {}
        for name in counted[0]:
            known = [one for counts in counted if (one := counts[name]) is not None]
            # An age is the oldest one's.
            found[name] = max(known, default=None) if name == "oldest_age_ms" else sum(known)
        return found

    def flush(self, timeout_s: float) -> None:
        """Wait until the log has what was handed over before. Raises Unavailable after `timeout_s`.

        What is not sent by then stays in its journal.
        """
        ends_s = self._clock.monotonic_s() + timeout_s
        for log in self._logs.values():
            log.flush(max(0.0, ends_s - self._clock.monotonic_s()))

    def close(self, timeout_s: float) -> None:
        """Send what is left, for `timeout_s` at most; the rest waits for the next process."""
        ends_s = self._clock.monotonic_s() + timeout_s
        with suppress(FreshscoreError):
            self.flush(timeout_s)
        for log in self._logs.values():
            log.stop(ends_s - self._clock.monotonic_s())
        # So that what is on its way may still be acknowledged to us.
        self._writer.close(max(0.0, ends_s - self._clock.monotonic_s()))
        for log in self._logs.values():
            log.release()
