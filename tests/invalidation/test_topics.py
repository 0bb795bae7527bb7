"""Topics on a real broker: what is absent is made, what is wrong is refused and not touched."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from freshscore.cli import main
from freshscore.config.errors import SettingsError
from freshscore.config.loading import load_settings
from freshscore.config.settings import Settings
from freshscore.features.specification import FeatureSpecification
from freshscore.invalidation.kafka_admin import LogAdmin
from freshscore.invalidation.topics import check_topics, make_topics, needed_ms, topic_names
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


def _words(settings: Settings, **more: Any) -> list[str]:
    """The command on topics of these settings."""
    kinds = ("transactions", "labels", "decisions", "dead_letters")
    names = ["bootstrap_servers", *(f"{kind}_topic" for kind in kinds)]
    given = {f"kafka.{name}": getattr(settings.kafka, name) for name in names}
    given |= {name.replace("__", "."): value for name, value in more.items()}
    pairs = [word for one in given.items() for word in ("--settings", f"{one[0]}={one[1]}")]
    return ["topics", "check", "--profile", "shared", *pairs]


def test_the_command_says_it_in_its_exit_code(
    kafka: KafkaBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = _settings(kafka)
    words = _words(settings)
    assert main(words) == 1
    assert "is not there" in capsys.readouterr().out
    assert main([*words, "--create", "--json", str(tmp_path / "made.json")]) == 0
    assert main(words) == 0
    assert (tmp_path / "made.json").read_text("utf-8").count('"problem": null') == 4


def test_more_copies_than_brokers_are_one_sentence(
    kafka: KafkaBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    """The setting, its value, and what the brokers said."""
    settings = _settings(kafka)
    assert main([*_words(settings, kafka__replication=3), "--create"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("freshscore: kafka.replication = 3: Kafka does not make topic ")
    assert "1 broker" in said
    assert len(said) < 300
    assert set(_checked(settings)["transactions"]) == {"is not there"}


def test_a_topic_that_kafka_does_not_make_is_no_outage(kafka: KafkaBroker) -> None:
    """It is the name that is wrong, and the broker says how."""
    with LogAdmin(_settings(kafka).kafka) as admin:
        for name, said in (("..", "'..' is not allowed"), ("a b", "is invalid")):
            with pytest.raises(SettingsError, match=f"does not make topic {name}: .*{said}"):
                admin.make({name: {}}, 1, 1)
        with pytest.raises(SettingsError, match=r"does not make topic x: .*no\.such\.option"):
            admin.make({"x": {"no.such.option": "1"}}, 1, 1)


@pytest.mark.parametrize("historical", ["false", "true"])
def test_a_longer_retention_than_the_setting_is_said(
    kafka: KafkaBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str], historical: str
) -> None:
    """Which topics, for how long, and why; and nothing where the setting holds."""
    settings, path = _settings(kafka), tmp_path / "made.json"
    more = {"kafka__retention_days": 1, "kafka__historical": historical}
    words = [*_words(settings, **more), "--create", "--json", str(path)]
    assert main(words) == 0
    notes = json.loads(path.read_text("utf-8"))["notes"]
    printed = capsys.readouterr().out
    assert all(one.startswith("kafka.retention_days is 1, but") for one in notes)
    assert all(one in printed for one in notes)
    needed = needed_ms(settings, FeatureSpecification.named(settings.store.specification))
    is_longer = f"keeps messages for {needed / _DAY_MS:.6g} days: the longest window of "
    assert is_longer in notes[-1]
    assert settings.kafka.decisions_topic in notes[-1]
    if historical == "true":
        assert settings.kafka.labels_topic in notes[0]
        assert "for ever: kafka.historical" in notes[0]
    assert (settings.kafka.labels_topic in notes[-1]) is (historical == "false")
    # They are there now: nothing was made.
    assert main(words) == 0
    assert json.loads(path.read_text("utf-8"))["notes"] == []
    assert main([*_words(_settings(kafka)), "--create", "--json", str(path)]) == 0
    assert json.loads(path.read_text("utf-8"))["notes"] == []
