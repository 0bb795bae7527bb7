"""Damaged messages: no crash, each is applied or has its dead letter, and the counts add up."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from freshscore.config.clock import SystemClock
from freshscore.config.settings import Settings
from freshscore.invalidation.batches import Batcher, Messages
from tests.faults.campaigns import Lane, say
from tests.faults.conftest import Deploy
from tests.faults.deployment import Ground
from tests.faults.expected import Refused, plain_label, plain_payment
from tests.faults.fuzzing import fuzzed
from tests.faults.streams import Stream
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.redis_servers import RedisServer

_AT_ONCE = 5_000
_ROUNDS = 20
_A_ROUND = 50_000


def _fuzzed_lane(deploy: Deploy, kafka: KafkaBroker, redis: RedisServer, seed: int, n: int) -> Lane:
    """`n` damaged messages through the broker, while two consumers work."""
    own = deploy(kafka, redis, horizon_s=86_400, kafka__max_poll_records=5_000)
    lane = Lane(own, random.Random(seed))
    own.begin(2)
    for _ in range(0, n, _AT_ONCE):
        lane.sender.send_all(fuzzed(lane.stream, _AT_ONCE, lane.clock.now_ms()))
    own.wait_until_done(limit_s=300.0)
    print(f"fuzzed, seed {seed}: {lane.finish(n_requests=0)}")
    return lane


def test_fuzzed_messages_are_applied_or_set_aside(
    deploy: Deploy, kafka: KafkaBroker, redis_server: RedisServer, seed: int
) -> None:
    """40,000 through the real broker."""
    lane = _fuzzed_lane(deploy, kafka, redis_server, seed, 40_000)
    assert lane.seen.outcomes["applied"] > 1_000
    assert lane.seen.outcomes["malformed"] > 1_000


def _fuzz_in_process(seed: int, n: int) -> None:
    """`n` damaged messages through the batch pipeline alone: one outcome each, the plain one."""
    ground = Ground("fuzzed", horizon_s=86_400)
    settings = Settings.model_validate(
        {
            "kafka": {"max_message_bytes": ground.max_message_bytes, "max_poll_records": _AT_ONCE},
            "store": {"horizon_s": 86_400},
        }
    )
    batcher = Batcher.of(settings, ground.program, ground.keys, np.zeros(16_384, np.uint16))
    stream = Stream(ground, random.Random(seed))
    now_ms = SystemClock().now_ms()
    said = Counter[str]()
    for _ in range(0, n, _AT_ONCE):
        drawn = fuzzed(stream, _AT_ONCE, now_ms)
        parts = [[value for at, value in drawn if at == topic] for topic in ground.sources]
        payments, labels = (Messages.of(part, [now_ms] * len(part)) for part in parts)
        built = batcher.build(payments, labels, now_ms)
        assert sum(built.counts.values()) == _AT_ONCE
        refused = {(one.is_label, one.index): one.reason for one in built.refused}
        assert len(refused) == len(built.refused)
        for is_label, part in enumerate(parts):
            for index, value in enumerate(part):
                reason = refused.get((bool(is_label), index))
                plain = _plain_reason(ground, value, now_ms, is_label=bool(is_label))
                assert plain == reason or (plain is None and reason == "conflict"), (plain, reason)
                said[reason or "applied"] += 1
    print(f"in process, seed {seed}: {said}")


def _plain_reason(
    ground: Ground, value: bytes | None, now_ms: int, *, is_label: bool
) -> str | None:
    try:
        if is_label:
            plain_label(value, now_ms, ground, {})
            return None
        payment = plain_payment(value, ground, {})
    except Refused as refused:
        return str(refused)
    if payment.time < now_ms - ground.horizon_ms:
        return "late"
    return "early" if payment.time > now_ms + ground.skew_ms else None


def test_fuzzed_messages_have_the_outcome_that_plain_reading_gives(seed: int) -> None:
    """50,000 through the batch pipeline, without servers."""
    _fuzz_in_process(seed, 50_000)


@pytest.mark.soak
def test_a_million_fuzzed_messages_in_process(seed: int) -> None:
    """The same, longer."""
    for number in range(_ROUNDS):
        say(f"round {number + 1} of {_ROUNDS}")
        _fuzz_in_process(seed + number, _A_ROUND)


@pytest.mark.soak
def test_a_million_fuzzed_messages(
    deploy: Deploy, kafka: KafkaBroker, redis_server: RedisServer, seed: int
) -> None:
    """In rounds of 50,000: the plain reading holds them all in memory."""
    n_messages = 0
    for number in range(_ROUNDS):
        lane = _fuzzed_lane(deploy, kafka, redis_server, seed + number, _A_ROUND)
        n_messages += sum(lane.seen.outcomes.values())
        lane.deployment.remove()
        say(f"round {number + 1} of {_ROUNDS}: {n_messages:,} messages so far")
    assert n_messages >= _ROUNDS * _A_ROUND
