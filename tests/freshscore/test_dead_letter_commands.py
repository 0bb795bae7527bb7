"""`freshscore dead-letters list` and `resend`: positions, never content; and back once mended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from freshscore.features.redis_compaction import Compactor
from freshscore.invalidation import letter_reading
from freshscore.invalidation.dead_letters import DeadLetter
from freshscore.invalidation.holding import Hold
from freshscore.invalidation.kafka_admin import LogAdmin
from tests.freshscore.shared_deployment import (
    CARDS,
    HOUR_MS,
    MERCHANTS,
    SharedDeployment,
    label,
    now_ms,
    payment,
    recent,
)
from tests.servers.kafka_broker import KafkaBroker

LIST, RESEND = ("dead-letters", "list"), ("dead-letters", "resend")


def events_of(deployment: SharedDeployment, entity: str, identifier: str) -> int:
    with deployment.opened() as found:
        token = deployment.token(found, entity, identifier).hex()
    words = ("entities", "show", "--entity", entity, "--hash", token)
    deployment.run(*words, "--json", deployment.folder / "entity.json")
    return int(json.loads((deployment.folder / "entity.json").read_text())["n_events"])


def late_payments(n: int) -> list[dict[str, Any]]:
    """Payments that came 2 hours late, of the second card; the horizon is one hour."""
    return [payment(103 + 6 * i, now_ms() - 2 * HOUR_MS + i) for i in range(n)]


def test_letters_are_listed_by_position_and_counted_by_reason(
    deployment: SharedDeployment,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    topic = deployment.settings.kafka.transactions_topic
    assert deployment.figures(*LIST)["letters"] == []
    bad = [b"no json: card-number-1", b"{}", json.dumps(payment(3, 5)).encode()]
    deployment.send_bytes(topic, bad)
    deployment.send(late_payments(3), [label(payment(99, 1))])
    deployment.consume()
    capsys.readouterr()
    found = deployment.figures(*LIST)
    reasons = {"late": 3, "malformed": 3, "unknown transaction": 1}
    assert found["reasons"] == reasons
    assert len(found["letters"]) == 7
    said = capsys.readouterr()
    assert "late" in said.out
    for identifier in (*CARDS, *MERCHANTS, "payment-"):
        assert identifier not in said.out + said.err + json.dumps(found)
    few = deployment.figures(*LIST, "--reason", "late", input__max_listed_rows=2)
    assert (few["reasons"], len(few["letters"])) == ({"late": 3}, 2)
    assert "and 1 more" in capsys.readouterr().out
    every = deployment.figures(*LIST, "--reason", "late", "--all", input__max_listed_rows=2)
    assert len(every["letters"]) == 3
    # Read in as many turns as memory asks for, it is the same.
    monkeypatch.setattr(letter_reading.read_letters, "__defaults__", (2, None))
    assert deployment.figures(*LIST)["reasons"] == reasons


def test_what_is_mended_is_brought_back_once(deployment: SharedDeployment) -> None:
    """Late ones after the horizon was raised; those that are still refused stay."""
    deployment.send(recent(6))
    deployment.send(late_payments(4))
    deployment.send_bytes(deployment.settings.kafka.transactions_topic, [b"broken"])
    assert deployment.consume() == {"applied": 6, "late": 4, "malformed": 1}
    before = events_of(deployment, "card", CARDS[1])

    still = deployment.figures(*RESEND, code=1)
    assert still["outcomes"] == {"still refused: late": 4, "still refused: malformed": 1}
    assert events_of(deployment, "card", CARDS[1]) == before

    raised = {"store__horizon_s": 3 * 3_600}
    some = deployment.figures(*RESEND, "--reason", "late", **raised)
    assert some["outcomes"] == {"brought back": 4}
    assert events_of(deployment, "card", CARDS[1]) == before + 4
    assert deployment.figures(*LIST)["reasons"] == {"malformed": 1}
    assert deployment.figures(*RESEND, code=1, **raised)["outcomes"] == {
        "still refused: malformed": 1
    }
    assert events_of(deployment, "card", CARDS[1]) == before + 4


def test_a_label_comes_back_with_its_payment(deployment: SharedDeployment) -> None:
    late = late_payments(2)
    deployment.send(late, [label(late[0]), label(late[1])])
    deployment.consume()
    assert deployment.figures(*LIST)["reasons"] == {"late": 2, "unknown transaction": 2}
    raised = {"store__horizon_s": 3 * 3_600}
    assert deployment.figures(*RESEND, **raised)["outcomes"] == {"brought back": 4}
    assert deployment.figures(*LIST)["reasons"] == {}


def test_a_conflict_was_applied_and_stays(deployment: SharedDeployment) -> None:
    one = payment(0, now_ms())
    deployment.send([one])
    deployment.send([one | {"amount_minor": 77}])
    assert deployment.consume() == {"applied": 1, "conflict": 1}
    found = deployment.figures(*RESEND)
    assert found["outcomes"] == {"conflict: applied when it came": 1}
    assert deployment.figures(*LIST)["reasons"] == {"conflict": 1}


def test_one_that_conflicts_once_it_is_mended_is_applied_and_says_so(
    deployment: SharedDeployment,
) -> None:
    """Two contents of one late payment: both are brought in, the second as a conflict."""
    late = late_payments(1)[0]
    deployment.send([late])
    deployment.send([late | {"amount_minor": 7}])
    deployment.consume()
    raised = {"store__horizon_s": 3 * 3_600}
    outcomes = deployment.figures(*RESEND, **raised)["outcomes"]
    assert outcomes == {"brought back": 1, "applied, in conflict with another content": 1}
    assert deployment.figures(*LIST)["reasons"] == {"conflict": 1}


def test_what_a_state_has_folded_past_stays_set_aside(deployment: SharedDeployment) -> None:
    """A merchant's tiles take no event any more, so its payment is not called applied."""
    deployment.send([*late_payments(2), *recent(20)])
    deployment.consume()
    with deployment.opened() as found:
        wanted = [(1, deployment.token(found, "merchant", MERCHANTS[1]))]
        Compactor(found.store).compact(wanted, fold_below_ms=now_ms() - HOUR_MS, only_due=False)
    before = events_of(deployment, "card", CARDS[1])
    raised = {"store__horizon_s": 3 * 3_600}
    outcomes = deployment.figures(*RESEND, code=1, **raised)["outcomes"]
    assert outcomes == {"below what its states have folded or forgotten": 2}
    assert events_of(deployment, "card", CARDS[1]) == before
    assert deployment.figures(*LIST)["reasons"] == {"late": 2}


