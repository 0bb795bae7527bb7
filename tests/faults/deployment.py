"""A deployment of its own on real servers: topics, states, and consumers and scorers to kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import redis
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from freshscore.config.clock import SystemClock
from freshscore.config.secret import Secret
from freshscore.config.settings import RedisSettings
from freshscore.features.packing import Keys, Packer
from freshscore.features.program import compiled
from freshscore.features.redis_door import Nodes
from freshscore.features.redis_store import RedisStore
from freshscore.features.specification import FeatureSpecification
from freshscore.features.store import StoreLimits
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.redis_sentinels import RedisSentinels
from tests.servers.redis_servers import RedisCluster, RedisServer

ROOT: Final = Path(__file__).resolve().parents[2]
SPECIFICATION: Final = Path(__file__).parent / "specification.toml"
MATERIAL: Final = b"the faults of real servers......"
SECRET: Final = Secret(MATERIAL, "these tests")
DAY_MS: Final = 86_400_000
_LAUNCHER: Final = (sys.executable, "-m", "tests.faults.launcher")
_STEP_S: Final = 0.02


class TimedOut(AssertionError):
    """What was waited for did not come."""


def wait_until(holds: Callable[[], bool], what: str, limit_s: float = 40.0) -> None:
    """Ask every 20 ms until it holds; TimedOut after `limit_s`."""
    clock, never = SystemClock(), threading.Event()
    end_s = clock.monotonic_s() + limit_s
    while not holds():
        if clock.monotonic_s() > end_s:
            raise TimedOut(f"not within {limit_s} s: {what}")
        never.wait(_STEP_S)


def pause(wait_s: float) -> None:
    """Let a stream flow for so long: what a kill falls into is chosen by a seed."""
    threading.Event().wait(wait_s)


class Launcher:
    """The process that consumers are forked from (tests/faults/launcher.py)."""

    def __init__(self, specification: str = str(SPECIFICATION)) -> None:
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *_LAUNCHER, specification],
            cwd=ROOT,
            env={**os.environ, "FRESHSCORE_SECRET": MATERIAL.hex()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == {"ready": True}

    def ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one order."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the launcher has ended"
        return dict(json.loads(line))

    def close(self) -> None:
        """End it, and its children with it."""
        self._process.kill()
        self._process.communicate()


class Process:
    """A consumer or a scorer that runs.

    order: what the launcher is to start. begun: what it says once it has found its servers.
    """

    def __init__(
        self, launcher: Launcher, order: Mapping[str, Any], log: Path, begun: bytes
    ) -> None:
        self._launcher = launcher
        self.log = log
        self._begun = begun
        self.pid = int(launcher.ask({**order, "log": str(log)})["pid"])

    def end(self, how: signal.Signals | None, limit_s: float = 30.0) -> int:
        """Send it a signal, or none, and wait for its end; its exit code, or -signal."""
        # Not reaped until it is waited for, so the id is still its own.
        if how is not None:
            os.kill(self.pid, how)
        status = self._launcher.ask({"wait": self.pid, "limit_s": limit_s})["status"]
        if status is None:
            raise TimedOut(f"a process did not end within {limit_s} s:\n{self.tail()}")
        return int(status)

    def send(self, how: signal.Signals) -> None:
        """Send it a signal that does not end it."""
        os.kill(self.pid, how)

    @property
    def has_begun(self) -> bool:
        """Whether it has found its servers, and works."""
        return self.log.exists() and self._begun in self.log.read_bytes()

    def tail(self) -> str:
        """The end of what it said."""
        return "\n".join(self.log.read_text("utf-8", errors="replace").splitlines()[-30:])


class Position(NamedTuple):
    """Where a message stands."""

    topic: str
    partition: int
    offset: int


class Logged(NamedTuple):
    """A message of a topic as it was read back."""

    at: Position
    stamp_ms: int
    value: bytes | None


class Ground:
    """What messages are made and read with: topics, keys and limits, without any server."""

    def __init__(self, name: str, horizon_s: int = 3) -> None:
        self.name = name
        self.specification = FeatureSpecification.named(str(SPECIFICATION))
        self.program = compiled(self.specification)
        self.keys = Keys(self.program, SECRET)
        self.packer = Packer(self.program, self.keys)
        self.horizon_ms, self.skew_ms = 1_000 * horizon_s, 60_000
        self.max_message_bytes = 2_000
        self.transactions, self.labels = f"{name}-transactions", f"{name}-labels"
        self.decisions, self.letters = f"{name}-decisions", f"{name}-dead-letters"

    @property
    def sources(self) -> tuple[str, str]:
        """The topics that are consumed."""
        return self.transactions, self.labels


class Deployment(Ground):
    """Topics, a namespace and a group that nothing else has, on servers that others may share."""

    def __init__(
        self,
        broker: KafkaBroker,
        redis: RedisServer | RedisCluster | RedisSentinels,
        launcher: Launcher,
        name: str,
        folder: Path,
        *,
        n_partitions: int = 3,
        horizon_s: int = 3,
        **settings: Any,
    ) -> None:
        super().__init__(name, horizon_s)
        self.broker = broker
        self.redis = redis
        self.folder = folder
        self.n_partitions = n_partitions
        self._launcher = launcher
        self._n_processes = 0
        self.processes: list[Process] = []
        self.scorers: list[Process] = []
        # What each scorer told of its payments, outside of what is searched for identifiers.
        self.scorers_told: list[Path] = []
        self.settings: dict[str, object] = {
            "store.specification": str(SPECIFICATION),
            "store.horizon_s": horizon_s,
            "store.skew_s": self.skew_ms // 1_000,
            "kafka.bootstrap_servers": broker.bootstrap,
            "kafka.transactions_topic": self.transactions,
            "kafka.labels_topic": self.labels,
            "kafka.decisions_topic": self.decisions,
            "kafka.dead_letters_topic": self.letters,
            "kafka.group": name,
            "kafka.session_s": 1.0,
            "kafka.commit_every_s": 0.1,
            "kafka.max_poll_records": 200,
            "kafka.max_message_bytes": self.max_message_bytes,
            "kafka.clock_error_ms": 200,
            "kafka.request_timeout_s": 10,
            "redis.url": redis.url,
            "redis.cluster": isinstance(redis, RedisCluster),
            "redis.namespace": name,
            "redis.heartbeat_s": 0.1,
            "redis.lease_s": 5.0,
            "redis.compact_records": 4,
            "redis.label_index_days": 4,
            **{key.replace("__", "."): value for key, value in settings.items()},
        }
        self.make_sources()
        for topic in (self.decisions, self.letters):
            broker.create_topic(topic, partitions=2)

    def make_sources(self) -> None:
        """Make the topics that are consumed."""
        for topic in self.sources:
            self.broker.create_topic(
                topic,
                partitions=self.n_partitions,
                settings={"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"},
            )

    def start(self, *words: str) -> Process:
        """A consumer in a process of its own; `words` go behind its command."""
        self._n_processes += 1
        told = [f"--settings={key}={json.dumps(value)}" for key, value in self.settings.items()]
        log = self.folder / f"consumer-{self._n_processes}.log"
        command = ["consume", "--profile", "shared", *told, *words]
        begun = b"consuming as group"
        self.processes.append(Process(self._launcher, {"start": command}, log, begun))
        return self.processes[-1]

    def start_scorer(
        self, mark: str, seed: int, told: Path, every_s: float, deadline_ms: float
    ) -> Process:
        """A scorer in a process of its own (tests/faults/scorer_process.py)."""
        number = len(self.scorers_told)
        self.scorers_told.append(told)
        order = {
            "settings": self.settings,
            "name": self.name,
            "horizon_s": self.horizon_ms // 1_000,
            "mark": mark,
            "seed": seed,
            "number": number,
            "told": str(told),
            "every_s": every_s,
            "deadline_ms": deadline_ms,
        }
        log = self.folder / f"scorer-{number}.log"
        self.scorers.append(Process(self._launcher, {"score": order}, log, b"scoring\n"))
        return self.scorers[-1]

    def begin(self, members: int = 1) -> list[Process]:
        """Consumers that have found their servers: from here on they must get by on their own."""
        started = [self.start() for _ in range(members)]
        wait_until(lambda: all(one.has_begun for one in started), "the consumers have begun")
        return started

    def end(self, process: Process, how: signal.Signals | None) -> None:
        """End a consumer as told, or let it end, and see that it ends as it should."""
        self.processes.remove(process)
        status = process.end(how)
        wanted = {-signal.SIGKILL} if how == signal.SIGKILL else {0}
        if how == signal.SIGTERM and not process.has_begun:
            # It had not begun: nothing is to be settled yet.
            wanted.add(-signal.SIGTERM)
        assert status in wanted, f"it ended with {status}, not {wanted}:\n{process.tail()}"

    def stop_all(self) -> None:
        """End all consumers in order."""
        for process in [*self.processes]:
            self.end(process, signal.SIGTERM)

    def kill_all(self) -> None:
        """End all consumers and scorers at once, whatever they are about."""
        for processes in (self.processes, self.scorers):
            while processes:
                processes.pop().end(signal.SIGKILL)

    def read(self, topic: str) -> list[Logged]:
        """All that a topic holds, by partition and offset."""
        with self._reader() as consumer:
            numbers = sorted(consumer.partitions_for_topic(topic) or ())
            places = [TopicPartition(topic, number) for number in numbers]
            consumer.assign(places)
            consumer.seek_to_beginning()
            ends = consumer.end_offsets(places)
            found: list[Logged] = []

            def is_whole() -> bool:
                for messages in consumer.poll(timeout_ms=200).values():
                    for one in messages:
                        at = Position(one.topic, one.partition, one.offset)
                        found.append(Logged(at, one.timestamp, one.value))
                return all(consumer.position(place) >= ends[place] for place in places)

            wait_until(is_whole, f"reading {topic}")
        return sorted(found)

    def ends(self) -> dict[tuple[str, int], int]:
        """The end of each partition of the sources."""
        with self._reader() as consumer:
            places = [TopicPartition(t, n) for t in self.sources for n in range(self.n_partitions)]
            return {
                (at.topic, at.partition): end for at, end in consumer.end_offsets(places).items()
            }

    def committed(self) -> dict[tuple[str, int], int]:
        """The offsets that the group has committed; none while the broker cannot tell."""
        try:
            with self.broker.admin() as admin:
                found = admin.list_group_offsets(self.name)
        except KafkaError:
            return {}
        return {
            (at.topic, at.partition): one.offset for at, one in found.get(self.name, {}).items()
        }

    def wait_until_done(self, limit_s: float = 30.0) -> None:
        """Until the group has committed all that there is."""
        ends = {at: end for at, end in self.ends().items() if end}
        held: dict[tuple[str, int], int] = {}

        def is_done() -> bool:
            held.update(self.committed())
            return all(held.get(at, 0) >= end for at, end in ends.items())

        try:
            wait_until(is_done, "all is committed", limit_s)
        except TimedOut as late:
            logs = sorted(self.folder.glob("consumer-*.log"), key=lambda log: log.stat().st_mtime)
            said = logs[-1].read_text("utf-8", errors="replace")[-3_000:] if logs else ""
            raise TimedOut(f"{late}; {held} of {ends}; the last consumer said:\n{said}") from late

    def wait_until_whole(self, limit_s: float = 30.0) -> None:
        """Until all that there is was committed, and the node has its epoch."""
        self.wait_until_done(limit_s)
        wait_until(lambda: self.epoch() is not None, "the node has its epoch", limit_s)

    def topic_ids(self) -> dict[str, str]:
        """Name -> id of the sources."""
        with self.broker.admin() as admin:
            described = admin.describe_topics([*self.sources])
        return {one["name"]: str(one["topic_id"]) for one in described}

    @contextmanager
    def store(self) -> Iterator[RedisStore]:
        """The states as a process of its own would read them."""
        clock = SystemClock()
        nodes = Nodes.open(self.redis_settings, clock)
        limits = StoreLimits(10**5, 10**6, 16_384, self.horizon_ms, 1 << 26)
        try:
            yield RedisStore(self.program, self.keys, limits, nodes, clock)
        finally:
            nodes.close()

    @property
    def redis_settings(self) -> RedisSettings:
        """Where the states are."""
        is_cluster = isinstance(self.redis, RedisCluster)
        return RedisSettings(url=self.redis.url, namespace=self.name, cluster=is_cluster)

    def n_folded(self) -> int:
        """How many keys there are of what was folded and may have to be taken out again."""
        with self.redis.client() as client:
            pattern = f"{self.name}:{{*}}:*:p???"
            return sum(1 for _ in client.scan_iter(match=pattern, count=1_000))

    def epoch(self) -> bytes | None:
        """The epochs of all nodes; None while one has none, or is away."""
        n_nodes = len(self.servers)
        try:
            with self.redis.client() as client:
                markers = sorted(
                    client.scan_iter(match=f"{self.name}:{{*}}:markers:*", count=1_000)
                )
                found: list[Any] = [client.hget(key, "epoch") for key in markers]
        except redis.RedisError:
            return None
        return None if len(found) < n_nodes or None in found else b" ".join(found)

    @property
    def servers(self) -> list[RedisServer]:
        """The server that is the primary now, or those that a cluster began with as primaries."""
        if isinstance(self.redis, RedisSentinels):
            return [self.redis.primary]
        return self.redis.primaries if isinstance(self.redis, RedisCluster) else [self.redis]

    def remove(self) -> None:
        """Give up its topics and states, which in the hundredth round of a soak weigh."""
        self.kill_all()
        with self.broker.admin() as admin:
            admin.delete_topics([*self.sources, self.decisions, self.letters])
        self.redis.flush()

    @contextmanager
    def _reader(self) -> Iterator[Any]:
        consumer = KafkaConsumer(
            bootstrap_servers=self.broker.bootstrap,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            reconnect_backoff_max_ms=200,
            check_crcs=False,
        )
        try:
            yield consumer
        finally:
            consumer.close()
