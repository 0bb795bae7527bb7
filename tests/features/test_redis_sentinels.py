"""The primary that Sentinels name is found, and found again when another one takes its place."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest
from pydantic import SecretStr

from freshscore.config.clock import SystemClock
from freshscore.config.errors import SettingsError, Unavailable
from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_door import Nodes, command
from tests.features.stores import redis_settings
from tests.servers.certificates import Authority
from tests.servers.fixtures import OwnRedis, OwnSentinels
from tests.servers.ports import LOOPBACK
from tests.servers.redis_sentinels import PRIMARY, RedisSentinels
from tests.servers.redis_servers import ReplicatedRedis, Tls
from tests.servers.server import address

_KEY = b"fs:{0}"


def put(nodes: Nodes, value: bytes) -> Any:
    return replies_to(nodes, [(b"0", command(b"SET", _KEY, value))])[0]


def got(nodes: Nodes) -> Any:
    return replies_to(nodes, [(b"0", command(b"GET", _KEY))])[0]


@contextmanager
def opened(url: str, **given: Any) -> Iterator[Nodes]:
    with closing(Nodes.open(redis_settings(url, **{"timeout_ms": 3_000, **given}))) as nodes:
        yield nodes


def wait_until_written(nodes: Nodes, server: ReplicatedRedis, value: bytes) -> None:
    """Until a write arrives on `server`, which takes the other's place."""

    def is_written() -> bool:
        with suppress(Unavailable):
            return bool(put(nodes, value) == b"OK" and nodes.topology.addresses == place)
        return False

    place = ((LOOPBACK, server.port),)
    server.wait_until(is_written, 30.0)


def test_a_replica_takes_over_and_one_sentinel_is_enough(own_sentinels: OwnSentinels) -> None:
    """Lines that were lent before know that they are to another server."""
    redis = own_sentinels()
    primary, replica = redis.nodes
    with opened(redis.url) as nodes:
        assert nodes.tags == ("0",)
        before = nodes.topology
        assert before.addresses == ((LOOPBACK, primary.port),)
        assert put(nodes, b"kept") == b"OK"
        replica.wait_until(lambda: replica.client().get(_KEY) == b"kept", 10.0)
        with nodes.lines() as lent:
            lent.ask(0, b"PING")
            primary.kill()
            # Two of three still agree; the first of the URL is gone for good.
            redis.sentinels[0].kill()
            wait_until_written(nodes, replica, b"after")
            primary.start()
            # It takes itself for a primary until a Sentinel sees it; nobody goes back to it.
            with pytest.raises(Unavailable, match="has been replaced"):
                lent.ask(0, b"PING")
        assert got(nodes) == b"after"
        assert nodes.tags == ("0",)
        assert nodes.topology is not before
    with opened(redis.url) as nodes:
        assert nodes.topology.addresses == ((LOOPBACK, replica.port),)


@pytest.mark.soak
def test_a_failover_that_an_operator_asks_for(own_sentinels: OwnSentinels) -> None:
    """The old primary lives on as a replica: it refuses writes, and is left.

    Sentinels look at a healthy replica every ten seconds only.
    """
    redis = own_sentinels(n_sentinels=1)
    primary, replica = redis.nodes
    with opened(redis.url) as nodes:
        put(nodes, b"before")
        redis.sentinels[0].wait_until(redis.sentinels[0].hands_over, 30.0)
        wait_until_written(nodes, replica, b"after")
        primary.wait_until(lambda: primary.follows() and not primary.is_primary(), 30.0)
        assert got(nodes) == b"after"


def test_a_sentinel_that_hangs_costs_its_share_of_the_time(own_sentinels: OwnSentinels) -> None:
    redis = own_sentinels()
    clock = SystemClock()
    os.kill(redis.sentinels[0].pid, signal.SIGSTOP)
    begin_s = clock.monotonic_s()
    with opened(redis.url, timeout_ms=3_000) as nodes:
        assert 1.0 <= clock.monotonic_s() - begin_s < 3.0
        assert put(nodes, b"x") == b"OK"


