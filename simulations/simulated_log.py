"""The log, simulated: topics, partitions, one group of consumers, producers.

A message gets the stamp of the broker's clock, which may go back a little. A poll brings any
beginning of what there is, in any cut; whoever joins or leaves moves partitions; a member that does
not know yet that it has lost one reads on, and its commits are refused. Commits get lost, messages
come twice or never.
Rule: within a partition nothing is lost once it has an offset, and offsets have no gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from freshscore.config.errors import Unavailable
from freshscore.features.memory import BYTES_AT
from freshscore.invalidation.delivery import Delivered
from freshscore.invalidation.kafka_batches import Fetched
from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.partitions import Partition
from freshscore.simulations.world_chance import Chance

Step = Callable[[str], None]
_MOST_POLLED: Final = 400


@dataclass
class LogFaults:
    """How likely each trouble is; is_down: no broker answers."""

    lost_commit: float = 0.0
    failed_poll: float = 0.0
    never_sent: float = 0.0
    doubled: float = 0.0
    is_down: bool = False

    def calm(self) -> None:
        """No more of it."""
        self.lost_commit = self.failed_poll = self.never_sent = self.doubled = 0.0
        self.is_down = False


class LogPartition:
    """Messages of one partition: values and stamps by offset."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self._spans = np.empty((64, 3), np.int64)

    def __len__(self) -> int:
        return len(self.values)

    def add(self, value: bytes, arrival_ms: int) -> int:
        """Put a message at the end; its offset."""
        n = len(self.values)
        if n == len(self._spans):
            self._spans = np.concatenate([self._spans, np.empty_like(self._spans)])
        self.values.append(value)
        self._spans[n] = id(value) + BYTES_AT, len(value), arrival_ms
        return n

    def first_arrival_ms(self, first: int) -> int | None:
        """The earliest stamp from offset `first` on; None where nothing stands there."""
        stamps = self._spans[first : len(self.values), 2]
        return int(stamps.min()) if len(stamps) else None

    def fetched(self, at: Partition, first: int, last: int) -> Fetched:
        """The messages from offset `first` to `last` - 1, as a poll hands them out."""
        spans = self._spans[first:last].copy()
        return Fetched(at, spans, np.arange(first, last), last, self.values)


class Log:
    """The topics of one deployment, and the group that reads them.

    topics: name -> partitions. now_ms: the broker's clock. came: is told of each message that has
    come to stand, where, and with which stamp.
    """

    def __init__(
        self,
        topics: Mapping[str, int],
        chance: Chance,
        now_ms: Callable[[], int],
        came: Callable[[Partition, int, bytes, int], None],
    ) -> None:
        self.partitions = {
            (name, number): LogPartition() for name, n in topics.items() for number in range(n)
        }
        self.topic_ids = {name: f"id-of-{name}" for name in topics}
        self.faults = LogFaults()
        self.chance = chance
        self.now_ms = now_ms
        self.came = came
        self.committed: dict[Partition, int] = {}
        self.generation = 0
        self.members: list[SimulatedReader] = []
        self.given: dict[Partition, SimulatedReader] = {}

    def of_topic(self, name: str) -> list[Partition]:
        """The partitions of a topic."""
        return [at for at in self.partitions if at[0] == name]

    def append(self, at: Partition, value: bytes) -> Delivered:
        """Put a message at the end of a partition, stamped now."""
        arrival_ms = self.now_ms()
        offset = self.partitions[at].add(value, arrival_ms)
        self.came(at, offset, value, arrival_ms)
        return Delivered(*at, offset, arrival_ms)

    def check_up(self) -> None:
        """Raise Unavailable where no broker answers."""
        if self.faults.is_down:
            raise Unavailable("simulated: Kafka does not answer")

    def rebalance(self) -> None:
        """Give the partitions out anew; members learn of it with their next poll."""
        self.generation += 1
        self.given = {}
        if not self.members:
            return
        order = [*self.members]
        self.chance.shuffle(order)
        read = sorted({name for one in order for name in one.topics})
        for number, at in enumerate(at for name in read for at in self.of_topic(name)):
            self.given[at] = order[number % len(order)]

    def leave(self, reader: SimulatedReader) -> None:
        """A member has left, or is thought to be dead."""
        if reader in self.members:
            self.members.remove(reader)
            self.rebalance()


