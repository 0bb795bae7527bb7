"""A user of Redis that may not do enough: an error that says so, at once, and no traceback."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from freshscore import Scorer, SettingsError, Unavailable
from tests.freshscore.shared_deployment import now_ms, payment, recent
from tests.security.conftest import (
    ADMIN_PASSWORD,
    REDIS_PASSWORD,
    Deploy,
    SecuredRedis,
    plain,
)
from tests.security.guarded import Guarded
from tests.security.test_secured_servers import opened
from tests.servers.certificates import Authority
from tests.servers.secured_kafka import SecuredKafka

Secure = Callable[..., SecuredRedis]
# At the start, with the first batch, behind it, and at a heartbeat. Those that are used in scripts
# alone Redis refuses without naming them.
REFUSED = ("append", "eval", "evalsha", "expire", "get", "hmget", "script|load", "xadd")
REFUSED_TO_SCORERS = ("eval", "get", "script|load", "zadd")


@pytest.fixture
def deployment(deploy: Deploy, secured_kafka: SecuredKafka) -> Guarded:
    """With topics that hold a little, and no Redis of its own yet."""
    made = deploy("secured", plain(secured_kafka))
    assert made.run("topics", "check", "--create") == 0
    made.send(recent(10))
    return made


@pytest.mark.parametrize("command", REFUSED)
def test_a_consumer_says_which_command_it_may_not_use(
    deployment: Guarded,
    secure: Secure,
    command: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    deployment.play(secure(without=command).roles)
    assert deployment.run("consume", "--until-caught-up") == 2
    said = capsys.readouterr().err
    assert command in said
    assert "user" in said
    assert REDIS_PASSWORD not in said


@pytest.mark.parametrize("command", REFUSED_TO_SCORERS)
def test_a_scorer_says_that_its_user_may_not_do_enough(
    deployment: Guarded, secure: Secure, command: str
) -> None:
    deployment.play(secure(without=command).roles)
    with pytest.raises(SettingsError, match=r"user"):
        opened(deployment)


def test_whether_redis_evicts_may_be_barred_and_that_is_said(
    deployment: Guarded, secure: Secure, caplog: pytest.LogCaptureFixture
) -> None:
    """Some services bar INFO: nobody's start ends for want of a right that is no work."""
    deployment.play(secure(without="info").roles)
    assert deployment.run("consume", "--until-caught-up") == 0
    assert "INFO does not say whether it evicts" in caplog.text
    with opened(deployment) as scorer:
        assert scorer.score(payment(1, now_ms())).degraded == ()


def test_keys_outside_of_the_namespace_are_refused(
    deployment: Guarded, secure: Secure, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment.given["redis.namespace"] = "other"
    deployment.play(secure().roles)
    assert deployment.run("consume", "--until-caught-up") == 2
    assert "NOPERM" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [ADMIN_PASSWORD, None])
def test_a_wrong_password_of_redis_is_named(
    deployment: Guarded, secure: Secure, wrong: str | None
) -> None:
    deployment.play(secure().roles)
    given = deployment.roles["scorer"]
    del given["redis.password"]
    if wrong is not None:
        given["redis.password"] = wrong
    with pytest.raises(SettingsError, match=r"refuses the user or password") as told:
        opened(deployment)
    assert ADMIN_PASSWORD not in str(told.value)


def test_an_authority_that_redis_does_not_have_is_named(
    deployment: Guarded, secure: Secure, authority: Authority
) -> None:
    given = secure().roles["scorer"]
    url = given["redis.url"]
    other = Authority(deployment.folder, "another")
    deployment.given |= given
    deployment.given["redis.url"] = url.replace(str(authority.ca_file), str(other.ca_file))
    with pytest.raises(SettingsError, match=r"certificate.*ssl_ca_certs in redis\.url"):
        opened(deployment)


def test_a_missing_client_certificate_of_redis_is_no_silence(
    deployment: Guarded, secure: Secure
) -> None:
    deployment.given |= secure(asks_clients=True).roles["scorer"]
    with opened(deployment) as scorer:
        assert isinstance(scorer, Scorer)
        scorer.score(payment(1, now_ms()))
    url = deployment.given["redis.url"]
    deployment.given["redis.url"] = url.partition("&ssl_certfile")[0]
    with pytest.raises(Unavailable, match=r"certificate: ssl_certfile and ssl_keyfile in redis"):
        opened(deployment)