def test_who_waits_for_a_reply_does_not_wait_for_sentinels(own_sentinels: OwnSentinels) -> None:
    """A score has its deadline, whatever has become of the servers."""
    redis = own_sentinels(n_sentinels=1)
    clock = SystemClock()
    with opened(redis.url, timeout_ms=2_000) as nodes:
        put(nodes, b"x")
        os.kill(redis.sentinels[0].pid, signal.SIGSTOP)
        redis.nodes[0].kill()
        with nodes.lines() as lines:
            begin_s = clock.monotonic_s()
            with pytest.raises(Unavailable):
                lines.exchange([command(b"GET", _KEY)], [1], 0.1)
            assert clock.monotonic_s() - begin_s < 0.5


def test_sentinels_and_servers_with_tls_and_passwords_of_their_own(
    own_sentinels: OwnSentinels, authority: Authority
) -> None:
    tls = Tls(authority.ca_file, authority.issued("redis"))
    redis = own_sentinels(n_sentinels=1, tls=tls, password="of-servers", sentinel_password="other")
    given: dict[str, Any] = {
        "password": SecretStr("of-servers"),
        "sentinel_password": SecretStr("other"),
        "timeout_ms": 10_000,
    }
    with opened(redis.url, **given) as nodes:
        assert put(nodes, b"x") == b"OK"
        replica = redis.fail_over()
        wait_until_written(nodes, replica, b"after")
    said = r"redis\.sentinel_username with redis\.sentinel_password \(FRESHSCORE_REDIS__SENTINEL_P"
    for wrong in ("not-this-one", None):
        secret = None if wrong is None else SecretStr(wrong)
        with pytest.raises(SettingsError, match=r"redis\.sentinel_password") as told:
            Nodes.open(redis_settings(redis.url, **given | {"sentinel_password": secret}))
        assert "other" not in str(told.value)
    with pytest.raises(SettingsError, match=said):
        Nodes.open(
            redis_settings(redis.url, **given | {"sentinel_password": SecretStr("of-servers")})
        )
    with pytest.raises(SettingsError, match=r"redis\.url with redis\.password"):
        Nodes.open(redis_settings(redis.url, **given | {"password": SecretStr("other")}))


def test_a_new_primary_that_evicts_is_refused_and_the_refusal_is_told(
    own_sentinels: OwnSentinels,
) -> None:
    redis = own_sentinels(n_sentinels=1)
    with opened(redis.url) as nodes:
        put(nodes, b"x")
        with redis.nodes[1].client() as replica:
            replica.config_set("maxmemory-policy", "allkeys-lru")
        redis.fail_over()
        lines = nodes.borrow()

        def is_told() -> bool:
            try:
                lines.ask(0, b"PING")
            except SettingsError as told:
                return "maxmemory-policy allkeys-lru" in str(told)
            except Unavailable:
                return False
            return False

        redis.nodes[1].wait_until(is_told, 10.0)
        nodes.give_back(lines)
        with pytest.raises(SettingsError, match="maxmemory-policy allkeys-lru"):
            got(nodes)


def test_what_the_url_has_wrong_is_told(own_sentinels: OwnSentinels, own_redis: OwnRedis) -> None:
    redis: RedisSentinels = own_sentinels(n_sentinels=1)
    wrong = redis.url.replace(PRIMARY, "another")
    with pytest.raises(Unavailable, match=r"knows no primary that is called another"):
        Nodes.open(redis_settings(wrong))
    plain = own_redis()
    with pytest.raises(SettingsError, match=r"is no Sentinel"):
        Nodes.open(redis_settings(f"redis+sentinel://{address(plain)}/{PRIMARY}"))
    # The other way round.
    with pytest.raises(SettingsError, match=r"is a Sentinel"):
        Nodes.open(redis_settings(f"redis://{address(redis.sentinels[0])}"))
