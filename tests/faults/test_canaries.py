"""The harness can fail: what it is there to find is put there, and found."""

from __future__ import annotations

import base64
import random

import pytest
from kafka import KafkaProducer

from freshscore.config.errors import DamagedState
from tests.faults.campaigns import Lane
from tests.faults.conftest import Deploy
from tests.faults.expected import (
    Letters,
    check_account,
    check_features,
    check_states,
    expected_of,
    letters_of,
)
from tests.faults.identifiers import IdentifierFound, check_no_identifiers, forms_of
from tests.faults.scorers import (
    check_decisions,
    check_nothing_blocks,
    check_scores,
    told_by,
)
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.redis_servers import RedisServer


def test_what_is_wrong_is_found(
    deploy: Deploy, kafka: KafkaBroker, redis_server: RedisServer, seed: int
) -> None:
    """A lost record, a doubled state, a letter too many or too few, an identifier in hiding."""
    lane = Lane(deploy(kafka, redis_server, horizon_s=600), random.Random(seed))
    own = lane.deployment
    lane.flow(200)
    lane.finish()
    expected, letters = expected_of(own, [lane.stream]), letters_of(own)
    check_states(own, expected, lane.chance)

    at = next(iter(expected.reasons))
    without = {k: v for k, v in letters.by_position.items() if k != at}
    with pytest.raises(AssertionError, match="its letter says None"):
        check_account(expected, Letters(without, letters.whole))
    nowhere = (own.transactions, 0, 10**6)
    others = {**letters.by_position, nowhere: {"malformed"}}
    with pytest.raises(AssertionError, match="must be applied"):
        check_account(expected, Letters(others, {nowhere: ["malformed"]}))

    whole = [*expected.payments]
    lost = next(payment for payment, _ in whole if {"card", "merchant"} <= payment.entities.keys())
    expected.payments[:] = [one for one in whole if one[0].transaction_id != lost.transaction_id]
    with pytest.raises(AssertionError, match="states differ"):
        check_states(own, expected, lane.chance)
    with pytest.raises(AssertionError, match="not"):
        check_features(own, expected, lane.stream, 200, lane.clock.now_ms())
    expected.payments[:] = whole
    check_states(own, expected, lane.chance)

    hidden = base64.b64encode(f"a payment of {lane.stream.mark}-card-1".encode())
    for kind, held in (("a", hidden), ("b", lane.stream.mark.encode().hex().encode())):
        with redis_server.client() as client:
            client.hset(f"{own.name}:{kind}", "field", held)
            with pytest.raises(IdentifierFound):
                check_no_identifiers(own, [lane.stream.mark])
            client.delete(f"{own.name}:{kind}")
    check_no_identifiers(own, [lane.stream.mark])


def test_what_is_wrong_with_scorers_is_found(
    deploy: Deploy, kafka: KafkaBroker, redis_server: RedisServer, seed: int
) -> None:
    """A decision of nobody, one that is cut, a score on a lost payment, a name in a log."""
    lane = Lane(deploy(kafka, redis_server, horizon_s=600), random.Random(seed))
    own = lane.deployment
    own.begin()
    lane.begin_scorers(1)
    lane.flow_for(2.0)
    lane.finish()
    told = told_by(own.scorers_told)
    assert check_decisions(own, told) > 0
    with pytest.raises(AssertionError):
        check_decisions(own, told[len(told) // 2 :])

    expected = expected_of(own, [lane.stream])
    assert check_scores(own, expected, told, seed) > 0
    expected.payments[:] = expected.payments[: len(expected.payments) // 2]
    with pytest.raises(AssertionError, match="the score is"):
        check_scores(own, expected, told, seed)

    (decision, *_) = [one.value or b"" for one in own.read(own.decisions)]
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap)
    producer.send(own.decisions, decision[:-1])
    producer.close()
    with pytest.raises(DamagedState):
        check_decisions(own, told)

    with (own.folder / "scorer-0.log").open("a", encoding="utf-8") as log:
        log.write(f"a payment of {lane.stream.mark}-card-1")
    with pytest.raises(IdentifierFound, match=r"scorer-0\.log"):
        check_no_identifiers(own, [lane.stream.mark])


def test_a_scorer_that_died_blocks_for_its_lease_alone(
    deploy: Deploy, kafka: KafkaBroker, redis_server: RedisServer, seed: int
) -> None:
    """One that stands still blocks until its lease ends; then it serves nothing."""
    lane = Lane(deploy(kafka, redis_server, redis__lease_s=3.0), random.Random(seed))
    lane.deployment.begin()
    lane.begin_scorers(2)
    lane.flow_for(0.5)
    lane.kill_scorer()
    began_s = lane.clock.monotonic_s()
    check_nothing_blocks(lane.deployment, 3.0)
    assert lane.clock.monotonic_s() - began_s > 1.0
    began_s = lane.clock.monotonic_s()
    check_nothing_blocks(lane.deployment, 3.0)
    assert lane.clock.monotonic_s() - began_s < 1.5
    lane.finish(n_requests=2)


@pytest.mark.parametrize("before", ["", "a", "bc", "def"])
def test_a_mark_is_found_in_base64_at_any_alignment(before: str) -> None:
    mark = "BCDFGHJKLMNP"
    written = base64.b64encode(f"{before}{mark}-card-17".encode())
    assert any(form in written for form in forms_of(mark))
