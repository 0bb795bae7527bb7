"""Since when history is complete: a new card differs from a new installation, and says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from freshscore.features.reading import read_payments
from freshscore.features.specification import FeatureSpecification
from freshscore.features.transaction import Transaction
from freshscore.scoring.scorer import Scorer

START_MS = 1_699_833_600_000
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
SPECIFICATION = """
name = "week"
currency = "EUR"
[[entities]]
name = "card"
[[windows]]
entity = "card"
lengths = ["1h", "7d"]
aggregates = [{ function = "count" }]
[[windows]]
entity = "card"
lengths = ["1d"]
delay = "1d"
current = false
aggregates = [{ function = "count", name = "before" }]
"""


@pytest.fixture
def specification(tmp_path: Path) -> str:
    path = tmp_path / "week.toml"
    path.write_text(SPECIFICATION)
    return str(path)


def opened(specification: str, **settings: object) -> Scorer:
    return Scorer.open(
        settings={"store.specification": specification, **settings},
        model=lambda rows: np.full(len(rows), 0.5),
    )


def pay(number: int, at_ms: int, card: str = "c") -> Transaction:
    return Transaction(f"t{number}", at_ms, 100, "EUR", {"card": card})


def test_before_the_first_event_nothing_is_complete(specification: str) -> None:
    with opened(specification) as scorer:
        assert scorer.score(pay(1, START_MS)).complete_since == START_MS
        assert scorer.stats()["incomplete"] == 1
        assert scorer.stats()["store"]["complete_since_ms"] is None


def test_a_new_installation_is_incomplete_until_its_longest_window_is_behind_it(
    specification: str,
) -> None:
    with opened(specification) as scorer:
        scorer.observe(pay(1, START_MS))
        # A late event does not mean that all before it was there.
        scorer.observe(pay(2, START_MS - HOUR_MS))
        before = scorer.score(pay(3, START_MS + 7 * DAY_MS - 1, "other"))
        after = scorer.score(pay(4, START_MS + 7 * DAY_MS, "other"))
        assert before.complete_since == START_MS
        assert after.complete_since is None
        assert scorer.stats()["incomplete"] == 1
        # On a complete history a new card is just a new card.
        assert scorer.score(pay(5, START_MS + 8 * DAY_MS, "new")).complete_since is None


def test_the_explanation_names_the_features_that_reach_further_back(specification: str) -> None:
    with opened(specification) as scorer:
        scorer.observe(pay(1, START_MS))
        two_days = scorer.explain(pay(2, START_MS + 2 * DAY_MS))
        assert two_days.complete_since == START_MS
        assert two_days.incomplete == ("card_count_7d",)
        assert scorer.explain(pay(3, START_MS + HOUR_MS)).incomplete == (
            "card_count_7d",
            "card_before_1d",
        )
        assert scorer.explain(pay(4, START_MS + 30 * DAY_MS)).incomplete == ()


def loaded(scorer: Scorer, first_ms: int, last_ms: int) -> None:
    payments = [pay(first_ms // 1000 + i, at_ms) for i, at_ms in enumerate((first_ms, last_ms))]
    spec = FeatureSpecification.from_toml(SPECIFICATION)
    scorer._feed.load(read_payments(payments, spec))


def test_what_is_loaded_reaches_back_unless_there_is_a_gap(specification: str) -> None:
    with opened(specification, **{"store.horizon_s": 30 * 86_400}) as scorer:
        scorer.observe(pay(1, START_MS))
        loaded(scorer, START_MS - 9 * DAY_MS, START_MS - 8 * DAY_MS)
        assert scorer.stats()["store"]["complete_since_ms"] == START_MS
        loaded(scorer, START_MS - 3 * DAY_MS, START_MS + HOUR_MS)
        assert scorer.stats()["store"]["complete_since_ms"] == START_MS - 3 * DAY_MS


def test_a_saved_store_knows_it_and_longer_windows_do_not_pretend(
    specification: str, tmp_path: Path
) -> None:
    folder = {"store.path": str(tmp_path / "store")}
    last_ms = START_MS + 20 * DAY_MS
    with opened(specification, **folder) as scorer:
        loaded(scorer, START_MS, last_ms)
    with opened(specification, **folder) as scorer:
        assert scorer.stats()["store"]["complete_since_ms"] == START_MS
        assert scorer.score(pay(1, last_ms)).complete_since is None
    Path(specification).write_text(SPECIFICATION.replace('"7d"', '"7d", "15d"'))
    with opened(specification, **folder) as scorer:
        since_ms = scorer.score(pay(2, last_ms)).complete_since
        assert since_ms == last_ms - 7 * DAY_MS - DAY_MS


def test_an_entity_over_its_limit_says_since_when_it_holds_all(specification: str) -> None:
    with opened(specification, **{"store.max_events_per_entity": 16}) as scorer:
        scorer.observe(pay(0, START_MS - 30 * DAY_MS, "other"))
        for i in range(17):
            scorer.observe(pay(1 + i, START_MS + i))
        full = scorer.score(pay(99, START_MS + HOUR_MS))
        assert full.degraded == ("too many events",)
        assert full.complete_since == START_MS + 1
        assert scorer.score(pay(98, START_MS + HOUR_MS, "other")).complete_since is None


def test_without_windows_nothing_is_incomplete(tmp_path: Path) -> None:
    path = tmp_path / "plain.toml"
    path.write_text(
        'name = "plain"\ncurrency = "EUR"\nfeatures = [{ name = "a", function = "amount" }]'
    )
    with opened(str(path)) as scorer:
        assert scorer.score(pay(1, START_MS)).complete_since is None
        assert scorer.explain(pay(1, START_MS)).incomplete == ()
        assert scorer.stats()["incomplete"] == 0
