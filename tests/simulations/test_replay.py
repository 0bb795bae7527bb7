"""The replay: every served score is the fresh one, and a scorer that breaks that is caught."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from freshscore.config.clock import SystemClock
from freshscore.config.errors import ModelMismatch
from freshscore.config.settings import Settings, StoreSettings
from freshscore.features.transaction import Transaction
from freshscore.invalidation.feed import Feed
from freshscore.scoring import cache_layout as c
from freshscore.scoring.callable_model import CallableModel
from freshscore.scoring.model_file import CohortThresholds
from freshscore.scoring.result import SOURCES, Result
from freshscore.scoring.scorer import Scorer
from freshscore.scoring.tier import Tier
from freshscore.simulations import replay as replay_module
from freshscore.simulations.equality import checked
from freshscore.simulations.outcome import outcome_of
from freshscore.simulations.replay import Replay, replay
from freshscore.simulations.shapes import TouchKind
from tests.simulations import replayed

WINDOW_MS = 1_800_000


def served_from_cache(run: Replay) -> int:
    return int(np.count_nonzero(run.records.source != c.COMPUTED_NOW))


@pytest.mark.parametrize("specification", replayed.SPECIFICATIONS)
@pytest.mark.parametrize("shape", ["reuse", "stages", "untidy"])
def test_every_score_is_the_fresh_one_and_the_vectorised_oracle_agrees_on_all(
    specification: str, shape: str
) -> None:
    run = replayed.played(specification, shape, oracle_share=1.0)
    equality = checked(run, ("vectorised",))
    assert equality.holds, equality.statement
    assert equality.cached == served_from_cache(run) > 100
    assert equality.oracles[0].followed == len(run.records) == np.count_nonzero(run.stream.scored)


@pytest.mark.parametrize("specification", replayed.SPECIFICATIONS)
def test_the_plain_oracle_agrees_on_a_sample(specification: str) -> None:
    equality = checked(replayed.played(specification, "untidy", oracle_share=0.02))
    assert equality.holds, equality.statement
    run_size = np.count_nonzero(replayed.stream(specification, "untidy").scored)
    assert equality.oracles[0].followed == math.ceil(0.02 * run_size) > 10


def test_answers_and_applied_events_add_up() -> None:
    run = replayed.reused()
    stream, outcome = run.stream, outcome_of(run, checked(run, ()), WINDOW_MS)
    assert outcome.answers == np.count_nonzero(stream.scored) == len(run.records)
    assert [one.source for one in outcome.sources] == list(SOURCES)
    again = [one.again for one in outcome.sources]
    assert (
        sum(again)
        == outcome.policies[0].again
        == outcome.composition.simulated_scores - len(stream.added)
    )
    looked_at = sum(one.confirmed + one.computed for one in outcome.causes)
    assert looked_at == outcome.answers - outcome.sources[c.MEMO].answers
    assert outcome.timeline.answers.sum() == outcome.answers
    assert outcome.timeline.foresight.sum() == outcome.policies[0].hits
    events = np.count_nonzero(stream.kind == TouchKind.OBSERVE)
    facts = np.count_nonzero(stream.kind > TouchKind.OBSERVE)
    assert outcome.feed == {"accepted": events, "fact accepted": facts}
    assert run.history["accepted"] == len(stream.history) == outcome.history
    assert len(outcome.ages_s) == outcome.saved == served_from_cache(run)
    assert (run.records.age_ms[run.records.source == c.COMPUTED_NOW] == 0).all()


def test_the_cache_serves_what_foresight_would_and_nothing_stale() -> None:
    outcome = outcome_of(replayed.reused(), checked(replayed.reused(), ()), WINDOW_MS)
    bound, own = outcome.policies[:2]
    assert (bound.name, own.name) == ("perfect foresight", "freshscore")
    assert own.in_bound_again >= 0.99 * bound.hits_again > 100
    assert bound.in_bound_again == bound.hits_again
    assert bound.stale == own.stale == 0


def test_a_score_that_is_re_used_for_its_own_payment_is_one_that_foresight_re_uses() -> None:
    """Within the window; the cache also serves scores of other cards, which foresight does not."""
    run = replayed.reused()
    in_bound = foresight_by_search(run)
    payment = run.stream.identity[run.stream.payment[run.records.touch]]
    before_ms: dict[int, int] = {}
    own = np.zeros(len(payment), np.bool_)
    for i, (number, at_ms) in enumerate(
        zip(payment.tolist(), run.records.as_of_ms.tolist(), strict=True)
    ):
        own[i] = at_ms - before_ms.get(number, -WINDOW_MS - 1) <= WINDOW_MS
        before_ms[number] = at_ms
    reused = (run.records.source == c.MEMO) | (run.records.source == c.BOX_HIT)
    assert np.count_nonzero(reused & own) > 100
    assert in_bound[reused & own].all()


def test_foresight_is_what_a_search_through_all_earlier_answers_finds() -> None:
    run = replayed.reused()
    outcome = outcome_of(run, checked(run, ()), WINDOW_MS)
    assert outcome.policies[0].hits == np.count_nonzero(foresight_by_search(run))


def foresight_by_search(run: Replay) -> np.ndarray:
    """The slow twin of the bound: looks at all earlier answers to the same card."""
    card = run.stream.card[run.stream.payment[run.records.touch]]
    at_ms, bits = run.records.as_of_ms, run.records.fresh.view(np.int64)
    return np.array(
        [
            bool(
                (
                    (card[:i] == card[i])
                    & (bits[:i] == bits[i])
                    & (at_ms[:i] >= at_ms[i] - WINDOW_MS)
                ).any()
            )
            for i in range(len(card))
        ]
    )


def test_the_same_seed_gives_the_same_answers_and_another_one_others() -> None:
    first, second = replayed.reused(), replayed.played()
    for name in ("touch", "score", "source", "decision", "cause", "computed_ms", "hash_low"):
        np.testing.assert_array_equal(getattr(first.records, name), getattr(second.records, name))
    other = replayed.played(seed=8)
    assert not np.array_equal(first.records.touch, other.records.touch)


def test_requests_and_arrivals_have_the_instant_of_the_virtual_clock() -> None:
    run = replayed.reused()
    np.testing.assert_array_equal(run.records.as_of_ms, run.stream.at_ms[run.records.touch])


def test_a_callable_model_is_replayed_on_raw_values() -> None:
    def half_the_hour(matrix: Any) -> Any:
        return matrix[:, 1] / 48.0

    stream = replayed.stream()
    model = CallableModel(half_the_hour, "test", [CohortThresholds("all", 0.5, 0.9)])
    rng = np.random.default_rng(1)
    run = replay(stream, model, replayed.SMALL, rng, SystemClock(), oracle_share=0.02)
    equality = checked(run)
    assert equality.holds, equality.statement
    assert equality.cached > 100
    np.testing.assert_array_equal(run.records.raw, run.records.cell)


def test_a_model_of_another_specification_is_refused_before_anything_is_played() -> None:
    with pytest.raises(ModelMismatch, match="payments"):
        replay(
            replayed.stream("payments"),
            replayed.model("handbook"),
            replayed.SMALL,
            np.random.default_rng(1),
            SystemClock(),
        )


def test_what_the_scorer_refuses_as_too_old_is_counted_and_the_rest_goes_on() -> None:
    """The shortest horizon: a review after events that are newer by more than that is refused."""
    settings = Settings(store=StoreSettings(horizon_s=60))
    run = replayed.played(settings=settings)
    assert run.refused > 0
    assert len(run.records) + run.refused == np.count_nonzero(run.stream.scored)
    assert checked(run, ()).holds


def test_events_that_the_horizon_refuses_are_counted_and_oracles_refuse_them_too() -> None:
    settings = Settings(store=StoreSettings(horizon_s=1_900))
    run = replayed.played("payments", "untidy", settings=settings, oracle_share=1.0)
    assert run.feed["late"] > 0
    equality = checked(run, ("vectorised",))
    assert equality.holds, equality.statement


# Canaries: a scorer that breaks the law in one way each.


def test_canary_boxes_that_are_too_wide_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    tiers: list[Tier] = []
    made = Tier.__init__

    def keep(tier: Tier, *arguments: Any, **named: Any) -> None:
        made(tier, *arguments, **named)
        tiers.append(tier)

    def widen() -> None:
        # The box of every entry, its lowest cells first: all vectors are inside.
        tier = tiers[-1]
        entries = tier._entries.view(np.uint8).reshape(tier.max_entries, tier.entry_bytes)
        n_features = len(replayed.model().content.feature_names)
        box = entries[:, c.BOX : c.BOX + 4 * n_features]
        box[:, : 2 * n_features] = 0
        box[:, 2 * n_features :] = 255

    monkeypatch.setattr(Tier, "__init__", keep)
    between_pieces(monkeypatch, widen)
    assert_caught(replayed.played("payments", "untidy"))


def test_canary_versions_that_never_move_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Served by what the payment is alone, as long as it is asked about."""
    known: dict[Transaction, Result] = {}
    score = Scorer.score

    def frozen(scorer: Scorer, tx: Transaction, **options: Any) -> Result:
        if tx not in known:
            known[tx] = score(scorer, tx, **options)
            return known[tx]
        raw = bytearray(known[tx].raw)
        raw[c.OUT_SOURCE : c.OUT_SOURCE + 8] = bytes(8)
        return Result(tx.transaction_id, 0.0, "", "memo", 0, 0, "", (), bytes(raw))

    monkeypatch.setattr(Scorer, "score", frozen)
    assert_caught(replayed.played("payments", "untidy"))


