"""The door to Redis: exchanges over real servers, whole or an error, within their limits."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from freshscore.config.clock import SystemClock
from freshscore.config.errors import Closed, SettingsError, Unavailable
from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_door import Lines, Nodes, ReplyError, command, errors_in
from freshscore.features.redis_keys import slot_of
from freshscore.features.redis_scripts import SCRIPTS
from freshscore.simulations.clock import VirtualClock
from tests.features.moving_slots import assign_slot
from tests.features.stored_states import NOON_MS
from tests.features.stores import SERVERS, opened_nodes, redis_settings
from tests.servers.fixtures import OwnCluster, OwnRedis
from tests.servers.ports import LOOPBACK
from tests.servers.redis_servers import RedisCluster, RedisServer


@pytest.fixture(params=SERVERS)
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    with ExitStack() as stack:
        yield opened_nodes(request, stack, request.param)


def test_each_node_answers_its_own_commands_in_order(nodes: Nodes, namespace: str) -> None:
    keys = [f"{namespace}:{{{tag}}}".encode() for tag in nodes.tags]
    with nodes.lines() as lines:
        sets = [command(b"SET", key, b"\r\n$%d" % i) for i, key in enumerate(keys)]
        assert lines.exchange(sets, [1] * nodes.n) == [[b"OK"]] * nodes.n
        gets = [command(b"GET", key) + command(b"STRLEN", key) for key in keys]
        assert lines.exchange(gets, [2] * nodes.n) == [[b"\r\n$%d" % i, 4] for i in range(nodes.n)]
        one = [gets[0], *[None] * (nodes.n - 1)]
        assert lines.exchange(one, [2, *[0] * (nodes.n - 1)])[1:] == [[]] * (nodes.n - 1)


def test_replies_come_as_bytes_integers_none_lists_and_errors(nodes: Nodes, namespace: str) -> None:
    key = f"{namespace}:{{{nodes.tags[0]}}}".encode()
    asked = [
        command(b"GET", key),
        command(b"RPUSH", key, b"a", b"b"),
        command(b"LRANGE", key, b"0", b"-1"),
        command(b"APPEND", key, b"c"),
        command(b"LLEN", key),
    ]
    with nodes.lines() as lines:
        requests = [b"".join(asked), *[None] * (nodes.n - 1)]
        replies = lines.exchange(requests, [5, *[0] * (nodes.n - 1)])[0]
    assert replies[:3] == [None, 2, [b"a", b"b"]]
    assert isinstance(replies[3], ReplyError)
    assert replies[4] == 2
    assert errors_in(replies) == {"WRONGTYPE"}
    assert errors_in(replies[:3]) == set()


def test_replies_may_be_read_later_and_in_parts(nodes: Nodes, namespace: str) -> None:
    key = f"{namespace}:{{{nodes.tags[0]}}}".encode()
    others = [None] * (nodes.n - 1)
    none = [0] * (nodes.n - 1)
    with nodes.lines() as lines:
        for n in (3, 5):
            lines.send([command(b"APPEND", key, b"x") * n, *others])
        assert lines.read([3, *none])[0] == [1, 2, 3]
        assert lines.read([5, *none])[0] == [4, 5, 6, 7, 8]


def test_megabytes_pass_both_ways(nodes: Nodes, namespace: str) -> None:
    key = f"{namespace}:{{{nodes.tags[0]}}}".encode()
    value = os.urandom(3_000_001)
    requests = [command(b"SET", key, value) + command(b"GET", key), *[None] * (nodes.n - 1)]
    with nodes.lines() as lines:
        got = lines.exchange(requests, [2, *[0] * (nodes.n - 1)])[0]
        assert got == [b"OK", value]


def test_tags_are_of_the_nodes_that_they_name(nodes: Nodes) -> None:
    assert [nodes.node_of(tag.encode()) for tag in nodes.tags] == list(range(nodes.n))
    assert Nodes.open(nodes.settings).tags == nodes.tags
    assert nodes.settings.cluster or nodes.tags == ("0",)


def test_scripts_are_there_on_every_node_and_again_after_a_flush(nodes: Nodes) -> None:
    def known() -> list[list[int]]:
        with nodes.lines() as lines:
            asked = (b"SCRIPT", b"EXISTS", *(script.digest for script in SCRIPTS))
            return [lines.ask(node, *asked) for node in range(nodes.n)]

    assert known() == [[1] * len(SCRIPTS)] * nodes.n
    with nodes.lines() as lines:
        assert [lines.ask(node, b"SCRIPT", b"FLUSH") for node in range(nodes.n)]
    tag = nodes.tags[0].encode()
    keys = [b"no:{%b}:markers" % tag, b"no:{%b}:progress" % tag]
    asked = command(b"EVALSHA", SCRIPTS[0].digest, b"2", *keys, b"1", b"")
    assert replies_to(nodes, [(tag, asked)]) == [0]


def test_a_script_that_is_run_now_and_then_finds_its_node(nodes: Nodes, namespace: str) -> None:
    for tag in nodes.tags:
        key = f"{namespace}:{{{tag}}}:x"
        script = "return redis.call('INCRBY', KEYS[1], ARGV[1])"
        assert [nodes.run_script(script, [key], [n]) for n in (2, 3)] == [2, 5]


def test_lines_are_lent_up_to_the_limit_and_no_wait_is_endless(
    request: pytest.FixtureRequest, redis_server: RedisServer
) -> None:
    settings = redis_settings(redis_server.url, max_connections=2, timeout_ms=50)
    nodes = Nodes.open(settings)
    lent = [nodes.borrow(), nodes.borrow()]
    with pytest.raises(Unavailable, match="max_connections"):
        nodes.borrow()
    nodes.give_back(lent.pop())
    with nodes.lines() as lines:
        assert lines.ask(0, b"PING") == b"PONG"
    nodes.close()
    with pytest.raises(Closed):
        nodes.borrow()
    nodes.give_back(lent.pop())


def test_a_server_that_does_not_answer_is_unavailable_within_the_limit(own_redis: OwnRedis) -> None:
    nodes = Nodes.open(redis_settings(own_redis().url, timeout_ms=100))
    clock = SystemClock()
    with nodes.lines() as lines:
        assert lines.ask(0, b"PING") == b"PONG"
        begin_s = clock.monotonic_s()
        with pytest.raises(Unavailable, match="no answer within 100 ms"):
            lines.exchange([command(b"BLPOP", b"nothing", b"0.6")], [1])
        assert clock.monotonic_s() - begin_s < 0.5
        # On a new connection, never on the one whose reply is still to come.
        assert lines.exchange([command(b"ECHO", b"mine")], [1], 5.0) == [[b"mine"]]
    nodes.close()


def test_a_restarted_server_is_found_again_without_an_error(own_redis: OwnRedis) -> None:
    server = own_redis(appendonly=True)
    nodes = Nodes.open(redis_settings(server.url))
    with nodes.lines() as lines:
        assert lines.ask(0, b"SET", b"a", b"1") == b"OK"
    server.kill()
    with nodes.lines() as lines, pytest.raises(Unavailable):
        lines.ask(0, b"GET", b"a")
    server.start()
    with nodes.lines() as lines:
        assert lines.ask(0, b"GET", b"a") == b"1"
        assert lines.attempt([command(b"GET", b"a")], [1]) == [[b"1"]]
    nodes.close()


def test_one_lost_node_does_not_hide_what_the_others_answer() -> None:
    with RedisCluster() as cluster:
        nodes = Nodes.open(redis_settings(cluster.url, cluster=True))
        pings = [command(b"PING")] * 3
        with nodes.lines() as lines:
            assert lines.exchange(pings, [1] * 3) == [[b"PONG"]] * 3
            cluster.nodes[1].kill()
            found = lines.attempt(pings, [1] * 3)
            assert [isinstance(one, Unavailable) for one in found] == [False, True, False]
            with pytest.raises(Unavailable):
                lines.exchange(pings, [1] * 3)
            live = [pings[0], None, pings[2]]
            assert lines.exchange(live, [1, 0, 1]) == [[b"PONG"], [], [b"PONG"]]
        nodes.close()


@pytest.mark.servers
def test_a_slot_that_moved_is_followed_and_both_nodes_have_other_tags(
    own_cluster: OwnCluster,
) -> None:
    """So nothing that vouches for a node's slots vouches for a slot that came to it."""
    cluster = own_cluster()
    nodes = Nodes.open(redis_settings(cluster.url, cluster=True))
    before = nodes.tags
    source = nodes.node_of(b"7")
    target = (source + 1) % 3
    assign_slot(cluster, slot_of(b"7"), cluster.primaries[target])
    assert replies_to(nodes, [(b"7", command(b"SET", b"{7}", b"x"))]) == [b"OK"]
    assert nodes.node_of(b"7") == target
    assert nodes.refresh() is False
    kept = [node for node in range(3) if nodes.tags[node] == before[node]]
    assert kept == [3 - source - target]
    assert [nodes.node_of(tag.encode()) for tag in nodes.tags] == [0, 1, 2]
    assign_slot(cluster, slot_of(b"7"), cluster.primaries[source])
    assert nodes.refresh() is True
    assert nodes.tags == before
    nodes.close()


