"""Reading the log: a consumer of topics, as a member of a group or on its own.

What is known to go wrong in kafka-python is handled here: a join that is never applied (also with
its inside, the coordinator), a session that the brokers refuse, fetches that a pause loses. With
crc32c beside it, it reads three times as fast.
Rule: nothing of kafka-python leaves this module: not its classes, not its errors.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import kafka
import kafka.errors

from freshscore.config.clock import Clock, SystemClock
from freshscore.config.errors import SettingsError, Unavailable
from freshscore.config.settings import KafkaSettings
from freshscore.invalidation.kafka_admin import LogAdmin
from freshscore.invalidation.kafka_batches import (
    Fetched,
    fetch_when_asked,
    fetched_of,
    is_fetched,
    read_in_place,
)
from freshscore.invalidation.kafka_connecting import connection, named, translated
from freshscore.invalidation.partitions import Partition

# A wait that ends while a join completes can lose that join for good: longer ones do not.
_JOINING_S: Final = 10.0
# The same for a member that has partitions, so that it can still be stopped, and hear of Redis.
_REJOINING_S: Final = 1.0
# So long without partitions, where others have too few members for all of them, is such a loss.
_STALLED_S: Final = 60.0
_FETCH_BYTES: Final = 1 << 20
# How long a broker keeps a fetch for which there is nothing: what is to be fetched from elsewhere
# meanwhile waits for it; and how long a poll waits, so that heartbeats and a stop are in time.
_FETCH_WAIT_MS: Final = 50
# A poll that brings so many messages is of a reader that is behind.
_BEHIND: Final = 1_000
# Batches of one poll; those of a busy producer hold hundreds of messages.
_BATCHES: Final = 256
# How long leaving may take: less than supervisors wait.
_LEAVING_MS: Final = 5_000
_METADATA_MS: Final = 5_000


class LogReader:
    """A consumer of topics: with a group, one of its members; without, whatever is assigned."""

    def __init__(
        self,
        settings: KafkaSettings,
        topics: Sequence[str],
        *,
        group: str | None,
        in_place: bool = True,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._topics = tuple(topics)
        self._clock = clock or SystemClock()
        self._apart_s = settings.fetch_apart_ms / 1_000.0
        self._fetched_s = float("-inf")
        self._is_behind = False
        self._most = settings.max_poll_records
        session_ms = round(1000 * settings.session_s)
        with translated(settings):
            self._consumer = kafka.KafkaConsumer(
                **connection(settings),
                group_id=group,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                allow_auto_create_topics=False,
                fetch_max_wait_ms=_FETCH_WAIT_MS,
                fetch_min_bytes=1,
                max_partition_fetch_bytes=_FETCH_BYTES,
                max_poll_records=_BATCHES if in_place else self._most,
                session_timeout_ms=session_ms,
                heartbeat_interval_ms=max(100, session_ms // 4),
                metrics_enabled=False,
                # A topic that was made anew is another one: its old offsets mean nothing.
                metadata_max_age_ms=_METADATA_MS,
                # What a producer has taken back was never said.
                isolation_level="read_committed",
            )
            missing = [name for name in topics if not self._consumer.partitions_for_topic(name)]
        if missing:
            self._consumer.close(autocommit=False)
            raise SettingsError(
                f"no topic {', '.join(missing)} at {settings.bootstrap_servers};"
                " make them with: freshscore topics check --create"
            )
        if in_place:
            read_in_place(self._consumer)
        fetch_when_asked(self._consumer, lambda: self._is_behind)
        # How often partitions were given out: each time every position begins anew, and what was
        # paused is not any more.
        self.n_assignments = 0
        if group is not None:
            self._consumer.subscribe(self._topics, listener=_Counting(self))
            # A member whose metadata come after its join joins once more, and until then has read
            # its first batches for nothing.
            with translated(settings):
                self._consumer.topics()
        self._unassigned_since_s: float | None = None
        self._stalled_s = _STALLED_S
        self._closed = threading.Event()
        # Whether a commit that was not waited for failed: set by `poll`, which learns of it.
        self.has_failed_to_commit = False

    @property
    def assignment(self) -> frozenset[Partition]:
        """The partitions that are this reader's now."""
        if self._closed.is_set():
            return frozenset()
        return frozenset((at.topic, at.partition) for at in self._consumer.assignment())

    def partitions(self, topic: str) -> tuple[int, ...]:
        """All partitions of a topic."""
        with self._still_open():
            return tuple(sorted(self._consumer.partitions_for_topic(topic) or ()))

    def topic_ids(self) -> dict[str, str]:
        """The ids of the topics that there are, as the last metadata told them; asks nobody."""
        found = ((name, self._consumer._cluster.topic_id(name)) for name in self._topics)
        return {name: str(topic_id) for name, topic_id in found if topic_id is not None}

    def assign(self, partitions: Sequence[Partition]) -> None:
        """Read these partitions, outside of any group."""
        self._consumer.assign([kafka.TopicPartition(*at) for at in partitions])

    def poll(self, wait_ms: int | None = None) -> list[Fetched]:
        """What has come, waiting for it `wait_ms` at most, and longer for a join to complete.

        While messages come, but not many, fetches begin kafka.fetch_apart_ms apart at least.
        Raises Unavailable for a damaged batch: it is fetched again; SettingsError for a session
        that the brokers refuse.
        """
        if self._closed.is_set():
            return []
        is_waited_for = wait_ms != 0
        wait_ms = max(1, _FETCH_WAIT_MS if wait_ms is None else wait_ms)
        if not self._consumer.assignment():
            self._watch()
        else:
            self._unassigned_since_s, self._stalled_s = None, _STALLED_S
        try:
            with translated():
                if is_waited_for:
                    self._wait_for_turn()
                records = self._polled(wait_ms)
        except (Unavailable, RuntimeError):
            if not self._closed.is_set():
                raise
            # Closed meanwhile, by another thread.
            return []
        fetched = [
            fetched_of((at.topic, at.partition), found) for at, found in records.items() if found
        ]
        self._is_behind = sum(map(len, fetched)) >= _BEHIND
        return fetched

    def _wait_for_turn(self) -> None:
        """Wait until the next fetch may begin, unless there is something that needs none."""
        if self._is_behind or is_fetched(self._consumer):
            return
        early_s = self._fetched_s + self._apart_s - self._clock.monotonic_s()
        if early_s > 0.0:
            self._closed.wait(min(early_s, self._apart_s))
        self._fetched_s = self._clock.monotonic_s()

    def _polled(self, wait_ms: int) -> Any:
        try:
            self._join()
            return self._consumer.poll(wait_ms)
        except kafka.errors.InvalidSessionTimeoutError as problem:
            raise _refused_session(self._settings) from problem

    def _join(self) -> None:
        """Let a join that is needed, or under way, complete before the next poll.

        kafka-python forgets one that completes while no poll waits for it, if it came of a change
        of metadata: the member would read on without heartbeats or commits, and others too.
        """
        coordinator = self._consumer._coordinator
        if self._consumer.subscription() and (coordinator.rejoining or coordinator.need_rejoin()):
            coordinator.request_rejoin()
            limit_s = _REJOINING_S if self._consumer.assignment() else _JOINING_S
            coordinator.poll(timeout_ms=round(1000 * limit_s))

    def _watch(self) -> None:
        """Join again where a join was lost: members without partitions that should have some."""
        now_s = self._clock.monotonic_s()
        if self._unassigned_since_s is None:
            self._unassigned_since_s = now_s
        elif now_s - self._unassigned_since_s > self._stalled_s and self._consumer.subscription():
            logging.getLogger("freshscore").warning(
                "no partition assigned for %d s: joining the group again", self._stalled_s
            )
            self._unassigned_since_s = now_s
            # A spare member has none for long, and each join moves everybody's partitions.
            self._stalled_s *= 2
            self._consumer.unsubscribe()
            self._consumer.subscribe(self._topics, listener=_Counting(self))

    @contextmanager
    def _still_open(self) -> Iterator[None]:
        """Whatever kafka-python says once another thread has closed it becomes Unavailable."""
        try:
            with translated():
                yield
        except Exception as problem:
            if not self._closed.is_set():
                raise
            raise Unavailable("the reader of the log was closed by another thread") from problem

    def seek(self, partition: Partition, offset: int) -> None:
        """Read on from `offset`. Raises Unavailable after `close`, as all below."""
        with self._still_open():
            self._consumer.seek(kafka.TopicPartition(*partition), offset)

    def pause(self, partitions: Sequence[Partition]) -> None:
        """Fetch nothing of these for now."""
        with self._still_open():
            self._consumer.pause(*(kafka.TopicPartition(*at) for at in partitions))

    def resume(self, partitions: Sequence[Partition]) -> None:
        """Fetch them again, from their position.

        What had been fetched before the pause is let go: kafka-python 3.0 parks it, does not always
        bring it back, and fetches nothing of a partition for which it has something parked.
        """
        places = [kafka.TopicPartition(*at) for at in partitions]
        with self._still_open():
            for place in places:
                self._consumer._fetcher._paused_partition_records.pop(place, None)
                self._consumer._fetcher._paused_completed_fetches.pop(place, None)
            self._consumer.resume(*places)

    def position(self, partition: Partition) -> int:
        """The offset of the next message that a poll brings."""
        with self._still_open():
            at = self._consumer.position(kafka.TopicPartition(*partition), timeout_ms=10_000)
        if at is None:
            raise Unavailable(f"Kafka did not tell the position in {named(partition)} within 10 s")
        return int(at)

    def highwater(self, partition: Partition) -> int | None:
        """The end of the partition as the last fetch told it; None before the first."""
        end = self._consumer.highwater(kafka.TopicPartition(*partition))
        return None if end is None else int(end)

    def committed(self, partition: Partition) -> int | None:
        """The offset that the group committed last, or None."""
        with self._still_open():
            at = self._consumer.committed(kafka.TopicPartition(*partition), timeout_ms=10_000)
        return None if at is None else int(at)

    def beginnings(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """The first offset that each partition still has."""
        return self._offsets(self._consumer.beginning_offsets, partitions)

    def ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """The offset behind the last message of each partition."""
        return self._offsets(self._consumer.end_offsets, partitions)

    def _offsets(
        self, asked: Callable[[list[Any]], Mapping[Any, int]], partitions: Sequence[Partition]
    ) -> dict[Partition, int]:
        if not partitions:
            return {}
        try:
            with self._still_open():
                found = asked([kafka.TopicPartition(*at) for at in partitions])
        except KeyError as problem:
            # What kafka-python says where the broker leaves one out: its topic is being deleted.
            raise Unavailable(f"Kafka does not know {named(problem.args[0])}") from problem
        return {(at.topic, at.partition): int(offset) for at, offset in found.items()}

    def commit(self, positions: Mapping[Partition, int], *, wait: bool = False) -> None:
        """Commit the next offsets to read; `wait`: until the broker has them.

        A commit that fails is no harm: what was not committed is read again, which changes nothing.
        But it is to be repeated, or the group's lag would stand where nothing more comes.
        """
        offsets = {
            kafka.TopicPartition(*at): kafka.OffsetAndMetadata(offset, "", -1)
            for at, offset in positions.items()
        }
        if not offsets:
            return
        try:
            with self._still_open():
                if wait:
                    self._consumer.commit(offsets, timeout_ms=5_000)
                else:
                    self._consumer.commit_async(offsets, callback=self._note_commit)
        except Unavailable as problem:
            self._note_commit(offsets, problem)

    def _note_commit(self, _: object, outcome: object) -> None:
        if isinstance(outcome, Exception):
            self.has_failed_to_commit = True
            logging.getLogger("freshscore").info("a commit failed: %s", type(outcome).__name__)

    def close(self) -> None:
        """Leave the group; from another thread it also ends a poll, which then brings nothing."""
        if self._closed.is_set():
            return
        self._closed.set()
        with suppress(kafka.errors.KafkaError):
            self._consumer.close(autocommit=False, timeout_ms=_LEAVING_MS)


def _refused_session(settings: KafkaSettings) -> SettingsError:
    """The error for a session of the settings, with the brokers' limits where they tell them."""
    limits = "outside what group.min.session.timeout.ms and group.max.session.timeout.ms allow"
    with suppress(Unavailable, SettingsError), LogAdmin(settings) as admin:
        shortest_ms, longest_ms = admin.session_limits_ms()
        limits = (
            f"theirs are from {shortest_ms / 1_000:g} s (group.min.session.timeout.ms) to"
            f" {longest_ms / 1_000:g} s (group.max.session.timeout.ms)"
        )
    return SettingsError(
        f"kafka.session_s = {settings.session_s:g}: the brokers refuse such a session; {limits}"
    )


class _Counting(kafka.ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Counts assignments. It runs on the network's thread, and so does nothing else."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader

    def on_partitions_assigned(self, assigned: Any) -> None:
        self._reader.n_assignments += 1

    def on_partitions_revoked(self, revoked: Any) -> None:
        """Nothing: what is under way is settled, and changes nothing for whoever comes next."""
