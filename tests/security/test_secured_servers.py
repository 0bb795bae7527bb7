"""Over servers that ask who comes, everything works, and answers what plain servers give."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from freshscore import CallableModel, CohortThresholds, Result, Scorer
from freshscore.config.clock import SystemClock
from freshscore.features.packing import Packer
from freshscore.features.transaction import Transaction
from freshscore.invalidation.deployment import Deployment
from freshscore.invalidation.holding import Hold
from tests.freshscore.shared_deployment import (
    CARDS,
    MERCHANTS,
    SharedDeployment,
    label,
    now_ms,
    payment,
    recent,
)
from tests.freshscore.test_shared_backfill import file_of, past
from tests.security.access_rules import commands_in, documented_for_clusters
from tests.security.conftest import (
    Deploy,
    SecuredRedis,
    plain,
    with_certificate,
    with_password,
)
from tests.servers.redis_servers import RedisCluster, RedisServer
from tests.servers.secured_kafka import SecuredKafka

Secure = Callable[..., SecuredRedis]
_MODEL_MS = 4


def dear(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores that tell the features apart, by a model that is worth asking others for."""
    threading.Event().wait(_MODEL_MS / 1_000)
    weights = np.arange(1, matrix.shape[1] + 1)
    return 1.0 / (1.0 + np.exp(-(np.nan_to_num(matrix) @ weights) / 1e5))


MODEL = CallableModel(dear, "dear-1", [CohortThresholds("all", 0.8, 0.9)])


class Later(SystemClock):
    """A clock that is put forward."""

    ahead_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.ahead_s


def opened(deployment: SharedDeployment) -> Scorer:
    return Scorer.open("shared", settings=deployment.given, model=MODEL)


def requests(at_ms: int) -> list[dict[str, Any]]:
    """One for each card, and a new card."""
    known = [payment(9_000 + i, at_ms) for i in range(len(CARDS))]
    return [*known, payment(9_900, at_ms, entities={"card": "new", "merchant": MERCHANTS[0]})]


def answers(scorer: Scorer, at_ms: int) -> list[tuple[Any, ...]]:
    """What is the same wherever states are: scores, hashes of features, versions of states."""
    found = [scorer.score(one, as_of=at_ms) for one in requests(at_ms)]
    return [told(one) for one in found]


def told(result: Result) -> tuple[Any, ...]:
    assert result.degraded == ()
    return result.score, result.feature_hash, result.decision, result.state_versions


def versions(found: Deployment) -> list[Any]:
    """Of the states of all cards and merchants, read from Redis."""
    packer = Packer(found.program, found.keys)
    rows = [packer.row(Transaction.of(one)) for one in requests(now_ms())]
    return [found.store.versions(row) for row in rows]


