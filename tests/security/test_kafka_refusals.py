"""What a broker refuses is said at once, with the setting that is wrong."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Any

import pytest

from freshscore.config.clock import SystemClock
from freshscore.config.errors import SettingsError
from freshscore.config.settings import KafkaSettings
from freshscore.invalidation.kafka_admin import LogAdmin
from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.kafka_refusals import refusal
from freshscore.invalidation.kafka_writing import LogWriter
from tests.security.conftest import with_certificate, with_password
from tests.security.guarded import Settings
from tests.servers.certificates import Authority
from tests.servers.secured_kafka import SecuredKafka

# A third of kafka.request_timeout_s, after which it would be told that nobody answers.
_AT_ONCE_S = 10.0


def settings_of(given: Settings, **other: Any) -> KafkaSettings:
    names = {name.removeprefix("kafka."): value for name, value in given.items()}
    return KafkaSettings.model_validate(names | other)


def refused(settings: KafkaSettings) -> str:
    """What opening says, which must be at once."""
    clock = SystemClock()
    began_s = clock.monotonic_s()
    with pytest.raises(SettingsError) as told:
        LogAdmin(settings)
    assert clock.monotonic_s() - began_s < _AT_ONCE_S
    assert settings.password is None or settings.password.get_secret_value() not in str(told.value)
    return str(told.value)


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    """An authority that the broker does not know."""
    return Authority(tmp_path, "other")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"password": "not-this-one"},
            r"refuses kafka.username = freshscore-scorer or kafka.password",
        ),
        ({"username": "nobody"}, r"refuses kafka.username = nobody or kafka.password"),
        ({"sasl_mechanism": "PLAIN"}, r"does not offer kafka.sasl_mechanism = PLAIN"),
        ({"username": None}, r"needs kafka.username and kafka.password; kafka.username is not set"),
        ({"password": None}, r"needs kafka.username and kafka.password; kafka.password is not set"),
        ({"ca_file": None}, r"certificate that is not accepted: .*; kafka.ca_file = unset"),
        ({"ca_file": "nowhere.pem"}, r"kafka.ca_file = nowhere.pem: No such file"),
    ],
)
def test_what_a_client_with_a_password_may_have_wrong(
    secured_kafka: SecuredKafka, wrong: dict[str, Any], said: str
) -> None:
    message = refused(settings_of(with_password(secured_kafka), **wrong))
    assert re.search(said, message), message


def test_an_authority_that_the_broker_does_not_have(
    secured_kafka: SecuredKafka, other: Authority
) -> None:
    said = refused(settings_of(with_password(secured_kafka), ca_file=other.ca_file))
    assert f"kafka.ca_file = {other.ca_file}" in said


def test_a_client_certificate_that_is_missing_or_of_another_authority(
    secured_kafka: SecuredKafka, other: Authority
) -> None:
    given = with_certificate(secured_kafka)
    said = refused(settings_of(given, certificate_file=None))
    assert "asks for a client certificate, and kafka.certificate_file is not set" in said
    own = other.issued("client")
    assert f"refuses kafka.certificate_file = {own}" in refused(
        settings_of(given, certificate_file=own)
    )
    said = refused(settings_of(given, certificate_file=other.ca_file))
    assert f"kafka.certificate_file = {other.ca_file} is no such PEM file" in said


def test_readers_and_writers_say_it_too(secured_kafka: SecuredKafka) -> None:
    settings = settings_of(with_password(secured_kafka), password="not-this-one")
    for opened in (
        lambda: LogReader(settings, ["any"], group=None),
        lambda: LogWriter(settings),
    ):
        with pytest.raises(SettingsError, match=r"kafka.password"):
            opened()


def test_a_server_among_several_that_refuses_is_no_end(secured_kafka: SecuredKafka) -> None:
    """One of them may be in the middle of a change of certificates."""
    given = with_password(secured_kafka)
    both = f"{secured_kafka.mutual},{secured_kafka.scram}"
    with LogAdmin(settings_of(given, bootstrap_servers=both)) as admin:
        assert admin.topics(["nothing"]) == {}


def test_what_may_be_weather_is_no_refusal() -> None:
    settings = KafkaSettings()
    for problem in (
        ConnectionResetError("socket disconnected"),
        ssl.SSLError(1, "[SSL] record layer failure"),
        TimeoutError(),
    ):
        assert refusal(settings, problem) is None
