"""`freshscore verify`: equal where it is, and each way of being wrong is found."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from freshscore import Scorer
from freshscore.config.clock import SystemClock
from freshscore.features.redis_compaction import Compactor
from freshscore.features.row import TOKENS
from freshscore.invalidation.kafka_reading import LogReader
from freshscore.invalidation.letter_reading import values_between
from freshscore.invalidation.verifying import verify_states
from freshscore.scoring.decisions import Decision, unpacked
from freshscore.scoring.remote_scores import ScoreKeeper, encoded
from tests.features.stores import client_of
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
from tests.freshscore.stored_models import payments
from tests.freshscore.test_shared_backfill import file_of, past
from tests.servers.kafka_broker import KafkaBroker
from tests.servers.redis_servers import RedisServer


def verdicts(deployment: SharedDeployment, code: int = 0, *words: object) -> dict[str, int]:
    found = deployment.figures("verify", *words, code=code)
    return counted(one["verdict"] for one in found["states"]["findings"])


def counted(words: Any) -> dict[str, int]:
    every = [*words]
    return {word: every.count(word) for word in sorted({*every})}


def key_of(deployment: SharedDeployment, entity: int, identifier: str) -> bytes:
    with deployment.opened() as found:
        token = deployment.token(found, found.program.entities[entity].name, identifier)
        key: bytes = found.store.reading.state_key(entity, token)
        return key


def test_states_are_those_of_the_log(
    deployment: SharedDeployment, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sent twice, labelled with and without the payment, refused, folded, compacted: all equal."""
    old = recent(120, until_ms=now_ms() - 2_400_000)
    payments = [*old, *recent(60, first=200)]
    labels = [label(old[3]), label(old[5], looked_up=False), label(payments[-1], False)]
    late = [payment(501, now_ms() - 2 * HOUR_MS)]
    deployment.send([*payments, *payments[:30], *late], [*labels, label(late[0])])
    deployment.send_bytes(deployment.settings.kafka.labels_topic, [b"{}"])
    deployment.consume()
    assert verdicts(deployment) == {"equal": 8}
    with deployment.opened() as found:
        shops = [(1, deployment.token(found, "merchant", one)) for one in MERCHANTS]
        Compactor(found.store).compact(shops, fold_below_ms=now_ms(), only_due=False)
    assert verdicts(deployment) == {"equal": 8}
    # A fact of an event that was folded.
    deployment.send([], [label(old[8]), label(old[9], looked_up=False)])
    deployment.consume()
    assert verdicts(deployment) == {"equal": 8}
    # One state of each entity; the last payment of each partition names up to two more.
    few = verdicts(deployment, 0, "--sample", 1, "--seed", 1)
    assert few.keys() == {"equal"}
    assert 2 <= few["equal"] <= 6
    said = capsys.readouterr()
    for identifier in (*CARDS, *MERCHANTS, "payment-"):
        assert identifier not in said.out + said.err


