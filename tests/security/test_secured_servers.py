"""Over servers that ask who comes, everything works, and answers what plain servers give."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from freshscore import CallableModel, CohortThresholds, Result, Scorer
from freshscore.config.clock import SystemClock
from freshscore.config.loading import load_settings
from freshscore.features.packing import Packer
from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_door import command
from freshscore.features.redis_erasing import Eraser
from freshscore.features.redis_former_nodes import forget_former_nodes
from freshscore.features.redis_scripts import KEEP, SWAP
from freshscore.features.transaction import Transaction
from freshscore.invalidation.control import Control
from freshscore.invalidation.deployment import Deployment
from freshscore.invalidation.deployment import opened as opened_deployment
from freshscore.invalidation.holding import Hold
from freshscore.scoring.shadow_opening import open_shadow
from tests.freshscore.shadows import turns_until, with_model
from tests.freshscore.shared_deployment import (
    CARDS,
    MERCHANTS,
    label,
    now_ms,
    payment,
    recent,
)
from tests.freshscore.test_shared_backfill import file_of, past
from tests.security.access_rules import ROLES, Role, commands_of, kafka_rules
from tests.security.conftest import (
    Deploy,
    SecuredRedis,
    plain,
    with_certificate,
    with_password,
)
from tests.security.guarded import Guarded
from tests.servers.redis_servers import RedisCluster, RedisServer
from tests.servers.secured_kafka import Rule, SecuredKafka

Secure = Callable[..., SecuredRedis]
Watch = Callable[[str], contextlib.AbstractContextManager[None]]
_MODEL_MS = 4
_HEARD_WITHIN_S = 30.0
_BY_RULE = re.compile(
    r"is Allowed .*based on rule MatchingAcl\(acl=StandardAcl\(resourceType=(\w+),"
    r" resourceName=(\S+), patternType=LITERAL, principal=User:(\S+), host=\*, operation=(\w+),"
    r" permissionType=ALLOW"
)


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


def opened(deployment: Guarded) -> Scorer:
    return Scorer.open("shared", settings=deployment.given_to("scorer"), model=MODEL)


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


def unwatched(*_: str) -> contextlib.nullcontext[None]:
    """Nobody looks at what is used."""
    return contextlib.nullcontext()


def go_through(own: Guarded, beside: Guarded, during: Watch = unwatched) -> None:
    """A stream, scores, what scorers send, invalidations, verification; twice with equal ends.

    during: told who is at work, where it is one kind of process alone, or an operator and a scorer.
    """
    with during("operator"):
        assert own.run("topics", "check", "--create") == 0
    payments = recent(60)
    labels = [label(payments[3]), label(payments[5], looked_up=False)]
    own.send([*payments, *payments[:9]], labels)
    own.send_bytes(own.settings.kafka.transactions_topic, [b"no payment"])
    with during("consumer"):
        applied = own.consume()
    assert applied == beside.consume()
    at_ms = now_ms() + 1_000
    with opened(beside) as other:
        with during("scorer"), opened(own) as scorer:
            assert answers(scorer, at_ms) == answers(other, at_ms)
            mine = payment(7_000, now_ms())
            scorer.observe(mine)
            scorer.label("payment-7", fraud=True)
            assert scorer.score(requests(at_ms)[mine_card(mine)], as_of=at_ms).pending == 1
            scorer.flush(30.0)
        with Scorer.open(
            "shared", settings=own.given_to("scorer") | {"redis.near": True}, model=dear
        ) as near:
            assert own.consume() == beside.consume()
            consume_until_heard(own, near)
            # It has looked whether that is all.
            threading.Event().wait(0.5)
            assert near.stats()["near"]["messages"] > 0
            assert near.stats()["near"]["troubles"] == 0
            with during("scorer"):
                threading.Event().wait(0.5)
        with opened(own) as scorer:
            at_ms = now_ms() + 2_000
            with during("scorer"):
                assert answers(scorer, at_ms) == answers(other, at_ms)
            with own.opened() as found, beside.opened() as plainly:
                assert versions(found) == versions(plainly)
                card = own.token(found, "card", CARDS[0]).hex()
            assert scorer.stats()["remote_scores"]["sent"] > 0
            with during("scorer and operator"):
                ended = own.figures("cache", "invalidate", "--entity", "card", "--hash", card)
            assert (ended["n_scorers"], ended["n_behind"], ended["n_dropped"]) == (1, 0, 1)
            assert own.run("cache", "invalidate", "--everything") == 0
            with during("scorer"):
                assert answers(scorer, at_ms) == answers(other, at_ms)
    with opened_deployment(load_settings("shared", settings=own.given_to("scorer"))) as found:
        # The lease of one that has died.
        Control(found.nodes, found.settings.redis.namespace).renew("dead", 1, -1)
    with during("operator"):
        by_an_operator(own, card, payments[0]["time"] - 1_000)
    with during("consumer"):
        assert own.consume()["erased"] == 1
    with own.opened() as found:
        assert not any(versions(found)[0][:1])


def go_beside(own: Guarded, during: Watch = unwatched) -> None:
    """A shadow answers what comes, with states near."""
    with_model(own)
    given = own.given_to("shadow") | {"redis.near": True}
    with during("shadow"):
        shadow = open_shadow(load_settings("shared", settings=given))
        turns_until(shadow, lambda: shadow.n_partitions == 2)
        own.send(recent(20, first=8_000))
        turns_until(shadow, lambda: shadow.counts.n_messages == 20)
    own.consume()
    consume_until_heard(own, shadow._parts.scorer)
    with during("shadow"):
        # It looks whether that is all.
        threading.Event().wait(0.5)
        shadow.close()
    assert shadow.counts.n_published == 20


def by_an_operator(own: Guarded, card: str, before_ms: int) -> None:
    """What an operator does while no scorer is at work."""
    own.run("cache", "invalidate", "--everything")
    own.figures("cache", "show", "--entity", "card", "--hash", card, "--model", MODEL.version)
    verified = own.figures("verify")
    assert {one["verdict"] for one in verified["states"]["findings"]} == {"equal"}
    assert own.figures("lag")
    own.figures("entities", "show", "--entity", "card", "--hash", card)
    assert len(own.figures("dead-letters", "list")["letters"]) == 1
    own.run("dead-letters", "resend")
    own.figures("backfill", "--data", file_of(own, past(40, before_ms)))
    with own.opened() as found:
        # What a long backfill does.
        clock = Later()
        with Hold(found.nodes, found.redis_keys, "tests", 600.0, clock) as hold:
            clock.ahead_s = 590.0
            hold.renew()
    # Nobody consumes, so it is not seen to be carried out.
    asked = ("entities", "forget", "--entity", "card", "--hash", card)
    assert own.run(*asked, kafka__request_timeout_s=1.0) == 1


def consume_until_heard(own: Guarded, near: Scorer) -> None:
    """Of what was published before it listened a follower never hears, and looks for nothing."""
    clock = SystemClock()
    ends_s = clock.monotonic_s() + _HEARD_WITHIN_S
    while not near.stats()["near"]["messages"]:
        assert clock.monotonic_s() < ends_s, "the follower hears nothing"
        own.consume()


def mine_card(mine: dict[str, Any]) -> int:
    return CARDS.index(mine["entities"]["card"])


def test_kafka_with_a_password_over_tls_and_the_rights_of_the_deployment(
    secured_kafka: SecuredKafka, deploy: Deploy, tmp_path: Path
) -> None:
    """Each process needs each right that it is given, and tries nothing else."""
    broker = secured_kafka
    own = deploy("secured", {}, {role: with_password(broker, role) for role in ROLES})
    rules = kafka_rules(tmp_path, named_in(own))
    broker.allow(rules)
    n_before = len(broker.decisions())
    go_through(own, deploy("plain", plain(broker)))
    go_beside(own)
    said = broker.decisions()[n_before:]
    assert [line for line in said if "is Denied" in line] == []
    assert {*rules} - {told_of(line) for line in said} == set()


def named_in(own: Guarded) -> dict[str, str]:
    """The names that config/deploy/kafka-acls.sh asks for."""
    kafka = own.settings.kafka
    return {
        "TRANSACTIONS": kafka.transactions_topic,
        "LABELS": kafka.labels_topic,
        "DECISIONS": kafka.decisions_topic,
        "DEAD_LETTERS": kafka.dead_letters_topic,
        "GROUP": kafka.group,
    }


def told_of(line: str) -> Rule | None:
    """The rule by which the broker allowed something, as its log says; None for no such line."""
    found = _BY_RULE.search(line)
    if found is None:
        return None
    kind, name, user, operation = found.groups()
    words = "".join(word.capitalize() for word in operation.split("_"))
    return Rule(user, words, kind.lower(), name)


def test_kafka_with_a_client_certificate(secured_kafka: SecuredKafka, deploy: Deploy) -> None:
    own = deploy("secured", with_certificate(secured_kafka))
    go_through(own, deploy("plain", plain(secured_kafka)))


@pytest.mark.parametrize("cluster", [False, True])
def test_redis_with_tls_and_the_users_of_the_deployment(
    secured_kafka: SecuredKafka, deploy: Deploy, secure: Secure, cluster: bool
) -> None:
    """Each user needs each command that its line has, and no process tries another."""
    redis = secure(cluster=cluster)
    assert refused(redis.server) == []
    own = deploy("secured", plain(secured_kafka), redis.roles)
    at_work = AtWork(redis.server)
    go_through(own, deploy("plain", plain(secured_kafka)), at_work.during)
    go_beside(own, at_work.during)
    # So the rights that folding early needs are among those that were used.
    assert n_buckets(redis.server) > 0
    work_that_is_rare(own, at_work)
    for role in ROLES:
        of_clusters = {"cluster|slots", "sadd", "smembers", "srem"}
        needed = commands_of(role) - (set() if cluster else of_clusters)
        if role == "consumer" and not cluster:
            # Of nodes that have lost what the log lacks too, or slots.
            needed -= {"del"}
        assert needed - at_work.used(role) == set(), role
    assert refused(redis.server) == []


def work_that_is_rare(own: Guarded, at_work: AtWork) -> None:
    """What a stream of a few seconds does not bring about."""
    for role in ("consumer", "operator"):
        with opened_deployment(load_settings("shared", settings=own.given_to(role))) as found:
            key = found.redis_keys.markers("0") + role.encode()
            given = (hashlib.sha1(b"x", usedforsecurity=False).hexdigest().encode(), b"y")
            kept = (b"2", key, key + b":p", b"x", b"60", b"1000", b"z")
            keeping = command(b"EVALSHA", KEEP.digest, *kept)
            swapping = command(b"EVALSHA", SWAP.digest, b"1", key, b"1", *given, b"60")
            with at_work.during(role):
                replies_to(found.nodes, [(b"0", command(b"APPEND", key, b"x"))])
                assert replies_to(found.nodes, [(b"0", keeping), (b"0", swapping)]) == [[1], 1]
            if role == "consumer":
                with at_work.during(role):
                    Eraser(found.store).erase((1, bytes(16)), now_ms())
            if role == "consumer" and found.settings.redis.cluster:
                with at_work.during(role):
                    assert forget_former_nodes(found.nodes, found.redis_keys) == 0
                layouts = found.redis_keys.markers("").rpartition(b":")[2].decode()
                known = found.redis_keys.control(f"tags:{layouts}")
                former = command(b"SADD", known, b"12345")
                replies_to(found.nodes, [(b"control", former)])
                with at_work.during(role):
                    assert forget_former_nodes(found.nodes, found.redis_keys) == 1


class AtWork:
    """Which commands were carried out while one kind of process was at work."""

    def __init__(self, redis: RedisServer | RedisCluster) -> None:
        self._redis = redis
        self._used: dict[str, set[str]] = {}

    @contextlib.contextmanager
    def during(self, who: str) -> Iterator[None]:
        """Look at what is carried out while the context lasts."""
        reset_counts(self._redis)
        yield
        self._used[who] = self._used.get(who, set()) | used(self._redis)

    def used(self, role: Role) -> set[str]:
        """What is an operator's beside a scorer is what no scorer does without one."""
        both = self._used["scorer and operator"] - self._used["scorer"]
        return self._used[role] | (both if role == "operator" else set())


def servers_of(redis: RedisServer | RedisCluster) -> list[RedisServer]:
    return redis.primaries if isinstance(redis, RedisCluster) else [redis]


def n_buckets(redis: RedisServer | RedisCluster) -> int:
    """How many keys hold what was folded early of a merchant."""
    n = 0
    for server in servers_of(redis):
        with server.client() as client:
            n += sum(1 for _ in client.scan_iter(match="*:p?*", count=1_000))
    return n


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
