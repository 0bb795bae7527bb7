"""Deployments on secured servers, and on plain ones beside them that read the same topics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.freshscore.shared_deployment import SECRET, SPECIFICATION
from tests.security.access_rules import ROLES, Role, redis_lines, username
from tests.security.guarded import Guarded, Settings
from tests.servers.certificates import Authority
from tests.servers.fixtures import OwnCluster, OwnRedis
from tests.servers.redis_servers import RedisCluster, RedisServer, Tls
from tests.servers.secured_kafka import SecuredKafka

REDIS_PASSWORD = "five-seconds-and-a-door"
ADMIN_PASSWORD = "nobody-but-the-tests"

Deploy = Callable[..., Guarded]


class SecuredRedis(NamedTuple):
    """A server, a cluster, or one with Sentinels, that has the users of config/deploy.

    roles: for each the settings with which its process is that user.
    """

    server: RedisServer | RedisCluster
    roles: dict[Role, Settings]


@pytest.fixture
def secure(
    own_redis: OwnRedis,
    own_cluster: OwnCluster,
    authority: Authority,
    namespace: str,
) -> Callable[..., SecuredRedis]:
    """Starts a Redis with TLS and users.

    without: a command that all of them lack; asks_clients: for certificates.
    """

    def start(
        *, cluster: bool = False, asks_clients: bool = False, without: str | None = None
    ) -> SecuredRedis:
        client = authority.issued("client") if asks_clients else None
        tls = Tls(authority.ca_file, authority.issued("redis"), asks_clients, client)
        begin = own_cluster if cluster else own_redis
        lines = redis_lines(
            "redis-users.conf", password=REDIS_PASSWORD, namespace=namespace, without=without
        )
        server = begin(tls=tls, password=ADMIN_PASSWORD, settings=lines)
        return SecuredRedis(server, {role: as_role(server, role, cluster) for role in ROLES})

    return start


def as_role(server: RedisServer | RedisCluster, role: Role, cluster: bool) -> Settings:
    """Settings of a process that is a user of Redis."""
    return {
        "redis.url": server.url_of(username(role)),
        "redis.password": REDIS_PASSWORD,
        "redis.cluster": cluster,
    }


def with_password(broker: SecuredKafka, role: Role = "scorer") -> Settings:
    """Settings of a client with SASL_SSL and SCRAM-SHA-512, which may do what it was allowed."""
    return {
        "kafka.bootstrap_servers": broker.scram,
        "kafka.security_protocol": "SASL_SSL",
        "kafka.ca_file": str(broker.authority.ca_file),
        "kafka.username": username(role),
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

    The one that is called "secured" has the namespace that the users may use. roles: what each
    kind of process is given beside the settings.
    """
    monkeypatch.setenv("FRESHSCORE_SECRET", SECRET)

    def make(name: str, settings: Settings, *roles: Mapping[Role, Settings]) -> Guarded:
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
            # Handshakes of TLS on a busy machine.
            "redis.timeout_ms": 10_000,
            "redis.heartbeat_s": 0.05,
            "redis.lease_s": 2.0,
            "redis.compact_records": 2,
            "redis.grid_records": 2,
        }
        for topic in ("transactions", "labels", "decisions", "dead_letters"):
            given[f"kafka.{topic}_topic"] = f"{namespace}-{topic}"
        return Guarded(folder, given | settings, roles)

    return make
