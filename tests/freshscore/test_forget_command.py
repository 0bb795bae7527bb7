"""`freshscore entities forget`: what was before is gone everywhere, and does not come back."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from freshscore import Result, Scorer
from freshscore.features.redis_commands import remove_namespace, replies_to
from freshscore.features.redis_keys import tag_of
from freshscore.features.redis_lines import command
from tests.freshscore.shared_deployment import (
    CARDS,
    MERCHANTS,
    SharedDeployment,
    label,
    now_ms,
    payment,
    recent,
)
from tests.freshscore.test_near_scoring import agree, consuming, is_applied, model, opened, until


def forget(
    deployment: SharedDeployment, monkeypatch: pytest.MonkeyPatch, identifier: str, code: int = 0
) -> dict[str, Any]:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{identifier}\n"))
    found: dict[str, Any] = deployment.figures("entities", "forget", "--entity", "card", code=code)
    return found


def shown(deployment: SharedDeployment, token: str, code: int = 0) -> dict[str, Any]:
    words = ("entities", "show", "--entity", "card", "--hash", token)
    found: dict[str, Any] = deployment.figures(*words, code=code)
    return found


def scored(deployment: SharedDeployment, number: int) -> Result:
    with Scorer.open("shared", settings=deployment.given, model=model) as scorer:
        return scorer.score(payment(number, now_ms()))


def test_a_card_is_forgotten_and_its_merchant_is_not(
    deployment: SharedDeployment,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its labels do not bring it back, and neither does the log when it is read again."""
    payments = recent(24)
    deployment.send(payments, [label(payments[1])])
    deployment.consume()
    before = scored(deployment, 1)
    with consuming(deployment):
        found = forget(deployment, monkeypatch, CARDS[1])
    assert (found["is_carried_out"], found["entity"]) == (True, "card")
    after = scored(deployment, 1)
    assert before.state_versions["merchant"] == after.state_versions["merchant"]
    assert after.state_versions["card"] == "0" * 32
    # Nobody is to wait for what was erased: since when there is history is said, and no more.
    assert after.degraded == ()
    assert after.complete_since == found["below_ms"]
    card = shown(deployment, found["token"])
    assert (card["n_events"], card["n_facts"], card["is_erased"]) == (0, 0, True)
    late, new = payment(31, found["below_ms"] - 60_000), payment(37, now_ms())
    deployment.send([late, new], [label(payments[7]), label(payments[7], looked_up=False)])
    deployment.consume()
    assert shown(deployment, found["token"])["n_events"] == 1
    other = scored(deployment, 2).complete_since
    # Since the deployment began.
    assert other is not None
    assert other < found["below_ms"]
    assert deployment.run("verify", "--sample", "100") == 0
    _lose(deployment)
    assert deployment.consume()["erased"] == 1
    card = shown(deployment, found["token"])
    assert (card["n_events"], card["is_erased"]) == (1, True)
    assert deployment.run("verify", "--sample", "100") == 0
    said = capsys.readouterr()
    for identifier in (*CARDS, *MERCHANTS, "payment-"):
        assert identifier not in said.out + said.err


def test_the_order_waits_for_a_consumer(
    deployment: SharedDeployment,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    deployment.send(recent(12))
    deployment.consume()
    monkeypatch.setitem(deployment.given, "kafka.request_timeout_s", 1.0)
    found = forget(deployment, monkeypatch, CARDS[1], code=1)
    assert not found["is_carried_out"]
    assert "no consumer has carried it out yet" in capsys.readouterr().err
    assert shown(deployment, found["token"])["n_events"] == 2
    deployment.consume()
    assert shown(deployment, found["token"])["n_events"] == 0
    assert deployment.run("verify", "--sample", "100") == 0


def test_a_damaged_state_is_erased_and_stays_damaged(
    deployment: SharedDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.send(recent(12))
    deployment.consume()
    with deployment.opened() as found:
        token = deployment.token(found, "card", CARDS[1])
        key = found.store.reading.state_key(0, token)
        torn = command(b"APPEND", key, b"torn")
        assert all(replies_to(found.nodes, [(tag_of(token), torn)]))
    with consuming(deployment):
        assert forget(deployment, monkeypatch, CARDS[1])["is_carried_out"]
    card = shown(deployment, token.hex(), code=1)
    assert (card["problem"], card["is_erased"]) == ("state damaged", True)
    assert scored(deployment, 1).degraded == ("state damaged",)


def test_a_scorer_with_near_states_forgets_too(
    deployment: SharedDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the card, and is told of the erasure as of any event."""
    deployment.send(recent(24))
    with consuming(deployment), opened(deployment, near=True) as near:
        until(lambda: is_applied(deployment))
        with opened(deployment, near=False) as plain:
            until(lambda: agree(near, plain))
            held = near.score(payment(1, now_ms()))
            assert held.state_versions["card"] != "0" * 32
            forget(deployment, monkeypatch, CARDS[1])
            until(lambda: near.score(payment(1, now_ms())).state_versions["card"] == "0" * 32)
            until(lambda: agree(near, plain))


def test_orders_that_are_none_are_set_aside(deployment: SharedDeployment) -> None:
    """Of another key, of raw identifiers, of nothing; one of an unknown entity does nothing."""
    with deployment.opened() as found:
        key_id = found.keys.key_id
    bodies: list[dict[str, Any]] = [{"card": "A" * 22}, {"card": "short"}, {"cart": "x"}, {}]
    orders = [
        b'{"v":1,"ids":"%b","erased":%b}' % (key.encode(), json.dumps(body).encode())
        for key, body in [*((key_id, body) for body in bodies), ("00000000", bodies[0])]
    ]
    deployment.send_bytes(deployment.settings.kafka.labels_topic, orders)
    assert deployment.consume() == {"erased": 2, "malformed": 2, "wrong key": 1}


def _lose(deployment: SharedDeployment) -> None:
    """All states and markers of the deployment are lost."""
    with deployment.opened() as found:
        assert remove_namespace(found.nodes, deployment.settings.redis.namespace)
