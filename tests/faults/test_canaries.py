"""The harness can fail: what it is there to find is put there, and found."""

from __future__ import annotations

import base64
import random

import pytest

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


@pytest.mark.parametrize("before", ["", "a", "bc", "def"])
def test_a_mark_is_found_in_base64_at_any_alignment(before: str) -> None:
    mark = "BCDFGHJKLMNP"
    written = base64.b64encode(f"{before}{mark}-card-17".encode())
    assert any(form in written for form in forms_of(mark))