@pytest.mark.servers
def test_a_slot_that_nobody_asks_for_is_noticed_too(own_cluster: OwnCluster) -> None:
    clock = VirtualClock(NOON_MS)
    cluster = own_cluster()
    nodes = Nodes.open(redis_settings(cluster.url, cluster=True), clock)
    source = nodes.node_of(b"7")
    target = (source + 1) % 3
    assign_slot(cluster, slot_of(b"7"), cluster.primaries[target])
    for after_ms, expected in ((4_999, source), (5_000, target)):
        clock.move_to(NOON_MS + after_ms)
        with nodes.lines():
            assert nodes.node_of(b"7") == expected
    nodes.close()


@pytest.mark.servers
def test_a_node_that_cannot_be_reached_is_looked_for(own_cluster: OwnCluster) -> None:
    """A primary that is gone answers nothing, not even where its slots are now.

    Whoever starts then asks the next that the URL names.
    """
    cluster = own_cluster(replicas=1)
    nodes = Nodes.open(redis_settings(cluster.url, cluster=True, timeout_ms=200))
    node = 0
    gone, replica = cluster.nodes[node], cluster.nodes[3 + node]
    with nodes.lines() as lines:
        assert lines.ask(node, b"PING") == b"PONG"
    gone.kill()
    replica.wait_until(replica.is_primary, 30.0)
    address = (LOOPBACK, replica.port)

    def is_found() -> bool:
        with nodes.lines() as lines, suppress(Unavailable):
            lines.ask(node, b"PING")
        return nodes.topology.addresses[node] == address

    replica.wait_until(is_found, 10.0)
    with nodes.lines() as lines:
        assert lines.ask(node, b"PING") == b"PONG"
    assert nodes.settings.parsed_url.servers[0] == (LOOPBACK, gone.port)
    begun = Nodes.open(nodes.settings)
    assert begun.topology.is_like(nodes.topology)
    begun.close()
    nodes.close()
    with pytest.raises(Unavailable):
        Nodes.open(redis_settings(gone.url, cluster=True))


