"""Streams: which touches a file and a shape give, when, and with what content."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from freshscore.config.errors import BadFile
from freshscore.features.reading import read_payments
from freshscore.features.specification import FeatureSpecification
from freshscore.features.table import PaymentTable
from freshscore.simulations.added_payments import added_table
from freshscore.simulations.shapes import TouchKind, preset
from freshscore.simulations.shaping import shaped
from freshscore.simulations.shaping_payments import PaymentColumns, with_new_payments
from freshscore.simulations.streaming import stream_of
from freshscore.simulations.streams import MAX_STAGES, NO_FACT, Stream
from tests.simulations import replayed
from tests.simulations.replayed import DAY_MS

MONDAY_MS = 1_699_833_600_000
PAYMENTS = FeatureSpecification.shipped("payments")


def few(**columns: object) -> PaymentTable:
    """A day's payments of one card, an hour apart; `columns` are added to them."""
    n = 4
    frame = pd.DataFrame(
        {
            "transaction_id": [f"t{i}" for i in range(n)],
            "time_ms": MONDAY_MS + 3_600_000 * np.arange(n),
            "amount_minor": 100 * np.arange(1, n + 1),
            "currency": "EUR",
            "card": "c",
            "merchant": "m",
            "device": "d",
            **columns,
        }
    )
    return read_payments(frame, PAYMENTS)


def streamed(table: PaymentTable, shape: str = "none", start_ms: int = MONDAY_MS) -> Stream:
    return stream_of(table, preset(shape), start_ms, np.random.default_rng(1))


def test_without_a_shape_each_payment_is_scored_at_its_time_and_observed_a_second_later() -> None:
    stream = streamed(few(), start_ms=MONDAY_MS + 3_600_000)
    assert stream.history.tolist() == [0]
    times = MONDAY_MS + 3_600_000 * np.arange(1, 4)
    np.testing.assert_array_equal(stream.at_ms[stream.scored], times)
    assert stream.payment[stream.scored].tolist() == [1, 2, 3]
    # After the last score nobody would see an event.
    np.testing.assert_array_equal(stream.at_ms[~stream.scored], times[:-1] + 1_000)
    assert (stream.kind[~stream.scored] == TouchKind.OBSERVE).all()


def test_a_payment_is_played_when_its_message_arrived() -> None:
    arrival_ms = MONDAY_MS + 3_600_000 * np.array([0, 5, 2, 3])
    stream = streamed(few(arrival_ms=arrival_ms))
    # Rows of a table are in arrival order: the second payment came last.
    assert stream.table.transaction_id.to_pylist() == ["t0", "t2", "t3", "t1"]
    np.testing.assert_array_equal(stream.at_ms[stream.scored], np.sort(arrival_ms))
    last = next(stream.transactions(stream.content[-1:]))
    assert (last.transaction_id, last.time) == ("t1", MONDAY_MS + 3_600_000)


def test_a_payment_that_arrives_after_the_start_is_no_history_whatever_its_time() -> None:
    arrival_ms = MONDAY_MS + 3_600_000 * np.array([0, 5, 2, 3])
    stream = streamed(few(arrival_ms=arrival_ms), start_ms=MONDAY_MS + 2 * 3_600_000)
    past = stream.table.transaction_id.take(stream.history).to_pylist()
    assert past == ["t0"]


def test_facts_known_before_the_start_are_history_and_others_come_when_they_are_known() -> None:
    start_ms = MONDAY_MS + 2 * 3_600_000
    known_ms = np.array([start_ms - 1, start_ms, start_ms + 1, start_ms + 2 * 3_600_000])
    stream = streamed(
        few(fraud=[True, True, True, True], fraud_known_at=known_ms), start_ms=start_ms
    )
    past = stream.history_table()
    assert past.transaction_id.to_pylist() == ["t0", "t1"]
    assert past.facts.row.tolist() == [0]
    assert past.facts.known_at_ms.tolist() == [start_ms - 1]
    told = stream.fact != NO_FACT
    # That of the last payment would be known only after the last score.
    assert stream.payment[told].tolist() == [1, 2]
    assert stream.at_ms[told].tolist() == [start_ms, start_ms + 1]
    names = [PAYMENTS.facts[fact] for fact in stream.fact[told]]
    assert names == ["fraud", "fraud"]


