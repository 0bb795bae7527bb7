"""Law 1: a served score is, bit for bit, what its model gives on the set of events that had been
applied, at the `as_of` that the answer reports; whatever it was served from.

The campaigns here check laws 2, 3 and 8 on every answer too (tests/laws/campaigns.py).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.laws.campaigns import Campaign, LawBroken, Plan, campaign, damaged_campaign
from tests.laws.damage import freeze_versions, know_facts_at_once, shift_events, widen_boxes
from tests.laws.law_models import KINDS
from tests.laws.records import different_bits
from tests.laws.worlds import World

STEPS = 6_000
SPECIFICATIONS = ("mixed", "payments", "handbook", "sparkov")
# Specification, model, number of campaigns: every pair once, and more of what mixes everything.
CAMPAIGNS = [(name, kind, 1) for name in SPECIFICATIONS for kind in KINDS]
CAMPAIGNS += [("mixed", "walked", number) for number in (2, 3, 4, 5)]
CAMPAIGNS += [("mixed", "callable", 2)]
SOAK_CHUNKS, SOAK_STEPS = 500, 20_000


@pytest.mark.parametrize(("specification", "kind", "number"), CAMPAIGNS)
def test_every_answer_of_a_campaign_is_what_the_oracle_gives(
    specification: str, kind: str, number: int, seed: int
) -> None:
    outcome = campaign(Plan(seed, specification, kind, STEPS))
    assert outcome.steps == STEPS
    sources = {"memo", "cell", "computed"} | ({"box"} if kind == "walked" else set())
    assert {source for source, n in outcome.answers.items() if n > 20} == sources
    assert outcome.refused["late"] > 0
    assert outcome.refused["early"] > 0


# Each found a fault: cleaning that walked the region of a large segment (arena).
FAILED_ONCE = [Plan(1003, "mixed", "walked", 11_000)]


@pytest.mark.parametrize("plan", FAILED_ONCE)
def test_a_campaign_that_once_failed_does_not_fail_again(plan: Plan) -> None:
    campaign(plan)


def test_the_campaigns_are_a_hundred_thousand_operations_and_the_soak_ten_million() -> None:
    assert len(CAMPAIGNS) * STEPS >= 10**5
    assert SOAK_CHUNKS * SOAK_STEPS >= 10**7


@pytest.mark.soak
@pytest.mark.parametrize("chunk", range(SOAK_CHUNKS))
def test_every_answer_of_a_long_campaign_is_what_the_oracle_gives(chunk: int, seed: int) -> None:
    specification, kind, _ = CAMPAIGNS[chunk % len(CAMPAIGNS)]
    campaign(Plan(seed, specification, kind, SOAK_STEPS))


@pytest.mark.parametrize("specification", SPECIFICATIONS)
def test_the_plain_oracle_agrees_with_a_sample_of_answers(specification: str, seed: int) -> None:
    """The slow one, told of every event and fact as it comes, and asked now and then."""
    run = Campaign(Plan(seed, specification, "walked", 500))
    oracle = run.world.plain_oracle()
    asked = 0
    while run.outcome.steps < run.plan.steps:
        run.step()
        for payment in run.records.newly_applied():
            oracle.observe(payment)
        for payment, name, value, sender_ms, known_at_ms, _ in run.records.newly_labelled():
            oracle.label(payment.transaction_id, name, value, sender_ms, known_at_ms, payment.time)
        if run.outcome.steps % 8 == 0:
            asked += 1
            payment = run.traffic.new().first
            as_of = max(run.traffic.instant(payment), run.world.store.newest_ms)
            result = run.world.scorer.score(payment, as_of=as_of)
            vector = np.array([oracle.features(payment, as_of, run.world.model.codes)])
            assert not different_bits(run.world.features(payment, as_of)[np.newaxis], vector).any()
            assert result.score == run.world.model.predict(vector)[0]
    assert asked > 50


@pytest.mark.parametrize(
    ("fault", "damage"),
    [
        ("a box is too wide", widen_boxes),
        ("no version moves", freeze_versions()),
        ("events are a millisecond off", shift_events),
        ("facts count before they are known", know_facts_at_once),
    ],
)
def test_canary_a_campaign_finds_that(fault: str, damage: Callable[[World], None]) -> None:
    # A seed whose specification reads facts: not every random one does.
    with pytest.raises(LawBroken):
        damaged_campaign(Plan(2, "mixed", "walked", 1_500), damage)
