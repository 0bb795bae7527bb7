"""Servers and Sentinels with users: the rights of config/deploy are enough for a failover."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import Any

import pytest
from pydantic import SecretStr

from freshscore.config.errors import SettingsError, Unavailable
from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_door import Nodes, command
from tests.features.stores import redis_settings
from tests.security.access_rules import redis_lines, username
from tests.security.conftest import ADMIN_PASSWORD, REDIS_PASSWORD
from tests.servers.fixtures import OwnSentinels
from tests.servers.ports import LOOPBACK

_ON_SENTINELS = "user freshscore "


def test_a_failover_by_users_with_the_least_rights(own_sentinels: OwnSentinels) -> None:
    users = redis_lines("redis-users.conf", password=REDIS_PASSWORD)
    others = redis_lines("redis-sentinel-users.conf", password=REDIS_PASSWORD)
    on_sentinels = [line for line in others if line.startswith(_ON_SENTINELS)]
    on_servers = [line for line in others if line not in on_sentinels]
    redis = own_sentinels(
        password=ADMIN_PASSWORD,
        sentinel_password=ADMIN_PASSWORD,
        settings=[*users, *on_servers, "masteruser replica", f"masterauth {REDIS_PASSWORD}"],
        of_sentinels=on_sentinels,
        watched_with=["auth-user PRIMARY sentinel", f"auth-pass PRIMARY {REDIS_PASSWORD}"],
    )
    given: dict[str, Any] = {
        "password": SecretStr(REDIS_PASSWORD),
        "sentinel_username": "freshscore",
        "sentinel_password": SecretStr(REDIS_PASSWORD),
        "timeout_ms": 3_000,
    }
    url = redis.url_of(username("consumer"))
    with closing(Nodes.open(redis_settings(f"{url}", **given))) as nodes:
        put = [(b"0", command(b"SET", b"fs:{0}", b"x"))]
        assert replies_to(nodes, put) == [b"OK"]
        replica = redis.fail_over()

        def is_written() -> bool:
            with suppress(Unavailable):
                replies_to(nodes, put)
            return nodes.topology.addresses == ((LOOPBACK, replica.port),)

        replica.wait_until(is_written, 30.0)
        assert replies_to(nodes, put) == [b"OK"]
    with replica.client() as client:
        assert client.acl_log() == []
    with redis.sentinels[0].client() as sentinel:
        assert sentinel.acl_log() == []
    with pytest.raises(SettingsError, match=r"redis\.sentinel_username"):
        Nodes.open(redis_settings(url, **given | {"sentinel_username": "nobody"}))
