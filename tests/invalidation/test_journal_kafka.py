"""A real broker goes away and comes back, and senders are killed: everything arrives."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from freshscore.config.settings import KafkaSettings
from freshscore.invalidation.delivery import Delivered
from freshscore.invalidation.journalled_log import JournalledLog
from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.kafka_writing import LogWriter
from tests.invalidation.journal_worlds import KEY_ID, NOW_MS, ROOMY
from tests.servers.fixtures import OwnKafka
from tests.servers.kafka_broker import KafkaBroker

_LIMIT_S = 60.0
_LIMIT_POLLS = 100

_PROCESS = """
import sys, threading
from pathlib import Path
from freshscore.config.settings import KafkaSettings
from freshscore.invalidation.journal_limits import JournalLimits
from freshscore.invalidation.journalled_log import JournalledLog
from freshscore.invalidation.kafka_writing import LogWriter
bootstrap, topic, folder, key_id = sys.argv[1:]
limits = JournalLimits(1 << 24, 0.1, 10**9, 10**5, 1 << 22, 500)
writer = LogWriter(KafkaSettings(bootstrap_servers=bootstrap, request_timeout_s=5.0), wait=False)
log = JournalledLog.open(Path(folder), key_id, limits, writer)
for line in sys.stdin:
    told, *numbers = line.split()
    if told == "send":
        for n in range(*map(int, numbers)):
            log.send(topic, b"key-%d" % n, b"%d" % n)
    elif told == "flush":
        log.flush(60.0)
        while not log.sender.is_done:
            threading.Event().wait(0.02)
    else:
        log.close(10.0)
    print(told, log.counts, flush=True)
"""


class Sender:
    """A process with a journal, which does as it is told."""

    def __init__(self, kafka: KafkaBroker, topic: str, folder: Path) -> None:
        arguments = [kafka.bootstrap, topic, str(folder), KEY_ID]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROCESS, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def told(self, command: str) -> str:
        """Its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer.startswith(command.split()[0]), answer
        return answer

    def kill(self) -> None:
        """As kill -9 does; harmless where it has ended."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def senders() -> Iterator[list[Sender]]:
    begun: list[Sender] = []
    yield begun
    for one in begun:
        one.kill()


def _values(kafka: KafkaBroker, topic: str, at_least: int) -> Counter[int]:
    """What stands in a topic of two partitions."""
    reader = LogReader(KafkaSettings(bootstrap_servers=kafka.bootstrap), [topic], group=None)
    reader.assign([(topic, 0), (topic, 1)])
    found: Counter[int] = Counter()
    n_quiet = 0
    for _ in range(_LIMIT_POLLS):
        n_before = found.total()
        for one in reader.poll(100):
            found.update(int(one.value(i)) for i in range(len(one)))
        n_quiet = 0 if found.total() > n_before else n_quiet + 1
        if len(found) >= at_least and n_quiet >= 5:
            break
    reader.close()
    return found


def test_the_broker_goes_and_a_sender_is_killed_and_everything_arrives(
    own_kafka: OwnKafka, namespace: str, tmp_path: Path, senders: list[Sender]
) -> None:
    broker = own_kafka()
    broker.create_topic(namespace, partitions=2)
    folder = tmp_path / "journal"
    senders.append(Sender(broker, namespace, folder))
    senders[0].told("send 0 2000")
    senders[0].told("flush")
    broker.kill()
    senders[0].told("send 2000 4000")
    senders[0].kill()
    # Kafka is away when it begins.
    senders.append(Sender(broker, namespace, folder))
    senders[1].told("send 4000 5000")
    broker.start()
    print(senders[1].told("flush"))
    senders[1].told("close")
    found = _values(broker, namespace, 5_000)
    assert {*found} == {*range(5_000)}
    # What the log had was not sent again, the last mark aside.
    n_doubled = found.total() - len(found)
    print(f"{n_doubled} of 5,000 stand twice in the log")
    assert not any(found[n] > 1 for n in range(2_000))
    assert [*folder.iterdir()] == []


def test_a_sender_killed_at_full_speed_loses_nothing(
    kafka: KafkaBroker, namespace: str, tmp_path: Path, senders: list[Sender]
) -> None:
    """Between the append and the broker's answer: in the client's memory, and on the disk."""
    kafka.create_topic(namespace, partitions=2)
    folder = tmp_path / "journal"
    for n in range(2):
        sender = Sender(kafka, namespace, folder)
        senders.append(sender)
        # The client has not sent what it was handed last.
        sender.told(f"send {1_000 * n} {1_000 * (n + 1)}")
        sender.kill()
    senders.append(Sender(kafka, namespace, folder))
    senders[-1].told("flush")
    senders[-1].told("close")
    assert {*_values(kafka, namespace, 2_000)} == {*range(2_000)}
    assert [*folder.iterdir()] == []


def test_whoever_sent_is_told_where_it_stands(
    kafka: KafkaBroker, namespace: str, tmp_path: Path
) -> None:
    """The stamp of the broker comes back, as from the writer alone."""
    kafka.create_topic(
        namespace, partitions=1, settings={"message.timestamp.type": "LogAppendTime"}
    )
    told: list[Delivered | None] = []
    writer = LogWriter(KafkaSettings(bootstrap_servers=kafka.bootstrap))
    log = JournalledLog.open(tmp_path, KEY_ID, ROOMY, writer)
    for n in range(10):
        log.send(namespace, None, b"%d" % n, done=told.append)
    log.flush(_LIMIT_S)
    there = [one for one in told if one is not None]
    assert [one.offset for one in there] == [*range(10)]
    assert min(one.arrival_ms for one in there) > NOW_MS
    log.close(_LIMIT_S)
