"""`freshscore shadow` on real servers: what it answers, what it leaves alone, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from freshscore import Scorer
from freshscore.invalidation.control import EVERYTHING, Control, Invalidation
from freshscore.scoring.shadow_opening import open_shadow
from tests.freshscore.shadows import (
    LIMIT_S,
    begun,
    committed_of,
    decisions_of,
    turns_until,
    values_of,
    with_model,
    working,
)
from tests.freshscore.shared_deployment import (
    CARDS,
    MERCHANTS,
    SharedDeployment,
    now_ms,
    payment,
    recent,
)
from tests.servers.redis_servers import RedisServer

_BITS = struct.Struct("<d")


@pytest.fixture
def shadowed(deployment: SharedDeployment) -> SharedDeployment:
    """A deployment with a model, and states that hold some payments."""
    with_model(deployment)
    deployment.send(recent(40))
    deployment.consume()
    return deployment


def test_a_shadow_answers_as_a_scorer_does(
    shadowed: SharedDeployment, redis_server: RedisServer, namespace: str
) -> None:
    """Bit for bit, raw and hashed messages alike; and nothing in Redis is another after it."""
    shadow = begun(shadowed)
    before = _content(redis_server, namespace)
    asked = [payment(900 + i, now_ms()) for i in range(30)]
    with Scorer.open("shared", settings=shadowed.given) as scorer:
        shadowed.send(asked[:20])
        for one in asked[20:]:
            scorer.observe(one)
        scorer.flush(30.0)
        shadowed.send_bytes(shadowed.settings.kafka.transactions_topic, [b"{}", b"x" * 70_000])
        turns_until(shadow, lambda: shadow.counts.n_messages == 32)
        shadow.close()
        of_payment = {one["transaction_id"]: one for one in asked}
        rows = {scorer._serving.packer.row(_transaction(one)): one for one in asked}  # type: ignore[union-attr]  # open
        decisions = decisions_of(shadowed)
        assert len(decisions) == len(of_payment)
        for decision in decisions:
            assert decision.is_shadow
            found = scorer.score(rows[decision.row], as_of=decision.as_of_ms)
            assert _BITS.pack(found.score or 0.0) == _BITS.pack(decision.score)
            assert decision.decision == found.decision
            assert decision.model_version == found.model_version
    messages = values_of(shadowed, shadowed.settings.kafka.transactions_topic)
    assert {one.message for one in decisions} < messages.keys()
    said = shadow.counts.figures()
    assert (said["scored"], said["published"]) == (30, 30)
    assert said["refused"] == {"malformed": 1, "oversized": 1}
    assert said["degraded"] == {"count": 0, "share": 0.0}
    assert said["latency_us"]["timed"] > 0
    assert {**before, **_content(redis_server, namespace)} == before


def _transaction(given: dict[str, Any]) -> Any:
    from freshscore import Transaction

    return Transaction(**given)


def _content(redis: RedisServer, namespace: str) -> dict[bytes, bytes]:
    """What lies in Redis for good: what scorers with a lease renew is left out."""
    with redis.client() as client:
        keys = [
            key for key in client.keys(f"{namespace}:*") if not key.endswith((b"leases", b"seen"))
        ]
        return {key: client.dump(key) for key in keys}


def test_a_shadow_holds_no_lease_and_hears_what_is_told(shadowed: SharedDeployment) -> None:
    """Nobody waits for it; its own cached scores end all the same."""
    shadow = begun(shadowed)
    with working(shadow), shadowed.opened() as found:
        control = Control(found.nodes, shadowed.settings.redis.namespace)
        number, n_scorers = control.invalidate(Invalidation(EVERYTHING, ""))
        assert (n_scorers, control.behind(number)) == (0, (0, 0))
        right = shadow._parts.scorer._right
        _until(lambda: right.generation() == number)
        assert not right.is_cache_off()


def _until(is_so: Any) -> None:
    waiting = threading.Event()
    for _ in range(round(LIMIT_S / 0.02)):
        if is_so():
            return
        waiting.wait(0.02)
    raise AssertionError("it did not come to be so")


def test_its_own_event_does_not_move_its_score(shadowed: SharedDeployment) -> None:
    """The consumers may be faster than the shadow, or slower: the request stands for its copy."""
    shadow = begun(shadowed)
    asked = payment(900, now_ms())
    shadowed.send([asked])
    turns_until(shadow, lambda: shadow.counts.n_messages == 1)
    shadowed.consume()
    shadowed.send([asked])
    turns_until(shadow, lambda: shadow.counts.n_messages == 2)
    shadow.close()
    before, after = decisions_of(shadowed)
    assert _BITS.pack(before.score) == _BITS.pack(after.score)
    assert before.row == after.row
    assert before.message != after.message


def test_messages_of_a_teams_own_shape(shadowed: SharedDeployment) -> None:
    """Read with the column map that the consumers have."""
    columns = shadowed.folder / "columns.toml"
    columns.write_text(
        'transaction_id = "reference"\ntime = { column = "at", unit = "s" }\n'
        'amount = { column = "total", unit = "major" }\n'
        'currency_column = "money"\n[entities]\ncard = "pan"\nmerchant = "shop.number"\n',
        "utf-8",
    )
    shadowed.given["kafka.columns"] = str(columns)
    shadow = begun(shadowed)
    at_s = now_ms() // 1_000
    theirs: dict[str, Any] = {"reference": "r-1", "at": at_s, "total": 12.5, "money": "EUR"}
    theirs |= {"pan": CARDS[0], "shop": {"number": MERCHANTS[1]}}
    topic = shadowed.settings.kafka.transactions_topic
    shadowed.send_bytes(topic, [json.dumps(theirs).encode()])
    turns_until(shadow, lambda: shadow.counts.n_messages == 1)
    shadow.close()
    [decision] = decisions_of(shadowed)
    ours: dict[str, Any] = {"transaction_id": "r-1", "time": 1_000 * at_s, "amount_minor": 1_250}
    ours |= {"currency": "EUR", "entities": {"card": CARDS[0], "merchant": MERCHANTS[1]}}
    with Scorer.open("shared", settings=shadowed.given) as scorer:
        assert scorer.score(ours, as_of=decision.as_of_ms).score == decision.score


def test_it_begins_at_the_end_and_goes_on_where_it_was(shadowed: SharedDeployment) -> None:
    """A shadow that died before its commit answers again, and both answers name one message."""
    shadow = begun(shadowed)
    turns_until(shadow, lambda: committed_of_all(shadowed))
    shadow.close()
    assert decisions_of(shadowed) == []
    shadowed.send(recent(8, first=900))
    shadowed.given["kafka.commit_every_s"] = 60.0
    died = begun(shadowed)
    turns_until(died, lambda: died.counts.n_messages == 8)
    died._parts.sent.wait(30.0)
    died._parts.reader.close()
    died._parts.scorer.close()
    assert len(decisions_of(shadowed)) == 8
    shadowed.given["kafka.commit_every_s"] = 0.05
    again = begun(shadowed)
    turns_until(again, lambda: again.counts.n_messages == 8)
    again.close()
    found = [one.message for one in decisions_of(shadowed)]
    assert len(found) == 16
    assert len({*found}) == 8
    shadowed.send(recent(4, first=950))
    last = begun(shadowed)
    turns_until(last, lambda: last.counts.n_messages == 4)
    last.close()
    assert len({one.message for one in decisions_of(shadowed)}) == 12


def committed_of_all(deployment: SharedDeployment) -> bool:
    """Whether the group has its beginnings."""
    return None not in committed_of(deployment)


def test_no_more_is_under_way_than_the_settings_allow(shadowed: SharedDeployment) -> None:
    """One decision without an answer, two messages a time: slower, and nothing else."""
    tiny = {"kafka.max_unsent_decisions": 1, "kafka.max_poll_records": 2}
    shadowed.given |= {"kafka.commit_every_s": 0.01, **tiny}
    shadow = begun(shadowed)
    sent, most = shadow._parts.sent, 0
    send = sent.send

    def counted(record: bytes) -> None:
        nonlocal most
        send(record)
        most = max(most, sent.n_open)

    sent.send = counted  # type: ignore[method-assign]  # looks at what is under way
    shadowed.send(recent(20, first=900))
    turns_until(shadow, lambda: shadow.counts.n_messages == 20)
    shadow.close()
    assert most == 1
    assert len(decisions_of(shadowed)) == 20


def started(deployment: SharedDeployment, **further: Any) -> subprocess.Popen[str]:
    """A shadow in a process of its own."""
    given = deployment.given | {name.replace("__", "."): one for name, one in further.items()}
    told = [f"--settings={name}={json.dumps(value)}" for name, value in given.items()]
    figures = f"--json={deployment.folder / 'figures.json'}"
    command = [sys.executable, "-m", "freshscore", "shadow", "--profile", "shared", figures, *told]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def test_it_ends_well_and_says_what_it_saw(shadowed: SharedDeployment) -> None:
    """All that was read is published, and no identifier is printed."""
    shadow = started(shadowed, output__progress_line_s=0.05)
    try:
        lines = _following(shadow)
        _read_until(lines, "2 partitions are read here")
        shadowed.send(recent(50, first=900))
        _read_until(lines, "50 payments")
        shadow.send_signal(signal.SIGTERM)
        out, said = shadow.communicate(timeout=LIMIT_S)
    finally:
        shadow.kill()
    assert shadow.returncode == 0, said
    figures = json.loads((shadowed.folder / "figures.json").read_text("utf-8"))
    assert (figures["messages"], figures["published"]) == (50, 50)
    assert sum(one["count"] for one in figures["decisions"].values()) == 50
    assert figures["behind"] == {"messages": 0, "seconds": 0.0}
    assert len(decisions_of(shadowed)) == 50
    for identifier in (*CARDS, *MERCHANTS, "payment-"):
        assert identifier not in out + said


def _following(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stderr is not None
    yield from process.stderr


def _read_until(lines: Iterator[str], words: str) -> None:
    seen = []
    for line in lines:
        seen.append(line)
        if words in line:
            return
    raise AssertionError(f"it ended without saying {words!r}: {''.join(seen)}")


def test_a_shadow_that_is_still_connecting_ends_well(shadowed: SharedDeployment) -> None:
    """While Kafka does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(LIMIT_S)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        further = {"kafka__bootstrap_servers": address, "kafka__request_timeout_s": 300.0}
        shadow = started(shadowed, **further)
        try:
            connection, _ = silent.accept()
            with connection:
                shadow.send_signal(signal.SIGTERM)
                _, said = shadow.communicate(timeout=LIMIT_S)
        finally:
            shadow.kill()
    assert shadow.returncode == 0, said
    assert "before it had begun" in said


def test_without_a_model_it_does_not_begin(deployment: SharedDeployment) -> None:
    """And says what is missing."""
    from freshscore import NoModel

    deployment.given["store.path"] = str(deployment.folder / "empty")
    with pytest.raises(NoModel):
        open_shadow(deployment.settings)
