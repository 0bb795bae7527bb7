"""Topics on a real broker: what is absent is made, what is wrong is refused and not touched."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from freshscore.cli import main
from freshscore.config.loading import load_settings
from freshscore.config.settings import Settings
from freshscore.features.specification import FeatureSpecification
from freshscore.invalidation.kafka_admin import LogAdmin
from freshscore.invalidation.topics import check_topics, make_topics, topic_names
from tests.servers.kafka_broker import KafkaBroker

_DAY_MS = 86_400_000


def _settings(kafka: KafkaBroker, **more: Any) -> Settings:
    name = uuid.uuid4().hex
    topics = {
        f"kafka.{kind}_topic": f"{kind}-{name}"
        for kind in ("transactions", "labels", "decisions", "dead_letters")
    }
    own = {"kafka.bootstrap_servers": kafka.bootstrap, "kafka.partitions": 2}
    return load_settings("shared", settings={**own, **topics, **more})


def _checked(settings: Settings, *, make: bool = False) -> dict[str, list[str | None]]:
    specification = FeatureSpecification.named(settings.store.specification)
    with LogAdmin(settings.kafka) as admin:
        if make:
            make_topics(admin, settings, specification)
        found: dict[str, list[str | None]] = {}
        for one in check_topics(admin, settings, specification):
            found.setdefault(one.topic.partition("-")[0], []).append(one.problem)
    return found


@pytest.mark.parametrize("historical", [False, True])
def test_what_is_made_passes_its_own_check(kafka: KafkaBroker, historical: bool) -> None:
    settings = _settings(kafka, **{"kafka.historical": historical})
    assert set(map(tuple, _checked(settings).values())) == {("is not there",)}
    assert set(map(tuple, _checked(settings, make=True).values())) == {(None,)}
    with LogAdmin(settings.kafka) as admin:
        made = admin.topics(topic_names(settings))
    assert {one.n_partitions for one in made.values()} == {2}


_WRONG = [
    ({"cleanup.policy": "compact"}, "is compacted"),
    ({"message.timestamp.type": "CreateTime"}, "is stamped by CreateTime"),
    ({"retention.ms": str(10 * _DAY_MS)}, "keeps messages for 10 days (retention.ms)"),
    ({"retention.bytes": "1000000"}, "is cut at 1000000 bytes a partition"),
]


@pytest.mark.parametrize(("wrong", "said"), _WRONG)
def test_what_would_lose_events_is_refused(
    kafka: KafkaBroker, wrong: dict[str, str], said: str
) -> None:
    """And it stays as it is: a topic belongs to whoever made it."""
    settings = _settings(kafka)
    right = {"message.timestamp.type": "LogAppendTime", "retention.ms": str(90 * _DAY_MS)}
    kafka.create_topic(settings.kafka.transactions_topic, settings={**right, **wrong})
    (problem,) = _checked(settings, make=True)["transactions"]
    assert problem is not None
    assert problem.startswith(said)
    (again,) = _checked(settings, make=True)["transactions"]
    assert again == problem


def test_the_longest_window_and_the_horizon_are_what_must_be_kept(kafka: KafkaBroker) -> None:
    """A retention that fits one specification does not fit one that looks further back."""
    topics = _settings(kafka)
    kept = {"message.timestamp.type": "LogAppendTime", "retention.ms": str(40 * _DAY_MS)}
    kafka.create_topic(topics.kafka.transactions_topic, settings=kept)
    assert _checked(topics, make=True)["transactions"] == [None]
    longer = topics.model_copy(
        update={"store": topics.store.model_copy(update={"horizon_s": 20 * 86_400})}
    )
    (problem,) = _checked(longer)["transactions"]
    assert problem is not None
    assert "keeps messages for 40 days" in problem


def test_the_command_says_it_in_its_exit_code(
    kafka: KafkaBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = _settings(kafka)
    words = ["topics", "check", "--profile", "shared"]
    for key in ("bootstrap_servers", *(f"{k}_topic" for k in ("transactions", "labels"))):
        words += ["--settings", f"kafka.{key}={getattr(settings.kafka, key)}"]
    for key in ("decisions_topic", "dead_letters_topic"):
        words += ["--settings", f"kafka.{key}={getattr(settings.kafka, key)}"]
    assert main(words) == 1
    assert "is not there" in capsys.readouterr().out
    assert main([*words, "--create", "--json", str(tmp_path / "made.json")]) == 0
    assert main(words) == 0
    assert (tmp_path / "made.json").read_text("utf-8").count('"problem": null') == 4