def test_canary_lost_events_are_caught_by_both_oracles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The states are wrong, so served and fresh scores agree: only an oracle can tell."""
    observe = Feed.observe

    def forgetful(feed: Feed, row: bytes, event_ms: int, arrival_ms: int | None) -> str:
        if event_ms % 5 == 0:
            return "accepted"
        return observe(feed, row, event_ms, arrival_ms)

    monkeypatch.setattr(Feed, "observe", forgetful)
    equality = checked(replayed.played(oracle_share=0.1), ("plain", "vectorised"))
    assert equality.cached_differ == equality.computed_differ == 0
    plain, vectorised = equality.oracles
    assert plain.features_differ == vectorised.features_differ > 0
    assert not equality.holds


def between_pieces(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Play in pieces of a few touches, and `act` after each."""
    play = replay_module._Player.play

    def played(player: replay_module._Player, first: int, last: int) -> None:
        play(player, first, last)
        act()

    monkeypatch.setattr(replay_module, "_TOUCHES_AT_ONCE", 64)
    monkeypatch.setattr(replay_module._Player, "play", played)


def assert_caught(run: Replay) -> None:
    equality = checked(run, ())
    assert equality.cached_differ > 0
    assert equality.computed_differ == 0
    assert not equality.holds
    assert "DIFFER" in equality.statement
