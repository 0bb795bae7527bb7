"""Scoring on near states, on a real broker and a real Redis: what is near is what Redis has."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from kafka import KafkaProducer
from numpy.typing import NDArray

from freshscore import Result, Scorer, SettingsError, Unavailable
from freshscore.features.redis_keys import RedisKeys
from freshscore.invalidation.assembling import open_consumer
from freshscore.invalidation.publishing import STREAM
from tests.freshscore.shared_deployment import (
    CARDS,
    SharedDeployment,
    label,
    now_ms,
    payment,
    recent,
)
from tests.servers.redis_servers import RedisServer

_LIMIT_S = 60.0


def model(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores that tell the features apart. Without a version, so nobody shares them."""
    weights = np.arange(1, matrix.shape[1] + 1)
    return 1.0 / (1.0 + np.exp(-(np.nan_to_num(matrix) @ weights) / 1e5))


@contextmanager
def consuming(deployment: SharedDeployment) -> Iterator[None]:
    """A consumer at work, in a thread."""
    consumer = open_consumer(deployment.settings)
    thread = threading.Thread(target=consumer.run)
    thread.start()
    try:
        yield
    finally:
        consumer.stop()
        thread.join(_LIMIT_S)
        assert not thread.is_alive()


def until(is_so: Callable[[], bool]) -> None:
    """Wait, within the limit."""
    waiting = threading.Event()
    for _ in range(round(_LIMIT_S / 0.02)):
        if is_so():
            return
        waiting.wait(0.02)
    raise AssertionError("it did not come to be so")


def opened(deployment: SharedDeployment, *, near: bool, **more: object) -> Scorer:
    given = deployment.given | {"redis.near": near, "redis.near_max_bytes": 1 << 20}
    given |= {name.replace("__", "."): value for name, value in more.items()}
    return Scorer.open("shared", settings=given, model=model)


def is_applied(deployment: SharedDeployment) -> bool:
    """Whether Redis has all that the log has."""
    told = deployment.folder / "lag.json"
    # Not 0 while the node is rebuilt, as it is at first.
    is_whole = deployment.run("lag", "--json", told) == 0
    return is_whole and not any(one["behind"] for one in json.loads(told.read_text())["partitions"])


def asked(at_ms: int) -> list[dict[str, Any]]:
    """A payment of each card, not observed."""
    return [payment(9_000 + i, at_ms) for i in range(len(CARDS))]


def told(result: Result) -> tuple[Any, ...]:
    return result.score, result.feature_hash, result.state_versions, result.degraded


def agree(near: Scorer, plain: Scorer) -> bool:
    """Whether both answer alike, the near one without an exchange."""
    at_ms = now_ms() + 1_000
    before = near.stats()
    mine = [told(near.score(one, as_of=at_ms)) for one in asked(at_ms)]
    after = near.stats()
    is_near = after["near"]["hits"] - before["near"]["hits"] == len(CARDS)
    is_near &= all(near.score(one, as_of=at_ms).near for one in asked(at_ms))
    is_near &= after["store"]["exchanges"] == before["store"]["exchanges"]
    return is_near and mine == [told(plain.score(one, as_of=at_ms)) for one in asked(at_ms)]


def test_near_states_follow_payments_facts_and_own_observations(
    deployment: SharedDeployment,
) -> None:
    # A busy machine is silent for longer than three of the deployment's own.
    deployment.given["redis.heartbeat_s"] = 0.4
    payments = recent(60)
    with (
        consuming(deployment),
        opened(deployment, near=True) as near,
        opened(deployment, near=False) as plain,
    ):
        deployment.send(payments)
        until(lambda: is_applied(deployment))
        until(lambda: agree(near, plain))
        dropped = near.stats()["near"]["dropped"]
        # What others send, what is said of it, and what this scorer observes itself.
        deployment.send(recent(30, 100), [label(payments[3]), label(payments[5])])
        near.observe(payment(500, now_ms() - 500))
        near.flush(_LIMIT_S)
        until(lambda: is_applied(deployment))
        until(lambda: agree(near, plain))
        # They stayed near through all of it.
        assert near.stats()["near"]["dropped"] == dropped
        assert "near" not in plain.stats()


