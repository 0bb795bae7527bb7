"""A replay over a cluster of which a primary is killed in the middle: nothing is wrong.

The report says what was degraded or not answered, and for how long.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from tests.freshscore.shared_deployment import SECRET
from tests.freshscore.stored_models import SPECIFICATION, payments, run
from tests.servers.fixtures import OwnCluster
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.redis_servers import RedisCluster

_SPARKOV = Path(__file__).parents[2].parent / "shared" / "data" / "sparkov_2019h1.parquet"
_DECISIONS = re.compile(r"replay-[0-9a-f]{16}-decisions")


def replayed(
    kafka: KafkaBroker, cluster: RedisCluster, words: list[object], kill_at: int
) -> dict[str, object]:
    """The figures of a replay during which a primary is killed, after `kill_at` decisions."""
    given = {
        "kafka.bootstrap_servers": kafka.bootstrap,
        "redis.url": cluster.url,
        "redis.cluster": "true",
        "redis.heartbeat_s": 0.1,
        "redis.timeout_ms": 200,
    }
    servers = [word for name, value in given.items() for word in ("--settings", f"{name}={value}")]
    words += ["--profile", "shared", "--rescore", "reuse", "--oracle", "none", *servers]
    words += ["--report", "report.html", "--json", "figures.json"]
    with _killing(kafka, cluster, kill_at):
        assert run("replay", *words) == 0
    found: dict[str, object] = json.loads(Path("figures.json").read_text("utf-8"))
    return found


@contextmanager
def _killing(kafka: KafkaBroker, cluster: RedisCluster, kill_at: int) -> Iterator[None]:
    """Kill a primary, not the one that the URL names, once so many decisions are in the log."""
    ended, killed = threading.Event(), threading.Event()

    def wait_and_kill() -> None:
        while not ended.wait(0.05):
            if _decisions(kafka) >= kill_at:
                cluster.nodes[1].kill()
                killed.set()
                return

    thread = threading.Thread(target=wait_and_kill)
    thread.start()
    try:
        yield
        assert killed.is_set(), "the replay ended before the primary was killed"
    finally:
        ended.set()
        thread.join()


def _decisions(kafka: KafkaBroker) -> int:
    """How many decisions of replays the log holds."""
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    reader = KafkaConsumer(bootstrap_servers=kafka.bootstrap)
    try:
        topics = [name for name in admin.list_topics() if _DECISIONS.fullmatch(name)]
        places = [
            TopicPartition(name, number)
            for name in topics
            for number in reader.partitions_for_topic(name) or ()
        ]
        return sum(reader.end_offsets(places).values())
    finally:
        reader.close()
        admin.close()


def check(figures: dict[str, object]) -> None:
    """Right or marked: what the issue's readers look for in the report."""
    shared, troubles = figures["shared"], figures["shared_troubles"]
    assert isinstance(shared, dict)
    assert isinstance(troubles, list)
    assert shared["of these, equal to the bit"] == shared["on the same versions of all states"] > 0
    assert shared["on other versions, although they claim to count everything"] == 0
    assert troubles
    page = Path("report.html").read_text("utf-8")
    for one in troubles:
        print(one)
        assert one["total_s"] > 0
        assert f"<td>{one['cause']}</td>" in page


def test_a_small_file(
    kafka: KafkaBroker,
    own_cluster: OwnCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRESHSCORE_SECRET", SECRET)
    payments().to_parquet("payments.parquet")
    words: list[object] = ["--data", "payments.parquet", *SPECIFICATION]
    check(replayed(kafka, own_cluster(replicas=1, node_timeout_ms=200), words, 200))


@pytest.mark.soak
def test_the_shared_sparkov_file(
    kafka: KafkaBroker,
    own_cluster: OwnCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not _SPARKOV.exists():
        pytest.skip(f"the trial data is not beside the repository: {_SPARKOV.name}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRESHSCORE_SECRET", SECRET)
    words: list[object] = ["--data", _SPARKOV, "--spec", "sparkov", "--from", "2019-06-01"]
    check(replayed(kafka, own_cluster(replicas=1), words, 60_000))