def go_through(own: SharedDeployment, beside: SharedDeployment) -> None:
    """A stream, scores, what scorers send, invalidations, verification; twice with equal ends."""
    assert own.run("topics", "check", "--create") == 0
    payments = recent(60)
    labels = [label(payments[3]), label(payments[5], looked_up=False)]
    own.send([*payments, *payments[:9]], labels)
    own.send_bytes(own.settings.kafka.transactions_topic, [b"no payment"])
    assert own.consume() == beside.consume()
    at_ms = now_ms() + 1_000
    with opened(own) as scorer, opened(beside) as other:
        assert answers(scorer, at_ms) == answers(other, at_ms)
        mine = payment(7_000, now_ms())
        scorer.observe(mine)
        scorer.label("payment-7", fraud=True)
        assert scorer.score(requests(at_ms)[mine_card(mine)], as_of=at_ms).pending == 1
        scorer.flush(30.0)
        with Scorer.open("shared", settings=own.given | {"redis.near": True}, model=dear) as near:
            assert own.consume() == beside.consume()
            # It has read what was published, and has looked whether that is all.
            threading.Event().wait(0.5)
            assert near.stats()["near"]["messages"] > 0
            assert near.stats()["near"]["troubles"] == 0
        at_ms = now_ms() + 2_000
        assert answers(scorer, at_ms) == answers(other, at_ms)
        with own.opened() as found, beside.opened() as plainly:
            assert versions(found) == versions(plainly)
            card = own.token(found, "card", CARDS[0]).hex()
        assert scorer.stats()["remote_scores"]["sent"] > 0
        ended = own.figures("cache", "invalidate", "--entity", "card", "--hash", card)
        assert (ended["n_scorers"], ended["n_behind"], ended["n_dropped"]) == (1, 0, 1)
        assert own.run("cache", "invalidate", "--everything") == 0
        assert answers(scorer, at_ms) == answers(other, at_ms)
        own.figures("cache", "show", "--entity", "card", "--hash", card, "--model", MODEL.version)
    verified = own.figures("verify")
    assert {one["verdict"] for one in verified["states"]["findings"]} == {"equal"}
    assert own.figures("lag")
    own.figures("entities", "show", "--entity", "card", "--hash", card)
    assert len(own.figures("dead-letters", "list")["letters"]) == 1
    own.run("dead-letters", "resend")
    data = file_of(own, past(40, payments[0]["time"] - 1_000))
    own.figures("backfill", "--data", data)
    with own.opened() as found:
        # What a long backfill does.
        clock = Later()
        with Hold(found.nodes, found.redis_keys, "tests", 600.0, clock) as hold:
            clock.ahead_s = 590.0
            hold.renew()


def mine_card(mine: dict[str, Any]) -> int:
    return CARDS.index(mine["entities"]["card"])


def test_kafka_with_a_password_over_tls(secured_kafka: SecuredKafka, deploy: Deploy) -> None:
    own = deploy("secured", with_password(secured_kafka))
    go_through(own, deploy("plain", plain(secured_kafka)))


def test_kafka_with_a_client_certificate(secured_kafka: SecuredKafka, deploy: Deploy) -> None:
    own = deploy("secured", with_certificate(secured_kafka))
    go_through(own, deploy("plain", plain(secured_kafka)))


@pytest.mark.parametrize("cluster", [False, True])
def test_redis_with_tls_and_the_documented_user(
    secured_kafka: SecuredKafka, deploy: Deploy, secure: Secure, redis_user: str, cluster: bool
) -> None:
    """The user needs each command that the documentation lists, and tries no other."""
    redis = secure(cluster=cluster)
    reset_counts(redis.server)
    assert refused(redis.server) == []
    own = deploy("secured", plain(secured_kafka) | redis.as_user)
    go_through(own, deploy("plain", plain(secured_kafka)))
    listed = commands_in(redis_user)
    if cluster:
        # Members are removed where slots have moved.
        listed |= commands_in(documented_for_clusters()) - {"srem"}
    assert listed - used(redis.server) == set()
    assert refused(redis.server) == []


def servers_of(redis: RedisServer | RedisCluster) -> list[RedisServer]:
    return redis.primaries if isinstance(redis, RedisCluster) else [redis]


def reset_counts(redis: RedisServer | RedisCluster) -> None:
    for server in servers_of(redis):
        with server.client() as client:
            client.config_resetstat()


def used(redis: RedisServer | RedisCluster) -> set[str]:
    """The commands that were carried out."""
    found: set[str] = set()
    for server in servers_of(redis):
        with server.client() as client:
            counted: Any = client.info("commandstats")
        found |= {name.removeprefix("cmdstat_") for name, one in counted.items() if one["calls"]}
    return found


def refused(redis: RedisServer | RedisCluster) -> list[str]:
    """What a user tried and was not allowed to: commands, keys, passwords."""
    found: list[str] = []
    for server in servers_of(redis):
        with server.client() as client:
            lines: Any = client.acl_log()
        found += [f"{one['reason']}: {one['object']}" for one in lines]
    return found