def test_an_own_observation_counts_at_once_on_near_states(deployment: SharedDeployment) -> None:
    with consuming(deployment), opened(deployment, near=True) as near:
        with opened(deployment, near=False) as plain:
            deployment.send(recent(60))
            until(lambda: is_applied(deployment))
            until(lambda: agree(near, plain))
        at_ms = now_ms() + 1_000
        before = near.score(asked(at_ms)[0], as_of=at_ms)
        near.observe(payment(600, now_ms() - 500))
        after = near.score(asked(at_ms)[0], as_of=at_ms)
        assert after.pending == 1 or after.state_versions != before.state_versions
        assert after.feature_hash != before.feature_hash


def test_near_states_wait_while_nobody_publishes_and_come_back(
    deployment: SharedDeployment,
) -> None:
    with opened(deployment, near=True) as near, opened(deployment, near=False) as plain:
        with consuming(deployment):
            deployment.send(recent(60))
            until(lambda: is_applied(deployment))
            until(lambda: agree(near, plain))
        until(lambda: not near.stats()["near"]["in_step"])
        hits = near.stats()["near"]["hits"]
        at_ms = now_ms() + 1_000
        for one in asked(at_ms):
            assert told(near.score(one, as_of=at_ms)) == told(plain.score(one, as_of=at_ms))
        assert near.stats()["near"]["hits"] == hits
        deployment.send(recent(12, 200))
        with consuming(deployment):
            until(lambda: agree(near, plain))


def test_what_one_node_holds_is_told_behind_it(
    deployment: SharedDeployment, redis_server: RedisServer
) -> None:
    """Without another exchange, and before anybody has read what the node answers."""
    deployment.given["redis.heartbeat_s"] = 1.9
    consumer = open_consumer(deployment.settings)
    stream = RedisKeys(deployment.settings.redis.namespace).control(STREAM)
    try:
        until(lambda: consumer.turn() == 0 and consumer.is_caught_up)
        with redis_server.client() as client:
            n_told = client.xlen(stream)
            deployment.send(recent(1))
            until(lambda: consumer.turn() == 1)
            until(lambda: client.xlen(stream) > n_told)
    finally:
        consumer.close()


def test_how_often_near_states_are_behind_redis_is_counted(deployment: SharedDeployment) -> None:
    """The cause `propagation`: applied in Redis, and not yet known here; and its limit is told."""
    deployment.given["redis.heartbeat_s"] = 0.4
    with consuming(deployment), opened(deployment, near=True) as near:
        with opened(deployment, near=False) as plain:
            deployment.send(recent(60))
            until(lambda: is_applied(deployment))
            until(lambda: agree(near, plain))
        states = getattr(near, "_states").near  # noqa: B009  # of the shared scorer alone
        states._probed = 1
        before = near.stats()["near"]["propagation"]
        for one in asked(now_ms() + 1_000):
            assert not near.score(one, as_of=now_ms() + 1_000).near
        found = near.stats()["near"]["propagation"]
        assert found["probes"] == before["probes"] + len(CARDS)
        assert found["behind"] == before["behind"]
        assert found["limit_ms"] == 1_200
        # What is published from now on is not told.
        states.states.apply = lambda *_: None
        first = itertools.count(100, len(CARDS))

        def is_behind() -> bool:
            deployment.send(recent(len(CARDS), next(first)))
            until(lambda: is_applied(deployment))
            for one in asked(now_ms() + 1_000):
                near.score(one, as_of=now_ms() + 1_000)
            return bool(near.stats()["near"]["propagation"]["behind"] > before["behind"])

        until(is_behind)


def test_the_ends_of_transactions_are_no_gaps(deployment: SharedDeployment) -> None:
    """Offsets without a message, passed while nothing comes behind them: states stay near."""
    kafka = deployment.settings.kafka
    producer = KafkaProducer(
        bootstrap_servers=kafka.bootstrap_servers, transactional_id=uuid.uuid4().hex, acks="all"
    )
    producer.init_transactions()
    with (
        consuming(deployment),
        opened(deployment, near=True) as near,
        opened(deployment, near=False) as plain,
    ):
        deployment.send(recent(60))
        until(lambda: is_applied(deployment))
        until(lambda: agree(near, plain))
        for first in (100, 110, 120):
            producer.begin_transaction()
            for number, one in enumerate(recent(10, first)):
                value = json.dumps(one).encode()
                producer.send(kafka.transactions_topic, value, partition=number % 2)
            producer.commit_transaction()
            # Only a consumer that has passed the end of the transaction is at the end.
            until(lambda: is_applied(deployment))
            until(lambda: agree(near, plain))
        producer.close()
        assert near.stats()["near"]["gaps"] == 0