class SimulatedReader(LogReader):
    """A member of the group, with the face of the real one."""

    def __init__(self, log: Log, topics: Sequence[str], step: Step) -> None:
        self.topics = tuple(topics)
        self._log = log
        self._step = step
        self._generation = -1
        self._mine: frozenset[Partition] = frozenset()
        self._positions: dict[Partition, int] = {}
        self._paused: set[Partition] = set()
        self._is_closed = False
        self.n_assignments = 0
        self.has_failed_to_commit = False
        log.members.append(self)
        log.rebalance()

    @property
    def assignment(self) -> frozenset[Partition]:
        return frozenset() if self._is_closed else self._mine

    def partitions(self, topic: str) -> tuple[int, ...]:
        return tuple(number for _, number in self._log.of_topic(topic))

    def topic_ids(self) -> dict[str, str]:
        return {name: self._log.topic_ids[name] for name in self.topics}

    def poll(self, wait_ms: int | None = None) -> list[Fetched]:
        self._step("poll")
        log = self._log
        if self._is_closed or log.faults.is_down:
            return []
        if log.faults.failed_poll and log.chance.random() < log.faults.failed_poll:
            raise Unavailable("simulated: a batch fails its check")
        if self not in log.members:
            # It was thought to be dead.
            log.members.append(self)
            log.rebalance()
        if self._generation != log.generation:
            self._join()
        brought = []
        for at in sorted(self._mine - self._paused):
            first = self._positions[at]
            n = len(log.partitions[at]) - first
            if n <= 0 or log.chance.random() < 0.2:
                continue
            last = first + min(n, log.chance.randint(1, _MOST_POLLED))
            self._positions[at] = last
            brought.append(log.partitions[at].fetched(at, first, last))
        return brought

    def _join(self) -> None:
        log = self._log
        self._generation = log.generation
        self._mine = frozenset(at for at, who in log.given.items() if who is self)
        self._positions = {at: log.committed.get(at, 0) for at in self._mine}
        self._paused.clear()
        self.n_assignments += 1

    def seek(self, partition: Partition, offset: int) -> None:
        self._positions[partition] = offset

    def pause(self, partitions: Sequence[Partition]) -> None:
        self._paused.update(partitions)

    def resume(self, partitions: Sequence[Partition]) -> None:
        self._paused.difference_update(partitions)

    def position(self, partition: Partition) -> int:
        self._asked()
        return self._positions[partition]

    def committed(self, partition: Partition) -> int | None:
        self._asked()
        return self._log.committed.get(partition)

    def beginnings(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        self._asked()
        return dict.fromkeys(partitions, 0)

    def ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        self._asked()
        return {at: len(self._log.partitions[at]) for at in partitions}

    def commit(self, positions: Mapping[Partition, int], *, wait: bool = False) -> None:
        self._step("commit")
        log = self._log
        is_stale = self._generation != log.generation or log.faults.is_down
        if is_stale or (log.faults.lost_commit and log.chance.random() < log.faults.lost_commit):
            self.has_failed_to_commit = True
            return
        log.committed.update(positions)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._log.leave(self)

    def _asked(self) -> None:
        self._step("ask the log")
        self._log.check_up()


@dataclass
class _Sent:
    """A message on its way. at: where its partitioner puts it."""

    at: Partition
    value: bytes
    done: Callable[[Delivered | None], None] | None


@dataclass
class SimulatedWriter:
    """A producer: what it takes is on its way until `deliver`, or for ever."""

    log: Log
    step: Step
    on_way: list[_Sent] = field(default_factory=list)

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        *,
        event_ms: int | None = None,
        done: Callable[[Delivered | None], None] | None = None,
    ) -> None:
        """Take a message. Any partitioning is right, so chance decides."""
        self.step("produce")
        at = self.log.chance.choice(self.log.of_topic(topic))
        self.on_way.append(_Sent(at, value, done))

    def deliver(self, n: int | None = None) -> None:
        """Bring the oldest `n` messages into the log, and say so; some twice, some never."""
        if self.log.faults.is_down:
            return
        last = len(self.on_way) if n is None else n
        going, self.on_way = self.on_way[:last], self.on_way[last:]
        faults, chance = self.log.faults, self.log.chance
        for one in going:
            told: Delivered | None = None
            if not (faults.never_sent and chance.random() < faults.never_sent):
                told = self.log.append(one.at, one.value)
                if faults.doubled and chance.random() < faults.doubled:
                    self.log.append(one.at, one.value)
            if one.done is not None:
                one.done(told)

    def flush(self, timeout_s: float) -> None:
        """Wait until all is acknowledged. Raises Unavailable."""
        self.step("flush")
        self.log.check_up()
        self.deliver()

    def close(self, timeout_s: float) -> None:
        """Send what is left."""
        self.deliver()


def ends_of(log: Log, topics: Iterable[str]) -> dict[Partition, int]:
    """The offset behind the last message of each partition of some topics."""
    return {at: len(log.partitions[at]) for name in topics for at in log.of_topic(name)}
