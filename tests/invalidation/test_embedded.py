"""A store in a folder: what one saves no other overwrites, and nothing is written for nothing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from freshscore.config.errors import BadFact, EventRefused, NoModel, StoreInUse
from freshscore.config.secret import load_secret
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
    with pytest.raises(StoreInUse, match="saved by another since"):
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
