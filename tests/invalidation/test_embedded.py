"""A store in a folder: what one saves no other overwrites, and nothing is written for nothing."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from freshscore.config.errors import BadFact, BadFile, Closed, EventRefused, NoModel, StoreInUse
from freshscore.config.secret import load_secret
from freshscore.features.reading import read_payments
from freshscore.features.saving import open_store
from freshscore.features.specification import FeatureSpecification
from freshscore.features.transaction import Transaction
from freshscore.scoring.scorer import Scorer

NOON_MS = 1_699_876_800_000


def opened(folder: Path) -> Scorer:
    return Scorer.open(
        settings={"store.path": str(folder), "store.specification": "handbook"},
        model=lambda rows: np.full(len(rows), 0.5),
    )


def pay(number: int, at_ms: int = NOON_MS) -> Transaction:
    return Transaction(f"t{number}", at_ms, 100, "EUR", {"card": "c", "merchant": "m"})


def n_payments(folder: Path) -> int:
    with opened(folder) as scorer:
        count: int = scorer.stats()["store"]["payments"]
    return count


def test_who_only_scores_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with opened(folder) as scorer:
        scorer.score(pay(1))
    assert not folder.exists()
    with pytest.raises(NoModel):
        Scorer.open(settings={"store.path": str(folder)})
    assert not folder.exists()


def test_a_store_that_did_not_change_is_not_written_again(tmp_path: Path) -> None:
    with opened(tmp_path) as scorer:
        scorer.observe(pay(1))
    before = (tmp_path / "state").stat()
    with opened(tmp_path) as scorer:
        scorer.score(pay(1))
    assert (tmp_path / "state").stat().st_mtime_ns == before.st_mtime_ns


def test_one_at_a_time_observes_and_any_number_scores(tmp_path: Path) -> None:
    with opened(tmp_path) as first, opened(tmp_path) as second:
        first.observe(pay(1))
        with pytest.raises(StoreInUse, match="another scorer or command writes"):
            second.observe(pay(2))
        assert second.score(pay(3)).score == 0.5
    assert n_payments(tmp_path) == 1


def test_what_another_saved_meanwhile_is_never_overwritten(tmp_path: Path) -> None:
    with opened(tmp_path) as scorer:
        scorer.observe(pay(1))
    late = opened(tmp_path)
    with opened(tmp_path) as other:
        other.observe(pay(2))
    with pytest.raises(StoreInUse, match="by another since"):
        late.observe(pay(3))
    late.close()
    assert n_payments(tmp_path) == 2
    again = opened(tmp_path)
    again.observe(pay(3))
    again.close()
    assert n_payments(tmp_path) == 3


def test_a_child_process_does_not_hold_the_folder(tmp_path: Path) -> None:
    scorer = opened(tmp_path)
    scorer.observe(pay(1))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    scorer.close()
    with opened(tmp_path) as other:
        other.observe(pay(2))
    os.close(writer)
    os.waitpid(child, 0)
    assert n_payments(tmp_path) == 2


def test_the_secret_is_made_with_the_first_event_and_found_again(tmp_path: Path) -> None:
    with opened(tmp_path) as scorer:
        scorer.observe(pay(1))
        made = load_secret(tmp_path).key_id
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert n_payments(tmp_path) == 1
    assert load_secret(tmp_path).key_id == made


def test_an_event_of_the_future_is_early_and_moves_no_time(tmp_path: Path) -> None:
    """One wrong year would put all events after it beyond reach."""
    with opened(tmp_path) as scorer:
        scorer.observe(pay(1))
        with pytest.raises(EventRefused, match="newer than its arrival"):
            scorer.observe(pay(2, at_ms=4_102_444_799_000))
        with pytest.raises(EventRefused, match="newer than its arrival"):
            scorer.observe(pay(3, at_ms=4_102_444_799_000), arrival=4_102_444_799_000)
        assert scorer.stats()["feed"] == {"accepted": 1, "early": 2}
        assert scorer.stats()["store"]["newest_ms"] == NOON_MS
        assert scorer.score(pay(4)).as_of == NOON_MS


def test_a_fact_of_no_known_entity_is_refused_and_not_lost(tmp_path: Path) -> None:
    with opened(tmp_path) as scorer:
        for entities in ({"crad": "c"}, {}):
            with pytest.raises(BadFact, match="none of the fact's entities"):
                scorer.label("t1", fraud=True, entities=entities, time=NOON_MS)
        # Before any event, a fact is known from its event's time on.
        scorer.label("t1", fraud=True, entities={"card": "c", "merchant": "m"}, time=NOON_MS)
        assert scorer.stats()["feed"] == {"fact accepted": 1}


def test_closing_while_others_observe_loses_nothing_that_was_taken(tmp_path: Path) -> None:
    """What was applied before the close is saved; what comes later raises, in whatever thread."""
    for attempt in range(6):
        folder = tmp_path / str(attempt)
        scorer = opened(folder)
        taken = [0] * 4

        def observe(thread: int, scorer: Scorer = scorer, taken: list[int] = taken) -> None:
            number = 0
            with contextlib.suppress(Closed):
                while True:
                    scorer.observe(pay(1_000_000 * thread + number, NOON_MS + number))
                    taken[thread] += 1
                    number += 1

        threads = [threading.Thread(target=observe, args=(thread,)) for thread in range(4)]
        for one in threads:
            one.start()
        while sum(taken) < 200:
            pass
        scorer.close()
        for one in threads:
            one.join()
        assert n_payments(folder) == sum(taken)


def test_a_save_that_fails_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = opened(tmp_path)
    scorer.observe(pay(1))
    with monkeypatch.context() as broken:

        def full(*_: object) -> None:
            raise BadFile("cannot write state: no space left on device")

        broken.setattr("freshscore.invalidation.embedded.save_store", full)
        with pytest.raises(BadFile):
            scorer.close()
    with pytest.raises(Closed):
        scorer.observe(pay(2))
    scorer.close()
    assert n_payments(tmp_path) == 1


def test_who_forgets_to_close_does_not_keep_the_folder(tmp_path: Path) -> None:
    scorer = opened(tmp_path)
    scorer.observe(pay(1))
    del scorer
    gc.collect()
    with opened(tmp_path) as other:
        other.observe(pay(2))
    assert n_payments(tmp_path) == 1


def test_what_was_saved_between_reading_and_the_first_event_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as scorer:
        scorer.observe(pay(1))
    read = open_store

    def slow(*arguments: Any) -> Any:
        store = read(*arguments)
        monkeypatch.setattr("freshscore.invalidation.embedded.open_store", read)
        with opened(tmp_path) as other:
            other.observe(pay(2))
        return store

    monkeypatch.setattr("freshscore.invalidation.embedded.open_store", slow)
    late = opened(tmp_path)
    with pytest.raises(StoreInUse):
        late.observe(pay(3))
    assert n_payments(tmp_path) == 2


@pytest.mark.parametrize("late_rows", [True, False])
def test_rows_that_are_refused_complete_nothing(tmp_path: Path, late_rows: bool) -> None:
    day_ms = 86_400_000
    payments = pd.DataFrame(
        {
            "transaction_id": ["old", "new"],
            "time_ms": [NOON_MS - 20 * day_ms, NOON_MS],
            "arrival_ms": [NOON_MS if late_rows else NOON_MS - 20 * day_ms, NOON_MS],
            "amount_minor": 100,
            "currency": "EUR",
            "card": "c",
            "merchant": "m",
        }
    )
    with opened(tmp_path) as scorer:
        scorer.observe(pay(1, NOON_MS - 1_000))
        table = read_payments(payments, FeatureSpecification.shipped("handbook"))
        scorer._feed.load(table)
        since_ms = scorer.stats()["store"]["complete_since_ms"]
    assert since_ms == (NOON_MS - 1_000 if late_rows else NOON_MS - 20 * day_ms)
