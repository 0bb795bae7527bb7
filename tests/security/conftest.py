"""Deployments on secured servers, and on plain ones beside them that read the same topics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.freshscore.shared_deployment import SECRET, SPECIFICATION, SharedDeployment
from tests.security.access_rules import USERNAME, documented_for_clusters, documented_user
from tests.servers.certificates import Authority
from tests.servers.fixtures import OwnCluster, OwnRedis
from tests.servers.redis_servers import RedisCluster, RedisServer, Tls
from tests.servers.secured_kafka import SecuredKafka

REDIS_PASSWORD = "five-seconds-and-a-door"
ADMIN_PASSWORD = "nobody-but-the-tests"

Settings = dict[str, Any]
Deploy = Callable[..., SharedDeployment]


class SecuredRedis(NamedTuple):
    """A server, or a cluster, that the documented user may use; as_user: the settings for that."""

    server: RedisServer | RedisCluster
    as_user: Settings


@pytest.fixture
def redis_user(namespace: str) -> str:
    """The line of redis.conf that makes the documented user."""
    return documented_user(namespace, REDIS_PASSWORD)


@pytest.fixture
def secure(
    own_redis: OwnRedis,
    own_cluster: OwnCluster,
    authority: Authority,
    redis_user: str,
) -> Callable[..., SecuredRedis]:
    """Starts a Redis with TLS and a user; user: another line; asks_clients: for certificates."""

    def start(
        *, cluster: bool = False, asks_clients: bool = False, user: str = redis_user
    ) -> SecuredRedis:
        client = authority.issued("client") if asks_clients else None
        tls = Tls(authority.ca_file, authority.issued("redis"), asks_clients, client)
        begin = own_cluster if cluster else own_redis
        line = f"{user} {documented_for_clusters()}" if cluster else user
        server = begin(tls=tls, password=ADMIN_PASSWORD, settings=[line])
        as_user = {"redis.url": server.url_of(USERNAME), "redis.password": REDIS_PASSWORD}
        return SecuredRedis(server, as_user | {"redis.cluster": cluster})

    return start


def with_password(broker: SecuredKafka) -> Settings:
    """Settings of a client with SASL_SSL and SCRAM-SHA-512."""
    return {
        "kafka.bootstrap_servers": broker.scram,
        "kafka.security_protocol": "SASL_SSL",
        "kafka.ca_file": str(broker.authority.ca_file),
        "kafka.username": broker.username,
        "kafka.password": broker.password,
    }


def with_certificate(broker: SecuredKafka) -> Settings:
    """Settings of a client that shows a certificate."""
    return {
        "kafka.bootstrap_servers": broker.mutual,
        "kafka.security_protocol": "SSL",
        "kafka.ca_file": str(broker.authority.ca_file),
        "kafka.certificate_file": str(broker.authority.issued("client")),
    }


def plain(broker: SecuredKafka) -> Settings:
    """Settings of a client of the plain listener of the same broker."""
    return {"kafka.bootstrap_servers": broker.bootstrap}


@pytest.fixture
def deploy(
    redis_server: RedisServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Deploy:
    """Makes deployments that read the same topics, each with a group and states of its own.

    The one that is called "secured" has the namespace of the documented user.
    """
    monkeypatch.setenv("FRESHSCORE_SECRET", SECRET)

    def make(name: str, settings: Settings) -> SharedDeployment:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "small.toml").write_text(SPECIFICATION, "utf-8")
        given: Settings = {
            "store.specification": str(folder / "small.toml"),
            "store.horizon_s": 3_600,
            "kafka.group": f"{namespace}-{name}",
            "kafka.partitions": 2,
            "kafka.session_s": 6.0,
            "redis.url": redis_server.url,
            "redis.namespace": namespace if name == "secured" else f"{namespace}-{name}",
            "redis.heartbeat_s": 0.05,
            "redis.lease_s": 2.0,
            "redis.compact_records": 2,
        }
        for topic in ("transactions", "labels", "decisions", "dead_letters"):
            given[f"kafka.{topic}_topic"] = f"{namespace}-{topic}"
        return SharedDeployment(folder, given | settings)

    return make
