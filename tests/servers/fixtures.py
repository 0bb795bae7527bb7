"""Real servers as fixtures, for every test: a pytest plugin that tests/conftest.py names.

A test that asks for one is marked `servers` by that, and `make check` leaves it out. Where a server
is asked for by a parameter (`request.getfixturevalue`), the parameter carries the mark itself:
`pytest.param(..., marks=pytest.mark.servers)`; a test that starts one unmarked fails.
A server of the session is shared by all tests of a process: they keep apart by `namespace`, or ask
for it empty. Whoever ends servers, or fills them, takes its own.
A server that does not start is an error, never a skip.
"""

from __future__ import annotations

import collections
import contextlib
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest

# The clients are imported where a server starts: the embedded tests do without them.
if TYPE_CHECKING:
    from tests.servers.certificates import Authority
    from tests.servers.kafka_broker import KafkaBroker
    from tests.servers.redis_sentinels import RedisSentinels
    from tests.servers.redis_servers import RedisCluster, RedisServer
    from tests.servers.secured_kafka import SecuredKafka

_STARTING = frozenset(
    {"kafka", "redis_server", "redis_cluster", "own_kafka", "own_redis", "own_cluster"}
    | {"own_sentinels", "secured_kafka"}
)
Started = TypeVar("Started", "KafkaBroker", "RedisServer", "RedisCluster", "RedisSentinels")
_MAY_START: pytest.StashKey[bool] = pytest.StashKey()
# What was started, by what it said of itself, in this process and in its workers.
_STARTED: pytest.StashKey[collections.Counter[str]] = pytest.StashKey()


class OwnKafka(Protocol):
    """Starts a broker of the test's own; the arguments are KafkaBroker's."""

    def __call__(self, **options: Any) -> KafkaBroker: ...


class OwnRedis(Protocol):
    """Starts a Redis of the test's own; the arguments are RedisServer's."""

    def __call__(self, **options: Any) -> RedisServer: ...


class OwnCluster(Protocol):
    """Starts a Redis Cluster of the test's own; the arguments are RedisCluster's."""

    def __call__(self, **options: Any) -> RedisCluster: ...


class OwnSentinels(Protocol):
    """Starts Sentinels with a primary and its replica; the arguments are RedisSentinels'."""

    def __call__(self, **options: Any) -> RedisSentinels: ...


@pytest.fixture(scope="session")
def kafka(pytestconfig: pytest.Config) -> Iterator[KafkaBroker]:
    """A broker for all tests of this process; topics bear names of the test's own."""
    from tests.servers.kafka_broker import KafkaBroker

    _check_marked(pytestconfig)
    with KafkaBroker() as broker:
        _note(pytestconfig, "Apache Kafka", broker.version)
        yield broker


@pytest.fixture(scope="session")
def redis_server(pytestconfig: pytest.Config) -> Iterator[RedisServer]:
    """A Redis for all tests of this process; keys bear a prefix of the test's own."""
    from tests.servers.redis_servers import RedisServer

    _check_marked(pytestconfig)
    with RedisServer() as server:
        _note(pytestconfig, "Redis", server.version)
        yield server


@pytest.fixture(scope="session")
def redis_cluster(pytestconfig: pytest.Config) -> Iterator[RedisCluster]:
    """Three primaries for all tests of this process; keys bear a prefix of the test's own."""
    from tests.servers.redis_servers import RedisCluster

    _check_marked(pytestconfig)
    with RedisCluster() as cluster:
        _note(pytestconfig, "Redis Cluster", cluster.version)
        yield cluster


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Signs the certificates of the secured servers and their clients."""
    from tests.servers.certificates import Authority

    return Authority(tmp_path_factory.mktemp("certificates"), "authority")


@pytest.fixture(scope="session")
def secured_kafka(pytestconfig: pytest.Config, authority: Authority) -> Iterator[SecuredKafka]:
    """A broker that asks for passwords and certificates, for all tests of this process."""
    from tests.servers.secured_kafka import SecuredKafka

    _check_marked(pytestconfig)
    with SecuredKafka(authority) as broker:
        _note(pytestconfig, "Apache Kafka, secured", broker.version)
        yield broker


@pytest.fixture
def empty_redis(redis_server: RedisServer) -> RedisServer:
    """The shared Redis, with nothing in it."""
    redis_server.flush()
    return redis_server


@pytest.fixture
def empty_cluster(redis_cluster: RedisCluster) -> RedisCluster:
    """The shared Redis Cluster, with nothing in it."""
    redis_cluster.flush()
    return redis_cluster


@pytest.fixture
def own_kafka(pytestconfig: pytest.Config) -> Iterator[OwnKafka]:
    """Starts brokers that this test may kill; they end with it."""
    from tests.servers.kafka_broker import KafkaBroker

    yield from _starter(pytestconfig, "Apache Kafka", KafkaBroker)


@pytest.fixture
def own_redis(pytestconfig: pytest.Config) -> Iterator[OwnRedis]:
    """Starts Redis servers that this test may kill; they end with it."""
    from tests.servers.redis_servers import RedisServer

    yield from _starter(pytestconfig, "Redis", RedisServer)


@pytest.fixture
def own_sentinels(pytestconfig: pytest.Config) -> Iterator[OwnSentinels]:
    """Starts Sentinels whose servers this test may kill; they end with it."""
    from tests.servers.redis_sentinels import RedisSentinels

    yield from _starter(pytestconfig, "Redis with Sentinels", RedisSentinels)


@pytest.fixture
def own_cluster(pytestconfig: pytest.Config) -> Iterator[OwnCluster]:
    """Starts Redis Clusters whose nodes this test may kill; they end with it."""
    from tests.servers.redis_servers import RedisCluster

    yield from _starter(pytestconfig, "Redis Cluster", RedisCluster)


@pytest.fixture
def namespace() -> str:
    """A prefix of topics, groups and keys that nothing else has, in this run or an earlier one."""
    return f"t{uuid.uuid4().hex[:16]}"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_STARTED] = collections.Counter()
    config.stash[_MAY_START] = False


# First, for the expressions of `-m` are applied in this hook too.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _STARTING.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("servers")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.config.stash[_MAY_START] = item.get_closest_marker("servers") is not None


def pytest_sessionfinish(session: pytest.Session) -> None:
    # There in a worker of pytest-xdist: what it holds travels to the process that was called.
    sent: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    started = session.config.stash[_STARTED]
    if sent is not None:
        sent["servers"] = dict(started)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    # A worker that crashed sends nothing.
    started: collections.Counter[str] = node.config.stash[_STARTED]
    started.update(getattr(node, "workeroutput", {}).get("servers", {}))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    started = config.stash[_STARTED]
    if started:
        terminalreporter.section("servers that were started")
        for server, times in sorted(started.items()):
            terminalreporter.write_line(f"{server}: {times} x")


def _starter(
    config: pytest.Config, name: str, make: Callable[..., Started]
) -> Iterator[Callable[..., Started]]:
    """What starts any number of them; all are closed afterwards."""
    _check_marked(config)
    with contextlib.ExitStack() as servers:

        def start(**options: Any) -> Started:
            server = servers.enter_context(make(**options))
            _note(config, name, server.version)
            return server

        yield start


def _check_marked(config: pytest.Config) -> None:
    if not config.stash[_MAY_START]:
        pytest.fail("this test starts a server: mark its parameter with pytest.mark.servers")


def _note(config: pytest.Config, server: str, version: str) -> None:
    config.stash[_STARTED][f"{server} {version}"] += 1
