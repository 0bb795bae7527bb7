"""A user of Redis that may not do enough: an error that says so, at once, and no traceback."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from freshscore import Scorer, SettingsError, Unavailable
from tests.freshscore.shared_deployment import SharedDeployment, now_ms, payment, recent
from tests.security.access_rules import without
from tests.security.conftest import (
    ADMIN_PASSWORD,
    REDIS_PASSWORD,
    Deploy,
    SecuredRedis,
    plain,
)
from tests.security.test_secured_servers import opened
from tests.servers.certificates import Authority
from tests.servers.secured_kafka import SecuredKafka

Secure = Callable[..., SecuredRedis]
# At the start, with the first batch, behind it, and at a heartbeat. Those that are used in scripts
# alone Redis refuses without naming them.
REFUSED = ("append", "eval", "evalsha", "expire", "get", "hmget", "info", "script|load", "xadd")
REFUSED_TO_SCORERS = ("eval", "get", "info", "script|load", "zadd")


@pytest.fixture
def deployment(deploy: Deploy, secured_kafka: SecuredKafka) -> SharedDeployment:
    """With topics that hold a little, and no Redis of its own yet."""
    made = deploy("secured", plain(secured_kafka))
    assert made.run("topics", "check", "--create") == 0
    made.send(recent(10))
    return made


@pytest.mark.parametrize("command", REFUSED)
def test_a_consumer_says_which_command_it_may_not_use(
    deployment: SharedDeployment,
    secure: Secure,
    redis_user: str,
    command: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    deployment.given |= secure(user=without(redis_user, command)).as_user
    assert deployment.run("consume", "--until-caught-up") == 2
    said = capsys.readouterr().err
    assert command in said
    assert "user" in said
    assert REDIS_PASSWORD not in said


@pytest.mark.parametrize("command", REFUSED_TO_SCORERS)
def test_a_scorer_says_that_its_user_may_not_do_enough(
    deployment: SharedDeployment, secure: Secure, redis_user: str, command: str
) -> None:
    deployment.given |= secure(user=without(redis_user, command)).as_user
    with pytest.raises(SettingsError, match=r"user"):
        opened(deployment)


def test_keys_outside_of_the_namespace_are_refused(
    deployment: SharedDeployment, secure: Secure, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment.given |= secure().as_user | {"redis.namespace": "other"}
    assert deployment.run("consume", "--until-caught-up") == 2
    assert "NOPERM" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [ADMIN_PASSWORD, None])
def test_a_wrong_password_of_redis_is_named(
    deployment: SharedDeployment, secure: Secure, wrong: str | None
) -> None:
    deployment.given |= secure().as_user
    del deployment.given["redis.password"]
    if wrong is not None:
        deployment.given["redis.password"] = wrong
    with pytest.raises(SettingsError, match=r"refuses the user or password") as told:
        opened(deployment)
    assert ADMIN_PASSWORD not in str(told.value)


def test_an_authority_that_redis_does_not_have_is_named(
    deployment: SharedDeployment, secure: Secure, authority: Authority
) -> None:
    deployment.given |= secure().as_user
    url = deployment.given["redis.url"]
    other = Authority(deployment.folder, "another")
    deployment.given["redis.url"] = url.replace(str(authority.ca_file), str(other.ca_file))
    with pytest.raises(SettingsError, match=r"certificate.*ssl_ca_certs in redis\.url"):
        opened(deployment)


def test_a_missing_client_certificate_of_redis_is_no_silence(
    deployment: SharedDeployment, secure: Secure
) -> None:
    redis = secure(asks_clients=True)
    deployment.given |= redis.as_user
    with opened(deployment) as scorer:
        assert isinstance(scorer, Scorer)
        scorer.score(payment(1, now_ms()))
    url = deployment.given["redis.url"]
    deployment.given["redis.url"] = url.partition("&ssl_certfile")[0]
    with pytest.raises(Unavailable, match=r"certificate: ssl_certfile and ssl_keyfile in redis"):
        opened(deployment)
