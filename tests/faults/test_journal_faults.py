"""Kafka goes away: scorers score and observe on, what they observe waits on the disk, and all of it
arrives, whoever died meanwhile; what cannot wait is told to the caller.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from freshscore.config.clock import SystemClock
from freshscore.config.errors import Backpressure
from freshscore.features.transaction import Transaction
from freshscore.scoring.scorer import Scorer
from tests.faults.campaigns import Lane, say
from tests.faults.conftest import Deploy
from tests.faults.deployment import MATERIAL, Deployment, wait_until
from tests.faults.expected import check_account, check_states, expected_of, letters_of
from tests.faults.scorer_process import answers_of, model
from tests.faults.scorers import meant_by, told_by
from tests.faults.streams import Stream
from tests.servers.fixtures import OwnKafka
from tests.servers.redis_servers import RedisServer

_EVERY_S = 0.02
_DEADLINE_MS = 2_000.0
_LONG = 6


def test_kafka_away_and_a_scorer_killed_and_everything_arrives(
    deploy: Deploy, own_kafka: OwnKafka, redis_server: RedisServer, seed: int, tmp_path: Path
) -> None:
    """What a killed scorer has observed is sent by one that began while Kafka was away."""
    _away(deploy, own_kafka, redis_server, seed, tmp_path / "journal", 1)


@pytest.mark.soak
def test_kafka_away_and_scorers_killed_again_and_again(
    deploy: Deploy, own_kafka: OwnKafka, redis_server: RedisServer, seed: int, tmp_path: Path
) -> None:
    """The same, longer."""
    _away(deploy, own_kafka, redis_server, seed, tmp_path / "journal", _LONG)


def _away(
    deploy: Deploy, own_kafka: OwnKafka, redis: RedisServer, seed: int, folder: Path, n: int
) -> None:
    own = deploy(
        own_kafka(),
        redis,
        horizon_s=600,
        journal__path=str(folder),
        journal__margin_s=60.0,
        journal__fsync_s=0.1,
        redis__pending_s=0.5,
    )
    lane = Lane(own, random.Random(seed))
    own.begin(1)
    _scorer(lane)
    for _ in range(n):
        lane.flow_for(0.5)
        own.broker.kill()
        _wait_for_observed(own, 25)
        lane.kill_scorer()
        _scorer(lane)
        _wait_for_observed(own, 25)
        own.broker.start()
        say(f"journal: {len(_answers(own))} payments so far")
    seen = lane.finish()
    answers = _answers(own)
    observed = {one["transaction_id"] for one in answers if one["is_observed"]}
    arrived = Counter(
        payment.transaction_id for payment, _ in expected_of(own, [lane.stream]).payments
    )
    assert len(observed) == len(answers)
    assert observed <= arrived.keys()
    slowest = {name: max(one[name] for one in answers) for name in ("score_ms", "observe_ms")}
    assert slowest["score_ms"] < _DEADLINE_MS
    assert [one["problem"] for one in answers if "problem" in one] == []
    n_twice = sum(arrived[one] > 1 for one in observed)
    print(
        f"Kafka away, seed {seed}: {len(observed)} observed, 0 lost, {n_twice} twice in the log and"
        f" once in the states; slowest {slowest}; {seen}"
    )
    # Nothing is left to anybody.
    assert [*folder.glob("*/*")] == []


def _scorer(lane: Lane) -> None:
    own = lane.deployment
    told = own.folder.with_name(f"{own.folder.name}-told-{len(own.scorers_told)}")
    scorer = own.start_scorer(
        lane.stream.mark, lane.chance.getrandbits(32), told, _EVERY_S, _DEADLINE_MS
    )
    wait_until(lambda: scorer.has_begun, "the scorer has begun")


def _answers(own: Deployment) -> list[dict[str, Any]]:
    return told_by([answers_of(one) for one in own.scorers_told])


def _wait_for_observed(own: Deployment, n: int) -> None:
    """Until so many more were observed."""
    before = len(_answers(own))
    wait_until(lambda: len(_answers(own)) >= before + n, f"{n} payments are observed")


@contextmanager
def _opened(own: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scorer]:
    monkeypatch.setenv("FRESHSCORE_SECRET", MATERIAL.hex())
    with Scorer.open("shared", settings=own.settings, model=model()) as scorer:
        yield scorer


def test_what_would_come_too_late_is_refused_and_what_does_is_dead_lettered(
    deploy: Deploy,
    own_kafka: OwnKafka,
    redis_server: RedisServer,
    seed: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And while it waits it counts here, for longer than events that Kafka has."""
    folder = tmp_path / "journal"
    own = deploy(
        own_kafka(),
        redis_server,
        horizon_s=4,
        journal__path=str(folder),
        journal__margin_s=2.0,
        redis__pending_s=0.1,
    )
    stream, told, clock = Stream(own, random.Random(seed)), list[dict[str, Any]](), SystemClock()
    card = {"card": f"{stream.mark}-one", "merchant": f"{stream.mark}-shop"}

    def next_payment() -> Transaction:
        told.append(stream.content(len(told), clock.now_ms()) | {"entities": card})
        return Transaction.of(told[-1])

    own.begin()
    with _opened(own, monkeypatch) as scorer:
        scorer.observe(next_payment())
        scorer.flush(20.0)
        own.broker.kill()
        away_s = clock.monotonic_s()
        for _ in range(5):
            scorer.observe(next_payment())
        refusals = list[str]()

        def is_refused() -> bool:
            payment = next_payment()
            result = scorer.score(payment, deadline_ms=_DEADLINE_MS)
            try:
                scorer.observe(payment)
            except Backpressure as refused:
                told.pop()
                refusals.append(str(refused))
            n_waiting = scorer.stats()["feed"]["sent"] - 1
            # All that waits counts here.
            assert result.pending >= min(n_waiting, len(told) - 2)
            return bool(refusals)

        wait_until(is_refused, "what would come too late is refused", 15.0)
        assert "beyond 2000 ms (store.horizon_s without journal.margin_s)" in refusals[0]
        wait_until(lambda: clock.monotonic_s() > away_s + 4.5, "some are too late")
        own.broker.start()
        scorer.flush(40.0)
        scorer.observe(next_payment())
        scorer.flush(20.0)
        stats = scorer.stats()
    own.wait_until_whole()
    stream.meant |= meant_by(own, told)
    expected = expected_of(own, [stream])
    outcomes = check_account(expected, letters_of(own))
    check_states(own, expected, random.Random(seed))
    print(f"too late, seed {seed}: {len(told)} observed, {outcomes}, {stats['feed']}")
    assert outcomes["late"] == stats["feed"]["late"] > 4
    assert {payment.transaction_id for payment, _ in expected.payments} >= {
        told[0]["transaction_id"],
        told[-1]["transaction_id"],
    }
    assert expected.n_messages == len(told) == stats["feed"]["sent"]
    assert stats["journal"]["refused"] == len(refusals)