def test_facts_come_before_scores_of_the_same_instant() -> None:
    start_ms = MONDAY_MS + 3_600_000
    known_ms = np.full(4, MONDAY_MS + 2 * 3_600_000)
    stream = streamed(few(fraud=[True, *[False] * 3], fraud_known_at=known_ms), start_ms=start_ms)
    at_once = stream.at_ms == known_ms[0]
    assert (stream.fact[at_once] != NO_FACT).tolist() == [True, False]


def test_stages_hide_what_they_do_not_know_yet_and_keep_changed_amounts() -> None:
    stream = replayed.stream("payments", "stages")
    scored = np.flatnonzero(stream.scored)
    own = np.concatenate([stream.table.amount_minor, stream.added.amount_minor])
    changed = 0
    for touch, tx in zip(scored, stream.transactions(stream.content[scored]), strict=True):
        stage = int(stream.content[touch]) % MAX_STAGES
        assert ("device" in tx.entities) == (stage > 0)
        assert tx.amount_minor == stream.amount_minor[touch]
        changed += int(tx.amount_minor != own[stream.payment[touch]])
    assert changed > 10
    events = np.flatnonzero(stream.kind == TouchKind.OBSERVE)
    for touch, tx in zip(events, stream.transactions(stream.content[events]), strict=True):
        assert "device" in tx.entities
        assert tx.amount_minor == own[stream.payment[touch]]


def test_what_was_in_the_file_and_what_was_simulated_adds_up() -> None:
    stream = replayed.stream("payments", "untidy")
    one = stream.composition()
    played = len(stream.table) - len(stream.history)
    assert one.file_scores == played
    assert one.file_scores + one.simulated_scores == np.count_nonzero(stream.scored)
    events = np.count_nonzero(stream.kind == TouchKind.OBSERVE)
    assert one.file_events + one.simulated_events == events
    facts = np.count_nonzero(stream.fact != NO_FACT)
    assert one.file_facts + one.simulated_facts == facts
    assert one.simulated_payments == len(stream.added) > 0


def test_without_a_shape_nothing_is_simulated() -> None:
    one = replayed.stream("payments", "none").composition()
    assert one.simulated_payments == one.simulated_scores == 0
    assert one.simulated_events == one.simulated_facts == 0


def test_added_payments_are_those_that_a_shaped_frame_gets() -> None:
    """The twin is made from the frame, by names, and read; identifiers of new ones may differ."""
    frame = replayed.frame().copy()
    table = read_payments(frame, PAYMENTS)
    columns = PaymentColumns(table.time_ms, table.amount_minor, table.ever("fraud"))
    traffic = shaped(columns, replayed.shape("reuse"), np.random.default_rng(2))
    own = added_table(table, traffic.added)
    both = with_new_payments(frame, traffic.added).iloc[len(frame) :]
    twin = read_payments(both, PAYMENTS)
    assert len(own) == len(twin) > 100
    for name in ("time_ms", "amount_minor", "kind", "conditions"):
        np.testing.assert_array_equal(getattr(own, name), getattr(twin, name))
    for name, column in own.entities.items():
        ours = column.texts().to_pylist()
        theirs = twin.entities[name].texts().to_pylist()
        is_new = [text.startswith(("burst", "retry")) for text in theirs]
        assert [text.startswith("simulated-") for text in ours] == is_new
        assert [a for a, new in zip(ours, is_new, strict=True) if not new] == [
            b for b, new in zip(theirs, is_new, strict=True) if not new
        ]
        # New ones are shared by the same payments.
        own_codes, their_codes = (pd.factorize(np.array(one))[0] for one in (ours, theirs))
        assert own_codes.tolist() == their_codes.tolist()
    assert len(set(own.transaction_id.to_pylist())) == len(own)


def test_a_file_with_ids_like_those_of_simulated_payments_is_refused() -> None:
    with pytest.raises(BadFile, match="simulated-"):
        streamed(few(transaction_id=["t0", "t1", "simulated-1", "t3"]))


def test_a_start_after_the_last_payment_is_refused() -> None:
    with pytest.raises(BadFile, match="no payment"):
        streamed(few(), start_ms=MONDAY_MS + DAY_MS)