def test_what_was_lost_added_or_changed_is_found(
    deployment: SharedDeployment, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment.send(recent(60))
    deployment.consume()
    keys = [key_of(deployment, 0, one) for one in CARDS]
    shop = key_of(deployment, 1, MERCHANTS[0])
    with redis_server.client() as client:
        whole = [client.get(key) or b"" for key in keys]
        width = len(whole[0]) // 10
        client.set(keys[0], whole[0][:-width])
        client.append(keys[1], whole[2][:width])
        client.setrange(keys[3], 9, b"?")
        client.append(keys[4], whole[4][:width])
        client.delete(keys[5])
    with deployment.opened() as found:
        token = deployment.token(found, "merchant", MERCHANTS[0])
        with redis_server.client() as client:
            held = client.get(shop) or b""
            client.set(shop, held[32:])
        Compactor(found.store).compact([(1, token)], fold_below_ms=0, only_due=False)
    assert verdicts(deployment, 1) == {
        "damaged": 1,
        "equal": 3,
        "records of the log are missing": 3,
        "records that the log does not have": 1,
    }
    assert "records that the log does not have" in capsys.readouterr().out


def test_a_stream_that_runs_makes_no_difference(deployment: SharedDeployment) -> None:
    """What was applied behind the markers that were read may be there, and may be not."""
    deployment.send(recent(30))
    deployment.consume()
    deployment.send(recent(30, first=30))
    assert verdicts(deployment) == {"equal": 8}
    # Applied, and the markers not there yet.
    with deployment.opened() as found:
        names, node = found.redis_keys, found.nodes.tags[0]
        with client_of(found.nodes) as client:
            before = client.hgetall(names.markers(node))
            deployment.consume()
            client.hset(names.markers(node), mapping=before)
    assert verdicts(deployment) == {"equal": 8}


def test_with_a_backfill_the_log_is_compared_from_the_cut_over_on(
    deployment: SharedDeployment, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    streamed = recent(30)
    deployment.send(streamed)
    deployment.consume()
    path = file_of(deployment, past(200, streamed[0]["time"] - 1_000))
    deployment.figures("backfill", "--data", path)
    capsys.readouterr()
    # The log has nothing since the cut-over, and "equal" does not hide it.
    before = deployment.figures("verify")["states"]["findings"]
    assert sum(one["n_of_log"] for one in before) == 0
    said = capsys.readouterr().out
    rows = re.findall(r"^(card|merchant) +equal +(\d+) +(\d+) *$", said, re.M)
    assert rows == [("card", "6", "0"), ("merchant", "2", "0")]
    assert "compared: what happened from 20" in said
    # A little early, so that they are later than the cut-over that was just made.
    deployment.send(recent(30, first=30, until_ms=now_ms() + 45_000))
    deployment.consume()
    found = deployment.figures("verify")
    assert counted(one["verdict"] for one in found["states"]["findings"]) == {"equal": 8}
    assert streamed[0]["time"] < found["states"]["line_ms"] < now_ms()
    assert sum(one["n_stored"] for one in found["states"]["findings"]) > 0
    with redis_server.client() as client:
        key = key_of(deployment, 0, CARDS[0])
        client.set(key, (client.get(key) or b"")[:-32])
    assert verdicts(deployment, 1)["records of the log are missing"] == 1


def test_what_the_log_no_longer_has_is_left_out(
    deployment: SharedDeployment, kafka: KafkaBroker, redis_server: RedisServer
) -> None:
    """Retention has cut the log; states hold more than it has, and what it has they must hold."""
    deployment.given["store.skew_s"] = 0
    deployment.send(recent(60))
    deployment.consume()
    # Later than the first message that is left arrived.
    deployment.send([payment(60 + i, now_ms()) for i in range(20)])
    deployment.consume()
    topic = deployment.settings.kafka.transactions_topic
    cut(kafka, topic, 5)
    found = deployment.figures("verify")["states"]
    assert counted(one["verdict"] for one in found["findings"]) == {"equal": 8}
    assert found["line_ms"] > 0
    with redis_server.client() as client:
        key = key_of(deployment, 0, CARDS[0])
        client.set(key, (client.get(key) or b"")[:-32])
    words = [one["verdict"] for one in deployment.figures("verify", code=1)["states"]["findings"]]
    assert words.count("records of the log are missing") == 1


def cut(kafka: KafkaBroker, topic: str, n: int) -> None:
    """Remove the first messages of each partition, as retention does."""
    with kafka.admin() as admin:
        from kafka import TopicPartition

        admin.delete_records({TopicPartition(topic, number): n for number in range(2)})


def test_scores_are_those_of_the_model_on_the_sets_that_were_served(
    deployment: SharedDeployment, capsys: pytest.CaptureFixture[str]
) -> None:
    """A score that was changed on its way is found, in the decisions and beside the state."""
    data = deployment.folder / "payments.parquet"
    payments().to_parquet(data)
    deployment.given["store.path"] = str(deployment.folder / "store")
    assert deployment.run("train", "--data", data, model__num_trees=8) == 0
    deployment.send(recent(40))
    deployment.consume()
    asked = [payment(900 + i, now_ms()) for i in range(6)]
    with Scorer.open("shared", settings=deployment.given) as scorer:
        assert all(scorer.score(one).degraded == () for one in asked)
        scorer.flush(30.0)
    found = deployment.figures("verify")["scores"]
    assert found == {"outcomes": {"equal": 6}, "differences": []}

    topic = deployment.settings.kafka.decisions_topic
    values = [*last_values(deployment, topic)]
    whole = next(one for one in values if unpacked(one).state_versions)
    at = whole.index(struct.pack("<d", unpacked(whole).score))
    forged = whole[:at] + struct.pack("<d", 0.123) + whole[at + 8 :]
    deployment.send_bytes(topic, [forged, b"nothing"])
    keep_score(deployment, unpacked(whole), 0.25)
    found = deployment.figures("verify", code=1)["scores"]
    assert found["outcomes"] == {
        "differ": 1,
        "equal": 6,
        "kept for others: differ": 2,
        "not compared: no decision": 1,
    }
    assert {one["what"] for one in found["differences"]} == {"decision", "kept for others"}
    assert {one["stored"] for one in found["differences"]} == {0.123, 0.25}

    deployment.send([payment(950 + i, now_ms()) for i in range(6)])
    deployment.consume()
    moved = deployment.figures("verify")["scores"]["outcomes"]
    assert moved == {"not compared: a state has moved on": 7, "not compared: no decision": 1}
    said = capsys.readouterr()
    for identifier in (*CARDS, *MERCHANTS, "payment-"):
        assert identifier not in said.out + said.err


def last_values(deployment: SharedDeployment, topic: str) -> Iterator[bytes]:
    reader = LogReader(deployment.settings.kafka, [topic], group=None, in_place=False)
    places = [(topic, number) for number in reader.partitions(topic)]
    first, ends = reader.beginnings(places), reader.ends(places)
    for at in places:
        yield from values_between(reader, at, first[at], ends[at], 30.0, SystemClock())
    reader.close()


def keep_score(deployment: SharedDeployment, decision: Decision, score: float) -> None:
    with deployment.opened() as found:
        keeper = ScoreKeeper(found.nodes, found.redis_keys, decision.model_version, 4, 600)
        record = encoded(decision.feature_hash, score, now_ms(), 0)
        keeper.keep(decision.row[TOKENS : TOKENS + 16], record)


def test_first_mistakes(
    deployment: SharedDeployment,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert deployment.run("verify") == 2
    assert "freshscore lag" in capsys.readouterr().err
    deployment.send(recent(5))
    deployment.consume()
    assert deployment.run("verify", redis__url="redis://127.0.0.1:1/0") == 2
    assert deployment.run("verify", kafka__transactions_topic="nowhere") == 2
    assert "no topic nowhere" in capsys.readouterr().err
    for wrong in ("0", "-3", "many"):
        with pytest.raises(SystemExit):
            deployment.run("verify", "--sample", wrong)
        assert f"{wrong!r} is no sample; it must be 1 or more" in capsys.readouterr().err
    with deployment.opened() as found:
        assert verify_states(found, []).findings == ()
    monkeypatch.delenv("FRESHSCORE_SECRET")
    assert deployment.run("verify") == 2
    assert "FRESHSCORE_SECRET" in capsys.readouterr().err
