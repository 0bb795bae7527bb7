"""The drill of docs/shared.md: a backup under load, everything lost, the backup restored."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.faults.campaigns import Lane
from tests.faults.conftest import Deploy
from tests.servers.fixtures import OwnRedis
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.redis_servers import RedisServer


def back_up(server: RedisServer, to: Path) -> None:
    """As docs/shared.md says, while states are written."""
    asked = ["redis-cli", "-h", "127.0.0.1", "-p", str(server.port), "--rdb", str(to)]
    subprocess.run(asked, check=True, capture_output=True, timeout=60.0)


def persist(server: RedisServer) -> None:
    """Begin an append-only file with what is in memory."""
    with server.client() as client:
        client.config_set("appendonly", "yes")


def lose(server: RedisServer) -> Path:
    """End a server, and remove all that it kept; its folder."""
    folder = server.log.parent
    server.kill()
    shutil.rmtree(folder / "appendonlydir")
    (folder / "dump.rdb").unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize("while_consuming", [True, False])
def test_a_backup_is_restored(
    deploy: Deploy,
    kafka: KafkaBroker,
    own_redis: OwnRedis,
    tmp_path: Path,
    seed: int,
    while_consuming: bool,
) -> None:
    """What was applied after the backup is read from the log again, and nothing counts twice."""
    lane = Lane(deploy(kafka, own_redis()), random.Random(seed))
    own = lane.deployment
    (redis,) = own.servers
    persist(redis)
    own.begin()
    lane.begin_scorers(1)
    lane.flow_for(1.0)
    own.wait_until_whole()
    lane.flow_for(0.2)
    backup = tmp_path / "backup.rdb"
    back_up(redis, backup)
    epoch = own.epoch()
    lane.flow_for(1.0)
    own.wait_until_whole()
    if not while_consuming:
        own.stop_all()
    folder = lose(redis)
    lane.seen.kills["Redis lost"] += 1
    if while_consuming:
        lane.flow_for(0.3)
    shutil.copy(backup, folder / "dump.rdb")
    redis.start()
    persist(redis)
    if not while_consuming:
        own.begin()
    lane.flow_for(0.3)
    print(f"a backup restored, seed {seed}: {lane.finish()}")
    # Restored, not rebuilt.
    assert own.epoch() == epoch
