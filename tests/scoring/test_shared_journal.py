"""What a shared scorer does not take: what would be refused for ever, and what can wait nowhere."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from freshscore.config.clock import SystemClock
from freshscore.config.errors import BadFact, BadTransaction, SettingsError
from freshscore.config.loading import load_settings
from freshscore.config.secret import Secret, write_secret
from freshscore.scoring.shared_opening import open_shared
from freshscore.scoring.shared_scorer import SharedScorer
from tests.laws.law_models import law_model
from tests.laws.law_specifications import shipped
from tests.scoring.shared_worlds import HeldWriter, SharedWorld
from tests.scoring.test_shared_writes import payment
from tests.servers.redis_servers import RedisServer

# A rotation begins then, long after the test.
_LATER_MS = 4_000_000_000_000


def test_what_consumers_would_set_aside_for_its_length_is_not_taken(
    redis_server: RedisServer, namespace: str
) -> None:
    """A broker may refuse it for ever, and what refuses for ever would fill the journal."""
    scaled, writer = shipped("handbook"), HeldWriter()
    model = law_model("walked", scaled, 1)
    world = SharedWorld(redis_server.url, namespace, scaled, model, writer=writer)
    # Below what can be set, for this specification's messages are short.
    short = world.settings.kafka.model_copy(update={"max_message_bytes": 64})
    world.scorer._shared_feed._settings = short
    one = payment(1)
    with pytest.raises(BadTransaction, match=r"has \d+ bytes; kafka\.max_message_bytes is 64"):
        world.scorer.observe(one)
    fact = world.program.specification.facts[0]
    entities = dict(one.entities)
    with pytest.raises(BadFact, match=r"kafka\.max_message_bytes is 64"):
        world.scorer.label(one.transaction_id, entities=entities, time=one.time, **{fact: True})
    assert writer.sent == []
    assert len(world.scorer._pending) == 0
    world.close()


def test_a_journal_that_cannot_be_written_refuses_the_start(
    redis_server: RedisServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRESHSCORE_SECRET", "5ec7e7" * 8)
    (tmp_path / "file").write_text("")
    given = {
        "store.specification": "handbook",
        "redis.url": redis_server.url,
        "redis.namespace": namespace,
        "kafka.bootstrap_servers": "127.0.0.1:1",
        "journal.path": str(tmp_path / "file" / "journal"),
    }
    with pytest.raises(SettingsError, match=r"journal\.path .*Not a directory"):
        open_shared(load_settings("shared", settings=given), lambda rows: rows[:, 0] * 0.0)
    # Where nothing is produced, nothing has to wait anywhere.
    settings = load_settings("shared", settings=given | {"kafka.produce": False})
    scorer = open_shared(settings, lambda rows: rows[:, 0] * 0.0)
    assert "journal" not in scorer.stats()
    scorer.close()


def test_what_waits_under_the_former_secret_is_sent_by_who_has_both(
    redis_server: RedisServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = "5ec7e7" * 8
    path = tmp_path / "successor"
    write_secret(Secret(bytes.fromhex(former), "this test").successor(_LATER_MS), path)
    given = {
        "store.specification": "handbook",
        "redis.url": redis_server.url,
        "redis.namespace": namespace,
        "kafka.bootstrap_servers": "127.0.0.1:1",
        "journal.path": str(tmp_path / "journal"),
    }

    def opened() -> SharedScorer:
        return open_shared(load_settings("shared", settings=given), lambda rows: rows[:, 0] * 0.0)

    monkeypatch.setenv("FRESHSCORE_SECRET", former)
    scorer = opened()
    scorer.observe(payment(1, SystemClock().now_ms()))
    scorer.close()
    monkeypatch.setenv("FRESHSCORE_SECRET", path.read_text("ascii").strip())
    monkeypatch.setenv("FRESHSCORE_FORMER_SECRET", former)
    scorer = opened()
    waiting = threading.Event()
    for _ in range(500):
        if scorer.stats()["journal"]["taken_over"] or waiting.wait(0.02):
            break
    assert scorer.stats()["journal"]["taken_over"] == 1
    assert scorer.stats()["journal"]["left_in_place"] == 0
    scorer.close()
