"""The servers of the tests are real, come back with their data, and end with the tests."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from redis.crc import key_slot

from freshscore.config.clock import SystemClock
from tests.servers.child import ServerFailed
from tests.servers.fixtures import OwnCluster, OwnKafka, OwnRedis
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.ports import free_port
from tests.servers.redis_servers import RedisCluster, RedisServer

ROOT = Path(__file__).resolve().parents[2]
_SLOTS = 16_384
_LIMIT_S = 20.0


def _send(broker: KafkaBroker, topic: str, values: list[bytes], time_ms: int | None = None) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, acks="all")
    sent = [producer.send(topic, value, timestamp_ms=time_ms) for value in values]
    producer.flush(timeout=_LIMIT_S)
    assert all(one.succeeded() for one in sent)
    producer.close()


def _read(broker: KafkaBroker, topic: str, partitions: int = 1) -> list[tuple[bytes, int, int]]:
    """(value, time in ms, kind of time) of all messages, by partition and offset."""
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest")
    places = [TopicPartition(topic, partition) for partition in range(partitions)]
    consumer.assign(places)
    n = sum(consumer.end_offsets(places).values())
    found: list[Any] = []
    clock = SystemClock()
    end_s = clock.monotonic_s() + _LIMIT_S
    while len(found) < n and clock.monotonic_s() < end_s:
        for messages in consumer.poll(timeout_ms=1000).values():
            found += messages
    consumer.close()
    found.sort(key=lambda one: (one.partition, one.offset))
    return [(one.value, one.timestamp, one.timestamp_type) for one in found]


def test_kafka_brings_back_what_was_sent(kafka: KafkaBroker, namespace: str) -> None:
    kafka.create_topic(namespace, partitions=3)
    values = [b"message %d" % i for i in range(100)]
    _send(kafka, namespace, values)
    assert sorted(value for value, _, _ in _read(kafka, namespace, 3)) == sorted(values)


def test_kafka_stamps_arrivals(kafka: KafkaBroker, namespace: str) -> None:
    """With LogAppendTime, what a producer says of the time does not count."""
    kafka.create_topic(namespace, settings={"message.timestamp.type": "LogAppendTime"})
    clock = SystemClock()
    before_ms = clock.now_ms()
    _send(kafka, namespace, [b"a", b"b"], time_ms=1)
    after_ms = clock.now_ms()
    read = _read(kafka, namespace)
    assert [kind for _, _, kind in read] == [1, 1]
    assert [value for value, time_ms, _ in read if before_ms <= time_ms <= after_ms] == [b"a", b"b"]


def test_kafka_keeps_its_messages_when_killed(own_kafka: OwnKafka, namespace: str) -> None:
    broker = own_kafka()
    broker.create_topic(namespace)
    values = [b"%d" % i for i in range(100)]
    _send(broker, namespace, values)
    place = broker.bootstrap
    broker.kill()
    broker.start()
    assert broker.bootstrap == place
    assert [value for value, _, _ in _read(broker, namespace)] == values


@pytest.mark.servers
def test_kafka_that_cannot_start_says_why() -> None:
    with (
        pytest.raises(ServerFailed, match=r"(?s)code.*process\.roles"),
        KafkaBroker(settings={"process.roles": "spectator"}),
    ):
        pass


def test_redis_brings_back_what_was_set(redis_server: RedisServer, namespace: str) -> None:
    with redis_server.client() as client:
        client.set(namespace, b"\x00\xff")
        assert client.get(namespace) == b"\x00\xff"


def test_an_empty_redis_is_empty(redis_server: RedisServer, empty_redis: RedisServer) -> None:
    with redis_server.client() as client:
        assert client.dbsize() == 0
        client.set("a", 1)
        empty_redis.flush()
        assert client.dbsize() == 0


@pytest.mark.parametrize("appendonly", [True, False])
@pytest.mark.parametrize("end", ["kill", "stop"])
def test_redis_keeps_its_keys_if_append_only(
    own_redis: OwnRedis, appendonly: bool, end: str
) -> None:
    server = own_redis(appendonly=appendonly)
    with server.client() as client:
        client.set("a", b"1")
    url = server.url
    getattr(server, end)()
    server.start()
    with server.client() as client:
        assert client.get("a") == (b"1" if appendonly else None)
    assert server.url == url


def test_redis_takes_its_settings(own_redis: OwnRedis) -> None:
    server = own_redis(password="open-sesame", settings=["maxmemory 64mb"])
    with server.client() as client:
        assert client.config_get("maxmemory") == {"maxmemory": str(64 << 20)}
    assert server.url == f"redis://:open-sesame@127.0.0.1:{server.port}/0"


@pytest.mark.servers
def test_redis_that_cannot_start_says_why() -> None:
    server = RedisServer(settings=["no-such-setting yes"])
    with pytest.raises(ServerFailed, match=r"(?s)ended by itself.*no-such-setting"), server:
        pass
    assert not server.is_running
    assert not server.log.exists()


def test_cluster_takes_keys_of_all_slots(
    redis_cluster: RedisCluster, empty_cluster: RedisCluster
) -> None:
    keys: dict[int, str] = {}
    for number in range(100 * _SLOTS):
        keys.setdefault(key_slot(str(number).encode()), str(number))
        if len(keys) == _SLOTS:
            break
    assert len(keys) == _SLOTS
    with redis_cluster.client() as client:
        pipeline = client.pipeline()
        for key in keys.values():
            pipeline.set(key, key)
        assert all(pipeline.execute())
        assert client.mget_nonatomic(*keys.values()) == [key.encode() for key in keys.values()]
    assert sorted(map(_size, redis_cluster.primaries)) == [5461, 5461, 5462]
    empty_cluster.flush()
    assert [_size(node) for node in redis_cluster.primaries] == [0, 0, 0]


def _size(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.dbsize())


def test_a_replica_takes_over_from_a_killed_primary(own_cluster: OwnCluster) -> None:
    cluster = own_cluster(replicas=1)
    with cluster.client() as client:
        for i in range(100):
            client.set(f"key {i}", i)
    first, replica = cluster.nodes[0], cluster.nodes[3]
    held = _size(first)
    replica.wait_until(lambda: _size(replica) == held, _LIMIT_S)
    first.kill()
    replica.wait_until(replica.is_primary, _LIMIT_S)
    assert held > 0
    assert _size(replica) == held
    cluster.wait_until_ok()
    first.start()
    first.wait_until(first.follows, _LIMIT_S)


@pytest.mark.servers
def test_servers_end_with_a_test_process_that_is_killed(tmp_path: Path) -> None:
    """And the next one finds the folder that was left behind, and removes it."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    program = (
        "from tests.servers.redis_servers import RedisServer\n"
        "with RedisServer() as server:\n"
        "    print(server.pid, flush=True)\n"
        "    input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as tests:
        assert tests.stdout is not None
        server = os.pidfd_open(int(tests.stdout.readline()))
        assert not select.select([server], [], [], 0)[0]
        tests.kill()
        # Readable once the process has ended.
        assert select.select([server], [], [], _LIMIT_S)[0]
        os.close(server)
    assert [path.is_dir() for path in tmp_path.iterdir()] == [True]
    following = "from tests.servers.folder import Folder\nFolder().remove()"
    subprocess.run([sys.executable, "-c", following], cwd=ROOT, env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_claimed_port_is_given_once() -> None:
    ports = [free_port() for _ in range(50)]
    assert len({port.number for port in ports}) == len(ports)
    assert all(20_000 <= port.number < 32_768 for port in ports)
    for port in ports:
        port.release()


_ASKING = """
import pytest

def test_asks(redis_server):
    pass

def test_asks_twice(own_redis):
    own_redis()
    own_redis()

@pytest.mark.parametrize("name", ["redis_server"])
def test_forgot_the_mark(request, name):
    request.getfixturevalue(name)

@pytest.mark.parametrize("name", [pytest.param("redis_server", marks=pytest.mark.servers)])
def test_has_the_mark(request, name):
    request.getfixturevalue(name)

def test_without():
    pass
"""


def _pytest(folder: Path, *options: str) -> str:
    (folder / "test_asking.py").write_text(_ASKING, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = servers\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "tests.servers.fixtures", "-c"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, str(folder / "pytest.ini"), "-p", "no:cacheprovider", *options, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=folder,
        timeout=120,
    )
    return done.stdout


@pytest.mark.servers
@pytest.mark.parametrize(("workers", "shared"), [("0", 1), ("2", 2)])
def test_started_servers_are_told_with_their_versions(
    tmp_path: Path, redis_server: RedisServer, workers: str, shared: int
) -> None:
    """By this process and by its workers; one shared server in each process that asked."""
    said = _pytest(tmp_path, "-m", "servers", "-n", workers, "--dist", "each")
    assert f"Redis {redis_server.version}: {3 * shared} x" in said
    assert f"{3 * shared} passed" in said


def test_tests_without_servers_start_none(tmp_path: Path) -> None:
    """`make check`: what asks for a server is left out, or fails where it hides that it does."""
    said = _pytest(tmp_path, "-m", "not servers", "-n", "0")
    assert "1 failed, 1 passed, 3 deselected" in said
    assert "mark its parameter" in said
    assert "servers that were started" not in said
