"""`freshscore backfill` into Redis while the stream runs: the past, once, and said to be there."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from freshscore.features.codec import decode
from freshscore.features.packing import Packer
from freshscore.features.redis_commands import replies_to
from freshscore.features.redis_compaction import Compactor
from freshscore.features.redis_keys import tag_of
from freshscore.features.redis_lines import command
from freshscore.features.store import MemoryStore
from freshscore.features.transaction import Transaction
from freshscore.invalidation.completeness import reached
from freshscore.invalidation.folding_lines import HOLD, FoldingLines
from freshscore.invalidation.holding import Hold
from freshscore.invalidation.past_writing import opened_backfill
from tests.freshscore.shared_deployment import (
    CARDS,
    HOUR_MS,
    MERCHANTS,
    SharedDeployment,
    label,
    now_ms,
    payment,
    recent,
    shared_deployment,
)
from tests.servers.kafka_broker import KafkaBroker


@pytest.fixture(
    params=[
        pytest.param("redis_server", marks=pytest.mark.servers),
        pytest.param("redis_cluster", marks=pytest.mark.servers),
    ]
)
def deployment(
    request: pytest.FixtureRequest,
    kafka: KafkaBroker,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[SharedDeployment]:
    redis = request.getfixturevalue(request.param)
    yield from shared_deployment(kafka, redis, namespace, tmp_path, monkeypatch)


def past(n: int, until_ms: int, first: int = 1_000) -> list[dict[str, Any]]:
    """Payments half a minute apart, the last of them at `until_ms`; every seventh is a fraud."""
    return [payment(first + i, until_ms - 30_000 * (n - 1 - i), fraud=i % 7 == 0) for i in range(n)]


def file_of(deployment: SharedDeployment, payments: list[dict[str, Any]]) -> Path:
    """A file with a column for each part, as docs/columns.md has freshscore's own."""
    frame = pd.DataFrame(
        {
            "transaction_id": [one["transaction_id"] for one in payments],
            "time": [one["time"] for one in payments],
            "amount_minor": [one["amount_minor"] for one in payments],
            "currency": "EUR",
            "card": [one["entities"]["card"] for one in payments],
            "merchant": [one["entities"]["merchant"] for one in payments],
            "fraud": [one.get("fraud", False) for one in payments],
        }
    )
    path = deployment.folder / f"past-{len(payments)}.parquet"
    frame.to_parquet(path)
    return path


def test_the_past_and_the_stream_are_one_set(deployment: SharedDeployment) -> None:
    """As if all had come through one door: features and versions are those of a memory store."""
    streamed = recent(20)
    deployment.send(streamed)
    deployment.consume()
    history = past(400, streamed[0]["time"] - 5_000)
    streamed += recent(1, first=20, until_ms=now_ms() + 1_000)
    # What the log has too, or will have: the same payments, once.
    overlap = file_of(deployment, history + streamed[15:])
    figures = deployment.figures("backfill", "--data", overlap)
    states = figures["states"]
    outcomes = figures["files"][0]["outcomes"]
    assert states["refused"] == {}
    assert states["complete_since_ms"] == history[0]["time"]
    assert (outcomes["accepted"], outcomes["left to the log"]) == (405, 1)
    deployment.send(streamed[20:], [label(history[1])])
    assert deployment.consume().get("looked up") == 1
    compare(deployment, history, streamed, history[1])
    # Again: the log's own begin has moved to the past, so all of it is the log's now.
    again = deployment.figures("backfill", "--data", overlap)
    assert "accepted" not in again["files"][0]["outcomes"]
    compare(deployment, history, streamed, history[1])


def compare(
    deployment: SharedDeployment,
    history: list[dict[str, Any]],
    streamed: list[dict[str, Any]],
    labelled: dict[str, Any],
) -> None:
    with deployment.opened() as found:
        memory = MemoryStore(found.program, found.keys, found.store.limits)
        packer = Packer(found.program, found.keys)
        for one in history + streamed:
            flags = {"fraud": True} if one.get("fraud") else {}
            given = {name: value for name, value in one.items() if name != "fraud"}
            # A label of the file is known a while after; see the specification's label_delay.
            memory.observe(packer.row(Transaction.of(given | {"flags": flags})))
        at_ms = now_ms()
        for card, merchant in zip(CARDS, MERCHANTS * 3, strict=True):
            row = packer.row(
                Transaction("?", at_ms, 5, "EUR", {"card": card, "merchant": merchant})
            )
            mine = memory.features(row, at_ms)
            theirs = found.store.features(row, at_ms)
            # The counts and sums, not the share: the label has come since.
            np.testing.assert_array_equal(mine[:7], theirs[:7])
            if labelled["entities"]["card"] != card:
                assert memory.versions(row)[0] == found.store.versions(row)[0]