def _refusal_of(take: Callable[[], None]) -> str:
    """What is said once there is no more room."""
    for _ in range(1_000):
        try:
            take()
        except Backpressure as refused:
            return str(refused)
    raise AssertionError("the journal is never full")


def test_a_full_journal_is_told_and_no_score_waits_for_it(
    deploy: Deploy,
    kafka: Any,
    redis_server: RedisServer,
    seed: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The scorer begins while Kafka is away, and another sends when it is there."""
    folder = tmp_path / "store"
    own = deploy(
        kafka,
        redis_server,
        horizon_s=3_600,
        store__path=str(folder),
        journal__max_bytes=32_000,
    )
    own.begin()
    stream, clock = Stream(own, random.Random(seed)), SystemClock()
    own.settings["kafka.bootstrap_servers"] = "127.0.0.1:1"
    told = list[dict[str, Any]]()
    with _opened(own, monkeypatch) as scorer:

        def observe() -> None:
            told.append(stream.content(len(told), clock.now_ms()))
            scorer.observe(told[-1])

        def label() -> None:
            first = told[0]
            about = {"entities": first["entities"], "time": first["time"]}
            scorer.label(first["transaction_id"], fraud=True, **about)

        refusal = _refusal_of(observe)
        told.pop()
        assert "journal.max_bytes is 32000, and 3" in refusal
        assert "bytes wait for Kafka" in refusal
        # Labels have room of their own.
        label()
        scorer.score(stream.content(2_000, clock.now_ms()), deadline_ms=_DEADLINE_MS)
        stats = scorer.stats()
        feed = stats["feed"]
        assert (feed["sent"], feed["not sent"], feed["fact sent"]) == (len(told), 1, 1)
        assert stats["store"]["pending"] == len(told)
        assert 30_000 < stats["journal"]["bytes"] <= 33_000
    own.settings["kafka.bootstrap_servers"] = kafka.bootstrap
    with _opened(own, monkeypatch) as scorer:
        journal = folder / "journal"
        wait_until(lambda: len([*journal.glob("*/*")]) == 2, "the dead's journals are sent")
        assert scorer.stats()["journal"]["acknowledged"] == len(told) + 1
    own.wait_until_done()
    stream.meant |= meant_by(own, told)
    expected = expected_of(own, [stream])
    assert len(expected.payments) == len(told) > 50
    check_states(own, expected, random.Random(seed))
