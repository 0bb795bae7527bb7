"""`Scorer.open("shared")` with a real Kafka and a real Redis: what users call."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from freshscore.config.errors import SettingsError
from freshscore.config.settings import KafkaSettings
from freshscore.invalidation.control import Control, Invalidation
from freshscore.invalidation.kafka_admin import LogAdmin
from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.message_reading import MessageReader
from freshscore.scoring.decisions import unpacked
from freshscore.scoring.scorer import Scorer
from freshscore.scoring.shared_scorer import SharedScorer
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.redis_servers import RedisServer

PAYMENT: dict[str, Any] = {
    "transaction_id": "t-1",
    "amount_minor": 4_999,
    "currency": "EUR",
    "entities": {"card": "c-42", "merchant": "m-1", "terminal": "m-1"},
}
TOPICS = ("transactions", "labels", "decisions", "dead-letters")


@pytest.fixture
def settings(
    kafka: KafkaBroker, empty_redis: RedisServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    monkeypatch.setenv("FRESHSCORE_SECRET", "ab" * 32)
    names = {name: f"{namespace}-{name}" for name in TOPICS}
    found = {
        "store": {"specification": "handbook"},
        "redis": {
            "url": empty_redis.url,
            "namespace": namespace,
            "lease_s": 2.0,
            "heartbeat_s": 0.05,
        },
        "kafka": {
            "bootstrap_servers": kafka.bootstrap,
            **{f"{name.replace('-', '_')}_topic": topic for name, topic in names.items()},
        },
    }
    with LogAdmin(KafkaSettings.model_validate(found["kafka"])) as admin:
        admin.make({topic: {} for topic in names.values()}, 1, 1)
    return found


@pytest.fixture
def scorer(settings: dict[str, Any]) -> Iterator[SharedScorer]:
    with Scorer.open("shared", settings=settings, model=constant) as scorer:
        assert isinstance(scorer, SharedScorer)
        yield scorer


def constant(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.full(len(matrix), 0.25)


def test_it_scores_observes_labels_and_sends_its_decisions(
    scorer: SharedScorer, settings: dict[str, Any]
) -> None:
    now_ms = scorer._clock.now_ms()
    payment = {**PAYMENT, "time": now_ms - 1_000}
    found = scorer.score(payment)
    assert found.score == 0.25
    # Nobody consumes, so no node has an epoch.
    assert found.degraded == ("state lost",)
    scorer.observe(payment)
    scorer.label("t-1", fraud=True, entities=payment["entities"], time=payment["time"])
    scorer.flush(30)
    after = scorer.score({**payment, "transaction_id": "t-2"})
    assert after.pending == 1
    sent = messages(settings)
    reader = MessageReader(scorer._like.program, scorer._like.keys)
    assert scorer._serving is not None
    [transaction] = sent["transactions"]
    assert (
        reader.transaction(transaction)[:16]
        == scorer._serving.packer.row(transaction_of(payment))[:16]
    )
    assert len(sent["labels"]) == 1
    assert unpacked(sent["decisions"][0]).score == 0.25
    for values in sent.values():
        for value in values:
            assert b"c-42" not in value
    assert scorer.stats()["cache"]["may_serve"] is True


def transaction_of(payment: dict[str, Any]) -> Any:
    from freshscore.features.transaction import Transaction

    return Transaction.of(payment)


def messages(settings: dict[str, Any]) -> dict[str, list[bytes]]:
    """Topic, without its prefix -> what stands in it."""
    kafka = KafkaSettings.model_validate(settings["kafka"])
    topics = {"transactions": kafka.transactions_topic, "labels": kafka.labels_topic}
    topics["decisions"] = kafka.decisions_topic
    reader = LogReader(kafka, [*topics.values()], group=None)
    partitions = {(topic, 0): name for name, topic in topics.items()}
    reader.assign([*partitions])
    for partition in partitions:
        reader.seek(partition, 0)
    found: dict[str, list[bytes]] = {name: [] for name in topics}
    for _ in range(50):
        for fetched in reader.poll(200):
            found[partitions[fetched.partition]] += [fetched.value(i) for i in range(len(fetched))]
        if all(found.values()):
            break
    reader.close()
    return found


def test_an_invalidation_reaches_it_within_its_lease(scorer: SharedScorer) -> None:
    payment = {**PAYMENT, "time": scorer._clock.now_ms() - 1_000}
    scorer.score(payment)
    assert scorer._serving is not None
    before = scorer._serving.tier.generation
    control = Control(scorer._nodes, scorer._settings.redis.namespace)
    number, _ = control.invalidate(Invalidation("everything", ""))
    waiting = threading.Event()
    for _ in range(200):
        if control.behind(number)[0] == 0 and scorer._serving.tier.generation > before:
            break
        waiting.wait(0.02)
    assert scorer._serving.tier.generation > before
    assert control.behind(number)[0] == 0


def test_the_secret_must_be_one_that_others_have(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FRESHSCORE_SECRET")
    with pytest.raises(SettingsError, match="FRESHSCORE_SECRET"):
        Scorer.open("shared", settings=settings, model=constant)


@pytest.mark.parametrize("missing", ["hiredis", "kafka", "redis"])
def test_without_the_clients_opening_says_which_extra_brings_them(missing: str) -> None:
    statement = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from freshscore import Scorer, SettingsError\n"
        "try: Scorer.open('shared', model=len)\n"
        "except SettingsError as problem: print(problem)"
    )
    done = subprocess.run(
        [sys.executable, "-c", statement], capture_output=True, text=True, check=True
    )
    assert f"{missing} is not installed: pip install 'freshscore[shared]'" in done.stdout