def test_what_the_log_no_longer_has_is_said(
    deployment: SharedDeployment, kafka: KafkaBroker
) -> None:
    deployment.send(late_payments(2))
    deployment.consume()
    topic = deployment.settings.kafka.transactions_topic
    with kafka.admin() as admin:
        from kafka import TopicPartition

        admin.delete_records({TopicPartition(topic, number): -1 for number in range(2)})
    gone = deployment.figures(*RESEND, code=1)
    assert gone["outcomes"] == {"removed by the retention of its topic": 2}
    with LogAdmin(deployment.settings.kafka) as admin:
        admin.delete([topic])
    # The broker deletes in its own time.
    assert any(deployment.run("topics", "check", "--create") == 0 for _ in range(200))
    anew = deployment.figures(*RESEND, code=1)
    assert anew["outcomes"] == {"of a topic that was made anew since": 2}


def test_first_mistakes(
    deployment: SharedDeployment,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert deployment.run(*LIST, kafka__dead_letters_topic="nowhere") == 2
    assert "no topic nowhere" in capsys.readouterr().err
    for words in (LIST, RESEND):
        assert deployment.run(*words, "--reason", "malform") == 2
        said = capsys.readouterr().err
        assert "no letter has reason 'malform'; there are malformed, oversized, late" in said
        assert "unknown transaction" in said
    assert deployment.run(*RESEND, redis__url="redis://127.0.0.1:1/0") == 2
    assert "127.0.0.1:1" in capsys.readouterr().err
    nowhere = {"kafka__bootstrap_servers": "127.0.0.1:1", "kafka__request_timeout_s": 1.0}
    assert deployment.run(*RESEND, **nowhere) == 2
    assert "Kafka at 127.0.0.1:1" in capsys.readouterr().err
    with deployment.opened() as found:
        hold = Hold(found.nodes, found.redis_keys, "another", 60.0, found.clock)
        with hold:
            assert deployment.run(*RESEND) == 2
            assert "another backfill" in capsys.readouterr().err
        assert deployment.run(*RESEND) == 0
    monkeypatch.delenv("FRESHSCORE_SECRET")
    assert deployment.run(*RESEND) == 2
    assert "FRESHSCORE_SECRET" in capsys.readouterr().err


def test_a_letter_holds_no_content() -> None:
    """What the commands can show is what a letter has."""
    assert {*DeadLetter.__struct_fields__} == {
        *("topic", "topic_id", "partition", "offset", "arrival_ms", "reason", "detail"),
        *("length", "digest", "v", "brought_back"),
    }