@pytest.mark.servers
def test_a_server_that_evicts_is_refused(own_redis: OwnRedis) -> None:
    server = own_redis(settings=["maxmemory 64mb", "maxmemory-policy allkeys-lru"])
    with pytest.raises(SettingsError, match=r"maxmemory-policy allkeys-lru.*noeviction"):
        Nodes.open(redis_settings(server.url))


def test_passwords_users_and_kinds_are_checked_when_opened(
    own_redis: OwnRedis, redis_server: RedisServer, redis_cluster: RedisCluster
) -> None:
    rights = "~fs:* -@all +get +set +append +expire +evalsha +script|load +ping +hello +auth +info"
    server = own_redis(password="sesame")
    with server.client() as admin:
        admin.execute_command(f"ACL SETUSER fs on >right {rights}")
    host = f"127.0.0.1:{server.port}"
    wrong = r"user or password: that of redis\.url with redis\.password \(FRESHSCORE_REDIS__"
    with pytest.raises(SettingsError, match=wrong):
        Nodes.open(redis_settings(f"redis://fs:wrong@{host}/0"))
    with pytest.raises(SettingsError):
        Nodes.open(redis_settings(f"redis://{host}/0"))
    nodes = Nodes.open(redis_settings(f"redis://fs:right@{host}/0"))
    assert replies_to(nodes, [(b"0", command(b"GET", b"fs:{0}"))]) == [None]
    with pytest.raises(SettingsError, match="NOPERM"):
        replies_to(nodes, [(b"0", command(b"GET", b"other"))])
    nodes.close()
    with pytest.raises(SettingsError, match=r"redis\.cluster is true"):
        Nodes.open(redis_settings(redis_server.url, cluster=True))
    with pytest.raises(SettingsError, match=r"redis\.cluster is false"):
        Nodes.open(redis_settings(redis_cluster.url))


def test_nobody_there_is_unavailable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{taken.getsockname()[1]}/0"
        with pytest.raises(Unavailable):
            Nodes.open(redis_settings(url, timeout_ms=200))


def test_a_server_that_takes_connections_and_says_nothing_is_named_with_the_limit() -> None:
    with socket.create_server((LOOPBACK, 0)) as silent:
        port = silent.getsockname()[1]
        said = f"Redis at {LOOPBACK}:{port}: no connection within [12]?[0-9]?[0-9] ms"
        with pytest.raises(Unavailable, match=said):
            Nodes.open(redis_settings(f"redis://{LOOPBACK}:{port}/0", timeout_ms=200))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("ssl_cert_reqs=perhaps", "perhaps"),
        ("ssl_min_version=99", "TLS"),
        ("ssl_min_version=new", "ssl_min_version"),
    ],
)
def test_what_the_library_does_not_take_of_the_url_is_told(option: str, said: str) -> None:
    with socket.create_server((LOOPBACK, 0)) as listening:
        url = f"rediss://{LOOPBACK}:{listening.getsockname()[1]}/0?{option}"
        with pytest.raises(SettingsError, match=rf"redis\.url: .*{said}"):
            Nodes.open(redis_settings(url))