class Stopped:
    """A scorer in a process of its own."""

    def __init__(self, deployment: SharedDeployment, *, is_protected: bool) -> None:
        given = deployment.given | {"redis.near": True, "redis.near_max_bytes": 1 << 20}
        words = [json.dumps(given), "yes" if is_protected else "no"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.freshscore.near_process", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def order(self, order: dict[str, Any]) -> None:
        """Write one, to be answered later."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The answer to the next order."""
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def scores(self, orders: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What it answers to some."""
        for one in orders:
            self.order(one)
        return [self.answer() for _ in orders]


@pytest.mark.parametrize("is_protected", [True, False])
def test_a_scorer_that_was_stopped_and_is_woken_serves_nothing_old(
    deployment: SharedDeployment, is_protected: bool
) -> None:
    """Its first answers, before its follower has read anything. Unprotected it does: a canary."""
    heartbeat_s = 0.2
    deployment.given["redis.heartbeat_s"] = heartbeat_s
    stopped = Stopped(deployment, is_protected=is_protected)

    def orders() -> list[dict[str, Any]]:
        return [{"score": one, "as_of": at_ms} for one in asked(at_ms)]

    try:
        with consuming(deployment), opened(deployment, near=False) as plain:
            at_ms = now_ms() + 600_000
            deployment.send(recent(60))
            until(lambda: is_applied(deployment))
            until(lambda: all(one["near"] for one in stopped.scores(orders())))
            stopped.order({"slow": True})
            stopped.answer()
            stopped.process.send_signal(signal.SIGSTOP)
            deployment.send(recent(24, 100))
            until(lambda: is_applied(deployment))
            # Beyond the bound: a minute, on the scale of these heartbeats.
            threading.Event().wait(6 * heartbeat_s)
            for one in orders():
                stopped.order(one)
            stopped.process.send_signal(signal.SIGCONT)
            found = [stopped.answer() for _ in CARDS]
            due = [plain.score(one, as_of=at_ms).state_versions for one in asked(at_ms)]
        assert ([one["versions"] for one in found] == due) == is_protected
        assert any(one["near"] for one in found) != is_protected
    finally:
        stopped.process.kill()
        stopped.process.wait()


def test_near_states_need_a_connection_of_their_own(deployment: SharedDeployment) -> None:
    given = deployment.given | {"redis.near": True, "redis.max_connections": 2}
    with pytest.raises(SettingsError, match=r"max_connections = 2: near states need"):
        Scorer.open("shared", settings=given, model=model)


def test_near_states_answer_while_redis_stands_still_and_say_how_old_they_are(
    deployment: SharedDeployment, redis_server: RedisServer
) -> None:
    """Also beyond the silence after which they are forgotten once Redis answers again."""

    def agree_again() -> bool:
        try:
            return agree(near, plain)
        except Unavailable:
            return False

    waiting = threading.Event()
    with (
        consuming(deployment),
        # Longer than this machine may stand still by itself.
        opened(deployment, near=True, redis__heartbeat_s=0.3) as near,
        opened(deployment, near=False) as plain,
    ):
        deployment.send(recent(60))
        until(lambda: is_applied(deployment))
        until(lambda: agree(near, plain))
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            until(lambda: not near.stats()["near"]["in_step"])
            waiting.wait(0.3)
            at_ms = now_ms() + 1_000
            first = [near.score(one, as_of=at_ms, deadline_ms=200) for one in asked(at_ms)]
            waiting.wait(0.3)
            later = [near.score(one, as_of=at_ms, deadline_ms=200) for one in asked(at_ms)]
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        assert {one.degraded for one in (*first, *later)} == {("states not current",)}
        ages = [
            (one.known_age_ms or 0, two.known_age_ms or 0)
            for one, two in zip(first, later, strict=True)
        ]
        assert all(150 <= one <= two - 290 for one, two in ages), ages
        until(agree_again)
        # Nothing had been sent meanwhile, so what was known was all that there was.
        for one, found in zip(asked(at_ms), first, strict=True):
            assert told(found)[:3] == told(plain.score(one, as_of=at_ms))[:3]