def test_it_can_begin_before_the_consumers(deployment: SharedDeployment) -> None:
    """Its hold is there first, so busy merchants have folded nothing when their past comes."""
    streamed = recent(300)
    deployment.send(streamed)
    path = file_of(deployment, past(50, streamed[0]["time"] - 1_000) + recent(1, 400))
    ended: list[int] = []

    def backfill() -> None:
        ended.append(deployment.run("backfill", "--data", path, "--wait", 60))

    begun = threading.Thread(target=backfill)
    begun.start()
    with deployment.opened() as found:
        key = found.redis_keys.control(HOLD)
        asked = [(b"control", command(b"EXISTS", key))]
        while not replies_to(found.nodes, asked)[0]:
            assert begun.is_alive()
    deployment.consume()
    begun.join(60)
    assert ended == [0]
    # 150 of the stream, 25 of the past; what is later is left to the log.
    assert n_records(deployment, 1, MERCHANTS[1]) == 150 + 25


def test_what_is_folded_already_is_refused(deployment: SharedDeployment) -> None:
    sent_ms = now_ms()
    deployment.send(recent(20, until_ms=sent_ms))
    deployment.consume()
    with deployment.opened() as found:
        wanted = [(1, deployment.token(found, "merchant", MERCHANTS[0]))]
        Compactor(found.store).compact(wanted, fold_below_ms=sent_ms, only_due=False)
    path = file_of(deployment, past(100, sent_ms - 1_000))
    figures = deployment.figures("backfill", "--data", path, code=1)
    states = figures["states"]
    assert states["refused"] == {"merchant": 1}
    assert states["complete_since_ms"] == states["was_complete_since_ms"]
    with deployment.opened() as found:
        assert n_records(deployment, 1, MERCHANTS[0]) == 10
        assert n_records(deployment, 1, MERCHANTS[1]) >= 10 + 50
        assert n_records(deployment, 0, CARDS[0]) >= 17


def n_records(deployment: SharedDeployment, entity: int, identifier: str) -> int:
    with deployment.opened() as found:
        name = found.program.entities[entity].name
        token = deployment.token(found, name, identifier)
        key = found.store.reading.state_key(entity, token)
        blob = replies_to(found.nodes, [(tag_of(token), command(b"GET", key))])[0]
        state = decode(blob, found.store.maker.layouts[entity])
        # Behind its line a tile has the count of all its events.
        return state.records.n + (int(state.tiles.words[:, 1].sum()) if state.tiles.n else 0)


def test_files_that_do_not_reach_the_cut_over_make_nothing_complete(
    deployment: SharedDeployment, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment.send(recent(5))
    deployment.consume()
    path = file_of(deployment, past(50, now_ms() - HOUR_MS))
    states = deployment.figures("backfill", "--data", path)["states"]
    assert states["complete_since_ms"] == states["was_complete_since_ms"]
    assert "do not reach" in capsys.readouterr().out


def test_nothing_is_folded_while_a_backfill_runs(deployment: SharedDeployment) -> None:
    """Nor after one that died, until its hold has ended; and a second one is refused."""
    deployment.send(recent(5))
    deployment.consume()
    with deployment.opened() as found:
        lines = FoldingLines(
            found.settings, found.nodes, found.redis_keys, found.program.specification.held_ms
        )
        assert lines.lines().fold_below_ms > 0
        with opened_backfill(found):
            assert lines.lines().fold_below_ms == 0
            path = file_of(deployment, past(5, now_ms() - 5_000))
            assert deployment.run("backfill", "--data", path) == 2
        assert lines.lines().fold_below_ms > 0
        key = found.redis_keys.control(HOLD)
        asked = [(b"control", command(b"PTTL", key))]
        Hold(found.nodes, found.redis_keys, "died", 60.0, found.clock).__enter__()
        assert 0 < replies_to(found.nodes, asked)[0] <= 60_000


def test_first_mistakes(
    deployment: SharedDeployment,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = file_of(deployment, past(5, now_ms()))
    assert deployment.run("backfill", "--data", path) == 2
    assert "freshscore consume" in capsys.readouterr().err
    assert deployment.run("backfill", "--data", path, redis__url="redis://127.0.0.1:1/0") == 2
    assert "127.0.0.1:1" in capsys.readouterr().err
    deployment.send(recent(5))
    deployment.consume()
    bad = deployment.folder / "bad.csv"
    bad.write_text("a,b\n1,2\n")
    assert deployment.run("backfill", "--data", bad) == 2
    assert "bad.csv" in capsys.readouterr().err
    monkeypatch.setenv("FRESHSCORE_SECRET", "07" * 16)
    assert deployment.run("backfill", "--data", path) == 2
    assert "under identifier key" in capsys.readouterr().err
    said = json.dumps(capsys.readouterr().out)
    for identifier in (*CARDS, *MERCHANTS):
        assert identifier not in said


def test_spans_join_where_they_reach() -> None:
    """In any order; a gap ends it."""
    assert reached(100, [(40, 60), (60, 100)]) == 40
    assert reached(100, [(60, 100), (40, 60)]) == 40
    assert reached(100, [(40, 59), (60, 100)]) == 60
    assert reached(100, [(0, 99)]) == 100
    assert reached(100, [(100, 120)]) == 100
    assert reached(100, [(0, 200), (50, 150)]) == 0
    assert reached(100, []) == 100