def test_nothing_is_sent_at_the_start_that_the_documented_user_may_not() -> None:
    """Each refusal would be a line of ACL LOG; the library would like to tell its name."""
    heard: list[bytes] = []

    def hear(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            heard.append(connection.recv(1_000))

    with socket.create_server((LOOPBACK, 0)) as listening:
        thread = threading.Thread(target=hear, args=(listening,))
        thread.start()
        with pytest.raises(Unavailable):
            Nodes.open(redis_settings(f"redis://{LOOPBACK}:{listening.getsockname()[1]}/0"))
        thread.join()
    assert b"LOAD" in heard[0]
    assert b"SETINFO" not in heard[0]


def test_threads_have_connections_of_their_own(nodes: Nodes, namespace: str) -> None:
    wrong: list[object] = []
    node, others, none = 0, [None] * (nodes.n - 1), [0] * (nodes.n - 1)

    def echo(number: int) -> None:
        for i in range(200):
            said = b"%d %d" % (number, i)
            with nodes.lines() as lines:
                heard = lines.exchange([command(b"ECHO", said), *others], [1, *none])[node]
            if heard != [said]:
                wrong.append((said, heard))

    threads = [threading.Thread(target=echo, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_of_a_fork_has_connections_of_its_own(nodes: Nodes) -> None:
    node = nodes.tags[0].encode()
    ask = [(node, command(b"CLIENT", b"ID"))]
    mine = replies_to(nodes, ask)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"%d" % replies_to(nodes, ask)[0])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        theirs = int(pipe.read())
    os.waitpid(child, 0)
    assert theirs != mine[0]
    assert replies_to(nodes, ask) == mine


class _TricklingServer:
    """Answers one byte at a time: each wait is short, and the whole is endless."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        connection, _ = self.listening.accept()
        with connection:
            connection.recv(1_000)
            connection.sendall(b"$1000000\r\n")
            while not self.ended.wait(0.01):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return


def test_a_reply_that_trickles_ends_at_the_limit_too() -> None:
    server = _TricklingServer()
    address = server.listening.getsockname()
    lines = Lines([address], socket.create_connection, SystemClock(), 0.1)
    clock = SystemClock()
    begin_s = clock.monotonic_s()
    with pytest.raises(Unavailable, match="no answer within 100 ms"):
        lines.ask(0, b"GET", b"a")
    assert clock.monotonic_s() - begin_s < 1.0
    server.ended.set()
    server.thread.join()
    server.listening.close()


class _Tries(threading.local):
    """How often a thread looked whether something had come."""

    n = 0


class _Clock(SystemClock):
    """The system's, which counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = _Tries()

    def monotonic_s(self) -> float:
        self.asked.n += 1
        return super().monotonic_s()


def test_what_is_awaited_awake_is_what_would_come_asleep(nodes: Nodes, namespace: str) -> None:
    keys = [f"{namespace}:{{{tag}}}".encode() for tag in nodes.tags]
    awake = threading.Lock()
    with nodes.lines() as lines:
        for i in range(50):
            requests = [command(b"SETRANGE", key, b"0", bytes([i]) * 200_000) for key in keys]
            gets = [command(b"GET", key) + command(b"STRLEN", key) for key in keys]
            joined = [some + more for some, more in zip(requests, gets, strict=True)]
            replies = lines.exchange(joined, [3] * nodes.n, None, awake)
            assert replies == [[200_000, bytes([i]) * 200_000, 200_000]] * nodes.n
    assert not awake.locked()


def test_a_wait_awake_is_short_and_seldom_where_nothing_comes(own_redis: OwnRedis) -> None:
    clock, awake = _Clock(), threading.Lock()
    server = own_redis()
    host, port = server.url.removeprefix("redis://").removesuffix("/0").split(":")
    lines = Lines([(host, int(port))], socket.create_connection, clock, 5.0)
    lines.ask(0, b"PING")
    # Each is answered after 20 ms: one that is waited for awake, and 16 that are not.
    late = [command(b"BLPOP", b"nothing", b"0.02")]
    looked = []
    for _ in range(18):
        before = clock.asked.n
        lines.exchange(late, [1], None, awake)
        looked.append(clock.asked.n - before)
    assert looked[0] > 3
    assert looked[17] > 3
    assert max(looked[1:17]) <= 2
    assert not awake.locked()
    with awake:
        # While another thread is awake this one sleeps.
        before = clock.asked.n
        lines.exchange(late, [1], None, awake)
        assert clock.asked.n - before <= 2
    lines.close()
